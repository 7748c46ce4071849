"""The layers and activation modules that patch knows, by class; no library is imported for it."""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from manualgrad.activations import ACTIVATIONS, Activation, activation_of
from manualgrad.activations.names import FUNCTIONS, MODULES
from manualgrad.nn.swaps import is_swapped

CONV1D = "transformers.pytorch_utils.Conv1D"  # GPT-2's layer: a Linear with its weight transposed

# classes that compute one of our formulas, by where they are defined
CLASSES = {
    "timm.layers.activations.GELU": "gelu",
    "timm.layers.activations.GELUTanh": "gelu_tanh",
    "timm.layers.activations.HardSigmoid": "hardsigmoid",
    "timm.layers.activations.HardSwish": "hardswish",
    "timm.layers.activations.Mish": "mish",
    "timm.layers.activations.QuickGELU": "quick_gelu",
    "timm.layers.activations.Sigmoid": "sigmoid",
    "timm.layers.activations.Swish": "silu",
    "timm.layers.activations.Tanh": "tanh",
    "transformers.activations.AccurateGELUActivation": "gelu_tanh",
    "transformers.activations.GELUActivation": "gelu",
    "transformers.activations.GELUTanh": "gelu_tanh",
    "transformers.activations.MishActivation": "mish",
    "transformers.activations.NewGELUActivation": "gelu_tanh",
    "transformers.activations.PytorchGELUTanh": "gelu_tanh",
    "transformers.activations.QuickGELUActivation": "quick_gelu",
    "transformers.activations.ReLUSquaredActivation": "relu_squared",
    "transformers.activations.SiLUActivation": "silu",
    "x_transformers.x_transformers.ReluSquared": "relu_squared",
}


def name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def is_linear(module: Any) -> bool:
    """torch.nn.Linear, one of its subclasses, or GPT-2's Conv1D, that is not fused already."""
    layer = isinstance(module, nn.Linear) or name_of(type(module)) == CONV1D
    return layer and not is_swapped(module)


def is_quantised(module: Any) -> bool:
    """One of torch's quantised Linears, which hold packed integers."""
    cls = type(module)
    packages = ("torch.ao.nn.", "torch.nn.quantized.", "torch.nn.intrinsic.quantized.")
    return cls.__module__.startswith(packages) and "Linear" in cls.__name__


def is_activation(module: Any) -> bool:
    """A module that is meant as an activation, with a formula of ours or without one."""
    cls = type(module)
    if is_swapped(module) or cls is nn.Identity:
        return False
    defined_among_them = cls.__module__.endswith((".activation", ".activations"))
    return (cls in MODULES or name_of(cls) in CLASSES or defined_among_them) and not (
        isinstance(module, nn.MultiheadAttention) or any(True for _ in module.children())
    )


def record_of(spec: Any) -> Activation:
    """The record of an activation module or function, such as nn.GELU(), F.gelu, or a partial.

    Raises TypeError or ValueError where there is no formula by hand for it.
    """
    if name_of(type(spec)) in CLASSES and not is_swapped(spec):
        return ACTIVATIONS[CLASSES[name_of(type(spec))]]
    if isinstance(spec, functools.partial) and not spec.args:
        return record_of_call(spec.func, spec.keywords)
    return activation_of(spec, "patch")


def record_of_call(function: Callable[..., Any], keywords: dict[str, Any]) -> Activation:
    """The record of function(z, **keywords). Raises TypeError where there is none."""
    given = {key: value for key, value in keywords.items() if key != "inplace"}
    if FUNCTIONS.get(function) == "gelu" and given == {"approximate": "tanh"}:
        return ACTIVATIONS["gelu_tanh"]
    if given and given != {"approximate": "none"}:
        raise TypeError(f"{function!r} with {given} is no activation that patch reads")
    return activation_of(function, "patch")


def record_or_none(spec: Any) -> Activation | None:
    """The record of an activation module or function, None for anything else."""
    try:
        return None if spec is None else record_of(spec)
    except (TypeError, ValueError):
        return None
