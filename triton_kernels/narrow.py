"""A narrow chain in two kernels: all layers forward in one, all of backward in the other.

Where layers have few neurons, a chain's time is that of its activations' way to memory and back.
Here a program holds some examples and all weights, and walks l = 1..L with nothing in between. Only
the input is kept: backward walks forward again, then BP1, and per layer BP4, BP3 and BP2, on tiles.
Where layers are too wide for that, forward writes what backward, layer by layer, wants to read.

Sums over examples are made in a fixed order: each program adds up its own examples', in a part of a
buffer that nobody else touches, and the parts are added at the end.
"""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportAttributeAccessIssue=false
# Triton's own: a range of the compiler's, and constants that are compiled in

import triton
import triton.language as tl

from .tiles import halves


@triton.jit
def _block(matrix, rows, columns, stride, R: tl.constexpr, C: tl.constexpr):
    """A small matrix as one tile, zero beyond its edges."""
    row, column = tl.arange(0, R)[:, None], tl.arange(0, C)[None, :]
    inside = (row < rows) & (column < columns)
    return tl.load(matrix + row * stride + column, mask=inside, other=0.0)


@triton.jit
def _weights(weights, strides, L: tl.constexpr, SIZES: tl.constexpr, PADDED: tl.constexpr,
             SAME: tl.constexpr):  # fmt: skip
    """W^1..W^L, each read once: they stay on the chip while a program walks over its examples."""
    tiles = ()
    for l in tl.static_range(L):
        if SAME[l] < l:
            tiles = tiles + (tiles[SAME[l]],)
        else:
            tiles = tiles + (
                _block(weights[l], SIZES[l + 1], SIZES[l], strides[l], PADDED[l + 1], PADDED[l]),
            )
    return tiles


@triton.jit
def _examples(matrix, row, N: tl.constexpr, stride, PADDED_N: tl.constexpr):
    """Rows of a matrix, zero in the columns beyond its edge."""
    column = tl.arange(0, PADDED_N)[None, :]
    at = matrix + row.to(tl.int64)[:, None] * stride + column
    return tl.load(at, mask=column < N, other=0.0)


@triton.jit
def _write_examples(matrix, tile, row, M, N: tl.constexpr, stride, PADDED_N: tl.constexpr):
    """Rows of a matrix, where they and their columns lie inside."""
    column = tl.arange(0, PADDED_N)[None, :]
    at = matrix + row.to(tl.int64)[:, None] * stride + column
    tl.store(at, tile, mask=(row < M)[:, None] & (column < N))


@triton.jit
def _sigma(z, SIGMA: tl.constexpr, ACC: tl.constexpr):
    """sigma(z), rounded. Of a wide tile one half after the other, for want of registers."""
    if z.shape[1] > 64:
        left, right = halves(z)
        left = SIGMA(left.to(ACC)).to(z.dtype)
        tl.debug_barrier()  # else the compiler mixes the two
        right = SIGMA(right.to(ACC)).to(z.dtype)
        sigma = tl.reshape(tl.permute(tl.join(left, right), (0, 2, 1)), z.shape)
    else:
        sigma = SIGMA(z.to(ACC)).to(z.dtype)
    return sigma


@triton.jit
def _layer(zs, activations, weight, bias, l: tl.constexpr, SIZES: tl.constexpr,
           PADDED: tl.constexpr, SIGMA: tl.constexpr, KIND: tl.constexpr, START: tl.constexpr,
           SCALE: tl.constexpr, DTYPE: tl.constexpr, ACC: tl.constexpr,
           PRECISION: tl.constexpr):  # fmt: skip
    """(z^l, sigma(z^l), a^l) from all those below, each rounded as a tensor of DTYPE would be."""
    acc = tl.dot(activations[l - 1], tl.trans(weight), input_precision=PRECISION, out_dtype=ACC)
    if bias is not None:
        n = tl.arange(0, PADDED[l])
        acc += tl.load(bias + n, mask=n < SIZES[l], other=0.0).to(ACC)[None, :]
    if KIND[l] == "pre":
        acc = zs[START[l]].to(ACC) + SCALE[l] * acc
    elif KIND[l] == "post":
        acc = activations[START[l]].to(ACC) + SCALE[l] * acc
    z = acc.to(DTYPE)
    sigma = z
    if SIGMA[l] is not None:
        sigma = _sigma(z, SIGMA[l], ACC)
    a = sigma
    if KIND[l] == "out":
        a = (activations[START[l]].to(ACC) + SCALE[l] * sigma.to(ACC)).to(DTYPE)
    return z, sigma, a


