"""BP1: delta^L = grad_a C * sigma'(z^L), with BP3's column sums in the same pass.

The pass also serves BP2 behind a product that another library made: there the adjoint is
delta^{l+1} W^{l+1}, and a^l is re-derived from z^l while that is in registers.
"""

import torch
import triton
import triton.language as tl

from . import launch
from .device_math import device_function
from .forward import sigma_of
from .operands import expect, row_major


@triton.jit(do_not_specialize=["M", "SPAN"])
def sigma_prime_pass_kernel(
    adjoint, s,      # (M, N): dC/da; z or a as kept, None for the identity
    skip_z,          # (M, N): the adjoint that other successors of z send, or None
    delta, rows, a,  # out: (M, N) or None; (cdiv(M, SPAN), N) sums; (M, N) or None
    M, N, SPAN, adjoint_stride, adjoint_step, s_stride, skip_z_stride, delta_stride,
    SIGMA_PRIME: tl.constexpr,  # device function of s; None: the identity
    SIGMA: tl.constexpr,
    ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program walks SPAN rows of BLOCK_N columns and sums them in registers as it goes."""
    chunk = tl.program_id(1)
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    first = chunk * SPAN
    last = min(first + SPAN, M)
    sums = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for start in range(first, last, BLOCK_M):
        m = (start + tl.arange(0, BLOCK_M))[:, None]
        inside = (m < last) & (n < N)
        row, column = m.to(tl.int64), n.to(tl.int64)
        value = tl.load(
            adjoint + row * adjoint_stride + column * adjoint_step, mask=inside, other=0.0
        ).to(ACC)
        if s is not None:
            kept = tl.load(s + row * s_stride + n, mask=inside, other=0.0).to(ACC)
            value = tl.where(inside, value * SIGMA_PRIME(kept), 0.0)
            if a is not None:
                tl.store(a + row * N + n, SIGMA(kept).to(a.dtype.element_ty), mask=inside)
        if skip_z is not None:
            value += tl.load(skip_z + row * skip_z_stride + n, mask=inside, other=0.0).to(ACC)
        if delta is not None:
            tl.store(delta + row * delta_stride + n, value.to(delta.dtype.element_ty), mask=inside)
        sums += value
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    tl.store(rows + chunk.to(tl.int64) * N + column, tl.sum(sums, 0), mask=column < N)


def prime_of(act, dtype):
    """The device's sigma' for an activation, None for the identity; fast for 16-bit results."""
    return None if act.is_identity else device_function(act.sigma_prime, dtype.itemsize == 2)


def sums_dtype(dtype):
    """Column sums are kept in float32, or float64 where that is what is summed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def sigma_prime_pass(adjoint, s, act, with_a=False, skip_z=None, in_place=False):
    """delta = adjoint * sigma'(s) + skip_z, and its column sums, in one pass.

    adjoint, s (M, N); skip_z (M, N) or None: the adjoint that other successors of z send.
    in_place: delta overwrites the adjoint, which must be the caller's own, if it is row-major.
    Returns (delta, rows, a), a re-derived from s if with_a, else None.
    """
    M, N = adjoint.shape
    kept = None if act.is_identity else row_major(s)
    skip_z = None if skip_z is None else row_major(skip_z)
    expect("sigma_prime_pass", s=(kept, (M, N)), skip_z=(skip_z, (M, N)))
    unchanged = act.is_identity and skip_z is None  # nothing to write: delta is the adjoint
    in_place = in_place and adjoint.stride(1) == 1
    delta = adjoint if in_place or unchanged else adjoint.new_empty(M, N)
    a = s.new_empty(M, N) if with_a and act.hides_z else None
    span = launch.chunk_rows(M, N, launch.machine_of(adjoint))
    rows = adjoint.new_empty(launch.cdiv(M, span), N, dtype=sums_dtype(adjoint.dtype))
    block_m, block_n = launch.ELEMENTWISE
    launch.run(
        sigma_prime_pass_kernel,
        (launch.cdiv(N, block_n), rows.shape[0]),
        {"adjoint": adjoint, "s": kept, "skip_z": skip_z},
        {"delta": None if unchanged else delta, "rows": rows, "a": a},
        M=M, N=N, SPAN=span,
        SIGMA_PRIME=prime_of(act, adjoint.dtype),
        SIGMA=None if a is None else sigma_of(act, a.dtype),
        BLOCK_M=block_m, BLOCK_N=block_n,
    )  # fmt: skip
    return delta, rows, (s if with_a and a is None else a)


def bp1_output_error(grad_a, s, act):
    """BP1: delta^L = grad_a C * sigma'(z^L).  grad_a, s (M, N).  Returns (delta, rows)."""
    return sigma_prime_pass(grad_a, s, act)[:2]
