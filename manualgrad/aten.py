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

import torch
import torch.nn.functional as F

from manualgrad import compat
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
CHECKED = 1 << 14  # entries
ELU = A.elu_backward.default  # (adjoint, alpha, scale, input_scale, is_result, z)


def _checked(kernel: Callable, exact: Callable) -> Callable:
    """kernel, or exact where kernel's result has a NaN: some kernels of ATen multiply inf by 0.

    Of a large matrix a sum, which a NaN makes NaN, is cheaper than the passes that exact adds.
    """

    def checked(*tensors):
        if tensors[-1].numel() < CHECKED or not all(map(compat.readable, tensors)):
            return exact(*tensors)
        found = kernel(*tensors)
        return exact(*tensors) if math.isnan(found.sum().item()) else found

    return checked


def _tail(sigma: Callable, in_place: Callable | None = None) -> Callable:
    """sigma(z) where ATen's own kernel multiplies -inf by 0."""
    return _checked(sigma, lambda z: (in_place or sigma)(z.clamp(min=-FAR)))


def _tails(times_prime: Callable) -> Callable:
    """adjoint * sigma'(z) where ATen's own kernel multiplies +-inf by 0."""
    return _checked(times_prime, lambda v, z: times_prime(v, z.clamp(min=-FAR, max=FAR)))


def _gelu(z):
    # ATen's vectorised erf(inf) is NaN; from FAR on, z Phi(z) is z itself
    return torch.maximum(F.gelu(z.clamp(min=-FAR, max=FAR)), torch.threshold(z, FAR, -1.0))


# name: (sigma(z, **parameters), adjoint * sigma'(s, **parameters)), s as the activation keeps it.
# Where a is kept, sigma overwrites z: z is fresh from the product and nobody else's.
ONE_PASS: dict[str, tuple[Callable, Callable]] = {
    "relu": (torch.relu_, lambda v, a: A.threshold_backward.default(v, a, 0)),
    "leaky_relu": (
        F.leaky_relu_,
        lambda v, a, negative_slope=0.01: A.leaky_relu_backward.default(v, a, negative_slope, True),
    ),
    "relu6": (
        lambda z: F.hardtanh_(z, 0.0, 6.0),
        lambda v, a: A.hardtanh_backward.default(v, a, 0, 6),
    ),
    "sigmoid": (torch.sigmoid_, A.sigmoid_backward.default),
    "tanh": (torch.tanh_, A.tanh_backward.default),
    "elu": (F.elu, lambda v, z, alpha=1.0: ELU(v, alpha, 1, 1, False, z)),
    "selu": (F.selu, lambda v, z: ELU(v, SELU_ALPHA, SELU_SCALE, 1, False, z)),
    "celu": (F.celu, lambda v, z, alpha=1.0: ELU(v, alpha, 1, 1 / alpha, False, z)),
    "softplus": (
        F.softplus,
        lambda v, z, beta=1.0, threshold=20.0: A.softplus_backward.default(v, z, beta, threshold),
    ),
    "silu": (_tail(F.silu, A.silu_.default), _tails(A.silu_backward.default)),
    "mish": (_tail(F.mish, A.mish_.default), _tails(A.mish_backward.default)),
    "hardswish": (_tail(F.hardswish, A.hardswish_.default), A.hardswish_backward.default),
    "gelu": (_checked(F.gelu, _gelu), _tails(A.gelu_backward.default)),
    "gelu_tanh": (
        _tail(lambda z: F.gelu(z, approximate="tanh")),
        _tails(lambda v, z: A.gelu_backward.default(v, z, approximate="tanh")),
    ),
}


@functools.lru_cache(maxsize=256)
def kernels_of(act: Activation) -> tuple[Callable, Callable]:
    """(sigma(z), adjoint * sigma'(s)) with act's parameters: ATen's, or the formulas."""
    kernels = ONE_PASS.get(act.name)
    if kernels is None:
        return functools.partial(rounded_once, act.sigma), functools.partial(times_sigma_prime, act)
    if act.parameters:
        sigma, times_prime = (functools.partial(k, **dict(act.parameters)) for k in kernels)
        return sigma, times_prime
    return kernels


def linear_act_forward(x, weight, bias, act, skip=None, with_z=False):
    """a = sigma(x W^T + b + skip).  x (M, K), weight (N, K), bias (N,) or None.

    skip (M, N) or None. Returns (a, s), or (a, z) if with_z.
    """
    z, identity = F.linear(x, weight, bias), act.is_identity
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
    adjoint = delta.mm(weight)
    if skip is not None:
        adjoint = _plus(adjoint, skip)
    below = adjoint if act.is_identity else kernels_of(act)[1](adjoint, s)
    if skip_z is not None:
        below = _plus(below, skip_z)
    return below, below, (output(s, act) if with_a else None)


def bp3_bias_gradient(rows, dtype=None):
    """BP3: grad_b C = sum over examples of delta.  rows (any, N).  Returns (N,) in dtype."""
    return rows.sum(0) if dtype is rows.dtype else rows.sum(0, dtype=dtype)


def bp4_weight_gradient(delta, x, into=None):
    """BP4: grad_W C = delta^T a^{l-1}, summed over examples, added to into.  Returns (N, K)."""
    return delta.t().mm(x) if into is None else into.addmm_(delta.t(), x)


def output(s, act):
    """a^l from s^l, as kept."""
    return kernels_of(act)[0](s) if act.hides_z else s
