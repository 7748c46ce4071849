"""What is written over z^l: the same numbers, and only where nobody else can read z^l."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

import manualgrad as mg
from manualgrad import aten, compat, in_place, one_pass
from manualgrad.activations import ACTIVATIONS, activation_of

pytestmark = pytest.mark.usefixtures("not_small")

M, K = 260, 64
assert M * K >= one_pass.CHECKED
HIDE_Z = [name for name, act in ACTIVATIONS.items() if act.hides_z]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def leaves(dtype, depth=3):
    torch.manual_seed(0)
    shapes = [(M, K), *[(K, K), (K,)] * depth]
    return [(torch.randn(s) / s[-1] ** 0.5).to(dtype).requires_grad_() for s in shapes]


@pytest.fixture
def over(monkeypatch):
    """How often something was written over a z^l: grows while the test runs."""
    found, last = [], in_place._last

    def seen(s, act):
        answer = last(s, act)
        if answer:
            found.append(act.name)
        return answer

    monkeypatch.setattr(in_place, "_last", seen)
    return found


def layer(x, weight, bias, act="gelu"):
    return mg.linear_act(x, weight, bias, act)


def gradients(a, tensors, **options):
    torch.manual_seed(1)
    return torch.autograd.grad(a, tensors, torch.randn_like(a), **options)


def assert_same(found, expected):
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", HIDE_Z)
@pytest.mark.parametrize("recompute", [False, True])
def test_the_numbers_are_the_same(name, dtype, recompute, over, monkeypatch):
    x, *params = leaves(dtype)

    def run():
        chain = gradients(
            mg.mlp(x, params[::2], params[1::2], name, recompute=recompute), [x, *params]
        )
        return *chain, *gradients(layer(x, *params[:2], act=name), [x, *params[:2]])

    found = run()
    assert over
    monkeypatch.setattr(compat, "held_once", lambda tensor: False)
    over.clear()
    assert_same(found, run())
    assert not over


@pytest.mark.parametrize("name", in_place.OVER_Z)
def test_sigma_over_z_is_sigma(name):
    act = activation_of(name.removesuffix(" of finite z"), "test")
    act = one_pass.of_finite_z(act) if "finite" in name else act
    z = torch.randn(M, K) * 3
    assert torch.equal(in_place.OVER_Z[name](z.clone()), aten.output(z, act))


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_so(value, depth, over, monkeypatch):
    x, *params = leaves(torch.float32, depth)
    with torch.no_grad():
        x[5, 7] = value

    def run():
        return gradients(mg.mlp(x, params[::2], params[1::2], "gelu"), [x, *params])

    found = run()
    assert over
    monkeypatch.setattr(compat, "held_once", lambda tensor: False)
    for mine, expected in zip(found, run(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=0, equal_nan=True)


def both(run):
    """Of a single layer, and of a chain whose a^L nobody holds."""
    x, *params = leaves(torch.float32)
    run(lambda: layer(x, *params[:2]), [x, *params[:2]])
    run(lambda: mg.mlp(x, params[::2], params[1::2], "gelu"), [x, *params])


def test_a_graph_that_is_retained_serves_again(over):
    def run(forward, tensors):
        a = forward()
        once = gradients(a, tensors, retain_graph=True)
        assert not over
        assert_same(gradients(a, tensors), once)
        assert over
        over.clear()

    both(run)


def test_what_somebody_took_from_the_graph_is_left(over):
    def run(forward, tensors):
        a = forward()
        kept = [t for t in a.grad_fn.saved_tensors if t is not None]
        before = [t.detach().clone() for t in kept]
        gradients(a, tensors)
        assert not over
        assert_same(kept, before)

    both(run)


@pytest.mark.parametrize("through", ["itself", "numpy"])
def test_what_hooks_were_given_is_left(through, over):
    def run(forward, tensors):
        kept = []

        def pack(t):
            kept.append(t.detach() if through == "itself" else t.detach().numpy())
            return kept[-1]

        with saved_tensors_hooks(pack, lambda t: torch.as_tensor(t)):
            a = forward()
        before = [torch.as_tensor(t).clone() for t in kept]
        gradients(a, tensors)
        assert kept
        assert not over
        assert_same(map(torch.as_tensor, kept), before)

    both(run)


def test_inputs_and_outputs_are_left(over):
    def run(forward, tensors):
        a = forward()
        before = [t.detach().clone() for t in (a, *tensors)]
        gradients(a, tensors)
        assert over
        assert_same([a, *tensors], before)

    both(run)


def test_gradients_that_have_gradients_are_not_in_place(over):
    both(lambda forward, tensors: gradients(forward(), tensors, create_graph=True))
    assert not over


def test_where_torch_does_not_tell_nothing_is_written_over(over, monkeypatch):
    monkeypatch.setattr(compat, "_use_count", None)
    both(lambda forward, tensors: gradients(forward(), tensors))
    monkeypatch.undo()
    monkeypatch.setattr(compat, "_default_hooks", None)
    assert not compat.saved_untouched()
    assert not over
