"""The tape of mg.dag: order, sums, what it leaves alone, what it refuses."""

import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from dag_models import Block, numbers, recorded
from helpers import f64
from torch import nn

import manualgrad as mg

# against torch's engine


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_bit_for_bit_torch_autograd_over_the_same_functions(dtype):
    model, x, target = Block().to(dtype), numbers(5, 4).to(dtype), numbers(5, 3).to(dtype)
    tape, loss = recorded(model, x, target)
    x.requires_grad_()
    with mg.dag.through_autograd():
        same = mg.mse_loss(model(x), target)
    same.backward()
    assert torch.equal(loss, same)
    for tensor in (x, *model.parameters()):
        assert torch.equal(tape.adjoint(tensor), tensor.grad)
        assert tape.adjoint(tensor).dtype == dtype


def test_native_torch_to_twelve_digits():
    model, x, target = Block(), numbers(5, 4), numbers(5, 3)
    tape, _ = recorded(model, x, target)
    x.requires_grad_()
    F.mse_loss(model(x), target).backward()
    for tensor in (x, *model.parameters()):
        torch.testing.assert_close(tape.adjoint(tensor), tensor.grad, rtol=1e-12, atol=1e-12)


def test_torch_autograd_is_never_called():
    """Neither the engine nor Function.apply: a profile of the calls into C sees either."""
    called = set()

    def calls(run):
        called.clear()
        sys.setprofile(lambda frame, event, arg: event == "c_call" and called.add(arg.__name__))
        try:
            run()
        finally:
            sys.setprofile(None)
        return called & {"run_backward", "apply"}

    model, x, target = Block(), numbers(5, 4), numbers(5, 3)
    assert calls(lambda: mg.mse_loss(model(x), target).backward()) == {"run_backward", "apply"}
    assert calls(lambda: recorded(model, x, target)) == set()


