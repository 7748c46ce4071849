"""The rules: each an autograd Function, and a function that applies it.

Inside mg.dag.record() the tape drives them; anywhere else torch.autograd does, as any Function.
docs/equations.md has the equation of each.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from manualgrad.activations import activation_of
from manualgrad.dag.recording import apply
from manualgrad.dag.rules.arithmetic import (
    Add,
    Cast,
    Div,
    Exp,
    Log,
    Matmul,
    Mul,
    Power,
    Scale,
    Sub,
    Sum,
)
from manualgrad.dag.rules.normal import Activate, LayerNorm, Softmax
from manualgrad.dag.rules.selecting import Embedding, Where
from manualgrad.dag.rules.shapes import Cat, Copy, Expand, Permute, Reshape, Slice, Unfold

__all__ = [
    "activate",
    "add",
    "cast",
    "cat",
    "copy",
    "div",
    "embedding",
    "exp",
    "expand",
    "layer_norm",
    "log",
    "matmul",
    "mean",
    "mul",
    "permute",
    "power",
    "reshape",
    "scale",
    "slice",
    "softmax",
    "sub",
    "sum",
    "transpose",
    "unfold",
    "where",
]


def add(x: Any, y: Any) -> Tensor:
    """x + y; tensors of shapes that broadcast, or one of them a number."""
    return apply(Add, x, y) if isinstance(x, Tensor) else apply(Add, y, x)


def sub(x: Any, y: Any) -> Tensor:
    """x - y; tensors of shapes that broadcast, or one of them a number."""
    return apply(Sub, x, y)


def mul(x: Any, y: Any) -> Tensor:
    """x y, entry by entry; tensors of shapes that broadcast, or one of them a number."""
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return apply(Mul, x, y)
    return scale(x, y) if isinstance(x, Tensor) else scale(y, x)


def div(x: Any, y: Any) -> Tensor:
    """x / y, entry by entry; tensors of shapes that broadcast, or one of them a number."""
    x, y = (t if isinstance(t, Tensor) else _number(t, o) for t, o in ((x, y), (y, x)))
    return apply(Div, x, y)


def scale(x: Tensor, c: float) -> Tensor:
    """c x for a number c."""
    return apply(Scale, x, c)


def power(x: Tensor, p: float) -> Tensor:
    """x^p for a number p."""
    return apply(Power, x, p)


def exp(x: Tensor) -> Tensor:
    """e^x."""
    return apply(Exp, x)


def log(x: Tensor) -> Tensor:
    """The natural logarithm."""
    return apply(Log, x)


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """x @ y as torch.matmul: vectors, matrices, and batches of matrices that broadcast."""
    if x.dim() == 0 or y.dim() == 0:
        raise ValueError(
            f"manualgrad.dag: matmul of shapes {tuple(x.shape)} and {tuple(y.shape)}: a number is "
            f"no matrix; multiply with *"
        )
    row, column = x.dim() == 1, y.dim() == 1
    x = reshape(x, (1, x.shape[0])) if row else x
    y = reshape(y, (y.shape[0], 1)) if column else y
    product = apply(Matmul, x, y)
    if not (row or column):
        return product
    *batch, m, n = product.shape
    return reshape(product, [*batch, *([] if row else [m]), *([] if column else [n])])


def sum(x: Tensor, dims: Any = None, keepdim: bool = False) -> Tensor:
    """The sum over dimensions; over all of them for None."""
    return apply(Sum, x, _dims(x, dims), keepdim)


def mean(x: Tensor, dims: Any = None, keepdim: bool = False) -> Tensor:
    """The sum over dimensions divided by the number of its terms."""
    count = math.prod(x.shape[d] for d in _dims(x, dims))
    return div(sum(x, dims, keepdim), count)


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in another dtype."""
    return x if x.dtype == dtype else apply(Cast, x, dtype)


def activate(z: Tensor, activation: Any) -> Tensor:
    """sigma(z); activation as in manualgrad.linear_act."""
    act = activation_of(activation, "dag.rules.activate")
    return z if act.is_identity else apply(Activate, z, act)


def softmax(x: Tensor, dim: int) -> Tensor:
    """e^x over its sum along a dimension."""
    return apply(Softmax, x, dim)


def layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalised over the last dimensions, of this shape; then times weight, plus bias."""
    return apply(LayerNorm, x, tuple(shape), weight, bias, eps)


def embedding(indices: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """weight[i] for every i of indices; the row padding_idx is not learned."""
    return apply(Embedding, indices, weight, padding_idx)


def where(condition: Tensor, x: Any, y: Any) -> Tensor:
    """x where the condition holds, else y."""
    return apply(Where, condition, x, y)


def reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The same entries in another shape; one size may be -1."""
    return apply(Reshape, x, tuple(shape))


def permute(x: Tensor, dims: Sequence[int]) -> Tensor:
    """The dimensions in another order."""
    return apply(Permute, x, tuple(d % x.dim() for d in dims))


def transpose(x: Tensor, dim0: int, dim1: int) -> Tensor:
    """Two dimensions swapped."""
    dims = list(range(x.dim()))
    if dims:  # a number has none to swap
        dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
    return permute(x, dims)


def expand(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Repeated along new dimensions and those of size 1."""
    return apply(Expand, x, tuple(shape))


def copy(x: Tensor, contiguous: bool = False) -> Tensor:
    """The same entries in memory of their own."""
    return apply(Copy, x, contiguous)


def slice(x: Tensor, dim: int, start: int, length: int, step: int = 1) -> Tensor:
    """Every step-th of length entries of a dimension, from start."""
    return apply(Slice, x, dim % x.dim(), start, length, step)


def unfold(x: Tensor, kernel_size: Any, dilation=1, padding=0, stride=1) -> Tensor:
    """The windows of an image as columns, as torch.nn.functional.unfold."""
    return apply(Unfold, x, (kernel_size, dilation, padding, stride))


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors side by side along a dimension."""
    return apply(Cat, dim, *tensors)


def _number(value: Any, like: Tensor) -> Tensor:
    """A number as a tensor without dimensions, which takes part in no promotion of dtypes."""
    return torch.scalar_tensor(value, dtype=like.dtype, device=like.device)


def _dims(x: Tensor, dims: Any) -> tuple[int, ...]:
    """The dimensions meant, counted from the front; none means all, as in torch."""
    if dims is None or dims == () or dims == []:
        return tuple(range(x.dim()))
    dims = (dims,) if isinstance(dims, int) else dims
    return tuple(sorted({d % x.dim() for d in dims})) if x.dim() else ()
