"""Finite differences by torch.autograd.gradcheck and its kin, each flag alone.

Alone, so that a forward mode that is not there does not hide a second derivative that is wrong.
"""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.autograd.gradcheck import GradcheckError

from manualgrad.verify.adjoint import jvp
from manualgrad.verify.judges import NotRun, first_line, question
from manualgrad.verify.readings import Reading
from manualgrad.verify.second import unless_it_takes_no_batches
from manualgrad.verify.seconds import worth_asking
from manualgrad.verify.subject import Subject

LARGE = 20_000  # entries of a Jacobian, from where on gradcheck projects it instead


def run_gradcheck(subject: Subject, check: Any, **flags: Any) -> Iterator[Reading]:
    if subject.exact_note:
        raise NotRun(f"gradcheck wants float64: {subject.exact_note}")
    if subject.gradcheck_fails:
        raise NotRun("gradcheck itself fails")
    leaves = subject.leaves(subject.point, subject.live)
    outputs = subject(leaves)
    if not all(o.isfinite().all() for o in outputs):
        raise NotRun("fn's value is not finite here")
    if not _takes_a_step(subject):
        raise NotRun("gradcheck's step of 1e-6 leads out of what fn takes")
    inputs = sum(leaves[i].numel() for i in subject.live)
    fast = inputs * sum(o.numel() for o in outputs) > LARGE
    try:
        check(lambda *t: tuple(subject(t)), tuple(leaves), fast_mode=fast, **flags)
    except GradcheckError as error:
        if "incorrect layout" in str(error):
            raise NotRun("its gradient is sparse, and gradcheck wants dense ones") from error
        yield Reading(_told(subject, check, error))
        return
    yield Reading(check.__name__, 0.0, 0.0)


def _takes_a_step(subject: Subject) -> bool:
    """Is fn there, and finite, a step to either side of the point?"""
    for i in subject.live:
        for step in (2e-6, -2e-6):
            tensors = list(subject.point)
            tensors[i] = tensors[i] + step
            try:
                outputs = subject(subject.leaves(tensors, ()))
            except Exception:
                return False
            if not all(o.isfinite().all() for o in outputs):
                return False
    return True


def _told(subject: Subject, check: Any, error: GradcheckError) -> str:
    """What gradcheck says, with the tensors' own names."""
    pair = re.search(r"output (\d+) with respect to input (\d+)", str(error))
    if not pair:
        batch = re.search(r"For output (\d+) and input (\d+)", str(error))
        if batch and "vmap" in str(error):
            of = subject.labels[subject.live[int(batch[2])]]
            return f"gradient of {of}: for a batch of output gradients it is not what each gives"
        return first_line(error)
    live = [subject.labels[i] for i in subject.live]
    output, by = int(pair[1]), int(pair[2])
    if check is gradcheck:
        of = "the output" if len(subject.plain.outputs) == 1 else f"output {output}"
        return f"the derivative of {of} by {live[by]} is not what finite differences give"
    inputs = [*live, *(f"output gradient {k}" for k in range(len(subject.plain.outputs)))]
    return (
        f"the gradient of {live[output]}, differentiated by {inputs[by]}, is not what finite "
        f"differences give"
    )


@question("finite differences", "gradcheck")
def plain(subject: Subject) -> Iterator[Reading]:
    for reading in run_gradcheck(subject, gradcheck, check_undefined_grad=False):
        subject.gradcheck_fails = reading.wrong
        yield reading


@question("finite differences", "undefined gradients")
def undefined(subject: Subject) -> Iterator[Reading]:
    """Output gradients that are None, as those of an unused output are."""
    yield from run_gradcheck(subject, gradcheck, check_undefined_grad=True)


@question("finite differences", "batched gradients")
def batched(subject: Subject) -> Iterator[Reading]:
    unless_it_takes_no_batches(subject)
    yield from run_gradcheck(
        subject, gradcheck, check_batched_grad=True, check_undefined_grad=False
    )


@question("finite differences", "gradgradcheck")
def twice(subject: Subject) -> Iterator[Reading]:
    _unless_there_is_no_second_derivative(subject)
    yield from run_gradcheck(subject, gradgradcheck, check_undefined_grad=False)


@question("finite differences", "forward mode")
def forward_mode(subject: Subject) -> Iterator[Reading]:
    _unless_there_is_no_forward_mode(subject)
    yield from run_gradcheck(
        subject, gradcheck, check_backward_ad=False, check_forward_ad=True,
        check_undefined_grad=False,
    )  # fmt: skip


@question("finite differences", "forward over reverse")
def forward_over_reverse(subject: Subject) -> Iterator[Reading]:
    _unless_there_is_no_second_derivative(subject)
    _unless_there_is_no_forward_mode(subject)
    try:
        yield from run_gradcheck(
            subject, gradgradcheck, check_rev_over_rev=False, check_fwd_over_rev=True,
            check_undefined_grad=False,
        )  # fmt: skip
    except NotImplementedError as error:
        raise NotRun(f"fn's backward has no forward mode: {first_line(error)}") from error


def _unless_there_is_no_second_derivative(subject: Subject) -> None:
    second = worth_asking(subject)
    if second.missing:
        raise NotRun("the second derivative is silently missing, see conduct")
    if second.is_zero:
        raise NotRun("fn is linear: its gradient does not depend on what is differentiated by")


def _unless_there_is_no_forward_mode(subject: Subject) -> None:
    ones = {i: torch.ones_like(subject.point[i]) for i in subject.live}
    with forward_ad.dual_level():
        jvp(subject, subject.point, ones)
