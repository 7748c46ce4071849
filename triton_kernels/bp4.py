"""BP4: grad_W C = delta^T a^{l-1}, summed over examples; added to a buffer if there is one."""

import triton
import triton.language as tl

from . import launch
from .bp1 import sums_dtype
from .bp3 import column_totals
from .operands import expect, row_major
from .tiles import load_tile, pointers, product, store_tile, tile_of

PLAIN = tl.constexpr(False)  # grad and into are pointers, whatever the operands are


@triton.jit(do_not_specialize=["M", "SPAN"])
def bp4_weight_gradient_kernel(
    delta, x,  # (M, N), (M, K)
    into,      # (N, K) or None: added; only without a split
    grad,      # out: (N, K), or (parts, N, K) sums over SPAN examples each
    M, N, K, SPAN, delta_stride, x_stride,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
    TMA: tl.constexpr, EVEN: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program makes a (BLOCK_N, BLOCK_K) tile of grad_W, contracting over SPAN examples."""
    tile_n, tile_k = tile_of(tl.program_id(0), tl.cdiv(N, BLOCK_N), tl.cdiv(K, BLOCK_K), GROUP)
    n, k, part = tile_n * BLOCK_N, tile_k * BLOCK_K, tl.program_id(1)
    first = part * SPAN
    last = min(first + SPAN, M)
    acc = tl.zeros((BLOCK_N, BLOCK_K), ACC)
    if TMA:
        for m in range(first, last, BLOCK_M):
            delta_tile, x_tile = delta.load([m, n]), x.load([m, k])
            acc = tl.dot(delta_tile.T, x_tile, acc, input_precision=PRECISION, out_dtype=ACC)
    else:
        row, column, m = n + tl.arange(0, BLOCK_N), k + tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_M)
        acc = product(
            acc,
            pointers(delta, first + m[None, :], row[:, None], delta_stride),
            pointers(x, first + m[:, None], column[None, :], x_stride),
            BLOCK_M * delta_stride, BLOCK_M * x_stride, row < N, column < K, first, last,
            BLOCK_M, EVEN, PRECISION,
        )  # fmt: skip
    if into is not None:
        acc += load_tile(into, n, k, N, K, K, BLOCK_N, BLOCK_K, PLAIN, EVEN).to(ACC)
    grad += part.to(tl.int64) * N * K
    store_tile(grad, acc.to(grad.dtype.element_ty), n, k, N, K, K, PLAIN, EVEN)


def bp4_weight_gradient(delta, x, into=None, *, tile=None):
    """BP4: grad_W C = delta^T a^{l-1}, summed over examples.  delta (M, N), x (M, K).

    into: (N, K); the result is added to it, in place. Returns (N, K).
    """
    (M, N), K = delta.shape, x.shape[1]
    expect("bp4_weight_gradient", x=(x, (M, K)), into=(into, (N, K)))
    if into is not None and not into.is_contiguous():
        return into.add_(bp4_weight_gradient(delta, x, tile=tile))
    delta, x = row_major(delta), row_major(x)
    tile = tile or launch.tile_for("bp4_weight_gradient", N, K, delta, x)
    tiles = launch.count(N, K, tile)
    parts, span = launch.split_for(M, tiles, tile, launch.machine_of(delta))
    if parts > 1:
        grad = delta.new_empty(parts, N * K, dtype=sums_dtype(delta.dtype))
    else:
        grad = delta.new_empty(N, K) if into is None else into
    launch.run(
        bp4_weight_gradient_kernel,
        (tiles, parts),
        {
            "delta": (delta, (tile.depth, tile.rows)),
            "x": (x, (tile.depth, tile.columns)),
            "into": into if parts == 1 else None,
        },
        {"grad": grad},
        tile,
        M=M, N=N, K=K, SPAN=span,
        EVEN=M % tile.depth == 0 and N % tile.rows == 0 and K % tile.columns == 0,
        BLOCK_M=tile.depth, BLOCK_N=tile.rows, BLOCK_K=tile.columns,
    )  # fmt: skip
    if parts == 1:
        return grad
    total = column_totals(grad, delta.dtype, into if into is None else into.view(-1))
    return total.view(N, K) if into is None else into
