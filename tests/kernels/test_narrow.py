"""Whole chains in one kernel each way: against PyTorch's own operations, and through autograd."""

import pytest
import torch
from cases import DEVICE, NAMES, normal
from narrow_chains import SKIPS, both, compare, operands

import manualgrad as mg
from manualgrad import narrow
from manualgrad.activations import ACTIVATIONS
from manualgrad.chain import Chain
from manualgrad.walks import IDENTITY

BOTH_WAYS = ["narrow_forward_kernel", "narrow_backward_kernel"]


@pytest.mark.parametrize("name", NAMES)
def test_every_activation(name, launched):
    acts = (name, "gelu", name)
    tensors = operands(21, [5, 9, 7, 3])
    tensors[1].data *= 0.5
    compare(acts, [], tensors, launched, BOTH_WAYS)


@pytest.mark.parametrize("kind", SKIPS)
@pytest.mark.parametrize("acts", [("gelu", "tanh", "silu", "relu"), ("relu",) * 4], ids=str)
def test_skips(kind, acts, launched):
    compare(acts, SKIPS[kind], operands(37, [6] * 5), launched, BOTH_WAYS)


@pytest.mark.parametrize("M", [1, 15, 16, 17, 33, 65])
@pytest.mark.parametrize("biased", [True, False])
def test_rows_and_biases(M, biased, launched):
    compare(("silu", "identity"), [], operands(M, [3, 18, 1], biased), launched, BOTH_WAYS)


@pytest.mark.parametrize("depth", [2, 5, 6, 8])
@pytest.mark.parametrize("width", [8, 64])
def test_depths_with_and_without_scratch_memory(depth, width, launched):
    sizes = [width] * (depth + 1)
    skips = [mg.Skip(1, depth, "out", 0.5)]
    compare(("gelu", "tanh") * (depth // 2) + ("gelu",) * (depth % 2), skips,
            operands(20, sizes), launched, BOTH_WAYS)  # fmt: skip


def test_float32(launched):
    compare(("gelu", "silu", "identity"), [], operands(40, [3, 32, 32, 2], dtype=torch.float32),
            launched, BOTH_WAYS, 1e-4)  # fmt: skip


@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter's bfloat16 products are garbage")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype, launched):
    """As near to float64 as eager is, up to a factor of two."""
    tensors = operands(1000, [16, 64, 64, 64, 4], dtype=dtype)
    acts = ("gelu", "relu", "silu", "identity")
    ours, native = both(acts, [])
    leaves = [tensor.requires_grad_() for tensor in tensors]
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    found = torch.autograd.grad(ours(*leaves).sum(), leaves)
    eager = torch.autograd.grad(native(*leaves).sum(), leaves)
    truth = torch.autograd.grad(native(*exact).sum(), exact)
    for mine, theirs, true in zip(found, eager, truth, strict=True):
        allowed = 2 * (theirs - true).norm() + torch.finfo(dtype).eps * true.norm()
        assert (mine - true).norm() <= allowed
    assert launched == BOTH_WAYS


def test_shared_weights_have_one_gradient(launched):
    x, w, b, v = normal(19, 6), normal(6, 6), normal(6), normal(6, 6)
    leaves = [tensor.requires_grad_() for tensor in (x, w, b, v)]

    def chain(backend):
        with mg.backend(backend):
            return mg.mlp(x, [w, v, w, w], [b, None, b, None], "tanh")

    found, expected = (torch.autograd.grad(chain(b).sum(), leaves) for b in ("narrow", "torch"))
    torch.testing.assert_close(found, expected)
    assert launched == BOTH_WAYS


@pytest.mark.parametrize(("depth", "fits"), [(12, True), (16, True), (17, False)])
def test_long_chains_of_shared_layers(depth, fits, launched):
    x, w, b = (tensor.requires_grad_() for tensor in (normal(5, 6), normal(6, 6) / 2, normal(6)))
    weights, biases, skips = [w] * depth, [b] * depth, [mg.Skip(2, depth, "out")]

    def chain(backend):
        with mg.backend(backend):
            return mg.mlp(x, weights, biases, "silu", skips=skips)

    if not fits:
        with pytest.raises(ValueError, match="17 layers, 1 of them with parameters of their own"):
            chain("narrow")
        return
    found, expected = (torch.autograd.grad(chain(m).sum(), [x, w, b]) for m in ("narrow", "torch"))
    torch.testing.assert_close(found, expected)
    assert launched == BOTH_WAYS


@pytest.mark.parametrize("frozen", [[0], [1], [2, 3], [0, 1, 2, 3], [4, 5]], ids=str)
def test_frozen_tensors_have_none(frozen):
    tensors = operands(9, [4, 5, 6, 2])
    ours, native = both(("gelu", "silu", "identity"), [])
    wanted = [t.requires_grad_() for i, t in enumerate(tensors) if i not in frozen]
    found, expected = (torch.autograd.grad(net(*tensors).sum(), wanted) for net in (ours, native))
    torch.testing.assert_close(found, expected)


def test_gradcheck_and_second_derivatives():
    tensors = [tensor.requires_grad_() for tensor in operands(4, [3, 5, 2])]
    ours, _ = both(("silu", "tanh"), [])
    assert torch.autograd.gradcheck(ours, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(ours, tensors, fast_mode=True)


def test_strided_operands_and_gradients(launched):
    x, w1, b1, w2, b2 = operands(12, [6, 5, 4])
    x, w1, b1 = x.t().contiguous().t(), w1.t().contiguous().t(), b1.repeat_interleave(2)[::2]
    compare(("gelu", "relu"), [], [x, w1, b1, w2, b2], launched, BOTH_WAYS)
    leaves = [x, w1]
    ours, native = both(("gelu", "relu"), [])
    found, expected = (
        torch.autograd.grad(net(x, w1, b1, w2, b2).sum(), leaves) for net in (ours, native)
    )  # an expanded gradient
    torch.testing.assert_close(found, expected)


def test_only_the_input_and_parameters_are_kept():
    kept = []
    tensors = [tensor.requires_grad_() for tensor in operands(9, [4, 5, 5, 2])]
    ours, _ = both(("gelu", "gelu", "gelu"), [])
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ours(*tensors)
    assert {id(t) for t in kept} <= {id(t) for t in tensors}


def test_an_infinite_activation_of_no_example_stays_out(launched):
    """Rows beyond the last example have no gradient, whatever their activations would be."""
    x, w1, b1, *above = operands(3, [2, 4, 4, 2])
    x.fill_(-0.5)
    w1.fill_(1e308)
    b1.fill_(1e308)  # z1 = 0; on a row of zeros z2 would be infinite
    above[0].fill_(1e10)
    compare(("relu", "relu", "identity"), [], [x, w1, b1, *above], launched, BOTH_WAYS)


def test_hooks_on_single_layers_take_the_layers_one_by_one(launched):
    tensors = [tensor.requires_grad_() for tensor in operands(5, [3, 4, 2])]
    ours, native = both(("gelu", "identity"), [])
    a = ours(*tensors)
    with torch.enable_grad():
        found = torch.autograd.grad(a.sum(), tensors, create_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(native(*tensors).sum(), tensors))
    assert launched == ["narrow_forward_kernel"] * 2  # then with what each layer keeps


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ([3, 4], "one layer"),
        ([3] * 10, "9 layers, 9 of them"),
        ([3, 129, 2], "129 neurons"),
        ([3, 0, 2], "empty"),
    ],
)
def test_what_does_not_fit_is_refused(sizes, match, kernels):
    ours, _ = both(("relu",) * (len(sizes) - 1), [])
    with pytest.raises(ValueError, match=match):
        ours(*operands(5, sizes))


