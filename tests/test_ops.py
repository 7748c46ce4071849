"""The operators: PyTorch's own check of each, and what a graph that holds them needs."""

import subprocess
import sys

import pytest
import torch
from selection import pairwise
from torch.library import opcheck

import manualgrad as mg
from manualgrad import backends, ops
from manualgrad.activations import activation_of

OPERATORS = torch.ops.manualgrad


def contiguous(*shape, grad=False):
    return torch.randn(*shape, dtype=torch.float64).requires_grad_(grad)


def transposed(*shape, grad=False):
    return torch.randn(*shape[::-1], dtype=torch.float64).mT.requires_grad_(grad)


LAYOUTS, BATCHES = (contiguous, transposed), (5, 1, 0)
ACTS = ("relu", "leaky_relu(negative_slope=0.2)", "gelu")


@pairwise("made, M, act, biased", LAYOUTS, BATCHES, ACTS, (True, False))
def test_opcheck_of_the_forward_pass(made, M, act, biased):
    name = "linear_act_forward_z" if activation_of(act, "test").hides_z else "linear_act_forward"
    bias = contiguous(3, grad=True) if biased else None
    opcheck(
        getattr(OPERATORS, name).default, (made(M, 4, grad=True), act, made(3, 4, grad=True), bias)
    )


@pairwise("made, M, act", LAYOUTS, BATCHES, ("relu", "gelu"))
def test_opcheck_of_the_backward_pass(made, M, act):
    opcheck(OPERATORS.bp1_output_error.default, (made(M, 4), made(M, 4), act))
    for skip in (None, made(M, 2)):
        opcheck(
            OPERATORS.bp2_propagate_error.default, (made(M, 4), made(4, 2), made(M, 2), skip, act)
        )
    if act == "gelu":
        opcheck(OPERATORS.output.default, (made(M, 4), act))


@pytest.mark.parametrize("name", ["bp1_output_error", "output"])
def test_a_derivative_that_is_not_there_says_so(name):
    s = contiguous(5, 4, grad=True)
    inputs = (contiguous(5, 4), s, "gelu") if name.startswith("bp1") else (s, "gelu")
    y = getattr(OPERATORS, name)(*inputs)
    with pytest.raises(NotImplementedError, match=f"manualgrad::{name} is part of a backward pass"):
        y.sum().backward()


SAVED = """
import sys, torch, manualgrad
program = torch.export.load(sys.argv[1])
module, x = program.module(), torch.ones(3, 4)
module(x).sum().backward()
print(sum(p.grad.abs().sum().item() for p in module.parameters()) > 0)
"""
WITHOUT_US = """
import sys, torch
sys.modules["manualgrad"] = None
print(torch.export.load(sys.argv[1]).module()(torch.ones(3, 4)).shape[0] == 3)
"""


@pytest.mark.parametrize(("mode", "code"), [("auto", SAVED), ("torch", WITHOUT_US)])
def test_an_exported_program_in_another_process(mode, code, tmp_path):
    net = mg.nn.MLP([4, 6, 2], "gelu")
    with mg.backend(mode):
        program = torch.export.export(net, (torch.ones(3, 4),))
    torch.export.save(program, tmp_path / "net.pt2")
    run = [sys.executable, "-c", code, str(tmp_path / "net.pt2")]
    out = subprocess.run(run, capture_output=True, text=True)
    assert out.stdout.strip() == "True", out.stderr[-2000:]


def test_what_caches_of_compiled_graphs_must_tell_apart():
    """They see an operator's name and arguments, and live longer than its code."""
    act = activation_of("leaky_relu(negative_slope=0.1)", "test")
    text = ops.argument(act)
    assert ops.act_of(text) is act
    assert mg.__version__ in text
    assert act.digest in text
    with mg.backend("torch"):
        assert ops.argument(act) != text


def formula(constant):
    scope = {}
    exec(f"def sigma(z):\n    return {constant} * z\n", scope)
    return scope["sigma"]


def test_the_digest_follows_the_formulas():
    first, second = (
        activation_of("relu", "test").__class__("sigma", formula(c), formula(c), formula(c), abs)
        for c in (2.0, 3.0)
    )
    assert first.digest != second.digest


def test_frames_and_graphs_of_a_compiled_model():
    """One graph, and no new one for every batch size."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    net = torch.nn.Sequential(mg.nn.MLP([4, 8, 3], "gelu"), mg.nn.Linear(3, 2, activation="silu"))
    program = torch.compile(net, backend=counter, fullgraph=True)
    for M in (4, 5, 6, 7, 9):
        program(torch.randn(M, 4)).sum().backward()
    assert counter.frame_count <= 2


@pytest.mark.parametrize("mode", ["auto", "torch"])
def test_derivatives_of_derivatives_inside_a_compiled_function(mode):
    layer = mg.nn.MLP([4, 6, 1], "tanh").double()
    twin = torch.nn.Sequential(
        *[
            m
            for l in layer.layers
            for m in (torch.nn.Linear(*l.weight.shape[::-1]), torch.nn.Tanh())
        ][:-1]
    ).double()
    for mine, theirs in zip(layer.parameters(), twin.parameters(), strict=True):
        theirs.data = mine.data
    x = torch.randn(4, dtype=torch.float64)

    def second(f):
        return lambda x: torch.func.grad(
            lambda x: torch.func.grad(lambda x: f(x).sum())(x).square().sum()
        )(x)

    torch._dynamo.reset()
    with mg.backend(mode):
        got = torch.compile(second(layer), backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(got, second(twin)(x))


def test_the_backend_of_a_graph_is_named():
    assert backends.mode() == "auto"
    with mg.backend("torch"):
        program = torch.export.export(mg.nn.Linear(4, 3, activation="gelu"), (torch.ones(2, 4),))
    targets = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert targets == ["aten.linear.default", "aten.gelu.default"]
