"""The elementary functions a formula may call, on tensors and on SymPy symbols alike.

A formula is a plain function of one argument made of arithmetic, comparisons, float constants
and the names below. One text then serves three readers: torch evaluates it, SymPy differentiates
it, and Triton compiles it once the same names are spelled for the device.
"""

from typing import Any

import torch


def exp(x):
    return _library(x).exp(x)


def expm1(x):
    """e^x - 1, exact near 0 on tensors."""
    return torch.expm1(x) if isinstance(x, torch.Tensor) else _library(x).exp(x) - 1


def log1p(x):
    """log(1 + x), exact near 0 on tensors."""
    return torch.log1p(x) if isinstance(x, torch.Tensor) else _library(x).log(1 + x)


def erf(x):
    return _library(x).erf(x)


def tanh(x):
    return _library(x).tanh(x)


def sigmoid(x):
    """1 / (1 + e^-x)"""
    return torch.sigmoid(x) if isinstance(x, torch.Tensor) else 1 / (1 + _library(x).exp(-x))


def sin(x):
    return _library(x).sin(x)


def cos(x):
    return _library(x).cos(x)


def absolute(x):
    return torch.abs(x) if isinstance(x, torch.Tensor) else _library(x).Abs(x)


def maximum(x, bound: float):
    """The larger of x and a constant; NaN stays NaN."""
    return torch.clamp(x, min=bound) if isinstance(x, torch.Tensor) else _library(x).Max(x, bound)


def minimum(x, bound: float):
    """The smaller of x and a constant; NaN stays NaN."""
    return torch.clamp(x, max=bound) if isinstance(x, torch.Tensor) else _library(x).Min(x, bound)


def clip(x, low: float, high: float):
    """x, but no less than low and no more than high; NaN stays NaN."""
    if isinstance(x, torch.Tensor):
        return torch.clamp(x, low, high)
    return _library(x).Min(_library(x).Max(x, low), high)


def where(condition, x, y):
    """x where the condition holds, else y; at least one of x and y is not a constant."""
    if isinstance(condition, torch.Tensor):
        return torch.where(condition, x, y)
    return _library(condition).Piecewise((x, condition), (y, True))


def full_like(x, value: float):
    """The constant, in x's shape and dtype."""
    return torch.full_like(x, value) if isinstance(x, torch.Tensor) else _library(x).Float(value)


def _library(x: Any) -> Any:
    if isinstance(x, torch.Tensor):
        return torch
    import sympy  # slow to import, and only verification passes symbols

    return sympy


HALF_TYPES = (torch.float16, torch.bfloat16)


def rounded_once(formula, *tensors):
    """formula(*tensors); half types are computed in float32 and rounded once, at the end."""
    dtype = tensors[0].dtype
    if dtype in HALF_TYPES:
        return formula(*(t.float() for t in tensors)).to(dtype)
    return formula(*tensors)
