"""The five operations of manualgrad.equations on ATen's one-pass kernels, for plain tensors.

The equations are the same; what changes is how many passes over memory the elementwise half
takes. ONE_PASS names, per activation, ATen's kernel for sigma(z) and its kernel for
adjoint * sigma'(s). An activation without a row is computed by its formulas: ATen has no kernel for
it, or (hardsigmoid) one whose 1/6 is a float32 in float64 too. The tests hold every row to the
formulas, infinities included.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from manualgrad import compat, products
from manualgrad.activations import ACTIVATIONS, Activation
from manualgrad.activations.gates import FAR
from manualgrad.activations.rectifiers import SELU_ALPHA, SELU_SCALE
from manualgrad.equations import times_sigma_prime
from manualgrad.formula import rounded_once

__all__ = [
    "bp1_output_error",
    "bp2_propagate_error",
    "bp3_bias_gradient",
    "bp4_weight_gradient",
    "linear_act_forward",
    "output",
]

IDENTITY = ACTIVATIONS["identity"]
A = torch.ops.aten
CHECKED = 1 << 14  # entries: of fewer, a look at them costs more than it can save
CARELESS: dict[Callable, Callable] = {}  # of a guarded kernel: the one that is right for finite z


def _prime(backward: Any, call: Callable) -> Callable:
    """adjoint * sigma'(s) by ATen's kernel for it; into: the one of the two to write it over.

    call(kernel, adjoint, s, **parameters): the kernel with its arguments in their order.
    """
    fresh, over = backward.default, getattr(backward, "grad_input", None)

    def times_prime(v, s, into=None, **parameters):
        if into is None or over is None:
            return call(fresh, v, s, **parameters)
        return call(functools.partial(over, grad_input=into), v, s, **parameters)

    return times_prime


def _guarded(kernel: Callable, exact: Callable, safe: Callable) -> Callable:
    """exact, or on a large z that is safe the kernel alone: some of ATen's multiply inf by 0.

    To look at all of z is cheaper than the passes that exact adds.
    """

    def guarded(*tensors, **into):
        z = tensors[-1]
        if z.numel() >= CHECKED and compat.readable(*tensors) and safe(z):
            return kernel(*tensors, **into)
        return exact(*tensors, **into)

    if safe is finite:
        CARELESS[guarded] = kernel
    return guarded


def finite(z) -> bool:
    """No entry is infinite or NaN: then neither is their sum."""
    return math.isfinite(z.sum().item())


def _near(z) -> bool:
    low, high = torch.aminmax(z)
    return bool(low >= -FAR and high <= FAR)


def _tail(sigma: Callable, in_place: Callable | None = None) -> Callable:
    """sigma(z) where ATen's own kernel multiplies -inf by 0."""

    def exact(z):
        if torch.compiler.is_compiling():
            return torch.where(z < -FAR, 0.0, sigma(z))  # a clamp before doubles Inductor's time
        return (in_place or sigma)(z.clamp(min=-FAR))

    return _guarded(sigma, exact, finite)


def _tails(backward: Any, call: Callable, safe: Callable = finite) -> Callable:
    """adjoint * sigma'(z) where ATen's own kernel multiplies +-inf by 0."""
    prime = _prime(backward, call)

    def clipped(v, z, into=None):
        if torch.compiler.is_compiling():
            return torch.where(z.abs() < FAR, prime(v, z), v * z.clamp(0.0, 1.0))
        return prime(v, z.clamp(min=-FAR, max=FAR), into=into)

    return _guarded(prime, clipped, safe)


def _gelu(z):
    # ATen's vectorised erf(inf) is NaN; from FAR on, z Phi(z) is z itself
    if torch.compiler.is_compiling():
        return torch.where(z.abs() < FAR, F.gelu(z), z.clamp(min=0.0))
    return torch.maximum(F.gelu(z.clamp(min=-FAR, max=FAR)), torch.threshold(z, FAR, -1.0))


def _pair(kernel, v, s):
    return kernel(v, s)


