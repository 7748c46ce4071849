"""Conduct, of memory: who is left unharmed, and whether the same question has the same answer."""

from collections.abc import Generator, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks

from manualgrad.verify.isolation import uninitialised_memory_is_nan
from manualgrad.verify.judges import NotRun, question
from manualgrad.verify.readings import Reading, compare
from manualgrad.verify.subject import Movement, Run, Subject, dense, gradients_of
from manualgrad.verify.variations import Variation, alike, compared


class Neighbour(Function):
    """The identity, keeping its output for backward as a sigmoid does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.clone(memory_format=torch.preserve_format)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.clone()


@question("conduct", "nothing is overwritten")
def nothing_is_overwritten(subject: Subject) -> Iterator[Reading]:
    """Inputs (which a neighbour has saved), outputs, saved tensors and incoming gradients."""
    leaves = subject.leaves(subject.given, subject.live)
    inputs = [
        Neighbour.apply(t) if t.requires_grad and i < subject.arguments else t
        for i, t in enumerate(leaves)
    ]
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        floating = tensor.is_floating_point() or tensor.is_complex()
        if floating and tensor.layout is torch.strided:  # bytes may be somebody's scratch
            saved.append(tensor.detach())
        return tensor

    watched = [
        (f"{label}, which the operation below may have saved", t.detach(), t.detach().clone())
        for label, t in zip(subject.labels, inputs, strict=True)
    ]
    try:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = subject(inputs)
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):  # torch.func inside fn takes none
            raise
        outputs = subject(inputs)
    if subject.writes_inputs:
        watched = []
    watched = yield from _unchanged(watched, "forward")
    v = subject.output_gradients(outputs)
    for k, (o, g) in enumerate(zip(outputs, v, strict=True)):
        watched.append((f"output {k}", o.detach(), o.detach().clone()))
        watched.append((f"the incoming gradient {k}", g, g.clone()))
    watched += [(f"saved tensor {k}", t, t.clone()) for k, t in enumerate(saved)]
    asked = [leaves[i] for i in subject.live]
    for time in ("backward", "a second backward"):
        gradients_of(outputs, asked, v, retain_graph=True)
        watched = yield from _unchanged(watched, time)


Watched = list[tuple[str, Tensor, Tensor]]  # name, tensor, what it was


def _unchanged(watched: Watched, when: str) -> Generator[Reading, None, Watched]:
    """Yields a reading of each; returns those that are still what they were."""
    same = []
    for what, tensor, before in watched:
        reading = compare(f"{what}, after {when}", tensor, before, 0.0)
        yield reading
        if not reading.wrong:
            same.append((what, tensor, before))
    return same


@question("conduct", "a second backward")
def second_backward(subject: Subject) -> Iterator[Reading]:
    """Under retain_graph, the same gradients again."""
    leaves = subject.leaves(subject.given, subject.live)
    outputs = subject(leaves)
    v, asked = subject.output_gradients(outputs), [leaves[i] for i in subject.live]
    runs = []
    for _ in range(2):
        given = [g.clone() for g in v]
        found = gradients_of(outputs, asked, given, retain_graph=True)
        copies = [None if g is None else g.detach().clone() for g in found]
        runs.append(Run([], copies, tuple(subject.live)))
    moved = Movement([], subject.moved.gradients)
    yield from alike(subject, "the second time, under retain_graph", runs[1], runs[0], moved)


@question("conduct", "reruns are bit-equal")
def reruns(subject: Subject) -> Iterator[Reading]:
    again = [
        Variation(f"run number {n}", lambda: subject.run(subject.given), subject.plain, None)
        for n in (2, 3)
    ]
    yield from compared(subject, again, refusals=())


@question("conduct", "memory is written before it is read")
def uninitialised(subject: Subject) -> Iterator[Reading]:
    def run() -> Run:
        with uninitialised_memory_is_nan():
            return subject.run(subject.given)

    what = "with NaN in the memory that torch.empty returns"
    yield from compared(subject, [Variation(what, run, subject.plain, subject.moved)], refusals=())


@question("conduct", "gradients are returned, not written")
def returned(subject: Subject) -> Iterator[Reading]:
    """autograd.grad leaves .grad alone, .backward() adds to it, and hooks see all of it."""
    own = [
        k
        for k, i in enumerate(subject.live)
        if i < subject.arguments or subject.callee.module is not None
    ]
    if not own:
        raise NotRun("fn has no tensors but those it reads besides its arguments")
    leaves = subject.leaves(subject.given, subject.live)
    outputs = subject(leaves)
    v = subject.output_gradients(outputs)
    asked = [leaves[subject.live[k]] for k in own]
    sent = [g.clone() for g in v]
    gradients_of(outputs, asked, sent, retain_graph=True)
    for k, leaf in zip(own, asked, strict=True):
        name = subject.labels[subject.live[k]]
        yield compare(
            f"{name}.grad after autograd.grad, which does not set it", leaf.grad, None, 0.0
        )
    seen: dict[int, list[Tensor | None]] = {k: [] for k in own}
    for k, leaf in zip(own, asked, strict=True):
        leaf.grad = None
        leaf.register_hook(lambda g, k=k: seen[k].append(dense(None if g is None else g.clone())))
    for _ in range(2):
        sent = [g.clone() for g in v]
        torch.autograd.backward(outputs, sent, retain_graph=True, inputs=asked)
    for k, leaf in zip(own, asked, strict=True):
        name = subject.label(subject.live[k])
        want, limit = subject.plain.gradients[k], subject.moved.gradients[k]
        twice = None if want is None else 2 * want
        for what, got, right in (
            (f".grad of {name} after two backward passes", dense(leaf.grad), twice),
            (f"what a hook on {name} sees", seen[k][-1] if seen[k] else None, want),
        ):
            moved = Movement([], [2 * limit])
            one, two = (Run([], [g], (subject.live[k],)) for g in (got, right))
            yield from alike(subject, what, one, two, moved)
