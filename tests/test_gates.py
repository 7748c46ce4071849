"""Gates in chains on a CPU: a beside z, or from z; infinities that ATen's kernels turn to NaN."""

import itertools
import math

import pytest
import torch

import manualgrad as mg
from manualgrad import composite, gates, one_pass, tiling
from manualgrad.activations import activation_of
from manualgrad.chain import Chain
from manualgrad.walks import IDENTITY

GATES = ("gelu", "gelu_tanh", "silu", "mish", "hardswish")
DEPTH, WIDTH = 3, 4


@pytest.fixture(params=[0, 1 << 20], ids=["from z", "beside z"])
def kept(request, monkeypatch):
    monkeypatch.setattr(gates, "MORE", request.param)


@pytest.fixture
def walks(monkeypatch, not_small):
    """The activations of each forward walk."""
    found, forward_pass = [], gates.forward_pass

    def counted(chain, *rest):
        found.append([act.name for act in chain.acts[1:]])
        return forward_pass(chain, *rest)

    monkeypatch.setattr(gates, "forward_pass", counted)
    return found


def operands(M=5, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(M, WIDTH), *[(WIDTH, WIDTH), (WIDTH,)] * DEPTH]
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


def both(acts, skips=(), recompute=False):
    """The chain by our rules and in PyTorch's own operations."""
    chain = Chain((IDENTITY, *(activation_of(act, "mlp") for act in acts)), False, skips)

    def ours(x, *params):
        return mg.mlp(x, params[::2], params[1::2], acts, skips=skips, recompute=recompute)

    return ours, lambda x, *params: composite.mlp(x, chain, *params)[0]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", [None, "pre", "post", "out"])
@pytest.mark.parametrize("acts", [("gelu", "silu", "mish"), ("silu", "tanh", "elu")], ids=str)
def test_gradients_of_both_orders(acts, kind, recompute, kept):
    skips = [mg.Skip(1, 2, kind, 0.5)] if kind else []
    ours, native = both(acts, skips, recompute)
    leaves = operands()
    found = torch.autograd.grad(ours(*leaves).sin().sum(), leaves)
    expected = torch.autograd.grad(native(*leaves).sin().sum(), leaves)
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradgradcheck(ours, leaves, fast_mode=True)


@pytest.mark.parametrize("frozen", [[0], [1, 2], [3], [0, 1, 2, 3, 4], [5, 6]], ids=str)
def test_frozen_parameters(frozen, kept):
    ours, native = both(("gelu",) * DEPTH)
    leaves = operands()
    for at in frozen:
        leaves[at].requires_grad_(False)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    found = torch.autograd.grad(ours(*leaves).sum(), wanted)
    torch.testing.assert_close(found, torch.autograd.grad(native(*leaves).sum(), wanted))


def test_a_finite_chain_of_gates_is_walked_once_and_with_less_care(walks, monkeypatch):
    """Its backward pass, too, does without a look at z."""
    looked = []
    monkeypatch.setattr(gates.one_pass, "finite", lambda z: looked.append(z.shape) or True)
    ours, _ = both(("gelu", "silu", "identity"))
    ours(*operands()).sum().backward()
    assert walks == [["gelu of finite z", "silu of finite z", "identity"]]
    assert looked == [(5, WIDTH)]


INFINITE = [torch.inf, -torch.inf]


