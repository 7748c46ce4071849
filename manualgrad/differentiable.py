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


class _Elementwise(Function):
    """A formula of z whose derivative is the record's next one, backward and forward."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        z, ctx.act = inputs
        ctx.save_for_backward(z)
        ctx.save_for_forward(z)


class Sigma(_Elementwise):
    """sigma(z). Its derivative is sigma', by the record and not by differentiating the text."""

    @staticmethod
    def forward(z: Tensor, act: Activation) -> Tensor:
        return act.sigma(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        z, ctx.act = inputs
        s = z if ctx.act.keeps == "z" else output
        ctx.save_for_backward(s)
        ctx.save_for_forward(s)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        (s,) = ctx.saved_tensors
        return grad * differentiable(ctx.act).sigma_prime(s), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None):
        return Sigma.backward(ctx, tangent)[0]


class SigmaPrime(_Elementwise):
    """sigma'(z). Its derivative is sigma'', whose own text autograd differentiates further."""

    @staticmethod
    def forward(z: Tensor, act: Activation) -> Tensor:
        return act.sigma_prime(z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        (z,) = ctx.saved_tensors
        return grad * ctx.act.sigma_second(z), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None):
        return SigmaPrime.backward(ctx, tangent)[0]


@functools.lru_cache(maxsize=256)
def differentiable(act: Activation) -> Activation:
    """The same activation where sigma and sigma' are themselves to be differentiated.

    sigma's derivative is sigma' and that of a sigma' in z is sigma'', by hand: autograd through the
    text of, say, z / (1 + e^-z) is NaN where e^-z overflows, and at a kink it may choose another
    side. A sigma' in a is a polynomial or a branch, which autograd differentiates exactly; one that
    is constant on each branch has the derivative 0, and not none at all.
    """
    if act.is_identity:
        return act
    prime = {
        "a": lambda a: _depending_on(a, act.sigma_prime(a)),
        "z": lambda z: SigmaPrime.apply(z, act),
    }
    return replace(act, sigma=lambda z: Sigma.apply(z, act), sigma_prime=prime[act.keeps])


def _depending_on(a: Tensor, value: Tensor) -> Tensor:
    """value, as a node of the graph that a belongs to."""
    if not isinstance(value, Tensor):  # a formula that is a plain number
        value = torch.full_like(a, value)
    if value.requires_grad or not a.requires_grad:
        return value
    return torch.where(torch.zeros((), dtype=torch.bool, device=a.device), a, value)
