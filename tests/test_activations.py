"""The registry: each formula against another implementation, SymPy, and its own limits."""

import math

import pytest
import sympy
import torch
from helpers import NAMES, native

import manualgrad as mg
from manualgrad import one_pass
from manualgrad.activations import ACTIVATIONS
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


@pytest.mark.parametrize("name", sorted(one_pass.ONE_PASS))
@dtypes
def test_one_pass_kernels_compute_the_formulas(name, dtype):
    act = ACTIVATIONS[name]
    z = torch.cat([torch.linspace(-9, 9, 181), torch.tensor([-INF, -1e4, 1e4, INF])]).to(dtype)
    v = torch.randn(len(z)).to(dtype)
    sigma, times_prime = one_pass.kernels_of(act)
    z = torch.tensor([p for p in z.tolist() if p not in act.kinks], dtype=dtype)
    v = v[: len(z)]
    want = by_formulas(act)[0](z)
    close = {"rtol": 1e-12, "atol": 1e-14} if dtype is torch.float64 else {}
    torch.testing.assert_close(sigma(z.clone()), want, **close)
    s = want if act.keeps == "a" else z
    want = rounded_once(lambda v, s: v * act.sigma_prime(s), v, s)
    torch.testing.assert_close(times_prime(v, s), want, **close)
