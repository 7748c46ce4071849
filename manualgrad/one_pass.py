"""sigma(z) and adjoint * sigma'(s) by ATen's kernels, in one pass over memory where there is one.

ONE_PASS names, per activation, ATen's kernel for either. An activation without a row is computed by
its formulas: ATen has no kernel for it, or (hardsigmoid) one whose 1/6 is a float32 in float64 too.
The tests hold every row to the formulas, infinities included.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from manualgrad import compat
from manualgrad.activations import Activation
from manualgrad.activations.gates import FAR
from manualgrad.activations.rectifiers import SELU_ALPHA, SELU_SCALE
from manualgrad.equations import times_sigma_prime
from manualgrad.formula import rounded_once

A = torch.ops.aten
ONEDNN_GELU = (torch.float32, torch.bfloat16)
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


def _past_onednn(z) -> bool:
    """Whether gelu of z is better seen transposed: oneDNN leaves to ATen what is not contiguous,
    and its call alone takes longer than so few entries do."""
    if torch.compiler.is_compiling() or z.dtype not in ONEDNN_GELU or z.dim() != 2:
        return False
    return z.numel() < CHECKED and z.is_cpu and min(z.shape) > 1 and z.is_contiguous()


def _gelu(z):
    return F.gelu(z.t()).t() if _past_onednn(z) else F.gelu(z)


def _gelu_prime(kernel, v, z):
    over_one = isinstance(kernel, functools.partial)  # _prime's, which writes over an argument
    if _past_onednn(z) and not over_one:
        return kernel(v.t(), z.t()).t()
    return kernel(v, z)


def _gelu_tail(z):
    # ATen's vectorised erf(inf) is NaN; from FAR on, z Phi(z) is z itself
    if torch.compiler.is_compiling():
        return torch.where(z.abs() < FAR, F.gelu(z), z.clamp(min=0.0))
    return torch.maximum(_gelu(z.clamp(min=-FAR, max=FAR)), torch.threshold(z, FAR, -1.0))


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
    "gelu": (_guarded(_gelu, _gelu_tail, finite), _tails(A.gelu_backward, _gelu_prime)),
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
