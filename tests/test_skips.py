"""Skips inside a chain, shared parameters, and both: against torch's own autograd in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import manualgrad as mg
from manualgrad import aten

ACTS = {"relu": F.relu, "tanh": torch.tanh, "gelu": F.gelu, "identity": lambda z: z}
DEPTH, WIDTH = 4, 3
PLACES = (
    ((1, 2), (2, 3), (3, 4)),  # each layer a branch
    ((1, 3), (0, 2), (1, 4)),  # crossing, and two from one start
    ((1, 4),),
    ((3, 4),),
)
SHARINGS = {
    "none": (0, 1, 2, 3),
    "two": (0, 1, 1, 3),
    "all": (0, 0, 0, 0),
    "tied": (0, 1, "1.T", "0.T"),
}


def native(x, weights, biases, acts, skips):
    a, z, ends = [x], [x], {skip.end: skip for skip in skips}
    for l, (weight, bias, act) in enumerate(zip(weights, biases, acts, strict=True), start=1):
        u, skip = F.linear(a[-1], weight, bias), ends.get(l)
        if skip and skip.kind != "out":
            u = (z if skip.kind == "pre" else a)[skip.start] + skip.scale * u
        z.append(u)
        a.append(ACTS[act](u))
        if skip and skip.kind == "out":
            a[-1] = a[skip.start] + skip.scale * a[-1]
    return a[-1]


def scales(width=WIDTH):
    def made(*shape):
        return torch.randn(shape, dtype=torch.float64).requires_grad_()

    return {"1": 1.0, "0.5": 0.5, "()": made(), "(1,)": made(1), "(n,)": made(width), "0": 0.0}


def made(sharing, bias, seed=0):
    """(x, weights, biases, leaves): of a chain whose parameters stand at several places."""
    torch.manual_seed(seed)
    own = [torch.randn(WIDTH, WIDTH, dtype=torch.float64).requires_grad_() for _ in range(DEPTH)]
    of_bias = [torch.randn(WIDTH, dtype=torch.float64).requires_grad_() for _ in range(DEPTH)]
    weights, biases = [], []
    for at in SHARINGS[sharing]:
        number = int(str(at)[0])
        weights.append(own[number].T if str(at).endswith("T") else own[number])
        biases.append(of_bias[number] if bias and at == number else None)
    x = torch.randn(5, WIDTH, dtype=torch.float64).requires_grad_()
    used = {int(str(at)[0]) for at in SHARINGS[sharing]}
    leaves = [x, *(own[i] for i in sorted(used)), *{b for b in biases if b is not None}]
    return x, weights, biases, leaves


def first_and_second(y, leaves):
    """The gradients of a random function of y, and those of a random function of them."""
    generator = torch.Generator().manual_seed(1)

    def random(like):
        return torch.randn(like.shape, dtype=like.dtype, generator=generator)

    once = torch.autograd.grad(y, leaves, random(y), create_graph=True)
    cost = sum((g * random(g)).sum() for g in once)
    twice = torch.autograd.grad(cost, leaves, allow_unused=True)
    return [*once, *(torch.zeros(()) if g is None else g for g in twice)]


CASES = [
    (kind, act, places, scale, sharing, bias, recompute)
    for i, (kind, act, (p, places), sharing) in enumerate(
        itertools.product(("pre", "post", "out"), ACTS, enumerate(PLACES), SHARINGS)
    )
    for scale in itertools.islice(itertools.cycle(scales()), i % 6, i % 6 + 3)
    for bias, recompute in [((i + p) % 2 == 0, (i // 2) % 3 == 0)]
]


@pytest.mark.parametrize("kind", ["pre", "post", "out"])
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("sharing", SHARINGS)
def test_first_and_second_derivatives_equal_torchs(kind, act, sharing):
    for case in CASES:
        if (case[0], case[1], case[4]) != (kind, act, sharing):
            continue
        _, _, places, scale, _, bias, recompute = case
        x, weights, biases, leaves = made(sharing, bias)
        scale = scales()[scale]
        if isinstance(scale, torch.Tensor):
            leaves.append(scale)
        starts = [(max(start, 1) if kind == "pre" else start, end) for start, end in places]
        skips = [mg.Skip(start, end, kind, scale) for start, end in starts]
        acts = [act] * DEPTH
        ours = mg.mlp(x, weights, biases, acts, skips=skips, recompute=recompute)
        theirs = native(x, weights, biases, acts, skips)
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
        for mine, expected in zip(
            first_and_second(ours, leaves), first_and_second(theirs, leaves), strict=True
        ):
            allowed = 1e-12 * (1 + expected.abs().max().item())
            assert (mine - expected).abs().max() <= allowed, case


def test_out_over_the_identity_leaves_z_alone():
    """z^1 is W a + b, without the skip, whoever is the activation."""
    x, weights, _, leaves = made("none", False)
    scale = torch.tensor(0.7, dtype=torch.float64).requires_grad_()
    skips = [mg.Skip(0, 1, "out", scale), mg.Skip(1, 2, "pre")]
    both = [
        mg.mlp(x, weights, None, [act, "tanh", "tanh", "tanh"], skips=skips)
        for act in ("identity", "leaky_relu(negative_slope=1.0)")
    ]
    torch.testing.assert_close(*both, rtol=1e-13, atol=1e-13)
    for pair in zip(*(first_and_second(y, [*leaves, scale]) for y in both), strict=True):
        torch.testing.assert_close(*pair, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["pre", "post", "out"])
def test_gradcheck_and_gradgradcheck(kind):
    x, weights, biases, _ = made("two", True)
    scale = torch.tensor([0.5, -0.7, 1.2], dtype=torch.float64).requires_grad_()

    def chain(x, w0, w1, b0, scale):
        skips = [mg.Skip(1, 2, kind, scale), mg.Skip(1, 3, kind, 0.5)]
        return mg.mlp(x, [w0, w1, w1], [b0, None, None], ["gelu", "tanh", "softplus"], skips=skips)

    inputs = (x, weights[0], weights[1], biases[0], scale)
    assert torch.autograd.gradcheck(chain, inputs, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(chain, inputs)


@pytest.mark.parametrize("kind", ["pre", "post", "out"])
@pytest.mark.parametrize("frozen", ["x", "weights", "scale", "all but scale"])
def test_only_what_is_asked_for(kind, frozen):
    x, weights, biases, _ = made("none", True)
    scale = torch.randn(WIDTH, dtype=torch.float64).requires_grad_()
    tensors = {"x": [x], "weights": weights, "scale": [scale]}
    names = ("x", "weights") if frozen == "all but scale" else (frozen,)
    for tensor in itertools.chain(*(tensors[name] for name in names)):
        tensor.requires_grad_(False)
    leaves = [t for t in (x, *weights, *biases, scale) if t.requires_grad]
    skips = [mg.Skip(1, 3, kind, scale), mg.Skip(2, 4, kind, scale)]
    ours = mg.mlp(x, weights, biases, "gelu", skips=skips)
    theirs = native(x, weights, biases, ["gelu"] * DEPTH, skips)
    for mine, expected in zip(
        torch.autograd.grad(ours.sum(), leaves),
        torch.autograd.grad(theirs.sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["pre", "post", "out"])
def test_at_a_fork_the_adjoint_is_skip_plus_branch_to_the_bit(monkeypatch, kind):
    seen, propagate = [], aten.bp2_propagate_error

    def spy(delta, weight, s, act, skip=None, with_a=True, skip_z=None):
        result = propagate(delta, weight, s, act, skip, with_a, skip_z)
        if skip is not None or skip_z is not None:
            branch = propagate(delta, weight, s, act, None, False)[0]
            other = skip if skip_z is None else skip_z
            at_z = act.is_identity or skip is None  # else sigma' has multiplied the sum
            seen.append(at_z and torch.equal(result[0], branch + other))
            if not at_z:
                seen[-1] = torch.equal(result[0], act.sigma_prime(s) * (delta.mm(weight) + skip))
        return result

    monkeypatch.setattr(aten, "bp2_propagate_error", spy)
    net = mg.nn.MLP([8] + [16] * 17 + [4], "relu", residual="block" if kind == "out" else kind)
    net(torch.randn(32, 8, requires_grad=True)).square().sum().backward()
    assert len(seen) == (8 if kind == "out" else 16)
    assert all(seen)


# what is refused


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1, 1), ValueError, "0 <= start < end"),
        ((2, 1), ValueError, "0 <= start < end"),
        ((-1, 1), ValueError, "0 <= start < end"),
        ((1.5, 2), TypeError, "start must be the number of a layer, got 1.5"),
        ((1, 2, "post2"), ValueError, "'post2' is none of 'pre', 'post', 'out'"),
        ((0, 1, "pre"), ValueError, "the input has no z"),
        ((0, 1, "out", "big"), TypeError, "scale must be a number or a tensor"),
        ((0, 1, "out", torch.ones(2, 2)), ValueError, r"scale has shape \(2, 2\)"),
        ((0, 1, "out", torch.ones(2, dtype=torch.int64)), TypeError, "floating"),
    ],
)
def test_a_skip_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        mg.Skip(*arguments)


@pytest.mark.parametrize(
    ("skips", "error", "message"),
    [
        ([mg.Skip(0, 3)], ValueError, "ends at layer 3, but there are 2 layers"),
        ([mg.Skip(0, 2)], ValueError, "layer 0, which has 3 features, and layer 2, which has 5"),
        ([mg.Skip(1, 2), mg.Skip(0, 2)], ValueError, "two skips end at layer 2"),
        ([mg.Skip(1, 2, scale=torch.ones(4))], ValueError, r"shape \(4,\), but layer 2 has 5 feat"),
        ([mg.Skip(1, 2, scale=torch.ones((), dtype=torch.float64))], ValueError, "torch.float64"),
        ([(1, 2)], TypeError, r"manualgrad.Skip's.*got \(1, 2\)"),
        (mg.Skip(1, 2), TypeError, "skips must be manualgrad.Skip's"),
    ],
)
def test_a_chain_refuses(skips, error, message):
    with pytest.raises(error, match=message):
        mg.mlp(torch.randn(2, 3), [torch.randn(5, 3), torch.randn(5, 5)], None, "relu", skips=skips)


@pytest.mark.parametrize("kind", ["pre", "post", "out"])
def test_the_explicit_engine_agrees_to_the_bit(kind):
    x, weights, biases, leaves = made("none", True)
    scale = torch.tensor([0.5, -0.7, 1.2], dtype=torch.float64).requires_grad_()
    skips = [mg.Skip(1, 3, kind, scale), mg.Skip(2, 4, kind, 0.5)]
    with mg.dag.record() as tape:
        cost = mg.mlp(tape.watch(x), weights, biases, "gelu", skips=skips).square().sum()
    tape.backward(cost)
    leaves = [*leaves, scale]
    ours = torch.autograd.grad(
        mg.mlp(x, weights, biases, "gelu", skips=skips).square().sum(), leaves
    )
    for leaf, expected in zip(leaves, ours, strict=True):
        assert torch.equal(tape.adjoint(leaf), expected)
