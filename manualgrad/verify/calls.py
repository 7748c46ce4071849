"""Conduct, of several calls: what one leaves behind for the next, and what backward depends on."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from manualgrad.verify import tolerance
from manualgrad.verify.judges import NotRun, first_line, question
from manualgrad.verify.native import reference_run
from manualgrad.verify.readings import Reading, compare
from manualgrad.verify.settle import is_exact
from manualgrad.verify.subject import Movement, Run, Subject, gradients_of
from manualgrad.verify.variations import Variation, alike, compared

ORDER = ("first", "second")
SCALES = (2.0**12, 2.0**-12)  # exact in every dtype; a loss scaler multiplies by as much


@question("conduct", "two calls before a backward")
def two_calls(subject: Subject) -> Iterator[Reading]:
    """Each call keeps its own: on a class, a module or in a buffer the second would replace it.

    The results and the gradients of the first must outlive the second, whichever goes back first.
    """
    own = [i for i in subject.live if i < subject.arguments or subject.callee.module is not None]
    other = [0.75 * t if i in own else t for i, t in enumerate(subject.given)]
    try:
        want = [subject.plain, subject.run(other)]
    except Exception as error:
        raise NotRun(f"fn does not take other values: {first_line(error)}") from error
    moved = [subject.moved, subject.moved_by_rounding(other, want[1])]
    for first in (0, 1):
        calls = []
        for tensors in (subject.given, other):
            leaves = subject.leaves(tensors, subject.live)
            calls.append((subject(leaves), [leaves[i] for i in subject.live]))
        found: list[Sequence[Tensor | None]] = [(), ()]
        for k in (first, 1 - first):
            outputs, asked = calls[k]
            found[k] = gradients_of(outputs, asked, subject.output_gradients(outputs))
        for k, (outputs, _) in enumerate(calls):
            got = Run([o.detach() for o in outputs], list(found[k]), tuple(subject.live))
            what = f"{ORDER[k]} of two calls, the {ORDER[first]}'s backward pass first"
            yield from alike(subject, what, got, want[k], moved[k])


@question("conduct", "backward is linear in the output gradient")
def linear_backward(subject: Subject) -> Iterator[Reading]:
    """A loss scaler's large output gradient, and a small one, give as large or small a gradient."""
    exact = is_exact(subject.given) or not subject.exact_note
    tensors = subject.exact if exact else subject.given
    want = subject.run(tensors)
    v = subject.output_gradients(want.outputs)
    moved = subject.moved_by_rounding(tensors, want)

    def scaled(scale: float) -> Run:
        run = subject.run(tensors, v=[g * scale for g in v])
        return Run([], [None if g is None else g / scale for g in run.gradients], run.wrt)

    def variations() -> Iterator[Variation]:
        for scale in SCALES:
            if not exact and not all((g * scale).isfinite().all() for g in v):
                continue
            what = f"with its output gradient {scale:g} times as large, by {scale:g}"
            one, by = Run([], want.gradients, want.wrt), Movement([], moved.gradients)
            yield Variation(what, lambda scale=scale: scaled(scale), one, by)

    yield from compared(subject, variations(), refusals=())


@question("conduct", "the same under create_graph")
def under_create_graph(subject: Subject) -> Iterator[Reading]:
    """The first gradient, where a second may follow: backward is often written twice."""
    leaves = subject.leaves(subject.given, subject.live)
    outputs = subject(leaves)
    v, asked = subject.output_gradients(outputs), [leaves[i] for i in subject.live]
    try:
        found = gradients_of(outputs, asked, [g.clone() for g in v], create_graph=True)
    except Exception as error:
        raise NotRun(f"fn's backward refuses create_graph: {first_line(error)}") from error
    got = Run([], [None if g is None else g.detach() for g in found], tuple(subject.live))
    want = Run([], subject.plain.gradients, tuple(subject.live))
    moved = Movement([], subject.moved.gradients)
    yield from alike(subject, "under create_graph=True", got, want, moved)


@question("native", "results without a gradient")
def results_without_a_gradient(subject: Subject) -> Iterator[Reading]:
    """Indices, masks and detached results: the reference's values, and none of its gradients."""
    reference_run(subject, subject.given, wrt=())
    ours, theirs = (_everything(subject, callee) for callee in (None, subject.reference))
    if len(ours) != len(theirs):
        yield Reading(f"fn has {len(ours)} results, the reference {len(theirs)}")
        return
    rest = [k for k in range(len(ours)) if k not in (subject.kept or ())]
    if not rest:
        raise NotRun("every result carries a gradient")
    for k in rest:
        if theirs[k].requires_grad:
            yield Reading(f"result {k} carries no gradient, the reference's does")
        allowed = tolerance.beside_rounding(theirs[k], 0.0, theirs[k].dtype) if (
            theirs[k].is_floating_point()
        ) else 0.0  # fmt: skip
        yield compare(f"result {k}, which carries no gradient", ours[k], theirs[k], allowed)


def _everything(subject: Subject, callee: Callable | None) -> list[Tensor]:
    """All results, those that carry no gradient too."""
    kept, subject.kept = subject.kept, None
    try:
        return subject(subject.leaves(subject.given, subject.live), callee)
    finally:
        subject.kept = kept


@question("conduct", "a change in place is noticed")
def change_in_place(subject: Subject) -> Iterator[Reading]:
    """Of an input or a result before backward: an error, or the gradient of the old values."""
    if subject.writes_inputs:
        raise NotRun("fn changes its inputs itself")
    asked = [i for i in subject.live if i < subject.arguments or subject.callee.module is not None]
    places = [("input", i) for i in asked]
    places += [("result", k) for k in range(len(subject.plain.outputs))]
    for kind, n in places:
        leaves = subject.leaves(subject.given, subject.live)
        inputs = [t.clone() if (kind, i) == ("input", n) else t for i, t in enumerate(leaves)]
        outputs = subject(inputs)
        v = subject.output_gradients(outputs)
        name = subject.labels[n] if kind == "input" else f"output {n}"
        what = f"after {name} was changed in place between forward and backward"
        try:
            with torch.no_grad():
                (inputs if kind == "input" else outputs)[n].mul_(1.5).add_(0.25)
            found = gradients_of(outputs, [leaves[i] for i in subject.live], v)
        except RuntimeError:
            yield Reading(what, 0.0, 0.0)
            continue
        got = Run([], list(found), tuple(subject.live))
        want = Run([], subject.plain.gradients, tuple(subject.live))
        for reading in alike(subject, what, got, want, Movement([], subject.moved.gradients)):
            text = f"{reading.message}; keep it with ctx.save_for_backward, which notices"
            yield Reading(text, reading.measured, reading.allowed) if reading.wrong else reading
