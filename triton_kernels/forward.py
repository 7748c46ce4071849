"""The forward pass of a layer: a = sigma(x W^T + b + skip), sigma in the product's epilogue."""

import torch
import triton
import triton.language as tl

from . import launch
from .device_math import device_function
from .operands import expect, row_major
from .tiles import halves, load_tile, pointers, product, store_tile, tile_of


@triton.jit
def _activate(acc, bias, skip, z, a, m, n, M, N, skip_stride, SIGMA: tl.constexpr,
              DTYPE: tl.constexpr, TMA: tl.constexpr, EVEN: tl.constexpr):  # fmt: skip
    """The epilogue: a tile of x W^T, whose first element is (m, n), becomes tiles of z and a."""
    if bias is not None:
        column = n + tl.arange(0, acc.shape[1])
        acc += tl.load(bias + column, mask=column < N, other=0.0).to(acc.dtype)[None, :]
    if skip is not None:
        brought = load_tile(skip, m, n, M, N, skip_stride, acc.shape[0], acc.shape[1], TMA, EVEN)
        acc += brought.to(acc.dtype)  # before z is rounded, so once
    if z is not None:
        rounded = acc.to(DTYPE)
        store_tile(z, rounded, m, n, M, N, N, TMA, EVEN)
        acc = rounded.to(acc.dtype)  # a is the output of the z that backward will read
    if SIGMA is not None:
        acc = SIGMA(acc)
    store_tile(a, acc.to(DTYPE), m, n, M, N, N, TMA, EVEN)


@triton.jit(do_not_specialize=["M"])
def linear_act_forward_kernel(
    x, weight, bias,  # (M, K), (N, K), (N,) or None
    skip,             # (M, N): what a skip connection brings to z, or None
    z, a,             # out: (M, N) each; z None where nobody reads it
    M, N, K, x_stride, weight_stride, skip_stride,
    SIGMA: tl.constexpr,  # device function of z; None: the identity
    DTYPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    TMA: tl.constexpr, EVEN: tl.constexpr, SUBTILES: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program makes a (BLOCK_M, BLOCK_N) tile of a^l, contracting over the inputs."""
    tile_m, tile_n = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP)
    m, n = tile_m * BLOCK_M, tile_n * BLOCK_N
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    if TMA:
        for k in range(0, K, BLOCK_K):
            x_tile, weight_tile = x.load([m, k]), weight.load([n, k])
            acc = tl.dot(x_tile, weight_tile.T, acc, input_precision=PRECISION, out_dtype=ACC)
    else:
        row, column, k = m + tl.arange(0, BLOCK_M), n + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
        acc = product(
            acc,
            pointers(x, row[:, None], k[None, :], x_stride),
            pointers(weight, column[None, :], k[:, None], weight_stride),
            BLOCK_K, BLOCK_K, row < M, column < N, 0, K, BLOCK_K, EVEN, PRECISION,
        )  # fmt: skip
    if SUBTILES == 2:
        left, right = halves(acc)
        _activate(left, bias, skip, z, a, m, n, M, N, skip_stride, SIGMA, DTYPE, TMA, EVEN)
        _activate(right, bias, skip, z, a, m, n + BLOCK_N // 2, M, N, skip_stride, SIGMA, DTYPE,
                  TMA, EVEN)  # fmt: skip
    else:
        _activate(acc, bias, skip, z, a, m, n, M, N, skip_stride, SIGMA, DTYPE, TMA, EVEN)


def sigma_of(act, dtype):
    """The device's sigma for an activation, None for the identity; fast for 16-bit results."""
    return None if act.is_identity else device_function(act.sigma, dtype.itemsize == 2)


def linear_act_forward(x, weight, bias, act, skip=None, with_z=False, *, tile=None):
    """a = sigma(x W^T + b + skip).  x (M, K), weight (N, K); bias (N,), skip (M, N), or None.

    Returns (a, s), or (a, z) if with_z: z is then written even where sigma' is written in a.
    """
    x, weight = row_major(x), row_major(weight)
    skip = None if skip is None else row_major(skip)
    (M, K), N = x.shape, weight.shape[0]
    expect("linear_act_forward", weight=(weight, (N, K)), bias=(bias, (N,)), skip=(skip, (M, N)))
    a = x.new_empty(M, N)
    z = torch.empty_like(a) if (with_z or act.hides_z) and not act.is_identity else None
    tile = tile or launch.tile_for("linear_act_forward", M, N, x, weight, a, skip)
    tile = tile if skip is None else launch.halved(tile)
    part = (tile.rows, tile.columns // tile.subtiles)
    launch.run(
        linear_act_forward_kernel,
        (launch.count(M, N, tile),),
        {
            "x": (x, (tile.rows, tile.depth)),
            "weight": (weight, (tile.columns, tile.depth)),
            "bias": bias if bias is None else bias.contiguous(),
            "skip": (skip, part),
        },
        {"z": (z, part), "a": (a, part)},
        tile,
        M=M, N=N, K=K, SIGMA=sigma_of(act, x.dtype), SUBTILES=tile.subtiles,
        EVEN=M % tile.rows == 0 and N % tile.columns == 0 and K % tile.depth == 0,
        BLOCK_M=tile.rows, BLOCK_N=tile.columns, BLOCK_K=tile.depth,
    )  # fmt: skip
    return a, (a if z is None else z)


@triton.jit
def sigma_pass_kernel(z, a, SIZE, SIGMA: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """a = sigma(z), elementwise; behind a product that another library made."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = SIGMA(tl.load(z + i, mask=i < SIZE, other=0.0).to(ACC))
    tl.store(a + i, value.to(a.dtype.element_ty), mask=i < SIZE)


def sigma_pass(z, act, out=None):
    """a = sigma(z) in one pass over memory.  z of any shape.

    out: where a goes, z itself if the caller owns it; it is ignored unless both are contiguous.
    Returns a.
    """
    if act.is_identity:
        return z
    expect("sigma_pass", out=(out, tuple(z.shape)))
    owned = out is not None and out.is_contiguous() and z.is_contiguous()
    z = z.contiguous()
    a = out if owned else torch.empty_like(z)
    block = launch.ELEMENTWISE[0] * launch.ELEMENTWISE[1]
    launch.run(
        sigma_pass_kernel, (launch.cdiv(z.numel(), block),), {"z": z}, {"a": a},
        SIZE=z.numel(), SIGMA=sigma_of(act, z.dtype), BLOCK=block,
    )  # fmt: skip
    return a


def output(s, act):
    """a^l from s^l, as kept."""
    return sigma_pass(s, act) if act.hides_z else s
