"""Calls: what a rule keeps where the next call finds it, and what its gradient depends on besides."""

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from faults.planted import CONDUCT, Fault, X, planted


class Square(Function):
    """x^2, right."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return 2 * grad * ctx.saved_tensors[0]


@planted()
def input_kept_on_the_class():
    class Copy(Square):
        @staticmethod
        def forward(ctx, x):
            Copy.x = x.detach().clone()
            return x * x

        @staticmethod
        @once_differentiable
        def backward(ctx, grad):
            return 2 * grad * Copy.x

    return Fault(Copy, (X,), CONDUCT, "first of two calls, .*: gradient of x")


@planted()
def output_in_a_static_buffer():
    buffers = {}

    class Copy(Square):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            out = buffers.setdefault((x.shape, x.dtype), torch.empty_like(x))
            return torch.mul(x, x, out=out).detach()

    return Fault(Copy, (X,), CONDUCT, "first of two calls, .*: the output")


@planted()
def gradient_in_a_static_buffer():
    buffers = {}

    class Copy(Square):
        @staticmethod
        @once_differentiable
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            out = buffers.setdefault((x.shape, x.dtype), torch.empty_like(x))
            return torch.mul(2 * grad, x, out=out)

    return Fault(Copy, (X,), CONDUCT, "of two calls, .*: gradient of x")


@planted()
def output_kept_on_ctx():
    class Copy(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.a = torch.sigmoid(x)
            return ctx.a

        @staticmethod
        @once_differentiable
        def backward(ctx, grad):
            return grad * ctx.a * (1 - ctx.a)

    return Fault(Copy, (X,), CONDUCT, "after output 0 was changed in place .*save_for_backward")


@planted()
def gradient_clipped_inside():
    class Copy(Square):
        @staticmethod
        @once_differentiable
        def backward(ctx, grad):
            return Square.backward(ctx, grad.clamp(-10, 10))

    return Fault(Copy, (X,), CONDUCT, "its output gradient 4096 times as large, by 4096")


@planted()
def another_gradient_under_create_graph():
    class Copy(Square):
        @staticmethod
        def backward(ctx, grad):
            wrong = 1.5 if torch.is_grad_enabled() else 1.0
            return 2 * wrong * grad * ctx.saved_tensors[0]

    return Fault(Copy, (X,), {"adjoint", *CONDUCT}, "under create_graph=True: gradient of x")


@planted()
def a_result_that_lost_its_gradient():
    def detached(x):
        return x.sin(), x.detach().cos()

    def reference(x):
        return x.sin(), x.cos()

    says = "result 1 carries no gradient, the reference's does"
    return Fault(detached, (X,), {"native"}, says, {"reference": reference})


@planted()
def indices_of_the_least():
    def least(x):
        return x.max(-1)[0], x.min(-1)[1]

    says = "result 1, which carries no gradient"
    return Fault(least, (X,), {"native"}, says, {"reference": lambda x: torch.max(x, -1)})
