"""Products of bfloat16 and float16 in float32, on CPUs that have no instructions for them.

There ATen multiplies number by number, and takes up to eighty times as long as in float32 (measured
on an AMD EPYC with AVX2 alone). Here blocks of the factors become float32, MKL multiplies them, and
each sum is rounded once. Products of two such numbers are exact in float32, so that a sum errs no
more than ATen's does. Which is faster here is measured for each of the three products, once per
process, dtype and number of threads, on first need.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from manualgrad import compat
from manualgrad.measuring import clearly_faster

DTYPES = frozenset((torch.bfloat16, torch.float16))
LEAST = 1 << 17  # multiplications: of fewer, the conversions cost more than they save
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
    height, width, terms = _sides(M, N, K)
    bias = bias if bias is None else bias.float()
    if into is None and height >= M and width >= N:
        return _in_float32(left, right, bias, terms).to(left.dtype)
    add, result = into is not None, left.new_empty(M, N) if into is None else into
    right_blocks = right.split(width)
    biases = [None] * len(right_blocks) if bias is None else bias.split(width)
    for rows, some in zip(result.split(height), left.split(height), strict=True):
        blocks = zip(rows.split(width, 1), right_blocks, biases, strict=True)
        for block, right_block, of_block in blocks:
            block.copy_(_in_float32(some, right_block, of_block, terms, block if add else None))
    return result


def _in_float32(
    left: Tensor, right: Tensor, bias: Tensor | None, terms: int, addend: Tensor | None = None
) -> Tensor:
    """left right^T + bias + addend, so many terms at a time."""
    first, *others = zip(left.split(terms, 1), right.split(terms, 1), strict=True)
    total = F.linear(first[0].float(), first[1].float(), bias)
    for a, b in others:
        total.addmm_(a.float(), b.float().t())
    return total if addend is None else total.add_(addend)


def _sides(*sizes: int) -> list[int]:
    """Of a block of an (M, N, K) product: the longest is as long as ENTRIES allow."""
    sides = [min(size, SIDE) for size in sizes]
    longest = sizes.index(max(sizes))
    sides[longest] = ENTRIES // max(side for i, side in enumerate(sides) if i != longest)
    return sides


# of the two tensors that manualgrad.products names so: (here, by ATen)
PRODUCTS = {
    "linear": (product, F.linear),
    "error_below": (lambda delta, weight: product(delta, weight.t()), torch.mm),
    "weight_gradient": (
        lambda delta, a: product(delta.t(), a.t()),
        lambda delta, a: delta.t().mm(a),
    ),
}


def takes(name: str, multiplications: int, *tensors: Tensor) -> bool:
    """Whether that one of PRODUCTS is made here. Tensors of several dtypes ATen is to refuse."""
    dtype = tensors[0].dtype
    return (
        dtype in DTYPES
        and multiplications >= LEAST
        and all(tensor.dtype is dtype for tensor in tensors)
        and compat.readable(*tensors)
        and wins_here(name, dtype)
    )


def wins_here(name: str, dtype: torch.dtype) -> bool:
    """wins on as many threads as torch uses now."""
    return wins(name, dtype, torch.get_num_threads())


@functools.cache
def wins(name: str, dtype: torch.dtype, threads: int) -> bool:
    """Whether float32 is clearly the faster here: measured, some hundredths of a second."""
    here, by_aten = PRODUCTS[name]
    square = (128, 128)
    return clearly_faster(f"{name} in float32", here, by_aten, (square, square), dtype, threads)
