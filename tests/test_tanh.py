"""tanh in the epilogue of oneDNN's product: who takes it, and what it gives."""

import pytest
import torch
import torch.nn.functional as F
import torch.utils.flop_counter
from helpers import is_small

import manualgrad as mg
from manualgrad import compat, half_precision, measuring, products, small

M, N, K = 512, 64, 32
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
BFLOAT16 = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif(not compat.onednn_has_bfloat16(), reason="needs bfloat16 in oneDNN"),
)


@pytest.fixture
def taken(monkeypatch):
    """Shapes that went there, on a machine where it is the faster."""
    found, linear = [], compat.onednn_linear

    def counted(x, weight, bias, epilogue, *rest):
        if epilogue == "tanh":
            found.append((*x.shape, weight.shape[0]))
        return linear(x, weight, bias, epilogue, *rest)

    monkeypatch.setattr(compat, "onednn_linear", counted)
    monkeypatch.setattr(products, "onednn_tanh_wins", lambda threads, dtype, terms: True)
    monkeypatch.setattr(half_precision, "wins", lambda *_: False)
    return found


def operands(dtype=torch.float32, shape=(M, N, K)):
    torch.manual_seed(0)
    M, N, K = shape
    tensors = torch.randn(M, K), torch.randn(N, K) / K**0.5, torch.randn(N)
    return [t.to(dtype).requires_grad_() for t in tensors]


def error(found, exact):
    return (found.double() - exact).abs().max()


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
def test_it_errs_at_most_twice_as_much_as_atens(dtype, biased, taken):
    """As its products may, and tanh by a part of a last place."""
    x, weight, bias = operands(dtype)
    bias = bias if biased else None
    a = mg.linear_act(x, weight, bias, "tanh")
    assert taken == [(M, K, N)]
    exact = torch.tanh(F.linear(*[t if t is None else t.double() for t in (x, weight, bias)]))
    native = torch.tanh(F.linear(x, weight, bias))
    assert error(a, exact) <= 2 * error(native, exact) + torch.finfo(dtype).eps / 4
    leaves = [t for t in (x, weight, bias) if t is not None]
    up = torch.randn_like(native)
    found, expected = (torch.autograd.grad(y, leaves, up) for y in (a, native))
    tolerance = 2e-5 if dtype is torch.float32 else 4e-2
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize("depth", [2, 40])
@pytest.mark.parametrize("recompute", [False, True])
def test_in_chains_small_and_large(depth, recompute, taken):
    x, weight, bias = operands(shape=(M, N, N))
    weights = [weight.detach().clone().requires_grad_() for _ in range(depth)]
    a = mg.mlp(x, weights, [bias] * depth, "tanh", recompute=recompute)
    assert taken == [(M, N, N)] * depth
    native = x
    for w in weights:
        native = torch.tanh(F.linear(native, w, bias))
    torch.testing.assert_close(a, native, rtol=1e-4, atol=1e-4)
    found, expected = (torch.autograd.grad(y.sum(), weights) for y in (a, native))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_in_small_chains(taken, monkeypatch):
    x, *layer = operands(shape=(M, N, N))
    params = [p.detach().clone().requires_grad_() for _ in range(3) for p in layer]
    a = mg.mlp(x, params[::2], params[1::2], ["tanh", "relu", "tanh"])
    assert is_small(a)
    assert taken == [(M, N, N)] * 2
    found = torch.autograd.grad(a.square().sum(), params)
    monkeypatch.setattr(small, "BYTES", -1)
    large = mg.mlp(x, params[::2], params[1::2], ["tanh", "relu", "tanh"])
    assert len(taken) == 4
    assert all(map(torch.equal, found, torch.autograd.grad(large.square().sum(), params)))


BIASES = {
    "strided": torch.linspace(-1, 1, 2 * N)[::2],
    "a column": torch.linspace(-1, 1, 3 * N).view(N, 3)[:, 1],
    "expanded": torch.tensor([0.5]).expand(N),
}


@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)
@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
def test_a_bias_that_is_not_contiguous(bias, dtype, taken):
    x, weight, _ = operands(dtype)
    a = mg.linear_act(x, weight, bias.to(dtype), "tanh")
    assert taken
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    expected = torch.tanh(F.linear(x, weight, bias.to(dtype)))
    torch.testing.assert_close(a, expected, rtol=tolerance, atol=tolerance)


