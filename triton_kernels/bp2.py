"""BP2: delta^l = (delta^{l+1} W^{l+1}) * sigma'(z^l), with BP3's column sums in its epilogue."""

import torch
import triton
import triton.language as tl

from . import launch
from .bp1 import prime_of, sums_dtype
from .forward import sigma_of
from .operands import expect, row_major
from .tiles import column_sums, halves, load_tile, pointers, product, store_tile, tile_of


@triton.jit
def _propagate(acc, s, skip, skip_z, below, rows, a, tile_m, m, k, M, K, s_stride, skip_stride,
               skip_z_stride, SIGMA_PRIME: tl.constexpr, SIGMA: tl.constexpr, DTYPE: tl.constexpr,
               TMA: tl.constexpr, EVEN: tl.constexpr):  # fmt: skip
    """The epilogue: a tile of delta^{l+1} W^{l+1}, first element (m, k), becomes delta^l's."""
    if skip is not None:  # eq. 13: adjoints are summed over successors, here those of a^l
        sent = load_tile(skip, m, k, M, K, skip_stride, acc.shape[0], acc.shape[1], TMA, EVEN)
        acc += sent.to(acc.dtype)
    if s is not None:
        kept = load_tile(s, m, k, M, K, s_stride, acc.shape[0], acc.shape[1], TMA, EVEN)
        kept = kept.to(acc.dtype)
        acc *= SIGMA_PRIME(kept)
        if a is not None:
            store_tile(a, SIGMA(kept).to(DTYPE), m, k, M, K, K, TMA, EVEN)
    if skip_z is not None:  # and here those of z^l
        sent = load_tile(skip_z, m, k, M, K, skip_z_stride, acc.shape[0], acc.shape[1], TMA, EVEN)
        acc += sent.to(acc.dtype)
    store_tile(below, acc.to(DTYPE), m, k, M, K, K, TMA, EVEN)
    if not EVEN:
        acc = tl.where((m + tl.arange(0, acc.shape[0]) < M)[:, None], acc, 0.0)
    column = k + tl.arange(0, acc.shape[1])
    tl.store(rows + tile_m.to(tl.int64) * K + column, column_sums(acc, DTYPE), mask=column < K)


@triton.jit(do_not_specialize=["M"])
def bp2_propagate_error_kernel(
    delta, weight,   # (M, N), (N, K): layer l+1's
    s, skip, skip_z, # (M, K): z^l or a^l as kept, None for the identity; adjoints or None
    below, rows, a,  # out: delta^l (M, K); (cdiv(M, BLOCK_M), K) sums; a^l (M, K) or None
    M, N, K, delta_stride, weight_stride, s_stride, skip_stride, skip_z_stride,
    SIGMA_PRIME: tl.constexpr,  # device function of s; None: the identity
    SIGMA: tl.constexpr,
    DTYPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    TMA: tl.constexpr, EVEN: tl.constexpr, SUBTILES: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program makes a (BLOCK_M, BLOCK_K) tile of delta^l, contracting over layer l+1."""
    tile_m, tile_k = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(K, BLOCK_K), GROUP)
    m, k = tile_m * BLOCK_M, tile_k * BLOCK_K
    acc = tl.zeros((BLOCK_M, BLOCK_K), ACC)
    if TMA:
        for n in range(0, N, BLOCK_N):
            delta_tile, weight_tile = delta.load([m, n]), weight.load([n, k])
            acc = tl.dot(delta_tile, weight_tile, acc, input_precision=PRECISION, out_dtype=ACC)
    else:
        row, column, n = m + tl.arange(0, BLOCK_M), k + tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_N)
        acc = product(
            acc,
            pointers(delta, row[:, None], n[None, :], delta_stride),
            pointers(weight, n[:, None], column[None, :], weight_stride),
            BLOCK_N, BLOCK_N * weight_stride, row < M, column < K, 0, N, BLOCK_N, EVEN, PRECISION,
        )  # fmt: skip
    if SUBTILES == 2:
        left, right = halves(acc)
        _propagate(left, s, skip, skip_z, below, rows, a, tile_m, m, k, M, K, s_stride,
                   skip_stride, skip_z_stride, SIGMA_PRIME, SIGMA, DTYPE, TMA, EVEN)  # fmt: skip
        _propagate(right, s, skip, skip_z, below, rows, a, tile_m, m, k + BLOCK_K // 2, M, K,
                   s_stride, skip_stride, skip_z_stride, SIGMA_PRIME, SIGMA, DTYPE, TMA,
                   EVEN)  # fmt: skip
    else:
        _propagate(acc, s, skip, skip_z, below, rows, a, tile_m, m, k, M, K, s_stride,
                   skip_stride, skip_z_stride, SIGMA_PRIME, SIGMA, DTYPE, TMA, EVEN)  # fmt: skip


def bp2_propagate_error(delta, weight, s, act, skip=None, with_a=True, skip_z=None, *, tile=None):
    """BP2: delta^l = (delta^{l+1} W^{l+1} + skip) * sigma'(z^l) + skip_z.

    delta (M, N) and weight (N, K) are layer l+1's; s (M, K) and act are layer l's. skip, skip_z
    (M, K) or None: the adjoints that other successors of a^l and of z^l send. Returns
    (delta^l, rows, a^l), a^l re-derived if with_a.
    """
    delta, weight = row_major(delta), row_major(weight)
    kept = None if act.is_identity else row_major(s)
    skip, skip_z = (t if t is None else row_major(t) for t in (skip, skip_z))
    (M, N), K = delta.shape, weight.shape[1]
    below_shape = {"s": (kept, (M, K)), "skip": (skip, (M, K)), "skip_z": (skip_z, (M, K))}
    expect("bp2_propagate_error", weight=(weight, (N, K)), **below_shape)
    below = delta.new_empty(M, K)
    a = torch.empty_like(below) if with_a and act.hides_z else None
    read = delta, weight, below, kept, skip, skip_z
    tile = tile or launch.tile_for("bp2_propagate_error", M, K, *read)
    rows = below.new_empty(launch.cdiv(M, tile.rows), K, dtype=sums_dtype(delta.dtype))
    part = (tile.rows, tile.columns // tile.subtiles)
    launch.run(
        bp2_propagate_error_kernel,
        (launch.count(M, K, tile),),
        {
            "delta": (delta, (tile.rows, tile.depth)),
            "weight": (weight, (tile.depth, tile.columns)),
            "s": (kept, part),
            "skip": (skip, part),
            "skip_z": (skip_z, part),
        },
        {"below": (below, part), "rows": rows, "a": (a, part)},
        tile,
        M=M, N=N, K=K, SUBTILES=tile.subtiles,
        SIGMA_PRIME=prime_of(act, delta.dtype),
        SIGMA=None if a is None else sigma_of(act, a.dtype),
        EVEN=M % tile.rows == 0 and N % tile.depth == 0 and K % tile.columns == 0,
        BLOCK_M=tile.rows, BLOCK_N=tile.depth, BLOCK_K=tile.columns,
    )  # fmt: skip
    return below, rows, (s if with_a and a is None else a)
