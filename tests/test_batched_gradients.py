"""Gradients of several output gradients at once that have gradients themselves.

torch.autograd.grad(..., is_grads_batched=True, create_graph=True), and what is built on it:
torch.autograd.functional.jacobian and hessian with vectorize=True, create_graph=True.
"""

import pytest
import torch
from torch.autograd.functional import hessian, jacobian

import manualgrad as mg
from manualgrad.activations import ACTIVATIONS

NETS = ("layer", "chain", "recompute", "small")


def network(kind, name, x):
    """A function of x, and its parameters."""
    shapes = [(5, 4), (5,), (3, 5), (3,)]
    params = [torch.randn(shape, dtype=x.dtype, requires_grad=True) for shape in shapes]
    W1, b1, W2, b2 = params
    if kind == "layer":
        return lambda x: mg.linear_act(x, W1, b1, name), params[:2]
    options = {"recompute": True} if kind == "recompute" else {}
    return lambda x: mg.mlp(x, [W1, W2], [b1, b2], name, **options), params


def squares(of, f, x, params, vectorize):
    """The gradients of the sum of squares of f's Jacobian, or Hessian, by x and the parameters."""
    x = x.clone().requires_grad_()
    derivative = of(f, x, create_graph=True, vectorize=vectorize)
    cost = derivative.square().sum()
    return torch.autograd.grad(cost, [x, *params], allow_unused=True, materialize_grads=True)


@pytest.fixture(autouse=True)
def seeded(request):
    if "small" not in request.node.name:
        request.getfixturevalue("not_small")
    torch.manual_seed(0)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("kind", NETS)
def test_jacobians_have_gradients(kind, name):
    x = torch.randn(2, 4, dtype=torch.float64)
    f, params = network(kind, name, x)
    at_once, one_by_one = (squares(jacobian, f, x, params, v) for v in (True, False))
    torch.testing.assert_close(at_once, one_by_one, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["gelu", "silu", "tanh", "sine", "softplus"])
@pytest.mark.parametrize("kind", NETS)
def test_hessians_have_gradients(kind, name):
    x = torch.randn(1, 4, dtype=torch.float64)
    f, params = network(kind, name, x)
    run = (squares(hessian, lambda x: f(x).sum(), x, params, v) for v in (True, False))
    at_once, one_by_one = run
    torch.testing.assert_close(at_once, one_by_one, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", NETS)
def test_in_the_dtype_of_the_layer(kind, dtype):
    x = torch.randn(2, 4, dtype=dtype)
    f, params = network(kind, "gelu", x)
    at_once, one_by_one = (squares(jacobian, f, x, params, v) for v in (True, False))
    tolerance = {"rtol": 0.1, "atol": 0.1} if dtype is torch.bfloat16 else {}
    torch.testing.assert_close(at_once, one_by_one, **tolerance)


@pytest.mark.parametrize(
    "loss", [mg.mse_loss, mg.binary_cross_entropy_with_logits, mg.cross_entropy]
)
def test_losses(loss):
    x, target = torch.randn(3, 4, dtype=torch.float64), torch.rand(3, 4, dtype=torch.float64)
    W = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)

    def f(x):
        return loss(x @ W, target, reduction="none")

    at_once, one_by_one = (squares(jacobian, f, x, [W], v) for v in (True, False))
    torch.testing.assert_close(at_once, one_by_one, rtol=1e-9, atol=1e-9)
