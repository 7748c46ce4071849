"""Before the questions: does fn run, is it random, does it take float64, is it smooth here?"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from manualgrad.verify import tolerance
from manualgrad.verify.isolation import generators, seed_everything
from manualgrad.verify.judges import first_line
from manualgrad.verify.numeric import inner, kinked
from manualgrad.verify.subject import Subject, random_like

TRIES = 10
JITTER = 1e-2


class CannotRunError(Exception):
    """fn does not give a differentiable result on the caller's own inputs."""


def settle(subject: Subject) -> list[str]:
    """Fill in what the questions build on; the notes for the report."""
    notes = []
    leaves, outputs = _first_call(subject)
    flowing = [i for i, o in enumerate(outputs) if o.requires_grad]
    if not flowing:
        what = "result requires a gradient" if outputs else "tensor comes out of it"
        raise CannotRunError(f"no {what}, so nothing can be differentiated")
    subject.kept = flowing
    still = [i for i, o in enumerate(outputs) if o.is_floating_point() and not o.requires_grad]
    if still:
        notes.append(
            f"result {', '.join(map(str, still))} of fn carries no gradient, so its values alone "
            f"are checked, and those beside a reference only; was it meant to?"
        )
    if subject.writes_inputs:
        notes.append("fn writes into its inputs, as its error on a leaf says; it is given copies")
    subject.differentiates = _needs_gradients_on(subject)
    subject.random = _is_random(subject)
    if subject.random:
        notes.append(f"fn is random; every call of it starts from seed {subject.seed}")
    _take_float64(subject)
    if subject.exact_note:
        notes.append(f"{subject.exact_note}; differences are taken as given")
    subject.captured = _captured(leaves, outputs)
    if subject.captured:
        notes.append(
            f"fn also reads {len(subject.captured)} tensors that require gradients and are not its "
            f"arguments, of shapes {', '.join(str(tuple(t.shape)) for t in subject.captured[:4])}; "
            f"pass them in params to have their gradients checked"
        )
    subject.plain = subject.run(subject.given)
    subject.moved = subject.moved_by_rounding(subject.given, subject.plain)
    subject.point, moved = _smooth_point(subject)
    if moved:
        notes.append(moved)
    return notes


def _first_call(subject: Subject) -> tuple[list[Tensor], list[Tensor]]:
    leaves = subject.leaves(subject.given, subject.live)
    try:
        return leaves, subject(leaves)
    except RuntimeError as error:
        if "leaf Variable that requires grad" not in str(error):
            raise
    subject.writes_inputs = True
    return leaves, subject(leaves)


def _captured(leaves: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[Tensor]:
    """The leaves of the outputs' graph that were not handed in."""
    found = [getattr(node, "variable", None) for node in nodes(outputs)]
    return [t for t in found if t is not None and all(t is not leaf for leaf in leaves)]


def nodes(tensors: Iterable[Tensor]) -> Iterator[Any]:
    """Every node of the graph that the tensors hang on."""
    waiting = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        yield node
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                waiting.append(below)


def _needs_gradients_on(subject: Subject) -> str:
    """What fn says under no_grad, if it differentiates inside itself: forces, penalties."""
    try:
        with torch.no_grad():
            subject(subject.leaves(subject.given, ()))
    except Exception as error:
        return first_line(error)
    return ""


def _is_random(subject: Subject) -> bool:
    """Does it draw, in forward or backward, and does the same seed give the same results?"""
    runs, drew = [], False
    for _ in range(2):
        seed_everything(1)
        before = generators()
        runs.append(subject.run(subject.given))
        drew = drew or before != generators()
    first, again = runs
    return drew and _same(first.outputs, again.outputs)


def _same(ones: Sequence[Tensor], twos: Sequence[Tensor]) -> bool:
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(ones, twos, strict=True))


def _take_float64(subject: Subject) -> None:
    """exact stays float64 only if fn takes it and answers in it."""
    try:
        outputs = subject.run(subject.exact).outputs
        narrow = [o.dtype for o in outputs if o.dtype not in (torch.float64, torch.complex128)]
        if not narrow or is_exact(subject.given):
            return
        subject.exact_note = f"fn answers float64 inputs in {narrow[0]}"
    except Exception as error:
        if is_exact(subject.given):
            raise
        subject.exact_note = f"fn does not run in float64 ({first_line(error)})"
    subject.exact = list(subject.given)


def is_exact(tensors: Sequence[Tensor]) -> bool:
    narrow = (torch.float32, torch.float16, torch.bfloat16, torch.complex64)
    return not any(t.dtype in narrow for t in tensors)


def precision(tensors: Sequence[Tensor]) -> float:
    """The unit in the last place of the widest rounding among them."""
    floating = [t.dtype for t in tensors if t.is_floating_point() or t.is_complex()]
    return max(tolerance.unit(dtype) for dtype in floating)


def directions(subject: Subject, tensors: Sequence[Tensor], salt: int = 0) -> list[Tensor | None]:
    """A random direction per live tensor, as large as its entries; None for the others."""
    made: list[Tensor | None] = [None] * len(tensors)
    for i in subject.live:
        t = tensors[i]
        size = typical(t)
        made[i] = random_like(t, subject.seed + 31 * (salt + 1) + i) * (size or 1.0)
    return made


def typical(t: Tensor) -> float:
    """The root mean square of what is finite in t."""
    entries = t.abs().double()
    entries = entries[entries.isfinite()]
    return entries.square().mean().sqrt().item() if entries.numel() else 1.0


def along(
    subject: Subject,
    tensors: Sequence[Tensor],
    towards: Sequence[Tensor | None],
    v: Sequence[Tensor],
) -> Callable[[float], tuple[float, float]]:
    """h -> <v, fn(tensors + h towards)> and the size of its summands."""

    def phi(h: float) -> tuple[float, float]:
        moved = [
            t if u is None else (t + h * u).to(t.dtype)
            for t, u in zip(tensors, towards, strict=True)
        ]
        try:
            return inner(v, subject(subject.leaves(moved, ())))
        except Exception:
            if h == 0.0:
                raise
            return math.nan, 0.0  # the step leads out of what fn takes

    return phi


def _smooth_point(subject: Subject) -> tuple[list[Tensor], str]:
    """The exact point, or one beside it where the function has no kink; and what was done."""
    tensors = list(subject.exact)
    v = subject.output_gradients(subject(subject.leaves(tensors, ())))
    towards = directions(subject, tensors, salt=50)
    for attempt in range(TRIES):
        if not _rough(along(subject, tensors, towards, v), tensors, attempt):
            note = "the inputs lie on a kink; differences are taken right beside it"
            return tensors, note if attempt else ""
        shift = directions(subject, subject.exact, salt=60 + attempt)
        tensors = [
            t if u is None else (t + JITTER * u).to(t.dtype)
            for t, u in zip(subject.exact, shift, strict=True)
        ]
    note = "fn looks like a staircase close up: does it compute in less than its inputs' dtype?"
    return list(subject.exact), note


def _rough(phi: Callable, tensors: Sequence[Tensor], attempt: int) -> bool:
    """On a kink; a point beside the caller's must also be one that fn takes."""
    if attempt:
        try:
            if not math.isfinite(phi(0.0)[0]):
                return True
        except Exception:
            return True
    return kinked(phi, precision(tensors))
