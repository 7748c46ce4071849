"""What is done to a patched model, and with its parts, later: the numbers are the plain model's."""

import copy
import inspect

import pytest
import torch
from patchable import Mlp, assert_same, chain, inputs
from torch import nn

import manualgrad as mg


@pytest.mark.parametrize("part", [slice(0, 1), slice(0, 2), slice(1, None), slice(2, 5)])
def test_a_slice_of_a_chain_is_a_plain_sequential(part):
    net = chain().eval()
    twin, x = copy.deepcopy(net), inputs()
    mg.patch(net)
    x = twin[: part.start](x).detach()
    assert type(net[part]) is nn.Sequential
    assert repr(net[part]) == repr(twin[part])
    assert_same(net[part], twin[part], x)


def test_a_class_of_a_patched_module_makes_modules_of_the_original_class():
    net, x = nn.Sequential(chain(), Mlp()).eval(), inputs()
    twin = copy.deepcopy(net)
    assert len(mg.patch(net, x)) == 3
    assert_same(type(net[0])(*net[0]), twin[0], x)
    assert_same(net[0] + nn.Sequential(nn.Tanh()), twin[0] + nn.Sequential(nn.Tanh()), x)
    assert type(type(net[1].fc1)(4, 3, bias=False)) is nn.Linear
    assert type(type(net[1].act)(approximate="tanh")) is nn.GELU
    assert inspect.signature(type(net[1].fc1)) == inspect.signature(nn.Linear)
    assert type(nn.utils.skip_init(type(net[1].fc1), 4, 3)) is nn.Linear


class Walks(nn.Module):
    """Calls the children of a Sequential one by one."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))

    def forward(self, x):
        for layer in self.net:
            x = layer(x)
        return x


def test_what_is_walked_through_by_hand_can_be_sliced():
    model, x = Walks(), inputs()
    twin = copy.deepcopy(model)
    (refused,) = mg.patch(model, x).refused
    assert "a slice of a Sequential may take one without the other" in refused.reason
    assert torch.equal(model.net[:1](x), twin.net[:1](x))
