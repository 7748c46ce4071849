"""Conduct, under PyTorch's modes and transforms: the same numbers, or a clear refusal."""

import types
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from manualgrad.verify.adjoint import adjointness
from manualgrad.verify.judges import NotRun, first_line, question, refusal
from manualgrad.verify.native import unless_wrong_at_home
from manualgrad.verify.readings import Reading
from manualgrad.verify.subject import (
    Movement,
    Run,
    Subject,
    dense,
    duplicate,
    gradients_of,
    in_mode,
)
from manualgrad.verify.variations import Variation, alike, compared

AMP = (torch.bfloat16, torch.float16)


@question("conduct", "without gradients")
def without_gradients(subject: Subject) -> Iterator[Reading]:
    """The same values under no_grad and inference_mode, where nothing is kept."""
    if subject.differentiates:
        raise NotRun(f"fn needs gradients on: {subject.differentiates}")
    want = Run(subject.plain.outputs, [], ())
    moved = Movement(subject.moved.outputs, [])
    for name, mode in (("no_grad", torch.no_grad), ("inference_mode", torch.inference_mode)):

        def run(mode: Callable = mode) -> Run:
            with mode():
                outputs = subject(subject.leaves(subject.given, ()))
            return Run([o.clone() for o in outputs], [], ())

        variation = Variation(f"under torch.{name}", run, want, moved)
        yield from compared(subject, [variation], refusals=())


@question("conduct", "training and evaluation")
def other_mode(subject: Subject) -> Iterator[Reading]:
    """A module's gradient in its other mode, against differences of it in that mode."""
    if subject.callee.module is None:
        raise NotRun("fn is no module")
    unless_wrong_at_home(subject)
    training = not subject.callee.module.training
    twin = in_mode(subject, training)
    try:
        run = twin.run(twin.point)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise NotRun(f"fn does not run in its other mode: {first_line(error)}") from error
    v = twin.output_gradients(run.outputs)
    gradients = dict(zip(run.wrt, run.gradients, strict=True))
    where = f", in {'training' if training else 'evaluation'} mode"
    yield from adjointness(twin, twin.point, list(run.wrt), gradients, v, where)


@question("conduct", "autocast")
def autocast(subject: Subject) -> Iterator[Reading]:
    """float32 in: a result in float32 or in autocast's dtype, gradients in float32."""
    tensors = [t.float() if t.is_floating_point() else t for t in subject.given]
    kind = tensors[0].device.type if tensors else "cpu"
    refused = []
    for dtype in AMP:
        try:
            plain = subject.run(tensors)
            ours, gradients = _under_autocast(subject, tensors, kind, dtype)
        except Exception as error:
            refused.append((f"to {dtype}", error))
            continue
        theirs = _reference_dtypes(subject, tensors, kind, dtype)
        for k, (mine, before) in enumerate(zip(ours, plain.outputs, strict=True)):
            allowed = {before.dtype, dtype} if theirs is None else {theirs[k]}
            names = " or ".join(sorted(map(str, allowed)))
            what = f"output {k} under autocast to {dtype} is {mine.dtype}, should be {names}"
            yield Reading(what, float(mine.dtype not in allowed), 0.0)
        for i, g in zip(subject.live, gradients, strict=True):
            right = g is None or g.dtype == tensors[i].dtype
            what = f"gradient of {subject.labels[i]} under autocast to {dtype} is not float32"
            yield Reading(what, float(not right), 0.0)
    if refused:
        raise refusal("fn does not run under autocast", refused)


def _under_autocast(subject: Subject, tensors: Sequence[Tensor], kind: str, dtype, callee=None):
    leaves = subject.leaves(tensors, subject.live)
    with torch.autocast(kind, dtype=dtype, cache_enabled=False):
        outputs = subject(leaves, callee)
    asked = [leaves[i] for i in subject.live]
    v = subject.output_gradients(outputs)
    return outputs, gradients_of(outputs, asked, v)


def _reference_dtypes(subject: Subject, tensors, kind: str, dtype) -> list[torch.dtype] | None:
    if subject.reference is None:
        return None
    try:
        outputs, _ = _under_autocast(subject, tensors, kind, dtype, subject.reference)
    except Exception:
        return None
    return [o.dtype for o in outputs]


