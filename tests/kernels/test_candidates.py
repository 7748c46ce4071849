"""mg.tune's candidates are the library's own routes, checked against ATen before they are timed."""

import pytest
import torch
from cases import DEVICE

from manualgrad import backends, routed, tuning
from manualgrad.activations import ACTIVATIONS
from manualgrad.backends import BP1, BP2, BP4, FORWARD

SHAPE = (64, 48, 32)  # examples, outputs, inputs


@pytest.fixture
def timed(monkeypatch):
    """Times by the book: Triton half of ATen's; what was timed, in order."""
    seen = []

    def medians(steps, device):
        seen.append(list(steps))
        return {c: 0.5 if c.backend == "triton" else 1.0 for c in steps}

    monkeypatch.setattr(tuning, "medians", medians)
    monkeypatch.setattr(backends, "relu_epilogue_keeps_nan", lambda index, dtype: True)
    return seen


def measured(operation, name, shape=SHAPE):
    device = torch.device(DEVICE)
    return tuning.measured(operation, ACTIVATIONS[name], shape, torch.bfloat16, device, 0)


@pytest.mark.parametrize("name", ["relu", "gelu"])
@pytest.mark.parametrize("operation", [FORWARD, BP1, BP2, BP4])
def test_every_candidate_agrees_with_aten(timed, operation, name):
    key, choice = measured(operation, name)
    first, second = timed
    assert first == second, "twice the same"
    backends_timed = {c.backend for c in first}
    assert ("hybrid" in backends_timed) == (operation != BP4)
    assert ("cublaslt" in backends_timed) == (operation == FORWARD and name == "relu")
    assert choice["backend"] == ("triton" if operation != BP1 else "aten")
    assert key.startswith(operation)
    assert len(choice["milliseconds"]) == len(first)


def test_an_odd_layer_has_candidates_too(timed):
    """Ten outputs: rows that no tensor descriptor can describe."""
    for operation in (FORWARD, BP2, BP4):
        _, choice = measured(operation, "gelu", (33, 10, 17))
        assert "tma" not in (choice["tile"] or "")


def test_a_candidate_that_is_wrong_is_not_chosen(timed, monkeypatch, kernels):
    right = kernels.linear_act_forward
    monkeypatch.setattr(
        kernels, "linear_act_forward", lambda *a, **k: [1.5 * t for t in right(*a, **k)]
    )
    assert routed.triton_kernels() is kernels
    with pytest.warns(UserWarning, match=r"triton .* is off by"):
        _, choice = measured(FORWARD, "gelu")
    assert choice["backend"] != "triton"
