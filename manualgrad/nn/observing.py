"""One run of a model, watched: to whom each layer's output goes."""

import gc
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from manualgrad.activations.names import FUNCTIONS

# what reads a tensor's form and not its numbers; the same for z and for a
OF_ITS_FORM = {
    "__len__", "dim", "element_size", "get_device", "is_complex", "is_contiguous",
    "is_floating_point", "ndimension", "nelement", "numel", "size", "storage_offset", "stride",
}  # fmt: skip
OF_ITS_NUMBERS = {"data", "T", "mT", "H", "mH", "real", "imag", "_base"}  # properties that are not
METHODS = {getattr(Tensor, name): name for name in ("relu", "sigmoid", "tanh", "sin")}


@dataclass(eq=False)
class Use:
    """One output of a layer. consumers: an activation module, or what else took it, in words."""

    consumers: list[Any] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)  # activations among the functions


@dataclass(eq=False)
class Observation:
    """uses: each layer's outputs. foreign: activations that were called on something else too.

    called: the Sequentials and activations that ran.
    """

    uses: dict[nn.Module, list[Use]] = field(default_factory=dict)
    foreign: set[nn.Module] = field(default_factory=set)
    called: set[nn.Module] = field(default_factory=set)


class Watch(TorchFunctionMode):
    """Sees every call of torch's functions, and by hooks those of the modules asked for."""

    def __init__(self, seen: Observation):
        super().__init__()
        self.seen = seen
        self.live: dict[int, tuple[weakref.ref, Use]] = {}  # outputs of layers, by identity
        self.inside: list[nn.Module] = []  # the activation modules that are running

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        taken = [] if self.inside else self._taken((args, kwargs))
        if taken and not _of_its_form(func):
            for use in taken:
                name = METHODS.get(func) or FUNCTIONS.get(func)
                if name is not None:
                    use.functions.append(name)
                use.consumers.append(f"torch's {getattr(func, '__name__', func)}")
        result = func(*args, **(kwargs or {}))
        if taken and isinstance(result, Tensor):
            self.live.pop(id(result), None)  # changed in place: it holds z no more
        return result

    def _taken(self, values: Any) -> list[Use]:
        return [use for t in tensors(values) if (use := self._use(t)) is not None]

    def _use(self, tensor: Tensor) -> Use | None:
        ref, use = self.live.get(id(tensor), (None, None))
        return use if ref is not None and ref() is tensor else None

    def layer_ran(self, layer: nn.Module, args: Any, output: Any) -> None:
        use = Use()
        self.seen.uses.setdefault(layer, []).append(use)
        if isinstance(output, Tensor):
            key = id(output)
            self.live[key] = (weakref.ref(output, lambda _: self.live.pop(key, None)), use)
        else:
            use.consumers.append("a hook that changed it")

    def activation_starts(self, act: nn.Module, args: Any, kwargs: Any) -> None:
        self.seen.called.add(act)
        taken = [] if self.inside else self._taken((args, kwargs))
        for use in taken:
            use.consumers.append(act)
        if not taken:
            self.seen.foreign.add(act)
        self.inside.append(act)

    def activation_ends(self, act: nn.Module, args: Any, output: Any) -> None:
        self.inside.pop()
        if isinstance(output, Tensor):
            self.live.pop(id(output), None)  # in place

    def finish(self, output: Any) -> None:
        """Whoever holds an output of a layer after the run has taken it too."""
        for use in self._taken(output):
            use.consumers.append("the model's output")
        in_output = {id(tensor) for tensor in tensors(output)}
        if self.live.keys() - in_output:
            gc.collect()
        for key in self.live.keys() - in_output:
            self.live[key][1].consumers.append("someone who keeps it after the run")


def observe(
    model: nn.Module,
    args: tuple,
    kwargs: dict[str, Any],
    layers: list[nn.Module],
    activations: list[nn.Module],
) -> Observation:
    """Run model(*args, **kwargs) without gradients, and note where the layers' outputs go.

    The hooks are gone afterwards, whatever happens.
    """
    seen = Observation()
    watch = Watch(seen)
    handles = []
    try:
        for layer in layers:
            handles.append(layer.register_forward_hook(watch.layer_ran))
        for act in activations:
            start, end = watch.activation_starts, watch.activation_ends
            handles.append(act.register_forward_pre_hook(start, with_kwargs=True))
            handles.append(act.register_forward_hook(end, always_call=True))
        for module in model.modules():
            if isinstance(module, nn.Sequential):
                handles.append(
                    module.register_forward_pre_hook(lambda seq, _: seen.called.add(seq))
                )
        with torch.no_grad(), watch:
            output = model(*args, **kwargs)
        watch.finish(output)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _of_its_form(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", "data") not in OF_ITS_NUMBERS
    return name in OF_ITS_FORM


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in lists, tuples, mappings and dataclasses, one inside the other, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for part in fields(value):
            yield from tensors(getattr(value, part.name, None))
