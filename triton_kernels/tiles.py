"""What the kernels share: tiles of row-major matrices, their products, their column sums.

A matrix is a pointer with the number of elements from row to row, or, where TMA is set, a tensor
descriptor: then the hardware copies whole tiles, and gives zeros beyond the edges by itself.
"""

import triton
import triton.language as tl


@triton.jit
def tile_of(program, rows, columns, GROUP: tl.constexpr):
    """(i, j) of a program's tile among rows x columns tiles.

    GROUP rows of tiles are walked column by column: programs that run together share their L2.
    """
    width = GROUP * columns
    first = program // width * GROUP
    height = min(rows - first, GROUP)
    return first + program % width % height, program % width // height


@triton.jit
def pointers(matrix, row, column, stride):
    """To the elements (row, column). row * stride outgrows 32 bits in a large matrix."""
    return matrix + row.to(tl.int64) * stride + column


@triton.jit
def load_tile(matrix, i, j, rows, columns, stride, I: tl.constexpr, J: tl.constexpr,
              TMA: tl.constexpr, EVEN: tl.constexpr):  # fmt: skip
    """The (I, J) tile whose first element is (i, j); zero beyond the edges."""
    if TMA:
        tile = matrix.load([i, j])
    else:
        row = (i + tl.arange(0, I))[:, None]
        column = (j + tl.arange(0, J))[None, :]
        if EVEN:
            tile = tl.load(pointers(matrix, row, column, stride))
        else:
            inside = (row < rows) & (column < columns)
            tile = tl.load(pointers(matrix, row, column, stride), mask=inside, other=0.0)
    return tile


@triton.jit
def store_tile(matrix, tile, i, j, rows, columns, stride, TMA: tl.constexpr, EVEN: tl.constexpr):
    """Write a tile whose first element is (i, j), where it lies inside the matrix."""
    if TMA:
        matrix.store([i, j], tile)
    else:
        row = (i + tl.arange(0, tile.shape[0]))[:, None]
        column = (j + tl.arange(0, tile.shape[1]))[None, :]
        if EVEN:
            tl.store(pointers(matrix, row, column, stride), tile)
        else:
            inside = (row < rows) & (column < columns)
            tl.store(pointers(matrix, row, column, stride), tile, mask=inside)


@triton.jit
def product(acc, left, right, left_step, right_step, i_inside, j_inside, first, last,
            STEP: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """acc + left right, contracted over first..last in steps of STEP.

    left, right: pointers to the first (I, STEP) and (STEP, J) tiles; a step on, they are
    left_step and right_step further. Never clamp an index instead of masking it: the compiler
    then cannot see that neighbours are neighbours, and copies element by element.
    """
    for start in range(first, last, STEP):
        if EVEN:
            left_tile, right_tile = tl.load(left), tl.load(right)
        else:
            inside = start + tl.arange(0, STEP) < last
            left_tile = tl.load(left, mask=i_inside[:, None] & inside[None, :], other=0.0)
            right_tile = tl.load(right, mask=inside[:, None] & j_inside[None, :], other=0.0)
        acc = tl.dot(left_tile, right_tile, acc, input_precision=PRECISION, out_dtype=acc.dtype)
        left += left_step
        right += right_step
    return acc


@triton.jit
def halves(tile):
    """The left and right half of a tile's columns: an epilogue on each needs fewer registers."""
    split = tl.reshape(tile, (tile.shape[0], 2, tile.shape[1] // 2))
    return tl.split(tl.permute(split, (0, 2, 1)))


@triton.jit
def column_sums(tile, DTYPE: tl.constexpr):
    """Sums over the rows, in the accumulator's dtype and in a fixed order.

    Of 16-bit results the rounded values are summed, as a product with ones on tensor cores: a
    reduction across threads would double the instructions of BP2's epilogue for ReLU.
    """
    if DTYPE.primitive_bitwidth == 16:  # pyright: ignore
        ones = tl.full((16, tile.shape[0]), 1.0, DTYPE)
        sums = tl.sum(tl.dot(ones, tile.to(DTYPE)), 0) * 0.0625  # 16 equal rows
    else:
        sums = tl.sum(tile, 0)
    return sums
