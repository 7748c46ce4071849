"""The second derivative, forward mode, transforms and tracers; exceptions."""

import itertools
import traceback

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from faults.planted import CONDUCT, NUMERIC, Fault, Layer, W, X, layer, planted


@planted(3)
def no_second_derivative_and_no_word_of_it():
    def backward(ctx, grad):
        with torch.no_grad():  # what calling a kernel amounts to
            return Layer.backward(ctx, grad)

    return layer(CONDUCT, "differentiated by x .*is silently None", backward)


@planted(3)
def sigma_prime_taken_for_a_constant():
    def backward(ctx, grad):
        a = ctx.saved_tensors[2].detach()
        return Layer.gradients(ctx, grad * (1.0 - a * a))

    return layer({"adjoint", "conduct"}, "differentiated by x", backward)


@planted(5)
def lost_from_the_graph_in_a_batch():
    class TimesSigmaPrime(Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(grad, a):
            return grad * (1.0 - a * a)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, grad):
            of_grad, a = ctx.saved_tensors
            return grad * (1.0 - a * a), -2.0 * grad * of_grad * a

    def backward(ctx, grad):
        return Layer.gradients(ctx, TimesSigmaPrime.apply(grad, ctx.saved_tensors[2]))

    return layer(CONDUCT, "in a batch of output gradients and, differentiated by", backward)


@planted()
def wrong_sigma_second():
    class Prime(Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return 1.0 - torch.tanh(z) ** 2

        @staticmethod
        def backward(ctx, grad):
            a = torch.tanh(ctx.saved_tensors[0])
            return 2.0 * grad * a * (1.0 - a * a)  # its sign is wrong

    class Tanh(Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return torch.tanh(z)

        @staticmethod
        def backward(ctx, grad):
            return grad * Prime.apply(ctx.saved_tensors[0])

    return Fault(Tanh, (X,), NUMERIC, "the gradient, differentiated by z")


class Cube(Function):
    """x^3 with everything a Function can have."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return 3 * ctx.saved_tensors[0] ** 2 * grad

    @staticmethod
    def jvp(ctx, tangent):
        return 3 * ctx.saved_tensors[0] ** 2 * tangent


@planted()
def wrong_jvp():
    class Copy(Cube):
        @staticmethod
        def jvp(ctx, tangent):
            return 2 * ctx.saved_tensors[0] ** 2 * tangent

    return Fault(Copy, (X,), NUMERIC, "the tangent that forward mode gives for x")


@planted()
def jvp_of_nothing():
    class Copy(Cube):
        @staticmethod
        def jvp(ctx, tangent):
            return torch.zeros_like(tangent)

    return Fault(Copy, (X,), NUMERIC, "the tangent that forward mode gives for x")


@planted(5)
def wrong_under_vmap():
    class Scaled(Function):
        @staticmethod
        def forward(x, scale):
            return x * scale

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, grad):
            x, scale = ctx.saved_tensors
            return grad * scale, grad * x

        @staticmethod
        def vmap(info, in_dims, x, scale):
            return Scaled.apply(x, scale[0] if in_dims[1] is not None else scale), 0

    return Fault(Scaled, (X, X + 2), CONDUCT, "vmap over x, scale, example 1")


@planted(10, 27)
def wrong_when_compiled():
    def leaky_relu(z):
        slope = 0.02 if torch.compiler.is_compiling() else 0.01  # a constant gone stale
        return torch.where(z > 0, z, slope * z)

    return Fault(leaky_relu, (X,), CONDUCT, "compiled: the output")


@planted(6)
def other_dtype_under_autocast():
    def fn(x, weight):
        if torch.is_autocast_enabled("cpu"):
            return (x @ weight.T).half()
        return x @ weight.T

    return Fault(fn, (X, W), CONDUCT, "under autocast to torch.bfloat16 is torch.float16")


@planted(7)
def forward_that_counts_its_calls():  # so that checkpoint recomputes something else
    calls = itertools.count()

    def fn(x):
        return x * (1.0 + 1e-3 * (next(calls) % 2))

    return Fault(fn, (X,), CONDUCT, "run number", {"only": "conduct"})


@planted(15)
def sum_in_no_fixed_order():
    order = itertools.cycle([False, True])
    parts = torch.tensor([2.0**24] + 31 * [1.0])  # in float32 2^24 + 1 is 2^24

    class Sum(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.shape = x.shape
            return x.sum(0)

        @staticmethod
        @once_differentiable
        def backward(ctx, grad):
            blocks = parts.tolist() if next(order) else parts.tolist()[::-1]
            total = sum(grad * part for part in blocks)  # the block that is first adds first
            return (total / parts.sum()).expand(ctx.shape)

    return Fault(Sum, (X.float(),), CONDUCT, r"run number \d", {"only": "conduct"})


@planted(7)
def another_value_under_checkpoint():
    def fn(x):
        return (1.5 if "checkpoint.py" in callers() else 1.0) * torch.sin(x)

    says = r"under checkpoint\(use_reentrant=False\): the output"
    return Fault(fn, (X,), CONDUCT, says, {"only": "conduct"})


def callers() -> set[str]:
    """The files that the callers are in."""
    return {frame.filename.rpartition("/")[2] for frame in traceback.extract_stack()}


@planted()
def an_exception():
    def fn(x):
        raise KeyError("weight_3")

    return Fault(fn, (X,), CONDUCT, r"fn raised KeyError: 'weight_3' \(transforms\.py:\d+, in fn\)")


@planted()
def an_exception_in_backward():
    def backward(ctx, grad):
        return grad @ grad, None, None

    return layer(CONDUCT, r"fn raised RuntimeError: mat1 and mat2.*in backward", backward)


@planted()
def nothing_flows():
    def fn(x):
        return x.detach() * 2

    return Fault(fn, (X,), CONDUCT, "no result requires a gradient")
