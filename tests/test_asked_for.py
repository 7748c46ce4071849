"""What a backward pass was not asked for is not computed: as much as autograd's own nodes compute."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import manualgrad as mg
from manualgrad import compat, small

M, FEW = 512, 4  # examples; of few autograd is asked if x wants a gradient


def pair(kind):
    """(ours, PyTorch's) on the same Parameters."""
    first = nn.Linear(8, 16)
    if kind == "layer":
        ours = mg.nn.Linear(8, 16, activation="tanh")
        ours.weight, ours.bias = first.weight, first.bias
        return ours, nn.Sequential(first, nn.Tanh())
    act = nn.Tanh() if kind == "tanh" else nn.GELU()
    eager = nn.Sequential(first, act, nn.Linear(16, 16, bias=False), act, nn.Linear(16, 4))
    return mg.nn.MLP.from_sequential(eager), eager


def asked(what, net, x):
    params = list(net.parameters())
    return {"x": [x], "first": params[:1], "last": params[-2:], "all": [x, *params]}[what]


KINDS = ("layer", "tanh", "gelu")
WHAT = ("x", "first", "last", "all")


def flops(net, x, wanted, create_graph):
    a = net(x).sum()
    with FlopCounterMode(display=False) as counter:
        grads = torch.autograd.grad(a, wanted, create_graph=create_graph)
    return counter.get_total_flops(), grads


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("leaf", [True, False], ids=["leaf", "inner"])
@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("not_small")
def test_as_many_products_as_autograd_makes(kind, what, leaf, create_graph):
    ours, eager = pair(kind)
    x = torch.randn(M, 8, requires_grad=True)
    x = x if leaf else x * 1.0
    (mine, found), (theirs, expected) = (
        flops(net, x, asked(what, net, x), create_graph) for net in (ours, eager)
    )
    torch.testing.assert_close(found, expected)
    # of a leaf that it was given torch.autograd.grad does not tell: then what is below it is made
    assert mine == theirs if what in ("x", "all") else theirs <= mine <= everything(ours)


def everything(net):
    x = torch.randn(M, 8, requires_grad=True)
    return flops(net, x, [x, *net.parameters()], False)[0]


@pytest.mark.parametrize("rows", [FEW, M])
@pytest.mark.parametrize("what", WHAT)
def test_small_chains_are_told_too(what, rows, monkeypatch):
    told, backward = [], small.backward
    monkeypatch.setattr(small, "backward", lambda *a: told.append(a[4]) or backward(*a))
    ours, eager = pair("gelu")
    x = torch.randn(rows, 8, requires_grad=True)
    results = [torch.autograd.grad(net(x).sum(), asked(what, net, x)) for net in (ours, eager)]
    torch.testing.assert_close(*results)
    x_alone, W1 = (True, *[False] * 7), (True, False, True, *[False] * 5)  # x, the chain, W1, b1
    every = (True, False, True, True, True, False, True, True)
    assert told == [{"x": x_alone, "first": W1}.get(what, every)]


@pytest.mark.parametrize("rows", [FEW, M])
def test_a_whole_backward_pass_computes_all(rows):
    ours, eager = pair("gelu")
    x = torch.randn(rows, 8, requires_grad=True)
    for net in (ours, eager):
        net(x).sum().backward()
    leaves = [x, *eager.parameters()]
    found = [leaf.grad / 2 for leaf in leaves]
    torch.testing.assert_close(found, list(torch.autograd.grad(eager(x).sum(), leaves)))


@pytest.mark.parametrize("kind", KINDS)
def test_backward_into_some_inputs(kind):
    ours, eager = pair(kind)
    x = torch.randn(M, 8, requires_grad=True)
    ours(x).sum().backward(inputs=[x])
    assert all(p.grad is None for p in ours.parameters())
    torch.testing.assert_close(x.grad, torch.autograd.grad(eager(x).sum(), x)[0])


def test_a_capture_hears_of_what_was_not_asked_for():
    ours, _ = pair("gelu")
    x = torch.randn(M, 8, requires_grad=True)
    with mg.capture(ours) as heard:
        torch.autograd.grad(ours(x).sum(), x)
    grads = torch.autograd.grad(ours(x).sum(), list(ours.parameters()))
    assert len(heard.layers) == 3
    for layer, grad in zip(heard.layers, [g for g in grads if g.dim() == 2], strict=True):
        torch.testing.assert_close(layer.delta.T @ layer.a, grad)


@pytest.mark.parametrize("missing", ["_executes", "_pass_number"])
def test_where_torch_does_not_tell_all_is_computed(missing, monkeypatch):
    monkeypatch.setattr(compat, missing, None if missing == "_executes" else lambda: -1)
    ours, eager = pair("gelu")
    x = torch.randn(M, 8, requires_grad=True)
    for what in WHAT:
        results = [torch.autograd.grad(net(x).sum(), asked(what, net, x)) for net in (ours, eager)]
        torch.testing.assert_close(*results)


def test_a_pass_that_would_not_tell_is_not_asked_again(monkeypatch):
    """To refuse takes longer than to answer; the next pass is asked anew."""
    questions, executes = [], compat._executes
    monkeypatch.setattr(compat, "_executes", lambda node: questions.append(node) or executes(node))
    layers = [mg.nn.Linear(8, 8, activation="tanh") for _ in range(3)]
    x = torch.randn(M, 8)
    for _ in range(2):
        questions.clear()
        a = layers[2](layers[1](layers[0](x)))
        torch.autograd.grad(a.sum(), [p for layer in layers for p in layer.parameters()])
        assert len(questions) == 1
    questions.clear()
    layers[0](x).sum().backward()
    assert len(questions) == 1  # the last tensor is wanted: then all are


def test_who_is_asked_about_few_examples(monkeypatch):
    """A leaf x that alone is wanted costs no refusal; where x wants nothing, nobody is asked."""
    refused, executes = [], compat._executes

    def answer(node):
        refused.append(node)
        found = executes(node)
        refused.pop()
        return found

    monkeypatch.setattr(compat, "_executes", answer)
    ours, _ = pair("gelu")
    x = torch.randn(FEW, 8, requires_grad=True)
    torch.autograd.grad(ours(x).sum(), x)
    assert refused == []
    params = list(ours.parameters())
    torch.autograd.grad(ours(x.detach()).sum(), params)
    assert refused == []
    torch.autograd.grad(ours(x).sum(), params)
    assert len(refused) == 1
