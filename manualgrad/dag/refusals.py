"""What a recording refuses, in words: the call, what it met, and the way out."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from manualgrad import compat
from manualgrad.dag import table
from manualgrad.dag.node import Node

ENGINE = {"backward", "grad"}  # torch.autograd's own
HOOKS = {"register_hook", "register_post_accumulate_grad_hook", "retain_grad"}
ARRAYS = {"numpy", "__array__"}
WRITING = {"__setitem__", "__set__", "__delitem__"} | {
    f"__i{name}__"
    for name in ("add", "sub", "mul", "truediv", "div", "floordiv", "mod", "pow")
    + ("and", "or", "xor", "lshift", "rshift", "matmul")
}


def writes(func: Any, kwargs: dict) -> bool:
    """Does the call change a tensor in place?"""
    name = getattr(func, "__name__", "")
    private = name.endswith("_") and not name.endswith("__")
    return (
        private or name in WRITING or bool(kwargs.get("inplace")) or kwargs.get("out") is not None
    )


def refuse_call(func: Callable, kwargs: dict, watched: bool) -> None:
    """RuntimeError for calls on the graph's tensors that would undermine it.

    watched: a value of the graph is among the operands, and not just the original of a leaf.
    """
    name, why = getattr(func, "__name__", ""), ""
    if writes(func, kwargs):
        why = (
            "changes a tensor of the graph in place, or fills one from it; a node's value stays "
            "(else it could be its own ancestor, a cycle): make a new one, e.g. x = x + y, without "
            "out= and inplace=True"
        )
    elif name in ENGINE:
        why = (
            "is torch.autograd's, which has no part in a recording; call tape.backward(y), then "
            "tape.adjoint(x)"
        )
    elif name in HOOKS:
        why = (
            "asks for what a tape does not do: it calls no hooks; after tape.backward(y) read "
            "tape.adjoint(x) and tape.contributions(x)"
        )
    elif name in ARRAYS and watched:
        why = "takes a value out of the graph; call detach() first"
    if why:
        raise RuntimeError(f"manualgrad.dag: {table.name_of(func)} {why}")


def refuse_compiled() -> None:
    """RuntimeError inside of a compiled function.

    Its compiler traces these very lines, too, and what comes out then is anything: wrong numbers
    among it. torch.compiler.is_compiling() is of no use here: what is raised where that is true is
    lost, or reported as an internal error of the compiler.
    """
    if compat.frame_callback() not in (None, False):
        raise RuntimeError(
            "manualgrad.dag: a function or module of torch.compile was called in a recording, and "
            "what is compiled cannot be recorded; call it uncompiled: the module that was given to "
            "torch.compile, or compiled._orig_mod"
        )


def refuse_complex(function: Any, inputs: tuple, tensors: Iterable[Tensor]) -> None:
    """NoRuleError for a Function of which one of these, operands of the graph and result, is."""
    if any(t.is_complex() for t in tensors):
        raise table.no_complex_rule(table.label(function, inputs))


def refuse_hooks(tensor: Tensor, name: str) -> None:
    """RuntimeError for a leaf with hooks: they may change gradients, and a tape calls none."""
    if tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None):
        raise RuntimeError(
            f"manualgrad.dag: {name} of shape {tuple(tensor.shape)} has hooks for its gradient, "
            f"and a tape calls no hooks; remove them (handle.remove()), "
            f"and after tape.backward(y) do to tape.adjoint(x) what they do"
        )


def refuse_modes() -> None:
    """RuntimeError where the rules would compute something else, or on something else."""
    if compat.transforms_active() or compat.forward_mode():
        raise RuntimeError(
            "manualgrad.dag: a transform of torch.func (vmap, grad, jvp, ...) is active, whose "
            "tensors a tape cannot follow; record outside of it"
        )
    if compat.any_autocast():
        raise RuntimeError(
            "manualgrad.dag: torch.autocast is on, and a tape's rules compute in the dtypes that "
            "they are given; cast the model and its input, e.g. to torch.bfloat16, and record "
            "outside of it"
        )


def of_autograd(tensor: Tensor) -> RuntimeError:
    """The error for a tensor that carries a graph of torch.autograd."""
    maker = type(tensor.grad_fn).__name__
    return RuntimeError(
        f"manualgrad.dag: a tensor of shape {tuple(tensor.shape)} was computed under "
        f"torch.autograd ({maker}), not by a rule of the tape; compute it inside mg.dag.record(), "
        f"apply a Function of your own with mg.dag.apply(Function, ...), or detach() a constant"
    )


def start(node: Node, adjoint: Any) -> Tensor:
    """The adjoint that backward begins with."""
    value = node.value
    if adjoint is None:
        if value.numel() != 1:
            raise ValueError(
                f"manualgrad.dag: tape.backward starts from {node}, which has {value.numel()} "
                f"entries; give its adjoint, a tensor of shape {tuple(value.shape)}, or reduce it "
                f"to one number, a cost"
            )
        return torch.ones_like(value)
    if not isinstance(adjoint, Tensor):
        raise TypeError(
            f"manualgrad.dag: tape.backward: adjoint must be a tensor of shape "
            f"{tuple(value.shape)}, got {adjoint!r:.80}"
        )
    for what in ("shape", "dtype", "device"):
        ours, theirs = getattr(value, what), getattr(adjoint, what)
        if ours != theirs:
            ours, theirs = (tuple(x) if what == "shape" else x for x in (ours, theirs))
            raise ValueError(
                f"manualgrad.dag: tape.backward: adjoint has {what} {theirs}, but {node} has "
                f"{what} {ours}; an adjoint is like its value"
            )
    return adjoint.detach().clone()  # the caller's may change
