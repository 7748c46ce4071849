"""Activations, softmax and layer norm."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from manualgrad import differentiable, equations
from manualgrad.activations import Activation
from manualgrad.dag.rules.base import Rule, summed, wide
from manualgrad.formula import rounded_once


class Activate(Rule):
    """a = sigma(z): z receives grad * sigma'(z), which is BP1."""

    @staticmethod
    def forward(z: Tensor, act: Activation) -> Tensor:
        return rounded_once(act.sigma, z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        z, ctx.act = inputs
        ctx.save_for_backward(z if ctx.act.keeps == "z" else output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        (s,) = ctx.saved_tensors
        ops = differentiable if torch.is_grad_enabled() else equations
        delta, _ = ops.bp1_output_error(grad, s, ctx.act)
        return delta, None


class Softmax(Rule):
    """p = e^x / sum e^x along a dimension: x receives p * (grad - sum grad * p)."""

    @staticmethod
    def forward(x: Tensor, dim: int) -> Tensor:
        return torch.softmax(x, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.dim = inputs
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        (kept,) = ctx.saved_tensors
        p, sent = wide(kept), wide(grad)
        mean = (sent * p).sum(ctx.dim, keepdim=True)
        return (p * (sent - mean)).to(grad.dtype), None


class LayerNorm(Rule):
    """v = w xhat + b with xhat = (x - mean) r, r = 1 / sqrt(variance + eps), over the last dims.

    With g = w grad: x receives r (g - mean g - xhat mean(g xhat)), w the sum over examples of
    grad xhat, b that of grad. w, b: of the normalised shape, or None.
    """

    @staticmethod
    def forward(x, shape: Sequence[int], weight, bias, eps: float) -> Tensor:
        return F.layer_norm(x, shape, weight, bias, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, ctx.shape, weight, _, ctx.eps = inputs
        ctx.dtype = None if weight is None else weight.dtype
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        kept, weight = ctx.saved_tensors
        needs_x, _, needs_weight, needs_bias, _ = ctx.needs_input_grad
        dims = tuple(range(-len(ctx.shape), 0))
        x, sent = wide(kept), wide(grad)
        centred = x - x.mean(dims, keepdim=True)
        r = torch.rsqrt((centred * centred).mean(dims, keepdim=True) + ctx.eps)
        xhat = centred * r
        grad_x = grad_weight = grad_bias = None
        if needs_x:
            g = sent if weight is None else sent * wide(weight)
            of_g, of_gx = g.mean(dims, keepdim=True), (g * xhat).mean(dims, keepdim=True)
            grad_x = (r * (g - of_g - xhat * of_gx)).to(kept.dtype)
        if needs_weight:
            grad_weight = summed(sent * xhat, ctx.shape).to(ctx.dtype)
        if needs_bias:
            grad_bias = summed(sent, ctx.shape).to(grad.dtype)
        return grad_x, None, grad_weight, grad_bias, None