@triton.jit
def _stashed(scratch, number: tl.constexpr, WIDEST: tl.constexpr, ROWS: tl.constexpr,
             COLUMNS: tl.constexpr):  # fmt: skip
    """Where a program's tile of that number stands in its scratch memory."""
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return scratch + number * ROWS * WIDEST + at


@triton.jit
def _forward(first, tiles, biases, scratch, s_hidden, a_hidden, row, M, L: tl.constexpr,
             SIZES: tl.constexpr, PADDED: tl.constexpr, WIDEST: tl.constexpr, SIGMA: tl.constexpr,
             OF_A: tl.constexpr, KIND: tl.constexpr, START: tl.constexpr, SCALE: tl.constexpr,
             DTYPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """(s^0..s^L, a^0..a^L) of some examples.

    Put down in scratch as well, if there is one, and in the matrices of s_hidden and a_hidden.
    """
    zs, kept, activations = (first,), (first,), (first,)
    for l in tl.static_range(1, L + 1):
        z, sigma, above = _layer(zs, activations, tiles[l - 1], biases[l - 1], l, SIZES, PADDED,
                                 SIGMA, KIND, START, SCALE, DTYPE, ACC, PRECISION)  # fmt: skip
        zs, activations = zs + (z,), activations + (above,)
        kept = kept + (sigma if OF_A[l] else z,)
        if scratch is not None and l < L:
            tl.store(_stashed(scratch, 2 * l, WIDEST, first.shape[0], PADDED[l]), kept[l])
            tl.store(_stashed(scratch, 2 * l + 1, WIDEST, first.shape[0], PADDED[l]), above)
        if s_hidden[l] is not None:
            _write_examples(s_hidden[l], kept[l], row, M, SIZES[l], SIZES[l], PADDED[l])
        if a_hidden[l] is not None:
            _write_examples(a_hidden[l], above, row, M, SIZES[l], SIZES[l], PADDED[l])
    return kept, activations


@triton.jit(do_not_specialize=["M"])
def narrow_forward_kernel(
    x, weights, biases,  # (M, K); tuples of W^l (N_l, N_{l-1}) and b^l (N_l,), or None
    a,                   # out: (M, N_L)
    s_hidden, a_hidden,  # out: of each layer 0..L (M, N_l), what sigma' is written in and a^l; None
    M, x_stride, a_stride, strides, PROGRAMS,
    L: tl.constexpr, SIZES: tl.constexpr, PADDED: tl.constexpr,
    SAME: tl.constexpr,  # the first layer, from 0, with the same weight: its own, or one it shares
    SIGMA: tl.constexpr, OF_A: tl.constexpr,  # sigma' is written in a, not in z
    KIND: tl.constexpr, START: tl.constexpr, SCALE: tl.constexpr,
    DTYPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """One program walks over every PROGRAMS-th tile of examples, through all layers."""
    tiles = _weights(weights, strides, L, SIZES, PADDED, SAME)
    for tile in tl.range(tl.program_id(0), tl.cdiv(M, BLOCK_M), PROGRAMS, num_stages=1,
                         disable_licm=True):  # fmt: skip
        row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        first = _examples(x, tl.minimum(row, M - 1), SIZES[0], x_stride, PADDED[0])
        _, activations = _forward(first, tiles, biases, None, s_hidden, a_hidden, row, M, L, SIZES,
                                  PADDED, PADDED[0], SIGMA, OF_A, KIND, START, SCALE, DTYPE, ACC,
                                  PRECISION)  # fmt: skip
        _write_examples(a, activations[L], row, M, SIZES[L], a_stride, PADDED[L])


@triton.jit
def _add_gradients(parts, delta, a, bias, l: tl.constexpr, OFFSETS: tl.constexpr,
                   ACC: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """BP4 and BP3 of a tile: delta^T a and the sums of delta, added to a program's own part.

    delta (BLOCK_M, N) is rounded as the tensor would be that BP3 and BP4 read; a (BLOCK_M, K). The
    bias's sums stand behind the weight's products; they are a product with ones, for a reduction
    across threads would cost more.
    """
    N: tl.constexpr = delta.shape[1]
    K: tl.constexpr = a.shape[1]
    part = parts + OFFSETS[l]
    at = part + tl.arange(0, N)[:, None] * K + tl.arange(0, K)[None, :]
    products = tl.dot(tl.trans(delta), a, tl.load(at), input_precision=PRECISION, out_dtype=ACC)
    tl.store(at, products)
    if bias is not None:
        if delta.dtype.primitive_bitwidth == 16:
            ones = tl.full((16, delta.shape[0]), 1.0, delta.dtype)
            sums = tl.sum(tl.dot(ones, delta, out_dtype=ACC), 0) * 0.0625  # 16 equal rows
        else:
            sums = tl.sum(delta.to(ACC), 0)
        behind = part + N * K + tl.arange(0, N)
        tl.store(behind, tl.load(behind) + sums)


@triton.jit
def _sent(adjoint, sent, l: tl.constexpr, L: tl.constexpr, KIND: tl.constexpr,
          START: tl.constexpr, OF_Z: tl.constexpr):  # fmt: skip
    """Eq. 13: an adjoint of layer l, and what skips that start there send it from above."""
    for end in tl.static_range(l + 1, L + 1):
        if KIND[end] != "" and START[end] == l and (KIND[end] == "pre") == OF_Z:
            adjoint += sent[L - end]
    return adjoint


@triton.jit(do_not_specialize=["M"])
def narrow_backward_kernel(
    x, grad_a, weights, biases,  # (M, K), (M, N_L); tuples
    grad_x, parts,               # out: (M, K) or None; (PROGRAMS, SIZE), zero before
    scratch,                     # (PROGRAMS, 2 L BLOCK_M WIDEST) for tiles on the way, or None
    M, x_stride, grad_a_stride, grad_x_stride, strides, PROGRAMS, SIZE,
    L: tl.constexpr, SIZES: tl.constexpr, PADDED: tl.constexpr, SAME: tl.constexpr,
    WIDEST: tl.constexpr, NONE: tl.constexpr,  # NONE: a None for each layer 0..L
    OFFSETS: tl.constexpr,  # where in a part a layer's gradients stand; equal where one is shared
    SIGMA: tl.constexpr, SIGMA_PRIME: tl.constexpr, OF_A: tl.constexpr,
    KIND: tl.constexpr, START: tl.constexpr, SCALE: tl.constexpr,
    DTYPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """One program: every PROGRAMS-th tile of examples forward once more, then all of backward."""
    tiles = _weights(weights, strides, L, SIZES, PADDED, SAME)
    part = parts + tl.program_id(0).to(tl.int64) * SIZE
    if scratch is not None:  # too many layers for the registers: it stays in the second cache
        scratch += tl.program_id(0).to(tl.int64) * (2 * L * BLOCK_M * WIDEST)
    for tile in tl.range(tl.program_id(0), tl.cdiv(M, BLOCK_M), PROGRAMS, num_stages=1,
                         disable_licm=True):  # fmt: skip
        if scratch is not None:
            tl.debug_barrier()  # nobody still picks up what is now put down anew
        row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        first = _examples(x, tl.minimum(row, M - 1), SIZES[0], x_stride, PADDED[0])
        kept, activations = _forward(first, tiles, biases, scratch, NONE, NONE, row, M, L, SIZES,
                                     PADDED, WIDEST, SIGMA, OF_A, KIND, START, SCALE, DTYPE, ACC,
                                     PRECISION)  # fmt: skip
        adjoint = _examples(grad_a, tl.minimum(row, M - 1), SIZES[L], grad_a_stride, PADDED[L])
        adjoint = tl.where((row < M)[:, None], adjoint.to(ACC), 0.0)  # beyond the edge: no delta
        sent = ()
        for l in tl.static_range(L, 0, -1):
            tl.debug_barrier()  # what one thread has put down, another may pick up
            s = kept[l]
            if scratch is not None and l < L:
                s = tl.load(_stashed(scratch, 2 * l, WIDEST, BLOCK_M, PADDED[l]))
            delta = _sent(adjoint, sent, l, L, KIND, START, False)
            upwards = delta
            if KIND[l] == "out":
                delta = delta * SCALE[l]
            if SIGMA_PRIME[l] is not None:  # BP1 at the top, BP2's other half below
                delta = delta * SIGMA_PRIME[l](s.to(ACC))
            delta = _sent(delta, sent, l, L, KIND, START, True)
            if KIND[l] == "pre" or KIND[l] == "post":
                upwards = delta
                delta = delta * SCALE[l]
            sent = sent + (upwards,)
            rounded = delta.to(DTYPE)
            below = activations[l - 1]
            if scratch is not None and l > 1:
                below = tl.load(_stashed(scratch, 2 * l - 1, WIDEST, BLOCK_M, PADDED[l - 1]))
            _add_gradients(part, rounded, below, biases[l - 1], l, OFFSETS, ACC,
                           PRECISION)  # fmt: skip
            adjoint = tl.dot(rounded, tiles[l - 1], input_precision=PRECISION, out_dtype=ACC)
        if grad_x is not None:
            adjoint = _sent(adjoint, sent, 0, L, KIND, START, False)
            adjoint = adjoint.to(DTYPE)
            _write_examples(grad_x, adjoint, row, M, SIZES[0], grad_x_stride, PADDED[0])
