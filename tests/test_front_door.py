"""Bad input in the caller's words; autocast; the transforms that work."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import NAMES

import manualgrad as mg

X, W, B = torch.randn(6, 4), torch.randn(5, 4), torch.randn(5)
W2 = torch.randn(3, 5)

LINEAR = [
    ((X, torch.randn(5, 3)), ValueError, r"input of shape \(6, 4\) has 4 features, but weight of shape \(5, 3\) takes 3"),
    ((X, torch.randn(4, 5)), ValueError, r"looks transposed, pass weight\.T"),
    ((X, torch.randn(4)), ValueError, r"weight has shape \(4,\); give a matrix"),
    ((X, W, torch.randn(4)), ValueError, r"bias has shape \(4,\), but weight of shape \(5, 4\) has 5 outputs"),
    ((X, W, torch.randn(1)), ValueError, r"give shape \(5,\) or None"),
    ((X, W, torch.randn(6, 5)), ValueError, r"bias has shape \(6, 5\)"),
    ((X, W, torch.tensor(1.0)), ValueError, r"bias has shape \(\)"),
    ((torch.tensor(1.0), W), ValueError, "input has no dimension"),
    ((X.double(), W), ValueError, r"input is torch.float64 but weight is torch.float32; cast one, e.g. input.to\(torch.float32\)$"),
    ((X, W, B.double()), ValueError, "input is torch.float32 but bias is torch.float64"),
    ((X, W.to("meta")), ValueError, "input is on cpu but weight is on meta; move one"),
    ((X, W, B.to("meta")), ValueError, "input is on cpu but bias is on meta"),
    ((X.int(), W.int()), TypeError, "input is a tensor of torch.int32; give a dense floating tensor"),
    ((X, W.long()), TypeError, "weight is a tensor of torch.int64"),
    ((X.to(torch.complex64), W), TypeError, "a tensor of torch.complex64 .* which do not take it"),
    ((X.to(torch.complex64), W.to(torch.complex64), None, "gelu"), TypeError, "left to PyTorch's own functions"),
    ((X.to_sparse(), W), TypeError, "torch.sparse_coo"),
    ((X, W.to_sparse()), TypeError, "weight is a tensor of torch.float32 torch.sparse_coo"),
    ((X.tolist(), W), TypeError, "input must be a tensor, got list"),
    ((X, None), TypeError, "weight must be a tensor, got NoneType"),
    ((X, W, 0.0), TypeError, "bias must be a tensor, got float"),
    ((X, W, B, "tahn"), ValueError, "did you mean 'tanh'"),
    ((X, W, B, 7), TypeError, "7 is not an activation"),
]  # fmt: skip

MLP = [
    ((X, [W, W], [B, B], "relu"), ValueError, r"weights\[0\] of shape \(5, 4\) gives 5 features, but weights\[1\] of shape \(5, 4\) takes 4"),
    ((X, [], [], "relu"), ValueError, "weights is empty"),
    ((X, [W, W2], [B], "relu"), ValueError, "2 weights but 1 biases"),
    ((X, [W, W2], None, ["relu"]), ValueError, "2 weights but 1 activations"),
    ((X, [W, W2], [B, B], "relu"), ValueError, r"biases\[1\] has shape \(5,\)"),
    ((X, [W, W2.double()], None, "relu"), ValueError, r"weights\[1\] is torch.float64"),
    ((X, W, None, "relu"), TypeError, "weights must be a list of tensors"),
    ((X, [W], B, "relu"), TypeError, "biases must be a list of tensors"),
    ((X, [W, "W2"], None, "relu"), TypeError, r"weights\[1\] must be a tensor, got str"),
    ((None, [W], None, "relu"), TypeError, "input must be a tensor"),
    ((X, [W, W2], None, ["relu", "gleu"]), ValueError, "unknown activation 'gleu'; did you mean 'gelu'"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "message"), LINEAR)
def test_linear_act_refuses(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        mg.linear_act(*arguments)
    assert str(caught.value).startswith("manualgrad.linear_act: ")


@pytest.mark.parametrize(("arguments", "error", "message"), MLP)
def test_mlp_refuses(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        mg.mlp(*arguments)
    assert str(caught.value).startswith("manualgrad.mlp: ")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_and_complex_tensors_run_on_torchs_own_functions():
    rows = torch.nested.nested_tensor([X[:2], X], layout=torch.jagged)
    got = mg.linear_act(rows, W, B, "gelu")
    torch.testing.assert_close(got.values(), F.gelu(F.linear(rows.values(), W, B)))
    x, w = (t.to(torch.complex128).requires_grad_() for t in (X, W))
    assert torch.autograd.gradcheck(lambda x, w: mg.mlp(x, [w], None, "tanh"), (x, w))


def test_mixed_types_under_autocast_are_refused():
    refused = pytest.raises(ValueError, match=r"input is .*float64 but weight")
    with torch.autocast("cpu", dtype=torch.bfloat16), refused:
        mg.linear_act(X.double(), W)


def test_modules_refuse_in_the_same_words():
    with pytest.raises(ValueError, match=r"manualgrad\.nn\.Linear: .* has 3 features, but weight"):
        mg.nn.Linear(4, 5)(torch.randn(2, 3))
    with pytest.raises(TypeError, match="in_features must be an int"):
        mg.nn.Linear(4.0, 5)


def test_lists_may_be_any_iterable_of_tensors():
    weights = torch.nn.ParameterList([W, W2])
    want = mg.mlp(X, [W, W2], [B, None], ["relu", "tanh"])
    assert torch.equal(mg.mlp(X, weights, (b for b in (B, None)), ("relu", "tanh")), want)
    assert torch.equal(mg.mlp(X, weights, None, F.silu), mg.mlp(X, weights, [None, None], "silu"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["relu", "gelu", "softplus", "identity"])
def test_autocast_gives_nn_linears_dtype(dtype, name):
    layer, net = mg.nn.Linear(4, 5, activation=name), mg.nn.MLP([4, 6, 5], name)
    for module in (layer, net):
        with torch.autocast("cpu", dtype=dtype):
            y = module(X)
            assert y.dtype == F.linear(X, W).dtype == dtype
        y.float().square().sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in module.parameters())
        wide = module(X.double()) if module.double() else None
        with torch.autocast("cpu", dtype=dtype):
            assert module(X.double()).dtype == wide.dtype == torch.float64


def test_backward_inside_autocast_is_the_backward_outside():
    net = mg.nn.MLP([4, 6, 5], "gelu")
    params = list(net.parameters())
    want = torch.autograd.grad(net(X).square().sum(), params)
    loss = net(X).square().sum()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("xpu", enabled=False):
        got = torch.autograd.grad(loss, params)
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


def chain(w, x, name):
    return mg.mlp(x, [w, W2.double()], [B.double(), None], name).square().sum()


def native_chain(w, x, name):
    act = getattr(torch, name, None) or getattr(F, name)
    return act(F.linear(act(F.linear(x, w, B.double())), W2.double())).square().sum()


@pytest.mark.parametrize("name", ["tanh", "gelu", "relu"])
def test_functional_transforms(name):
    w, x = W.double(), X.double()
    for transform in (
        torch.func.grad,
        lambda f: torch.func.vmap(torch.func.grad(f), in_dims=(None, 0, None)),
        lambda f: torch.func.jacrev(torch.func.jacrev(f)),
        lambda f: lambda w, x, n: torch.func.vmap(f, in_dims=(0, None, None))(torch.stack([w, 2 * w]), x, n),
    ):  # fmt: skip
        ours, theirs = transform(chain)(w, x, name), transform(native_chain)(w, x, name)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_every_activation_is_batched_without_a_fallback(name):
    """A missing batching rule is a warning of torch's, and warnings are errors here."""
    x, weights = torch.randn(3, 6, 4).double(), torch.randn(3, 5, 4).double()

    def cost(weight, x):
        return mg.mlp(x, [weight, W2.double()], None, name).square().sum()

    each = [torch.func.grad(cost)(w, rows) for w, rows in zip(weights, x, strict=True)]
    got = torch.func.vmap(torch.func.grad(cost))(weights, x)
    torch.testing.assert_close(got, torch.stack(each))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit's, in torch's own code
