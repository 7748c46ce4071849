"""The registry: each formula against another implementation, SymPy, and its own limits."""

import copy
import math
import pickle

import pytest
import sympy
import torch
import torch.nn.functional as F
from helpers import MODULES, NAMES, native
from torch import nn

import manualgrad as mg
from manualgrad import aten
from manualgrad.activations import ACTIVATIONS, activation_of
from manualgrad.formula import rounded_once

INF, NAN = math.inf, math.nan
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
CONTRACT = [
    "identity",
    "relu",
    "leaky_relu",
    "relu6",
    "relu_squared",
    "elu",
    "selu",
    "celu",
    "sigmoid",
    "hardsigmoid",
    "log_sigmoid",
    "tanh",
    "softplus",
    "softsign",
    "silu",
    "mish",
    "hardswish",
    "gelu",
    "gelu_tanh",
    "quick_gelu",
    "sine",
    "gaussian",
]

# sigma and sigma' at -inf and +inf
LIMITS = {
    "celu": ((-1, 0), (INF, 1)),
    "elu": ((-1, 0), (INF, 1)),
    "gaussian": ((0, 0), (0, 0)),
    "gelu": ((0, 0), (INF, 1)),
    "gelu_tanh": ((0, 0), (INF, 1)),
    "hardsigmoid": ((0, 0), (1, 0)),
    "hardswish": ((0, 0), (INF, 1)),
    "identity": ((-INF, 1), (INF, 1)),
    "leaky_relu": ((-INF, 0.01), (INF, 1)),
    "log_sigmoid": ((-INF, 1), (0, 0)),
    "mish": ((0, 0), (INF, 1)),
    "quick_gelu": ((0, 0), (INF, 1)),
    "relu": ((0, 0), (INF, 1)),
    "relu6": ((0, 0), (6, 0)),
    "relu_squared": ((0, 0), (INF, INF)),
    "selu": ((-1.7580993408473766, 0), (INF, 1.0507009873554805)),
    "sigmoid": ((0, 0), (1, 0)),
    "silu": ((0, 0), (INF, 1)),
    "sine": ((NAN, NAN), (NAN, NAN)),  # no limit exists, as its comment says
    "softplus": ((0, 0), (INF, 1)),
    "softsign": ((-1, 0), (1, 0)),
    "tanh": ((-1, 0), (1, 0)),
}

names = pytest.mark.parametrize("name", NAMES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])


def by_formulas(act):
    """(sigma(z), sigma'(z) through what backward keeps) by the registered texts."""

    def sigma_prime(z):
        s = rounded_once(act.sigma, z) if act.keeps == "a" else z
        return rounded_once(act.sigma_prime, s)

    return lambda z: rounded_once(act.sigma, z), sigma_prime


def by_layers(act):
    """The same two through linear_act, so by whatever backend runs."""

    def sigma(z):
        return mg.linear_act(z[:, None], torch.ones(1, 1, dtype=z.dtype), None, act)[:, 0]

    def sigma_prime(z):
        z = z.clone().requires_grad_()
        return torch.autograd.grad(sigma(z).sum(), z)[0]

    return sigma, sigma_prime


both = pytest.mark.parametrize("way", [by_formulas, by_layers], ids=["formulas", "layers"])


def test_all_names_of_the_contract_are_there():
    assert set(CONTRACT) <= set(mg.activations())
    assert mg.activations() == sorted(mg.activations())


@names
def test_sigma_agrees_with_an_independent_implementation(name):
    z = torch.linspace(-25, 25, 1001, dtype=torch.float64)
    act = ACTIVATIONS[name]
    torch.testing.assert_close(act.sigma(z), act.oracle(z), rtol=1e-13, atol=1e-14)


