"""What mg.check leaves behind: nothing; what its report says, shows and writes."""

import functools
import json
import random
import sys
import warnings
from collections import OrderedDict, defaultdict

import numpy as np
import pandas as pd
import pytest
import torch
from faults import FAULTS
from faults.planted import W, X
from torch import nn

import manualgrad as mg
from manualgrad.verify.report import CheckReport, Outcome


def everything_global():
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        list(warnings.filters),
    )


def meddles(x):
    """Draws, seeds, and changes what is global."""
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(False)
    return x * torch.rand(())


@pytest.mark.parametrize("fn", [meddles, nn.Dropout(0.5), FAULTS["an_exception"]().fn])
def test_what_is_global_is_as_before(fn):
    before = everything_global()
    mg.check(fn, X)
    assert everything_global() == before


@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_it_checks_the_same_wherever_the_caller_stands(mode):
    want = mg.check(torch.sin, X, reference=torch.sin).outcomes
    with mode():
        before = everything_global()
        assert mg.check(torch.sin, X, reference=torch.sin).outcomes == want
        assert everything_global() == before


def fingerprint(tensor):
    return (
        id(tensor),
        tensor.data_ptr(),
        tensor._version,
        tensor.requires_grad,
        tensor.grad,
        tensor.tolist(),
    )


def test_tensors_and_modules_are_as_before():
    x = X.float().requires_grad_()
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.1), nn.Linear(4, 2))
    net.register_forward_hook(lambda *_: None)
    tensors = [x, *net.parameters(), *net.buffers()]
    before = [fingerprint(t) for t in tensors]
    hooks = [
        dict(m._forward_hooks) | dict(m._forward_pre_hooks) | dict(m._backward_hooks)
        for m in net.modules()
    ]
    mg.check(net, x)
    mg.check(net.eval().train(), x, reference=net)
    assert [fingerprint(t) for t in tensors] == before
    assert all(m.training for m in net.modules())
    assert hooks == [
        dict(m._forward_hooks) | dict(m._forward_pre_hooks) | dict(m._backward_hooks)
        for m in net.modules()
    ]


def test_modules_behind_a_function_are_as_before():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    state = {key: value.clone() for key, value in net.state_dict().items()}
    for fn in (lambda x: net(x), net.forward):
        mg.check(fn, X.float())
        assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
        assert all(p.grad is None for p in net.parameters())


def test_a_function_that_overwrites_its_inputs_does_not_get_the_callers():
    x, before = X.clone(), X.clone()
    for name in ("input_overwritten_in_forward", "incoming_gradient_overwritten"):
        mg.check(FAULTS[name]().fn, x)
    assert torch.equal(x, before)


