"""Which function of torch's or ours is which rule, what is a constant, and what is refused."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import resolve_name

from manualgrad.activations import Activation

SPELLED: dict[Any, Callable[..., Any]] = {}
NAMES: set[str] = set()


class NoRuleError(NotImplementedError, ValueError):
    """An operation without a hand-derived rule met a tensor of the graph.

    No TypeError: torch's operators would take that for "ask the other operand".
    """


def spells(*functions: Any, name: str = "") -> Callable[[Callable], Callable]:
    """Decorator: the function below does, in rules, what these functions do in torch.

    It takes their arguments. name: what the list of operations calls it, its own if empty.
    """

    def keep(spelled: Callable) -> Callable:
        for function in functions:
            SPELLED[function] = spelled
        NAMES.add(name or getattr(spelled, "__name__", "").strip("_"))
        return spelled

    return keep


def spelling(func: Any) -> Callable[..., Any] | None:
    return SPELLED.get(func)


def operations() -> list[str]:
    """The sorted names of the operations that have a rule."""
    return sorted(NAMES)


def no_rule(func: Any) -> NoRuleError:
    return NoRuleError(
        f"manualgrad.dag: {name_of(func)} has no hand-derived rule. There are rules for "
        f"{', '.join(operations())}. Write it in these, apply a Function of your own "
        f"with mg.dag.apply(Function, ...), or detach() what is a constant"
    )


def no_complex_rule(name: str) -> NoRuleError:
    return NoRuleError(
        f"manualgrad.dag: {name} has a complex operand or result, and complex numbers have no "
        f"hand-derived rule: the rules are for real ones. Write it in real and imaginary parts, "
        f"as real tensors of their own, or detach() what is a constant"
    )


def name_of(func: Any) -> str:
    """As a user writes it: torch.cumsum, torch.Tensor.cumsum."""
    try:
        return resolve_name(func) or func.__name__
    except (AttributeError, RuntimeError, TypeError):
        return getattr(func, "__name__", repr(func))


# their results are constants, though they hold floating numbers
CONSTANT: set[Any] = {
    torch.detach,
    Tensor.detach,
    Tensor.data.__get__,  # pyright: ignore
    Tensor.grad.__get__,  # pyright: ignore
    Tensor.grad.__set__,  # pyright: ignore
    torch.zeros_like,
    torch.ones_like,
    torch.full_like,
    torch.empty_like,
    torch.rand_like,
    torch.randn_like,
    Tensor.new_zeros,
    Tensor.new_ones,
    Tensor.new_full,
    Tensor.new_empty,
    Tensor.new_tensor,
}

REQUIRES_GRAD = Tensor.requires_grad.__get__  # pyright: ignore


def label(function: Any, inputs: tuple) -> str:
    """What a node is called: its Function's name in torch's spelling, and its activation."""
    name = function.__name__.removesuffix("Function")
    name = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    acts = [i for i in inputs if isinstance(i, Activation)]
    if not acts:
        return name
    if name == "activate":
        return acts[0].text
    return "linear" if acts[0].is_identity else f"{name} {acts[0].text}"
