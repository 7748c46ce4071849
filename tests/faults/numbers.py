"""Wrong numbers: a term dropped, a factor, a sign, another function's derivative."""

import torch
import torch.nn.functional as F
from torch.autograd import Function

from faults.planted import NUMERIC, B, Fault, Layer, W, X, layer, normal, planted


@planted()
def dropped_bias_gradient():
    def backward(ctx, grad):
        grad_x, grad_w, grad_b = Layer.backward(ctx, grad)
        return grad_x, grad_w, torch.zeros_like(grad_b)

    return layer(NUMERIC, r"gradient of bias \(4,\).*all of it is zero", backward)


@planted()
def missing_bias_gradient():
    def backward(ctx, grad):
        return *Layer.backward(ctx, grad)[:2], None

    return layer(NUMERIC, r"gradient of bias \(4,\) is None", backward)


@planted()
def no_one_over_m():
    class MSE(Function):
        @staticmethod
        def forward(ctx, a, y):
            ctx.save_for_backward(a, y)
            return F.mse_loss(a, y)

        @staticmethod
        def backward(ctx, grad):
            a, y = ctx.saved_tensors
            return 2 * grad * (a - y), -2 * grad * (a - y)

    return Fault(MSE, (X, X + 1), NUMERIC, "every entry is 15 times what it should be")


@planted()
def sigma_prime_at_a_instead_of_z():
    class GELU(Function):
        @staticmethod
        def forward(ctx, z):
            a = F.gelu(z)
            ctx.save_for_backward(a)
            return a

        @staticmethod
        def backward(ctx, grad):
            (a,) = ctx.saved_tensors
            with torch.enable_grad():
                z = a.detach().requires_grad_()
                (slope,) = torch.autograd.grad(F.gelu(z).sum(), z)
            return grad * slope

    return Fault(GELU, (X,), NUMERIC, r"gradient of z \(5, 3\): \[\d, \d\] is")


@planted()
def sigma_prime_of_another_function():
    def backward(ctx, grad):
        a = ctx.saved_tensors[2]
        return Layer.gradients(ctx, grad * a * (1.0 - a))

    return layer(NUMERIC, "gradient of weight", backward)


@planted(16)
def tanh_for_erf_in_backward():
    class GELU(Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return F.gelu(z)

        @staticmethod
        def backward(ctx, grad):
            (z,) = ctx.saved_tensors
            return torch.ops.aten.gelu_backward(grad, z, approximate="tanh")

    return Fault(GELU, (X,), NUMERIC, r"gradient of z \(5, 3\)")


@planted(16)
def tanh_for_erf_everywhere():
    def gelu(z):
        return F.gelu(z, approximate="tanh")

    options = {"reference": F.gelu}
    return Fault(gelu, (X,), {"oracle", "native"}, "the output in torch.float64", options)


@planted()
def one_part_in_a_million():  # beneath gradcheck's tolerances, far above the adjoint test's
    def backward(ctx, grad):
        return tuple(g * (1.0 + 1e-6) for g in Layer.backward(ctx, grad))

    return layer({"adjoint"}, "gradient of weight", backward)


@planted()
def transposed_weight_gradient():
    def backward(ctx, grad):
        grad_x, grad_w, grad_b = Layer.backward(ctx, grad)
        return grad_x, grad_w.T, grad_b

    inputs = (X, normal(3, 3, seed=1), B[:3])
    return layer(
        NUMERIC, "gradient of weight.*transposed of what it should be", backward, inputs=inputs
    )


@planted()
def output_gradient_assumed_to_be_ones():
    def backward(ctx, grad):
        return Layer.gradients(ctx, Layer.delta(ctx, torch.ones_like(grad)))

    return layer(NUMERIC, "gradient of x", backward)


@planted(19)
def reduction_none_as_if_it_were_mean():
    class MSE(Function):
        @staticmethod
        def forward(ctx, a, y):
            ctx.save_for_backward(a, y)
            return F.mse_loss(a, y, reduction="none")

        @staticmethod
        def backward(ctx, grad):
            a, y = ctx.saved_tensors
            g = 2 * grad * (a - y) / a.numel()
            return g, -g

    return Fault(MSE, (X, X + 1), NUMERIC, "every entry is 0.0666667 times")


@planted()
def sign_of_the_targets_gradient():
    class MSE(Function):
        @staticmethod
        def forward(ctx, a, y):
            ctx.save_for_backward(a, y)
            return F.mse_loss(a, y, reduction="sum")

        @staticmethod
        def backward(ctx, grad):
            a, y = ctx.saved_tensors
            return 2 * grad * (a - y), 2 * grad * (a - y)

    return Fault(MSE, (X, X + 1), NUMERIC, "gradient of y.*every entry is -1 times")


@planted()
def last_use_of_a_shared_weight_only():
    class Twice(Function):
        @staticmethod
        def forward(ctx, x, weight):
            a = x @ weight
            ctx.save_for_backward(x, weight, a)
            return a @ weight

        @staticmethod
        def backward(ctx, grad):
            _, weight, a = ctx.saved_tensors
            return grad @ weight.T @ weight.T, a.T @ grad

    return Fault(Twice, (X, normal(3, 3, seed=1)), NUMERIC, "gradient of weight")


@planted()
def adjoint_of_a_skip_dropped():
    class Residual(Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            return x + x @ weight

        @staticmethod
        def backward(ctx, grad):
            x, weight = ctx.saved_tensors
            return grad @ weight.T, x.T @ grad

    return Fault(Residual, (X, normal(3, 3, seed=1)), NUMERIC, r"gradient of x \(5, 3\)")


@planted()
def a_graph_cut_by_detach():
    def fn(x, w):
        return torch.tanh(x.detach() @ w.T) + 0 * x.sum()

    return Fault(fn, (X, W), NUMERIC, "gradient of x.*all of it is zero")


@planted()
def derivative_at_the_kink():
    class ReLU(Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return z.clamp(min=0)

        @staticmethod
        def backward(ctx, grad):
            return grad * (ctx.saved_tensors[0] >= 0)

    z = X.clone()
    z[0] = 0.0
    options = {"reference": torch.relu}
    return Fault(ReLU, (z,), {"native"}, "index 0 of dimension 0", options)
