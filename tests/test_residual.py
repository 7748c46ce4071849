"""Residual and shared layers as modules."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import manualgrad as mg


def test_half_types_and_autocast():
    torch.manual_seed(0)
    net = mg.nn.MLP([8] + [16] * 6 + [4], "gelu", residual="pre")
    x = torch.randn(12, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), net(x), rtol=0.05, atol=0.02)
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in net.parameters())


def test_shapes_of_the_input():
    net = mg.nn.MLP([3] + [4] * 3 + [2], residual="post", dtype=torch.float64)
    for shape in ((3,), (0, 3), (2, 5, 3), (2, 0, 3)):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        y = net(x)
        assert y.shape == (*shape[:-1], 2)
        y.sum().backward()
        assert x.grad.shape == x.shape


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit's, in torch's own code
def test_compiled_and_transformed():
    torch.manual_seed(0)
    net = mg.nn.MLP([3] + [4] * 3 + [2], "gelu", residual="pre", shared=True, dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64)
    params = dict(net.named_parameters())

    def loss(params, x):
        return torch.func.functional_call(net, params, (x,)).square().sum()

    expected = torch.func.grad(loss)(params, x)
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(params, x[:, None])
    forward = torch.func.jacfwd(loss)(params, x)
    compiled = torch.compile(lambda x: net(x).square().sum(), backend="aot_eager", fullgraph=True)
    grads = torch.autograd.grad(compiled(x), net.parameters())
    for (name, mine), graph in zip(expected.items(), grads, strict=True):
        for other in (each[name].sum(0), forward[name], graph):
            torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("residual", ["pre", "post", "block"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_residual_mlp_is_what_its_docstring_says(residual, shared):
    torch.manual_seed(0)
    net = mg.nn.MLP(
        [3] + [4] * 5 + [2], "tanh", residual=residual, shared=shared, dtype=torch.float64
    )
    x, scale = torch.randn(5, 3, dtype=torch.float64), net.branch_scale
    z = net.layers[0](x)
    a = z.tanh()
    if residual == "block":
        for first, second in zip(net.layers[1:5:2], net.layers[2:5:2], strict=True):
            a = a + scale * second(first(a).tanh())
    else:
        for layer in net.layers[1:5]:
            z = (z if residual == "pre" else a) + scale * layer(a)
            a = z.tanh()
    expected = net.layers[5](a)
    torch.testing.assert_close(net(x), expected, rtol=1e-13, atol=1e-13)
    assert scale == (2 if residual == "block" else 4) ** -0.5
    assert len(list(net.parameters())) == (6 if shared else 12)
    own = (0, 1, 5) if shared else range(6)
    keys = [f"layers.{l}.{p}" for l in own for p in ("weight", "bias")]
    assert list(net.state_dict()) == keys
    again = pickle.loads(pickle.dumps(copy.deepcopy(net)))
    assert torch.equal(again(x), net(x))
    assert len(again.layers) == len(list(again.layers)) == 6
    assert (again.layers[1] is again.layers[2]) == shared


def test_the_initial_values_are_torchs():
    torch.manual_seed(0)
    ours = mg.nn.MLP([3, 4, 4, 2], residual="pre")
    torch.manual_seed(0)
    theirs = [nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)]
    for mine, layer in zip(ours.layers, theirs, strict=True):
        assert torch.equal(mine.weight, layer.weight)
        assert torch.equal(mine.bias, layer.bias)


def test_zero_init_starts_as_if_without_branches_and_learns():
    torch.manual_seed(0)
    net = mg.nn.MLP([3, 4, 4, 4, 2], residual="pre", branch_scale=1.0, zero_init=True)
    x = torch.randn(6, 3)
    torch.testing.assert_close(net(x), net.layers[3](net.layers[0](x).relu()))
    net(x).square().sum().backward()
    assert net.layers[1].weight.grad.abs().sum() > 0


def test_an_optimiser_moves_a_shared_parameter_once():
    net = mg.nn.MLP([4, 4, 4, 4, 2], "relu", shared=True)
    optimiser = torch.optim.SGD(net.parameters(), lr=1.0)
    before = net.layers[1].weight.detach().clone()
    net(torch.randn(3, 4)).sum().backward()
    optimiser.step()
    assert net.layers[0] is net.layers[1] is net.layers[2]
    torch.testing.assert_close(net.layers[2].weight, before - net.layers[0].weight.grad)


def test_hooks_and_learned_scales_in_a_residual_mlp():
    torch.manual_seed(0)
    scale = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    net = mg.nn.MLP([4] * 6, residual="pre", branch_scale=scale, dtype=torch.float64)
    assert "branch_scale" in dict(net.named_parameters())
    x = torch.randn(5, 4, dtype=torch.float64)
    fused = net(x)
    expected = torch.autograd.grad(fused.square().sum(), net.parameters())
    seen = []
    net.layers[2].register_forward_hook(lambda module, args, output: seen.append(output))
    by_layer = net(x)
    grads = torch.autograd.grad(by_layer.square().sum(), net.parameters())
    assert len(seen) == 1
    torch.testing.assert_close(fused, by_layer, rtol=1e-13, atol=1e-13)
    for mine, other in zip(expected, grads, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": [4, 5, 6, 3], "residual": "pre"}, "finds no branch in sizes"),
        ({"sizes": [4, 4, 4, 3], "residual": "block"}, "two neighbouring hidden layers"),
        ({"sizes": [4, 4, 4, 3], "residual": "skip"}, "'skip' is none of 'pre', 'post', 'block'"),
        ({"sizes": [4, 4, 4], "zero_init": True}, "say something about branches"),
        ({"sizes": [4, 4, 4], "branch_scale": 0.5}, "say something about branches"),
        ({"sizes": [4] * 5, "residual": "pre", "branch_scale": "all"}, "must be 'auto'"),
        ({"sizes": [4, 5, 6, 3, 2], "shared": True}, "no hidden layer of sizes"),
        ({"sizes": [4, 6, 2], "shared": True}, "none is as wide as its input"),
        (
            {"sizes": [4] * 5, "residual": "block", "shared": True, "zero_init": True},
            "never learns",
        ),
        ({"sizes": [4] * 4, "activation": ["relu", "tanh"], "shared": True}, "relu and tanh"),
    ],
)
def test_an_mlp_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        mg.nn.MLP(**arguments)


@pytest.mark.parametrize(
    "block",
    [
        mg.nn.Linear(4, 4, activation="tanh"),
        mg.nn.MLP([4, 8, 4], "gelu"),
        mg.nn.MLP([4] * 5, residual="pre"),
        nn.Sequential(nn.LayerNorm(4), mg.nn.Linear(4, 4)),
    ],
    ids=["layer", "chain", "residual chain", "any module"],
)
@pytest.mark.parametrize("scale", [1.0, 0.5, "learned"])
def test_residual(block, scale):
    if scale == "learned":
        scale = nn.Parameter(torch.full((4,), 0.3))
    module = mg.nn.Residual(block, scale)
    x = torch.randn(2, 3, 4, requires_grad=True)
    leaves = [x, *module.parameters()]
    ours, theirs = module(x), x + scale * block(x)
    torch.testing.assert_close(ours, theirs)
    for mine, expected in zip(
        torch.autograd.grad(ours.sum(), leaves),
        torch.autograd.grad(theirs.sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, expected)


def test_residual_refuses():
    with pytest.raises(ValueError, match=r"input has shape \(2, 3\), but block gives \(2, 4\)"):
        mg.nn.Residual(nn.Linear(3, 4))(torch.randn(2, 3))
    with pytest.raises(ValueError, match="which has 3 features, and layer 1, which has 4"):
        mg.nn.Residual(mg.nn.Linear(3, 4))(torch.randn(2, 3))
    with pytest.raises(TypeError, match="block must be a module"):
        mg.nn.Residual(torch.relu)
    with pytest.raises(TypeError, match="block gives a tuple"):
        mg.nn.Residual(nn.LSTM(4, 4))(torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"branch_scale has shape \(3,\), but input has 4"):
        mg.nn.Residual(nn.Linear(4, 4), torch.ones(3))(torch.randn(2, 4))


@pytest.mark.long
def test_a_64_layer_residual_mlp_trains_where_the_plain_one_does_not():
    """Digits, 300 updates: at least 96 % with the default branch scale, below 60 % without."""
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    X, y = datasets.load_digits(return_X_y=True)
    X, y = torch.tensor(X, dtype=torch.float32), torch.tensor(y)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    train, test = order[:1024], order[1024:]
    mean, std = X[train].mean(), X[train].std()
    X = (X - mean) / std

    def accuracy(residual, lr):
        torch.manual_seed(0)
        net = mg.nn.MLP([64] + [64] * 65 + [10], "relu", residual=residual)
        for layer in net.layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        optimiser = torch.optim.SGD(net.parameters(), lr=lr)
        for _ in range(300):
            batch = train[torch.randint(1024, (64,))]
            optimiser.zero_grad()
            mg.cross_entropy(net(X[batch]), y[batch]).backward()
            optimiser.step()
        with torch.no_grad():
            result = (net(X[test]).argmax(1) == y[test]).double().mean().item()
        return result if math.isfinite(result) else 0.0

    assert accuracy("pre", 0.1) >= 0.96
    assert accuracy(None, 0.03) < 0.60


# a residual MLP whose layers are changed


def test_layers_that_are_changed_are_used_or_refused():
    torch.manual_seed(0)
    net, x = mg.nn.MLP([4, 6, 6, 6, 2], "gelu", residual="pre"), torch.randn(3, 4)
    net.layers[1] = mg.nn.Linear(6, 6, activation="tanh")
    changed = net(x)
    net.layers[3].register_forward_hook(lambda module, args, output: None)
    torch.testing.assert_close(changed, net(x))
    net.layers[2] = nn.Linear(6, 1)
    with pytest.raises(ValueError, match=r"layers.2 gives \(3, 1\), but the skip.*\(3, 6\)"):
        net(x)
    net.layers.append(mg.nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match="5 layers, but its skips were laid out for 4"):
        net(x)
    with pytest.raises(AttributeError):
        net.residual = "post"


def test_a_layer_is_put_in_all_the_places_of_a_shared_one():
    net = mg.nn.MLP([4, 6, 6, 6, 2], "relu", shared=True)
    net.layers[2] = other = mg.nn.Linear(6, 6, activation="relu")
    assert net.layers[1] is net.layers[2] is other
    assert len(list(net.parameters())) == 6


def test_a_scale_that_is_a_tensor_moves_with_the_module():
    for module in (
        mg.nn.MLP([4] * 5, residual="post", branch_scale=torch.ones(4)),
        mg.nn.Residual(nn.Linear(4, 4), torch.ones(4)),
    ):
        assert "branch_scale" in module.state_dict()
        assert module.double().branch_scale.dtype == torch.float64
        assert "branch_scale=(4,)" in repr(module)
        assert module(torch.randn(2, 4, dtype=torch.float64)).dtype == torch.float64


def test_hooks_of_every_module_are_called_inside():
    seen = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: seen.append(type(module).__name__)
    )
    try:
        mg.nn.MLP([4, 4, 4])(torch.randn(2, 4))
    finally:
        handle.remove()
    assert seen == ["Linear", "Linear", "MLP"]


@pytest.mark.parametrize("scale", [0.5, nn.Parameter(torch.tensor(0.5))], ids=["number", "learned"])
def test_fx(scale):
    module = nn.Sequential(
        mg.nn.MLP([4] * 5, residual="pre", branch_scale=scale),
        mg.nn.Residual(mg.nn.Linear(4, 4), scale),
        mg.nn.Residual(nn.Linear(4, 4), scale),
    )
    x = torch.randn(3, 4)
    torch.testing.assert_close(torch.fx.symbolic_trace(module)(x), module(x))


def test_an_mlp_without_its_branch_scale_is_refused():
    net = mg.nn.MLP([4] * 4, residual="post")
    net.branch_scale = None
    with pytest.raises(TypeError, match="scale must be a number"):
        net(torch.randn(2, 4))