def test_it_runs_where_torch_autograd_is_forbidden(monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("torch.autograd")

    monkeypatch.setattr(torch.autograd, "backward", forbidden)
    monkeypatch.setattr(torch.autograd, "grad", forbidden)
    monkeypatch.setattr(torch.Tensor, "backward", forbidden)
    monkeypatch.setattr(torch.autograd.Function, "apply", forbidden)
    monkeypatch.setattr(torch.autograd.graph, "_engine_run_backward", forbidden)
    model = Block()
    tape, _ = recorded(model, numbers(5, 4), numbers(5, 3))
    assert all(tape.adjoint(p).any() for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())


# order, forks, depth


def test_order_is_reverse_topological_from_y_on():
    model, x = Block(), numbers(5, 4)
    tape, loss = recorded(model, x, numbers(5, 3))
    place = {node: i for i, node in enumerate(tape.order)}
    assert tape.order[0] is tape.node(loss)
    assert len(place) == len(tape.order) == len(tape.nodes)
    for node in tape.order:
        assert all(place[node] < place[p] for p in node.parents if p is not None)
    assert [n.index for n in tape.order] == sorted((n.index for n in tape.order), reverse=True)


def test_nodes_that_y_does_not_depend_on_are_not_visited():
    x, unused = numbers(3), numbers(3)
    with mg.dag.record() as tape:
        a = tape.watch(x)
        aside = tape.watch(unused) * a
        y = (a * a).sum()
    tape.backward(y)
    assert tape.node(aside) not in tape.order
    assert torch.equal(tape.adjoint(unused), torch.zeros(3).double())
    assert tape.contributions(unused) == []


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_at_a_fork_the_adjoint_is_skip_plus_branch(scale):
    """Copied to both paths on the way up to the fork's successors, added at the fork: bit for bit."""
    x, w = numbers(5, 4), f64(4, 4)
    with mg.dag.record() as tape:
        h = tape.watch(x).tanh()
        branch = mg.linear_act(h, w, None, "gelu")
        y = h + scale * branch
        loss = y.square().sum()
    tape.backward(loss)
    from_skip, from_branch = tape.contributions(h)
    assert torch.equal(tape.adjoint(h), from_skip + from_branch)
    assert torch.equal(from_skip, tape.adjoint(y))  # the whole of it, not a share
    assert torch.equal(tape.adjoint(branch), scale * tape.adjoint(y))
    assert [node.name for node in tape.successors(h)] == ["add", "linear_act gelu"]


def test_a_node_that_takes_a_value_twice_sends_twice():
    x = numbers(3)
    with mg.dag.record() as tape:
        a = tape.watch(x)
        y = (a * a).sum()
    tape.backward(y)
    one, two = tape.contributions(x)
    assert torch.equal(one, x)
    assert torch.equal(two, x)
    assert torch.equal(tape.adjoint(x), 2 * x)


def test_many_successors_add_up_in_the_order_of_their_visits():
    x = numbers(100)
    with mg.dag.record() as tape:
        a = tape.watch(x)
        y = sum(c * a for c in (1e16, 1.0, -1e16, 3.0, 1e-3)).sum()
    tape.backward(y)
    leaf = x.clone().requires_grad_()
    with mg.dag.through_autograd():
        same = sum(c * leaf for c in (1e16, 1.0, -1e16, 3.0, 1e-3)).sum()
    same.backward()
    assert torch.equal(tape.adjoint(x), leaf.grad)
    parts = tape.contributions(x)
    assert torch.equal(tape.adjoint(x), (((parts[0] + parts[1]) + parts[2]) + parts[3]) + parts[4])


def test_five_thousand_nodes_deep_without_recursion():
    x = numbers(3)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(250)  # a stack of frames that grows with the depth would pass this
    try:
        with mg.dag.record() as tape:
            a = tape.watch(x)
            for _ in range(2500):
                a = (a * 1.0001).tanh()
            y = a.sum()
        tape.backward(y)
        assert len(tape.order) == len(tape.nodes) == 5002
        adjoint = tape.adjoint(x)
        del tape, a, y
    finally:
        sys.setrecursionlimit(limit)
    leaf = x.clone().requires_grad_()
    with mg.dag.through_autograd():
        b = leaf
        for _ in range(2500):
            b = (b * 1.0001).tanh()
        b.sum().backward()
    assert torch.equal(adjoint, leaf.grad)


# what is a leaf, what is a constant


def test_a_handle_and_its_original_are_one_node():
    x = numbers(3)
    with mg.dag.record() as tape:
        a = tape.watch(x, name="x")
        assert tape.watch(x)._node is a._node
        assert tape.watch(a) is a
        y = (a * x).sum()  # the original will do as well
    tape.backward(y)
    assert torch.equal(tape.adjoint(a), 2 * x)
    assert torch.equal(tape.adjoint(x), tape.adjoint(a))
    assert tape.node(x).name == "x"


def test_frozen_parameters_and_plain_tensors_are_constants():
    model = Block()
    model.first.requires_grad_(False)
    tape, _ = recorded(model, numbers(5, 4), numbers(5, 3))
    assert "first.weight" not in [node.name for node in tape.nodes]
    with pytest.raises(ValueError, match="not on this tape"):
        tape.adjoint(model.first.weight)


def test_a_parameter_that_meets_only_constants_is_a_leaf():
    embedding, x = nn.Embedding(5, 3).double(), torch.tensor([1, 1, 4])
    with mg.dag.record() as tape:
        y = embedding(x).sum()
    tape.backward(y)
    assert tape.adjoint(embedding.weight).sum(1).tolist() == [0, 6, 0, 0, 3]


def test_detach_and_no_grad_make_constants():
    x = numbers(3)
    with mg.dag.record() as tape:
        a = tape.watch(x)
        with torch.no_grad():
            size = a.abs().max()
            assert torch.equal(a * 2, x * 2)
            assert torch.equal(a[a > 0], x[x > 0])  # what has no rule needs none
        y = (a * size * a.detach()).sum()
        assert type(size) is torch.Tensor
    tape.backward(y)
    torch.testing.assert_close(tape.adjoint(x), x.abs().max() * x)
    with torch.no_grad(), mg.dag.record() as tape:  # asked for explicitly, and inside
        y = tape.watch(x).sum()
    tape.backward(y)


def test_reading_a_value():
    x = numbers(2, 3)
    with mg.dag.record() as tape:
        a = tape.watch(x)
        assert a.shape == (2, 3)
        assert a.dim() == 2
        assert len(a) == 2
        assert a.requires_grad
        assert a.sum().item() == x.sum().item()
        assert float(a[0, 0]) == x[0, 0]
        assert torch.equal(a.argmax(-1), x.argmax(-1))
        assert torch.equal(a > 0, x > 0)
        assert a.tolist() == x.tolist()
        assert isinstance(a, torch.Tensor)
        assert "tensor" in repr(a)
        assert not torch.zeros_like(a).requires_grad
    assert type(a + 1) is torch.Tensor  # once recorded, values are values
    assert torch.equal(a.cos(), x.cos())
    assert a.numpy().shape == (2, 3)


def test_modules_may_be_made_while_recording():
    with mg.dag.record() as tape:
        layer = nn.Linear(3, 2).double()
        y = layer(tape.watch(numbers(4, 3))).sum()
    tape.backward(y)
    assert tape.adjoint(layer.bias).tolist() == [4, 4]


def test_a_start_that_is_no_number_takes_its_adjoint():
    x, v = numbers(2, 3), numbers(2, 3)
    with mg.dag.record() as tape:
        y = tape.watch(x) * 3
    tape.backward(y, v)
    assert torch.equal(tape.adjoint(x), 3 * v)
    assert torch.equal(tape.adjoint(y), v)


def test_adjoints_of_leaves_are_memory_of_their_own():
    x, w = numbers(3), numbers(3)
    with mg.dag.record() as tape:
        y = (tape.watch(x) + tape.watch(w)).sum()
    tape.backward(y)
    tape.adjoint(x).mul_(7)  # as clipping does
    assert torch.equal(tape.adjoint(w), torch.ones(3).double())


def test_two_threads_record_at_once():
    results = {}

    def work(k):
        x = torch.full((3,), float(k))
        with mg.dag.record() as tape:
            a = tape.watch(x)
            for _ in range(50):
                a = a * 1.0
            y = (a * a).sum()
        tape.backward(y)
        results[k] = tape.adjoint(x).tolist()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {k: [2.0 * k] * 3 for k in range(4)}


def test_a_tape_is_freed_without_the_garbage_collector():
    import gc
    import weakref

    gc.disable()
    try:
        tape, loss = recorded(Block(), numbers(5, 4), numbers(5, 3))
        gone = weakref.ref(tape)
        del tape, loss
        assert gone() is None
    finally:
        gc.enable()
