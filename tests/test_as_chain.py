"""When an MLP runs as one chain, and when it must call its layers."""

import pytest
import torch

import manualgrad as mg


def forward_of_its_own(layer, note):
    inner = layer.forward
    layer.forward = lambda x: note() or inner(x)


def class_of_its_own(layer, note):
    class Noting(mg.nn.Linear):
        def forward(self, input):
            return note() or super().forward(input)

    layer.__class__ = Noting


CARRIED = {
    "forward hook": lambda layer, note: layer.register_forward_hook(note),
    "forward pre-hook": lambda layer, note: layer.register_forward_pre_hook(note),
    "backward hook": lambda layer, note: layer.register_full_backward_hook(note),
    "backward pre-hook": lambda layer, note: layer.register_full_backward_pre_hook(note),
    "forward": forward_of_its_own,
    "class": class_of_its_own,
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("what", CARRIED)
def test_what_a_layer_carries_is_called(what, shared):
    net, calls = mg.nn.MLP([4, 4, 4, 2], "tanh", shared=shared), []
    x = torch.randn(3, 4, requires_grad=True)
    wanted = [x, *net.parameters()]
    assert net.as_chain() is not None
    expected = torch.autograd.grad(net(x).sum(), wanted)
    CARRIED[what](net.layers[1], lambda *_: calls.append(what))
    assert net.as_chain() is None
    grads = torch.autograd.grad(net(x).sum(), wanted)
    assert calls == [what] * (2 if shared else 1)
    torch.testing.assert_close(grads, expected)


def test_a_subclass_without_a_forward_is_a_part_of_the_chain():
    net = mg.nn.MLP([4, 4, 2], "tanh")
    known = net.as_chain()
    net.layers[0].__class__ = type("Named", (mg.nn.Linear,), {})
    assert [*map(id, net.as_chain()[1])] == [*map(id, known[1])]
    assert net.as_chain()[0] == known[0]
