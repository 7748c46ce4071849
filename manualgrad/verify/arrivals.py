"""Conduct, of what arrives: layouts, frozen tensors, unused outputs, batch shapes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from manualgrad.verify.adjoint import adjointness
from manualgrad.verify.judges import NotRun, crash, question, refusal
from manualgrad.verify.native import beside_reference, unless_wrong_at_home
from manualgrad.verify.readings import Reading
from manualgrad.verify.subject import Movement, Run, Subject, gradients_of
from manualgrad.verify.variations import (
    EXPANSIONS,
    LAYOUTS,
    REFUSALS,
    Variation,
    compared,
    subsets,
)


@question("conduct", "output gradients of every layout")
def output_gradients(subject: Subject) -> Iterator[Reading]:
    """Contiguous or not, the numbers count: torch.cat, .mT and .sum() upstream send such."""
    if all(o.dim() == 0 for o in subject.plain.outputs):
        raise NotRun("its outputs are single numbers, which have no layout")
    v = subject.output_gradients(subject.plain.outputs)

    def variations() -> Iterator[Variation]:
        for name, layout in LAYOUTS.items():
            sent = [_or_as_is(layout(g), g) for g in v]
            if any(s is not g for s, g in zip(sent, v, strict=True)):
                what = f"with its output gradient {name}"
                yield Variation(what, _run(subject, v=sent), subject.plain, subject.moved)
        for name, expand in EXPANSIONS.items():
            sent = [_or_as_is(expand(g), g) for g in v]
            if any(s is not g for s, g in zip(sent, v, strict=True)):
                solid = [s.contiguous() for s in sent]
                want = subject.run(subject.given, v=solid)
                moved = subject.moved_by_rounding(subject.given, want, v=solid)
                yield Variation(
                    f"with its output gradient {name}", _run(subject, v=sent), want, moved
                )

    yield from compared(subject, variations(), refusals=())


def _or_as_is(layout: Tensor | None, tensor: Tensor) -> Tensor:
    return tensor if layout is None else layout


def replaced(subject: Subject, i: int, tensor: Tensor) -> list[Tensor]:
    """The tensors as given, but for number i."""
    return [tensor if k == i else t for k, t in enumerate(subject.given)]


def _run(subject: Subject, tensors=None, **how) -> Callable[[], Run]:
    return lambda: subject.run(subject.given if tensors is None else tensors, **how)


@question("conduct", "inputs of every layout")
def inputs(subject: Subject) -> Iterator[Reading]:
    if subject.random:
        raise NotRun("fn is random, and what it draws may follow the memory's order")

    def variations() -> Iterator[Variation]:
        passed = [*subject.as_passed, *subject.given[subject.arguments :]]
        if not all(t.is_contiguous() for t in passed):
            yield Variation("as passed", _run(subject, passed), subject.plain, subject.moved)
        for i, t in enumerate(subject.given[: subject.arguments]):  # parameters are what they are
            for name, layout in LAYOUTS.items():
                if (laid_out := layout(t)) is not None:
                    what, tensors = f"{subject.labels[i]} {name}", replaced(subject, i, laid_out)
                    yield Variation(what, _run(subject, tensors), subject.plain, subject.moved)
            for name, expand in EXPANSIONS.items():
                if (expanded := expand(t)) is not None:
                    solid = replaced(subject, i, expanded.contiguous())
                    try:
                        want = subject.run(solid)
                    except Exception:  # these values are outside of what fn takes
                        continue
                    if not want.is_finite():  # fn is singular where rows are equal: a determinant
                        continue
                    moved = subject.moved_by_rounding(solid, want)
                    tensors = replaced(subject, i, expanded)
                    what = f"{subject.labels[i]} {name}"
                    yield Variation(what, _run(subject, tensors), want, moved)

    yield from compared(subject, variations())


@question("conduct", "every subset of frozen tensors")
def frozen(subject: Subject) -> Iterator[Reading]:
    if len(subject.live) == 1:
        raise NotRun("there is only one tensor to differentiate by")
    position = {i: k for k, i in enumerate(subject.live)}

    def variations() -> Iterator[Variation]:
        for subset in subsets(subject.live):
            names = ", ".join(subject.labels[i] for i in subset)
            own = [position[i] for i in subset]
            want = Run(subject.plain.outputs, [subject.plain.gradients[k] for k in own], subset)
            moved = Movement(subject.moved.outputs, [subject.moved.gradients[k] for k in own])
            what = f"with only {names} requiring a gradient"
            yield Variation(
                what, lambda subset=subset: subject.run(subject.given, subset), want, moved
            )

    yield from compared(subject, variations(), refusals=())


@question("conduct", "outputs that are not used")
def unused_outputs(subject: Subject) -> Iterator[Reading]:
    """Each output alone: the others send no gradient at all, which must count as zeros."""
    count = len(subject.plain.outputs)
    if count == 1:
        raise NotRun("there is only one output")
    v = subject.output_gradients(subject.plain.outputs)

    def alone(k: int) -> Run:
        leaves = subject.leaves(subject.given, subject.live)
        outputs = subject(leaves)
        asked = [leaves[i] for i in subject.live]
        found = gradients_of([outputs[k]], asked, [v[k].clone()])
        return Run([o.detach() for o in outputs], list(found), tuple(subject.live))

    def variations() -> Iterator[Variation]:
        for k in range(count):
            zeros = [g if j == k else torch.zeros_like(g) for j, g in enumerate(v)]
            want = subject.run(subject.given, v=zeros)
            what = f"with only output {k} used"
            yield Variation(what, lambda k=k: alone(k), want, subject.moved)

    yield from compared(subject, variations(), refusals=())


# batch shapes


SIZES: dict[str, Callable[[Tensor], Tensor | None]] = {
    "an empty batch": lambda t: t[:0] if t.dim() else None,
    "one example": lambda t: t[:1] if t.dim() and len(t) > 1 else None,
    "17 examples": lambda t: _repeated(t, 17),
    "33 examples": lambda t: _repeated(t, 33),
}
DIMENSIONS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "one dimension less": lambda t: t[0] if t.dim() >= 2 and len(t) else None,
    "one dimension more": lambda t: t.unsqueeze(0) if t.dim() else None,
    "two dimensions more": lambda t: _repeated(t[None], 2)[None] if t.dim() else None,
}


def _repeated(t: Tensor, count: int) -> Any:
    """t again and again, each time a little smaller: equal entries would be ties."""
    if t.dim() == 0 or len(t) == 0:
        return None
    rows = torch.arange(count, device=t.device)
    again = t[rows % len(t)]
    if not t.is_floating_point():
        return again
    smaller = 1.0 - 0.01 * (rows // len(t)).to(t.dtype)
    return again * smaller.reshape(-1, *[1] * (t.dim() - 1))


@question("conduct", "batches of every shape")
def batches(subject: Subject) -> Iterator[Reading]:
    """Where fn (or its reference) takes another batch, its gradient is right there too.

    It may refuse other dimensions, in its backward pass too; other sizes only in its forward pass,
    and only if its reference does.
    """
    if not subject.arguments:
        raise NotRun("fn has no argument to give another shape to")
    unless_wrong_at_home(subject)
    refused: list[tuple[str, BaseException]] = []
    for name, reshape in (SIZES | DIMENSIONS).items():
        if reshape(subject.point[0]) is None:
            continue
        refusals = REFUSALS if name in SIZES else (Exception,)
        try:
            tensors = _taken(subject, reshape)
        except Exception as error:
            refused.append((name, error))
            continue
        try:
            readings = list(_at(subject, tensors, name))
        except NotRun:
            continue  # not smooth there, or nowhere finite
        except refusals as error:
            refused.append((name, error))
        except Exception as error:
            yield Reading(f"{name}: {crash(error)}")
        else:
            yield from readings
    if refused:
        raise refusal("fn does not take", refused)


def _taken(subject: Subject, reshape: Callable) -> list[Tensor]:
    """The point with its first argument reshaped, alone or with all of its length.

    Raises what fn (or its reference) raises if it takes neither.
    """
    length = subject.point[0].shape[:1]
    together = [i for i in range(subject.arguments) if subject.point[i].shape[:1] == length != ()]
    errors = []
    for group in ([0], together):
        tensors = [reshape(t) if i in group else t for i, t in enumerate(subject.point)]
        if any(t is None for t in tensors):
            continue
        try:
            subject(subject.leaves(tensors, ()), subject.reference or subject.callee)
        except Exception as error:
            errors.append(error)
        else:
            return tensors
    raise errors[0]


def _at(subject: Subject, tensors: Sequence[Tensor], name: str) -> Iterator[Reading]:
    where = f", {name}"
    run = subject.run(tensors)
    if not all(o.isfinite().all() for o in run.outputs):
        return  # the mean over nothing is NaN, and so is its gradient
    v = subject.output_gradients(run.outputs)
    gradients = dict(zip(run.wrt, run.gradients, strict=True))
    yield from adjointness(subject, tensors, list(run.wrt), gradients, v, where)
    if subject.reference is not None:
        yield from beside_reference(subject, tensors, where, "outputs")
        yield from beside_reference(subject, tensors, where, "gradients")
