"""What is done to a patched model, and with its parts, later: the numbers are the plain model's."""

import copy
import gc
import inspect
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from patchable import Mlp, assert_same, chain, classes, encoder, inputs
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


class Adapter(nn.Module):
    """A low-rank adapter; it answers for its layer where it is asked."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down, self.up = nn.Linear(4, 2, bias=False), nn.Linear(2, 8, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base, name)


def adapted(name):
    def change(net):
        torch.manual_seed(1)
        setattr(net, name, Adapter(getattr(net, name)))

    return change


def replaced(name, by, directly=False):
    def change(net):
        torch.manual_seed(1)
        if directly:
            net._modules[name] = by()
        else:
            setattr(net, name, by())

    return change


def hooked(name):
    return lambda net: getattr(net, name).register_forward_hook(lambda _, args, out: 2 * out)


def act_becomes(net):
    net.act.__class__ = nn.Sigmoid


def slope(net):
    net.act.negative_slope = 0.5


def slopes(net):
    net[1].negative_slope = 0.5


def classed(net):
    net[1].__class__ = nn.Sigmoid


def wider():
    return nn.Linear(4, 8)


LATER = {
    "layer": (Mlp, replaced("fc1", wider)),
    "layer, past setattr": (Mlp, replaced("fc1", wider, directly=True)),
    "adapter": (Mlp, adapted("fc1")),
    "activation": (Mlp, replaced("act", nn.ReLU)),
    "activation's class": (Mlp, act_becomes),
    "activation's constant": (lambda: Mlp(nn.LeakyReLU(0.1)), slope),
    "layer's hook": (Mlp, hooked("fc1")),
    "activation's hook": (Mlp, hooked("act")),
    "layer before a function": (encoder, replaced("linear1", wider)),
    "adapter before a function": (encoder, adapted("linear1")),
    "function": (encoder, lambda net: setattr(net, "activation", torch.tanh)),
    "constant in a chain": (lambda: chain(lambda: nn.LeakyReLU(0.1)), slopes),
    "class in a chain": (lambda: chain(nn.Tanh), classed),
}


@pytest.mark.parametrize("later", LATER)
@pytest.mark.parametrize("example", [True, False])
def test_what_is_changed_later_counts(later, example):
    build, change = LATER[later]
    net, x = build(), inputs()
    twin = copy.deepcopy(net)
    assert len(mg.patch(net, *([x] if example else [])))
    duplicate = copy.deepcopy(net)
    change(net)
    assert_same(duplicate, twin, x)  # a copy made before is a model of its own
    change(twin)
    for _ in range(2):
        assert_same(net, twin, x)
        assert_same(pickle.loads(pickle.dumps(net)) if "hook" not in later else net, twin, x)
        mg.patch(net)  # anew
    mg.unpatch(net)
    assert classes(net) == classes(twin)
    assert_same(net, twin, x)


def test_a_second_patch_fuses_what_was_put_in():
    net = Mlp()
    mg.patch(net)
    net.act = nn.Tanh()
    (entry,) = mg.patch(net).replaced
    assert (entry.path, entry.activation) == ("fc1", "tanh")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Dynamo's, about Functions
def test_what_is_changed_later_counts_where_the_model_was_compiled():
    for change in (replaced("fc1", wider), replaced("act", nn.ReLU)):
        net, x = Mlp(), inputs()
        twin = copy.deepcopy(net)
        mg.patch(net)
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), twin(x))
        change(net)
        change(twin)
        torch.testing.assert_close(compiled(x), twin(x))


def test_a_part_alone_is_what_it_was_before():
    net, x = Mlp(), inputs()
    twin = copy.deepcopy(net)
    mg.patch(net)
    z = twin.fc1(x)
    for alone in (copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))):
        torch.testing.assert_close(alone(net.fc1)(x), z)
        torch.testing.assert_close(alone(net.act)(z), twin.act(z))
    layer = net.fc1
    del net.fc1
    torch.testing.assert_close(layer(x), z)
    net.fc1 = layer
    torch.testing.assert_close(net(x), twin(x))


def test_layers_of_a_list_with_one_activation_of_their_model():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.act = nn.ModuleList(nn.Linear(4, 4) for _ in range(3)), nn.SiLU()

        def forward(self, x):
            for i, layer in enumerate(self.layers):
                x = layer(x) if i == 2 else self.act(layer(x))
            return x

    net, x = Net(), inputs()
    twin = copy.deepcopy(net)
    assert len(mg.patch(net, x)) == 2
    assert_same(copy.deepcopy(net), twin, x)
    torch.testing.assert_close(copy.deepcopy(net.layers)[0](x), twin.layers[0](x))
    net.layers[1] = twin.layers[1]
    assert_same(net, twin, x)


def test_replicas_are_fused():
    """As DataParallel makes them, of each module a shallow copy."""

    def replica(module):
        made = module._replicate_for_data_parallel()
        for name, child in module._modules.items():
            setattr(made, name, replica(child))
        for name, parameter in module._parameters.items():
            setattr(made, name, parameter)
        return made

    net, x = Mlp(), inputs()
    mg.patch(net)
    assert torch.equal(replica(net)(x), net(x))
    torch.testing.assert_close(
        replica(net).fc1(x), F.gelu(F.linear(x, net.fc1.weight, net.fc1.bias))
    )


def test_a_patched_model_goes_when_its_last_reference_goes():
    net = Mlp()
    mg.patch(net)
    gone = weakref.ref(net)
    gc.disable()
    try:
        del net
        assert gone() is None
    finally:
        gc.enable()
