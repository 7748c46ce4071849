"""Oracle and conduct far out and in narrow dtypes: where formulas overflow and digits run out."""

from collections.abc import Iterator

import torch
from torch import Tensor

from manualgrad.verify import tolerance
from manualgrad.verify.arrivals import replaced
from manualgrad.verify.judges import NotRun, question
from manualgrad.verify.native import beside_reference, reference_run, unless_wrong_at_home
from manualgrad.verify.readings import Reading, compare
from manualgrad.verify.settle import is_exact
from manualgrad.verify.subject import Subject, duplicate, random_like, wide

FARTHEST = 4.0  # |x| up to 10^4


def far_out(t: Tensor, seed: int) -> Tensor:
    """Values of every magnitude from 1 to 10^4, and of both signs."""
    exponents = FARTHEST * torch.special.ndtr(random_like(t.double(), seed))
    return (random_like(t, seed + 1).sign() * 10.0**exponents).to(t.dtype)


@question("oracle", "values far out")
def values_far_out(subject: Subject) -> Iterator[Reading]:
    """|x| up to 10^4, infinities where the reference is not NaN, and NaN where it is."""
    for i in _arguments(subject):
        for what, tensor in _extremes(subject.given[i], subject.seed):
            tensors = replaced(subject, i, tensor)
            where = f" where {subject.labels[i]} is {what}"
            if what != "NaN":
                yield from beside_reference(subject, tensors, where, "outputs", far_out=True)
                continue
            theirs = reference_run(subject, tensors, wrt=()).outputs
            for k, mine in enumerate(subject.run(tensors, ()).outputs):
                text = f"output {k}{where}: being NaN"
                yield compare(text, mine.isnan(), theirs[k].isnan(), 0.0)


def _arguments(subject: Subject) -> list[int]:
    return [i for i in subject.live if i < subject.arguments]


def _extremes(t: Tensor, seed: int) -> Iterator[tuple[str, Tensor]]:
    if t.is_complex() or t.numel() == 0:
        return
    yield "up to 10^4", far_out(t, seed)
    for what, value in (("inf", torch.inf), ("-inf", -torch.inf), ("NaN", torch.nan)):
        changed = duplicate(t)
        changed.view(-1)[0] = value
        yield what, changed


@question("conduct", "gradients far out")
def gradients_far_out(subject: Subject) -> Iterator[Reading]:
    """At |x| up to 10^4: the reference's, or at least finite wherever all of fn's values are."""
    unless_wrong_at_home(subject)
    for i in _arguments(subject):
        if subject.given[i].is_complex() or subject.given[i].numel() == 0:
            continue
        tensors = replaced(subject, i, far_out(subject.given[i], subject.seed))
        where = f", {subject.labels[i]} up to 10^4"
        if subject.reference is not None:
            yield from beside_reference(subject, tensors, where, "gradients", far_out=True)
            continue
        try:
            run = subject.run(tensors)
        except Exception:  # these values are outside of what fn takes
            continue
        if not all(o.isfinite().all() for o in run.outputs):
            continue
        for k, g in zip(run.wrt, run.gradients, strict=True):
            bad = 0 if g is None else int((~g.isfinite()).sum())
            text = f"gradient of {subject.label(k)}{where}: {bad} entries are not finite"
            yield Reading(f"{text}, though every value of fn is", float(bad), 0.0)


@question("conduct", "the same in its own dtype")
def own_dtype(subject: Subject) -> Iterator[Reading]:
    """Gradients as given against those in float64, beside what rounding the inputs does."""
    if is_exact(subject.given):
        raise NotRun("it was given in float64")
    if subject.exact_note:
        raise NotRun(subject.exact_note)
    if subject.random:
        raise NotRun("fn is random, and may draw other numbers in another dtype")
    exact = subject.run([wide(t) for t in subject.given], v=[
        wide(g) for g in subject.output_gradients(subject.plain.outputs)
    ])  # fmt: skip
    labels = [f"output {k}" for k in range(len(exact.outputs))]
    labels += [f"gradient of {subject.label(i)}" for i in exact.wrt]
    mine = [*subject.plain.outputs, *subject.plain.gradients]
    right = [*exact.outputs, *exact.gradients]
    for label, one, two, moved in zip(
        labels, mine, right, [*subject.moved.outputs, *subject.moved.gradients], strict=True
    ):
        dtype = torch.float64 if one is None else one.dtype
        allowed = tolerance.beside_rounding(two, moved, dtype)
        ours = None
        if one is not None and two is not None:  # what has no room in dtype proves nothing
            fits = two.to(dtype).isfinite() & ((two == 0) | (two.abs() >= torch.finfo(dtype).tiny))
            ours = torch.where(fits, one.to(two.dtype), two)
        yield compare(f"{label} in {dtype} beside float64", ours, two, allowed)
