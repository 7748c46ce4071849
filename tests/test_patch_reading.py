"""What the source of the model's classes says of layers and activations, on paths not taken too."""

import copy

import pytest
import torch
from patchable import Mlp, assert_same, inputs
from torch import nn

import manualgrad as mg


class Around(nn.Module):
    """Holds an Mlp, and uses it in another way too."""

    def __init__(self):
        super().__init__()
        self.mlp = Mlp()


class CallsTheLayer(Around):
    def forward(self, x):
        return self.mlp(x), self.mlp.fc1(x)


class CallsTheActivation(Around):
    def forward(self, x):
        return self.mlp(x), self.mlp.act(x)


class GoesPastTheActivation(Around):
    def forward(self, x):
        mlp = self.mlp
        return mlp(x), mlp.fc2(mlp.fc1(x))


class CallsByName(Around):
    def forward(self, x):
        return self.mlp(x), getattr(self.mlp, "fc1")(x)  # noqa: B009


class CallsForward(Around):
    def forward(self, x):
        return self.mlp(x), self.mlp.fc1.forward(x)


class HasAHelper(Mlp):
    helper = lambda s, x: s.fc1(x)  # noqa: E731

    def forward(self, x):
        return super().forward(x), self.helper(x)


class HasAnotherName(Mlp):
    def forward(self, x):
        me = self
        return super().forward(x), me.fc1(x)


class ComputesAName(Mlp):
    def first(self, x):
        return getattr(self, "fc" + str(1))(x)

    def forward(self, x):
        return super().forward(x), self.first(x)


ELSEWHERE = [CallsTheLayer, CallsTheActivation, GoesPastTheActivation, CallsByName]
ELSEWHERE += [CallsForward, HasAHelper, HasAnotherName, ComputesAName]


@pytest.mark.parametrize("build", ELSEWHERE)
def test_a_layer_that_another_source_calls_is_left_alone(build):
    for example in ([], [inputs()]):
        net, x = build(), inputs()
        want = net(x)
        report = mg.patch(net, *example)
        assert not len(report)
        assert report.refused or build is CallsForward or example
        assert all(torch.equal(a, b) for a, b in zip(net(x), want, strict=True))


def test_the_report_says_whose_source():
    (refused,) = mg.patch(CallsTheLayer()).refused
    assert refused.reason == "CallsTheLayer reads fc1 of another object, perhaps this one's"
    (refused,) = mg.patch(ComputesAName()).refused
    assert refused.reason == "ComputesAName asks for attributes by names that it computes"


class LooksAtIt(Around):
    def forward(self, x):
        fits = hasattr(self.mlp.act, "approximate") and isinstance(self.mlp.fc1, nn.Linear)
        return self.mlp(x.to(self.mlp.fc1.weight.dtype)) if fits else x


def test_a_layer_that_another_source_only_looks_at_is_fused():
    assert len(mg.patch(LooksAtIt())) == 1


class OnlyInTraining(Mlp):
    def forward(self, x):
        h = self.fc1(x)
        if self.training:
            h = self.act(h)
        return self.fc2(h)


class InAnExpression(Mlp):
    def forward(self, x):
        h = self.fc1(x)
        return self.fc2(self.act(h) if self.training else h)


class OnTheWay(Mlp):
    def forward(self, x):
        h = self.fc1(x)
        if not self.training:
            h = 2 * h
        return self.fc2(self.act(h))


class BesideIt(Mlp):
    def forward(self, x):
        h = self.fc1(x)
        a = self.act(h)
        return self.fc2(a if self.training else a + h)


class OnSomethingElse(Mlp):
    def forward(self, x):
        h = self.fc2(self.act(self.fc1(x)))
        return h if self.training else self.act(h)


class LeavesALoop(Mlp):
    def forward(self, x):
        for _ in range(2):
            h = self.fc1(x)
            if not self.training:
                break
            h = self.act(h)
        return self.fc2(h)


PATHS = [OnlyInTraining, InAnExpression, OnTheWay, BesideIt, OnSomethingElse, LeavesALoop]


@pytest.mark.parametrize("build", PATHS)
def test_a_path_that_the_example_does_not_take(build):
    net, x = build(), inputs()
    twin = copy.deepcopy(net)
    (refused,) = mg.patch(net, x).refused
    assert "may go elsewhere, on another path" in refused.reason or "shared" in refused.reason
    assert_same(net.eval(), twin.eval(), x)
    assert not len(mg.patch(build()))


class WithWordsBetween(Mlp):
    def forward(self, x):
        h: torch.Tensor = self.fc1(x)
        if h.shape[-1] != 8:
            raise ValueError
        twice = 2 * x
        return self.fc2(self.act(h)) + twice


class KeepsTheName(Mlp):
    def forward(self, x):
        x = self.fc1(x)
        y = self.act(x)
        return self.fc2(y)


class Gated(Mlp):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(4, 8)

    def forward(self, x):
        gate = self.fc1(x)
        up = self.up(x)
        return self.fc2(self.act(gate) * up)


class InAList(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)

    def forward(self, x):
        for layer in [self.fc1]:
            x = self.act(layer(x))
        return self.fc2(x)


@pytest.mark.parametrize("build", [WithWordsBetween, KeepsTheName, Gated, InAList])
def test_what_every_path_does_is_fused(build):
    for example in ([], [inputs()]):
        net, x = build(), inputs()
        twin = copy.deepcopy(net)
        assert len(mg.patch(net, *example)) == (0 if build is InAList and not example else 1)
        assert_same(net, twin, x)
