"""Questions of the second derivative, to three judges: is it there, and is it right?"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from manualgrad.verify import tolerance
from manualgrad.verify.adjoint import SHARP
from manualgrad.verify.judges import NotRun, crash, first_line, question
from manualgrad.verify.native import error_of_float32, reference_run, unless_wrong_at_home
from manualgrad.verify.numeric import inner, slope
from manualgrad.verify.readings import Reading, compare, told_apart
from manualgrad.verify.second import (
    SecondDerivative,
    double_backward,
    second_derivative,
    unless_it_takes_no_batches,
    weights,
)
from manualgrad.verify.settle import precision
from manualgrad.verify.subject import Subject


def worth_asking(subject: Subject) -> SecondDerivative:
    """The second derivative; NotRun if fn says that it has none, or if the first is wrong."""
    unless_wrong_at_home(subject)
    second = second_derivative(subject)
    if second.refused:
        raise NotRun(second.refused)
    return second


@question("adjoint", "second derivatives against differences")
def second_against_differences(subject: Subject) -> Iterator[Reading]:
    """The derivative of <w, J^T v> by double backward, and by differences of the gradient."""
    second = worth_asking(subject)
    eps = precision(subject.point)
    for i in subject.live:
        if second.of[i] is None:
            continue  # a question of conduct
        differences = slope(second.along(i), eps, SHARP)
        theirs, bar = differences.value, differences.bar
        ours, size = inner([second.of[i]], [second.towards[i]])
        size = max(size, abs(theirs))
        if not math.isfinite(theirs) or differences.says_nothing(size):
            raise NotRun("the gradient is not smooth enough here to be differenced")
        allowed = tolerance.beside_differences(bar, eps, size)
        text = (
            f"the gradient, differentiated by {subject.label(i)} through its own backward pass: "
            f"{told_apart(ours, theirs)} along a random direction, differences of the gradient say "
            f"{told_apart(theirs, ours)}"
        )
        yield Reading(text, abs(ours - theirs), allowed, size)


@question("native", "second derivatives")
def second_derivatives(subject: Subject) -> Iterator[Reading]:
    """Through both backward passes' own graphs, entry by entry."""
    tensors = subject.point
    theirs = reference_run(subject, tensors)
    worth_asking(subject)
    w, v = weights(theirs), subject.output_gradients(theirs.outputs)
    try:
        right = double_backward(subject, tensors, w, v, subject.reference)
        moved = _moved(subject, right, w, v, subject.reference)
    except Exception as error:
        raise NotRun(crash(error, "the reference")) from error
    ours = double_backward(subject, tensors, w, v)
    yield from _beside(subject, "the gradient", ours, right, moved)


def _beside(
    subject: Subject, what: str, ours: list, right: list, moved: list[float]
) -> Iterator[Reading]:
    """What was found for each tensor and each output gradient, beside what is right."""
    names = [subject.label(i) for i in subject.live]
    names += [f"output gradient {k}" for k in range(len(right) - len(names))]
    size = max(map(tolerance.largest, right))
    for name, mine, truth, by in zip(names, ours, right, moved, strict=True):
        allowed = tolerance.beside_rounding(torch.tensor(size), by, torch.float64)
        yield compare(f"{what}, differentiated by {name}", mine, truth, allowed)


def _moved(subject: Subject, right: list, w: list, v: list, callee: Callable | None) -> list[float]:
    """How far rounding moves callee's second derivatives, or their own error if larger."""

    def run(at: Sequence[Tensor], sent: Sequence[Tensor]) -> list[Tensor | None]:
        cast = [None if u is None else u.to(sent[0].dtype) for u in w]
        return double_backward(subject, at, cast, sent, callee)

    moved = error_of_float32(run, subject.point, v, right)
    for draw in (1, 2):
        at, sent = (tolerance.rounded_otherwise(t, draw) for t in (subject.point, v))
        for k, other in enumerate(run(at, sent)):
            if other is not None and right[k] is not None:
                moved[k] = max(moved[k], tolerance.largest(right[k] - other))
    return moved


@question("conduct", "second derivatives of batched gradients")
def of_batched_gradients(subject: Subject) -> Iterator[Reading]:
    """torch.autograd.functional.jacobian(..., vectorize=True, create_graph=True) asks for them.

    A Function that backward applies to a batch is lost from the graph, without a word.
    """
    second = worth_asking(subject)
    unless_it_takes_no_batches(subject)
    tensors, w, v = subject.point, second.w, second.v
    try:
        found = double_backward(subject, tensors, w, v, batched=True)
    except Exception as error:
        raise NotRun(f"fn's backward takes no batched gradients: {first_line(error)}") from error
    one_by_one = [*second.of.values(), *second.by_v]
    if not all(t is None or t.isfinite().all() for t in one_by_one):
        raise NotRun("its second derivatives are not finite here")
    try:
        moved = _moved(subject, one_by_one, w, v, None)
    except Exception as error:
        raise NotRun(crash(error, "fn in float32")) from error
    what = "the gradient, taken in a batch of output gradients and"
    yield from _beside(subject, what, found, one_by_one, moved)


@question("conduct", "no second derivative is silently missing")
def no_silent_second_derivative(subject: Subject) -> Iterator[Reading]:
    """Right (the other judges say) or a clear error, but neither None nor zero."""
    second = worth_asking(subject)
    for text in second.missing:
        yield Reading(f"{text}; mark backward @once_differentiable, or make it differentiable")
    yield Reading("none is missing", 0.0, 0.0)
