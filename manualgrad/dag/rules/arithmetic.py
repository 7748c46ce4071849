"""Sums, products and quotients of tensors of any shapes that broadcast.

grad is the adjoint of the result. Where an operand was stretched to the result's shape, each of its
entries stands at several places there, so its adjoint is the sum over them (eq. 13).
"""

from typing import Any

import torch
from torch import Tensor

from manualgrad.dag.rules.base import Rule, shape_of, summed


class OfTerms(Rule):
    """Of two terms nothing is kept but their shapes."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.shapes = [shape_of(t) for t in inputs]


class OfFactors(Rule):
    """Of two factors each is kept for the other's adjoint."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, y = inputs
        ctx.shapes = x.shape, y.shape
        needs_x, needs_y = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_y else None, y if needs_x else None)


class Add(OfTerms):
    """v = x + y: both receive the adjoint of v, whole."""

    @staticmethod
    def forward(x: Tensor, y: Any) -> Tensor:
        return torch.add(x, y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        x, y = ctx.shapes
        needs_x, needs_y = ctx.needs_input_grad
        return summed(grad, x) if needs_x else None, summed(grad, y) if needs_y else None


class Sub(OfTerms):
    """v = x - y: x receives the adjoint of v, y its negative."""

    @staticmethod
    def forward(x: Any, y: Any) -> Tensor:
        return torch.sub(x, y) if isinstance(x, Tensor) else torch.rsub(y, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        x, y = ctx.shapes
        needs_x, needs_y = ctx.needs_input_grad
        return summed(grad, x) if needs_x else None, -summed(grad, y) if needs_y else None


class Mul(OfFactors):
    """v = x y, entry by entry: each receives the adjoint times the other."""

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return x * y

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        x, y = ctx.saved_tensors
        of_x, of_y = ctx.shapes
        needs_x, needs_y = ctx.needs_input_grad
        grad_y = summed(grad * x, of_y) if needs_y else None
        return summed(grad * y, of_x) if needs_x else None, grad_y


class Div(Rule):
    """v = x / y: x receives grad / y, y receives -grad x / y^2."""

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return x / y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, y = inputs
        ctx.shapes = x.shape, y.shape
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        x, y = ctx.saved_tensors
        of_x, of_y = ctx.shapes
        needs_x, needs_y = ctx.needs_input_grad
        share = grad / y
        grad_y = summed(-share * (x / y), of_y) if needs_y else None
        return summed(share, of_x) if needs_x else None, grad_y


class Scale(Rule):
    """v = c x for a number c: x receives c times the adjoint."""

    @staticmethod
    def forward(x: Tensor, c: float) -> Tensor:
        return x * c

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.c = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        return grad * ctx.c, None


class Power(Rule):
    """v = x^p for a number p: x receives p x^(p - 1) times the adjoint."""

    @staticmethod
    def forward(x: Tensor, p: float) -> Tensor:
        return x**p

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, ctx.p = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        (x,) = ctx.saved_tensors
        slope = ctx.p * x ** (ctx.p - 1) if ctx.p else 0.0 * x  # x^0 is 1, at 0 too
        return grad * slope, None


class Exp(Rule):
    """v = e^x: x receives v times the adjoint."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.exp(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        (v,) = ctx.saved_tensors
        return grad * v


class Log(Rule):
    """v = log x: x receives the adjoint over x."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.log(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        (x,) = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        (x,) = ctx.saved_tensors
        return grad / x


class Matmul(OfFactors):
    """V = X Y: X receives grad Y^T (as BP2), Y receives X^T grad (as BP4).

    X (..., M, K), Y (..., K, N); the leading dimensions broadcast.
    """

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return x @ y

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        x, y = ctx.saved_tensors
        of_x, of_y = ctx.shapes
        needs_x, needs_y = ctx.needs_input_grad
        grad_x = summed(grad.to(y.dtype) @ y.mT, of_x) if needs_x else None
        grad_y = summed(x.mT @ grad.to(x.dtype), of_y) if needs_y else None
        return grad_x, grad_y


class Sum(Rule):
    """v = sum of x over dimensions: every summand receives the adjoint of its sum."""

    @staticmethod
    def forward(x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
        return x.sum(dims, keepdim=keepdim) if dims else x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, ctx.dims, ctx.keepdim = inputs
        ctx.shape = x.shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        kept = [1 if d in ctx.dims else n for d, n in enumerate(ctx.shape)]
        return grad.reshape(kept).expand(ctx.shape), None, None


class Cast(Rule):
    """v = x in another dtype: the adjoint, in x's."""

    @staticmethod
    def forward(x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.dtype = inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        return grad.to(ctx.dtype), None
