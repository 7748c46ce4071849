"""How a Function is applied, where it is called: by itself, in a graph, or under a transform."""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import Function

from manualgrad import backends, compat


def without_prologue(function: type[Function]) -> Callable[..., Any]:
    """function.apply without its Python prologue, inspect.signature: torch.func alone needs it."""
    return getattr(super(Function, function), "apply")  # noqa: B009


def applied(function: type[Function]) -> Callable[..., Any]:
    """function.apply, and without its prologue where nobody needs that."""
    directly = without_prologue(function)

    def apply(*inputs):
        told = torch.compiler.is_compiling() or compat.transforms_active()
        return (function.apply if told else directly)(*inputs)

    return apply


def front_door(
    function: type[Function],
    composite: Callable[..., Any],
    in_graphs: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """function.apply, in the form that is sound where it is called.

    composite computes the same in PyTorch's own operations: for forward mode, wherever PyTorch
    gets a Function wrong, and for graphs under backend("torch"). in_graphs: what other graphs, of
    torch.compile and torch.export, hold instead of the Function; it must bring its own backward.
    """
    directly = without_prologue(function)

    def apply(*inputs):
        compiling, transforms = torch.compiler.is_compiling(), compat.transforms_active()
        if compat.forward_mode() or (compiling and transforms) or compat.tracing_by_jit():
            return composite(*inputs)
        if compiling and in_graphs:
            return (composite if backends.mode() == "torch" else in_graphs)(*inputs)
        if compiling and torch.compiler.is_exporting():  # it would lose a Function's backward
            return composite(*inputs)
        return (function.apply if compiling or transforms else directly)(*inputs)

    return apply
