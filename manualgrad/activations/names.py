"""What a caller may write for an activation, and the record it means."""

import ast
import difflib
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from manualgrad.activations.registry import ACTIVATIONS, ALIASES, Activation, recall

# a module's type -> its activation's name and the attributes that are the formula's parameters
MODULES: dict[type, tuple[str, tuple[str, ...]]] = {
    nn.Identity: ("identity", ()),
    nn.ReLU: ("relu", ()),
    nn.LeakyReLU: ("leaky_relu", ("negative_slope",)),
    nn.ReLU6: ("relu6", ()),
    nn.ELU: ("elu", ("alpha",)),
    nn.SELU: ("selu", ()),
    nn.CELU: ("celu", ("alpha",)),
    nn.Sigmoid: ("sigmoid", ()),
    nn.Hardsigmoid: ("hardsigmoid", ()),
    nn.LogSigmoid: ("log_sigmoid", ()),
    nn.Tanh: ("tanh", ()),
    nn.Softplus: ("softplus", ("beta", "threshold")),
    nn.Softsign: ("softsign", ()),
    nn.SiLU: ("silu", ()),
    nn.Mish: ("mish", ()),
    nn.Hardswish: ("hardswish", ()),
    nn.GELU: ("gelu", ()),
}

# parameters without a derivative by hand: (parameter, refused when, because)
REFUSED: dict[str, tuple[str, Callable[[float], bool], str]] = {
    "leaky_relu": ("negative_slope", lambda m: m < 0, "its output must tell the sign of its input"),
    "celu": ("alpha", lambda alpha: alpha == 0, "it divides by alpha"),
    "softplus": ("beta", lambda beta: beta == 0, "it divides by beta"),
}

FUNCTIONS: dict[Callable[..., Any], str] = {
    torch.relu: "relu",
    F.relu: "relu",
    F.leaky_relu: "leaky_relu",
    F.relu6: "relu6",
    F.elu: "elu",
    torch.selu: "selu",
    F.selu: "selu",
    torch.celu: "celu",
    F.celu: "celu",
    torch.sigmoid: "sigmoid",
    F.sigmoid: "sigmoid",
    F.hardsigmoid: "hardsigmoid",
    F.logsigmoid: "log_sigmoid",
    torch.tanh: "tanh",
    F.tanh: "tanh",
    F.softplus: "softplus",
    F.softsign: "softsign",
    F.silu: "silu",
    F.mish: "mish",
    F.hardswish: "hardswish",
    F.gelu: "gelu",
    torch.sin: "sine",
}


def activations() -> list[str]:
    """The sorted names of all registered activations."""
    return sorted(ACTIVATIONS)


def activation_of(spec: Any, call: str) -> Activation:
    """The activation that ``spec`` means, with torch's default parameters unless it carries others.

    spec: a name or alias, one with constants as str(Activation) prints them, such as
        "leaky_relu(negative_slope=0.1)", None (identity), an activation module such as
        nn.LeakyReLU(0.1), a function such as F.gelu, or an Activation.
    call: the caller's name, for the message.

    Raises ValueError for an unknown name or an impossible parameter, TypeError for another object.
    """
    if type(spec) is Activation:
        return spec
    if isinstance(spec, str):
        if spec in ACTIVATIONS:
            return ACTIVATIONS[spec]
        name = ALIASES.get(spec.lower(), spec.lower())
        if name in ACTIVATIONS:
            return ACTIVATIONS[name]
        if "(" in spec:
            return _activation_of_text(spec, call)
        raise ValueError(f"manualgrad.{call}: unknown activation {spec!r}{_suggestion(spec)}")
    if spec is None:
        return ACTIVATIONS["identity"]
    if isinstance(spec, nn.Module):
        return _activation_of_module(spec, call)
    try:
        return ACTIVATIONS[FUNCTIONS[spec]]
    except (KeyError, TypeError):
        raise TypeError(
            f"manualgrad.{call}: {spec!r} is not an activation; give one of the names "
            f"{', '.join(activations())}, a torch activation module such as nn.LeakyReLU(0.1), or "
            f"a function such as F.gelu (new ones: manualgrad.register_activation)"
        ) from None


def _activation_of_module(module: nn.Module, call: str) -> Activation:
    if type(module) not in MODULES:
        known = ", ".join(sorted(kind.__name__ for kind in MODULES))
        raise TypeError(
            f"manualgrad.{call}: no hand-derived activation for the module "
            f"{type(module).__name__}; there is one for {known}"
        )
    name, attributes = MODULES[type(module)]
    if isinstance(module, nn.GELU):
        if module.approximate not in ("none", "tanh"):
            raise ValueError(
                f"manualgrad.{call}: {module}: approximate must be 'none' or 'tanh', as in torch"
            )
        name = "gelu_tanh" if module.approximate == "tanh" else "gelu"
    parameters = {key: float(getattr(module, key)) for key in attributes}
    return _with_constants(name, parameters, module, call)


def _activation_of_text(text: str, call: str) -> Activation:
    """'leaky_relu(negative_slope=0.1)', read as a call of literals and never run."""
    try:
        parsed = ast.parse(text.strip(), mode="eval").body
        if not isinstance(parsed, ast.Call) or parsed.args:
            raise ValueError("it is not a name with constants")
        act = activation_of(ast.unparse(parsed.func), call)
        given = {str(k.arg): float(ast.literal_eval(k.value)) for k in parsed.keywords}
        unknown = [key for key in given if key not in _defaults(act.name)]
        if unknown:
            raise ValueError(f"{act.name} has no constant {unknown[0]}")
    except (SyntaxError, TypeError, ValueError) as error:
        raise ValueError(
            f"manualgrad.{call}: activation {text!r} cannot be read ({error}); write a name, or "
            f"one with its constants, such as 'leaky_relu(negative_slope=0.1)'"
        ) from None
    return _with_constants(act.name, given, text, call)


# what torch.compiler.assume_constant_result sets, which would import all of Dynamo
setattr(_activation_of_text, "_dynamo_marked_constant", True)  # noqa: B010


def _with_constants(name: str, given: dict[str, float], spec: Any, call: str) -> Activation:
    defaults = _defaults(name)
    parameters = {key: given.get(key, default) for key, default in defaults.items()}
    if parameters == defaults:
        return ACTIVATIONS[name]
    if not all(math.isfinite(value) for value in parameters.values()):
        raise ValueError(f"manualgrad.{call}: {spec} has a parameter that is not finite")
    if name in REFUSED:
        key, refused, reason = REFUSED[name]
        if refused(parameters[key]):
            raise ValueError(
                f"manualgrad.{call}: {spec} has no derivative by hand, {reason}; choose another "
                f"{key}"
            )
    return recall(name, tuple(parameters.items()))


@functools.cache
def _defaults(name: str) -> dict[str, float]:
    """The constants of an activation's formulas."""
    constants = list(inspect.signature(ACTIVATIONS[name].sigma).parameters.values())[1:]
    return {constant.name: constant.default for constant in constants}


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name.lower(), [*ACTIVATIONS, *ALIASES], n=1)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    return f"{guess}; known names: {', '.join(activations())}"
