"""The losses against torch's: values, gradients of every order, what is refused."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers import f64
from selection import pairwise
from torch.autograd import gradcheck, gradgradcheck

import manualgrad as mg

SHAPES = [(5,), (4, 5), (3, 5, 2), (2, 5, 3, 2)]
REDUCTIONS = ["mean", "sum", "none"]
reductions = pytest.mark.parametrize("reduction", REDUCTIONS)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def targets(shape):
    return torch.randint(0, 5, shape[:1] + shape[2:] if len(shape) > 1 else ())


def assert_same(ours, theirs, *tensors):
    """Equal values, equal first and second derivatives."""
    mine = [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]
    native = [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]
    results = []
    for loss, inputs in ((ours, mine), (theirs, native)):
        live = [t for t in inputs if t.requires_grad]
        value = loss(*inputs)
        torch.manual_seed(1)
        first = torch.autograd.grad(value, live, torch.randn_like(value), create_graph=True)
        second = torch.autograd.grad(sum(g.sin().sum() for g in first), live, allow_unused=True)
        results.append((value, *first, *second))
    assert torch.equal(results[0][0], results[1][0])
    for m, n in zip(*results, strict=True):
        m, n = (torch.zeros(()) if g is None or not g.any() else g for g in (m, n))
        torch.testing.assert_close(m, n, rtol=1e-12, atol=1e-13)


@pairwise(
    "reduction, shape, weighted, label_smoothing, ignore_index",
    *(REDUCTIONS, SHAPES, [False, True], [0.0, 0.2], [-100, 2]),
)
def test_cross_entropy_of_indices(reduction, shape, weighted, label_smoothing, ignore_index):
    z, target = f64(*shape), targets(shape)
    target.view(-1)[0] = 1  # not every example is ignored
    weight = torch.rand(5, dtype=torch.float64) if weighted else None
    options = {"label_smoothing": label_smoothing, "ignore_index": ignore_index}

    def ours(z):
        return mg.cross_entropy(z, target, weight, reduction=reduction, **options)

    assert_same(
        ours, lambda z: F.cross_entropy(z, target, weight, reduction=reduction, **options), z
    )
    assert gradcheck(ours, z)
    assert gradgradcheck(ours, z)


@pairwise("reduction, shape, label_smoothing", REDUCTIONS, SHAPES, [0.0, 0.2])
def test_cross_entropy_of_probabilities(reduction, shape, label_smoothing):
    options = {"label_smoothing": label_smoothing, "reduction": reduction}
    z, y, w = f64(*shape), f64(*shape).detach().softmax(0).requires_grad_(), f64(5)
    assert_same(
        lambda z, y, w: mg.cross_entropy(z, y, w, **options),
        lambda z, y, w: F.cross_entropy(z, y, w, **options),
        z,
        y,
        w,
    )
    assert_same(
        lambda z: mg.cross_entropy(z, y, **options), lambda z: F.cross_entropy(z, y, **options), z
    )
    assert gradcheck(lambda *t: mg.cross_entropy(*t, **options), (z, y, w))
    assert gradgradcheck(lambda *t: mg.cross_entropy(*t, **options), (z, y, w))


@pairwise("reduction, shape, weighted, positive", REDUCTIONS, SHAPES, [False, True], [False, True])
def test_binary_cross_entropy(reduction, shape, weighted, positive):
    z, y = f64(*shape), f64(*shape).detach().sigmoid().requires_grad_()
    options = {
        "weight": torch.rand(shape, dtype=torch.float64) if weighted else None,
        "pos_weight": torch.rand(shape[-1], dtype=torch.float64) if positive else None,
        "reduction": reduction,
    }

    def ours(z, y):
        return mg.binary_cross_entropy_with_logits(z, y, **options)

    assert_same(ours, lambda z, y: F.binary_cross_entropy_with_logits(z, y, **options), z, y)
    assert gradcheck(ours, (z, y))
    assert gradgradcheck(ours, (z, y))


@reductions
@shapes
def test_mse(reduction, shape):
    a, y = f64(*shape), f64(*shape)
    assert_same(
        lambda a, y: mg.mse_loss(a, y, reduction),
        lambda a, y: F.mse_loss(a, y, reduction=reduction),
        a,
        y,
    )
    assert gradcheck(lambda *t: mg.mse_loss(*t, reduction), (a, y))
    assert gradgradcheck(lambda *t: mg.mse_loss(*t, reduction), (a, y))


def test_mse_broadcasts_with_torchs_warning():
    a, y = f64(3, 4), f64(1, 4)
    with pytest.warns(UserWarning, match="broadcasting"):
        assert_same(mg.mse_loss, F.mse_loss, a, y)


def test_one_over_m_enters_in_the_loss():
    """BP3 and BP4 are sums over examples; "mean" makes them averages."""
    x, y, weight = f64(8, 3), f64(8, 2), f64(2, 3)
    grads = {
        reduction: torch.autograd.grad(mg.mse_loss(mg.linear_act(x, weight), y, reduction), weight)
        for reduction in ("mean", "sum")
    }
    torch.testing.assert_close(grads["mean"][0] * 16, grads["sum"][0])


def test_the_fused_error_is_activation_minus_target():
    z, target = f64(6, 5), torch.randint(0, 5, (6,))
    (delta,) = torch.autograd.grad(mg.cross_entropy(z, target, reduction="sum"), z)
    torch.testing.assert_close(delta, z.softmax(1) - F.one_hot(target, 5))
    y = torch.rand(6, 5, dtype=torch.float64)
    loss = mg.binary_cross_entropy_with_logits(z, y, reduction="sum")
    torch.testing.assert_close(torch.autograd.grad(loss, z)[0], z.sigmoid() - y)


@reductions
@pytest.mark.parametrize("case", ["all ignored", "empty"])
def test_nothing_to_average(reduction, case):
    z = f64(3, 5) if case == "all ignored" else f64(0, 5)
    target = torch.full((len(z),), -100)
    grads = []
    for loss in (mg.cross_entropy, F.cross_entropy):
        value = loss(z, target, reduction=reduction)
        grads.append((value, *torch.autograd.grad(value.sum(), z)))
    torch.testing.assert_close(*grads, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_errors_are_at_most_twice_torchs(dtype):
    z, target = torch.randn(64, 10).to(dtype) * 3, torch.randint(0, 10, (64,))
    y = torch.rand(64, 10).to(dtype)
    pairs = [
        (mg.cross_entropy, F.cross_entropy, target),
        (mg.cross_entropy, F.cross_entropy, y),
        (mg.mse_loss, F.mse_loss, y),
        (mg.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits, y),
    ]
    for ours, theirs, t in pairs:
        grads = []
        for loss, precision in ((ours, dtype), (theirs, dtype), (theirs, torch.float64)):
            inputs = z.to(precision).requires_grad_()
            label = t.to(precision) if t.is_floating_point() else t
            grads.append(torch.autograd.grad(loss(inputs, label), inputs)[0].double())
        mine, native, truth = grads
        unit = torch.finfo(dtype).eps * truth.abs().max()
        assert (mine - truth).abs().max() <= 2 * (native - truth).abs().max() + unit


def test_extreme_logits():
    z = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    for loss, label in (
        (mg.cross_entropy, torch.tensor([1])),
        (mg.binary_cross_entropy_with_logits, torch.ones(1, 3)),
    ):
        value = loss(z, label)
        (grad,) = torch.autograd.grad(value, z)
        assert value.isfinite()
        assert grad.isfinite().all()


Z, T, Y = torch.randn(3, 4), torch.tensor([0, 1, 2]), torch.rand(3, 4)
CASES = {
    "class out of range": ("cross_entropy", (Z, torch.tensor([0, 1, 7])), {}),
    "batch sizes": ("cross_entropy", (Z, T[:2]), {}),
    "float indices": ("cross_entropy", (Z, T.float()), {}),
    "int32 indices": ("cross_entropy", (Z, T.int()), {}),
    "weight's length": ("cross_entropy", (Z, T, torch.rand(2)), {}),
    "weight's dtype": ("cross_entropy", (Z, T, torch.rand(4).double()), {}),
    "label smoothing": ("cross_entropy", (Z, T), {"label_smoothing": 2.0}),
    "integer input": ("cross_entropy", (T[:, None].expand(3, 4), T), {}),
    "ignored probabilities": ("cross_entropy", (Z, Y), {"ignore_index": 1}),
    "target's shape": ("binary_cross_entropy_with_logits", (Z, Y[0]), {}),
    "no broadcast": ("mse_loss", (Z, Y[:2]), {}),
    "integers": ("mse_loss", (T, T), {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_what_torch_refuses_is_refused_in_the_callers_words(case):
    call, args, options = CASES[case]
    with pytest.raises(Exception) as native:  # noqa: PT011
        getattr(F, call)(*args, **options)
    with pytest.raises(ValueError, match=rf"manualgrad\.{call}: .*input \(.*target \(") as ours:
        getattr(mg, call)(*args, **options)
    assert isinstance(ours.value, (type(native.value), RuntimeError))


@pytest.mark.parametrize("reduction", ["average", None, "MEAN"])
def test_unknown_reductions(reduction):
    for call, target in itertools.product(["mse_loss", "binary_cross_entropy_with_logits"], [Y]):
        with pytest.raises(ValueError, match="not a valid value for reduction"):
            getattr(mg, call)(Z, target, reduction=reduction)
    with pytest.raises(ValueError, match="not a valid value for reduction"):
        mg.cross_entropy(Z, T, reduction=reduction)


def test_a_complaint_names_every_tensor():
    with pytest.raises(ValueError, match=r"target \(3, 4\).*, pos_weight \(7,\)"):
        mg.binary_cross_entropy_with_logits(Z, Y, pos_weight=torch.rand(7))
    with pytest.raises(ValueError, match=r", weight \(2,\)"):
        mg.cross_entropy(Z, T, torch.rand(2))


def test_small_integer_targets_and_weights_that_cancel():
    z = f64(2, 200)
    target = torch.tensor([156, 3], dtype=torch.uint8)  # 156 is -100 in eight bits
    assert_same(lambda z: mg.cross_entropy(z, target), lambda z: F.cross_entropy(z, target), z)
    z, weight = f64(2, 3), torch.tensor([1.0, -1.0, 5.0], dtype=torch.float64)
    grads = []
    for cost in (mg.cross_entropy, F.cross_entropy):
        grads.append(torch.autograd.grad(cost(z, torch.tensor([0, 1]), weight), z)[0])
    assert not grads[1].isfinite().all()
    torch.testing.assert_close(*grads, equal_nan=True)


def test_no_classes_and_weights_that_need_no_gradient_here():
    z = f64(4, 0)
    assert torch.autograd.grad(mg.cross_entropy(z, f64(4, 0), reduction="sum"), z)[0].shape == (
        4,
        0,
    )
    weight = torch.rand(4, requires_grad=True)
    with torch.no_grad():
        mg.cross_entropy(Z, T, weight)
        mg.binary_cross_entropy_with_logits(Z, Y, pos_weight=weight)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit's, in torch's own code
def test_forward_mode():
    for ours, theirs, target in (
        (mg.cross_entropy, F.cross_entropy, T),
        (mg.mse_loss, F.mse_loss, Y),
        (mg.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits, Y),
    ):
        for transform in (torch.func.jacfwd, torch.func.hessian):
            got, want = (transform(lambda z, f=f: f(z, target))(Z) for f in (ours, theirs))  # noqa: B023
            torch.testing.assert_close(got, want)


def test_non_tensors_and_weights_that_require_gradients():
    with pytest.raises(TypeError, match="target must be a tensor, got"):
        mg.cross_entropy(Z, [0, 1, 2])
    with pytest.raises(TypeError, match="weight must be a tensor"):
        mg.cross_entropy(Z, T, [1.0] * 4)
    with pytest.raises(TypeError, match="pos_weight must be a tensor"):
        mg.binary_cross_entropy_with_logits(Z, Y, pos_weight=2.0)
    for loss, target, option in (
        (mg.cross_entropy, T, "weight"),
        (mg.binary_cross_entropy_with_logits, Y, "pos_weight"),
    ):
        with pytest.raises(ValueError, match="must not require a gradient"):
            loss(Z.clone().requires_grad_(), target, **{option: torch.rand(4, requires_grad=True)})
