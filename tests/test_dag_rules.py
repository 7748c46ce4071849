"""The rules of mg.dag: each derivative by differences, by mg.check, and beside torch's own."""

import pathlib

import pytest
import torch
import torch.nn.functional as F
from dag_models import numbers
from dag_rules import ACTIVATIONS, INDICES, MASK, ROWS
from helpers import native

import manualgrad as mg
from manualgrad.dag import rules

FOLDED = "matmul, vector and matrices"  # by torch, where a gradient is wanted: other last bits
UNLEARNED = "embedding, padding"  # its table does matter to the output where it is not learned


def inputs_of(name):
    return [numbers(*shape) for shape in ROWS[name][2]]


def on_tape(function, inputs, v):
    """(result, adjoints of the inputs) for the output gradient v."""
    with mg.dag.record() as tape:
        y = function(*(tape.watch(x) for x in inputs))
    tape.backward(y, v)
    return y.detach(), [tape.adjoint(x) for x in inputs]


def under_autograd(function, inputs, v):
    leaves = [x.clone().requires_grad_() for x in inputs]
    y = function(*leaves)
    return y.detach(), list(torch.autograd.grad(y, leaves, v))


def assert_close(ours, theirs):
    """To 1e-12 of the largest entry."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 * max(1.0, theirs.abs().max()))


@pytest.mark.parametrize("name", ROWS)
def test_a_rule_on_the_tape_under_autograd_and_torchs_own(name):
    rule, theirs, _ = ROWS[name]
    inputs = inputs_of(name)
    v = torch.randn_like(theirs(*inputs))
    y, adjoints = on_tape(rule, inputs, v)
    same, gradients = under_autograd(rule, inputs, v)
    for ours, alike in zip([y, *adjoints], [same, *gradients], strict=True):
        if name == FOLDED:
            torch.testing.assert_close(ours, alike, rtol=1e-14, atol=1e-14)
        else:
            assert torch.equal(ours, alike)
    right, native_gradients = under_autograd(theirs, inputs, v)
    for ours, want in zip([y, *adjoints], [right, *native_gradients], strict=True):
        assert_close(ours, want)


@pytest.mark.parametrize("name", [name for name in ROWS if name != UNLEARNED])
def test_derivatives_by_differences(name):
    rule = ROWS[name][0]
    inputs = tuple(x.requires_grad_() for x in inputs_of(name))
    assert torch.autograd.gradcheck(rule, inputs, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(rule, inputs)


@pytest.mark.parametrize("name", ROWS)
def test_the_judges_find_nothing(name):
    rule, theirs, _ = ROWS[name]
    judges = ["native", "conduct"] if name == UNLEARNED else None
    report = mg.check(rule, *inputs_of(name), reference=theirs, only=judges)
    assert report.passed, report


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    def rule(z):
        return rules.activate(z, name)

    z = numbers(4, 5, scale=2.0)
    report = mg.check(rule, z, reference=native(name), only=["native", "finite differences"])
    assert report.passed, report
    v = torch.randn_like(z)
    ours, theirs = on_tape(rule, [z], v), under_autograd(native(name), [z], v)
    assert_close(ours[0], theirs[0])
    assert_close(ours[1][0], theirs[1][0])


def test_a_row_that_is_not_learned_receives_nothing():
    table = numbers(4, 2)
    _, (adjoint,) = on_tape(
        lambda w: rules.embedding(INDICES, w, 3), [table], torch.ones(2, 3, 2).double()
    )
    assert not adjoint[3].any()
    assert torch.equal(adjoint[:, 0], torch.tensor([2.0, 1.0, 0.0, 0.0]).double())


def test_half_types_are_summed_in_float32():
    table = torch.zeros(1, 1, dtype=torch.bfloat16)
    indices = torch.zeros(1000, dtype=torch.long)
    v = torch.ones(1000, 1, dtype=torch.bfloat16)
    _, (adjoint,) = on_tape(lambda w: rules.embedding(indices, w), [table], v)
    assert adjoint.item() == 1000  # in bfloat16 256 + 1 is 256


# torch's names, as models call them

X, W, B = (2, 3, 4), (5, 4), (5,)
SQUARE = (3, 3)
SPELLED = {
    "operators": (lambda x, y: 2 * x - y / 3 + (1 - x) * y - -x, [(2, 3), (3,)]),
    "operators of numbers": (lambda x: 1 / (x * x + 2) + 3 / 7 * x**2 + x**1, [(2, 3)]),
    "alpha": (lambda x, y: torch.add(x, y, alpha=3) + torch.sub(x, y, alpha=2), [(2, 3), (3,)]),
    "rsub": (lambda x, y: torch.rsub(x, y), [(2, 3), (3,)]),
    "square, mean": (lambda x: torch.square(x).mean((0, 1)) + x.mean(), [X]),
    "powers": (lambda x: x**3 + (x * x).sqrt() + (x.pow(2) + 1).rsqrt() + x.exp() + (x * x).log() + torch.reciprocal(x), [X]),
    "sums": (lambda x: x.sum(-1, keepdim=True) + x.sum((0, 1)) + torch.sum(x), [X]),
    "addmm": (lambda b, x, y: torch.addmm(b, x, y, beta=2, alpha=3), [(2, 4), (2, 3), (3, 4)]),
    "mm, bmm, mv, dot": (
        lambda a, b, v: (torch.mm(a, b) @ v).dot(torch.mv(a, v)) + torch.bmm(a[None], b[None]),
        [SQUARE, SQUARE, (3,)],
    ),
    "casts": (lambda x: x.float().double() + x.to(torch.float32).to(x) + x.to("cpu"), [X]),
    "view, flatten": (lambda x: x.view(6, -1).reshape((4, 6)).flatten() + x.flatten(1).view(24), [X]),
    "unflatten, squeeze": (
        lambda x: x.unflatten(-1, (2, 2)).unsqueeze(1).squeeze(1).squeeze() + x[0, 0].unsqueeze(-1).squeeze((-1,)).view(2, 2),
        [X],
    ),
    "transposed": (lambda x: x.T @ x + x.t() @ x.mT.T + x.transpose(0, 1) @ x.swapaxes(0, 0), [(4, 3)]),
    "permute": (lambda x: x.permute(2, 0, 1) + torch.permute(x, (2, 0, 1)), [X]),
    "expand": (lambda x, y: x.expand(2, -1, 4) + y.expand_as(y) + x.broadcast_to(2, 3, 4), [(3, 1), X]),
    "contiguous, clone": (lambda x: x.mT.contiguous() + x.mT.clone(), [X]),
    "cat, stack": (lambda x, y: torch.cat([x, y], 1).sum() + torch.stack((x, y), -1), [SQUARE, SQUARE]),
    "chunk, split": (lambda x: sum(a * b for a in x.chunk(2, -1) for b in x.split([2, 2], 2)), [X]),
    "split, unbind": (
        lambda x: sum(i * p for i, p in enumerate(x.split(2, 1))) if x.shape[1] % 2 == 0 else x.unbind(1)[2] * x.select(1, 0),
        [X],
    ),
    "narrow": (lambda x: x.narrow(-1, 1, 2) * torch.narrow(x, 2, 2, 2), [X]),
    "indices": (lambda x: x[0] + x[:, 1:, ::2].sum() + x[..., -1:] + x[1, None, 2, 1] + x[...], [X]),
    "rows": (lambda x: x[INDICES], [(4, 2)]),
    "windows": (lambda x: x.unfold(1, 2, 1).sum(0) * x.unfold(-2, 2, 1)[0] + x.unfold(2, 3, 1).mean(), [X]),
    "numpy's names": (lambda x: x.sum(axis=1, keepdims=True) + torch.mean(x, axis=-1, keepdim=True), [X]),
    "iterated": (lambda x: sum(row * row for row in x), [SQUARE]),
    "embedding": (lambda w: F.embedding(INDICES, w, padding_idx=-4), [(4, 2)]),
    "linear": (lambda x, w, b: F.linear(x, w, b) + F.linear(x, w), [X, W, B]),
    "linear of a vector": (lambda x, w, b: F.linear(x, w, b), [(4,), W, B]),
    "layer norm": (lambda x, w: F.layer_norm(x, [4], w), [X, (4,)]),
    "softmax": (lambda x: x.softmax(-1) + torch.softmax(x, 0) + F.softmax(x, dim=1), [X]),
    "masks": (
        lambda x: x.masked_fill(MASK, 2.0) + torch.where(MASK, x, 0.5) + x.where(MASK, -x),
        [(2, 3)],
    ),
    "dropout that drops nothing": (lambda x: F.dropout(x, 0.3, training=False) + F.dropout(x, 0.0), [X]),
    "causal attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3),
        [X, X, X],
    ),
    "masked attention": (lambda q, k: F.scaled_dot_product_attention(q, k, k, MASK), [(2, 4), (3, 4)]),
    "attention to nothing": (lambda q, k: F.scaled_dot_product_attention(q, k, k, MASK[:, :2]), [(2, 2, 4)] * 2),
    "multi-head attention": (
        lambda x, w, b, o, c: F.multi_head_attention_forward(
            x, x, x, 4, 2, w, b, None, None, False, 0.0, o, c, need_weights=False
        )[0],
        [X, (12, 4), (12,), (4, 4), (4,)],
    ),
    "rms norm": (lambda x, w: F.rms_norm(x, (4,), w) + F.rms_norm(x, (3, 4), eps=0.1), [X, (4,)]),
    "attention with a bias": (F.scaled_dot_product_attention, [X, X, X, (3, 3)]),
    "activations": (
        lambda x: F.gelu(x, approximate="tanh") + F.leaky_relu(x, 0.2) + F.elu(x, alpha=0.5)
        + x.tanh() + x.sigmoid() + torch.relu(x) + x.relu() + x.sin() + F.silu(x) + F.softplus(x, 2.0),
        [X],
    ),
    "costs": (
        lambda x, y: F.mse_loss(x, y) + F.cross_entropy(x, torch.tensor([2, 0]), label_smoothing=0.1)
        + F.binary_cross_entropy_with_logits(x, y.sigmoid(), reduction="sum"),
        [(2, 3), (2, 3)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPELLED)
def test_torchs_names(name):
    function, shapes = SPELLED[name]
    inputs = [numbers(*shape) for shape in shapes]
    tolerance = 1e-6 if name == "casts" else 1e-12  # torch, too, rounds the adjoint to float32
    v = torch.randn_like(function(*inputs))
    y, adjoints = on_tape(function, inputs, v)
    right, gradients = under_autograd(function, inputs, v)
    for ours, want in zip([y, *adjoints], [right, *gradients], strict=True):
        assert ours.dtype == want.dtype
        torch.testing.assert_close(ours, want, rtol=0, atol=tolerance * max(1.0, want.abs().max()))


def chain(x, w, b):
    return mg.mlp(mg.linear_act(x, w, b, "gelu"), [w.mT, w], [None, b], ["tanh", "silu"])


OURS = {
    "linear_act, mlp": (chain, [X, W, B]),
    "recompute": (lambda x, w: mg.mlp(x, [w, w.mT], None, "gelu", recompute=True), [X, W]),
    "mse_loss": (lambda x, y: mg.mse_loss(x, y, "sum"), [X, X]),
    "cross_entropy": (lambda x, y: mg.cross_entropy(x, y.softmax(1)), [X, X]),
    "with a weight": (lambda x, w: mg.cross_entropy(x, x.softmax(1), w * w), [X, (3,)]),
    "binary_cross_entropy_with_logits": (
        lambda x, y: mg.binary_cross_entropy_with_logits(x, y.sigmoid(), reduction="none"),
        [X, X],
    ),
}


@pytest.mark.parametrize("name", OURS)
def test_our_own_functions_are_their_own_rules(name):
    function, shapes = OURS[name]
    inputs = [numbers(*shape) for shape in shapes]
    v = torch.randn_like(function(*inputs))
    y, adjoints = on_tape(function, inputs, v)
    right, gradients = under_autograd(function, inputs, v)
    for ours, want in zip([y, *adjoints], [right, *gradients], strict=True):
        assert_close(ours, want)
    with mg.dag.through_autograd():
        same, gradients = under_autograd(function, inputs, v)
    assert torch.equal(y, same)
    assert all(map(torch.equal, adjoints, gradients))


def test_a_function_of_ones_own():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x * x

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return 3 * grad * x * x

    x = numbers(3)
    _, (adjoint,) = on_tape(lambda x: mg.dag.apply(Cube, x), [x], torch.ones(3).double())
    assert torch.equal(adjoint, 3 * x * x)
    leaf = x.clone().requires_grad_()
    mg.dag.apply(Cube, leaf).sum().backward()  # outside of a recording: torch.autograd's
    assert torch.equal(leaf.grad, adjoint)


def test_a_function_with_several_results():
    """The first is a node; the others are the rule's own, and their adjoints zeros, or None."""
    seen = []

    class Split(torch.autograd.Function):
        @staticmethod
        def forward(x, materialize):
            return x * 2, x * 3, "and what is no tensor"

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.set_materialize_grads(inputs[1])

        @staticmethod
        def backward(ctx, grad, hidden, none):
            seen.append((hidden, none))
            return grad * 2, None

    for materialize in (True, False):
        with mg.dag.record() as tape:
            x = tape.watch(numbers(2))
            y = mg.dag.apply(Split, x, materialize).sum()
        tape.backward(y)
        adjoint = tape.adjoint(x)
        assert adjoint.tolist() == [2, 2]
    assert seen[0][0].tolist() == [0, 0]
    assert seen[0][1] is None
    assert seen[1] == (None, None)


def test_a_result_without_a_derivative_is_a_constant():
    class Sign(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            sign = torch.sign(x)
            ctx.mark_non_differentiable(sign)
            return sign

    x = numbers(3)
    _, (adjoint,) = on_tape(lambda x: x * mg.dag.apply(Sign, x), [x], torch.ones(3).double())
    assert torch.equal(adjoint, torch.sign(x))


def test_every_rule_stands_in_the_equations():
    text = (pathlib.Path(__file__).parents[1] / "docs" / "equations.md").read_text()
    missing = [name for name in rules.__all__ if f"`{name}`" not in text]
    assert not missing
