"""Launching the two kernels of a narrow chain: what they can take, in what tiles."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import launch
from .bp1 import prime_of
from .forward import sigma_of
from .narrow import narrow_backward_kernel, narrow_forward_kernel
from .operands import expect, row_major

DEEPEST = 8  # layers with weights of their own
LONGEST = 16  # layers; only where some share their weights
FEWEST = 64  # rows of a tile: of fewer there are no products by whole warp groups
IN_REGISTERS = 4  # layers whose tiles backward holds at once; of more they go through a cache


@dataclass(frozen=True)
class Layer:
    """One layer of a chain: its activation, and the skip that ends at it.

    slot: whose parameters it uses, equal where layers share them. kind: "", "pre", "post" or
    "out" (manualgrad.Skip), start: where the skip comes from, scale: of the branch.
    """

    act: Any
    slot: Any
    kind: str = ""
    start: int = 0
    scale: float = 1.0


def widest(machine: launch.Machine, way: str) -> int:
    """Neurons or inputs a layer may have: more, and the compiler runs out of registers.

    way: "backward", or "forward" alone.
    """
    wgmma = machine.arch == 90 or (100 <= machine.arch < 120 and launch.TRITON >= (3, 9))
    if wgmma or machine.family == "interpreter":
        return 64 if way == "backward" else 128
    return 32  # weights are operands in registers


def problem(sizes: Sequence[int], slots: Sequence[Any], like: Tensor, way: str) -> str | None:
    """Why the kernels cannot take layers of these sizes, input first, where like is; or None.

    slots: whose parameters each layer uses. way: "backward" (forward included), or "forward".
    """
    machine = launch.machine_of(like)
    most = widest(machine, way)
    own = len(set(slots))
    if own > DEEPEST or len(slots) > LONGEST:
        return (
            f"it has {len(slots)} layers, {own} of them with parameters of their own, and "
            f"{DEEPEST} such are the most, {LONGEST} in all"
        )
    if max(sizes) > most:
        return f"a layer has {max(sizes)} neurons or inputs, and {most} are the most here"
    if min(sizes) == 0:
        return "a layer has no neurons"
    needed = _shared_memory(sizes, slots, like.itemsize, FEWEST)
    if needed > machine.shared_memory:
        return (
            f"its weights need {needed} bytes of shared memory; there are {machine.shared_memory}"
        )
    return None


def _shared_memory(sizes: Sequence[int], slots: Sequence[Any], itemsize: int, rows: int) -> int:
    """Bytes that forward needs at most: for each weight once, and a tile on its way."""
    padded = [_padded(size) for size in sizes]
    own = {slot: N * K for slot, N, K in zip(slots, padded[1:], padded, strict=False)}
    return itemsize * (sum(own.values()) + rows * max(padded)) + 1024


def _padded(size: int) -> int:
    """A matrix product on tiles takes powers of two, and 16 at least."""
    return max(16, 1 << (size - 1).bit_length())


def _tile(machine: launch.Machine, most: int, backward: bool, M: int) -> tuple[int, int, int]:
    """(rows of a tile, warps, programs)."""
    if machine.family == "interpreter":
        return 16, 4, 2
    rows, warps = (64, 8 if most > 32 else 4) if backward else (128, 8 if most > 64 else 4)
    fewer = launch.cdiv(M, rows) < machine.multiprocessors
    if machine.arch >= 100:
        fewer = most <= 64  # of a wide layer fewer rows spill
    if fewer:
        rows = FEWEST
    return rows, warps, 2 * machine.multiprocessors


def _operands(call: str, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Any], layers):
    """(x, weights, biases, sizes), row-major; raises ValueError where they do not fit."""
    sizes = [x.shape[1], *(weight.shape[0] for weight in weights)]
    for l, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        expect(call, weight=(weight, (sizes[l + 1], sizes[l])), bias=(bias, (sizes[l + 1],)))
    why = problem(sizes, [layer.slot for layer in layers], x, call.removeprefix("narrow_"))
    if why:
        raise ValueError(f"manualgrad.triton_kernels.{call}: {why}")
    biases = [None if bias is None else bias.contiguous() for bias in biases]
    return row_major(x), [row_major(weight) for weight in weights], biases, sizes


def _plan(layers: Sequence[Layer], sizes: Sequence[int], weights: Sequence[Tensor]):
    """What the kernels are told of a chain; from SIZES on, layer 0, the input, stands first."""
    dtype = weights[0].dtype
    slots = [layer.slot for layer in layers]
    return {
        "strides": tuple(weight.stride(0) for weight in weights),
        "L": len(layers),
        "SAME": tuple(slots.index(slot) for slot in slots),
        "PRECISION": launch.precision_of(dtype),
        "SIZES": tuple(sizes),
        "PADDED": tuple(map(_padded, sizes)),
        "SIGMA": (None, *(sigma_of(layer.act, dtype) for layer in layers)),
        "OF_A": (False, *(layer.act.keeps == "a" for layer in layers)),
        "KIND": ("", *(layer.kind for layer in layers)),
        "START": (0, *(layer.start for layer in layers)),
        "SCALE": (1.0, *(float(layer.scale) for layer in layers)),
    }


def narrow_forward(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    layers: Sequence[Layer],
    s_of: Sequence[int] = (),
    a_of: Sequence[int] = (),
) -> tuple[Tensor, ...]:
    """The whole chain.  x (M, K); weights W^l (N_l, N_{l-1}); biases b^l (N_l,) or None.

    s_of, a_of: numbers of layers, from 1. Returns (a^L, s^l of each of s_of, a^l of each of a_of),
    s^l what sigma' is written in: z^l, or sigma(z^l).
    """
    x, weights, biases, sizes = _operands("narrow_forward", x, weights, biases, layers)
    machine, M, most = launch.machine_of(x), x.shape[0], max(sizes)
    a, s_hidden, a_hidden = (
        {l: x.new_empty(M, sizes[l]) for l in of} for of in ((len(layers),), s_of, a_of)
    )
    rows, warps, programs = _tile(machine, most, False, M)
    slots = [layer.slot for layer in layers]
    if _shared_memory(sizes, slots, x.itemsize, rows) > machine.shared_memory:
        rows = FEWEST
    programs, every = min(programs, launch.cdiv(M, rows)), range(len(sizes))
    launch.run(
        narrow_forward_kernel, (programs,),
        {"x": x, "weights": weights, "biases": biases},
        {
            "a": a[len(layers)],
            "s_hidden": [s_hidden.get(l) for l in every],
            "a_hidden": [a_hidden.get(l) for l in every],
        },
        options={"num_warps": warps}, M=M, PROGRAMS=programs, BLOCK_M=rows,
        **_plan(layers, sizes, weights),
    )  # fmt: skip
    return *a.values(), *s_hidden.values(), *a_hidden.values()


def narrow_backward(grad_a, x, weights, biases, layers: Sequence[Layer], needs_x: bool = True):
    """All gradients of the chain, from x alone.  grad_a (M, N_L), the rest as in narrow_forward.

    Returns (grad_x or None, grad_W by slot, grad_b by slot): of layers that share a slot the sum.
    """
    x, weights, biases, sizes = _operands("narrow_backward", x, weights, biases, layers)
    M, grad_a = x.shape[0], row_major(grad_a)
    expect("narrow_backward", grad_a=(grad_a, (M, sizes[-1])))
    padded, dtype = [_padded(size) for size in sizes], x.dtype
    rows, warps, programs = _tile(launch.machine_of(x), max(sizes), True, M)
    programs = min(programs, launch.cdiv(M, rows))
    at: dict[Any, int] = {}
    offsets, size = [], 0
    for l, layer in enumerate(layers):
        if layer.slot not in at:
            at[layer.slot], size = size, size + padded[l + 1] * (padded[l] + 1)
        offsets.append(at[layer.slot])
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    parts = torch.zeros(programs, size, dtype=sums, device=x.device)
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format) if needs_x else None
    scratch = None
    if len(layers) > IN_REGISTERS:
        scratch = x.new_empty(programs, 2 * len(layers) * rows * max(padded))
    launch.run(
        narrow_backward_kernel, (programs,),
        {"x": x, "grad_a": grad_a, "weights": weights, "biases": biases, "scratch": scratch},
        {"grad_x": grad_x, "parts": parts},
        options={"num_warps": warps}, M=M, PROGRAMS=programs, SIZE=size,
        BLOCK_M=rows, WIDEST=max(padded), NONE=(None,) * len(sizes), OFFSETS=(0, *offsets),
        SIGMA_PRIME=(None, *(prime_of(layer.act, dtype) for layer in layers)),
        **_plan(layers, sizes, weights),
    )  # fmt: skip
    total = parts.sum(0).to(dtype)
    grad_weights: dict[Any, Tensor] = {}
    grad_biases: dict[Any, Tensor] = {}
    for l, layer in enumerate(layers):
        N, K, (n, k), first = padded[l + 1], padded[l], weights[l].shape, at[layer.slot]
        grad_weights[layer.slot] = total[first : first + N * K].view(N, K)[:n, :k]
        grad_biases[layer.slot] = total[first + N * K : first + N * K + n]
    return grad_x, grad_weights, grad_biases
