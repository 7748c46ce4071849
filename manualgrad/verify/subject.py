"""The function under check with the point it is checked at, and how it is run once."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from manualgrad.verify import tolerance
from manualgrad.verify.callee import (
    Callee,
    ModuleCallee,
    argument_names,
    called,
    callee_of,
    labelled,
    name_of,
    tensors_of,
    with_tensors,
)
from manualgrad.verify.isolation import seed_everything


@dataclass
class Run:
    """One forward and one backward pass: outputs, and a gradient (or None) per tensor asked for."""

    outputs: list[Tensor]
    gradients: list[Tensor | None]
    wrt: tuple[int, ...]

    def is_finite(self) -> bool:
        there = [t for t in (*self.outputs, *self.gradients) if t is not None]
        return all(bool(torch.isfinite(t).all()) for t in there)


@dataclass
class Movement:
    """How far rounding alone moves a Run's outputs and gradients."""

    outputs: list[float]
    gradients: list[float]


class Subject:
    """fn as a function of a flat list of tensors: its arguments', then its parameters.

    given: the caller's values and dtypes, copied. exact: the same in float64, or as given where fn
    refuses float64 (exact_note says so). live: the positions that are differentiated by.
    labels: a name for each. manualgrad.verify.settle finds out the rest: kept, the positions among
    fn's results that have a gradient; random; writes_inputs; differentiates, what fn says where
    gradients are off, if it needs them; captured, leaves of its graph that are not among its
    tensors; plain, one run at given, and moved, what rounding does to it; point, like exact but off
    the kinks.
    """

    def __init__(self, fn: Any, inputs: tuple, params: Any, reference: Any, seed: int):
        fn = called(fn)
        self.callee: Callee = callee_of(fn, params)
        self.name, self.seed, self.tree = name_of(fn), seed, inputs
        names = argument_names(fn, len(inputs))
        arguments = [
            found
            for name, tree in zip(names, inputs, strict=True)
            for found in labelled(tree, name)
        ]
        self.labels = [label for label, _ in arguments] + list(self.callee.parameters)
        passed = [_dense(label, tensor) for label, tensor in arguments]
        self.arguments = len(passed)
        parameters = list(self.callee.parameters.values())
        self.live = _live(passed, parameters, borrowed=self.callee.module is None)
        if not self.live:
            raise ValueError(
                f"manualgrad.check: {self.name} has no floating tensor to differentiate by; pass "
                f"one among its inputs, or name the tensors it reads in params"
            )
        self.as_passed = [resolved(t) for t in passed]
        self.given = [t.contiguous().clone() for t in (*self.as_passed, *map(resolved, parameters))]
        self.exact, self.exact_note = [wide(t) for t in self.given], ""
        self.reference = twin_of(self.callee, reference)
        self.kept: list[int] | None = None
        self.random = self.writes_inputs = False
        self.differentiates = ""
        self.captured: list[Tensor] = []
        self.plain: Run
        self.moved: Movement
        self.point: list[Tensor]
        self.second: Any = None  # manualgrad.verify.second's, once asked for
        self.wrong_at_home: bool | None = None  # manualgrad.verify.native's, once asked for
        self.gradcheck_fails = False

    # running it

    def __call__(self, tensors: Sequence[Tensor], callee: Callable | None = None) -> list[Tensor]:
        """The differentiable outputs of fn (or of another callee) on these tensors."""
        if self.random:
            seed_everything(self.seed)
        if self.writes_inputs:
            tensors = [t.clone() for t in tensors]
        trees = with_tensors(list(self.tree), iter(tensors[: self.arguments]))
        result = (callee or self.callee)(trees, tensors[self.arguments :])
        outputs = list(tensors_of(result))
        if self.kept is None:
            return outputs
        if len(outputs) <= max(self.kept):
            raise ValueError(f"{len(outputs)} results where there should be {max(self.kept) + 1}")
        return [outputs[i] for i in self.kept]

    def leaves(self, tensors: Sequence[Tensor], wrt: Sequence[int]) -> list[Tensor]:
        """Copies in the same layout, as leaves of a new graph; those of wrt require gradients."""
        made = []
        for i, t in enumerate(tensors):
            value = duplicate(t)
            live = i in wrt or (bool(self.differentiates) and i in self.live)
            if i < self.arguments:
                made.append(value.requires_grad_(live))
            else:
                made.append(self.callee.leaf(i - self.arguments, value, i in wrt))
        return made

    def of_arguments(self) -> tuple[int, Callable[..., tuple[Tensor, ...]]]:
        """(count, a function of that many tensors): what may be traced and transformed.

        A module's parameters are among them; tensors that fn reads besides its arguments stay
        as they are given.
        """
        if self.callee.module is not None:
            return len(self.given), lambda *tensors: tuple(self(tensors))
        fixed = self.leaves(self.given, self.live)[self.arguments :]
        return self.arguments, lambda *tensors: tuple(self([*tensors, *fixed]))

    def output_gradients(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Fixed random numbers in the shapes and dtypes of outputs."""
        return [random_like(o, seed=self.seed + 7919 + i) for i, o in enumerate(outputs)]

    def run(
        self,
        tensors: Sequence[Tensor],
        wrt: Sequence[int] | None = None,
        v: Sequence[Tensor] | None = None,
        callee: Callable | None = None,
    ) -> Run:
        """Forward, then backward with the output gradients v (random ones if None)."""
        wrt = tuple(self.live if wrt is None else wrt)
        leaves = self.leaves(tensors, wrt)
        outputs = self(leaves, callee)
        given = self.output_gradients(outputs) if v is None else [duplicate(g) for g in v]
        flowing = [(o, g) for o, g in zip(outputs, given, strict=True) if o.requires_grad]
        gradients: Sequence[Tensor | None] = [None] * len(wrt)
        if wrt and flowing:
            ends, starts = zip(*flowing, strict=True)
            asked = [leaves[i] for i in wrt]
            gradients = gradients_of(ends, asked, starts)
        kept = [None if g is None else g.detach().clone() for g in gradients]
        return Run([o.detach().clone() for o in outputs], kept, wrt)  # fn's memory is fn's

    def moved_by_rounding(self, tensors: Sequence[Tensor], run: Run, **how: Any) -> Movement:
        """How far run's results move when every input moves by its last digit."""
        outputs, gradients = [0.0] * len(run.outputs), [0.0] * len(run.gradients)
        v = how.pop("v", None) or self.output_gradients(run.outputs)
        for draw in (1, 2):
            moved = tolerance.rounded_otherwise(tensors, draw)
            shaken = tolerance.rounded_otherwise(v, 100 + draw)
            try:
                other = self.run(moved, run.wrt, shaken, **how)
            except Exception:  # the moved point lies outside of what fn takes
                continue
            for far, ours, theirs in (
                (outputs, run.outputs, other.outputs),
                (gradients, run.gradients, other.gradients),
            ):
                for i, (one, two) in enumerate(zip(ours, theirs, strict=True)):
                    if one is not None and two is not None and one.shape == two.shape:
                        far[i] = max(far[i], tolerance.largest(one - two))
        return Movement(outputs, gradients)

    def label(self, i: int) -> str:
        """Tensor number i with its shape, for messages."""
        return f"{self.labels[i]} {tuple(self.given[i].shape)}"


# tensors


def resolved(tensor: Tensor) -> Tensor:
    """The values alone, with no graph and no lazy conjugation or negation."""
    return tensor.detach().resolve_conj().resolve_neg()


def gradients_of(
    outputs: Sequence[Tensor], asked: Sequence[Tensor], v: Sequence[Tensor], **how: Any
) -> list[Tensor | None]:
    """torch.autograd.grad; None where no graph leads, and a sparse gradient as a dense one."""
    found = torch.autograd.grad(outputs, asked, v, allow_unused=True, **how)
    return [dense(g) for g in found]


def dense(gradient: Tensor | None) -> Tensor | None:
    if gradient is None or gradient.layout is torch.strided:
        return gradient
    return gradient.to_dense()


def duplicate(tensor: Tensor) -> Tensor:
    """The same values in the same layout, in memory of their own."""
    tensor = tensor.detach()
    if tensor.is_contiguous() or tensor.layout is not torch.strided:
        return tensor.clone()
    storage = tensor.untyped_storage().clone()
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return empty.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def random_like(tensor: Tensor, seed: int) -> Tensor:
    """Standard normal numbers, the same in every dtype but for rounding."""
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    generator = torch.Generator("cpu").manual_seed(seed)
    values = torch.randn(tensor.shape, dtype=wide, generator=generator, device="cpu")
    return values.to(device=tensor.device, dtype=tensor.dtype)


def wide(tensor: Tensor) -> Tensor:
    """In float64 (complex128), if it is floating at all."""
    if tensor.is_floating_point():
        return tensor.double()
    return tensor.to(torch.complex128) if tensor.is_complex() else tensor


def in_float32(tensor: Tensor) -> Tensor:
    """float64 narrowed; another dtype stays as it is."""
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _dense(label: str, tensor: Tensor) -> Tensor:
    if tensor.layout is not torch.strided or tensor.is_nested:
        raise TypeError(
            f"manualgrad.check: {label} is {tensor.layout}; only dense tensors are checked"
        )
    return tensor


def _live(passed: list[Tensor], parameters: list[Tensor], borrowed: bool) -> list[int]:
    """Arguments that require a gradient, or all floating ones if none does; then parameters."""
    floating = [i for i, t in enumerate(passed) if t.is_floating_point() or t.is_complex()]
    chosen = [i for i in floating if passed[i].requires_grad] or floating
    rest = [len(passed) + i for i, p in enumerate(parameters) if borrowed or p.requires_grad]
    return chosen + rest


# the reference


def twin_of(callee: Callee, reference: Any) -> Callable | None:
    """reference as a function of the same arguments and parameters."""
    if reference is None:
        return None
    reference = called(reference, "reference")
    names = list(callee.parameters)
    if not isinstance(reference, nn.Module):
        if callee.module is None:
            return lambda arguments, parameters: Callee.__call__(
                _with_fn(callee, reference), arguments, parameters
            )
        return lambda arguments, parameters: reference(*arguments, *parameters)
    twin = callee_of(reference)
    theirs = list(twin.parameters)
    if callee.module is None:
        twin.parameters = {}
        return lambda arguments, parameters: twin(arguments, ())
    ours, own = ({n: tuple(p.shape) for n, p in c.parameters.items()} for c in (callee, twin))
    if ours.items() <= own.items():
        order = names
    elif list(ours.values()) == list(own.values()):
        order = theirs
    else:
        raise ValueError(
            f"manualgrad.check: the reference's parameters {own} match fn's {ours} neither by name "
            f"nor in order; pass a function of (*inputs, *parameters) instead"
        )
    twin.parameters = {name: twin.parameters[name] for name in order}
    return twin


def _with_fn(callee: Callee, fn: Callable) -> Callee:
    twin = copy.copy(callee)
    twin.fn = fn
    return twin


def in_mode(subject: Subject, training: bool) -> Subject:
    """The same subject with its module, and its reference's, in training or in evaluation."""
    twin = copy.copy(subject)
    if isinstance(subject.callee, ModuleCallee):
        twin.callee = subject.callee.in_mode(training)
    if isinstance(subject.reference, ModuleCallee):
        twin.reference = subject.reference.in_mode(training)
    return twin
