"""BP3: grad_b C = sum over examples of delta: the column sums of rows, in a fixed order.

The rows come from BP1 or BP2, one per tile of delta, so that little is left to add. No atomics:
the same numbers are added in the same order on every run.
"""

import triton
import triton.language as tl

from . import launch
from .operands import row_major


@triton.jit(do_not_specialize=["R"])
def bp3_bias_gradient_kernel(
    rows, into, total,  # (R, N), (N,) or None, out: (N,)
    R, N, rows_stride, ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program adds up BLOCK_N columns, BLOCK_R rows at a time."""
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    sums = tl.zeros((BLOCK_R, BLOCK_N), ACC)
    for start in range(0, R, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        inside = (r < R)[:, None] & (n < N)[None, :]
        part = tl.load(rows + r[:, None].to(tl.int64) * rows_stride + n, mask=inside, other=0.0)
        sums += part.to(ACC)
    result = tl.sum(sums, 0)
    if into is not None:
        result += tl.load(into + n, mask=n < N, other=0.0).to(ACC)
    tl.store(total + n, result.to(total.dtype.element_ty), mask=n < N)


def column_totals(rows, dtype=None, into=None):
    """The column sums of rows (R, N), plus into (N,), which they overwrite.  Returns (N,)."""
    rows = row_major(rows)
    R, N = rows.shape
    total = rows.new_empty(N, dtype=dtype or rows.dtype) if into is None else into
    block_r, block_n = launch.FOLD
    launch.run(
        bp3_bias_gradient_kernel, (launch.cdiv(N, block_n),),
        {"rows": rows, "into": into}, {"total": total}, R=R, N=N, BLOCK_R=block_r, BLOCK_N=block_n,
    )  # fmt: skip
    return total


def bp3_bias_gradient(rows, dtype=None):
    """BP3: grad_b C = sum over examples of delta.  rows (any, N).  Returns (N,) in dtype."""
    return column_totals(rows, dtype)
