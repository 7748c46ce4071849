"""Entries moved, repeated or left out: their adjoints go back to where they came from."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from manualgrad.dag.rules.base import Rule, summed


class Reshape(Rule):
    """The same entries in another shape: so is the adjoint."""

    @staticmethod
    def forward(x: Tensor, shape: Sequence[int]) -> Tensor:
        return x.reshape(shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        return grad.reshape(ctx.shape), None


class Permute(Rule):
    """Dimensions in another order; transposed is one. The adjoint is put back in the old order."""

    @staticmethod
    def forward(x: Tensor, dims: Sequence[int]) -> Tensor:
        return torch.permute(x, tuple(dims))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.dims = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        back = sorted(range(len(ctx.dims)), key=lambda d: ctx.dims[d])
        return grad.permute(back), None


class Expand(Rule):
    """Entries repeated along dimensions: the adjoint is the sum over the copies (eq. 13)."""

    @staticmethod
    def forward(x: Tensor, shape: Sequence[int]) -> Tensor:
        return x.expand(shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        return summed(grad, ctx.shape), None


class Copy(Rule):
    """The same entries in memory of their own, contiguous or as they lie."""

    @staticmethod
    def forward(x: Tensor, contiguous: bool) -> Tensor:
        return x.clone(memory_format=torch.contiguous_format if contiguous else None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        return grad, None


class Slice(Rule):
    """Every step-th of length entries of a dimension, from start: the others receive 0."""

    @staticmethod
    def forward(x: Tensor, dim: int, start: int, length: int, step: int) -> Tensor:
        end = start + (length - 1) * step + 1 if length else start
        return x[(slice(None),) * dim + (slice(start, end, step),)]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, ctx.dim, start, length, step = inputs
        ctx.shape = x.shape
        ctx.places = range(start, start + length * step, step)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        places = torch.tensor(ctx.places, dtype=torch.int64, device=grad.device)
        zeros = grad.new_zeros(ctx.shape)
        return zeros.index_add(ctx.dim, places, grad), None, None, None, None


class Unfold(Rule):
    """The windows of an image as columns (im2col): an entry receives the sum over its windows.

    x (M, C, height, width); window: kernel_size, dilation, padding and stride, as in F.unfold.
    """

    @staticmethod
    def forward(x: Tensor, window: tuple) -> Tensor:
        return F.unfold(x, *window)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, ctx.window = inputs
        ctx.size = x.shape[-2:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        return F.fold(grad, ctx.size, *ctx.window), None


class Cat(Rule):
    """Tensors side by side along a dimension: each receives its own part of the adjoint."""

    @staticmethod
    def forward(dim: int, *tensors: Tensor) -> Tensor:
        return torch.cat(tensors, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.dim, *tensors = inputs
        ctx.sizes = [t.shape[ctx.dim] for t in tensors]

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        return None, *grad.split(ctx.sizes, ctx.dim)
