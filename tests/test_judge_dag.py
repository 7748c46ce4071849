"""The judge "dag": the library's own operations on a tape, and what it sees."""

import pytest
import torch
import torch.nn.functional as F
from gpt import GPT

import manualgrad as mg
from manualgrad import functions
from manualgrad.dag.rules.arithmetic import Mul
from manualgrad.verify.audit import judge
from manualgrad.verify.table import table

CASES = [case for case in table() if "dag" in case.judges]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_operation_of_ours_runs_on_a_tape(case):
    (outcome,) = judge(case, ("dag",)).outcomes
    assert outcome.status == "passed", outcome


def test_a_model_of_torchs_modules():
    model, tokens = GPT(11), torch.randint(11, (2, 6))
    (outcome,) = mg.check(model, tokens, only="dag").outcomes
    assert outcome.status == "passed"


def test_several_outputs_and_an_input_that_is_not_used():
    def fn(x, y, unused):
        return x * y, (x + y).sum()

    x = torch.randn(3)
    assert mg.check(fn, x, torch.randn(3), torch.randn(2), only="dag").passed


def test_a_gradient_of_torchs_that_lost_half_its_digits():
    """F.hardsigmoid's backward takes 1/6 in float32, also for float64: 1e-8 off."""
    z = torch.tensor([1.0, -0.5, 0.1])
    (finding,) = mg.check(F.hardsigmoid, z, only="dag").findings
    assert "gradient of input (3,), by a tape" in finding.message
    assert 1e-10 < finding.measured < 1e-7
    assert mg.check(lambda z: F.relu6(z + 3.0) / 6.0, z, only="dag").passed


def test_a_wrong_rule_is_found(monkeypatch):
    def fn(x, y):
        return torch.tanh(x) * y

    x, y = torch.randn(3), torch.randn(3)
    assert mg.check(fn, x, y, only="dag").passed
    right = Mul.backward
    monkeypatch.setattr(Mul, "backward", staticmethod(lambda ctx, grad: right(ctx, grad)[::-1]))
    assert mg.check(fn, x, y, only="dag").findings


def test_a_broken_rule_is_a_finding_and_no_refusal(monkeypatch):
    layer, x = mg.nn.Linear(3, 2, activation="tanh"), torch.randn(4, 3)
    assert mg.check(layer, x, only="dag").passed
    monkeypatch.setattr(functions, "aten", None)  # an AttributeError, from a line of ours
    monkeypatch.setattr(functions, "backend_for", lambda x: None)
    (finding,) = mg.check(layer, x, only="dag").findings
    assert "fn raised AttributeError" in finding.message


@pytest.mark.parametrize(
    ("fn", "why"),
    [
        (torch.cos, "torch.cos has no hand-derived rule"),
        (lambda x: F.dropout(x, 0.5), "fn draws random numbers"),
        (lambda x: x.clone().relu_(), "in place"),
        (lambda x: x + torch.fft.fft(x).real, "torch.fft.fft has no hand-derived rule"),
        (lambda x: x + (x * 1j).imag, "scale has a complex operand or result"),
    ],
    ids=["no rule", "random", "in place", "complex", "a complex number"],
)
def test_what_it_cannot_ask_it_says(fn, why):
    (outcome,) = mg.check(fn, torch.randn(4), only="dag").outcomes
    assert outcome.status == "not run"
    assert why in outcome.message
