"""The modules that a checked function calls, wherever it has them from, are left as they were."""

import functools

import pytest
import torch
from torch import nn

import manualgrad as mg

X = torch.linspace(-1.0, 1.0, 12).reshape(4, 3)
NORM = nn.BatchNorm1d(3)


class Holds:
    """An object that is called, with a module in a list of its own, or in a slot, or global."""

    __slots__ = ("__dict__", "slot")

    def __init__(self, norm):
        self.slot, self.norms = norm, [norm]

    def __call__(self, x):
        return self.norms[0](x)

    def by_slot(self, x):
        return self.slot(x)


class Names(nn.Module):
    def forward(self, x):
        return through_a_helper(x)


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return NORM(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


class Replaces(nn.BatchNorm1d):
    """Its buffer is another tensor after each call."""

    def forward(self, x):
        self.running_mean = self.running_mean + x.detach().mean(0)
        return x * 2


def through_a_helper(x):
    return NORM(x)


def reaching(norm):
    """Functions that call norm (or NORM), and where they have it from."""
    nets = {"a": (norm,)}
    return {
        "a dict of tuples": lambda x: nets["a"][0](x),
        "a helper": lambda x: sum(through_a_helper(x) for _ in range(2)),
        "a partial": functools.partial(lambda x, net: net(x), net=norm),
        "an object": Holds(norm),
        "a slot": Holds(norm).by_slot,
        "a Function's forward": Straight,
        "a module's global": Names(),
        "a decorated function": torch.no_grad()(torch.enable_grad()(lambda x: norm(x))),
    }


@pytest.mark.parametrize("way", reaching(None))
def test_modules_behind_a_function_are_as_before_wherever_it_has_them_from(way):
    norm = nn.BatchNorm1d(3)
    mg.check(reaching(norm)[way], X, only="adjoint")
    assert norm.num_batches_tracked == NORM.num_batches_tracked == 0
    assert not norm.running_mean.any()
    assert not NORM.running_mean.any()


def test_modules_behind_a_reference_and_among_the_inputs_are_as_before():
    norm, replaces = nn.BatchNorm1d(3), Replaces(3)
    mean = replaces.running_mean
    mg.check(lambda net, x: net(x), norm, X, reference=lambda _, x: norm(x), only="native")
    mg.check(lambda x: replaces(x), X, only="adjoint")
    assert norm.num_batches_tracked == 0
    assert replaces.running_mean is mean
    assert not mean.any()


def test_a_pending_backward_through_a_module_behind_a_function_still_runs():
    norm = nn.BatchNorm1d(3).eval()
    norm.running_mean[0] = float("nan")
    y = norm(X.requires_grad_())
    mg.check(lambda x: norm(x), X, only="adjoint")
    y.sum().backward()