def test_values_without_a_number(taken):
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 0.0])
    x = values.repeat(products.TANH // 6 + 1)[:, None]
    a = mg.linear_act(x, torch.ones(1, 1), None, "tanh")
    assert taken
    torch.testing.assert_close(a, torch.tanh(x), rtol=0, atol=0, equal_nan=True)


REFUSED = {
    "few entries": operands(shape=(64, 64, 64)),
    "many terms": operands(shape=(M, N, products.TERMS + 1)),
    "float64": operands(torch.float64),
    "float16": operands(torch.float16),
    "transposed": [operands(shape=(K, N, M))[0].t(), *operands()[1:]],
}


@pytest.mark.parametrize("given", REFUSED.values(), ids=REFUSED)
def test_who_does_not_go_there(given, taken):
    x, weight, bias = given
    a = mg.linear_act(x, weight, bias, "tanh")
    assert not taken
    torch.testing.assert_close(a, torch.tanh(F.linear(x, weight, bias)))


@pytest.mark.parametrize("where", [(0, N, K), (M, 0, K), (M, N, 0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_to_do(where, dtype, taken):
    M, N, K = where
    x, weight, bias = torch.zeros(M, K), torch.zeros(N, K), torch.ones(N)
    a = mg.linear_act(*(t.to(dtype) for t in (x, weight, bias)), "tanh")
    assert not taken
    torch.testing.assert_close(a, torch.ones(M, N).tanh().to(dtype))


def test_nobody_looks_on(taken):
    """Other activations, skips, transforms and modes are left to ATen."""
    x, weight, bias = operands()
    mg.linear_act(x, weight, bias, "sigmoid")
    mg.mlp(operands(shape=(M, N, N))[0], [torch.randn(N, N)], None, "tanh", skips=[mg.Skip(0, 1)])
    torch.func.vmap(lambda one: mg.linear_act(one, weight, bias, "tanh"))(x[None])
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        mg.linear_act(x, weight, bias, "tanh")
    assert counter.get_total_flops() == 2 * M * N * K
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
        mg.linear_act(x, weight, bias, "tanh")
    assert not taken


def test_it_is_measured_for_each_power_of_two(monkeypatch):
    shapes, seconds = [], [2.0, 1.0]
    monkeypatch.setattr(measuring, "_seconds", lambda by, s, _: shapes.append(s[0]) or seconds)
    calls, linear = [], compat.onednn_linear
    monkeypatch.setattr(compat, "onednn_linear", lambda *a: calls.append(a[3]) or linear(*a))
    products.onednn_tanh_wins.cache_clear()
    for K in (1, 32, 33, 64, 250, 256):
        assert products.linear_tanh(*operands(shape=(M, N, K))) is not None
    assert shapes == [(1024, 32), (1024, 64), (1024, 256)]
    assert calls == ["tanh"] * 6
    seconds[0] = 1.1
    assert products.linear_tanh(*operands(shape=(M, N, 64))) is not None  # known by now
    products.onednn_tanh_wins.cache_clear()
    assert products.linear_tanh(*operands(shape=(M, N, 64))) is None
    monkeypatch.setattr(compat, "onednn_linear", None)
    seconds[0] = 2.0
    products.onednn_tanh_wins.cache_clear()
    assert products.linear_tanh(*operands(shape=(M, N, 64))) is None
    products.onednn_tanh_wins.cache_clear()


@pytest.mark.parametrize("act", ["tanh", "relu"])
def test_bfloat16_of_few_products_flushes_nothing(act):
    """oneDNN takes a number below 1e-38 for 0, and 0 times infinity is not a number."""
    x = torch.full((33, 3), 1e-39, dtype=torch.bfloat16)
    W, b = torch.full((3, 3), torch.inf, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.bfloat16)
    ones = mg.linear_act(x, W, b, act)
    chain = mg.mlp(
        x, [W.requires_grad_(), torch.ones(3, 3).to(W).requires_grad_()], [b, b.clone()], act
    )
    assert not ones.isnan().any()
    assert not chain.isnan().any()
