"""gradcheck through the kernels, by way of the public functions; refusals and explanations."""

import pytest
import torch
from cases import DEVICE, NAMES, normal
from torch.utils.flop_counter import FlopCounterMode

import manualgrad as mg
from manualgrad import backends, eligibility, equations, routed
from manualgrad.activations import ACTIVATIONS
from manualgrad.backends import Choice


def leaf(*shape):
    return normal(*shape).requires_grad_()


def smooth(name):
    return not ACTIVATIONS[name].kinks


@pytest.mark.parametrize("name", [n for n in NAMES if smooth(n)] + ["relu", "leaky_relu"])
def test_gradcheck_of_one_layer(launched, name):
    x, weight, bias = leaf(5, 3), leaf(4, 3), leaf(4)
    with mg.backend("triton"):
        assert torch.autograd.gradcheck(
            lambda *t: mg.linear_act(*t, name), (x, weight, bias), fast_mode=name != "gelu"
        )
    assert {"linear_act_forward_kernel", "bp4_weight_gradient_kernel"} <= set(launched)


@pytest.mark.parametrize("names", [("gelu", "tanh"), ("relu", "identity"), ("silu", "gelu")])
def test_gradcheck_of_a_chain(launched, names):
    x, w1, b1, w2, b2 = leaf(4, 3), leaf(5, 3), leaf(5), leaf(2, 5), leaf(2)
    with mg.backend("triton"):
        assert torch.autograd.gradcheck(
            lambda x, w1, b1, w2, b2: mg.mlp(x, [w1, w2], [b1, b2], list(names)),
            (x, w1, b1, w2, b2),
        )
    assert "bp2_propagate_error_kernel" in launched
    assert "bp3_bias_gradient_kernel" in launched


def test_second_derivatives_run_on_the_equations(launched):
    x, weight = leaf(4, 3), leaf(2, 3)
    with mg.backend("triton"):
        assert torch.autograd.gradgradcheck(
            lambda x, w: mg.linear_act(x, w, None, "gelu"), (x, weight), fast_mode=True
        )
    assert "linear_act_forward_kernel" in launched


@pytest.mark.parametrize("who", ["hybrid", "triton", "aten"])
@pytest.mark.parametrize("name", ["relu", "gelu", "mish", "identity"])
def test_every_backend_gives_the_same_gradients(launched, monkeypatch, who, name):
    monkeypatch.setattr(routed, "choose", lambda *a, **k: Choice(who, "the test says so"))
    x, w1, b1, w2 = leaf(7, 3), leaf(5, 3), leaf(5), leaf(4, 5)

    def gradients():
        y = mg.mlp(x, [w1, w2], [b1, None], [name, "gelu"])
        return [y, *torch.autograd.grad(y.square().sum(), (x, w1, b1, w2))]

    with mg.backend("torch"):
        want = gradients()
    assert not launched
    with mg.backend("triton"):  # on any device, so that the choice is asked for
        got = gradients()
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)
    assert bool(launched) == (who != "aten")


def test_the_incoming_gradient_is_not_overwritten(monkeypatch):
    monkeypatch.setattr(routed, "choose", lambda *a, **k: Choice("hybrid", ""))
    x, weight = leaf(7, 3), leaf(5, 3)
    grad = normal(7, 5)
    before = grad.clone()
    with mg.backend("triton"):
        for name in ("gelu", "relu", "identity"):
            y = mg.linear_act(x, weight, None, name)
            y.backward(grad, retain_graph=True)
            first, x.grad = x.grad, None
            y.backward(grad)
            assert torch.equal(first, x.grad)
            x.grad = None
    assert torch.equal(grad, before)


