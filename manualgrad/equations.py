"""READ THIS FIRST. The forward pass and the four equations of backpropagation, one function each.

This is the reference: plain torch, differentiable itself. Every other backend is a module with
these five functions under the same names and signatures. Rows are examples.

    M: examples      K, N: inputs and outputs of a layer      l = 1..L: layers

    x = a^{l-1}  (M, K)      W^l  weight  (N, K)      b^l  bias  (N,)
    z^l = x W^T + b,  a^l = sigma(z^l),  delta^l = dC/dz^l      (M, N)
    s^l: z^l or a^l, whichever sigma' is written in, as kept    (M, N)

C is the cost. act is a manualgrad.activations.Activation. rows is any matrix whose column sums
are delta's: delta itself here, one float32 row per tile from a kernel.
"""

import torch

from manualgrad.formula import rounded_once


def linear_act_forward(x, weight, bias, act, skip=None, with_z=False):
    """a = sigma(x W^T + b + skip).  x (M, K), weight (N, K); bias (N,), skip (M, N), or None.

    Returns (a, s), or (a, z) if with_z.
    """
    z = x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)
    z = z if skip is None else z + skip
    a = _sigma(z, act)
    return a, (z if with_z or act.keeps == "z" else a)


def bp1_output_error(grad_a, s, act):
    """BP1: delta^L = grad_a C * sigma'(z^L).  grad_a, s (M, N).  Returns (delta, rows)."""
    delta = times_sigma_prime(act, grad_a, s)
    return delta, delta


def bp2_propagate_error(delta, weight, s, act, skip=None, with_a=True, skip_z=None):
    """BP2: delta^l = (delta^{l+1} W^{l+1}) * sigma'(z^l).

    delta (M, N) and weight (N, K) are layer l+1's; s (M, K) and act are layer l's. skip, skip_z
    (M, K) or None: the adjoints that other successors of a^l and of z^l send, added (eq. 13).
    Returns (delta^l, rows, a^l), a^l re-derived from s if with_a, else None.
    """
    adjoint = delta @ weight if skip is None else delta @ weight + skip
    below = times_sigma_prime(act, adjoint, s)
    if skip_z is not None:
        below = below + skip_z
    return below, below, (output(s, act) if with_a else None)


def bp3_bias_gradient(rows, dtype=None):
    """BP3: grad_b C = sum over examples of delta.  rows (any, N).  Returns (N,) in dtype."""
    return rows.sum(0, dtype=dtype)


def bp4_weight_gradient(delta, x, into=None):
    """BP4: grad_W C = delta^T a^{l-1}, summed over examples.  Returns (N, K).

    into: the sum over a shared weight's other uses, added (eq. 13); a backend may overwrite it.
    """
    product = delta.T @ x
    return product if into is None else into + product


def output(s, act):
    """a^l from s^l, as kept."""
    return _sigma(s, act) if act.keeps == "z" else s


def _sigma(z, act):
    return z if act.is_identity else rounded_once(act.sigma, z)


def times_sigma_prime(act, adjoint, s):
    """adjoint * sigma'(s), in float32 for half types and rounded once."""
    if act.is_identity:
        return adjoint
    return rounded_once(lambda adjoint, s: adjoint * act.sigma_prime(s), adjoint, s)
