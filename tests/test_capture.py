"""mg.capture: norms, Gram matrix and noise scale against per-example gradients by vmap(grad)."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap

import manualgrad as mg
from manualgrad.listening import active

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit's, in torch
F64 = {"dtype": torch.float64}


def patched():
    net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)).double()
    mg.patch(net)
    return net


NETS = {
    "one layer": lambda: mg.nn.Linear(8, 4, activation="tanh", **F64),
    "layers": lambda: nn.Sequential(
        mg.nn.Linear(8, 8, activation="relu", **F64),
        nn.LayerNorm(8, elementwise_affine=False),
        mg.nn.Linear(8, 4, **F64),
    ),
    "chain": lambda: mg.nn.MLP([8, 16, 16, 4], "gelu", **F64),
    "recompute": lambda: mg.nn.MLP([8, 16, 16, 4], "gelu", recompute=True, **F64),
    "no bias": lambda: mg.nn.MLP([8, 16, 16, 4], "relu", bias=False, **F64),
    "pre": lambda: mg.nn.MLP([8, *[12] * 5, 4], "relu", residual="pre", **F64),
    "post, shared": lambda: mg.nn.MLP([8, *[12] * 5, 4], residual="post", shared=True, **F64),
    "block": lambda: mg.nn.MLP([8, *[12] * 5, 4], "silu", residual="block", **F64),
    "out": lambda: nn.Sequential(
        mg.nn.Residual(mg.nn.Linear(8, 8, activation="tanh", **F64), 0.5), mg.nn.Linear(8, 4, **F64)
    ),
    "patched": patched,
}


def own_gradients(net, x, y, loss):
    """(examples, P): the gradient of each example's own loss."""
    params = {name: p.detach() for name, p in net.named_parameters()}

    def one(params, x, y):
        return loss(functional_call(net, params, (x[None],)), y[None])

    found = vmap(grad(one), (None, 0, 0))(params, x, y)
    return torch.cat([g.flatten(1) for g in found.values()], 1)


def close(measured, expected):
    return ((measured - expected).abs().max() / expected.abs().max()).item() <= 1e-12


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_what_per_example_gradients_say(name, reduction):
    torch.manual_seed(0)
    net, x, y = NETS[name](), torch.randn(20, 8, **F64), torch.randint(4, (20,))
    with mg.capture(net, reduction=reduction) as cap:
        F.cross_entropy(net(x), y, reduction=reduction).backward()
    g = own_gradients(net, x, y, F.cross_entropy)
    assert close(cap.per_example_norms(), g.norm(dim=1))
    assert close(cap.grad_gram(), g @ g.T)
    brute_force = g.var(0).sum() / g.mean(0).square().sum()
    assert abs(cap.noise_scale() / brute_force.item() - 1) <= 1e-12


def test_the_rows_of_one_example_are_added_up():
    torch.manual_seed(0)
    net = mg.nn.MLP([8, 16, 16, 16, 4], "gelu", shared=True, **F64)
    x, y = torch.randn(6, 5, 8, **F64), torch.randn(6, 5, 4, **F64)
    with mg.capture(net, examples=6) as cap:
        mg.mse_loss(net(x), y).backward()
    g = own_gradients(net, x, y, F.mse_loss)
    assert close(cap.per_example_norms(), g.norm(dim=1))
    assert close(cap.grad_gram(), g @ g.T)


@pytest.mark.parametrize("apart", [False, True])
def test_a_weight_and_its_transpose(apart):
    torch.manual_seed(0)
    W, x = nn.Parameter(torch.randn(5, 8, **F64)), torch.randn(20, 8, **F64)

    def autoencoder(W, x):
        if apart:
            return mg.linear_act(mg.linear_act(x, W, None, "tanh"), W.t())
        return mg.mlp(x, [W, W.t()], None, ["tanh", "identity"])

    with mg.capture() as cap:
        F.mse_loss(autoencoder(W, x), x).backward()

    def one(W, x):
        return F.mse_loss(autoencoder(W, x[None]), x[None])

    g = vmap(grad(one), (None, 0))(W.detach(), x).flatten(1)
    assert close(cap.per_example_norms(), g.norm(dim=1))
    assert close(cap.grad_gram(), g @ g.T)
    assert [use.transposed for use in cap.layers] == [False, True]