def test_a_learned_scale_is_refused():
    scale = torch.ones((), dtype=torch.float64, device=DEVICE, requires_grad=True)
    ours, _ = both(("relu",) * 2, [mg.Skip(0, 1, "post", scale)])
    x, *params = operands(5, [4, 4, 4])
    with pytest.raises(ValueError, match="scale of a skip is a tensor"):
        ours(x, *params)


def test_shapes_are_checked_before_a_kernel_reads(kernels):
    x, w1, b1, w2, b2 = operands(5, [3, 4, 2])
    layers = [kernels.Layer(ACTIVATIONS["relu"], l) for l in range(2)]
    with pytest.raises(ValueError, match=r"weight has shape \(2, 4\)"):
        kernels.narrow_forward(x, [w2, w2], [b1, b2], layers)
    with pytest.raises(ValueError, match="grad_a"):
        kernels.narrow_backward(x, x, [w1, w2], [b1, b2], layers)


@pytest.mark.skipif(DEVICE == "cpu", reason="on a CPU nothing is chosen")
def test_what_is_chosen_on_a_gpu(launched):
    for dtype, kernels in ((torch.bfloat16, 1), (torch.float32, 0)):
        launched.clear()
        x, *params = operands(64, [3, 32, 32, 4], dtype=dtype)
        mg.mlp(x, params[::2], params[1::2], "relu")
        assert launched.count("narrow_forward_kernel") == kernels


def test_the_fallback_is_named():
    x, *params = operands(5, [3, 4, 2], dtype=torch.float32)
    chain = Chain((IDENTITY, ACTIVATIONS["relu"], ACTIVATIONS["relu"]))
    told = narrow.why_not(chain, x, params)[0]
    assert told == narrow.NO_GPU if DEVICE == "cpu" else "tensor cores" in told
    for mode in ("torch", "triton"):
        with mg.backend(mode):
            told = narrow.why_not(chain, x, params)[0]
        assert told == narrow.NO_GPU if DEVICE == "cpu" else mode in told


def test_explain_says_which_way_a_chain_goes():
    x, weight = normal(5, 8), normal(8, 8)
    with mg.backend("narrow"):
        assert mg.explain(x, weight, "gelu", depth=3).narrow is None
        assert "3 such layers runs in one kernel" in repr(mg.explain(x, weight, "gelu", depth=3))
        told = mg.explain(x, weight, "gelu", depth=9)
        assert "9 layers, 9 of them with parameters of their own" in told.narrow
        assert "not in one kernel each way" in repr(told)
        wide = mg.explain(normal(5, 80), normal(80, 80), "gelu", depth=3)
        assert wide.narrow_forward is None
        assert "80 neurons" in wide.narrow
        assert "runs forward in one kernel" in repr(wide)
