"""Weights, layers, blocks and activations that stand in several places."""

import copy

import pytest
import torch
from patchable import Mlp, assert_same, classes, inputs
from torch import nn

import manualgrad as mg


def test_tied_weights_stay_tied():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    net[2].weight = net[0].weight
    twin = copy.deepcopy(net)
    assert len(mg.patch(net, inputs())) == 2
    assert net[2].weight is net[0].weight
    assert_same(net, twin, inputs())


def test_a_module_in_several_places():
    block = Mlp()
    net = nn.Sequential(block, nn.LayerNorm(4), block)
    twin, x = copy.deepcopy(net), inputs()
    assert [e.path for e in mg.patch(net, x).replaced] == ["0.fc1"]
    assert net[0] is net[2]
    assert_same(net, twin, x)


def test_one_activation_module_after_several_layers():
    act = nn.SiLU()
    net = nn.Sequential(Mlp(act), Mlp(act))
    twin, x = copy.deepcopy(net), inputs()
    assert len(mg.patch(net, x)) == 2
    assert_same(net, twin, x)
    mg.unpatch(net)
    assert classes(net) == classes(twin)


def test_an_activation_module_that_stands_in_a_sequential_too_is_not_passed_over():
    act = nn.SiLU()
    net = nn.Sequential(Mlp(act), Mlp(act), nn.Linear(4, 4), act)
    twin, x = copy.deepcopy(net), inputs()
    report = mg.patch(net, x)
    assert [e.path for e in report.replaced] == ["2"]  # a chain, which leaves the module as it is
    assert all("its activation is shared" in e.reason for e in report.refused)
    assert_same(net, twin, x)
    assert torch.equal(net[3:](x), twin[3:](x))


def test_layers_that_share_an_activation_stand_or_fall_together():
    act = nn.GELU()
    for example in ([], [inputs()]):
        net = nn.Sequential(Mlp(act), Mlp(act))
        net[1].fc1.register_forward_hook(lambda *_: None)
        want = net(inputs() * 0)
        report = mg.patch(net, *example)
        assert not len(report)
        assert any(
            "its activation is shared with 1.fc1" in e.reason for e in report.refused
        ) or any("its activation is shared: " in e.reason for e in report.refused)
        assert torch.equal(net(inputs() * 0), want)


class TwoLayers(nn.Module):
    """Two layers before one activation, which is a module or a function."""

    def __init__(self, act):
        super().__init__()
        self.a, self.b, self.act = nn.Linear(4, 4), nn.Linear(4, 4), act

    def forward(self, x):
        return self.act(self.a(x)) + self.act(self.b(x))


@pytest.mark.parametrize("act", [nn.Tanh(), torch.tanh])
@pytest.mark.parametrize("example", [True, False])
def test_two_layers_before_one_activation(act, example):
    x = inputs()
    example = [x] if example else []
    net = TwoLayers(act)
    twin = copy.deepcopy(net)
    assert len(mg.patch(net, *example)) == 2
    assert_same(net, twin, x)
    mg.unpatch(net)
    assert classes(net) == classes(twin)
    report = mg.patch(net, *example, exclude=["b"])
    assert not len(report)
    assert "its activation is shared" in report.refused[0].reason
    assert_same(net, twin, x)


def test_an_activation_that_follows_a_convolution_too():
    relu = nn.ReLU()
    net = nn.Sequential(nn.Conv1d(5, 5, 1), relu, nn.Linear(4, 4), relu)
    twin, x = copy.deepcopy(net), inputs()
    assert len(mg.patch(net, x)) == 1  # in a chain; the module itself does not change
    assert_same(net, twin, x)