TRANSPOSED = {
    "t": (lambda W: W.t(), True),
    "T": (lambda W: W.T, True),
    "mT": (lambda W: W.mT, True),
    "transpose": (lambda W: W.transpose(-1, 0), True),
    "permute": (lambda W: W.permute(-1, -2), True),
    "transpose of nothing": (lambda W: W.transpose(1, -1), False),
    "permute of nothing": (lambda W: W.permute(0, 1), False),
    "permute of nothing, from the end": (lambda W: W.permute(-2, 1), False),
    "twice": (lambda W: W.t().mT, False),
}


@pytest.mark.parametrize("how", TRANSPOSED)
def test_which_transposes_transpose(how):
    torch.manual_seed(0)
    W, x = nn.Parameter(torch.randn(5, 5, **F64)), torch.randn(7, 5, **F64)
    change, transposed = TRANSPOSED[how]
    with mg.capture() as cap:
        (mg.linear_act(x, W, None, "tanh") + mg.linear_act(x, change(W))).mean().backward()

    def one(W, x):
        return (mg.linear_act(x, W, None, "tanh") + mg.linear_act(x, change(W))).mean()

    g = vmap(grad(one), (None, 0))(W.detach(), x[:, None]).flatten(1)
    assert close(cap.per_example_norms(), g.norm(dim=1))
    assert sorted(use.transposed for use in cap.layers) == [False, transposed]


def test_layers_are_in_forward_order_with_their_names():
    torch.manual_seed(0)
    net = mg.nn.MLP([8, 6, 6, 6, 4], "relu", residual="pre", branch_scale=0.5, shared=True)
    x = torch.randn(3, 8)
    with mg.capture(net) as cap:
        net(x).square().sum().backward()
    assert [use.name for use in cap.layers] == ["layers.0", "layers.1", "layers.1", "layers.3"]
    assert torch.equal(cap.layers[0].a, x)
    for l, use in enumerate(cap.layers):
        assert use.a.shape[1] == net.layers[l].in_features
        assert use.delta.shape == (3, net.layers[l].out_features)
    shared = cap.layers[1].delta.T @ cap.layers[1].a + cap.layers[2].delta.T @ cap.layers[2].a
    torch.testing.assert_close(shared, net.layers[1].weight.grad)
    norms = [use.delta.norm().item() for use in cap.layers]
    assert cap.delta_norms() == pytest.approx(norms)
    assert [use.name for use in unnamed(x).layers] == ["layer 1"]


def unnamed(x):
    with mg.capture() as cap:
        mg.linear_act(x, torch.randn(2, 8, requires_grad=True)).sum().backward()
    return cap


def test_frozen_parameters_count_for_nothing():
    torch.manual_seed(0)
    net, x, y = NETS["chain"](), torch.randn(9, 8, **F64), torch.randint(4, (9,))
    net.layers[1].weight.requires_grad_(False)
    net.layers[2].bias.requires_grad_(False)
    with mg.capture(net) as cap:
        F.cross_entropy(net(x), y).backward()
    g, wanted, start = own_gradients(net, x, y, F.cross_entropy), [], 0
    for p in net.parameters():
        wanted += range(start, start + p.numel()) if p.requires_grad else []
        start += p.numel()
    assert close(cap.per_example_norms(), g[:, wanted].norm(dim=1))
    assert len(cap.delta_norms()) == 3
    assert cap.layers[1].a is None


def test_what_is_computed_from_parameters_is_refused():
    """The gradient of a part, a multiple, a parametrisation is not its parameter's."""
    W, x = nn.Parameter(torch.randn(8, 8)), torch.randn(7, 8)
    for layer in (
        lambda x: mg.linear_act(x, 2 * W),
        lambda x: mg.linear_act(x, W.chunk(2)[0]),
        lambda x: mg.linear_act(x, W, W[0]),
        nn.utils.parametrizations.weight_norm(mg.nn.Linear(8, 8)),
    ):
        with mg.capture() as cap:
            layer(x).sum().backward()
        assert len(cap.layers) == len(cap.delta_norms()) == 1
        with pytest.raises(ValueError, match="layer 1 uses a weight or bias that is computed from"):
            cap.per_example_norms()


