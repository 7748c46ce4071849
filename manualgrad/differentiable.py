"""The operations of manualgrad.equations for gradients that are to have gradients of their own.

Products are differentiated by autograd. The elementwise half is a node whose derivatives are the
record's next formulas, by hand: autograd through the text of, say, z / (1 + e^-z) is NaN where e^-z
overflows, and at a kink it may choose another side. A sigma' written in a is a polynomial or a
branch, which autograd differentiates exactly, as it does ATen's kernels for them.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manualgrad import compat, equations, one_pass
from manualgrad.activations import ACTIVATIONS, Activation
from manualgrad.equations import bp3_bias_gradient, bp4_weight_gradient
from manualgrad.formula import rounded_once
from manualgrad.front_door import applied

__all__ = [
    "bp1_output_error",
    "bp2_propagate_error",
    "bp3_bias_gradient",
    "bp4_weight_gradient",
    "output",
]

IDENTITY = ACTIVATIONS["identity"]


class Sigma(Function):
    """sigma(z). Its derivative is sigma', by the record and not by differentiating the text."""

    generate_vmap_rule = True

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
        return times_sigma_prime(ctx.act, grad, s), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None):
        return Sigma.backward(ctx, tangent)[0]


class TimesSigmaPrime(Function):
    """adjoint * sigma'(z). The derivatives: sigma'(z) again, and adjoint * sigma''(z).

    That is the last formula of the record; autograd differentiates its text further.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(adjoint: Tensor, z: Tensor, act: Activation) -> Tensor:
        if compat.transforms_active():  # ATen has no batching rule for some of its kernels
            return equations.times_sigma_prime(act, adjoint, z)
        return one_pass.kernels_of(act)[1](adjoint, z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        adjoint, z, ctx.act = inputs
        ctx.save_for_backward(adjoint, z)
        ctx.save_for_forward(adjoint, z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        (adjoint, z), act = ctx.saved_tensors, ctx.act
        needs_adjoint, needs_z, _ = ctx.needs_input_grad
        grad_adjoint = times_sigma_prime(act, grad, z) if needs_adjoint else None
        grad_z = None
        if needs_z:
            grad_z = rounded_once(lambda g, v, z: g * v * act.sigma_second(z), grad, adjoint, z)
        return grad_adjoint, grad_z, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, tangent_z: Tensor | None, _: None):
        (adjoint, z), act = ctx.saved_tensors, ctx.act
        along = None if tangent is None else times_sigma_prime(act, tangent, z)
        if tangent_z is None:
            return along
        curved = rounded_once(lambda t, v, z: t * v * act.sigma_second(z), tangent_z, adjoint, z)
        return curved if along is None else along + curved


_sigma, _times_sigma_prime = applied(Sigma), applied(TimesSigmaPrime)


def times_sigma_prime(act: Activation, adjoint: Tensor, s: Tensor) -> Tensor:
    """adjoint * sigma'(s), differentiable in both as often as one likes."""
    if act.is_identity:
        return adjoint
    if act.name in one_pass.ONE_PASS and (act.keeps == "a" or not _recorded()):
        return one_pass.kernels_of(act)[1](adjoint, s)
    if act.keeps == "z":
        if compat.transforms_active() or compat.has_memory(adjoint):
            return _times_sigma_prime(adjoint, s, act)
        # Several adjoints at once (is_grads_batched=True) may be no argument of a Function, or
        # autograd loses the node. They are multiplied outside, and the node has z alone.
        return rounded_once(
            lambda v, z: v * _times_sigma_prime(torch.ones_like(z), z, act), adjoint, s
        )
    return rounded_once(lambda v, a: v * _depending_on(a, act.sigma_prime(a)), adjoint, s)


def _recorded() -> bool:
    """Somebody may want to know how a result came about."""
    return torch.is_grad_enabled() or compat.forward_mode() or compat.transforms_active()


def _depending_on(a: Tensor, value: Any) -> Tensor:
    """value, as a node of the graph that a belongs to.

    A sigma' that is constant on each branch has the derivative 0, and not none at all.
    """
    if not isinstance(value, Tensor):  # a formula that is a plain number
        value = torch.full_like(a, value)
    if value.requires_grad or not a.requires_grad:
        return value
    return torch.where(torch.zeros((), dtype=torch.bool, device=a.device), a, value)


def bp1_output_error(grad_a, s, act):
    """BP1: delta^L = grad_a C * sigma'(z^L).  grad_a, s (M, N).  Returns (delta, rows)."""
    delta = times_sigma_prime(act, grad_a, s)
    return delta, delta


def bp2_propagate_error(delta, weight, s, act, skip=None, with_a=True, skip_z=None):
    """BP2: delta^l = (delta^{l+1} W^{l+1}) * sigma'(z^l).  Returns (delta^l, rows, a^l)."""
    adjoint, _, _ = equations.bp2_propagate_error(delta, weight, s, IDENTITY, skip, with_a=False)
    below = times_sigma_prime(act, adjoint, s)
    if skip_z is not None:
        below = below + skip_z
    return below, below, (output(s, act) if with_a else None)


def output(s, act):
    """a^l from s^l, as kept."""
    return s if act.is_identity or act.keeps == "a" else sigma(s, act)


def sigma(z: Tensor, act: Activation) -> Tensor:
    """sigma(z), in float32 for half types and rounded once."""
    return rounded_once(lambda z: _sigma(z, act), z)
