"""Formulas of one's own: translated from their text, or refused with what they are."""

import functools
import math

import pytest
import torch
from cases import normal

import manualgrad as mg
from manualgrad import formula
from manualgrad.activations import ACTIVATIONS
from manualgrad.formula import exp, full_like, where

TWO, SLOPE = 2, 0.1


def absolute(z):
    """Not manualgrad.formula's, though it has its name."""
    return z * z + 1.0


def helper(z, scale):
    return scale * exp(-z * z)


def own(z):
    return absolute(z) * SLOPE + TWO * helper(z, SLOPE)


def own_prime(z):
    return TWO * SLOPE * z - 2.0 * TWO * z * helper(z, SLOPE)


def own_second(z):
    return full_like(z, TWO * SLOPE) + (4.0 * z * z - 2.0) * TWO * helper(z, SLOPE)


@pytest.fixture
def registered():
    before = dict(ACTIVATIONS)
    mg.register_activation(own, own_prime, own_second, oracle=own)
    yield
    ACTIVATIONS.clear()
    ACTIVATIONS.update(before)


@pytest.mark.usefixtures("registered")
def test_helpers_and_whole_numbers_are_translated_too():
    x, weight = normal(7, 5).requires_grad_(), normal(3, 5).requires_grad_()
    results = []
    for backend in ("torch", "triton"):
        with mg.backend(backend):
            a = mg.linear_act(x, weight, None, "own")
            results.append((a, *torch.autograd.grad(a.sum(), (x, weight))))
    torch.testing.assert_close(*results, rtol=1e-13, atol=1e-13)


def powers(z):
    return z**2


def branches(z):
    return z if z > 0 else 0.0 * z


def of_torch(z):
    return torch.tanh(z)


def of_the_input(z):
    return z.square()


def through_the_module(z):
    return formula.exp(z)


def of_the_builtins(z):
    return abs(z)


def of_a_list(z):
    return z * NUMBERS


NUMBERS = [1.0]


def closing_over(slope):
    return lambda z: z * slope


def through_a_helper(z):
    return powers(z) + 1.0


REFUSED = {
    powers: r"it uses \*\*",
    branches: "it branches or loops; use where",
    of_torch: "it reaches into torch; import functions by name",
    through_the_module: "it reaches into formula",
    of_the_input: r"it reads \.square",
    of_the_builtins: "it calls abs, which is not in manualgrad.formula",
    of_a_list: "it uses NUMBERS, a list",
    closing_over(2.0): "it closes over slope",
    through_a_helper: r"in powers: it uses \*\*",
    math.exp: "it is no plain function",
    functools.partial(where, condition=1, x=2, y=3): "it has 3 constants",
}


@pytest.mark.parametrize("wrong", REFUSED, ids=lambda f: getattr(f, "__name__", "partial"))
def test_what_cannot_be_translated_is_refused_with_the_reason(kernels, wrong):
    with pytest.raises(ValueError, match=REFUSED[wrong]):
        kernels.forward.device_function(wrong)


@pytest.mark.usefixtures("registered")
def test_such_an_activation_runs_on_aten_and_says_so(monkeypatch):
    from manualgrad import eligibility

    act = ACTIVATIONS["own"]
    object.__setattr__(act, "sigma", powers)
    eligibility.formula_problem.cache_clear()
    reason = eligibility.refusal(act, normal(2, 3))
    assert "own cannot be translated for the device: it uses **" in reason
    with mg.backend("triton"), pytest.raises(ValueError, match="cannot be translated"):
        mg.linear_act(normal(2, 3), normal(4, 3), None, "own")


def test_every_registered_formula_can_be_translated(kernels):
    for act in ACTIVATIONS.values():
        for text in (act.sigma, act.sigma_prime, act.sigma_second):
            assert kernels.untranslatable(text) is None


def test_shapes_that_do_not_fit_are_refused(kernels):
    gelu, a = ACTIVATIONS["gelu"], normal
    calls = [
        lambda: kernels.linear_act_forward(a(4, 5), a(3, 6), None, gelu),
        lambda: kernels.linear_act_forward(a(4, 5), a(3, 5), a(2), gelu),
        lambda: kernels.linear_act_forward(a(4, 5), a(3, 5), None, gelu, a(4, 4)),
        lambda: kernels.linear_act_forward(a(4, 5), a(3, 5), None, gelu, a(1, 3)),
        lambda: kernels.sigma_prime_pass(a(4, 5), a(4, 4), gelu),
        lambda: kernels.sigma_prime_pass(a(4, 5), a(4, 5), gelu, False, a(4, 4)),
        lambda: kernels.bp2_propagate_error(a(4, 5), a(5, 3), a(4, 3), gelu, a(4, 2)),
        lambda: kernels.bp2_propagate_error(a(4, 5), a(5, 3), a(4, 3), gelu, skip_z=a(3, 4)),
        lambda: kernels.bp2_propagate_error(a(4, 5), a(4, 3), a(4, 3), gelu),
        lambda: kernels.bp4_weight_gradient(a(4, 5), a(3, 5)),
        lambda: kernels.bp4_weight_gradient(a(4, 5), a(4, 3), a(2, 3)),
        lambda: kernels.sigma_pass(a(6, 5), gelu, a(3)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"but .* fits the other tensors"):
            call()


def test_in_place_on_an_adjoint_of_any_layout(kernels):
    s, gelu = normal(6, 5), ACTIVATIONS["gelu"]
    skips = None, normal(6, 5), normal(5, 6).t(), normal(1, 5).expand(6, 5), normal(1).expand(6, 5)
    for skip_z in skips:
        for adjoint in (normal(6, 5), normal(5, 6).t(), normal(6, 10)[:, ::2]):
            want = adjoint * gelu.sigma_prime(s) + (0.0 if skip_z is None else skip_z)
            delta, rows, _ = kernels.sigma_prime_pass(
                adjoint, s, gelu, False, skip_z, in_place=True
            )
            torch.testing.assert_close(delta, want, rtol=1e-13, atol=1e-13)
            torch.testing.assert_close(rows.sum(0), want.sum(0), rtol=1e-13, atol=1e-13)


def test_the_identity_overwrites_only_what_it_is_told_to(kernels):
    identity, adjoint, skip_z = ACTIVATIONS["identity"], normal(6, 5), normal(6, 5)
    kept, want = (adjoint.clone(), skip_z.clone()), adjoint + skip_z
    alone, _, _ = kernels.sigma_prime_pass(adjoint, None, identity)
    added, rows, _ = kernels.sigma_prime_pass(adjoint, None, identity, skip_z=skip_z)
    assert alone is adjoint, "nothing to compute"
    assert torch.equal(added, want)
    assert torch.equal(adjoint, kept[0])
    assert torch.equal(skip_z, kept[1])
    torch.testing.assert_close(rows.sum(0), want.sum(0), rtol=1e-13, atol=1e-13)
    added, _, _ = kernels.sigma_prime_pass(adjoint, None, identity, False, skip_z, in_place=True)
    assert added is adjoint
    assert torch.equal(added, want)