def test_of_a_model_its_layers_alone():
    torch.manual_seed(0)
    net, other, x = mg.nn.MLP([8, 6, 4]), mg.nn.MLP([8, 6, 4]), torch.randn(5, 8)
    with mg.capture(net) as alone:
        net(x).sum().backward()
    with mg.capture(net) as cap:
        (net(x).sum() + other(x).sum()).backward()
    assert len(cap.layers) == 2
    torch.testing.assert_close(cap.per_example_norms(), alone.per_example_norms())
    mixed = nn.Sequential(mg.nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    with mg.capture(mixed) as cap:
        mixed(x).sum().backward()
    with pytest.warns(UserWarning, match="left out.*: 1.weight, 1.bias, 2.weight, 2.bias"):
        cap.per_example_norms()


def test_an_input_that_is_changed_afterwards_is_refused():
    net, x = mg.nn.MLP([8, 6, 4]), torch.randn(5, 8)
    with mg.capture(net) as cap:
        net(x).sum().backward()
    x.zero_()
    with pytest.raises(ValueError, match=r"input of layers.0 was changed in place"):
        cap.per_example_norms()


def test_transforms_and_graphs_are_not_heard():
    net, x = mg.nn.MLP([8, 6, 4]), torch.randn(5, 8)
    with mg.capture() as cap:
        torch.compile(net, backend="aot_eager")(x).sum().backward()
        torch.func.grad(lambda x: net(x).sum())(x)
    assert cap.layers == []


def test_autocast_and_half_types():
    torch.manual_seed(0)
    net, x = mg.nn.MLP([8, 16, 4], "gelu"), torch.randn(10, 8)
    with mg.capture(net) as exact:
        net(x).square().mean().backward()
    with mg.capture(net) as cap, torch.autocast("cpu", torch.bfloat16):
        net(x).float().square().mean().backward()
    assert [use.name for use in cap.layers] == ["layers.0", "layers.1"]
    assert cap.layers[0].delta.dtype == torch.bfloat16
    torch.testing.assert_close(
        cap.per_example_norms(), exact.per_example_norms(), rtol=0.05, atol=0
    )


def test_nothing_is_changed_and_nothing_stays_on():
    torch.manual_seed(0)
    net, x = mg.nn.MLP([8, 16, 4], "gelu"), torch.randn(10, 8)
    before = torch.autograd.grad(net(x).sum(), net.parameters())
    with mg.capture(net) as outer, mg.capture() as inner:
        during = torch.autograd.grad(net(x).sum(), net.parameters())
    for mine, other in zip(before, during, strict=True):
        assert torch.equal(mine, other)
    assert len(outer.layers) == len(inner.layers) == 2
    net(x).sum().backward()
    assert len(outer.layers) == 2
    broken = mg.capture()
    with pytest.raises(RuntimeError, match="element 0"), broken:
        net(x).detach().sum().backward()
    assert active == []
    assert broken.layers == []


def test_what_is_refused():
    with pytest.raises(TypeError, match="model must be a module"):
        mg.capture("net")
    with pytest.raises(ValueError, match="'max' is not 'mean' or 'sum'"):
        mg.capture(reduction="max")
    for examples, error in ((0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="examples must be"):
            mg.capture(examples=examples)
    with mg.capture() as cap, pytest.raises(ValueError, match="read it after the with block"):
        cap.grad_gram()
    with mg.capture() as cap:
        mg.nn.Linear(4, 4)(torch.randn(0, 4)).sum().backward()
    with pytest.raises(ValueError, match="the batch was empty"):
        cap.noise_scale()
    for method in ("per_example_norms", "grad_gram", "noise_scale"):
        with pytest.raises(ValueError, match=r"nothing was seen; call loss\.backward"):
            getattr(mg.capture(), method)()
    net = mg.nn.Linear(4, 4)
    x = torch.randn(6, 4)
    with mg.capture() as cap:
        (net(x).sum() + net(x[:3]).sum()).backward()
    with pytest.raises(ValueError, match=r"different numbers of rows, \[3, 6\]"):
        cap.per_example_norms()
    with mg.capture(examples=4) as cap:
        net(x).sum().backward()
    with pytest.raises(ValueError, match="4 examples do not divide"):
        cap.grad_gram()
    with mg.capture() as cap:
        net(x[:1]).sum().backward()
    with pytest.raises(ValueError, match="at least two examples"):
        cap.noise_scale()
    frozen = mg.nn.Linear(4, 4).requires_grad_(False)
    with mg.capture() as cap:
        frozen(x.requires_grad_()).sum().backward()
    with pytest.raises(ValueError, match="none of the layers seen wants a gradient"):
        cap.grad_gram()
