"""What a caller may write for an activation, and how to add one."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from helpers import MODULES
from torch import nn

import manualgrad as mg
from manualgrad.activations import ACTIVATIONS, activation_of


@pytest.mark.parametrize(("name", "module"), sorted(MODULES.items()))
def test_modules_mean_their_activation(name, module):
    assert activation_of(module, "test") is ACTIVATIONS[name]


SPECS = [
    (F.gelu, "gelu"),
    (F.relu, "relu"),
    (torch.relu, "relu"),
    (torch.tanh, "tanh"),
    (F.silu, "silu"),
    (torch.sigmoid, "sigmoid"),
    (F.logsigmoid, "log_sigmoid"),
    (None, "identity"),
    ("swish", "silu"),
    ("gelu_new", "gelu_tanh"),
    ("ReLU", "relu"),
    ("LeakyReLU", "leaky_relu"),
    ("sqrelu", "relu_squared"),
]


@pytest.mark.parametrize(("spec", "name"), SPECS)
def test_functions_and_aliases_mean_their_activation(spec, name):
    assert activation_of(spec, "test") is ACTIVATIONS[name]


@pytest.mark.parametrize(
    "module",
    [nn.LeakyReLU(0.2), nn.LeakyReLU(0.0), nn.ELU(0.7), nn.CELU(1.7), nn.Softplus(2.0, 15.0)],
    ids=str,
)
def test_modules_carry_their_parameters(module):
    act = activation_of(module, "test")
    z = torch.linspace(-9, 9, 41, dtype=torch.float64, requires_grad=True)
    a = mg.linear_act(z[:, None], torch.ones(1, 1, dtype=z.dtype), None, module)[:, 0]
    torch.testing.assert_close(a, module(z), rtol=1e-13, atol=1e-15)
    z = z.detach()[z.abs() > 0.1].requires_grad_()  # away from the kink
    one = torch.ones(1, 1, dtype=z.dtype)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda z: mg.linear_act(z[:, None], one, None, module), z)
    torch.testing.assert_close(act.oracle(z), module(z))
    assert str(act) != act.name
    assert "=" in str(act)
    assert pickle.loads(pickle.dumps(act)) is act
    assert copy.deepcopy(act) is act


def test_unknown_activations():
    with pytest.raises(ValueError, match=r"unknown activation 'sigmod'; did you mean 'sigmoid'\?"):
        activation_of("sigmod", "linear_act")
    with pytest.raises(ValueError, match="known names: celu, elu"):
        activation_of("?", "linear_act")
    for spec in (3, nn.Softmax(), torch.exp, nn.ReLU, ["relu"]):
        with pytest.raises(TypeError, match=r"manualgrad\.linear_act"):
            activation_of(spec, "linear_act")
    with pytest.raises(ValueError, match="approximate must be 'none' or 'tanh'"):
        activation_of(nn.GELU(approximate="Tanh"), "linear_act")
    with pytest.raises(ValueError, match="not finite"):
        activation_of(nn.LeakyReLU(float("nan")), "linear_act")
    for module in (nn.LeakyReLU(-0.1), nn.CELU(0.0), nn.Softplus(0.0)):
        with pytest.raises(ValueError, match="has no derivative by hand, it"):
            activation_of(module, "linear_act")


@pytest.mark.usefixtures("registry")
def test_register_activation():
    def cube(z):
        return z * z * z

    def cube_prime(z):
        return 3.0 * z * z

    def cube_second(z):
        return 6.0 * z

    mg.register_activation(cube, cube_prime, cube_second, oracle=lambda z: z**3)
    assert "cube" in mg.activations()
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)

    def f(x, weight):
        return mg.linear_act(x, weight, activation="cube")

    assert torch.autograd.gradcheck(f, (x, weight))
    assert torch.autograd.gradgradcheck(f, (x, weight))
    with pytest.raises(ValueError, match="already registered"):
        mg.register_activation(cube, cube_prime, cube_second, oracle=lambda z: z**3)


@pytest.mark.usefixtures("registry")
def test_a_derivative_may_be_a_plain_number():
    def twice(z):
        return 2.0 * z

    def twice_prime(a):
        return 2.0

    def twice_second(a):
        return 0.0

    mg.register_activation(twice, twice_prime, twice_second, oracle=lambda z: z + z)
    x, weight = (torch.randn(3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda x, w: mg.linear_act(x, w, None, "twice"), (x, weight))


def test_register_activation_refuses_what_does_not_say_what_it_keeps():
    def half(z):
        return 0.5 * z

    def half_prime(x):
        return 0.5

    def half_second(a):
        return 0.0

    with pytest.raises(TypeError, match="first parameter of sigma_prime is 'x'"):
        mg.register_activation(half, half_prime, half_second, oracle=half)
    with pytest.raises(TypeError, match="plain function"):
        mg.register_activation(torch.sin, half, half, oracle=half)
    with pytest.raises(TypeError, match="sigma_prime is written in 'z' but sigma_second in 'a'"):
        mg.register_activation(half, half, half_second, oracle=half)
    with pytest.raises(TypeError, match="oracle must be callable"):
        mg.register_activation(half, half, half, oracle=None)
    with pytest.raises(TypeError, match="kinks must be a tuple"):
        mg.register_activation(half, half, half, oracle=half, kinks=0.0)
    with pytest.raises(ValueError, match="is no name"):
        mg.register_activation(lambda z: z, half, half, oracle=half)

    def scaled(z, scale):
        return scale * z

    def swish(z):
        return z

    with pytest.raises(TypeError, match="the same float constants, with defaults"):
        mg.register_activation(scaled, scaled, scaled, oracle=half)
    with pytest.raises(ValueError, match="'swish' is already registered"):
        mg.register_activation(swish, half, half, oracle=half)
    assert not {"half", "<lambda>", "scaled", "swish"} & set(mg.activations())
