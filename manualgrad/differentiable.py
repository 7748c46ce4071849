"""sigma and sigma' as autograd Functions, for the equations whose gradients need gradients.

The derivative of sigma is sigma' and that of sigma' is sigma'', by the record.
"""

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manualgrad.activations import Activation


class _OfZ(Function):
    """A formula of z whose derivative is the record's next one."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        z, ctx.act = inputs
        ctx.save_for_backward(z)


class Sigma(_OfZ):
    """sigma(z). Its derivative is sigma', by the record and not by differentiating the text."""

    @staticmethod
    def forward(z: Tensor, act: Activation) -> Tensor:
        return act.sigma(z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        (z,) = ctx.saved_tensors
        return grad * SigmaPrime.apply(z, ctx.act), None


class SigmaPrime(_OfZ):
    """sigma'(z). Its derivative is sigma'', whose own text autograd differentiates further."""

    @staticmethod
    def forward(z: Tensor, act: Activation) -> Tensor:
        return act.sigma_prime(z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        (z,) = ctx.saved_tensors
        return grad * ctx.act.sigma_second(z), None


@functools.lru_cache(maxsize=256)
def differentiable(act: Activation) -> Activation:
    """The same activation where sigma and sigma' are themselves to be differentiated.

    Formulas in z go through sigma' and sigma'' by hand: autograd through the text of, say,
    z / (1 + e^-z) is NaN where e^-z overflows. Formulas in a are polynomials and branches, which
    autograd differentiates exactly; one that is constant on each branch has the derivative 0, and
    not none at all.
    """
    if act.is_identity:
        return act
    if act.keeps == "a":
        return replace(act, sigma_prime=lambda a: _depending_on(a, act.sigma_prime(a)))
    return replace(
        act,
        sigma=lambda z: Sigma.apply(z, act),
        sigma_prime=lambda z: SigmaPrime.apply(z, act),
    )


def _depending_on(a: Tensor, value: Tensor) -> Tensor:
    """value, as a node of the graph that a belongs to."""
    if not isinstance(value, Tensor):  # a formula that is a plain number
        value = torch.full_like(a, value)
    if value.requires_grad or not a.requires_grad:
        return value
    return torch.where(torch.zeros((), dtype=torch.bool, device=a.device), a, value)