@pytest.mark.parametrize("M", [1, 7, 5000])  # ATen's kernels differ beside whole vectors
@pytest.mark.parametrize("infinite", INFINITE, ids=str)
@pytest.mark.parametrize(
    "acts",
    [*itertools.product(GATES, ["identity"]), *itertools.product(GATES, ["relu", "tanh", "elu"])],
    ids="-".join,
)
def test_infinities_give_what_care_gives(acts, infinite, M, kept, walks):
    """Also where the layer behind a gate turns infinities to numbers."""
    x, w1, b1, w2, b2, *_ = leaves = operands(M)[:5]
    with torch.no_grad():  # z1 is infinite at one place of one example: 1e300 squared
        w1.copy_(torch.eye(WIDTH))
        w1[1, 1] = 1e300
        x[:, 1] = 0.0
        x[M // 2, 1] = math.copysign(1e300, infinite)
    careful = mg.linear_act(mg.linear_act(x, w1, b1, acts[0]), w2, b2, acts[1])
    found = mg.mlp(x, [w1, w2], [b1, b2], list(acts))
    torch.testing.assert_close(found, careful, equal_nan=True)
    grad = torch.ones_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves, grad),
        torch.autograd.grad(careful, leaves, grad),
        equal_nan=True,
    )


def test_an_infinity_in_one_tile_alone(monkeypatch, walks):
    monkeypatch.setattr(tiling, "ENTRIES", 4 * WIDTH)
    monkeypatch.setattr(tiling, "LEAST_ROWS", 1)
    monkeypatch.setattr(tiling, "CACHE", 0)
    ours, _ = both(("silu",) * DEPTH)
    x, *params = operands(12)
    with torch.no_grad():
        x[5] = -torch.inf
    found = ours(x, *params)
    assert [names[0] for names in walks] == ["silu of finite z"] * 2 + ["silu", "silu of finite z"]
    monkeypatch.setattr(tiling, "CACHE", 1 << 40)
    expected = ours(x, *params)
    torch.testing.assert_close(found, expected, equal_nan=True)
    torch.testing.assert_close(
        torch.autograd.grad(found.nansum(), params), torch.autograd.grad(expected.nansum(), params),
        equal_nan=True,
    )  # fmt: skip


def test_a_chain_that_serves_twice_remembers_each_call():
    """A residual MLP keeps its Chain: what one call finds must not be the other's."""
    net = mg.nn.MLP([WIDTH] * 4, "gelu", residual="post", dtype=torch.float64)
    x = torch.randn(6, WIDTH, dtype=torch.float64)
    far = x.clone()
    far[2, 0] = torch.inf
    expected = torch.autograd.grad(net(far).nansum(), list(net.parameters()))
    first, _ = net(far), net(x)
    found = torch.autograd.grad(first.nansum(), list(net.parameters()))
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_no_kernel_without_care_where_it_cannot_be_seen(walks):
    """Inside a transform nobody may look at numbers."""
    ours, native = both(("gelu",) * DEPTH)
    leaves = operands()
    found = torch.func.vmap(ours, in_dims=(0, *[None] * 2 * DEPTH))(*leaves)
    torch.testing.assert_close(found, native(*leaves))
    assert all("finite" not in name for names in walks for name in names)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(one_pass.OF_FINITE_Z))
def test_a_kernel_without_care_makes_no_number_of_an_infinity(name, dtype):
    """What the walk counts on. Kernels differ beside whole vectors, so in several lengths."""
    sigma, prime = one_pass.OF_FINITE_Z[name]
    for length, value in itertools.product(
        (1, 3, 7, 8, 16, 17, 33, 64, 40000), (torch.inf, -torch.inf, torch.nan)
    ):
        z = torch.randn(length).to(dtype)
        z[[0, length // 2, -1]] = value
        finite = z.isfinite()
        assert torch.equal(sigma(z.clone()).isfinite(), finite)
    careful = one_pass.ONE_PASS[name.removesuffix(" of finite z")]
    most = torch.finfo(dtype).max / 4  # beyond, gelu itself is inf: not finite either
    far = [-most, -1e4, -300.0, -90.0, 90.0, 300.0, 1e4, most] * 5
    z = torch.tensor(far, dtype=torch.float64).to(dtype)
    z = z[z.isfinite()]
    assert torch.equal(sigma(z.clone()), careful[0](z.clone()))
    one = torch.ones_like(z)
    torch.testing.assert_close(prime(one, z), careful[1](one, z))
