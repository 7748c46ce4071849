"""Products of half precision in float32: as right as ATen's, in little memory, where they are faster."""

import logging

import pytest
import torch
import torch.nn.functional as F
from helpers import is_small
from test_products import graphs_of
from torch.utils.flop_counter import FlopCounterMode

import manualgrad as mg
from benchmarks.weighing import peak_bytes
from manualgrad import half_precision, measuring, products

DTYPES = sorted(half_precision.DTYPES, key=str)
M, N, K = 300, 160, 144
both = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture
def made(monkeypatch):
    """Shapes of the products that were made in float32, on a machine where that is faster."""
    found, product = [], half_precision.product

    def counted(left, right, *bias, **into):
        found.append((*left.shape, right.shape[0]))
        return product(left, right, *bias, **into)

    monkeypatch.setattr(half_precision, "product", counted)
    monkeypatch.setattr(half_precision, "wins", lambda *_: True)
    monkeypatch.setattr(half_precision, "GRAPH", 1)
    return found


@pytest.fixture
def blocks(monkeypatch):
    monkeypatch.setattr(half_precision, "SIDE", 32)
    monkeypatch.setattr(half_precision, "ENTRIES", 32 * 40)


def operands(dtype, *shapes):
    return [torch.randn(shape).to(dtype) for shape in shapes]


def near(found, exact):
    """Rounded once, after sums in float32."""
    sums = 64 * torch.finfo(torch.float32).eps * exact.abs().max()
    torch.testing.assert_close(
        found.double(), exact, rtol=torch.finfo(found.dtype).eps / 2, atol=sums.item()
    )


@both
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(M, N, K), (16, 700, 300), (700, 17, 300), (16, 40, 2000)])
@pytest.mark.parametrize("block", ["as shipped", "small"])
def test_a_sum_is_rounded_once(block, shape, biased, dtype, request, made):
    if block == "small":
        request.getfixturevalue("blocks")
    M, N, K = shape
    x, weight, bias, delta, into = operands(dtype, (M, K), (N, K), (N,), (M, N), (N, K))
    bias = bias if biased else None
    double = [t if t is None else t.double() for t in (x, weight, bias, delta, into)]
    near(products.linear(x, weight, bias), F.linear(*double[:3]))
    near(products.error_below(delta, weight), double[3] @ double[1])
    near(products.weight_gradient(delta, x), double[3].t() @ double[0])
    assert products.weight_gradient(delta, x, into) is into
    near(into, double[4] + double[3].t() @ double[0])
    assert made == [(M, K, N), (M, N, K), (N, M, K), (N, M, K)]


@both
def test_strides_of_any_kind(dtype, made, blocks):
    x, weight, bias = operands(dtype, (K, 2 * M), (N, 2 * K), (N, 2))
    x, weight, bias = x[:, ::2].t(), weight[:, 1::2], bias[:, 0]
    near(products.linear(x, weight, bias), F.linear(x.double(), weight.double(), bias.double()))
    one = torch.ones((), dtype=dtype)
    delta = one.expand(M, N)
    near(products.error_below(delta, weight), delta.double() @ weight.double())
    near(products.weight_gradient(delta, x), delta.double().t() @ x.double())
    near(products.linear(x, weight, one.expand(N)),
         F.linear(x.double(), weight.double()) + 1)  # fmt: skip
    assert len(made) == 4


@both
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_so(value, dtype, made, blocks):
    x, weight = operands(dtype, (M, K), (N, K))
    x[5, 7] = value
    found = products.linear(x, weight, None)
    expected = F.linear(x.float(), weight.float())
    torch.testing.assert_close(found[5].float(), expected[5], equal_nan=True)
    assert found[6:].isfinite().all()


def test_what_is_too_large_for_float16_is_infinite(made):
    x = torch.full((M, K), 100.0, dtype=torch.float16)
    assert products.linear(x, x, None).isposinf().all()


@both
@pytest.mark.parametrize("act", ["identity", "relu", "tanh", "gelu"])
@pytest.mark.parametrize(("rows", "little"), [(M, True), (4000, False)], ids=["few", "many"])
def test_chains_use_them_in_every_product(rows, little, act, dtype, made, monkeypatch):
    shapes = [(rows, K), (N, K), (N,), (K, N), (K,)]
    leaves = [(t / t.shape[-1] ** 0.5).requires_grad_() for t in operands(dtype, *shapes)]

    def chain(leaves):
        return mg.mlp(leaves[0], leaves[1::2], leaves[2::2], act)

    def gradients(leaves):
        return torch.autograd.grad(chain(leaves).square().sum(), leaves)

    assert is_small(chain(leaves)) is little
    made.clear()
    found = gradients(leaves)
    layers = [(rows, K, N), (rows, N, K)]  # BP2 of the one has the shape of the other's forward
    assert sorted(made) == sorted([*layers, *layers, (K, rows, N), (N, rows, K)])
    made.clear()
    exact = gradients([leaf.detach().double().requires_grad_() for leaf in leaves])
    monkeypatch.setattr(half_precision, "wins", lambda *_: False)
    for mine, native, right in zip(found, gradients(leaves), exact, strict=True):
        allowed = 2 * (native - right).norm() + torch.finfo(dtype).eps * right.norm() / 8
        assert (mine - right).norm() <= allowed
    assert not made


