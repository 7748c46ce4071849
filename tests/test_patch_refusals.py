"""What patch leaves alone, and says why."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from patchable import Mlp, assert_same, chain, classes, inputs
from torch import nn

import manualgrad as mg
from manualgrad.nn import known


def hooked():
    net = Mlp()
    net.fc1.register_forward_hook(lambda *_: None)
    return net


def gradient_hooked():
    net = Mlp()
    net.fc1.register_full_backward_pre_hook(lambda *_: None)
    return net


def hooked_activation():
    net = Mlp()
    net.act.register_forward_pre_hook(lambda *_: None)
    return net


def hooked_in_a_chain():
    net = chain()
    net[1].register_forward_hook(lambda *_: None)
    return nn.Sequential(*list(net.children())[:2])


def pruned():
    net = Mlp()
    nn.utils.prune.l1_unstructured(net.fc1, "weight", amount=0.5)
    return net


def parametrised():
    net = Mlp()
    nn.utils.parametrizations.weight_norm(net.fc1)
    return net


def with_its_own_forward():
    net = Mlp()
    net.fc1.forward = lambda x: F.linear(x, net.fc1.weight)
    return net


class Doubled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


def of_another_class():
    net = Mlp()
    net.fc1 = Doubled(4, 8)
    return net


def compiled_layer():
    net = Mlp()
    net.fc1.compile(backend="eager")
    return net


def compiled_part():
    net = Mlp()
    net.compile(backend="eager")
    return nn.Sequential(net)


def wrapped_by_compile():
    return nn.Sequential(torch.compile(Mlp(), backend="eager"))


class Shared(Mlp):
    """The activation also works on the input."""

    def forward(self, x):
        return self.fc2(self.act(self.fc1(self.act(x))))


class Twice(Mlp):
    def forward(self, x):
        z = self.fc1(x)
        return self.fc2(self.act(z) + z)


class Returned(Mlp):
    def forward(self, x):
        z = self.fc1(x)
        return self.fc2(self.act(z)), z


class Kept(Mlp):
    def forward(self, x):
        self.z = self.fc1(x)
        return self.fc2(self.act(self.z))


class Called(Mlp):
    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x)))


class Changed(Mlp):
    def forward(self, x):
        return self.fc2(self.act(self.fc1(x).add_(1.0)))


REFUSED = [
    (hooked, "it has hooks"),
    (gradient_hooked, "it has hooks"),
    (hooked_activation, "its activation has hooks, which read the pre-activation"),
    (hooked_in_a_chain, "its activation has hooks, which read the pre-activation"),
    (pruned, "its weight is computed from other tensors"),
    (parametrised, "it is parametrised"),
    (with_its_own_forward, "its Linear has a forward of its own"),
    (of_another_class, "its Doubled has a forward of its own"),
    (compiled_layer, "it is compiled already"),
    (compiled_part, "it is compiled already"),
    (wrapped_by_compile, "it is compiled already"),
    (lambda: Mlp(nn.PReLU()), "there is no formula by hand for PReLU"),
    (lambda: Mlp(nn.Softmax(-1)), "there is no formula by hand for Softmax"),
    (lambda: nn.Sequential(nn.Linear(4, 4), nn.Hardtanh()), "no formula by hand for Hardtanh"),
    (lambda: Mlp(nn.LeakyReLU(-0.1)), "choose another negative_slope"),
]
ON_AN_EXAMPLE = [
    (Shared, "its activation is shared"),
    (Twice, "its output also goes to torch's add"),
    (Returned, "its output also goes to the model's output"),
    (Kept, "its output also goes to someone who keeps it after the run"),
    (Called, "the function is called in code"),
]
BOTH = [(build, why, False) for build, why in REFUSED]
BOTH += [(build, why, True) for build, why in [*REFUSED, *ON_AN_EXAMPLE]]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's import of torch.jit
@pytest.mark.parametrize(("build", "why", "example"), BOTH)
def test_refused(build, why, example):
    net, x = build(), inputs()
    before, want = classes(net), net(x)
    report = mg.patch(net, *([x] if example else []))
    assert len(report) == 0
    (refused,) = report.refused
    assert why in refused.reason
    assert refused.reason in str(report)
    assert classes(net) == before
    torch.testing.assert_close(net(x), want)


@pytest.mark.parametrize("build", [Shared, Twice, Returned, Kept, Called, Changed])
def test_what_the_source_does_not_show_is_no_find(build):
    net = build()
    assert not len(mg.patch(net))
    assert classes(net) == classes(build())


def test_a_changed_output_is_no_pair():
    assert not len(mg.patch(Changed(), inputs()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, about what is tested
def test_scripted_and_quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = nn.Sequential(torch.jit.script(chain()), Mlp())
        quantised = torch.ao.quantization.quantize_dynamic(chain(), {nn.Linear})
    for example in ([], [inputs()]):
        report = mg.patch(scripted, *example, exclude=["1"])
        assert [e.path for e in report.refused] == ["0.0", "0.2", "0.5"]
        assert all("torch.jit" in e.reason for e in report.refused)
        report = mg.patch(quantised, *example)
        assert [e.path for e in report.refused] == ["0", "2"]
        assert all("quantised" in e.reason for e in report.refused)
        assert not len(report)


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"manualgrad.patch: expected a torch.nn.Module, got str"):
        mg.patch("model")
    with pytest.raises(TypeError, match=r"manualgrad.unpatch: expected a torch.nn.Module"):
        mg.unpatch(None)
    for rule in ("encoder.*", [1], 3):
        for name in ("include", "exclude"):
            with pytest.raises(TypeError, match=f"manualgrad.patch: {name} must be a list of"):
                mg.patch(Mlp(), **{name: rule})
    with pytest.raises(ValueError, match="meta device"):
        mg.patch(Mlp().to("meta"), inputs())


def test_unpatch_refuses_what_was_changed_on_top():
    net = Mlp()
    mg.patch(net)
    before = classes(net)
    nn.utils.parametrizations.weight_norm(net.fc1)
    with pytest.raises(ValueError, match="'fc1' became a ParametrizedLinear after it was patched"):
        mg.unpatch(net)
    nn.utils.parametrize.remove_parametrizations(net.fc1, "weight")
    assert classes(net) == before
    mg.unpatch(net)
    assert classes(net) == classes(Mlp())


def test_an_error_of_the_model_leaves_it_as_it_was():
    net = nn.Sequential(Mlp(), chain())
    before = classes(net)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        mg.patch(net, torch.randn(2, 3))
    assert classes(net) == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_what_would_change_the_output_is_undone(monkeypatch):
    """A table that is wrong about one class: its layers are refused, the others stay fused."""
    monkeypatch.setitem(known.CLASSES, f"{__name__}.Wrong", "relu")
    net = nn.Sequential(Mlp(), Mlp(Wrong()))
    twin, x = copy.deepcopy(net), inputs()
    report = mg.patch(net, x)
    assert [e.path for e in report.replaced] == ["0.fc1"]
    (refused,) = report.refused
    assert refused.path == "1.fc1"
    assert "differs by" in refused.reason
    assert "allowed" in refused.reason
    assert classes(net[1]) == classes(twin[1])
    assert_same(net, twin, x)


class Counting(Mlp):
    """Gives another output each time that it runs."""

    runs = 0

    def forward(self, x):
        self.runs += 1
        return super().forward(x).repeat(self.runs, 1)


def test_a_model_that_does_not_repeat_itself_is_left_alone():
    net = Counting()
    (refused,) = mg.patch(net, torch.randn(4, 4)).refused
    assert "the output 0 differs by inf" in refused.reason
    assert classes(net) == [Counting, *classes(Mlp())[1:]]


class Wrong(nn.Module):
    """Not what the table of a test says it is."""

    def forward(self, input):
        return torch.tanh(input)
