"""The checker's own instruments: derivatives by differences, and the comparison of two tensors."""

import math

import pytest
import torch

from manualgrad.verify.numeric import inner, kinked, slope
from manualgrad.verify.readings import Reading, compare
from manualgrad.verify.tolerance import beside_rounding, beside_torch, rounded_otherwise

EPS = 2.0**-52
SMOOTH = {
    "exp": (math.exp, 1.0),
    "sin": (lambda h: math.sin(1.0 + h), math.cos(1.0)),
    "steep": (lambda h: math.tanh(50.0 * h + 0.1), 50.0 * (1 - math.tanh(0.1) ** 2)),
    "constant": (lambda h: 3.0, 0.0),
    "linear": (lambda h: 2.0 * h + 1e6, 2.0),
    "a logarithm's domain": (lambda h: math.log(0.01 + h) if h > -0.01 else math.nan, 100.0),
    "a kink nearby": (lambda h: max(h + 1e-4, 0.0) + math.exp(h), 2.0),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_slopes_lie_within_their_error_bars(name):
    phi, right = SMOOTH[name]
    found = slope(lambda h: (phi(h), abs(phi(h))), EPS, 1e-13)
    assert abs(found.value - right) <= 2 * found.bar
    assert not found.says_nothing(max(abs(right), 1e-3))
    assert found.bar <= 1e-7 * max(abs(right), found.size)


def test_a_slope_that_is_not_there_has_an_infinite_bar():
    found = slope(lambda h: (math.nan, 1.0), EPS, 1e-13)
    assert math.isnan(found.value)
    assert found.says_nothing(1.0)


def test_a_staircase_says_nothing():
    assert slope(lambda h: (round(h * 27182.8) / 27182.8 + 1e3, 1e3), EPS, 1e-13).bar > 1e-9


@pytest.mark.parametrize(
    ("phi", "is_kinked"),
    [
        (abs, True),
        (lambda h: max(h, 0.0), True),
        (lambda h: max(h, 0.0) ** 2, False),
        (math.exp, False),
        (lambda h: 0.0, False),
        (lambda h: max(h + 1e-3, 0.0), False),
    ],
)
def test_kinks_are_told_from_bends(phi, is_kinked):
    assert kinked(lambda h: (phi(h), abs(phi(h))), EPS) == is_kinked


def test_inner_products():
    one, two = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0])
    assert inner([one, None], [two, two]) == (-5.0, 11.0)
    z = torch.tensor([1.0 + 2.0j])
    assert inner([z], [z]) == (5.0, 5.0)


def test_rounding_moves_every_entry_by_its_last_digit_and_integers_not():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        x = torch.randn(1000).to(dtype)
        moved, count = rounded_otherwise([x, torch.arange(3)], 1)
        assert (moved != x).all()
        assert ((moved.double() / x.double() - 1).abs() <= 2.01 * torch.finfo(dtype).eps).all()
        assert torch.equal(count, torch.arange(3))


def test_the_rule_grows_with_torchs_error_and_with_what_rounding_does():
    truth = torch.tensor([2.0], dtype=torch.float64)
    unit = torch.finfo(torch.float32).eps
    assert beside_torch(truth, 0.125, torch.float32) == pytest.approx(0.25 + 2 * unit)
    assert beside_rounding(truth, 0.125, torch.float32) == pytest.approx(8 * (0.125 + 2 * unit))


X = torch.arange(1.0, 13.0, dtype=torch.float64).reshape(4, 3)
WITH_NAN = X.clone()
WITH_NAN[1, 2] = math.nan
LAST_ROW = X.clone()
LAST_ROW[3] = 0.0
SQUARE = X[:3]
COMPARISONS = [
    (2 * X, X, "every entry is 2 times what it should be"),
    (-X, X, "every entry is -1 times"),
    (torch.zeros_like(X), X, "all of it is zero"),
    (None, X, "is None where it should be up to 12"),
    (WITH_NAN, X, "[1, 2] is nan, should be 6; 1 of 12 entries are not finite"),
    (LAST_ROW, X, "3 of 12 entries differ, all at index 3 of dimension 0"),
    (SQUARE.T, SQUARE, "it is the transposed of what it should be"),
    (X + 1e-9, X, "is 1.000000001, should be 1;"),
    (X[:2], X, "has shape (2, 3), should have (4, 3)"),
    (X.float(), X, "has dtype torch.float32, should have torch.float64"),
    (X + 0j, X + 1j, "should be (1+1j)"),
]


@pytest.mark.parametrize(("ours", "theirs", "message"), COMPARISONS)
def test_a_comparison_says_what_differs(ours, theirs, message):
    reading = compare("it", ours, theirs, 1e-12)
    assert reading.wrong
    assert reading.message.startswith("it")
    assert message in reading.message


def test_what_is_equal_is_equal():
    endless = torch.tensor([math.nan, math.inf, -math.inf, 0.0])
    for ours, theirs in (
        (endless, endless.clone()),
        (None, torch.zeros(3)),
        (None, None),
        (torch.zeros(3), None),
    ):
        assert not compare("it", ours, theirs, 0.0).wrong
    assert compare("it", endless, -endless, 1e9).wrong


def test_a_reading_without_numbers_is_wrong_and_so_is_nan():
    assert Reading("text").wrong
    assert Reading("text", math.nan, 1.0).wrong
    assert Reading("text", 1.0, 1.0).share == 1.0
    assert not Reading("text", 1.5, 1.0, 10.0).tolerating(0.0, 0.1).wrong
    assert Reading("text", 1.0, 0.0, 10.0).tolerating(9.0, 9.0).wrong
