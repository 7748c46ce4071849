"""The five operations of manualgrad.equations on ATen's one-pass kernels, for plain tensors.

The equations are the same; what changes is how many passes over memory the elementwise half takes
(manualgrad.one_pass), and who makes the products (manualgrad.products).
"""

import torch
import torch.nn.functional as F

from manualgrad import compat, half_precision, products
from manualgrad.activations import ACTIVATIONS
from manualgrad.one_pass import CHECKED, kernels_of

__all__ = [
    "bp1_output_error",
    "bp2_propagate_error",
    "bp3_bias_gradient",
    "bp4_weight_gradient",
    "linear_act_forward",
    "output",
]

IDENTITY = ACTIVATIONS["identity"]


def linear_act_forward(x, weight, bias, act, skip=None, with_z=False):
    """a = sigma(x W^T + b + skip).  x (M, K), weight (N, K), bias (N,) or None.

    skip (M, N) or None. Returns (a, s), or (a, z) if with_z.
    """
    identity = act.is_identity
    if act.name == "tanh" and skip is None and not with_z:
        a = products.linear_tanh(x, weight, bias)
        if a is not None:
            return a, a
    z = F.linear(x, weight, bias) if _small(x) else products.linear(x, weight, bias, identity)
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
    adjoint = delta.mm(weight) if _small(delta) else products.error_below(delta, weight)
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
    if not _small(delta):
        return products.weight_gradient(delta, x, into)
    return delta.t().mm(x) if into is None else into.addmm_(delta.t(), x)


def _small(rows) -> bool:
    """Whether products are left to ATen: to look who is faster costs more than it saves."""
    return rows.numel() < CHECKED and not half_precision.may_take(rows)


def output(s, act):
    """a^l from s^l, as kept."""
    return kernels_of(act)[0](s) if act.hides_z else s
