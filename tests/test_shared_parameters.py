"""One gradient per parameter: the sum of its uses, in one buffer."""

import torch
import torch.nn.functional as F

import manualgrad as mg
from manualgrad import aten


def clones(tensor, count):
    return [tensor.detach().clone().requires_grad_() for _ in range(count)]


def test_a_shared_gradient_is_the_sum_of_its_uses():
    """Depth-shared, tied, recurrent, convolution as im2col, siamese: to 1e-14 in float64."""
    torch.manual_seed(0)
    f64 = {"dtype": torch.float64}
    W = (0.4 * torch.randn(6, 6, **f64)).requires_grad_()
    x = torch.randn(16, 6, **f64)

    def depth(weights):
        skips = [mg.Skip(l, l + 1, "out", 8**-0.5) for l in range(8)]
        return mg.mlp(x, weights, None, "tanh", skips=skips)

    def tied(weights):
        return mg.mlp(x, [weights[0], weights[1].t()], None, ["tanh", "identity"])

    rows = torch.randn(8, 16, 6, **f64)

    def recurrent(weights):
        h = torch.zeros(16, 6, **f64)
        for row, weight in zip(rows, weights, strict=True):
            h = mg.linear_act(h, weight, None, "tanh") + row
        return h

    patches = F.unfold(torch.randn(4, 1, 5, 5, **f64)[..., :4], (2, 3)).mT  # (4, P, 6)

    def convolution(weights):
        return torch.stack([mg.linear_act(patches[:, p], w) for p, w in enumerate(weights)])

    def siamese(weights):
        return mg.linear_act(x, weights[0], None, "relu") - mg.linear_act(
            -x, weights[1], None, "relu"
        )

    uses = {depth: 8, tied: 2, recurrent: 8, convolution: patches.shape[1], siamese: 2}
    for net, count in uses.items():
        own = clones(W, count)
        apart = sum(torch.autograd.grad(net(own).square().sum(), own))
        (shared,) = torch.autograd.grad(net([W] * count).square().sum(), W)
        assert ((shared - apart).norm() / apart.norm()).item() <= 1e-14, net.__name__


def test_the_uses_of_a_parameter_are_summed_in_one_buffer(monkeypatch):
    into, gradient = [], aten.bp4_weight_gradient

    def spy(delta, x, buffer=None):
        into.append(buffer)
        return gradient(delta, x, buffer)

    monkeypatch.setattr(aten, "bp4_weight_gradient", spy)
    W = torch.randn(5, 5, requires_grad=True)
    mg.mlp(torch.randn(4, 5), [W, W, W], None, "tanh").sum().backward()
    assert into[0] is None
    assert into[1] is into[2] is not None


def test_a_transpose_has_a_gradient_of_its_own():
    torch.manual_seed(0)
    W, x = torch.randn(5, 5, requires_grad=True), torch.randn(4, 5)
    transposed = W.T
    y = mg.mlp(x, [W, transposed], None, "tanh").sum()
    apart = clones(W, 1)[0], clones(W.T, 1)[0]
    first, second = torch.autograd.grad(mg.mlp(x, apart, None, "tanh").sum(), apart)
    total, of_transposed = torch.autograd.grad(y, (W, transposed), retain_graph=True)
    torch.testing.assert_close(of_transposed, second)
    torch.testing.assert_close(total, first + second.T)
    transposed.register_hook(lambda grad: grad * 2)
    (hooked,) = torch.autograd.grad(y, W)
    torch.testing.assert_close(hooked, first + 2 * second.T)
