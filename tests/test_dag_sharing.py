"""A shared value's adjoint is the sum over its uses (eq. 13), for five ways to share a weight.

Each model is computed twice on a tape: with one weight, and with a copy of it for every use. The
adjoints of the copies, added up, are the adjoint of the one.
"""

import pytest
import torch
import torch.nn.functional as F
from helpers import f64
from torch import nn

import manualgrad as mg


def depth_shared(weights, x):
    """One layer, four times over."""
    for w in weights:
        x = mg.linear_act(x, w, None, "tanh")
    return x


def tied(weights, x):
    """An autoencoder: down by W, up by W^T."""
    down, up = weights
    return mg.linear_act(x, down, None, "gelu") @ up


def recurrent(weights, x):
    """h_t = tanh(x_t + h_{t-1} W^T) over the rows of x."""
    h = torch.zeros_like(x[0])
    for w, row in zip(weights, x.unbind(0), strict=True):
        h = (row + w @ h).tanh()
    return h


def siamese(weights, x):
    """The same network on two inputs."""
    left, right = (
        mg.linear_act(half, w, None, "silu") for half, w in zip(x.chunk(2), weights, strict=True)
    )
    return left - right


def convolution(weights, x):
    """A kernel slides over a row: each place is a use of it."""
    return torch.cat([x[:, i : i + 4] @ w for i, w in enumerate(weights)], -1)


def im2col(weight, x):
    """The same convolution as one product with the windows."""
    windows = torch.stack([x[:, i : i + 4] for i in range(5)], 1)
    return (windows @ weight).flatten(1)


MODELS = {
    "depth-shared": (depth_shared, 4, (6, 6), (3, 6)),
    "tied": (tied, 2, (4, 6), (3, 6)),
    "recurrent": (recurrent, 5, (6, 6), (5, 6)),
    "siamese": (siamese, 2, (5, 6), (4, 6)),
    "convolution": (convolution, 5, (4, 2), (3, 8)),
}


def adjoints(model, weights, x):
    with mg.dag.record() as tape:
        y = model(weights, tape.watch(x))
    tape.backward(y, torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape))
    return tape


@pytest.mark.parametrize("name", MODELS)
def test_the_sum_of_its_uses(name):
    model, uses, shape, of_x = MODELS[name]
    weight, x = f64(*shape), f64(*of_x, requires_grad=False)
    shared = adjoints(model, [weight] * uses, x)
    copies = [nn.Parameter(weight.detach().clone()) for _ in range(uses)]
    separate = adjoints(model, copies, x)
    total = sum(separate.adjoint(copy) for copy in copies)
    ours = shared.adjoint(weight)
    assert len(shared.contributions(weight)) == uses
    torch.testing.assert_close(ours, total, rtol=0, atol=1e-14 * max(1.0, total.abs().max()))
    assert torch.equal(shared.adjoint(x), separate.adjoint(x))


@pytest.mark.parametrize("name", MODELS)
def test_as_torch_autograd_adds_them(name):
    model, uses, shape, of_x = MODELS[name]
    weight, x = f64(*shape), f64(*of_x, requires_grad=False)
    shared = adjoints(model, [weight] * uses, x)
    for engine, same in ((mg.dag.through_autograd, True), (torch.enable_grad, False)):
        with engine():
            y = model([weight] * uses, x)
        v = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
        (gradient,) = torch.autograd.grad(y, weight, v)
        if same:
            assert torch.equal(shared.adjoint(weight), gradient)
        else:
            torch.testing.assert_close(shared.adjoint(weight), gradient, rtol=1e-12, atol=1e-12)


def test_a_convolution_as_im2col_is_its_sliding_kernel():
    weight, x = f64(4, 2), f64(3, 8, requires_grad=False)
    sliding, product = adjoints(convolution, [weight] * 5, x), adjoints(im2col, weight, x)
    one, two = sliding.adjoint(weight), product.adjoint(weight)
    torch.testing.assert_close(one, two, rtol=0, atol=1e-14 * max(1.0, one.abs().max()))
    assert len(product.contributions(weight)) == 1  # the sum is inside the product


def test_a_convolution_of_images_as_im2col():
    """F.unfold and a product, beside F.conv2d: every place of the image is a use of the kernel."""
    kernel, x = f64(5, 2, 3, 3), f64(2, 2, 6, 7, requires_grad=False)
    v = torch.randn(2, 5, 4 * 5).double()
    with mg.dag.record() as tape:
        y = kernel.flatten(1) @ F.unfold(tape.watch(x), 3)
    tape.backward(y, v)
    leaf = x.clone().requires_grad_()
    right = F.conv2d(leaf, kernel)
    torch.testing.assert_close(y.detach(), right.flatten(2), rtol=0, atol=1e-13)
    of_kernel, of_x = torch.autograd.grad(right, (kernel, leaf), v.view_as(right))
    torch.testing.assert_close(tape.adjoint(kernel), of_kernel, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(tape.adjoint(x), of_x, rtol=1e-12, atol=1e-12)


def test_one_tensor_at_several_places_of_a_chain():
    """mg.mlp adds up within its node what the tape adds up between nodes."""
    weight, x = f64(6, 6), f64(3, 6, requires_grad=False)
    inside = adjoints(lambda w, x: mg.mlp(x, w, None, "tanh"), [weight] * 4, x)
    outside = adjoints(depth_shared, [weight] * 4, x)
    ours, want = inside.adjoint(weight), outside.adjoint(weight)
    torch.testing.assert_close(ours, want, rtol=0, atol=1e-14 * max(1.0, want.abs().max()))


def test_tied_modules_hold_one_parameter():
    embedding, head = nn.Embedding(7, 4).double(), nn.Linear(4, 7, bias=False).double()
    head.weight = embedding.weight
    tokens = torch.tensor([[1, 2, 2], [6, 0, 1]])
    with mg.dag.record() as tape:
        loss = mg.cross_entropy(head(embedding(tokens)).flatten(0, 1), tokens.flatten())
    tape.backward(loss)
    from_head, from_embedding = tape.contributions(embedding.weight)
    assert [node.name for node in tape.successors(head.weight)] == ["linear", "embedding"]
    assert torch.equal(tape.adjoint(head.weight), from_head + from_embedding)
    F.cross_entropy(head(embedding(tokens)).flatten(0, 1), tokens.flatten()).backward()
    torch.testing.assert_close(
        tape.adjoint(embedding.weight), embedding.weight.grad, rtol=0, atol=1e-14
    )
