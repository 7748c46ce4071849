"""Higher derivatives, every subset of frozen tensors in a chain, and corners; in float64.

First and second derivatives of everything else: tests/test_audit.py walks the table of cases.
"""

import itertools

import pytest
import torch
from helpers import NAMES, f64, native_mlp
from torch.autograd import gradcheck

import manualgrad as mg
from manualgrad.activations import ACTIVATIONS

names = pytest.mark.parametrize("name", NAMES)


def in_every_layout(a):
    """a, so that its gradient arrives contiguous, transposed, sliced and expanded (stride 0)."""
    return (
        a * 1.0,
        a.mT.clone(memory_format=torch.contiguous_format) if a.dim() > 1 else a * 1.0,
        torch.cat([a, 2.0 * a], -1),
        a.sum(),
    )


def layouts_of_three_layers(x, w1, b1, w2, w3, b3, acts, recompute):
    return in_every_layout(mg.mlp(x, [w1, w2, w3], [b1, None, b3], acts, recompute=recompute))


def chain_tensors(acts, distance=1e-3):
    """Tensors whose three pre-activations are all off the kinks."""
    for seed in range(1000):
        torch.manual_seed(seed)
        x, w1, b1, w2, w3, b3 = f64(2, 3), f64(4, 3), f64(4), f64(3, 4), f64(2, 3), f64(2)
        a, near = x, []
        for weight, bias, act in ((w1, b1, acts[0]), (w2, None, acts[1]), (w3, b3, acts[2])):
            z = torch.nn.functional.linear(a, weight, bias)
            near += [(z - kink).abs().min() for kink in ACTIVATIONS[act].kinks]
            a = ACTIVATIONS[act].oracle(z)
        if not near or min(near) > distance:
            return [x, w1, b1, w2, w3, b3]
    raise RuntimeError("no tensors found away from the kinks")


MIXED = [("relu", "gelu", "identity"), ("silu", "identity", "sigmoid"), ("identity",) * 3]


@pytest.mark.parametrize("acts", MIXED, ids="-".join)
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recompute"])
def test_every_subset_of_frozen_tensors_in_a_chain(acts, recompute, exhaustive):
    """Every subset in each chain: half of them where it keeps, half where it recomputes."""
    tensors = chain_tensors(acts)
    subsets = list(itertools.product([False, True], repeat=6))[:-1]  # not all frozen
    for frozen in subsets:
        if not exhaustive and (sum(frozen) + MIXED.index(acts)) % 2 == recompute:
            continue
        inputs = [t.detach().requires_grad_(not f) for t, f in zip(tensors, frozen, strict=True)]
        assert gradcheck(
            lambda *t: layouts_of_three_layers(*t, acts, recompute), inputs, fast_mode=True
        )
        compare_three_orders(inputs, acts, recompute)


def compare_three_orders(inputs, acts, recompute):
    """First, second and third derivatives against torch's own; None where torch has None."""
    x, w1, b1, w2, w3, b3 = inputs
    weights, biases = [w1, w2, w3], [b1, None, b3]
    live = [t for t in inputs if t.requires_grad]
    ours = mg.mlp(x, weights, biases, acts, recompute=recompute).tanh().sum()
    theirs = native_mlp(x, weights, biases, acts).tanh().sum()
    for _ in range(3):
        both = [
            torch.autograd.grad(y, live, create_graph=True, allow_unused=True)
            for y in (ours, theirs)
        ]
        for mine, native in zip(*both, strict=True):
            assert (mine is None) == (native is None)
            torch.testing.assert_close(mine, native, rtol=1e-10, atol=1e-11)
        ours, theirs = (sum(g.tanh().sum() for g in grads if g is not None) for grads in both)
        if not theirs.requires_grad:
            return


@names
def test_third_order(name):
    x, w1, b1, w2, w3, b3 = chain_tensors((name, "tanh", name), distance=0.02)

    def gradient_of_gradient(x, w1):
        y = mg.mlp(x, [w1, w2, w3], [b1, None, b3], (name, "tanh", name))
        first = torch.autograd.grad(y.square().sum(), (x, w1), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), (x, w1), create_graph=True)

    assert gradcheck(gradient_of_gradient, (x, w1))


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_three_orders_are_finite_far_out(name, dtype):
    """No order meets inf * 0, where e^z overflows or anywhere else."""
    sizes = torch.tensor([5.0, 10.0, 50.0, 90.0, 300.0, 800.0, 1e4], dtype=dtype)
    z = torch.cat([-sizes, sizes])[:, None].requires_grad_()
    a = mg.linear_act(z, torch.ones(1, 1, dtype=dtype), None, name)
    for _ in range(3):
        if not a.requires_grad:
            break
        (a,) = torch.autograd.grad(a.sum(), z, create_graph=True, allow_unused=True)
        if a is None:
            assert name == "identity"  # as in torch
            break
        assert a.isfinite().all()


@names
@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (0, 0, 3)], ids=str)
def test_empty_batches(name, shape):
    x, w1, b1, w2 = f64(*shape), f64(4, 3), f64(4), f64(2, 4)
    one, two = mg.linear_act(x, w1, b1, name), mg.mlp(x, [w1, w2], [b1, None], name)
    assert one.shape == (*shape[:-1], 4)
    assert two.shape == (*shape[:-1], 2)
    for y in (one, two):
        grads = torch.autograd.grad(y.sum(), (x, w1, b1), create_graph=True)
        assert [g.shape for g in grads] == [x.shape, w1.shape, b1.shape]
        assert not any(g.count_nonzero() for g in grads)
        (again,) = torch.autograd.grad(sum(g.sum() for g in grads), w1)
        assert torch.equal(again, torch.zeros_like(w1))


@pytest.mark.parametrize(("K", "N"), [(0, 3), (3, 0), (1, 1)])
def test_degenerate_widths(K, N):
    x, weight, bias = f64(4, K), f64(N, K), f64(N)
    for name in ("relu", "gelu", "identity"):
        ours = mg.linear_act(x, weight, bias, name)
        theirs = native_mlp(x, [weight], [bias], [name])
        torch.testing.assert_close(ours, theirs)
        inputs = (x, weight, bias)
        grads = [torch.autograd.grad(y.sum(), inputs) for y in (ours, theirs)]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("acts", [*MIXED, ("tanh", "gelu", "gelu"), ("relu", "tanh", "sigmoid")])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recompute"])
def test_a_gradient_penalty_alone_reaches_what_torchs_reaches(acts, recompute):
    """No adjoint arrives at a^L: what stands above the highest use has no gradient, not a zero."""
    x, w1, b1, w2, w3, b3 = tensors = chain_tensors(acts)
    penalties = []
    for y in (
        mg.mlp(x, [w1, w2, w3], [b1, None, b3], acts, recompute=recompute),
        native_mlp(x, [w1, w2, w3], [b1, None, b3], acts),
    ):
        (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        penalties.append(torch.autograd.grad(grad.square().sum(), tensors, allow_unused=True))
    for mine, native in zip(*penalties, strict=True):
        assert (mine is None) == (native is None)
        if native is not None:
            torch.testing.assert_close(mine, native, rtol=1e-11, atol=1e-12)


def test_a_second_derivative_alone_does_not_meet_an_infinite_first():
    z = torch.tensor([[torch.inf]], dtype=torch.float64, requires_grad=True)
    y = mg.linear_act(z, torch.ones(1, 1, dtype=torch.float64), None, "relu_squared")
    (first,) = torch.autograd.grad(y.sum(), z, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), z)
    assert second.item() == 2.0
