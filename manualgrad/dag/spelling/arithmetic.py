"""torch's arithmetic and its sums, in rules."""

from typing import Any

import torch
from torch import Tensor

from manualgrad.dag import rules
from manualgrad.dag.table import no_rule, spells


@spells(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)
def add(input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    return rules.add(input, other if alpha == 1 else rules.mul(other, alpha))


@spells(torch.sub, torch.subtract, Tensor.sub, Tensor.subtract, Tensor.__sub__)
def sub(input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    return rules.sub(input, other if alpha == 1 else rules.mul(other, alpha))


@spells(torch.rsub, Tensor.__rsub__, name="sub")
def _rsub(input: Tensor, other: Any) -> Tensor:
    return rules.sub(other, input)


@spells(torch.neg, torch.negative, Tensor.neg, Tensor.negative, Tensor.__neg__)
def neg(input: Tensor) -> Tensor:
    return rules.scale(input, -1)


@spells(torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__)
def mul(input: Any, other: Any) -> Tensor:
    return rules.mul(input, other)


@spells(torch.div, torch.divide, torch.true_divide, Tensor.div, Tensor.divide, Tensor.true_divide)
def div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    if rounding_mode is not None:
        raise no_rule(torch.div)
    return rules.div(input, other)


@spells(Tensor.__truediv__, Tensor.__div__, name="div")
def _div(input: Any, other: Any) -> Tensor:
    return rules.div(input, other)


@spells(Tensor.__rdiv__, Tensor.__rtruediv__, name="div")
def _rdiv(input: Tensor, other: Any) -> Tensor:
    return rules.div(other, input)


@spells(torch.square, Tensor.square)
def square(input: Tensor) -> Tensor:
    return rules.mul(input, input)


@spells(torch.pow, Tensor.pow, Tensor.__pow__)
def pow(input: Any, exponent: Any) -> Tensor:
    """x^p for a number p."""
    if isinstance(exponent, Tensor) or not isinstance(input, Tensor):
        raise no_rule(torch.pow)
    return rules.power(input, exponent)


@spells(torch.sqrt, Tensor.sqrt)
def sqrt(input: Tensor) -> Tensor:
    return rules.power(input, 0.5)


@spells(torch.rsqrt, Tensor.rsqrt)
def rsqrt(input: Tensor) -> Tensor:
    return rules.power(input, -0.5)


@spells(torch.reciprocal, Tensor.reciprocal)
def reciprocal(input: Tensor) -> Tensor:
    return rules.power(input, -1)


@spells(torch.exp, Tensor.exp)
def exp(input: Tensor) -> Tensor:
    return rules.exp(input)


@spells(torch.log, Tensor.log)
def log(input: Tensor) -> Tensor:
    return rules.log(input)


@spells(torch.matmul, torch.mm, torch.bmm, torch.mv, torch.dot, Tensor.matmul, Tensor.mm)
def matmul(input: Tensor, other: Tensor) -> Tensor:
    return rules.matmul(input, other)


@spells(Tensor.bmm, Tensor.mv, Tensor.dot, Tensor.__matmul__, name="matmul")
def _matmul(input: Tensor, other: Tensor) -> Tensor:
    return rules.matmul(input, other)


@spells(Tensor.__rmatmul__, name="matmul")
def _rmatmul(input: Tensor, other: Tensor) -> Tensor:
    return rules.matmul(other, input)


@spells(torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm)
def addmm(input: Tensor, one: Tensor, two: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    product = rules.matmul(one, two)
    scaled = product if alpha == 1 else rules.scale(product, alpha)
    return rules.add(input if beta == 1 else rules.mul(input, beta), scaled)


@spells(torch.sum, Tensor.sum)
def sum(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    return rules.sum(_as(input, dtype), dim, keepdim)


@spells(torch.mean, Tensor.mean)
def mean(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    return rules.mean(_as(input, dtype), dim, keepdim)


def _as(input: Tensor, dtype: torch.dtype | None) -> Tensor:
    return input if dtype is None else rules.cast(input, dtype)


@spells(Tensor.float, name="to")
def _float(input: Tensor, **_: Any) -> Tensor:
    return rules.cast(input, torch.float32)


@spells(Tensor.double, name="to")
def _double(input: Tensor, **_: Any) -> Tensor:
    return rules.cast(input, torch.float64)


@spells(Tensor.bfloat16, name="to")
def _bfloat16(input: Tensor, **_: Any) -> Tensor:
    return rules.cast(input, torch.bfloat16)


@spells(Tensor.half, name="to")
def _half(input: Tensor, **_: Any) -> Tensor:
    return rules.cast(input, torch.float16)


@spells(Tensor.cpu, name="to")
def _cpu(input: Tensor, **_: Any) -> Tensor:
    return to(input, "cpu")


@spells(Tensor.to, Tensor.type_as)
def to(input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Another floating dtype; a move to another device has no rule."""
    given = [*args, *kwargs.values()]
    like = [a for a in given if isinstance(a, Tensor)]
    dtypes = [a for a in given if isinstance(a, torch.dtype)] + [t.dtype for t in like]
    devices = [torch.device(a) for a in given if isinstance(a, (str, torch.device))]
    devices += [t.device for t in like]
    here = input.device
    if any(d.type != here.type or d.index not in (None, here.index) for d in devices):
        raise no_rule(Tensor.to)
    if not dtypes:
        return input
    if not (dtypes[0].is_floating_point or dtypes[0].is_complex):
        return input.detach().to(dtypes[0])
    return rules.cast(input, dtypes[0])