@names
def test_sigma_prime_and_second_are_the_derivatives(name):
    act, z = ACTIVATIONS[name], sympy.Symbol("z", real=True)
    sigma = act.sigma(z)
    s = sigma if act.keeps == "a" else z
    for order, formula in ((1, act.sigma_prime), (2, act.sigma_second)):
        gap = sympy.diff(sigma, z, order) - formula(s)
        for point in (-7.3, -2.31, -0.7, 0.4, 1.9, 2.7, 6.5, 21.0):
            assert abs(complex(gap.subs(z, sympy.Float(point, 30)).evalf(30))) < 1e-12, (
                order,
                point,
            )


@names
@dtypes
@both
def test_values_far_out_are_right(name, dtype, way):
    act = ACTIVATIONS[name]
    z = torch.tensor([-1e4, -300.0, -100.0, -60.0, 60.0, 100.0, 300.0, 1e4]).to(dtype)
    for ours, truth in zip(way(act), by_formulas(act), strict=True):
        torch.testing.assert_close(ours(z), truth(z.double()).to(dtype))


@names
@dtypes
@both
def test_limits_at_infinity(name, dtype, way):
    sigma, sigma_prime = way(ACTIVATIONS[name])
    z = torch.tensor([-INF, INF] * 9, dtype=dtype)  # long enough for vectorised kernels
    (low, slope_low), (high, slope_high) = LIMITS[name]
    for got, want in ((sigma(z), (low, high)), (sigma_prime(z), (slope_low, slope_high))):
        torch.testing.assert_close(got, torch.tensor(want * 9, dtype=dtype), equal_nan=True)


@names
@dtypes
@both
def test_nan_stays_nan_and_negative_zero_is_zero(name, dtype, way):
    sigma, sigma_prime = way(ACTIVATIONS[name])
    assert sigma(torch.full((9,), NAN, dtype=dtype)).isnan().all()
    zeros = torch.zeros(9, dtype=dtype)
    assert torch.equal(sigma(-zeros), sigma(zeros))
    assert torch.equal(sigma_prime(-zeros), sigma_prime(zeros))


@pytest.mark.parametrize("name", [name for name in NAMES if ACTIVATIONS[name].kinks])
@both
def test_kinks_take_torchs_choice(name, way):
    z = torch.tensor(ACTIVATIONS[name].kinks * 9, dtype=torch.float64, requires_grad=True)
    (want,) = torch.autograd.grad(native(name)(z).sum(), z)
    sigma, sigma_prime = way(ACTIVATIONS[name])
    torch.testing.assert_close(sigma_prime(z.detach()), want, rtol=1e-12, atol=0)
    torch.testing.assert_close(sigma(z.detach()), native(name)(z.detach()), rtol=1e-15, atol=0)


def test_what_each_keeps():
    kept = {name: act.keeps for name, act in ACTIVATIONS.items() if not act.is_identity}
    of_a = {"relu", "leaky_relu", "relu6", "sigmoid", "tanh", "log_sigmoid"}
    assert {name for name in CONTRACT if kept.get(name) == "a"} == of_a


@pytest.mark.parametrize("name", sorted(aten.ONE_PASS))
@dtypes
def test_one_pass_kernels_compute_the_formulas(name, dtype):
    act = ACTIVATIONS[name]
    z = torch.cat([torch.linspace(-9, 9, 181), torch.tensor([-INF, -1e4, 1e4, INF])]).to(dtype)
    v = torch.randn(len(z)).to(dtype)
    sigma, times_prime = aten.kernels_of(act)
    z = torch.tensor([p for p in z.tolist() if p not in act.kinks], dtype=dtype)
    v = v[: len(z)]
    want = by_formulas(act)[0](z)
    torch.testing.assert_close(sigma(z.clone()), want)
    s = want if act.keeps == "a" else z
    want = rounded_once(lambda v, s: v * act.sigma_prime(s), v, s)
    torch.testing.assert_close(times_prime(v, s), want)


# what a caller may write


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
    with pytest.raises(ValueError, match="slope >= 0"):
        activation_of(nn.LeakyReLU(-0.1), "linear_act")


@pytest.fixture
def registry():
    before = dict(ACTIVATIONS)
    yield
    ACTIVATIONS.clear()
    ACTIVATIONS.update(before)


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
    assert "half" not in mg.activations()
