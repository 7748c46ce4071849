"""The layers as PyTorch's own graph, for where a node of ours cannot stand.

In forward mode a Function needs a jvp, and a Function with one cannot be compiled. Here the affine
half is PyTorch's, and sigma is a Function whose two derivatives, backward and forward, are the
record's. Where PyTorch gets any Function wrong, sigma too is its own (the record's oracle):

    jvp of jvp          a Function's jvp is not differentiated again (pytorch/pytorch#197867)
    compiled transforms torch.compile differentiates what is inside a Function (#193279)
    jit.trace           would record the forward pass alone
    complex, nested     the formulas are for dense real numbers
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from manualgrad import compat, differentiable
from manualgrad.activations import Activation
from manualgrad.chain import Chain, added


def linear_act(
    x: Tensor, act: Activation, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, ...]:
    """As manualgrad.functions.linear_act: (x (M, K), act, weight (N, K), bias (N,)) -> (a,)."""
    return (sigma(F.linear(x, weight, bias), act),)


def mlp(x: Tensor, chain: Chain, *tensors: Any) -> tuple[Tensor, ...]:
    """As manualgrad.functions.mlp: (x, chain, W1, b1, ...) -> (a^L,)."""
    a, z = {0: x}, {}
    for l in range(1, chain.depth + 1):
        branch = chain.branches.get(l)
        z[l] = F.linear(a[l - 1], chain.weight(l, tensors), chain.bias(l, tensors))
        if branch is not None and l not in chain.outs:
            z[l] = z[l] + (z if branch.kind == "pre" else a)[branch.start]
        a[l] = sigma(z[l], chain.acts[l])
        if branch is not None and l in chain.outs:
            a[l] = added(a[branch.start], a[l], chain.scale(l, tensors))
    return (a[chain.depth],)


def residual(x: Tensor, chain: Chain, scales: Any, layers: Any) -> Tensor:
    """mlp where layer l is called: layers[l - 1], a module without activation."""
    tensors = (None,) * (2 * chain.depth) + tuple(scales)
    a, z = {0: x}, {}
    for l, layer in enumerate(layers, start=1):
        branch = chain.branches.get(l)
        z[l] = layer(a[l - 1])
        if branch is not None:
            skip = (z if branch.kind == "pre" else a)[branch.start]
            if isinstance(skip, Tensor) and skip.shape != z[l].shape:
                raise ValueError(
                    f"manualgrad.nn.MLP: layers.{l - 1} gives {tuple(z[l].shape)}, but the skip "
                    f"that ends there brings {tuple(skip.shape)}; a skip needs equal shapes"
                )
            z[l] = skip + chain.scale(l, tensors) * z[l]
        a[l] = sigma(z[l], chain.acts[l])
    return a[chain.depth]


def sigma(z: Tensor, act: Activation) -> Tensor:
    if act.is_identity:
        return z
    if only_native() or z.is_complex() or z.is_nested:
        return act.oracle(z)
    return differentiable.sigma(z, act)


def only_native() -> bool:
    """PyTorch would differentiate a Function wrongly here, or not record it."""
    return torch.compiler.is_compiling() or compat.forward_mode_nested() or compat.tracing_by_jit()