def test_forward_mode_of_a_chain():
    """Of every activation in one layer: tests/test_audit.py."""
    x, w = X.double().requires_grad_(), W.double().requires_grad_()
    check = lambda x, w: mg.mlp(x, [w, W2.double()], [B.double(), None], ["gelu", "tanh"])  # noqa: E731
    modes = {"check_batched_grad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(check, (x, w), check_forward_ad=True, **modes)
    assert torch.autograd.gradgradcheck(check, (x, w), check_fwd_over_rev=True)


COMPILE = """
import torch, manualgrad as mg
for name, recompute in (("softsign", True), ("gelu", False)):
    net = mg.nn.MLP([4, 6, 3], name, recompute=recompute).double()
    layer = mg.nn.Linear(3, 2, activation=name).double()
    model = torch.nn.Sequential(net, layer)
    x = torch.randn(5, 4, dtype=torch.float64)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    params = list(model.parameters())
    got = torch.autograd.grad(compiled(x).square().sum(), params)
    want = torch.autograd.grad(model(x).square().sum(), params)
    torch.testing.assert_close(got, want)
"""


def test_compile_without_a_graph_break_as_the_first_call_of_a_process():
    out = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[-2000:]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant):
    w, x = W.double().requires_grad_(), X.double().requires_grad_()
    checkpoint = torch.utils.checkpoint.checkpoint
    loss = checkpoint(chain, w, x, "gelu", use_reentrant=reentrant)
    want = torch.autograd.grad(native_chain(w, x, "gelu"), w)
    loss.backward()
    torch.testing.assert_close(w.grad, want[0])
