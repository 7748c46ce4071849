"""Small chains, which go a way of their own: what they give, and when they do not take it."""

import contextlib
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from helpers import Other, is_small
from torch import nn

import manualgrad as mg
from manualgrad import aten, gates, half_precision, one_pass, products, small

ACTS = {"relu": F.relu, "tanh": torch.tanh, "gelu": F.gelu, "silu": F.silu, "identity": lambda z: z}
M, WIDTH, DEPTH = 6, 5, 4


def operands(dtype=torch.float64, biased=True):
    generator = torch.Generator().manual_seed(0)
    shapes = [(M, WIDTH), *[(WIDTH, WIDTH), (WIDTH,)] * DEPTH]
    tensors = [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]
    return tensors if biased else [t for t in tensors if t.dim() > 1]


def native(acts, x, params):
    for act, weight, bias in zip(acts, params[::2], params[1::2], strict=True):
        x = ACTS[act](F.linear(x, weight, bias))
    return x


def ours(acts, x, params):
    return mg.mlp(x, params[::2], params[1::2], list(acts))


CHAINS = [("relu",) * 4, ("gelu",) * 4, ("relu", "gelu", "identity", "tanh"),
          ("silu", "identity", "gelu", "identity"), ("identity",) * 4]  # fmt: skip


@pytest.mark.parametrize("acts", CHAINS, ids="-".join)
def test_gradients_of_three_orders(acts):
    tensors = operands()
    x, *params = tensors
    assert is_small(ours(acts, x, params))
    found, expected = ours(acts, x, params), native(acts, x, params)
    torch.testing.assert_close(found, expected)
    for _ in range(3):
        found, expected = (
            torch.autograd.grad(
                y.square().sum(), tensors, create_graph=True, materialize_grads=True
            )
            for y in (found, expected)
        )
        torch.testing.assert_close(found, expected)
        found, expected = (sum(g.sum() for g in grads) for grads in (found, expected))


