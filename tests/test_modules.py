"""The modules: torch's parameters, initial values and state_dict; nothing lost on the way."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import nn

import manualgrad as mg


def test_linear_is_a_linear_with_the_same_initial_values():
    torch.manual_seed(3)
    ours = mg.nn.Linear(5, 4, activation="gelu")
    torch.manual_seed(3)
    theirs = nn.Linear(5, 4)
    assert isinstance(ours, nn.Linear)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)
    x = torch.randn(2, 3, 5)
    torch.testing.assert_close(ours(input=x), F.gelu(theirs(x)))
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())


def test_linear_takes_nn_linears_positional_arguments():
    layer = mg.nn.Linear(5, 4, False, "cpu", torch.float64)
    assert layer.bias is None
    assert layer.weight.dtype == torch.float64
    assert str(layer) == "Linear(in_features=5, out_features=4, bias=False, activation=identity)"
    assert "activation=leaky_relu(negative_slope=0.1)" in str(
        mg.nn.Linear(2, 2, activation=nn.LeakyReLU(0.1))
    )


def sequential(*sizes, act=nn.Tanh, bias=True, last=True):
    layers = []
    for i in range(len(sizes) - 1):
        layers.append(nn.Linear(sizes[i], sizes[i + 1], bias=bias))
        if last or i < len(sizes) - 2:
            layers.append(act())
    return nn.Sequential(*layers)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("recompute", [True, False])
def test_mlp_has_the_initial_values_of_the_linears(bias, recompute):
    torch.manual_seed(5)
    ours = mg.nn.MLP([6, 5, 4, 3], "tanh", bias=bias, recompute=recompute, dtype=torch.float64)
    torch.manual_seed(5)
    theirs = sequential(6, 5, 4, 3, bias=bias, last=False).double()
    torch.manual_seed(5)
    double = [nn.Linear(k, n, bias, dtype=torch.float64) for k, n in ((6, 5), (5, 4), (4, 3))]
    for layer, linear in zip(ours.layers, double, strict=True):
        assert torch.equal(layer.weight, linear.weight)
    keys = [
        f"layers.{i}.{p}" for i in range(3) for p in (("weight", "bias") if bias else ("weight",))
    ]
    assert list(ours.state_dict()) == keys
    ours.load_state_dict(dict(zip(keys, theirs.state_dict().values(), strict=True)))
    x = torch.randn(7, 6, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))
    for net in (ours, theirs):
        F.mse_loss(net(x), torch.zeros(7, 3, dtype=torch.float64)).backward()
    for mine, native in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, native.grad, rtol=1e-12, atol=1e-14)


def test_mlp_activations_per_layer():
    net = mg.nn.MLP([4, 4, 4, 2], ["relu", nn.ELU(0.5)], out_activation="sigmoid")
    assert [str(layer.activation) for layer in net.layers] == ["relu", "elu(alpha=0.5)", "sigmoid"]
    assert "recompute" in repr(mg.nn.MLP([2, 2], recompute=True))
    assert "activation=relu" in repr(net)


def test_state_survives_copying_saving_and_pickling():
    net = mg.nn.MLP([4, 8, 2], nn.LeakyReLU(0.3))
    x = torch.randn(3, 4)
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    loaded = mg.nn.MLP([4, 8, 2], nn.LeakyReLU(0.3))
    loaded.load_state_dict(torch.load(buffer))
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), loaded):
        assert torch.equal(twin(x), net(x))
        assert str(twin) == str(net)


def test_modules_move_between_dtypes_and_devices():
    net = mg.nn.MLP([4, 8, 2], "gelu")
    assert net.double()(torch.randn(3, 4, dtype=torch.float64)).dtype == torch.float64
    assert net.bfloat16()(torch.randn(3, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert mg.nn.MLP([4, 8, 2], device="meta")(torch.empty(3, 4, device="meta")).shape == (3, 2)


def test_from_sequential_holds_the_callers_parameters():
    seq = nn.Sequential(
        nn.Linear(4, 5),
        nn.GELU(approximate="tanh"),
        nn.Sequential(nn.Linear(5, 5, bias=False), nn.Identity(), nn.Linear(5, 3)),
        nn.Dropout(0.0),
        mg.nn.Linear(3, 2, activation="silu"),
    ).eval()
    net = mg.nn.MLP.from_sequential(seq, recompute=True)
    assert [str(layer.activation) for layer in net.layers] == [
        "gelu_tanh",
        "identity",
        "identity",
        "silu",
    ]
    assert [id(p) for p in net.parameters()] == [id(p) for p in seq.parameters()]
    assert not net.training
    assert net.recompute
    x = torch.randn(6, 4)
    torch.testing.assert_close(net(x), seq(x))
    with torch.no_grad():
        seq[0].weight.mul_(2.0)
    torch.testing.assert_close(net(x), seq(x))


def test_from_sequential_with_one_activation_module_in_several_places():
    act = nn.Tanh()
    seq = nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 4), act)
    x = torch.randn(3, 4)
    torch.testing.assert_close(mg.nn.MLP.from_sequential(seq)(x), seq(x))


def test_from_sequential_draws_no_random_numbers():
    seq = sequential(4, 5, 2)
    torch.manual_seed(1)
    mg.nn.MLP.from_sequential(seq)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))


class Doubled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


def hooked(which):
    seq = nn.Sequential(nn.Linear(4, 2), nn.Identity(), nn.Tanh())
    (seq if which is None else seq[which]).register_forward_hook(lambda *_: None)
    return seq


def with_its_own_forward():
    seq = sequential(4, 2)
    seq[0].forward = lambda x: x
    return seq


class Reversed(nn.Sequential):
    def forward(self, input):
        return input


LINEAR = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("seq", "error", "message"),
    [
        (nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), ValueError, "ReLU at '0' does not follow a Linear"),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Tanh()), ValueError, "at most one activation"),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), TypeError, "for the module Dropout"),
        (nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), TypeError, "for the module LayerNorm"),
        (nn.Sequential(Doubled(2, 2)), TypeError, "'0' is a Doubled"),
        (nn.Sequential(), ValueError, "no Linear"),
        (hooked(0), ValueError, "Linear at '0' has hooks"),
        (hooked(1), ValueError, "Identity at '1' has hooks"),
        (hooked(None), ValueError, "Sequential at 'the Sequential' has hooks"),
        (with_its_own_forward(), ValueError, "forward of its own"),
        (Reversed(nn.Linear(2, 2)), ValueError, "forward of its own"),
        (nn.Sequential(LINEAR, nn.Tanh(), LINEAR), ValueError, "at '2' stands in it twice"),
        (nn.Linear(2, 2), TypeError, "expected a torch.nn.Sequential, got Linear"),
    ],
)  # fmt: skip
def test_from_sequential_refuses_what_it_would_change(seq, error, message):
    with pytest.raises(error, match=message):
        mg.nn.MLP.from_sequential(seq)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([4],), ValueError, "at least the input's and the"),
        (("abc",), TypeError, "sizes must be a list of ints"),
        (([4, 2.0],), TypeError, r"sizes\[1\] must be an int"),
        (([4, -1],), ValueError, r"sizes\[1\] must be >= 0"),
        (([4, 4, 2], ["relu", "relu"]), ValueError, "1 hidden layers but 2 activations"),
        (([4, 4, 2], "rleu"), ValueError, "did you mean 'relu'"),
    ],
)
def test_mlp_refuses_bad_sizes(arguments, error, message):
    with pytest.raises(error, match=message):
        mg.nn.MLP(*arguments)


@pytest.mark.parametrize("bias", ["relu", torch.relu, nn.ReLU()])
def test_linear_refuses_an_activation_in_the_place_of_bias(bias):
    with pytest.raises(TypeError, match=r"bias must be True or False.*activation="):
        mg.nn.Linear(3, 2, bias)


def pruned(net, first):
    nn.utils.prune.l1_unstructured(first, "weight", amount=0.5)


def parametrised(net, first):
    nn.utils.parametrizations.weight_norm(first)


def hooked_layer(net, first):
    first.register_forward_hook(lambda module, args, output: output * 0.5)


@pytest.mark.parametrize("change", [pruned, parametrised, hooked_layer], ids=lambda f: f.__name__)
def test_layers_that_are_more_than_their_weights_train_as_torchs(change):
    seq = sequential(4, 5, 2, last=False)
    net = mg.nn.MLP.from_sequential(copy.deepcopy(seq))
    change(net, net.layers[0])
    if change is hooked_layer:
        change(seq, seq[1])  # ours sees a, torch's activation is a module of its own
    else:
        change(seq, seq[0])
    x = torch.randn(3, 4)
    for model in (net, seq):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(net(x), seq(x))


def test_a_layer_may_be_replaced_and_its_activation_set():
    net, x = mg.nn.MLP([4, 5, 2], "tanh"), torch.randn(3, 4)
    net.layers[0].activation = "gelu"
    torch.testing.assert_close(
        net(x), net.layers[1](F.gelu(F.linear(x, net.layers[0].weight, net.layers[0].bias)))
    )
    with pytest.raises(ValueError, match="did you mean 'tanh'"):
        net.layers[0].activation = "tahn"
    net.layers[1] = nn.Linear(5, 7)
    assert net(x).shape == (3, 7)
    net.layers = nn.ModuleList()
    assert net(x) is x


def test_functional_call():
    net = mg.nn.MLP([4, 5, 2], "tanh")
    zeros = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    assert not torch.func.functional_call(net, zeros, torch.randn(3, 4)).any()


def test_training_step_by_step_is_torchs():
    seq = sequential(4, 8, 3, last=False).double()
    net = mg.nn.MLP.from_sequential(copy.deepcopy(seq))
    x, y = torch.randn(16, 4, dtype=torch.float64), torch.randint(0, 3, (16,))
    losses = {}
    for model, cost in ((net, mg.cross_entropy), (seq, F.cross_entropy)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        losses[cost] = []
        for _ in range(30):
            optimizer.zero_grad()
            loss = cost(model(x), y)
            loss.backward()
            optimizer.step()
            losses[cost].append(loss.item())
    ours, theirs = losses.values()
    assert ours == pytest.approx(theirs, rel=1e-10)
    assert ours[-1] < ours[0]
