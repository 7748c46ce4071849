"""Extremes and digits: overflow, NaN, too few bits, no fixed order."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from faults.planted import CONDUCT, B, Fault, Layer, W, X, layer, native, normal, planted


@planted()
def nan_far_out():
    class Sigmoid(Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return torch.sigmoid(z)

        @staticmethod
        def backward(ctx, grad):
            e = torch.exp(ctx.saved_tensors[0])
            return grad * e / (1 + e) ** 2

    return Fault(Sigmoid, (X,), CONDUCT, "entries are not finite, though every value of fn is")


@planted()
def infinity_far_out():
    def softplus(z):
        return torch.log(1 + torch.exp(z))

    judges = {"oracle", "conduct"}
    return Fault(softplus, (X,), judges, r"z is up to 10\^4: .* is inf", {"reference": F.softplus})


@planted()
def nan_swallowed():
    def relu(z):
        return torch.where(z > 0, z, 0.0)

    return Fault(relu, (X,), {"oracle"}, "z is NaN: being NaN", {"reference": torch.relu})


@planted(4)
def float32_arithmetic_on_float64():
    def backward(ctx, grad):
        return tuple(g.float().double() for g in Layer.backward(ctx, grad))

    return layer({"adjoint"}, "gradient of", backward)


@planted(4)
def float32_forward_on_float64():
    class Copy(Layer):
        @staticmethod
        def forward(ctx, x, weight, bias):
            a = torch.tanh(F.linear(x.float(), weight.float(), bias.float())).double()
            ctx.save_for_backward(x, weight, a)
            return a

        @staticmethod
        def backward(ctx, grad):
            return Layer.backward(ctx, grad)

    judges = {"finite differences", "oracle", "native"}  # conduct too where MKL's sums vary
    options = {"reference": native}
    return Fault(Copy, (X, W, B), judges, "the output in torch.float64", options)


def tf32(t: Tensor) -> Tensor:
    """t with 10 bits after the point, as a tensor core reads a float32."""
    return (t.view(torch.int32) & ~0x1FFF).view(torch.float32) if t.dtype == torch.float32 else t


@planted(14)
def tensor_cores_for_float32():
    class Copy(Layer):
        @staticmethod
        def backward(ctx, grad):
            x, weight, _ = ctx.saved_tensors
            delta = Layer.delta(ctx, grad)
            return delta @ weight, tf32(delta).T @ tf32(x), delta.sum(0)

    inputs = (normal(64, 3, dtype=torch.float32), W.float(), B.float())
    judges, options = {"native", "conduct"}, {"reference": native}
    says = r"gradient of weight \(4, 3\) in torch.float32"
    return Fault(Copy, inputs, judges, says, {**options, "only": ("native", "adjoint", "conduct")})


@planted(18)
def sums_accumulated_in_bfloat16():
    class Copy(Layer):
        @staticmethod
        def backward(ctx, grad):
            grad_x, grad_w, _ = Layer.backward(ctx, grad)
            total = torch.zeros_like(grad[0])
            for row in Layer.delta(ctx, grad):
                total = total + row
            return grad_x, grad_w, total

    inputs = tuple(t.bfloat16() for t in (normal(4096, 3), W, B))
    options = {"reference": native, "only": ("native", "adjoint")}
    return Fault(Copy, inputs, {"native"}, "gradient of bias.* in torch.bfloat16", options)