def test_what_the_kernels_cannot_take_is_refused_with_the_reason():
    x, weight = normal(4, 3), normal(2, 3)
    with mg.backend("triton"):
        with pytest.raises(
            ValueError, match=r"linear_act_forward: a tensor of shape \(0, 3\) is e"
        ):
            mg.linear_act(x[:0], weight)
        tangent = pytest.raises(ValueError, match="in forward mode tangents ride along")
        with tangent, torch.autograd.forward_ad.dual_level():
            backends.choose("linear_act_forward", ACTIVATIONS["gelu"], 4, 2, 3, x, weight)
        with pytest.raises(ValueError, match="a subclass of Tensor"):
            mg.linear_act(x.as_subclass(Sub), weight)
        gelu, skip = ACTIVATIONS["gelu"], normal(4, 2)
        with pytest.raises(ValueError, match="a subclass of Tensor"):
            routed.linear_act_forward(x, weight, None, gelu, skip.as_subclass(Sub))
        with pytest.raises(ValueError, match=r"float64 beside torch\.float32"):
            routed.linear_act_forward(x, weight, None, gelu, skip.float())
        with pytest.raises(ValueError, match=r"float64 beside torch\.float16"):
            routed.bp2_propagate_error(skip, weight, x, gelu, skip_z=x.half())
        with FlopCounterMode(display=False), pytest.raises(ValueError, match="TorchDispatchMode"):
            mg.linear_act(x, weight)
        assert mg.explain(x[:0], weight).choices["bp4_weight_gradient"].backend == "refused"
        grads = normal(2, 4, 2)
        leaf = weight.clone().requires_grad_()
        a = mg.linear_act(x, leaf)
        with pytest.raises(ValueError, match="such as a batched one"):
            torch.autograd.grad(a, leaf, grads, is_grads_batched=True)
        each = torch.func.vmap(lambda row: mg.linear_act(row, weight, None, "gelu"))(x)
        torch.testing.assert_close(each, mg.linear_act(x, weight, None, "gelu"))  # more examples
    assert "no kernels for torch.float8_e5m2" in eligibility.refusal(gelu, x.to(torch.float8_e5m2))
    assert "on meta" in eligibility.refusal(gelu, x.to("meta"))
    assert "such as a batched one" in eligibility.refusal(gelu, torch._efficientzerotensor(2, 3))


class Sub(torch.Tensor):
    pass


@pytest.mark.parametrize("name", ["relu", "gelu", "identity"])
def test_what_skips_bring_goes_to_the_kernels_too(launched, name):
    act, x, weight, upper = ACTIVATIONS[name], normal(7, 3), normal(5, 3), normal(4, 5)
    row = normal(5)

    def results(on):
        a, z = on.linear_act_forward(x, weight, row, act, row.expand(7, 5), True)
        s = z if act.keeps == "z" else a
        sent = row.sum().expand(7, 5)  # as the gradient of a sum comes
        delta, rows, kept = on.bp2_propagate_error(normals, upper, s, act, sent, True, a)
        return a, z, delta, rows.sum(0), kept

    normals = normal(7, 4)
    with mg.backend("triton"):
        got = results(routed)
    assert launched == ["linear_act_forward_kernel", "bp2_propagate_error_kernel"]
    torch.testing.assert_close(got, results(equations), rtol=1e-13, atol=1e-13)


def test_explain_says_what_was_forced():
    x, weight = normal(4, 3), normal(2, 3)
    with mg.backend("triton"):
        explained = mg.explain(x, weight, "gelu")
    assert {c.backend for c in explained.choices.values()} == {"triton"}
    with mg.backend("torch"):
        assert "manualgrad.backend('torch') says so" in str(mg.explain(x, weight))
    with mg.backend("auto"):
        choices = mg.explain(x, weight, "gelu").choices.values()
    if DEVICE == "cpu":
        assert all("interpreter is for tests" in c.reason for c in choices)


def test_the_mode_is_put_back():
    with mg.backend("triton"):
        with pytest.raises(ValueError, match="features"), mg.backend("torch"):
            mg.linear_act(normal(2, 3), normal(2, 4))
        assert backends.mode() == "triton"
    assert backends.mode() == "auto"
