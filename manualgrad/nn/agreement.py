"""Does a model still give the same outputs and gradients? Asked on one example."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from manualgrad.nn.observing import tensors

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TIMES = 8  # how far beyond the effect of a last digit a difference may go


class Example:
    """A model with its inputs, run again and again from the same state.

    Its results are named tensors: the floating ones in the output, and the gradients, with respect
    to every parameter and every floating input, of a random projection of them. Parameters' .grad,
    buffers, flags and random generators are after each run what they were before.
    """

    def __init__(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]):
        self.model, self.args, self.kwargs = model, args, kwargs
        self.through_inputs = True  # ask for the inputs' gradients too
        self.before: dict[str, Tensor | None] = {}
        self.allowed: dict[str, float] = {}

    def remember(self) -> None:
        """Measure the model as it is, and how far a difference of the last digit carries."""
        try:
            self.before = self.results()
        except RuntimeError:  # some models write to their inputs, or set flags of theirs
            self.through_inputs = False
            self.before = self.results()
        with moved_by_a_digit(self.model):
            moved = self.results()
        for name, result in self.before.items():
            if result is not None:
                rounding = torch.finfo(result.dtype).eps * _largest(result)
                carried = _distance(moved.get(name), result)
                # an infinite one is no measure: the model does not repeat itself, or overflows
                self.allowed[name] = TIMES * (rounding + (carried if isfinite(carried) else 0.0))

    def difference(self) -> str | None:
        """What differs from what was remembered, the worst of it, in words; None if nothing."""
        try:
            now = self.results()
        except Exception as error:
            return f"the patched model fails on the example: {str(error)[:200]}"
        if now.keys() != self.before.keys():
            return "the example's output has another form"
        worst, said = 1.0, None
        for name, result in self.before.items():
            new = now[name]
            if (new is None) != (result is None):
                return f"the {name} is there or not there"
            if result is None:
                continue
            measured, allowed = _distance(new, result), self.allowed[name]
            if not measured <= allowed and not measured / (allowed or 1e-300) <= worst:
                worst = measured / (allowed or 1e-300)
                said = f"the {name} differs by {measured:.1e}, allowed {allowed:.1e}"
        return said

    def results(self) -> dict[str, Tensor | None]:
        """One run, forward and backward."""
        copies: dict[int, Tensor] = {}
        args, kwargs = copied(self.args, copies), copied(self.kwargs, copies)
        inputs = [t for t in copies.values() if self.through_inputs and t.dtype in FLOATING]
        for tensor in inputs:
            tensor.requires_grad_()
        torch.clear_autocast_cache()  # it may hold the parameters as they were
        with undisturbed(self.model), torch.enable_grad():
            output = self.model(*args, **kwargs)
            outputs = [t for t in tensors(output) if t.dtype in FLOATING]
            named = {f"output {i}": t.detach() for i, t in enumerate(outputs)}
            return {**named, **self._gradients(outputs, inputs)}

    def _gradients(self, outputs: list[Tensor], inputs: list[Tensor]) -> dict[str, Tensor | None]:
        wrt = {f"gradient of input {i}": t for i, t in enumerate(inputs)}
        parameters = self.model.named_parameters()
        wrt |= {f"gradient of {name}": p for name, p in parameters if p.requires_grad}
        outputs = [t for t in outputs if t.requires_grad]
        if not outputs or not wrt:
            return {}
        generator = torch.Generator().manual_seed(0)
        directions = [
            torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in outputs
        ]
        grads = torch.autograd.grad(outputs, list(wrt.values()), directions, allow_unused=True)
        return dict(zip(wrt, grads, strict=True))


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Buffers and random generators are afterwards as they are now."""
    kept = [(m, dict(m._buffers)) for m in model.modules() if m._buffers]
    values = {b: b.detach().clone() for _, own in kept for b in own.values() if b is not None}
    devices = {p.device for p in [*model.parameters(), *values] if p.device.type != "cpu"}
    numpy = sys.modules.get("numpy")
    drawn, numpy_drawn = random.getstate(), numpy and numpy.random.get_state()
    kind = next((d.type for d in devices if d.type != "meta"), "cuda")
    indices = [d.index for d in devices if d.type == kind]
    with torch.random.fork_rng(indices, device_type=kind):
        try:
            yield
        finally:
            random.setstate(drawn)
            if numpy:
                numpy.random.set_state(numpy_drawn)
            for module, own in kept:
                module._buffers.update(own)
            with torch.no_grad():
                for buffer, value in values.items():
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)


@contextmanager
def moved_by_a_digit(model: nn.Module) -> Iterator[None]:
    """Every parameter a last digit off, up or down at random; exactly as it was afterwards."""
    generator = torch.Generator().manual_seed(1)
    kept = [(p, p.detach().clone()) for p in model.parameters() if p.dtype in FLOATING]
    try:
        with torch.no_grad():
            for parameter, _ in kept:
                signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
                step = 1 + signs.to(parameter) * torch.finfo(parameter.dtype).eps
                parameter.mul_(step)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in kept:
                parameter.copy_(value)


def copied(value: Any, copies: dict[int, Tensor]) -> Any:
    """The same lists, tuples and dictionaries, with copies of the tensors in them."""
    if isinstance(value, Tensor):
        if id(value) not in copies:
            copies[id(value)] = value.detach().clone()
        return copies[id(value)]
    if type(value) is dict:
        return {key: copied(item, copies) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)([copied(item, copies) for item in value])
    return value


def _largest(tensor: Tensor) -> float:
    finite = tensor[tensor.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _distance(new: Tensor | None, old: Tensor) -> float:
    """The largest difference; infinite where one is not finite and the other is not the same."""
    if new is None or new.shape != old.shape or new.dtype != old.dtype:
        return float("inf")
    same = (new == old) | (new.isnan() & old.isnan())
    gap = (new.double() - old.double()).abs().masked_fill(same, 0.0)
    largest = float(gap.max()) if gap.numel() else 0.0
    return float("inf") if largest != largest else largest
