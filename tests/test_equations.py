"""The reference: the textbook's column form, its row form, and torch's own autograd agree."""

import inspect
import itertools

import pytest
import torch
from helpers import NAMES, f64, native

from manualgrad import aten, equations
from manualgrad.activations import ACTIVATIONS
from manualgrad.backends import OPERATIONS

SIGMOID, TANH, IDENTITY = (ACTIVATIONS[name] for name in ("sigmoid", "tanh", "identity"))
names = pytest.mark.parametrize("name", NAMES)


def column_form(x, weights, biases, target):
    """Eq. 1-4, 10-12 and BP1-BP4 for one example, as the text writes them, with vectors and loops.

    C = |a^L - y|^2 / 2 and sigma is the sigmoid. Returns grad_b C and grad_W C of every layer.
    """
    a, z = [x], [None]
    for weight, bias in zip(weights, biases, strict=True):  # eq. 3
        z.append(
            torch.stack([w @ a[-1] + b for w, b in zip(weight, bias, strict=True)])
        )  # eq. 1, 2
        a.append(torch.sigmoid(z[-1]))
    sigma_prime = [None] + [a_l * (1 - a_l) for a_l in a[1:]]
    depth = len(weights)
    delta = {depth: (a[depth] - target) * sigma_prime[depth]}  # BP1
    for l in range(depth - 1, 0, -1):  # eq. 12, which is BP2
        delta[l] = torch.stack(
            [
                sum(delta[l + 1][k] * weights[l][k, i] for k in range(len(delta[l + 1])))
                * sigma_prime[l][i]
                for i in range(len(z[l]))
            ]
        )
    grad_b = [delta[l] for l in range(1, depth + 1)]  # eq. 10, BP3
    grad_w = [torch.outer(delta[l], a[l - 1]) for l in range(1, depth + 1)]  # eq. 11, BP4
    return grad_b, grad_w


def row_form(x, weights, biases, target):
    """Eq. 5 and the five operations for M examples at once."""
    a, kept = [x], []
    for weight, bias in zip(weights, biases, strict=True):
        a_l, s = equations.linear_act_forward(a[-1], weight, bias, SIGMOID)
        a.append(a_l)
        kept.append(s)
    depth = len(weights)
    delta, rows = equations.bp1_output_error(a[-1] - target, kept[-1], SIGMOID)
    grad_b, grad_w = [], []
    for l in range(depth, 0, -1):
        grad_b.insert(0, equations.bp3_bias_gradient(rows))
        grad_w.insert(0, equations.bp4_weight_gradient(delta, a[l - 1]))
        if l > 1:
            delta, rows, below = equations.bp2_propagate_error(
                delta, weights[l - 1], kept[l - 2], SIGMOID
            )
            assert torch.equal(below, a[l - 1])
    return grad_b, grad_w


def network():
    sizes = [4, 5, 3, 2]
    weights = [f64(n, k, requires_grad=False) for k, n in itertools.pairwise(sizes)]
    return weights, [f64(n, requires_grad=False) for n in sizes[1:]]


def test_column_form_and_row_form_are_one():
    weights, biases = network()
    x, target = f64(1, 4, requires_grad=False), f64(1, 2, requires_grad=False)
    columns = column_form(x[0], weights, biases, target[0])
    rows = row_form(x, weights, biases, target)
    for ours, theirs in zip(columns, rows, strict=True):
        for column, row in zip(ours, theirs, strict=True):
            torch.testing.assert_close(column, row, rtol=1e-14, atol=1e-15)


def test_a_mini_batch_is_the_sum_of_its_examples():
    weights, biases = network()
    x, target = f64(7, 4, requires_grad=False), f64(7, 2, requires_grad=False)
    grad_b, grad_w = row_form(x, weights, biases, target)
    each = [column_form(x[m], weights, biases, target[m]) for m in range(7)]
    for l in range(3):
        torch.testing.assert_close(grad_b[l], sum(b[l] for b, _ in each), rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(grad_w[l], sum(w[l] for _, w in each), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("backend", [equations, aten], ids=lambda m: m.__name__)
def test_every_backend_has_the_five_operations(backend):
    for name in OPERATIONS:
        signature = inspect.signature(getattr(backend, name))
        assert list(signature.parameters) == list(
            inspect.signature(getattr(equations, name)).parameters
        )


@names
@pytest.mark.parametrize("backend", [equations, aten], ids=lambda m: m.__name__)
def test_operations_are_the_derivatives_that_autograd_finds(backend, name):
    act, top = ACTIVATIONS[name], TANH
    x, weight, bias = f64(6, 4), f64(5, 4), f64(5)
    upper, grad_a = f64(3, 5), f64(6, 3, requires_grad=False)
    a = native(name)(x @ weight.T + bias)
    out = torch.tanh(a @ upper.T)
    want = torch.autograd.grad(out, (x, weight, bias, upper), grad_a)
    with torch.no_grad():
        a, s = backend.linear_act_forward(x, weight, bias, act)
        out, s_top = backend.linear_act_forward(a, upper, None, top)
        delta, _ = backend.bp1_output_error(grad_a, s_top, top)
        below, rows, a_again = backend.bp2_propagate_error(delta, upper, s, act)
        got = (
            backend.bp2_propagate_error(below, weight, x, IDENTITY, with_a=False)[0],
            backend.bp4_weight_gradient(below, x),
            backend.bp3_bias_gradient(rows),
            backend.bp4_weight_gradient(delta, a_again),
        )
    assert torch.equal(a, a_again)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("backend", [equations, aten], ids=lambda m: m.__name__)
def test_a_skips_adjoint_is_added_before_sigma_prime(backend):
    delta, weight, z, skip = (
        f64(*n, requires_grad=False) for n in ((6, 3), (3, 5), (6, 5), (6, 5))
    )
    act = ACTIVATIONS["gelu"]
    below, rows, _ = backend.bp2_propagate_error(delta, weight, z, act, skip=skip)
    torch.testing.assert_close(below, (delta @ weight + skip) * act.sigma_prime(z))
    torch.testing.assert_close(backend.bp3_bias_gradient(rows), below.sum(0))


@pytest.mark.parametrize("backend", [equations, aten], ids=lambda m: m.__name__)
def test_a_weights_gradient_is_added_to_that_of_its_other_uses(backend):
    delta, x, into = (f64(*n, requires_grad=False) for n in ((6, 3), (6, 5), (3, 5)))
    want = into + delta.T @ x
    torch.testing.assert_close(backend.bp4_weight_gradient(delta, x, into), want)


@pytest.mark.parametrize("backend", [equations, aten], ids=lambda m: m.__name__)
def test_a_bias_gradient_comes_in_the_dtype_asked_for(backend):
    rows = torch.randn(5, 3)
    assert backend.bp3_bias_gradient(rows).dtype == torch.float32
    assert backend.bp3_bias_gradient(rows, torch.bfloat16).dtype == torch.bfloat16
    summed = backend.bp3_bias_gradient(rows, torch.float64)
    torch.testing.assert_close(summed, rows.double().sum(0))


def test_the_reference_is_differentiable_itself():
    act = ACTIVATIONS["sigmoid"]
    x, weight, bias = f64(3, 4), f64(2, 4), f64(2)
    assert torch.autograd.gradcheck(
        lambda *t: equations.linear_act_forward(*t, act)[0], (x, weight, bias)
    )