@question("conduct", "checkpoint")
def checkpointed(subject: Subject) -> Iterator[Reading]:
    """Forward is run once more in backward, from the same inputs."""

    def run(reentrant: bool) -> Run:
        leaves = subject.leaves(subject.given, subject.live)
        outputs = checkpoint(lambda *t: tuple(subject(t)), *leaves, use_reentrant=reentrant)
        asked = [leaves[i] for i in subject.live]
        v = subject.output_gradients(outputs)
        if reentrant:  # it does not work with autograd.grad
            torch.autograd.backward(outputs, v)
            found = [dense(leaf.grad) for leaf in asked]
        else:
            found = gradients_of(outputs, asked, v)
        return Run([o.detach() for o in outputs], list(found), tuple(subject.live))

    # a reentrant one would leave gradients behind in tensors that are not fn's arguments
    outside = bool(subject.captured) or (
        subject.callee.module is None and subject.callee.parameters
    )
    variations = []
    for way in (False,) if outside else (False, True):
        what = f"under checkpoint(use_reentrant={way})"
        again = Variation(what, lambda way=way: run(way), subject.plain, subject.moved)
        variations.append(again)
    yield from compared(subject, variations, refusals=Exception)


@question("conduct", "vmap and torch.func")
def transforms(subject: Subject) -> Iterator[Reading]:
    """vmap of fn, vmap of its gradient (per-example gradients), against a loop."""
    count, values = subject.of_arguments()
    batched = [i for i in subject.live if i < count]
    if not batched:
        raise NotRun("tensors that fn reads besides its arguments cannot be batched")
    v = subject.output_gradients(subject.plain.outputs)

    def cost(*tensors: Tensor) -> Tensor:
        pairs = zip(values(*tensors), v, strict=True)
        products = [(o * g.conj() if o.is_complex() else o * g).sum() for o, g in pairs]
        return torch.stack([(p.real if p.is_complex() else p).double() for p in products]).sum()

    refused = []
    for group in [batched, batched[:1]] if len(batched) > 1 else [batched]:
        names = ", ".join(subject.labels[i] for i in group)
        stacks = {i: torch.stack([(c * subject.given[i]) for c in (1.0, 0.9, 1.1)]) for i in group}
        given = [stacks.get(i, duplicate(subject.given[i])) for i in range(count)]
        dims = tuple(0 if i in group else None for i in range(count))
        gradient = torch.func.grad(cost, tuple(group))
        for what, function, part in (("vmap", values, "outputs"), ("vmap(grad)", gradient, "")):
            try:
                got = torch.func.vmap(function, dims)(*given)
            except Exception as error:
                refused.append((f"{what} over {names}", error))
                continue
            yield from _each(subject, group, stacks, got, f"{what} over {names}", part)
    if refused:
        raise refusal("fn does not take", refused)


def _each(subject: Subject, group, stacks, got, what: str, part: str) -> Iterator[Reading]:
    for n in range(3):
        tensors = [stacks[i][n] if i in stacks else t for i, t in enumerate(subject.given)]
        want = subject.run(tensors, group)
        moved = subject.moved_by_rounding(tensors, want)
        if part:
            mine = Run([o[n] for o in got], [], ())
            want, moved = Run(want.outputs, [], ()), Movement(moved.outputs, [])
        else:
            mine = Run([], [g[n] for g in got], tuple(group))
            want, moved = Run([], want.gradients, want.wrt), Movement([], moved.gradients)
        yield from alike(subject, f"{what}, example {n}", mine, want, moved)


@question("conduct", "torch.compile")
def compiled(subject: Subject) -> Iterator[Reading]:
    """In one graph, forward and backward, by the backend that traces but does not rewrite."""
    if subject.random:
        raise NotRun("fn is random, and a compiled graph draws other numbers")
    count, values = subject.of_arguments()
    wrt = [i for i in subject.live if i < count]
    try:
        program = torch.compile(_of_its_own(values), backend="aot_eager", fullgraph=True)
        leaves = subject.leaves(subject.given, subject.live)
        outputs = program(*leaves[:count])
        v = subject.output_gradients(outputs)
        found = gradients_of(outputs, [leaves[i] for i in wrt], v)
    except Exception as error:
        raise NotRun(f"fn does not compile in one graph: {first_line(error)}") from error
    got = Run([o.detach() for o in outputs], list(found), tuple(wrt))
    own = [k for k, i in enumerate(subject.live) if i < count]
    want = Run(subject.plain.outputs, [subject.plain.gradients[k] for k in own], tuple(wrt))
    moved = Movement(subject.moved.outputs, [subject.moved.gradients[k] for k in own])
    yield from alike(subject, "compiled", got, want, moved)


def _of_its_own(values: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """values as a function with a code object of its own: Dynamo counts compilations by that."""

    def program(*tensors: Tensor) -> tuple[Tensor, ...]:
        return values(*tensors)

    code = program.__code__.replace(co_name=f"check_of_{id(values)}")
    return types.FunctionType(code, program.__globals__, "program", None, program.__closure__)
