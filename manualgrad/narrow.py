"""Narrow chains on a GPU: all layers forward in one kernel, all of backward in another.

What may go that way, and how a Chain is told to the kernels (triton_kernels/narrow.py). Only the
input is kept, as with recompute. Derivatives of derivatives, and whoever listens to single layers,
take the layers one by one. So does backward where layers are too wide for it: then forward, still
in one kernel, writes what each layer keeps.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from manualgrad import backends, compat
from manualgrad.chain import Chain
from manualgrad.compat import PLAIN
from manualgrad.eligibility import refusal, triton_kernels

NO_GPU = "it is not on a GPU"
HALF = (torch.float16, torch.bfloat16)


def prepared(chain: Chain, x: Tensor, tensors: Sequence[Any]) -> Chain:
    """The chain that runs in one kernel each way if these tensors can and it pays; else as it is.

    Or in one kernel forward alone.  x (M, K). Raises ValueError under backend("narrow") where they
    cannot do that either.
    """
    backward, forward = why_not(chain, x, tensors)
    if backward is None:
        return chain.but(recompute=True, narrow="backward")
    if forward is None:
        return chain.but(narrow="forward")
    if backends.mode() == "narrow":
        raise ValueError(
            f"manualgrad: backend 'narrow' cannot run this chain: {forward}; use "
            f"manualgrad.backend('auto')"
        )
    return chain


def why_not(chain: Chain, x: Tensor, tensors: Sequence[Any]) -> tuple[str | None, str | None]:
    """Why a chain does not run in one kernel each way, and why not forward alone; or None."""
    reason = _unfit(chain, x, tensors)
    if reason is not None:
        return reason, reason
    sizes = [x.shape[1], *(len(tensors[weight_at]) for weight_at, _ in chain.slots[1:])]
    slots, problem = slots_of(chain, tensors), triton_kernels().narrow_problem
    backward = problem(sizes, slots, x, "backward")
    return backward, backward and problem(sizes, slots, x, "forward")


def _unfit(chain: Chain, x: Tensor, tensors: Sequence[Any]) -> str | None:
    """Why a chain of any width does not, or None."""
    mode = backends.mode()
    if mode != "narrow":
        if not x.is_cuda:
            return NO_GPU
        if mode != "auto":
            return f"manualgrad.backend({mode!r}) takes the layers one by one"
        if x.dtype not in HALF:
            return f"{x.dtype} has no tensor cores that are as exact"
    if chain.depth < 2:
        return "it has one layer"
    if any(branch.at is not None for branch in chain.branches.values()):
        return "the scale of a skip is a tensor"
    for act in dict.fromkeys(chain.acts[1:]):
        reason = refusal(act, x, *tensors)
        if reason:
            return reason
    return None


def slots_of(chain: Chain, tensors: Sequence[Any]) -> list[tuple[int, int]]:
    """Whose parameters each layer uses, told by the tensors themselves: merged or not yet."""
    return [(id(tensors[weight]), id(tensors[bias])) for weight, bias in chain.slots[1:]]


def _told(chain: Chain, tensors: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """(weights, biases, layers) of each place, as the kernels are told them."""
    Layer = triton_kernels().Layer
    layers = []
    for l in range(1, chain.depth + 1):
        branch = chain.branches.get(l)
        skip = () if branch is None else (branch.kind, branch.start, float(branch.scale))
        layers.append(Layer(chain.acts[l], chain.slots[l], *skip))
    weights, biases = ([tensors[slot[i]] for slot in chain.slots[1:]] for i in (0, 1))
    return weights, biases, layers


def forward(chain: Chain, x: Tensor, tensors: Sequence[Any], hidden: bool) -> tuple[Tensor, ...]:
    """What forward_pass returns.  x (M, K)."""
    weights, biases, layers = _told(chain, tensors)
    s_of, a_of = (
        range(1, chain.depth + chain.hides_top),
        (l for l in chain.keeps_a if l < chain.depth),
    )
    kept = (s_of, list(a_of)) if hidden else ()
    return triton_kernels().narrow_forward(x, weights, biases, layers, *kept)


def takes(grad_a: Any) -> bool:
    """Whether what arrives at a chain is a plain matrix, in memory."""
    plain = type(grad_a) in PLAIN and not torch.compiler.is_compiling()
    return plain and not compat.dispatch_modes_active() and compat.has_memory(grad_a)


def backward(
    chain: Chain, saved: Sequence[Any], needs: Sequence[bool], grad_a: Tensor
) -> list[Tensor | None]:
    """The gradients of x and of each tensor, None where ``needs`` is False.  grad_a (M, N_L).

    saved: x and the chain's tensors.
    """
    x, *tensors = saved
    needs_x, *wanted = needs
    weights, biases, layers = _told(chain, tensors)
    kernels = triton_kernels()
    grad_x, *sums = kernels.narrow_backward(grad_a, x, weights, biases, layers, needs_x)
    grads: list[Tensor | None] = [None] * len(tensors)
    for slot in dict.fromkeys(chain.slots[1:]):
        for at, of_slot in zip(slot, sums, strict=True):
            if wanted[at]:
                grads[at] = of_slot[slot] if grads[at] is None else grads[at] + of_slot[slot]
    return [grad_x, *grads]
