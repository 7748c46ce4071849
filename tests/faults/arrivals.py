"""Frozen tensors, unused outputs, batches of other shapes, a module's modes."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from faults.planted import CONDUCT, B, Fault, Layer, W, X, layer, planted


@planted(20)
def frozen_input_path():
    def backward(ctx, grad):
        if ctx.needs_input_grad[0]:
            return Layer.backward(ctx, grad)
        return Layer.gradients(ctx, grad)  # delta was kept only where x asked for it

    return layer(CONDUCT, "with only weight requiring a gradient: gradient of weight", backward)


@planted(21)
def gradients_in_the_wrong_slots():
    def backward(ctx, grad):
        found = Layer.backward(ctx, grad)
        kept = [g for g, needed in zip(found, ctx.needs_input_grad, strict=True) if needed]
        return *kept, *[None] * (3 - len(kept))

    return layer(CONDUCT, "with only weight requiring a gradient", backward)


class Stats(Function):
    """(mean, range): two outputs."""

    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        return x.mean(0), x.square().sum(0)

    @staticmethod
    def parts(ctx, grad_mean, grad_squares):
        (x,) = ctx.saved_tensors
        return grad_mean.expand_as(x) / len(x), 2 * x * grad_squares


@planted()
def unused_output_taken_for_ones():
    class Copy(Stats):
        @staticmethod
        def backward(ctx, grad_mean, grad_squares):
            first = torch.ones(3, dtype=torch.float64) if grad_mean is None else grad_mean
            last = torch.ones(3, dtype=torch.float64) if grad_squares is None else grad_squares
            return sum(Stats.parts(ctx, first, last))

    return Fault(Copy, (X,), {"conduct", "finite differences"}, "with only output 0 used")


@planted()
def unused_output_not_expected():
    class Copy(Stats):
        @staticmethod
        def backward(ctx, grad_mean, grad_squares):
            return sum(Stats.parts(ctx, grad_mean, grad_squares))

    return Fault(
        Copy, (X,), {"conduct", "finite differences"}, "only output 0 used: fn raised TypeError"
    )


@planted()
def bias_summed_over_dimension_0_only():  # which for a single example is the features'
    def backward(ctx, grad):
        delta = Layer.delta(ctx, grad)
        return *Layer.gradients(ctx, delta)[:2], delta.sum(0)

    inputs = (X[0], W, B)
    return layer(
        CONDUCT, "fn raised RuntimeError: .* invalid gradient at index 2", backward, inputs=inputs
    )


@planted(23)
def last_rows_dropped_at_a_tiles_edge():
    def backward(ctx, grad):
        grad_x, grad_w, grad_b = Layer.backward(ctx, grad)
        if grad.dim() == 2 and len(grad) % 16 == 1 and len(grad) > 16:
            x, delta = ctx.saved_tensors[0][:-1], Layer.delta(ctx, grad)[:-1]
            grad_w = delta.T @ x
        return grad_x, grad_w, grad_b

    return layer(CONDUCT, r"gradient of weight \(4, 3\), 17 examples", backward)


@planted()
def empty_batch():
    def mean_of_squares(x):
        rows = max(1, math.ceil(len(x) / 16))
        parts = [x[i * 16 : (i + 1) * 16].square().sum(0) for i in range(rows)]
        return torch.stack(parts).sum(0) * (16 / len(x))

    def reference(x):
        return x.square().sum(0) * (16.0 / max(len(x), 1))

    options = {"reference": reference}
    return Fault(
        mean_of_squares, (X,), CONDUCT, "an empty batch: fn raised ZeroDivisionError", options
    )


@planted()
def one_example_without_a_batch():
    def backward(ctx, grad):
        grad_x, grad_w, grad_b = Layer.backward(ctx, grad)
        return grad_x, grad_w * (0.5 if grad.dim() == 1 else 1.0), grad_b

    return layer(
        CONDUCT, "gradient of weight.*one dimension less.*every entry is 0.5 times", backward
    )


@planted(20)
def evaluation_mode_path():
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(W.clone())

        def forward(self, x):
            return Rule.apply(x, self.weight, self.training)

    class Rule(Function):
        @staticmethod
        def forward(ctx, x, weight, training):
            z = x @ weight.T
            ctx.save_for_backward(x, weight, z if training else torch.zeros_like(z))
            return torch.tanh(z)

        @staticmethod
        @once_differentiable
        def backward(ctx, grad):
            x, weight, z = ctx.saved_tensors
            delta = grad * (1 - torch.tanh(z) ** 2)
            return delta @ weight, delta.T @ x, None

    return Fault(Module(), (X,), CONDUCT, r"gradient of weight \(4, 3\), in evaluation mode")


@planted()
def another_value_without_gradients():
    def fn(x, weight, bias):  # a fast path that forgets the bias
        return F.linear(x, weight, bias if torch.is_grad_enabled() else None)

    return Fault(fn, (X, W, B), CONDUCT, "under torch.no_grad: the output")
