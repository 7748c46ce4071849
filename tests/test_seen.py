"""A small chain's call that has been seen: what is left out the next time, and when it is not."""

import copy
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
import torch.utils.flop_counter
from helpers import Other, is_small
from torch import nn

import manualgrad as mg
from manualgrad import functions, small

M, WIDTH = 6, 5


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


def no_last_bias(net, x):
    net.layers[2].bias = None


def a_shared_bias(net, x):
    net.layers[2].bias = net.layers[0].bias


def another_activation(net, x):
    net.layers[1].activation = "gelu"


def recomputing(net, x):
    net.recompute = True


def a_subclass(net, x):
    return x.as_subclass(Other)


CHANGES = [another_input, other_dimensions, another_dtype, another_parameter, a_shared_parameter,
           a_frozen_one, no_bias, no_last_bias, a_shared_bias, another_activation, recomputing, a_subclass]  # fmt: skip


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


SPOILED = [
    ("weight", (WIDTH, WIDTH + 1)), ("weight", (WIDTH,)), ("weight", ()), ("bias", (1,)),
    ("bias", (1, WIDTH)), ("bias", (M, WIDTH)), ("weight", torch.float64), ("bias", torch.float64),
    ("weight", torch.bfloat16),
]  # fmt: skip


@pytest.mark.parametrize("layer", range(3))
@pytest.mark.parametrize(("name", "spoiled"), SPOILED, ids=str)
def test_what_became_of_a_tensor_is_said_as_ever(name, spoiled, layer):
    net, x = seen_net()
    parameter = getattr(net.layers[layer], name)
    good = parameter.data
    if isinstance(spoiled, tuple):
        parameter.data = torch.randn(spoiled)
    else:
        parameter.data = good.to(spoiled)
    with pytest.raises(ValueError, match=r"manualgrad\.nn\.MLP"):
        net(x)
    parameter.data = good
    assert is_small(net(x))


def test_what_is_no_tensor_is_said_as_ever():
    net, x = seen_net()
    with pytest.raises(TypeError, match=r"manualgrad\.nn\.MLP"):
        net(x.tolist())
    net.layers[2].weight = None
    with pytest.raises(TypeError, match=r"layers\.2|weight"):
        net(x)


def test_an_error_of_anybody_else_is_left_as_it_is(monkeypatch):
    net, x = seen_net()

    def fails(*given):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(small, "forward", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        net(x)


@pytest.mark.parametrize("hooked", [False, True])
def test_a_parameter_out_of_use_is_let_go_with_the_next_call(hooked):
    net, x = seen_net()
    old = weakref.ref(net.layers[0].weight)
    net.layers[0].weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
    if hooked:  # then the layers are called one by one
        net.layers[1].register_forward_hook(lambda *given: None)
    assert is_small(net(x)) is not hooked
    assert old() is None


def test_computed_weights_are_not_held():
    """They come with a graph of their own, and the next call has others."""
    net, x = seen_net()
    computed = [p * 1.0 for p in net.parameters()]
    gone = weakref.ref(computed[0])
    named = dict(zip(dict(net.named_parameters()), computed, strict=True))
    assert is_small(torch.func.functional_call(net, named, (x,)))
    del computed, named
    assert gone() is None


def test_a_copy_has_seen_nothing():
    net, _ = seen_net()
    chain = net.__dict__["_known_chain"][1]
    assert copy.deepcopy(chain).seen is None
    assert pickle.loads(pickle.dumps(chain.seen)) is None
    assert "_known_chain" not in copy.deepcopy(net).__dict__


def test_a_bias_where_there_was_none(looked):
    net, x = seen_net(bias=False)
    looked.clear()
    net.layers[2].bias = nn.Parameter(torch.randn(WIDTH))
    torch.testing.assert_close(gradients(net(x), net), gradients(by_layers(net, x), net))
    assert looked


def test_parameters_can_be_swapped():
    """As torch.__future__.set_swap_module_params_on_conversion has it: no weak references."""
    net, x = seen_net()
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        net.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    torch.testing.assert_close(net(x.double()), by_layers(net, x.double()))


def test_compiled_after_an_eager_call():
    net, x = seen_net()
    expected = gradients(net(x), net)
    torch._dynamo.reset()
    for _ in range(2):
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(gradients(compiled(x), net), expected)
        torch.testing.assert_close(gradients(net(x), net), expected)
    seq = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
    theirs = seq(x)
    mg.patch(seq, x)
    seq(x)
    torch.testing.assert_close(torch.compile(seq, backend="aot_eager", fullgraph=True)(x), theirs)


def test_another_thread_may_let_go_of_what_was_seen(monkeypatch):
    """Two that share a module, each with inputs of its own shape, replace it all the time."""
    net, x = seen_net()
    expected, chain = gradients(net(x), net), net.__dict__["_known_chain"][1]
    call = functions.small_mlp

    def with_a_rival(*given):
        chain.seen = None
        return call(*given)

    monkeypatch.setattr(functions, "small_mlp", with_a_rival)
    for _ in range(2):  # seen, and not seen
        assert all(map(torch.equal, gradients(net(x), net), expected))
