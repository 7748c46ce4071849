"""A model's modules with all the places where each stands, and what forbids to change one."""

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from manualgrad.nn import known, swaps
from manualgrad.nn.pairs import HeldFunction

COMPILED = "it is compiled already; patch the model first, then compile it"
SCRIPTED = "it is scripted or traced by torch.jit, which holds a copy of its code"


class Layout:
    """places: the paths of each module, several where it is shared; a cycle is walked once."""

    def __init__(self, model: nn.Module):
        self.places: dict[nn.Module, list[str]] = {}
        self.module_at: dict[str, nn.Module] = {}
        self.barred: dict[str, str] = {}  # a path under which nothing may change, and why
        for path, module in model.named_modules(remove_duplicate=False):
            self.places.setdefault(module, []).append(path)
            self.module_at[path] = module
            if isinstance(module, torch.jit.ScriptModule):
                self.barred[path] = SCRIPTED
            elif swaps.is_compiled(module) or type(module).__name__ == "OptimizedModule":
                self.barred[path] = COMPILED

    def path(self, module: nn.Module) -> str:
        """The module's first place, as named_modules calls it."""
        return self.places[module][0]

    def child_paths(self, parent: nn.Module, name: str) -> list[str]:
        return [f"{place}.{name}" if place else name for place in self.places[parent]]

    def holders(self, module: nn.Module) -> list[tuple[nn.Module, str]]:
        """The modules that hold it, each with the name of the attribute; none hold the model."""
        split = [place.rpartition(".") for place in self.places[module] if place]
        return list(dict.fromkeys((self.module_at[above], name) for above, _, name in split))

    def in_sequential(self, module: nn.Module) -> bool:
        """It stands in a torch.nn.Sequential, which gives slices of its children."""
        return any(isinstance(holder, nn.Sequential) for holder, _ in self.holders(module))

    def barred_by(self, module: nn.Module) -> str | None:
        """Why nothing may change in one of the module's places, or None."""
        for place in self.places[module]:
            for above in above_and_itself(place):
                if above in self.barred:
                    return self.barred[above]
        return None

    def refusal(self, linear: nn.Module) -> str | None:
        """Why this layer cannot be fused with anything, or None."""
        return self.barred_by(linear) or refusal_of(linear)


def above_and_itself(path: str) -> list[str]:
    """'a.b' -> ['', 'a', 'a.b']"""
    parts = path.split(".") if path else []
    return [".".join(parts[:i]) for i in range(len(parts) + 1)]


def attributes_of(module: nn.Module) -> tuple[frozenset[str], frozenset[str], dict[str, Any]]:
    """The names of its layers, of its activation modules, and of the functions that it holds."""
    layers = frozenset(n for n, m in module._modules.items() if known.is_linear(m))
    acts = frozenset(n for n, m in module._modules.items() if known.is_activation(m))
    held = {n: v for n, v in module.__dict__.items() if _is_function(v)} if layers else {}
    return layers, acts, held


def _is_function(value: Any) -> bool:
    if isinstance(value, (nn.Module, HeldFunction, type)) or not callable(value):
        return False
    return known.record_or_none(value) is not None


def refusal_of(linear: nn.Module) -> str | None:
    """What of the layer itself stands against fusing it, or None."""
    cls = type(linear)
    if known.is_quantised(linear):
        return "it is quantised: its weight is no floating matrix"
    if parametrize.is_parametrized(linear):
        return "it is parametrised; remove the parametrisation first, or add it after patching"
    if not isinstance(linear, nn.Linear):
        own = "forward" in linear.__dict__
    else:
        own = "forward" in linear.__dict__ or cls.forward is not nn.Linear.forward
    if own:
        return f"its {cls.__name__} has a forward of its own"
    if linear._forward_hooks or linear._backward_hooks or linear._backward_pre_hooks:
        return "it has hooks, which would see the activation's output for the layer's own"
    weight, bias = linear._parameters.get("weight"), linear._parameters.get("bias")
    if weight is None:
        return "its weight is computed from other tensors (pruned, or normalised by a hook)"
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and type(tensor) not in (nn.Parameter, Tensor):
            return f"its {name} is a {type(tensor).__name__}, not a plain Parameter"
        if tensor is not None and not tensor.is_floating_point():
            return f"its {name} is of {tensor.dtype}, not floating"
    return None


def refusal_of_activation(act: nn.Module) -> str | None:
    """What of the activation module stands against passing it over, or None."""
    if "forward" in act.__dict__:
        return f"its activation, {type(act).__name__}, has a forward of its own"
    hooks = (act._forward_pre_hooks, act._forward_hooks, act._backward_hooks)
    if any(hooks) or act._backward_pre_hooks:
        return "its activation has hooks, which read the pre-activation; it would not be there"
    return None


class Selection:
    """Which layers the caller wants: include, and not exclude.

    Each is None, a predicate (path, module) -> bool, or patterns (as in fnmatch) of paths; a
    pattern that matches a module matches all that is in it.
    """

    def __init__(self, include: Any, exclude: Any):
        self.include = _rule("include", include)
        self.exclude = _rule("exclude", exclude)

    def wants(self, layout: Layout, module: nn.Module) -> bool:
        places = layout.places[module]
        wanted = self.include is None or any(self.include(place, module) for place in places)
        return wanted and not (
            self.exclude is not None and any(self.exclude(place, module) for place in places)
        )


def _rule(name: str, given: Any) -> Callable[[str, nn.Module], bool] | None:
    if given is None:
        return None
    if callable(given):
        return lambda path, module: bool(given(path, module))
    patterns = None if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    if patterns is None or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(
            f"manualgrad.patch: {name} must be a list of patterns such as ['encoder.*'], or a "
            f"function of (path, module), got {given!r}"
        )
    return lambda path, module: any(
        fnmatchcase(above, pattern) for above in above_and_itself(path) for pattern in patterns
    )