# name: (sigma(z, **parameters), adjoint * sigma'(s, **parameters)), s as the activation keeps it.
# Where a is kept, sigma overwrites z: z is fresh from the product and nobody else's.
ONE_PASS: dict[str, tuple[Callable, Callable]] = {
    "relu": (torch.relu_, _prime(A.threshold_backward, lambda k, v, a: k(v, a, 0))),
    "leaky_relu": (
        F.leaky_relu_,
        _prime(
            A.leaky_relu_backward,
            lambda k, v, a, negative_slope=0.01: k(v, a, negative_slope, True),
        ),
    ),
    "relu6": (
        lambda z: F.hardtanh_(z, 0.0, 6.0),
        _prime(A.hardtanh_backward, lambda k, v, a: k(v, a, 0, 6)),
    ),
    "sigmoid": (torch.sigmoid_, _prime(A.sigmoid_backward, _pair)),
    "tanh": (torch.tanh_, _prime(A.tanh_backward, _pair)),
    # (adjoint, alpha, scale, input_scale, is_result, z)
    "elu": (F.elu, _prime(A.elu_backward, lambda k, v, z, alpha=1.0: k(v, alpha, 1, 1, False, z))),
    "selu": (
        F.selu,
        _prime(A.elu_backward, lambda k, v, z: k(v, SELU_ALPHA, SELU_SCALE, 1, False, z)),
    ),
    "celu": (
        F.celu,
        _prime(A.elu_backward, lambda k, v, z, alpha=1.0: k(v, alpha, 1, 1 / alpha, False, z)),
    ),
    "softplus": (
        F.softplus,
        _prime(
            A.softplus_backward,
            lambda k, v, z, beta=1.0, threshold=20.0: k(v, z, beta, threshold),
        ),
    ),
    "silu": (_tail(F.silu, A.silu_.default), _tails(A.silu_backward, _pair)),
    "mish": (_tail(F.mish, A.mish_.default), _tails(A.mish_backward, _pair)),
    "hardswish": (
        _tail(F.hardswish, A.hardswish_.default),
        _prime(A.hardswish_backward, _pair),
    ),
    "gelu": (_guarded(F.gelu, _gelu, finite), _tails(A.gelu_backward, _pair)),
    "gelu_tanh": (
        _tail(lambda z: F.gelu(z, approximate="tanh")),
        _tails(A.gelu_backward, lambda k, v, z: k(v, z, approximate="tanh"), _near),
    ),
}


# The same for z that holds no infinity: gates alone, for which that makes a difference.
OF_FINITE_Z = {
    f"{name} of finite z": (CARELESS.get(sigma, sigma), CARELESS.get(prime, prime))
    for name, (sigma, prime) in ONE_PASS.items()
    if sigma in CARELESS or prime in CARELESS
}
KERNELS: dict[str, Any] = ONE_PASS | OF_FINITE_Z


@functools.lru_cache(maxsize=256)
def of_finite_z(act: Activation) -> Activation:
    """A gate for a caller who knows that no z is infinite; any other activation as it is."""
    name = f"{act.name} of finite z"
    return replace(act, name=name) if name in OF_FINITE_Z else act


@functools.lru_cache(maxsize=256)
def kernels_of(act: Activation) -> tuple[Callable, Callable]:
    """(sigma(z), adjoint * sigma'(s)) with act's parameters: ATen's, or the formulas.

    The second may be asked to write ``into`` one of its arguments; the formulas do not.
    """
    kernels = KERNELS.get(act.name)
    if kernels is None:
        return functools.partial(rounded_once, act.sigma), (
            lambda v, s, into=None: times_sigma_prime(act, v, s)
        )
    if act.parameters:
        sigma, times_prime = (functools.partial(k, **dict(act.parameters)) for k in kernels)
        return sigma, times_prime
    return kernels


