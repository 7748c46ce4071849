"""The five operations, each handed to the backend that the table names for its tensors.

Read manualgrad.backends for the table. What is here is how each backend does each operation.
"""

import sys
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from manualgrad import aten, backends, compat
from manualgrad.backends import BP1, BP2, BP3, BP4, FORWARD, choose
from manualgrad.eligibility import triton_kernels

THIS_MODULE = sys.modules[__name__]


def backend_for(tensor: Tensor) -> ModuleType:
    """The module whose five operations run on a plain tensor: ATen's, or this one on a GPU."""
    mode = backends.mode()
    return THIS_MODULE if mode == "triton" or (mode == "auto" and tensor.is_cuda) else aten


def linear_act_forward(x, weight, bias, act, skip=None, with_z=False):
    """a = sigma(x W^T + b + skip).  x (M, K), weight (N, K), bias (N,) or None.

    skip (M, N) or None. Returns (a, s), or (a, z) if with_z.
    """
    (M, K), N = x.shape, weight.shape[0]
    choice = choose(FORWARD, act, M, N, K, x, weight, bias, skip, bias=bias is not None)
    return forward_by(choice, x, weight, bias, act, skip, with_z)


def forward_by(choice, x, weight, bias, act, skip=None, with_z=False):
    if choice.backend == "triton":
        tile = _tile(FORWARD, choice, x)
        return triton_kernels().linear_act_forward(x, weight, bias, act, skip, with_z, tile=tile)
    plain = skip is None and not with_z
    if choice.backend == "cublaslt" and compat.addmm_activation is not None and plain:
        a = compat.addmm_activation(bias, x, weight.t())
        return a, a
    if choice.backend == "hybrid":
        z = F.linear(x, weight, bias)
        if skip is not None:
            z += skip
        with_z = with_z or act.hides_z
        a = triton_kernels().sigma_pass(z, act, out=None if with_z else z)
        return a, (z if with_z else a)
    return aten.linear_act_forward(x, weight, bias, act, skip, with_z)


def bp1_output_error(grad_a, s, act):
    """BP1: delta^L = grad_a C * sigma'(z^L).  grad_a, s (M, N).  Returns (delta, rows)."""
    M, N = grad_a.shape
    choice = choose(BP1, act, M, N, 0, grad_a, None if act.is_identity else s)
    return bp1_by(choice, grad_a, s, act)


def bp1_by(choice, grad_a, s, act):
    on = aten if choice.backend == "aten" else triton_kernels()
    return on.bp1_output_error(grad_a, s, act)


def bp2_propagate_error(delta, weight, s, act, skip=None, with_a=True, skip_z=None):
    """BP2: delta^l = (delta^{l+1} W^{l+1}) * sigma'(z^l).  Returns (delta^l, rows, a^l)."""
    (M, N), K = delta.shape, weight.shape[1]
    s_read = None if act.is_identity else s
    choice = choose(BP2, act, M, K, N, delta, weight, s_read, skip, skip_z)
    return bp2_by(choice, delta, weight, s, act, skip, with_a, skip_z)


def bp2_by(choice, delta, weight, s, act, skip=None, with_a=True, skip_z=None):
    if choice.backend == "triton":
        tile = _tile(BP2, choice, delta)
        return triton_kernels().bp2_propagate_error(
            delta, weight, s, act, skip, with_a, skip_z, tile=tile
        )
    if choice.backend == "hybrid":
        adjoint = delta.mm(weight) if skip is None else torch.addmm(skip, delta, weight)
        return triton_kernels().sigma_prime_pass(adjoint, s, act, with_a, skip_z, in_place=True)
    return aten.bp2_propagate_error(delta, weight, s, act, skip, with_a, skip_z)


def bp3_bias_gradient(rows, dtype=None):
    """BP3: grad_b C = sum over examples of delta.  rows (any, N).  Returns (N,) in dtype."""
    M, N = rows.shape
    choice = choose(BP3, aten.IDENTITY, M, N, 0, rows)
    return (aten if choice.backend == "aten" else triton_kernels()).bp3_bias_gradient(rows, dtype)


def bp4_weight_gradient(delta, x, into=None):
    """BP4: grad_W C = delta^T a^{l-1}, summed over examples, added to into.  Returns (N, K)."""
    (M, N), K = delta.shape, x.shape[1]
    return bp4_by(choose(BP4, aten.IDENTITY, N, K, M, delta, x, into), delta, x, into)


def bp4_by(choice, delta, x, into=None):
    if choice.backend == "triton":
        tile = _tile(BP4, choice, delta)
        return triton_kernels().bp4_weight_gradient(delta, x, into, tile=tile)
    return aten.bp4_weight_gradient(delta, x, into)


def output(s, act):
    """a^l from s^l, as kept."""
    if not act.hides_z:
        return s
    M, N = s.shape
    choice = choose(FORWARD, act, M, N, 0, s)
    return (aten if choice.backend == "aten" else triton_kernels()).output(s, act)


def _tile(operation, choice, tensor):
    """The tile that a measurement names; None lets the kernels' own rule decide."""
    return choice.tile and triton_kernels().launch.tile_named(operation, choice.tile, tensor)