def test_an_interruption_is_no_finding():
    def interrupted(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mg.check(interrupted, X)


def exits(x):
    sys.exit(0)


def exits_late(x):
    return x.sin() if x.is_contiguous() else sys.exit(0)


def test_a_function_that_ends_the_process_does_not():
    (finding,) = mg.check(exits, X).findings
    assert finding.message.startswith("fn raised SystemExit: 0 (test_check_conduct.py:")
    (finding,) = mg.check(exits_late, X, only="conduct").findings
    assert "SystemExit: 0" in finding.message


def test_a_crash_late_in_the_check_is_a_finding_of_that_question():
    def fn(x):
        if not x.is_contiguous():
            raise RuntimeError("a stride that is not 1")
        return x.sin()

    report = mg.check(fn, X, only="conduct")
    assert {f.case for f in report.findings} == {"inputs of every layout"}
    assert "a stride that is not 1 (test_check_conduct.py:" in report.findings[0].message


# what is taken and what is not


def test_a_lazy_module_is_initialised_as_a_copy():
    net = nn.Sequential(nn.LazyLinear(2), nn.LazyBatchNorm1d())
    assert mg.check(net, X.float(), reference=net, only="adjoint")
    assert all(isinstance(p, nn.UninitializedParameter) for p in net.parameters())
    with pytest.raises(
        TypeError, match=r"lazy LazyLinear.* raised IndexError: .*call it once first"
    ):
        mg.check(nn.LazyLinear(2), torch.tensor(1.0))
    with pytest.raises(TypeError, match=r"fn calls a lazy Sequential.*call it once first"):
        mg.check(lambda x: net(x), X.float())


def test_a_module_of_jit_is_refused_clearly():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.script(nn.Linear(3, 2))
    with pytest.raises(TypeError, match=r"fn is a module of torch.jit.*that it was made from"):
        mg.check(module, X.float())


def test_every_name_of_a_tied_parameter_is_taken():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    assert mg.check(net, X.float(), params=["1.weight", "0.weight", net[1].weight], only="adjoint")


@pytest.mark.parametrize("kind", [dict, OrderedDict, lambda d: defaultdict(list, d)])
def test_dictionaries_of_every_kind_are_taken_and_compile(kind):
    report = mg.check(lambda d: d["x"].sin(), kind({"x": X}), only="conduct")
    assert report
    assert "torch.compile" not in {o.case for o in report.not_run}


def test_a_partial_is_called_by_its_functions_name():
    fn = functools.partial(torch.nn.functional.gelu, approximate="tanh")
    assert mg.check(fn, X, only="adjoint").verdict.startswith("gelu: no finding")


def test_a_result_with_no_tensor_says_which_are_looked_into():
    report = mg.check(lambda x: {x.sin()}, X)
    assert "results are looked for in tensors, and in lists, tuples and dicts" in report.notes[0]


# the report


def test_a_report_shows_what_was_found_and_what_was_not_asked():
    fault = FAULTS["dropped_bias_gradient"]()
    report = mg.check(fault.fn, *fault.inputs)
    text = str(report)
    assert "Copy.apply: 2 findings in" in report.verdict
    assert report.verdict in text
    assert "1. finite differences, gradcheck: the derivative of the output by bias" in text
    assert "measured 1.63e+00, allowed" in text
    assert "Not run:\n- oracle, values beside the reference; oracle, values far out" in text
    assert not report
    assert mg.check(torch.sin, X)


def test_a_report_as_a_dataframe_and_as_json():
    report = mg.check(torch.sin, X)
    frame = report.to_dataframe()
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == ["judge", "case", "status", "message", "measured", "allowed"]
    assert len(frame) == len(report.outcomes)
    assert set(frame.status) == {"passed", "not run"}
    read = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert read["passed"] is True
    assert len(read["outcomes"]) == len(report.outcomes)


def test_infinities_and_nan_survive_json():
    report = CheckReport("f", [Outcome("native", "c", "finding", "m", float("inf"), float("nan"))])
    read = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert (read["outcomes"][0]["measured"], read["outcomes"][0]["allowed"]) == ("inf", "nan")
    assert not report.passed


def test_nothing_asked_is_not_passed():
    report = mg.check(torch.sin, X, only="symbolic")
    assert not report.passed
    assert not report.findings
    assert report.verdict == "sin: nothing could be checked; 1 not run"
    assert not CheckReport("nothing", []).passed
    assert str(CheckReport("nothing", [])) == "nothing: nothing could be checked"


def test_many_findings_are_cut_but_counted():
    outcomes = [Outcome("adjoint", f"case {i}", "finding", f"wrong {i}") for i in range(30)]
    text = str(CheckReport("f", outcomes))
    assert "wrong 19" in text
    assert "wrong 20" not in text
    assert "... and 10 more findings" in text
    assert "f: 30 findings in 30 checks, by adjoint" in text


def test_a_table_without_tabulate(monkeypatch):
    monkeypatch.setitem(sys.modules, "tabulate", None)
    assert "judge | checks | passed" in str(mg.check(torch.sin, X, only="adjoint"))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install manualgrad\[check\]"):
        mg.check(torch.sin, X, only="adjoint").to_dataframe()


def test_a_finding_names_the_entry_both_values_and_what_it_looks_like():
    def fn(x, w):
        return x @ w.T + 0.5 * (x @ w.T - (x @ w.T).detach())

    report = mg.check(fn, X, W, only="adjoint")
    (of_x, of_w) = (f.message for f in report.findings[:2])
    assert of_x.startswith("gradient of x (5, 3): [")
    assert "is" in of_x
    assert "should be" in of_x
    assert of_w.endswith("every entry is 1.5 times what it should be")
