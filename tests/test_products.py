"""Products by oneDNN: right, only where they can be, and only where they are faster."""

import contextlib

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.utils.flop_counter import FlopCounterMode

import manualgrad as mg
from manualgrad import compat, measuring, products

M, N, K = 1200, 480, 448

pytestmark = pytest.mark.skipif(
    compat.onednn_linear is None or not torch.backends.mkldnn.is_available(),
    reason="torch was built without oneDNN",
)


@pytest.fixture
def calls(monkeypatch):
    """Shapes that oneDNN was given, on a machine where it wins."""
    found, linear = [], compat.onednn_linear

    def counted(x, weight, *rest):
        found.append((tuple(x.shape), tuple(weight.shape)))
        return linear(x, weight, *rest)

    monkeypatch.setattr(compat, "onednn_linear", counted)
    monkeypatch.setattr(products, "onednn_wins", lambda threads: True)
    monkeypatch.setattr(products, "BLOCK", 1 << 20)
    monkeypatch.setattr(products, "GRAPH", 1 << 20)
    return found


def operands(*shapes):
    return [torch.randn(shape) for shape in shapes]


def near(found, exact, native):
    """At most twice as far off as MKL, on the whole and, but for a last place, at the worst."""
    scale = exact.abs().max() * torch.finfo(torch.float32).eps
    assert (found - exact).abs().max() <= 2 * (native - exact).abs().max() + scale
    assert (found - exact).norm() <= 2 * (native - exact).norm()


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("make", [torch.randn, torch.rand], ids=["both signs", "positive"])
@pytest.mark.parametrize(
    "shape", [(M, N, K), (4100, 256, 64), (520, 2050, 400), (300, 400, 2050), (4224, 256, 256)]
)
def test_products_err_at_most_twice_as_much_as_mkls(shape, make, biased, calls):
    M, N, K = shape
    x, weight, bias, delta = map(make, ((M, K), (N, K), (N,), (M, N)))
    bias = bias if biased else None
    double = [t if t is None else t.double() for t in (x, weight, bias, delta)]
    near(products.linear(x, weight, bias), torch.nn.functional.linear(*double[:3]),
         torch.nn.functional.linear(x, weight, bias))  # fmt: skip
    near(products.error_below(delta, weight), double[3] @ double[1], delta @ weight)
    found = products.weight_gradient(delta, x, None)
    exact = double[3].t() @ double[0]
    near(found, exact, delta.t() @ x)
    assert all(left[1] <= products.TERMS for left, _ in calls)
    into = torch.randn(N, K)
    near(products.weight_gradient(delta, x, into.clone()), into + exact,
         into.addmm(delta.t(), x))  # fmt: skip


def test_a_sum_is_cut_into_blocks(calls):
    """oneDNN's error grows with the terms that it adds up in one row."""
    x, weight, delta = operands((M, K), (N, K), (M, N))
    rows = M // 4
    for made, expected in (
        (lambda: products.linear(x, weight, None), [((rows, 224), (N, 224))] * 4 * 2),
        (lambda: products.error_below(delta, weight), [((rows, 240), (K, 240))] * 4 * 2),
        (lambda: products.weight_gradient(delta, x, None),
         [((240, 240), (K, 240))] * 2 * 5),
    ):  # fmt: skip
        calls.clear()
        made()
        assert calls == expected


def test_bp2_over_delta(calls):
    delta, square, fewer, more, narrow = operands((M, N), (N, N), (N, K), (N, 600), (64, K))

    def right(weight, at_peak):
        mine = delta.clone()
        found = products.error_below(mine, weight, True, at_peak)
        near(found, delta.double() @ weight.double(), delta @ weight)
        assert found.is_contiguous()
        return found is mine, torch.equal(mine, delta)

    for at_peak in (True, False):
        assert right(square, at_peak) == (True, False)
        assert right(fewer, at_peak) == (False, False)  # made there, and copied from there
        calls.clear()
        assert right(more, at_peak) == (False, True)
        assert bool(calls) is not at_peak  # blocks take memory, and 480 terms are too long a row
    products.error_below(delta[:, :64].contiguous(), narrow, True, True)
    assert calls[-1] == ((M, 64), (K, 64))


