"""A gradient that arrives is written over only where autograd holds it for that node alone."""

import sys

import holders
import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

import manualgrad as mg
from manualgrad import compat, in_place, one_pass
from manualgrad.activations import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("not_small")

M, K = 260, 64
assert M * K >= one_pass.CHECKED
KINDS = ["layer", "chain"]
DIMS = [2, 3]  # of x; of three, what arrives is a view of the gradient


@pytest.fixture
def taken(monkeypatch):
    """The addresses of gradients that a backward pass found to be its own: grows meanwhile."""
    found, told = [], compat.references

    def references(tensor):
        python, *others = told(tensor)
        counts = (python - 1, *others)  # one more call is between
        if counts in alone:
            found.append(tensor.data_ptr())
        return counts

    alone = in_place._alone()
    assert len(alone) == 2, "torch tells, in every version that we support"
    monkeypatch.setattr(compat, "references", references)
    return found


def network(kind, name="relu", dtype=torch.float32):
    torch.manual_seed(0)
    if kind == "layer":
        return mg.nn.Linear(K, K, activation=name).to(dtype)
    return mg.nn.MLP([K, K, K], name, out_activation=name).to(dtype)


def example(dtype=torch.float32, dims=2):
    torch.manual_seed(1)
    shape = {2: (M, K), 3: (4, M // 4, K)}[dims]
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def gradients(net, x):
    return torch.autograd.grad((net(x) * 3.0).sum(), [x, *net.parameters()])


def assert_same(found, expected):
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dims", DIMS)
def test_the_numbers_are_the_same(dims, kind, name, dtype, taken, monkeypatch):
    net, x = network(kind, name, dtype), example(dtype, dims)
    found = gradients(net, x)
    assert len(taken) == 1
    monkeypatch.setattr(compat, "references", lambda tensor: None)
    assert_same(found, gradients(net, x))


def test_the_gradient_of_tiles(taken, monkeypatch):
    net = mg.nn.MLP([K] * 5, "relu")
    x = torch.randn(1 << 16, K, requires_grad=True)
    (found,) = torch.autograd.grad((net(x) * 3.0).sum(), [x])
    assert taken == [found.data_ptr()]  # tile after tile, over the gradient of a^L
    monkeypatch.setattr(compat, "references", lambda tensor: None)
    (expected,) = torch.autograd.grad((net(x) * 3.0).sum(), [x])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["relu", "gelu", "identity"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("held", holders.ALL, ids=lambda held: held.__name__)
def test_what_others_hold_is_left(held, dims, kind, name, monkeypatch):
    net, x = network(kind, name), example(dims=dims)

    def run():
        a, kept = held(net, x)
        grads = torch.autograd.grad(a.sum(), [x, *net.parameters()])
        return [*grads, *kept()]

    found = run()
    monkeypatch.setattr(compat, "references", lambda tensor: None)
    assert_same(found, run())


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_an_output_that_is_asked_for(kind):
    net, x = network(kind), example()
    a = net(x)
    grad, _ = torch.autograd.grad((a * 3.0).sum(), [a, x])
    assert torch.equal(grad, torch.full_like(grad, 3.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dims", DIMS)
def test_the_callers_own(dims, kind, taken):
    net, x = network(kind), example(dims=dims)
    mine = torch.randn(x.shape)
    before = mine.clone()
    net(x).backward(mine)
    net(x).backward(mine.clone(), retain_graph=True)
    assert torch.equal(mine, before)
    assert not taken


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dims", DIMS)
def test_a_leaf_keeps_what_it_was_sent(dims, kind):
    """AccumulateGrad takes over the gradient that it shares with our node, or is sent later."""
    net, x = network(kind), example(dims=dims)
    leaf = torch.zeros_like(x, requires_grad=True)
    for a in (net(x) + leaf, leaf + net(x)):
        leaf.grad = None
        (a * 3.0).sum().backward()
        assert torch.equal(leaf.grad, torch.full_like(leaf, 3.0))


class Expander(torch.autograd.Function):
    """Sends a gradient whose entries are one number in memory, which nobody else holds."""

    @staticmethod
    def forward(ctx, x):
        return x.sum()

    @staticmethod
    def backward(ctx, grad):
        return torch.full((1, 1), grad.item()).expand(M, K)


@pytest.mark.parametrize("kind", KINDS)
def test_expanded_strided_and_transposed_ones(kind):
    net, x = network(kind), example()
    weights = torch.randn(K, M).t()
    for cost in (
        torch.sum,
        Expander.apply,
        lambda a: (a * weights).sum(),
        lambda a: (a[:, ::2] ** 2).sum(),
    ):
        found = torch.autograd.grad(cost(net(x)), x)
        z = x
        for layer in [net] if kind == "layer" else net.layers:
            z = F.linear(z, layer.weight, layer.bias).relu()
        torch.testing.assert_close(found, torch.autograd.grad(cost(z), x))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_that_have_gradients_and_captures(kind, taken):
    net, x = network(kind), example()
    torch.autograd.grad((net(x) * 3.0).sum(), x, create_graph=True)
    assert not taken
    with mg.capture(net) as heard:
        (net(x) * 3.0).sum().backward()
    top = heard.layers[-1]
    assert torch.allclose(top.delta.T @ top.a, top.weight.grad, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_on_saved_tensors(kind):
    """What they hand back may be memory that torch does not count."""
    net, x, kept = network(kind, "gelu"), example(), []

    def pack(t):
        kept.append(t.detach().numpy())
        return kept[-1]

    with saved_tensors_hooks(pack, torch.from_numpy):
        a = net(x)
    before = [one.copy() for one in kept]
    (a * 3.0).sum().backward()
    assert all((one == was).all() for one, was in zip(kept, before, strict=True))


@pytest.fixture
def found_out_anew():
    in_place._alone.cache_clear()
    yield
    in_place._alone.cache_clear()


@pytest.mark.usefixtures("found_out_anew")
@pytest.mark.parametrize("missing", ["_tensor_use_count", "_use_count"])
def test_where_torch_does_not_tell_nothing_is_written_over(missing, monkeypatch):
    monkeypatch.setattr(compat, missing, None)
    assert not written_over()


@pytest.mark.usefixtures("found_out_anew")
def test_where_torch_does_not_tell_them_apart_nothing_is_written_over(monkeypatch):
    monkeypatch.setattr(compat, "references", lambda tensor: (1, 1, 1))
    assert not written_over()


def written_over():
    """Whether BP1 of a layer writes over the gradient that arrives."""
    net, x, over, bp1 = network("layer"), example(), [], in_place.bp1_output_error

    def watched(grad_a, s, act, **options):
        delta, rows = bp1(grad_a, s, act, **options)
        over.append(delta.data_ptr() == grad_a.data_ptr())
        return delta, rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_place, "bp1_output_error", watched)
        gradients(net, x)
    (answer,) = over
    return answer


def test_where_torch_tells_it_is_written_over():
    assert written_over()


@pytest.mark.parametrize("setting", [sys.settrace, sys.setprofile])
def test_debuggers_and_profilers_change_what_is_counted(setting):
    before = sys.gettrace() if setting is sys.settrace else sys.getprofile()
    setting(lambda *_: None)
    try:
        assert not written_over()
    finally:
        setting(before)


@pytest.mark.parametrize("rows", [M, 600])  # from 512 on autograd is asked what it wants
@pytest.mark.parametrize("kind", KINDS)
def test_a_tape_keeps_its_adjoints(kind, rows, monkeypatch):
    net, x = network(kind), torch.randn(rows, K)
    (alone, *_), told = in_place._alone(), compat.references
    monkeypatch.setattr(compat, "references", lambda _: alone)
    with mg.dag.record() as tape:
        a = net(tape.watch(x))
        cost = (a * 3.0).sum()
    tape.backward(cost)
    monkeypatch.setattr(compat, "references", told)
    b = net(x)
    b.retain_grad()
    (b * 3.0).sum().backward()
    assert torch.equal(tape.adjoint(a), b.grad)
    for parameter in net.parameters():
        assert torch.equal(tape.adjoint(parameter), parameter.grad)
