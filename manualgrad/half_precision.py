"""Products of bfloat16 and float16 in float32, on CPUs that have no instructions for them.

There ATen multiplies number by number, and takes up to eighty times as long as in float32 (measured
on an AMD EPYC with AVX2 alone). Here blocks of the factors become float32, MKL multiplies them, and
each sum is rounded once. A product of two such numbers is exact in float32 (within its range), so
that a sum errs no more than ATen's does. Which is faster here is measured for each of the three
products, once per process, dtype and number of threads, on first need.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from manualgrad import compat
from manualgrad.measuring import clearly_faster

DTYPES = frozenset((torch.bfloat16, torch.float16))
LEAST = {"linear": 1 << 17, "error_below": 1 << 17, "weight_gradient": 1 << 19}
"""Multiplications: of fewer, the conversions cost more than they save."""
THIN = {"linear": 16, "error_below": 2, "weight_gradient": 8}
"""Rows and columns of a result: with fewer, to convert a factor costs more than it saves."""
GRAPH = 1 << 20  # multiplications: what a call from a compiled graph has to save
SIDE, ENTRIES = 256, 1 << 17  # of a block: at most; three blocks are in memory at once


def product(
    left: Tensor, right: Tensor, bias: Tensor | None = None, into: Tensor | None = None
) -> Tensor:
    """left right^T + bias, added to into.

    left (M, K), right (N, K), of any strides; bias (N,) or None; into (M, N) or None, which is then
    what is returned.
    """
    (M, K), N = left.shape, right.shape[0]
    m, n, k = _parts(M, N, K)
    if into is None and m == n == 1:
        return _in_float32(left, right, bias, k).to(left.dtype)
    result = left.new_empty(M, N) if into is None else into
    right_blocks = right.tensor_split(n)
    biases = [None] * n if bias is None else bias.tensor_split(n)
    for rows, some in zip(result.tensor_split(m), left.tensor_split(m), strict=True):
        blocks = zip(rows.tensor_split(n, 1), right_blocks, biases, strict=True)
        for block, right_block, of_block in blocks:
            addend = None if into is None else block
            block.copy_(_in_float32(some, right_block, of_block, k, addend))
    return result


def _in_float32(
    left: Tensor, right: Tensor, bias: Tensor | None, parts: int, addend: Tensor | None = None
) -> Tensor:
    """left right^T + bias + addend, its terms in so many parts.

    Nothing but in place and out=, which autocast leaves alone: a compiled graph may run under it.
    """
    total = left.new_empty(left.shape[0], right.shape[0], dtype=torch.float32)
    blocks = zip(left.tensor_split(parts, 1), right.tensor_split(parts, 1), strict=True)
    for i, (a, b) in enumerate(blocks):
        a, b = a.float(), b.float().t()
        if i:
            total.addmm_(a, b)
        elif bias is None:
            torch.mm(a, b, out=total)
        else:
            torch.addmm(bias.float(), a, b, out=total)
    return total if addend is None else total.add_(addend)


def _parts(*sizes: int) -> list[int]:
    """Of an (M, N, K) product, along each: the longest side's are as long as ENTRIES allow."""
    sides = [min(size, SIDE) for size in sizes]
    longest = sizes.index(max(sizes))
    sides[longest] = ENTRIES // max(side for i, side in enumerate(sides) if i != longest)
    return [-(-size // side) for size, side in zip(sizes, sides, strict=True)]


# of the two tensors that manualgrad.products names so: (here, by ATen)
PRODUCTS = {
    "linear": (product, F.linear),
    "error_below": (lambda delta, weight: product(delta, weight.t()), torch.mm),
    "weight_gradient": (
        lambda delta, a: product(delta.t(), a.t()),
        lambda delta, a: delta.t().mm(a),
    ),
}


def takes(name: str, sizes: tuple[int, int, int], *tensors: Tensor) -> bool:
    """Whether that one of PRODUCTS is made here.  sizes: (M, N, K) of (M, K) times (K, N).

    Not of tensors in several dtypes: ATen refuses those. Nor in float16 where float32 may be
    multiplied with fewer digits than float16 has.
    """
    return (
        _fits(name, sizes, LEAST[name], tensors)
        and compat.readable(*tensors)
        and wins_here(name, tensors[0].dtype)
    )


def takes_in_graph(name: str, sizes: tuple[int, int, int], *tensors: Tensor) -> bool:
    """The same of a compiled graph's tensors, which cannot be read."""
    return _fits(name, sizes, GRAPH, tensors) and wins_here(name, tensors[0].dtype)


def _fits(name: str, sizes: tuple[int, int, int], least: int, tensors: tuple[Tensor, ...]) -> bool:
    dtype = tensors[0].dtype
    return (
        dtype in DTYPES
        and math.prod(sizes) >= least
        and min(sizes[:2]) >= THIN[name]
        and all(tensor.dtype is dtype for tensor in tensors)
        and (dtype is torch.bfloat16 or torch.get_float32_matmul_precision() == "highest")
    )


def may_take(tensor: Tensor) -> bool:
    """Whether some products of its dtype are made here."""
    if tensor.dtype not in DTYPES or not tensor.is_cpu:
        return False
    return any(wins_here(name, tensor.dtype) for name in PRODUCTS)


def wins_here(name: str, dtype: torch.dtype) -> bool:
    """wins on as many threads as torch uses now."""
    return wins(name, dtype, torch.get_num_threads())


@functools.cache
def wins(name: str, dtype: torch.dtype, threads: int) -> bool:
    """Whether float32 is clearly the faster here: measured, a tenth of a second."""
    here, by_aten = PRODUCTS[name]
    square = (256, 256)  # of 128 or less a thread that has only begun hides who is faster
    return clearly_faster(f"{name} in float32", here, by_aten, (square, square), dtype, threads)