def test_what_is_added_to_is_the_result():
    delta, x, into = operands((M, N), (M, K), (N, K))
    assert products.weight_gradient(delta, x, into) is into


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("act", ["relu", "tanh", "gelu"])
def test_what_is_not_finite_stays_so(value, act, calls):
    """oneDNN's own relu makes 0 of NaN, so sigma is never left to it."""
    x, weight = operands((M, K), (N, K))
    x[5, 7] = value
    a = mg.linear_act(x, weight, None, act)
    z = torch.nn.functional.linear(x, weight)
    expected = {"relu": torch.relu, "tanh": torch.tanh}.get(act)
    assert calls
    if expected:
        torch.testing.assert_close(a[5], expected(z[5]), equal_nan=True)
    assert torch.equal(a[5].isnan().any(), z[5].isnan().any()) or act == "gelu"


def test_a_chain_uses_it_in_every_product(calls):
    x, w1, b1, w2, b2 = (t.requires_grad_() for t in operands((M, K), (N, K), (N,), (K, N), (K,)))
    leaves = [x, w1, b1, w2, b2]
    found = torch.autograd.grad(mg.mlp(x, [w1, w2], [b1, b2], "silu").square().sum(), leaves)
    shapes = {shape for call in calls for shape in call}
    assert shapes == {
        *((M // 4, 224), (N, 224), (M // 4, 240), (K, 240)),  # forward, and BP2 by W^T
        *((240, 240), (K, 240), (N, 240)),  # BP4
    }
    double = [leaf.detach().double().requires_grad_() for leaf in leaves]
    z = torch.nn.functional.silu(torch.nn.functional.linear(*double[:3]))
    a = torch.nn.functional.silu(torch.nn.functional.linear(z, *double[3:]))
    for mine, exact in zip(found, torch.autograd.grad(a.square().sum(), double), strict=True):
        assert (mine - exact).norm() <= 1e-5 * exact.norm()


@pytest.mark.parametrize("what", ["double", "small", "strided", "expanded", "narrow"])
def test_what_is_left_to_aten(what, calls):
    x, weight = operands((M, K), (N, K))
    if what == "double":
        products.linear(x.double(), weight.double(), None)
    elif what == "small":
        products.linear(x[:4], weight, None)
    elif what == "strided":
        products.linear(x[:, ::2], weight[:, ::2], None)
    elif what == "narrow":
        products.weight_gradient(*operands((8192, 64), (8192, 512)), None)
    else:
        products.error_below(torch.ones(()).expand(M, N), weight)
    assert not calls


def test_blocks_that_would_be_small_are_left_to_aten(calls, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(products, "onednn_wins", lambda threads: True)
    monkeypatch.setattr(products, "_in_blocks", lambda *rest, **more: calls.append(rest))
    x, weight = operands((128, 300), (300, 300))
    products.linear(x, weight, None)
    assert not calls
    products.linear(x.repeat(4, 1), weight, None)
    products.linear(*operands((512, 128), (128, 128)), None)
    assert len(calls) == 2


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch's remark on its own flags
def test_onednn_that_is_switched_off_stays_off(calls):
    x, weight = operands((M, K), (N, K))
    with torch.backends.mkldnn.flags(enabled=False):
        products.linear(x, weight, None)
    assert not calls
    products.linear(x, weight, None)
    assert calls


def test_where_nobody_may_look_inside(calls):
    x, weight = operands((M, K), (N, K))
    with FlopCounterMode(display=False) as counter:
        mg.linear_act(x, weight)
    assert counter.get_total_flops() == 2 * M * N * K
    torch.func.vmap(lambda row: mg.linear_act(row, weight))(x[None])
    assert not calls


@pytest.mark.parametrize("K", [64, 300])
def test_a_bias_that_is_not_contiguous(K, calls):
    """oneDNN reads on from its first entry, whatever its stride."""
    x, weight = operands((2048, K), (256, K))
    for bias in (torch.randn(512)[::2], torch.randn(256, 3)[:, 1], torch.randn(1).expand(256)):
        calls.clear()
        a = products.linear(x, weight, bias)
        assert calls
        expected = torch.nn.functional.linear(x, weight, bias)
        torch.testing.assert_close(a, expected, rtol=1e-4, atol=1e-4)


def test_empty_batches_and_inner_dimensions(calls):
    weight, bias = operands((N, 0), (N,))
    a = products.linear(torch.empty(0, 0), weight, bias)
    assert a.shape == (0, N)
    assert products.weight_gradient(torch.empty(0, N), torch.empty(0, K), None).count_nonzero() == 0
    assert torch.equal(products.linear(torch.empty(3, 0), weight, bias), bias.expand(3, N))


def test_the_faster_one_is_found_by_measuring(monkeypatch):
    for seconds, wins in (([2.0, 1.0], True), ([1.1, 1.0], False), ([1.0, 2.0], False)):
        monkeypatch.setattr(measuring, "_seconds", lambda *given, seconds=seconds: seconds)
        assert products.onednn_wins.__wrapped__(2) is wins
    monkeypatch.setattr(compat, "onednn_linear", None)
    assert products.onednn_wins.__wrapped__(2) is False


@pytest.mark.parametrize("top", ["identity", "relu", "gelu"])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("more", [None, "skip", "capture"])
def test_what_arrives_is_not_written_over(more, depth, top, calls, monkeypatch):
    """BP2 writes over delta, but not where that is the gradient which autograd brought."""
    x, *params = operands((M, N), *[(N, N), (N,)] * depth)
    leaves = [leaf.mul_(leaf.shape[-1] ** -0.5).requires_grad_() for leaf in (x, *params)]
    acts = [*["relu", "gelu"][: depth - 1], top]
    skips = [mg.Skip(0, depth, "post")] if more == "skip" else []

    def gradients(leaves):
        a = mg.mlp(leaves[0], leaves[1::2], leaves[2::2], acts, skips=skips)
        if depth == 1 and not skips:
            a = mg.linear_act(*leaves, acts[0])
        torch.manual_seed(1)
        arrives = torch.randn(a.shape).to(a)
        before = arrives.clone()
        found = torch.autograd.grad(a, leaves, arrives)
        assert torch.equal(arrives, before)
        return found

    with mg.capture() if more == "capture" else contextlib.nullcontext() as cap:
        found = gradients(leaves)
    for use, grad in zip(cap.layers if cap else [], found[2::2], strict=more == "capture"):
        assert torch.equal(use.delta.sum(0), grad)  # what it holds is not written over either
    assert calls or (depth, top) == (1, "identity")
    monkeypatch.setattr(products, "onednn_wins", lambda threads: False)
    exact = gradients([leaf.detach().double().requires_grad_() for leaf in leaves])
    for mine, native, right in zip(found, gradients(leaves), exact, strict=True):
        error, allowed = (mine - right).norm(), (native - right).norm()
        assert error <= 2 * allowed + torch.finfo(torch.float32).eps * right.norm()


def graphs_of():
    """Names of the operators in what torch.compile makes, forward and backward."""
    torch._dynamo.reset()
    found = []

    def note(module, inputs):
        found.extend(str(node.target) for node in module.graph.nodes if node.op == "call_function")
        return make_boxed_func(module.forward)

    return found, aot_autograd(fw_compiler=note)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("act", ["relu", "gelu"])
def test_a_compiler_leaves_us_the_products_that_we_make_faster(act, dynamic, calls):
    found, backend = graphs_of()
    step = torch.compile(
        lambda x, *params: mg.mlp(x, params[::2], params[1::2], act),
        backend=backend, fullgraph=True,
    )  # fmt: skip
    leaves = [t.requires_grad_() for t in operands((M, K), (N, K), (N,), (K, N), (K,))]
    if dynamic:
        torch._dynamo.mark_dynamic(leaves[0], 0)
    compiled = torch.autograd.grad(step(*leaves).sum(), leaves)
    ours = {name.split(".")[1] for name in found if name.startswith("manualgrad")}
    assert ours == {"linear", "error_below", "weight_gradient"}
    assert calls
    eager = mg.mlp(leaves[0], leaves[1::2], leaves[2::2], act)
    for mine, expected in zip(compiled, torch.autograd.grad(eager.sum(), leaves), strict=True):
        assert (mine - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("why", ["slower", "small", "double"])
def test_a_compiler_sees_inside_the_others(why, calls, monkeypatch):
    if why == "slower":
        monkeypatch.setattr(products, "onednn_wins", lambda threads: False)
    found, backend = graphs_of()
    x, weight, bias = operands((8 if why == "small" else M, K), (N, K), (N,))
    if why == "double":
        x, weight, bias = x.double(), weight.double(), bias.double()
    torch.compile(lambda *t: mg.linear_act(*t), backend=backend, fullgraph=True)(x, weight, bias)
    assert found
    assert not any(name.startswith("manualgrad") for name in found)
