"""Rivals' packages, where they are installed: each on the same Parameters, or why it cannot be."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Call = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Stack:
    """Linear layers with an activation between them, and after the last one too if `closed`."""

    linears: list[nn.Linear]
    activation: str
    closed: bool

    @property
    def dtype(self) -> torch.dtype:
        return self.linears[0].weight.dtype

    @property
    def is_block(self) -> bool:
        return len(self.linears) == 2 and not self.closed


class Peer(nn.Module):
    """A rival's function as a module that has the Parameters it is called with."""

    def __init__(self, stack: Stack, call: Call) -> None:
        super().__init__()
        self.linears = nn.ModuleList(stack.linears)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def apex(stack: Stack) -> Call:
    """apex.mlp for closed stacks, apex.fused_dense for a Transformer's block."""
    weights, biases = [m.weight for m in stack.linears], [m.bias for m in stack.linears]
    codes = {"relu": 1, "sigmoid": 2}
    if stack.closed and stack.activation in codes:
        if stack.dtype is torch.bfloat16:
            raise NotImplementedError("apex.mlp has no bfloat16")
        from apex.mlp.mlp import mlp_function  # pyright: ignore[reportMissingImports]

        return lambda x: mlp_function(1, codes[stack.activation], x, *weights, *biases)
    if stack.is_block and stack.activation == "gelu_tanh":
        from apex.fused_dense.fused_dense import (  # pyright: ignore[reportMissingImports]
            fused_dense_gelu_dense_function as dense,
        )

        return lambda x: dense(x, weights[0], biases[0], weights[1], biases[1])
    raise NotImplementedError("apex has relu or sigmoid after every layer, or gelu_tanh in a block")


def quack(stack: Stack) -> Call:
    """quack.linear's two functions for a Transformer's block."""
    names = {"relu": "relu", "silu": "silu", "gelu_tanh": "gelu_tanh_approx"}
    if not (stack.is_block and stack.activation in names):
        raise NotImplementedError("quack has blocks of two layers with relu, silu or gelu_tanh")
    from quack.linear import (  # pyright: ignore[reportMissingImports]
        act_linear_func,
        linear_act_func,
    )

    name, (first, last) = names[stack.activation], stack.linears

    def call(x: Tensor) -> Tensor:
        z, a = linear_act_func(x, first.weight, name, first.bias)
        return act_linear_func(z, last.weight, a, name, last.bias)

    return call


def tinycudann(stack: Stack) -> Call:
    raise NotImplementedError("tiny-cuda-nn's networks have no biases")


def liger_kernel(stack: Stack) -> Call:
    raise NotImplementedError("Liger's blocks are gated")


PEERS: dict[str, Callable[[Stack], Call]] = {
    "quack": quack,
    "apex": apex,
    "tinycudann": tinycudann,
    "liger_kernel": liger_kernel,
}


def reason(error: Exception) -> str:
    """An exception in one line."""
    said = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {said[0][:200]}"


def installed() -> list[str]:
    return [name for name in PEERS if importlib.util.find_spec(name)]


def told() -> str:
    """One line: which rivals take part."""
    there = installed()
    missing = [name for name in PEERS if name not in there]
    told = f"peers: {', '.join(there) or 'none'}"
    return f"{told}; not installed: {', '.join(missing)}" if missing else told


def of(stack: Stack) -> dict[str, nn.Module | str]:
    """Each rival that is installed as a network, or the reason why it has none."""
    found: dict[str, nn.Module | str] = {}
    for name in installed():
        try:
            found[name] = Peer(stack, PEERS[name](stack))
        except Exception as error:  # an extension that was not built raises anything
            found[name] = reason(error)
    return found
