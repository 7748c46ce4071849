"""mg.check finds every planted fault, names it by the right judge, and raises no false alarm."""

import re

import pytest
import torch
import torch.nn.functional as F
from correct import CORRECT
from faults import FAULTS
from faults.planted import B, Layer, W, X, normal
from torch import nn
from torch.autograd import gradgradcheck
from torch.autograd.function import once_differentiable

import manualgrad as mg


def test_there_are_as_many_faults_as_promised():
    assert len(FAULTS) >= 60


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_named(name):
    fault = FAULTS[name]()
    report = mg.check(fault.fn, *fault.inputs, **fault.options)
    judges = {f.judge for f in report.findings}
    assert judges >= fault.judges, report
    if fault.judges == {"conduct"}:  # what no other judge can see
        assert judges == {"conduct"}, report
    assert any(re.search(fault.says, f.message) for f in report.findings), report


@pytest.mark.parametrize("name", CORRECT)
def test_what_is_right_raises_no_alarm(name):
    fn, inputs, reference = CORRECT[name]
    report = mg.check(fn, *inputs, reference=reference)
    assert report.passed, report


class SaysThatItHasNone(Layer):
    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return Layer.backward(ctx, grad)


def breaks_the_graph(x):
    return x * x if x.sum() > 0 else -x * x


REFUSALS = [
    (SaysThatItHasNone, (X, W, B), "gradgradcheck", "once_differentiable"),
    (Layer, (X, W, B), "forward mode", "must implement the jvp function"),
    (Layer, (X, W, B), "vmap and torch.func", "must override the setup_context"),  # (5)
    (breaks_the_graph, (X,), "torch.compile", "does not compile in one graph"),  # (8)
    (torch.sin, (X,), "values beside the reference", "pass reference="),
    (torch.sin, (X,), "every subset of frozen tensors", "only one tensor"),
    (torch.cos, (X,), "the explicit engine", "torch.cos has no hand-derived rule"),
]


@pytest.mark.parametrize(("fn", "inputs", "question", "reason"), REFUSALS)
def test_what_is_refused_clearly_is_reported_as_not_run(fn, inputs, question, reason):
    report = mg.check(fn, *inputs)
    (outcome,) = [o for o in report.not_run if o.case == question]
    assert reason in outcome.message
    assert question in " ".join(str(report).split())
    assert not [o for o in report.outcomes if o.case == question and o.status == "passed"]


# torch's own kernels, where they are wrong: the checker may know no better than torch, nor worse


def test_weight_norms_second_derivative():
    """Wrong on the CPU in torch 2.13, as torch's own gradgradcheck says."""
    v, g = normal(4, 3), normal(4, 1).exp()
    rule = lambda v, g: torch._weight_norm(v, g, 0)  # noqa: E731
    right = gradgradcheck(rule, (v.requires_grad_(), g.requires_grad_()), raise_exception=False)
    report = mg.check(rule, v.detach(), g.detach(), only=["finite differences", "adjoint"])
    assert report.passed == right


def test_batch_norms_strided_weight():
    """Read as contiguous by the CPU's backward in torch 2.13: a fault of kind (1)."""
    x, weight = normal(6, 3), normal(3, seed=1).exp()
    wide = torch.full((6,), 7.0, dtype=torch.float64)
    wide[::2] = weight

    def rule(x, weight):
        return F.batch_norm(x, None, None, weight, None, True)

    leaf = x.clone().requires_grad_()
    solid, strided = (
        torch.autograd.grad(rule(leaf, w).square().sum(), leaf)[0] for w in (weight, wide[::2])
    )
    report = mg.check(rule, x, weight)
    layouts = [f for f in report.findings if f.case == "inputs of every layout"]
    assert bool(layouts) != torch.allclose(solid, strided)


# what is asked of a check


def test_a_module_is_checked_by_its_parameters_or_by_some():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    report = mg.check(net, X.float(), only="adjoint")
    assert report.passed
    some = mg.check(net, X.float(), params=["0.weight", net[2].bias], only="conduct")
    assert some.passed
    assert not any("2.weight" in o.message for o in some.outcomes)


def test_tensors_that_fn_reads_besides_its_arguments():
    weight = normal(4, 3).float().requires_grad_()
    weight.grad = torch.ones_like(weight)
    before, pointer, grad = weight.detach().clone(), weight.data_ptr(), weight.grad
    wrong = type(
        "Wrong",
        (Layer,),
        {"backward": staticmethod(lambda c, g: (*Layer.backward(c, g)[:1], None, None))},
    )

    def fn(x):
        return wrong.apply(x, weight, torch.zeros(4, dtype=x.dtype))

    alone = mg.check(fn, X.float(), only="adjoint")
    assert alone.passed
    assert any("pass them in params" in note for note in alone.notes)
    report = mg.check(fn, X.float(), params=[weight], only="adjoint")
    assert any("gradient of params[0] (4, 3) is None" in f.message for f in report.findings)
    assert torch.equal(weight, before)
    assert weight.data_ptr() == pointer
    assert weight.grad is grad
    assert weight.dtype == torch.float32
    assert weight.requires_grad


