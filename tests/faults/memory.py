"""Memory: what is read as if it were contiguous, and what is overwritten."""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from faults.planted import CONDUCT, B, Fault, Layer, W, X, layer, normal, planted


def as_if_contiguous(t: Tensor) -> Tensor:
    """What a kernel reads that takes t's address and ignores its strides."""
    stored = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage())[t.storage_offset() :]
    garbage = torch.full((t.numel(),), 1e30, dtype=t.dtype)
    garbage[: len(stored)] = stored[: t.numel()]
    return garbage.reshape(t.shape)


@planted(1)
def stride_0_gradient_read_as_contiguous():
    def backward(ctx, grad):
        return Layer.backward(ctx, as_if_contiguous(grad))

    return layer(CONDUCT, r"as \.sum\(\) sends it \(all strides 0\): gradient of x", backward)


@planted(1)
def input_read_as_contiguous():
    class Copy(Layer):
        @staticmethod
        def forward(ctx, x, weight, bias):
            return Layer.forward(ctx, as_if_contiguous(x), weight, bias)

        @staticmethod
        @once_differentiable
        def backward(ctx, grad):
            return Layer.backward(ctx, grad)

    return Fault(Copy, (X, W, B), CONDUCT, "x transposed in memory: the output")


@planted()
def view_of_a_transposed_input():
    class Copy(Layer):
        @staticmethod
        def backward(ctx, grad):
            x, weight, _ = ctx.saved_tensors
            delta = Layer.delta(ctx, grad)
            return (
                delta @ weight,
                delta.reshape(-1, 4).T @ x.view(-1, 3),
                delta.reshape(-1, 4).sum(0),
            )

    inputs = (normal(2, 5, 3), W, B)
    return Fault(
        Copy, inputs, CONDUCT, r"x with its dimensions.*view size is not compatible.*backward"
    )


@planted()
def view_of_a_transposed_gradient():
    def backward(ctx, grad):
        return Layer.backward(ctx, grad.view(-1).view(grad.shape))

    return layer(
        CONDUCT, "with its output gradient transposed in memory.*fn raised RuntimeError", backward
    )


@planted(2)
def saved_tensor_overwritten():
    def backward(ctx, grad):
        x, weight, a = ctx.saved_tensors
        slope = a.data.mul_(a.data).neg_().add_(1.0)  # to save memory
        delta = grad * slope
        return delta @ weight, delta.T @ x, delta.sum(0)

    options = {"only": "conduct"}
    return layer(CONDUCT, "saved tensor 2, after backward", backward, **options)


@planted(2)
def neighbours_saved_tensor_overwritten():
    class Sigmoid(Function):
        @staticmethod
        def forward(ctx, z):
            a = torch.sigmoid(z)
            ctx.save_for_backward(z, a)
            return a

        @staticmethod
        def backward(ctx, grad):
            z, a = ctx.saved_tensors
            return torch.mul(
                grad, a * (1 - a), out=torch.empty(0, dtype=z.dtype).set_(z.data)
            ).clone()

    return Fault(Sigmoid, (X,), CONDUCT, "which the operation below may have saved, after backward")


@planted(2)
def incoming_gradient_overwritten():
    class Double(Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            return grad.data.mul_(2).clone()

    return Fault(Double, (X,), CONDUCT, "the incoming gradient 0, after backward")


@planted()
def input_overwritten_in_forward():
    class Scale(Function):
        @staticmethod
        def forward(ctx, x):
            x.data.mul_(2)
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad

    judges = {"conduct", "finite differences"}
    return Fault(Scale, (X,), judges, "may have saved, after forward")


@planted(2)
def second_backward_is_another():
    def backward(ctx, grad):
        ctx.scale = 2 * getattr(ctx, "scale", 0.5)
        return tuple(ctx.scale * g for g in Layer.backward(ctx, grad))

    judges = {"conduct", "finite differences"}
    return layer(judges, "the second time, under retain_graph", once_differentiable(backward))


@planted(2)
def second_backward_is_impossible():
    def backward(ctx, grad):
        if getattr(ctx, "used", False):
            raise AttributeError("outputs")
        ctx.used = True
        return Layer.backward(ctx, grad)

    return layer({"conduct", "finite differences"}, "fn raised AttributeError: outputs", backward)


@planted()
def memory_read_before_it_is_written():
    def backward(ctx, grad):
        grad_x, grad_w, grad_b = Layer.backward(ctx, grad)
        return grad_x, grad_w, torch.empty_like(grad_b).mul_(0).add_(grad_b)  # 0 * garbage

    return layer(CONDUCT, "with NaN in the memory that torch.empty returns", backward)


@planted(22)
def weight_gradient_written_into_the_parameter():
    class Fused(Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            ctx.weight = weight
            return x @ weight.T

        @staticmethod
        def backward(ctx, grad):
            x, weight = ctx.saved_tensors
            if ctx.weight.is_leaf:
                ctx.weight.grad = grad.T @ x  # "fused accumulation": no hook ever sees it
            return grad @ weight, None

    judges = {*CONDUCT, "adjoint"}
    return Fault(
        Fused, (X, W), judges, r"weight\.grad after autograd\.grad", {"only": tuple(judges)}
    )


@planted()
def input_kept_behind_autograds_back():
    class Square(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.x = x.detach().numpy()
            return x * x

        @staticmethod
        def backward(ctx, grad):
            return 2 * torch.from_numpy(ctx.x) * grad

    judges = CONDUCT
    says = r"changed in place between forward and backward.*save_for_backward"
    return Fault(Square, (X,), judges, says)
