"""What may be an operand of a kernel: shapes that fit, layouts that it can walk."""

from typing import Any

from torch import Tensor

STRIDE_LIMIT = 2**23  # elements from row to row: times a tile's 256, it is a 32-bit number


def expect(operation: str, **given: tuple[Any, tuple[int, ...]]) -> None:
    """name=(tensor or None, the shape it must have).  Raises ValueError for another: a kernel
    would read beyond its end."""
    for name, (tensor, shape) in given.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"manualgrad.triton_kernels.{operation}: {name} has shape {tuple(tensor.shape)}, "
                f"but {shape} fits the other tensors"
            )


def row_major(matrix: Tensor) -> Tensor:
    """The matrix with neighbouring columns, and rows that a tile steps over within 32 bits; a copy
    if they are elsewhere."""
    neighbours = matrix.stride(1) == 1 or matrix.shape[1] == 1
    return matrix if neighbours and matrix.stride(0) < STRIDE_LIMIT else matrix.contiguous()


def describable(matrix: Tensor) -> bool:
    """Can a tensor descriptor describe it? Its base and its rows stand at multiples of 16 bytes."""
    if matrix.stride(1) != 1:
        return False
    stride = matrix.stride(0) * matrix.element_size()
    return stride > 0 and stride % 16 == 0 and matrix.data_ptr() % 16 == 0
