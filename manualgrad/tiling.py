"""A chain on a CPU in tiles of rows: all its layers on some examples while those are in cache.

Examples do not meet before BP3 and BP4, which sum over them. So the walks of manualgrad.walks may
take some rows after others: what is kept is written into whole matrices, and the gradients of
parameters are summed over tiles, as they are over the uses of a shared parameter. Results differ
from those of one walk by the rounding of sums in another order, and by nothing else.

Where all rows walk together, each layer's output has left the cache when the next one reads it,
and each error when BP3 and BP4 do. In tiles only what backward keeps goes to memory; with recompute
not even that.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from manualgrad import aten, compat, in_place
from manualgrad.chain import Chain
from manualgrad.gates import all_beside, chosen, walked
from manualgrad.keeping import kept_for_backward, plain_on_cpu, unpacked
from manualgrad.walks import Adjoints, backward_pass

ENTRIES = 1 << 18  # of the widest activation in a tile: a megabyte in float32
LEAST_ROWS = 512  # a product of fewer rows is slow for its size
WIDEST = 512  # wider layers are bound by their products, whose weights would be read per tile
MUCH = 48 << 20  # bytes of activations, all layers' together: with recompute tiles save those
SHARED = 128 << 20  # bytes: a larger cache has other users as well
DTYPES = (torch.float32, torch.float64)  # 16-bit products are too fast for the passes to count


def _stays_in_cache(told: str = "/sys/devices/system/cpu/cpu0/cache/index3/size") -> int:
    """Bytes of activations, all layers' together, that stay in the last cache as they are.

    Measured: beyond 48 MiB tiles pay where it has 32 MiB, and at 192 MiB, but not at 64 MiB, where
    it has 260 MiB.
    """
    try:
        with open(told) as file:
            size = int(file.read().strip().removesuffix("K")) << 10
    except (OSError, ValueError):  # no Linux, or no third cache
        size = 32 << 20
    return min(3 * size // 2, SHARED)


CACHE = max(MUCH, _stays_in_cache())


def rows_at_once(chain: Chain, x: Tensor, tensors: Sequence[Any]) -> int:
    """How many rows of x (M, K) a tile has; 0 where the chain takes all of them together."""
    if torch.compiler.is_compiling() or compat.transforms_active() or chain.depth < 2:
        return 0
    M, size, enough = x.shape[0], x.element_size(), MUCH if chain.recompute else CACHE
    if M < 2 * LEAST_ROWS or M * WIDEST * chain.depth * size < enough or x.dtype not in DTYPES:
        return 0
    if not plain_on_cpu(x, tensors):
        return 0
    widths = [tensors[weight_at].shape[0] for weight_at, _ in chain.slots[1:]]
    widest = max(x.shape[1], *widths)
    if widest > WIDEST or M * sum(widths) * size < enough:
        return 0
    rows = max(LEAST_ROWS, ENTRIES // widest)
    return rows if 2 * rows <= M else 0


def prepared(chain: Chain, x: Tensor, tensors: Sequence[Any]) -> Chain:
    """The chain as these tensors are best walked on a CPU, outside of torch.func.  x (M, K)."""
    rows, (beside, if_finite) = rows_at_once(chain, x, tensors), chosen(chain, x, tensors)
    if not (rows or beside or if_finite):
        return chain
    return chain.but(rows=rows, beside=beside, acts_if_finite=if_finite)


def forward(chain: Chain, x: Tensor, tensors: Sequence[Any], hidden: bool) -> tuple[Tensor, ...]:
    """forward_pass, in tiles where that pays."""
    rows = chain.rows
    if not rows:
        whole, chain.finite = walked(chain, x, tensors, hidden)
        return whole
    whole: tuple[Tensor, ...] = ()
    finite = True
    for first in range(0, x.shape[0], rows):
        part, part_finite = walked(chain, x[first : first + rows], tensors, hidden)
        finite = finite and part_finite
        whole = whole or tuple(tile.new_empty(x.shape[0], tile.shape[1]) for tile in part)
        for matrix, tile in zip(whole, part, strict=True):
            matrix[first : first + rows] = tile
    chain.finite = finite
    return whole


def takes(grad_a: Any, grad_hidden: Sequence[Any]) -> bool:
    """Whether what arrives at a chain is one plain matrix, to be walked down in tiles."""
    if torch.compiler.is_compiling() or any(grad is not None for grad in grad_hidden):
        return False
    return type(grad_a) is Tensor and grad_a.device.type == "cpu" and compat.has_memory(grad_a)


def backward(
    chain: Chain, saved: list[Any], needs: Sequence[bool], grad_a: Tensor, over: bool = False
) -> list[Tensor | None]:
    """backward_pass over tiles of chain.rows rows.  grad_a (M, N_L).

    saved: x and the chain's tensors with recompute, else what kept_for_backward chose. Where a tile
    walks forward again, it keeps each a^l beside z^l: both are in cache. over: grad_a may be
    written over; by the gradient of x, tile after tile, if that has its shape.
    Returns the gradients of x and of each tensor.
    """
    M, rows, count, recompute = grad_a.shape[0], chain.rows, len(needs) - 1, chain.recompute
    if recompute:
        chain = chain.but(recompute=False, beside=all_beside(chain))
    grad_x: Any = None
    grads: list[Tensor | None] = [None] * count
    for first in range(0, M, rows):
        at = slice(first, first + rows)
        if recompute:
            x, tensors = saved[0][at], saved[1:]
            output, _ = walked(chain, x, tensors, hidden=True)
            tile = kept_for_backward(chain, x, tensors, output, needs)
        else:
            tile = saved[:count] + [None if one is None else one[at] for one in saved[count:]]
        sent = Adjoints(chain, grad_a[at], ())
        tensors, s, a_kept = unpacked(chain, tile, count)
        ops = in_place if recompute else aten
        below, *grads = backward_pass(ops, chain, tensors, s, a_kept, needs, sent, grads=grads)
        if below is not None:
            if grad_x is None:
                fits = over and below.dtype is grad_a.dtype and below.shape[1] == grad_a.shape[1]
                grad_x = grad_a.detach() if fits else below.new_empty(M, below.shape[1])
            grad_x[at] = below
    return [grad_x, *grads]
