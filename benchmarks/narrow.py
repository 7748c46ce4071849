"""Narrow chains as they are compiled without a GPU: of which shapes, and how they are launched."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch


def shapes(ops: Any, machine: Any) -> Iterator[tuple[str, tuple[int, ...], str, bool]]:
    """(kernel, sizes of layers, input first, activation, with skips): the widest on a machine.

    ops: manualgrad.triton_kernels.
    """
    launch = ops.narrow_launch
    both, alone = (launch.widest(machine, way) for way in ("backward", "forward"))
    depths = (2, launch.IN_REGISTERS, launch.DEEPEST)
    found = [(w, both, d) for d in depths for w in ("narrow_forward", "narrow_backward")]
    if alone > both:
        found += [("narrow_forward", alone, depth) for depth in (2, 4, 6)]
    for way, most, depth in found:
        for name, ends in (("relu", (3, 4)), ("gelu", (most, most))):
            yield way, (ends[0], *[most] * (depth - 1), ends[1]), name, name == "gelu"


def launch(
    ops: Any, way: str, sizes: Sequence[int], act: Any, skips: bool, dtype: torch.dtype
) -> None:
    """Launch a chain's kernel; with skips, one over each layer but the first and last.

    Where backward takes the layers one by one, forward writes what it wants of each.
    """
    empty = functools.partial(torch.empty, dtype=dtype, device="meta")
    weights = [empty(outputs, inputs) for inputs, outputs in itertools.pairwise(sizes)]
    biases = [empty(outputs) for outputs in sizes[1:]]
    inner = range(2, len(weights)) if skips else ()
    layers = [ops.Layer(act, l, *(("post", l - 1, 0.5) if l in inner else ()))
              for l in range(1, len(weights) + 1)]  # fmt: skip
    x, grad_a = empty(1 << 20, sizes[0]), empty(1 << 20, sizes[-1])
    if way == "narrow_backward":
        ops.narrow_backward(grad_a, x, weights, biases, layers)
        return
    wide = max(sizes) > ops.narrow_launch.widest(ops.launch.machine_of(x), "backward")
    ops.narrow_forward(x, weights, biases, layers, range(1, len(layers)) if wide else ())