@pytest.mark.parametrize("wanted", range(1 + 2 * DEPTH))
def test_one_gradient_alone(wanted):
    tensors = operands()
    one = [tensors[wanted]]
    found, expected = (
        torch.autograd.grad(f(("gelu",) * DEPTH, tensors[0], tensors[1:]).sum(), one)
        for f in (ours, native)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("acts", CHAINS, ids="-".join)
def test_the_bits_are_those_of_the_walks_of_large_chains(acts, monkeypatch):
    x, *params = tensors = operands(torch.float32)
    run = lambda: torch.autograd.grad(ours(acts, x, params).square().sum(), tensors)  # noqa: E731
    found = run()
    monkeypatch.setattr(small, "BYTES", -1)
    assert not is_small(ours(acts, x, params))
    assert all(map(torch.equal, found, run()))


def test_a_differentiated_gradient_ends_it_for_the_process():
    """Hidden outputs are faster then: nothing is computed twice."""
    x, *params = operands()
    (grad,) = torch.autograd.grad(ours(("tanh",) * DEPTH, x, params).sum(), x, create_graph=True)
    assert not is_small(ours(("tanh",) * DEPTH, x, params))
    expected = torch.autograd.grad(native(("tanh",) * DEPTH, x, params).sum(), x, create_graph=True)
    torch.testing.assert_close(grad, expected[0])


def refusals():
    x, *params = operands()
    frozen = [p.detach() if i == 2 else p for i, p in enumerate(params)]
    wide = [torch.randn(small.BYTES // M // 8 + 1, WIDTH).double().requires_grad_(), None]
    yield "frozen", x, frozen, {}
    yield "tied", x, params[:2] * DEPTH, {}
    yield "skips", x, params, {"skips": [mg.Skip(1, 3)]}
    yield "recompute", x, params, {"recompute": True}
    yield "no examples", x[:0], params, {}
    yield "many examples", x.repeat(small.BYTES // x.nbytes + 1, 1), params, {}
    yield "wide", x, params + wide, {}
    yield "a subclass", x.detach().as_subclass(Other), params, {}


@pytest.mark.parametrize(
    ("x", "params", "options"), [pytest.param(*case, id=name) for name, *case in refusals()]
)
def test_who_does_not_go_there(x, params, options):
    y = mg.mlp(x, params[::2], params[1::2], "gelu", **options)
    assert y.requires_grad
    assert not is_small(y)


@pytest.mark.parametrize(
    "where", [mg.backend("torch"), torch.no_grad()], ids=["backend", "no_grad"]
)
def test_where_it_does_not_go_there(where):
    x, *params = operands()
    with where:
        assert not is_small(ours(("gelu",) * DEPTH, x, params))


def test_deep_chains_of_gates_keep_no_more_than_little():
    deep = gates.LITTLE // (64 * 64 * 8) + 1
    x, w = torch.randn(64, 64).double(), torch.randn(64, 64).double().requires_grad_()
    assert is_small(mg.mlp(x, [w + 0 for _ in range(3)], None, "gelu"))
    assert not is_small(mg.mlp(x, [w + 0 for _ in range(deep)], None, "gelu"))


def test_one_output_and_what_backward_wants_is_kept():
    """x, W2..W4, z and a of each hidden gate, and the last z; nothing of the identity's."""
    x, *params = operands()
    x = x.detach()
    for acts, matrices in ((("gelu",) * DEPTH, 2 * DEPTH), (("relu",) * 3 + ("identity",), DEPTH)):
        y = ours(acts, x, params)
        kept = [t for t in y.grad_fn.saved_tensors if t is not None]
        assert sum(t.shape == (M, WIDTH) for t in kept) == matrices
        assert sum(t.shape == (WIDTH, WIDTH) for t in kept) == DEPTH - 1
        assert len(y.grad_fn._input_metadata) == 1
    y.mul_(2).sum().backward()  # an output that no sigma' reads may be written over


def test_an_infinite_z_is_met_with_care(monkeypatch):
    x, *params = operands()
    x = x.detach()
    x[2, 0] = -torch.inf
    with torch.no_grad():
        params[0].abs_()
    looked, finite = [], one_pass.finite
    monkeypatch.setattr(one_pass, "finite", lambda z: looked.append(finite(z)) or looked[-1])
    found = torch.autograd.grad(ours(("silu",) * DEPTH, x, params).nansum(), params)
    assert looked == [False]
    one_by_one = x
    for weight, bias in zip(params[::2], params[1::2], strict=True):
        one_by_one = mg.linear_act(one_by_one, weight, bias, "silu")
    expected = torch.autograd.grad(one_by_one.nansum(), params)
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("place", [1, 2], ids=["W1", "b1"])
def test_what_is_overwritten_since(place):
    """Gradients do without W1 and b1, as PyTorch's do; gradients of gradients say that they do not."""
    x, *params = operands()
    x = x.detach()
    acts = ("tanh",) * DEPTH
    expected = torch.autograd.grad(native(acts, x, params).sum(), params)
    y = ours(acts, x, params)
    with torch.no_grad():
        params[place - 1].add_(1.0)
    found = torch.autograd.grad(y.sum(), params, retain_graph=True)
    torch.testing.assert_close(found, expected)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y.sum(), params, create_graph=True)


def test_twice_through_a_graph_that_is_retained_and_never_through_a_freed_one():
    x, *params = operands()
    y = ours(("gelu",) * DEPTH, x, params).sum()
    first = torch.autograd.grad(y, params, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(y, params)))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, params)


def test_backward_inside_autocast_computes_in_the_dtype_of_forward():
    x, *params = operands(torch.float32)
    expected = torch.autograd.grad(ours(("gelu",) * DEPTH, x, params).sum(), params)
    y = ours(("gelu",) * DEPTH, x, params).sum()
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(y, params, retain_graph=True)
        torch.autograd.grad(y, params, create_graph=True)
    assert all(map(torch.equal, found, expected))


def test_many_gradients_at_once():
    x, *params = operands()
    y, v = ours(("gelu",) * DEPTH, x, params), torch.randn(3, M, WIDTH).double()
    found = torch.autograd.grad(y, params, v, is_grads_batched=True, retain_graph=True)
    expected = [torch.autograd.grad(y, params, one, retain_graph=True) for one in v]
    torch.testing.assert_close(found, tuple(map(torch.stack, zip(*expected, strict=True))))


@pytest.mark.parametrize("acts", CHAINS, ids="-".join)
def test_a_capture_hears_every_layer_and_changes_nothing(acts, monkeypatch):
    x, *params = operands()
    leaves = [nn.Parameter(p.detach()) for p in params]
    expected = torch.autograd.grad(ours(acts, x, leaves).sum(), [x, *leaves])
    y = ours(acts, x, leaves)
    assert is_small(y)
    monkeypatch.setattr(aten, "linear_act_forward", None)  # nothing is computed again
    with mg.capture() as cap:
        found = torch.autograd.grad(y.sum(), [x, *leaves])
    assert all(map(torch.equal, found, expected))
    assert len(cap.layers) == DEPTH
    for layer, grad in zip(cap.layers, found[1::2], strict=True):
        torch.testing.assert_close(layer.delta.T @ layer.a, grad)


def test_nothing_outlives_the_graph():
    """The node holds its parameters; no parameter leads back to it."""
    gc.collect()
    with contextlib.ExitStack() as stack:
        stack.callback(gc.enable)
        gc.disable()  # by reference counts alone
        x, *params = operands()
        kept = weakref.ref(ours(("gelu",) * DEPTH, x, params).grad_fn)
        assert kept() is None
        y = ours(("gelu",) * DEPTH, x, params)
        y.sum().backward()
        kept = weakref.ref(y.grad_fn)
        del y
        assert kept() is None


def test_the_rule_is_ours(monkeypatch):
    """A rule scaled by 2 doubles every gradient."""
    x, *params = operands()
    expected = torch.autograd.grad(ours(("gelu",) * DEPTH, x, params).sum(), params)
    rule = small.backward
    monkeypatch.setattr(
        small, "backward", lambda *given: rule(*given[:-2], 2 * given[-2], given[-1])
    )
    found = torch.autograd.grad(ours(("gelu",) * DEPTH, x, params).sum(), params)
    torch.testing.assert_close(found, tuple(2 * g for g in expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_larger_products_are_made_as_in_large_chains(dtype, monkeypatch):
    asked = {"linear": 0, "error_below": 0, "weight_gradient": 0}

    def counted(name, product):
        def made(*tensors, **how):
            asked[name] += 1
            return product(*tensors, **how)

        return made

    for name in asked:
        monkeypatch.setattr(products, name, counted(name, getattr(products, name)))
    monkeypatch.setattr(products, "onednn_wins_here", lambda: True)
    monkeypatch.setattr(half_precision, "wins", lambda *_: False)
    shapes = [(256, 256), *[(256, 256), (256,)] * DEPTH]
    x, *params = leaves = [
        (torch.randn(s) / s[-1] ** 0.5).to(dtype).requires_grad_() for s in shapes
    ]
    run = lambda: ours(("relu",) * DEPTH, x, params)  # noqa: E731
    assert is_small(run())
    asked.update(dict.fromkeys(asked, 0))
    found = torch.autograd.grad(run().square().sum(), leaves)
    wanted = [DEPTH] * 3 if dtype is torch.float32 else [DEPTH, 0, 0]
    assert list(asked.values()) == wanted
    monkeypatch.setattr(small, "BYTES", -1)
    for mine, expected in zip(
        found, torch.autograd.grad(run().square().sum(), leaves), strict=True
    ):
        torch.testing.assert_close(mine, expected)
