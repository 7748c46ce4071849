"""A small chain's call that has been seen: what is left out the next time, and when it is not."""

import copy
import weakref

import pytest
import torch
import torch.nn.functional as F
import torch.utils.flop_counter
from torch import nn

import manualgrad as mg
from manualgrad import small

M, WIDTH = 6, 5


class Other(torch.Tensor):
    __torch_function__ = torch._C._disabled_torch_function_impl


def is_small(output):
    return type(output.grad_fn).__name__ == "SmallMLPFunctionBackward"


def seen_net(**options):
    """An MLP after its first call, and its input."""
    torch.manual_seed(0)
    net, x = mg.nn.MLP([WIDTH] * 4, "tanh", **options), torch.randn(M, WIDTH)
    assert is_small(net(x))
    return net, x


@pytest.fixture
def looked(monkeypatch):
    """The calls that were looked at from the beginning."""
    calls, takes = [], small.takes
    monkeypatch.setattr(small, "takes", lambda *given: calls.append(1) or takes(*given))
    return calls


def by_layers(net, x):
    for layer in net.layers:
        x = layer.activation.sigma(F.linear(x, layer.weight, layer.bias))
    return x


def gradients(y, net):
    return torch.autograd.grad(y.square().sum(), [p for p in net.parameters() if p.requires_grad])


@pytest.mark.parametrize("bias", [True, False])
def test_the_same_call_again_is_not_looked_at_again(bias, looked):
    net, x = seen_net(bias=bias)
    looked.clear()
    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.randn(M, WIDTH)
        with torch.no_grad():
            net.layers[1].weight.mul_(1.5)  # an optimizer's step
        y = net(x)
        assert is_small(y)
        torch.testing.assert_close(gradients(y, net), gradients(by_layers(net, x), net))
    assert not looked


def another_input(net, x):
    return torch.randn(M + 1, WIDTH)


def other_dimensions(net, x):
    return x.unsqueeze(0)


def another_dtype(net, x):
    net.double()
    return x.double()


def another_parameter(net, x):
    net.layers[1].weight = nn.Parameter(torch.randn(WIDTH, WIDTH))


def a_shared_parameter(net, x):
    net.layers[1].weight = net.layers[2].weight


def a_frozen_one(net, x):
    net.layers[1].weight.requires_grad_(False)


def no_bias(net, x):
    net.layers[1].bias = None


def another_activation(net, x):
    net.layers[1].activation = "gelu"


def recomputing(net, x):
    net.recompute = True


def a_subclass(net, x):
    return x.as_subclass(Other)


CHANGES = [another_input, other_dimensions, another_dtype, another_parameter, a_shared_parameter,
           a_frozen_one, no_bias, another_activation, recomputing, a_subclass]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_another_call_is_looked_at(change, looked):
    net, x = seen_net()
    looked.clear()
    given = change(net, x)
    given = x if given is None else given
    y = net(given)
    assert looked
    plain = torch.Tensor(given) if type(given) is Other else given
    torch.testing.assert_close(gradients(y, net), gradients(by_layers(net, plain), net))


AROUND = {
    "no_grad": torch.no_grad,
    "backend": lambda: mg.backend("torch"),
    "forward mode": torch.autograd.forward_ad.dual_level,
    "a dispatch mode": lambda: torch.utils.flop_counter.FlopCounterMode(display=False),
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_what_goes_on_around_it_is_asked_each_time(around):
    net, x = seen_net()
    with around():
        assert not is_small(net(x))
    assert is_small(net(x))


def test_autocast_casts_as_ever():
    net, x = seen_net()
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            assert net(x).dtype is torch.bfloat16
        assert net(x).dtype is torch.float32


def test_under_transforms_it_is_looked_at_from_the_beginning():
    net, x = seen_net()
    one_by_one = torch.stack([net(row) for row in x])
    torch.testing.assert_close(torch.func.vmap(net)(x), one_by_one)
    grads = torch.func.grad(lambda p: torch.func.functional_call(net, p, x).square().sum())
    found = grads(dict(net.named_parameters()))
    torch.testing.assert_close(tuple(found.values()), gradients(net(x), net))


def test_what_became_of_a_tensor_is_said_as_ever():
    net, x = seen_net()
    for data in (torch.randn(WIDTH, WIDTH + 1), torch.randn(WIDTH, WIDTH).double()):
        net.layers[1].weight.data = data
        with pytest.raises(ValueError, match=r"manualgrad\.nn\.MLP"):
            net(x)
    with pytest.raises(TypeError, match=r"manualgrad\.nn\.MLP"):
        net(x.tolist())
    net.layers[1].weight.data = torch.randn(WIDTH, WIDTH)
    assert is_small(net(x))


def test_an_error_of_anybody_else_is_left_as_it_is(monkeypatch):
    net, x = seen_net()

    def fails(*given):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(small, "forward", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        net(x)


def test_what_was_seen_keeps_no_parameter_alive_and_is_not_copied():
    net, x = seen_net()
    old = weakref.ref(net.layers[0].weight)
    net.layers[0].weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
    assert old() is None
    assert "_known_chain" not in copy.deepcopy(net).__dict__
    assert is_small(net(x))