def test_only_flagged_inputs_are_differentiated_by():
    x, y = X.clone().requires_grad_(), X + 1
    report = mg.check(lambda x, y: x * y.detach(), x, y, only=["adjoint", "finite differences"])
    assert report.passed
    assert not mg.check(lambda x, y: x * y.detach(), X, X + 1, only="adjoint").passed


def test_random_functions_are_seeded_and_said_to_be():
    report = mg.check(nn.Dropout(0.5), X)
    assert report.passed
    assert "fn is random; every call of it starts from seed 0" in report.notes


def test_a_function_that_takes_no_float64():
    def narrow(x):
        if x.dtype != torch.float32:
            raise TypeError("float32 only")
        return torch.tanh(x)

    report = mg.check(narrow, X.float())
    assert report.passed
    assert any("does not run in float64 (TypeError: float32 only)" in n for n in report.notes)
    (right,) = [o for o in report.outcomes if o.case == "backward against differences"]
    assert right.status == "passed"
    half_wrong = mg.check(lambda x: narrow(x) + 0.1 * (x - x.detach()), X.float(), only="adjoint")
    assert half_wrong.findings


def test_what_the_caller_tolerates_is_tolerated_but_not_what_must_be_exact():
    fault = FAULTS["one_part_in_a_million"]()
    for tolerated in ({"rtol": 1e-5}, {"atol": 1e-3}):
        assert mg.check(fault.fn, *fault.inputs, only="adjoint", **tolerated).passed
    fault = FAULTS["saved_tensor_overwritten"]()
    assert not mg.check(fault.fn, *fault.inputs, only="conduct", atol=1e9, rtol=1e9).passed


def test_an_activation_by_name(registry):
    assert mg.check("relu", only=["oracle", "symbolic", "kernel"]).passed

    def square(z):
        return z * z

    def square_prime(z):
        return 3.0 * z

    def square_second(z):
        return 0.0 * z + 2.0

    mg.register_activation(square, square_prime, square_second, oracle=torch.square)
    report = mg.check("square", only=["symbolic", "adjoint"])
    assert {f.judge for f in report.findings} == {"symbolic", "adjoint"}
    assert any(
        "sigma'(-7.3) is -21.9, the derivative of sigma there is -14.6" in f.message
        for f in report.findings
    )


BAD = {
    "no callable": ((3, X), {}, TypeError, "fn must be a callable, a module or an autograd Function, got 3"),
    "a class": ((nn.Linear, X), {}, TypeError, "got <class"),
    "no tensor": ((torch.sin,), {}, ValueError, "sin has no floating tensor to differentiate by"),
    "integers": ((torch.sin, torch.arange(3)), {}, ValueError, "no floating tensor"),
    "sparse": ((torch.sin, X.to_sparse()), {}, TypeError, "is torch.sparse_coo; give a dense|only dense"),
    "unknown judge": ((torch.sin, X), {"only": "jury"}, ValueError, "no judge 'jury'; there are oracle,"),
    "no judge": ((torch.sin, X), {"only": []}, ValueError, "only is empty"),
    "only": ((torch.sin, X), {"only": 3}, TypeError, "only must name judges"),
    "reference": ((torch.sin, X), {"reference": 3}, TypeError, "reference must be a callable"),
    "params": ((torch.sin, X), {"params": X}, TypeError, "params must be a list"),
    "integer params": ((torch.sin, X), {"params": [torch.arange(3)]}, TypeError, r"params\[0\] must be a floating"),
    "computed params": ((torch.sin, X), {"params": [X.clone().requires_grad_() * 2]}, ValueError, "computed from"),
    "unknown parameter": ((nn.Linear(3, 2), X), {"params": ["w"]}, ValueError, "names 'w', but Linear has weight, bias"),
    "foreign parameter": ((nn.Linear(3, 2), X), {"params": [X]}, ValueError, "not its own"),
    "parameters": ((nn.Linear(3, 2), X), {"reference": nn.Linear(3, 4)}, ValueError, "neither by name nor in order"),
    "atol": ((torch.sin, X), {"atol": -1.0}, ValueError, "atol must be finite and >= 0, got -1.0"),
    "number of params": ((nn.Linear(3, 2), X), {"params": [3]}, ValueError, "params names 3, no name and no tensor, but"),
    "text": ((torch.sin, X), {"atol": "1"}, TypeError, "atol must be a number, got '1'"),
    "nothing": ((torch.sin, X), {"rtol": None}, TypeError, "rtol must be a number, got None"),
    "misspelt": ((torch.sin, X), {"refrence": torch.sin}, TypeError, "no keyword 'refrence'; did you mean 'reference'"),
    "keyword of fn": ((torch.sin, X), {"out": X}, TypeError, r"no keyword 'out'; .*functools.partial\(fn, out="),
    "seed": ((torch.sin, X), {"seed": -1}, ValueError, "seed must be an int"),
    "activation": (("gleu",), {}, ValueError, "unknown activation 'gleu'; did you mean 'gelu'"),
    "activation with inputs": (("gelu", X), {}, TypeError, "pass none"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_calls_are_refused(case):
    arguments, options, error, message = BAD[case]
    with pytest.raises(error, match=message) as caught:
        mg.check(*arguments, **options)
    assert str(caught.value).startswith("manualgrad.check: ")
