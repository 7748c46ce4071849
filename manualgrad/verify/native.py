"""Beside a reference: are the values its values, and the gradients those of torch's own autograd?

The truth is the reference in float64, on the inputs as rounded to the dtype that is judged.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from manualgrad.verify import tolerance
from manualgrad.verify.adjoint import adjointness
from manualgrad.verify.judges import NotRun, crash, question
from manualgrad.verify.readings import Reading, compare
from manualgrad.verify.settle import is_exact
from manualgrad.verify.subject import Run, Subject, in_float32, wide


def reference_run(subject: Subject, tensors: Sequence[Tensor], **how: Any) -> Run:
    """The reference where fn's own run would be; NotRun without one, or where it fails."""
    if subject.reference is None:
        raise NotRun("there is no reference to compare with; pass reference=")
    try:
        return subject.run(tensors, callee=subject.reference, **how)
    except Exception as error:
        raise NotRun(crash(error, "the reference")) from error


def points(subject: Subject) -> list[tuple[str, list[Tensor]]]:
    """Where the two are compared: as given, and in float64."""
    dtypes = sorted({str(subject.given[i].dtype) for i in subject.live})
    given = (f" in {' and '.join(dtypes)}", list(subject.given))
    if is_exact(subject.given) or subject.exact_note:
        return [given]
    return [given, (" in torch.float64", list(subject.exact))]


def beside_reference(
    subject: Subject, tensors: Sequence[Tensor], where: str, part: str, far_out: bool = False
) -> Iterator[Reading]:
    """fn's outputs or gradients at a point against the reference's."""
    wrt = None if part == "gradients" else ()
    theirs = reference_run(subject, tensors, wrt=wrt)
    ours = subject.run(tensors, wrt)
    if len(ours.outputs) != len(theirs.outputs):
        counts = f"{len(ours.outputs)} results, the reference {len(theirs.outputs)}"
        yield Reading(f"fn has {counts} that carry a gradient{where}")
        return
    names = [f"gradient of {subject.label(i)}" for i in ours.wrt]
    if part == "outputs":
        names = [f"output {k}" for k in range(len(ours.outputs))]
        names = ["the output"] if len(names) == 1 else names
    truth, limits = truth_and_limits(subject, tensors, theirs, part, far_out=far_out)
    rows = zip(names, getattr(ours, part), getattr(theirs, part), truth, limits, strict=True)
    for name, mine, native, right, limit in rows:
        yield against_truth(name + where, mine, native, right, limit)


def truth_and_limits(
    subject: Subject,
    tensors: Sequence[Tensor],
    theirs: Run,
    part: str,
    callee: Any = None,
    far_out: bool = False,
) -> tuple[list[Tensor | None], list[float]]:
    """What the reference (or another callee) says in float64, and what an error may be.

    theirs: its own run at the tensors. In float64 the truth is torch's own, and its error is what
    rounding does, or its error in float32 by the ratio of the units: cancellation shows there.
    far_out: the terms differ by orders of magnitude, so in narrow dtypes too a rounding of the
    inputs may do more than that of the result.
    """
    callee = callee or subject.reference
    own, moved = getattr(theirs, part), [0.0] * len(getattr(theirs, part))
    if far_out or is_exact(tensors):
        moved = getattr(subject.moved_by_rounding(tensors, theirs, callee=callee), part)
    if is_exact(tensors):
        run = lambda at, v: getattr(subject.run(at, theirs.wrt, v, callee), part)  # noqa: E731
        errors = error_of_float32(run, tensors, subject.output_gradients(theirs.outputs), own)
        limits = [
            tolerance.beside_rounding(t, max(by, error), torch.float64)
            for t, by, error in zip(own, moved, errors, strict=True)
        ]
        return own, limits
    v = [wide(g) for g in subject.output_gradients(theirs.outputs)]
    try:
        exact = subject.run([wide(t) for t in tensors], theirs.wrt, v, callee)
    except Exception as error:
        raise NotRun(crash(error, "the reference in float64")) from error
    truth, limits = getattr(exact, part), []
    for native, right, by in zip(own, truth, moved, strict=True):
        if native is None or right is None:
            limits.append(0.0)
            continue
        error = max(by, tolerance.largest(native.to(right.dtype) - right))
        limits.append(tolerance.beside_torch(right, error, native.dtype))
    return truth, limits


def error_of_float32(
    run: Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor | None]],
    tensors: Sequence[Tensor],
    v: Sequence[Tensor],
    results: Sequence[Tensor | None],
) -> list[float]:
    """The error of run(tensors, v) in float32, scaled to float64; 0 where it takes no float32."""
    scale = tolerance.unit(torch.float64) / tolerance.unit(torch.float32)
    narrow, sent = [in_float32(t) for t in tensors], [in_float32(g) for g in v]
    try:
        found = run(narrow, sent)
        exact = run([wide(t) for t in narrow], [wide(g) for g in sent])
    except Exception:
        return [0.0] * len(results)
    return [
        0.0 if one is None or two is None else scale * tolerance.largest(wide(one) - two)
        for one, two in zip(found, exact, strict=True)
    ]


def against_truth(
    what: str, ours: Tensor | None, native: Tensor | None, truth: Tensor | None, allowed: float
) -> Reading:
    """The error of ours against the truth; its shape and dtype against torch's own result's.

    Where torch's own result is NaN, or has overflowed, it proves nothing: passed over.
    """
    if native is None or truth is None or ours is None:
        return compare(what, ours, truth, allowed)
    alike = compare(what, ours, native, float("inf"))
    if alike.wrong:  # another shape, dtype or device
        return alike
    proves = native.isfinite() | (native.to(truth.dtype) == truth)
    mine = torch.where(proves, ours.to(truth.dtype), truth)
    return compare(what, mine, truth, allowed)


def unless_wrong_at_home(subject: Subject) -> None:
    """NotRun where the gradient on the inputs given is wrong: elsewhere it says nothing new."""
    if subject.wrong_at_home is None:
        subject.wrong_at_home = any(reading.wrong for reading in _at_home(subject))
    if subject.wrong_at_home:
        raise NotRun("the gradient is already wrong on the inputs given")


def _at_home(subject: Subject) -> Iterator[Reading]:
    run = subject.run(subject.point)
    gradients = dict(zip(run.wrt, run.gradients, strict=True))
    v = subject.output_gradients(run.outputs)
    with contextlib.suppress(NotRun):
        yield from adjointness(subject, subject.point, run.wrt, gradients, v)
    if subject.reference is not None:
        for where, tensors in points(subject):
            yield from beside_reference(subject, tensors, where, "gradients")


@question("oracle", "values beside the reference")
def values(subject: Subject) -> Iterator[Reading]:
    for where, tensors in points(subject):
        yield from beside_reference(subject, tensors, where, "outputs")


@question("native", "gradients")
def gradients(subject: Subject) -> Iterator[Reading]:
    for where, tensors in points(subject):
        yield from beside_reference(subject, tensors, where, "gradients")