def linear_act_forward(x, weight, bias, act, skip=None, with_z=False):
    """a = sigma(x W^T + b + skip).  x (M, K), weight (N, K), bias (N,) or None.

    skip (M, N) or None. Returns (a, s), or (a, z) if with_z.
    """
    identity = act.is_identity
    if x.numel() < CHECKED:
        z = F.linear(x, weight, bias)
    else:
        z = products.linear(x, weight, bias, identity)
    if type(z) is not torch.Tensor and not (identity and skip is None):
        z = _added_up(z)
    if skip is not None:
        z = _plus(z, skip)
    if identity:
        return z, z
    hides_z = act.hides_z
    a = kernels_of(act)[0](z.clone() if with_z and not hides_z else z)
    return a, (z if with_z or hides_z else a)


def _added_up(z):
    """z, its summands added up if they are on several devices: sigma of a sum is no sum of sigmas.

    Such a DTensor is what a weight sharded by inputs gives (row-wise tensor parallelism). sigma
    may overwrite z, and a DTensor refuses to change its placement in place.
    """
    placements = getattr(z, "placements", ())
    if not any(placement.is_partial() for placement in placements):
        return z
    from torch.distributed.tensor import Replicate  # slow to import, and here it has been

    return z.redistribute(placements=[Replicate() if p.is_partial() else p for p in placements])


def _plus(fresh, skip):
    """fresh + skip, in place where fresh is plain: it is a product's, and nobody else's.

    Not by addmm, which rounds the sum in another order: branch and skip are then two addends.
    """
    if type(fresh) is torch.Tensor and not compat.transforms_active() and not fresh.requires_grad:
        return fresh.add_(skip)
    return fresh + skip


def bp1_output_error(grad_a, s, act):
    """BP1: delta^L = grad_a C * sigma'(z^L).  grad_a, s (M, N).  Returns (delta, rows)."""
    delta = grad_a if act.is_identity else kernels_of(act)[1](grad_a, s)
    return delta, delta


def bp2_propagate_error(delta, weight, s, act, skip=None, with_a=True, skip_z=None):
    """BP2: delta^l = (delta^{l+1} W^{l+1}) * sigma'(z^l).  Returns (delta^l, rows, a^l)."""
    small = delta.numel() < CHECKED
    adjoint = delta.mm(weight) if small else products.error_below(delta, weight)
    if skip is not None:
        adjoint = _plus(adjoint, skip)
    below = _times_prime(adjoint, s, act)
    if skip_z is not None:
        below = _plus(below, skip_z)
    return below, below, (output(s, act) if with_a else None)


def bp2_frugal(delta, weight, s, act, over, at_peak):
    """BP2 with an eye on memory: over and at_peak as in products.error_below; no skips, no a^l."""
    if delta.numel() < CHECKED or not compat.readable(delta):
        return bp2_propagate_error(delta, weight, s, act, with_a=False)
    below = _times_prime(products.error_below(delta, weight, over, at_peak), s, act)
    return below, below, None


def _times_prime(adjoint, s, act):
    """The adjoint of a^l times sigma'(z^l), over the former where it is large."""
    if act.is_identity:
        return adjoint
    times_prime = kernels_of(act)[1]
    if adjoint.numel() < CHECKED or not compat.readable(adjoint):
        return times_prime(adjoint, s)
    return times_prime(adjoint, s, into=adjoint)  # new pages cost more than a pass


def bp3_bias_gradient(rows, dtype=None):
    """BP3: grad_b C = sum over examples of delta.  rows (any, N).  Returns (N,) in dtype."""
    return rows.sum(0) if dtype is rows.dtype else rows.sum(0, dtype=dtype)


def bp4_weight_gradient(delta, x, into=None):
    """BP4: grad_W C = delta^T a^{l-1}, summed over examples, added to into.  Returns (N, K)."""
    if delta.numel() >= CHECKED:
        return products.weight_gradient(delta, x, into)
    return delta.t().mm(x) if into is None else into.addmm_(delta.t(), x)


def output(s, act):
    """a^l from s^l, as kept."""
    return kernels_of(act)[0](s) if act.hides_z else s
