"""The adjoint test, <v, J u> = <J^T v, u>: sharp to ten digits, and cheap at any size."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from manualgrad.verify import tolerance
from manualgrad.verify.judges import NotRun, first_line, question
from manualgrad.verify.numeric import inner, slope
from manualgrad.verify.readings import Reading, compare, told_apart
from manualgrad.verify.settle import along, directions, precision
from manualgrad.verify.subject import Subject, duplicate

EACH = 16  # tensors that are tried one by one; beyond, all at once
ENTRIES = 256  # of a gradient that is differenced entry by entry once it is known to be wrong
SHARP = 1e-12  # the relative error bar at which differencing stops
SHOWN = 1e-9  # the relative difference from where on an entry is shown as the wrong one


@question("adjoint", "backward against differences")
def backward_against_differences(subject: Subject) -> Iterator[Reading]:
    """J u by differences of fn, J^T v by its backward."""
    tensors, wrt = subject.point, subject.live
    run = subject.run(tensors)
    v = subject.output_gradients(run.outputs)
    gradients = dict(zip(wrt, run.gradients, strict=True))
    for group in [[i] for i in wrt] if len(wrt) <= EACH else [list(wrt)]:
        yield from adjointness(subject, tensors, group, gradients, v)


def adjointness(
    subject: Subject,
    tensors: Sequence[Tensor],
    group: Sequence[int],
    gradients: dict[int, Tensor | None],
    v: Sequence[Tensor],
    where: str = "",
) -> Iterator[Reading]:
    """<v, J u> = <J^T v, u> for a direction u within some of the tensors; then, which is wrong."""
    towards = [u if i in group else None for i, u in enumerate(directions(subject, tensors))]
    ours, size = inner([gradients[i] for i in group], [towards[i] for i in group])
    eps = precision(tensors)
    differences = slope(along(subject, tensors, towards, v), eps, SHARP * size)
    theirs, bar = differences.value, differences.bar
    size = max(size, abs(theirs)) if math.isfinite(ours) else abs(theirs)
    if not math.isfinite(theirs) or differences.says_nothing(size):
        raise NotRun(f"fn is not smooth enough to be differenced{where}")
    names = " and ".join(subject.labels[i] for i in group[:4]) + (", ..." if group[4:] else "")
    text = (
        f"gradient of {names}{where}: its product with a random direction is "
        f"{told_apart(ours, theirs)}, differences of fn say {told_apart(theirs, ours)}"
    )
    allowed = tolerance.beside_differences(bar, eps, size)
    reading = Reading(text, abs(ours - theirs), allowed, size)
    found: list[Reading] = []
    if reading.wrong and len(group) > 1:
        for i in group:
            found += adjointness(subject, tensors, [i], gradients, v, where)
    elif reading.wrong:
        found = list(_entries(subject, tensors, group[0], gradients[group[0]], v, where))
    yield from [r for r in found if r.wrong] or [reading]


def _entries(
    subject: Subject,
    tensors: Sequence[Tensor],
    i: int,
    ours: Tensor | None,
    v: Sequence[Tensor],
    where: str,
) -> Iterator[Reading]:
    """A gradient that is known to be wrong, entry by entry, if it is not too large."""
    if not 0 < tensors[i].numel() <= ENTRIES or tensors[i].is_complex():
        return
    right = numeric_gradient(subject, tensors, i, v)
    mine = None if ours is None else ours.to(right.dtype)
    shape = tuple(tensors[i].shape)
    allowed = SHOWN * tolerance.largest(right)
    yield compare(f"gradient of {subject.labels[i]} {shape}{where}", mine, right, allowed)


def numeric_gradient(
    subject: Subject, tensors: Sequence[Tensor], i: int, v: Sequence[Tensor]
) -> Tensor:
    """J^T v by tensor number i, entry by entry, from differences alone."""
    shape, kind = tensors[i].shape, tensors[i]
    result = torch.zeros(kind.numel(), dtype=torch.float64, device="cpu")
    scale = kind.abs().double().square().mean().sqrt().item() or 1.0
    for k in range(kind.numel()):
        basis = torch.zeros_like(kind).reshape(-1)
        basis[k] = scale
        towards: list[Tensor | None] = [None] * len(tensors)
        towards[i] = basis.reshape(shape)
        phi = along(subject, tensors, towards, v)
        result[k] = slope(phi, precision(tensors), SHOWN).value / scale
    return result.reshape(shape).to(kind.device)


@question("adjoint", "forward mode against backward")
def forward_mode_against_backward(subject: Subject) -> Iterator[Reading]:
    """<v, J u> with J u from fn's own jvp."""
    tensors = subject.point
    run = subject.run(tensors)
    moved = subject.moved_by_rounding(tensors, run)
    v, towards = subject.output_gradients(run.outputs), directions(subject, tensors)
    for n, i in enumerate(subject.live):
        with forward_ad.dual_level():
            tangents = jvp(subject, tensors, {i: towards[i]})
        ours, size = inner(v, tangents)
        theirs, also = inner([run.gradients[n]], [towards[i]])
        if not math.isfinite(ours + theirs) and not all(o.isfinite().all() for o in run.outputs):
            raise NotRun("fn's value is not finite here")
        felt = moved.gradients[n] * torch.linalg.vector_norm(towards[i]).item()
        allowed = tolerance.SLACK * (felt + precision(tensors) * max(size, also))
        none = " (it is None)" if all(t is None for t in tangents) else ""
        text = (
            f"the tangent{none} that forward mode gives for {subject.labels[i]} has the product "
            f"{ours:.9g} with a random output gradient, backward says {theirs:.9g}"
        )
        apart = abs(ours - theirs)
        if ours == theirs:  # infinities too
            apart, allowed = 0.0, 0.0
        yield Reading(text, apart, allowed, max(size, also))


def jvp(subject: Subject, tensors: Sequence[Tensor], towards: dict) -> list[Tensor | None]:
    """The outputs' tangents; NotRun where fn says that it has no forward mode."""
    if any(i >= subject.arguments for i in towards) and subject.callee.module is None:
        raise NotRun("tensors that fn reads besides its arguments cannot carry tangents")
    duals = [
        forward_ad.make_dual(t, towards[i]) if i in towards else t
        for i, t in enumerate(map(duplicate, tensors))
    ]
    try:
        outputs = subject(duals)
    except RuntimeError as error:  # NotImplementedError is one
        if not isinstance(error, NotImplementedError) and not subject.differentiates:
            raise
        raise NotRun(f"fn has no forward mode: {first_line(error)}") from error
    return [forward_ad.unpack_dual(o).tangent for o in outputs]