@pytest.mark.parametrize(
    "what",
    ["float32", "little", "thin", "of two dtypes", "counted", "transformed", "no faster"],
)
def test_what_is_left_to_aten(what, made, monkeypatch):
    dtype = torch.float32 if what == "float32" else torch.bfloat16
    x, weight, bias = operands(dtype, (M, K), (N, K), (N,))
    if what == "little":
        products.linear(x[:16, :64], weight[:100, :64], bias[:100])
    elif what == "thin":
        products.linear(x[:15], weight, bias)
        products.linear(x, weight[:15], None)
        products.error_below(x[:1], weight.t())
        products.weight_gradient(x, x[:, :7])
    elif what == "of two dtypes":
        for others in ((weight.half(), None), (weight, bias.double())):
            with pytest.raises(RuntimeError):
                products.linear(x, *others)
        with pytest.raises(RuntimeError):
            products.weight_gradient(x, x, torch.zeros(K, K))
    elif what == "counted":
        with FlopCounterMode(display=False) as counter:
            products.linear(x, weight, bias)
        assert counter.get_total_flops() == 2 * M * N * K
    elif what == "transformed":
        torch.func.vmap(lambda one: mg.linear_act(one, weight, bias))(x[None])
    else:
        if what == "no faster":
            monkeypatch.setattr(half_precision, "wins", lambda *_: False)
        products.linear(x, weight, bias)
        products.error_below(x, weight.t().contiguous())
        products.weight_gradient(x, x)
    assert not made


@both
def test_it_takes_little_memory(dtype, made):
    """Three blocks, whatever the size: the two factors and the sum."""
    x, weight, delta, bias = operands(dtype, (5000, 600), (1200, 600), (5000, 1200), (1200,))
    blocks = 3 * half_precision.ENTRIES * 4
    into = torch.zeros_like(weight)
    assert peak_bytes(lambda: products.weight_gradient(delta, x, into), "cpu") <= blocks
    for call, result in (
        (lambda: products.linear(x, weight, None), delta),
        (lambda: products.linear(x, weight, bias), delta),
        (lambda: products.error_below(delta, weight), x),
        (lambda: products.weight_gradient(delta, x), weight),
    ):
        assert peak_bytes(call, "cpu") <= result.nbytes + blocks
    assert made


def test_the_faster_one_is_found_by_measuring(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "manualgrad")
    assert set(half_precision.PRODUCTS) == {"linear", "error_below", "weight_gradient"}
    for seconds, wins in (([2.0, 1.0], True), ([1.1, 1.0], False), ([1.0, 2.0], False)):
        monkeypatch.setattr(measuring, "_seconds", lambda *given, seconds=seconds: seconds)
        assert half_precision.wins.__wrapped__("error_below", torch.float16, 2) is wins
    assert "on 2 threads, torch.float16, error_below in float32 is 2.00 times" in caplog.text


@pytest.mark.parametrize("name", half_precision.PRODUCTS)
@both
def test_what_is_measured_is_that_product(dtype, name):
    here, by_aten = half_precision.PRODUCTS[name]
    left, right = operands(dtype, (64, 64), (64, 64))
    expected = {
        "linear": left.double() @ right.double().t(),
        "error_below": left.double() @ right.double(),
        "weight_gradient": left.double().t() @ right.double(),
    }
    near(here(left, right), expected[name])
    assert (by_aten(left, right) - expected[name]).norm() <= 0.01 * expected[name].norm()


def test_a_slow_way_is_measured_briefly():
    """Three rounds, where they take longer than what there is for it."""
    calls = []

    def slow(a):
        calls.append(a.shape)
        torch.randn(400, 400) @ torch.randn(400, 400)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "SECONDS", 0.0)
        measuring.clearly_faster("it", slow, slow, [(2, 3)], torch.float32, 1)
    assert calls == [(2, 3)] * 6


def test_float16_keeps_its_digits(made):
    """Where float32 may be multiplied with fewer, by torch.set_float32_matmul_precision."""
    x, weight = operands(torch.float16, (M, K), (N, K))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        products.linear(x, weight, None)
        assert not made
        products.linear(x.bfloat16(), weight.bfloat16(), None)  # has no more digits
        assert made
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_graph_that_runs_under_autocast(made):
    """It is not autocast's to make a half of what became float32."""
    x, weight = (t.requires_grad_() for t in operands(torch.bfloat16, (M, 700), (N, 700)))
    step = torch.compile(lambda *t: mg.linear_act(*t, None, "gelu"), backend="aot_eager")
    a = step(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(a.sum(), (x, weight))
        near(products.linear(x.detach(), weight.detach(), None),
             F.linear(x.detach().double(), weight.detach().double()))  # fmt: skip
    assert len(made) == 4
    double = [t.detach().double().requires_grad_() for t in (x, weight)]
    exact = torch.autograd.grad(F.gelu(F.linear(*double)).sum(), double)
    for mine, right in zip(found, exact, strict=True):
        assert (mine - right).norm() <= torch.finfo(torch.bfloat16).eps * right.norm()


@pytest.mark.parametrize("dynamic", [False, True])
@both
def test_a_compiler_leaves_us_these_products(dtype, dynamic, made):
    found, backend = graphs_of()
    step = torch.compile(
        lambda x, *params: mg.mlp(x, params[::2], params[1::2], "gelu"),
        backend=backend, fullgraph=True,
    )  # fmt: skip
    shapes = (M, K), (N, K), (N,), (K, N), (K,)
    leaves = [(t / t.shape[-1] ** 0.5).requires_grad_() for t in operands(dtype, *shapes)]
    if dynamic:
        torch._dynamo.mark_dynamic(leaves[0], 0)
    compiled = torch.autograd.grad(step(*leaves).sum(), leaves)
    ours = {name.split(".")[1] for name in found if name.startswith("manualgrad")}
    assert ours == {"linear", "error_below", "weight_gradient"}
    assert len(made) == 6
    eager = mg.mlp(leaves[0], leaves[1::2], leaves[2::2], "gelu")
    for mine, expected in zip(compiled, torch.autograd.grad(eager.sum(), leaves), strict=True):
        assert (mine - expected).norm() <= 4 * torch.finfo(dtype).eps * expected.norm()
