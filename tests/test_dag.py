"""The tape of mg.dag: order, sums, what it leaves alone, what it refuses."""

import re
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from helpers import f64
from torch import nn

import manualgrad as mg


def numbers(*shape):
    return f64(*shape, requires_grad=False)


class Block(nn.Module):
    """A residual MLP block between two layers, as a model is written."""

    def __init__(self, width=6):
        super().__init__()
        self.first, self.last = nn.Linear(4, width), mg.nn.Linear(width, 3, activation="tanh")
        self.norm, self.branch = nn.LayerNorm(width), mg.nn.MLP([width, 2 * width, width], "gelu")
        self.double()

    def forward(self, x):
        x = F.relu(self.first(x))
        x = x + 0.5 * self.branch(self.norm(x))
        return self.last(x)


def recorded(model, x, target):
    with mg.dag.record(model) as tape:
        loss = mg.mse_loss(model(tape.watch(x)), target)
    tape.backward(loss)
    return tape, loss


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


# refusals


def write(a):
    a += 1


def fill(a):
    torch.zeros(3, dtype=a.dtype)[0] = a[0]


def out(a):
    torch.mul(a, a, out=torch.empty(3, dtype=a.dtype))


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return grad


BAD = {
    "no rule": (lambda a: torch.cumsum(a, 0), ValueError, r"torch\.cumsum has no hand-derived rule. There are rules for add, .*where\."),
    "no rule, a method": (lambda a: a.cumsum(0), NotImplementedError, r"torch\.Tensor\.cumsum has no"),
    "a power": (lambda a: a**a, ValueError, r"pow has no hand-derived rule"),
    "floor": (lambda a: a // 2, ValueError, r"floordiv__ has no"),
    "an index": (lambda a: a[a > 0], ValueError, r"__getitem__ has no"),
    "in place": (write, RuntimeError, r"in place.*x = x \+ y"),
    "into a constant": (fill, RuntimeError, "fills one from it"),
    "out=": (out, RuntimeError, "without out="),
    "inplace=True": (lambda a: F.relu(a, inplace=True), RuntimeError, "inplace=True"),
    "in place by position": (lambda a: F.relu(a, True), RuntimeError, "in place"),
    "backward of torch's": (lambda a: a.sum().backward(), RuntimeError, r"tape\.backward\(y\)"),
    "grad of torch's": (lambda a: torch.autograd.grad(a.sum(), a), RuntimeError, r"tape\.backward\(y\)"),
    "a hook": (lambda a: a.register_hook(print), RuntimeError, "no hooks"),
    "an array": (lambda a: a.numpy(), RuntimeError, r"call detach\(\)"),
    "a Function of torch's": (lambda a: Square.apply(a) * 1, RuntimeError, r"SquareBackward.*mg\.dag\.apply"),
    "dropout": (lambda a: F.dropout(a, 0.5), ValueError, r"p=0\.5.*model\.eval\(\)"),
    "sparse": (lambda a: F.embedding(torch.tensor([0]), a[None], sparse=True), ValueError, "sparse"),
    "shapes": (lambda a: mg.linear_act(a, torch.ones(4, 5).double()), ValueError, "has 3 features"),
    "a loss's shapes": (lambda a: mg.cross_entropy(a, torch.tensor([1, 2])), ValueError, "."),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_refused(name):
    function, error, message = BAD[name]
    x = numbers(3)
    with mg.dag.record() as tape, pytest.raises(error, match=message):
        function(tape.watch(x))
    before = x.clone()
    assert torch.equal(x, before)


def test_every_operation_that_has_a_rule_is_listed():
    with mg.dag.record() as tape, pytest.raises(mg.dag.NoRuleError) as caught:
        tape.watch(numbers(3)).cumsum(0)
    listed = re.search(r"rules for (.*?)\. ", str(caught.value))[1].split(", ")
    assert listed == mg.dag.operations()
    assert {"add", "matmul", "softmax", "layer_norm", "embedding", "mlp"} <= set(listed)


def test_no_rule_under_autograd_either():
    with mg.dag.through_autograd(), pytest.raises(mg.dag.NoRuleError, match="cumsum"):
        f64(3).cumsum(0)


def test_another_tapes_tensor():
    with mg.dag.record() as one:
        a = one.watch(numbers(3))
        y = a.sum()
    with mg.dag.record() as two:
        with pytest.raises(ValueError, match=r"of another tape.*detach\(\)"):
            a + two.watch(numbers(3))
        with pytest.raises(ValueError, match="another tape"):
            two.watch(a)
        b = two.watch(a.detach())  # the way out
    for call in (two.backward, two.node):
        with pytest.raises(ValueError, match="another tape"):
            call(y)
    two.backward(b, torch.ones(3).double())
    with pytest.raises(ValueError, match="another tape"):
        two.adjoint(a)


def test_backward_twice():
    with mg.dag.record() as tape:
        y = tape.watch(numbers(3)).sum()
    tape.backward(y)
    with pytest.raises(RuntimeError, match="goes back once; record the model again"):
        tape.backward(y)


def test_adjoints_before_backward():
    x = numbers(3)
    with mg.dag.record() as tape:
        tape.watch(x).sum()
    for call in (tape.adjoint, tape.contributions, tape.successors):
        with pytest.raises(RuntimeError, match=r"call that first"):
            call(x)


def test_starts_that_make_no_sense():
    x = numbers(2, 3)
    with mg.dag.record() as tape:
        y = tape.watch(x) * 2
        constant = x.sum()
    late = y.detach().sum()
    for start, adjoint, error, message in (
        (y, None, ValueError, r"6 entries; give its adjoint, a tensor of shape \(2, 3\)"),
        (y, torch.ones(3, 2).double(), ValueError, r"shape \(3, 2\), but .* has shape \(2, 3\)"),
        (y, torch.ones(2, 3), ValueError, "dtype torch.float32, but"),
        (y, 1.0, TypeError, "must be a tensor"),
        (late, None, ValueError, "computed outside mg.dag.record"),
        (3.0, None, TypeError, "takes a tensor"),
    ):
        with pytest.raises(error, match=message):
            tape.backward(start, adjoint)
    assert tape.node(constant).name == "sum"  # x itself was watched
    tape.backward(y, torch.ones_like(x))  # a refused start does not count


def test_a_cycle():
    with mg.dag.record() as tape:
        a = tape.watch(numbers(3)).tanh()
        y = a.sum()
    tape.node(a).parents = (tape.node(y),)
    with pytest.raises(ValueError, match="cycle"):
        tape.backward(y)


def test_another_thread_may_not_use_what_is_being_recorded():
    caught = []

    def elsewhere(a):
        try:
            a * 2
        except RuntimeError as error:
            caught.append(str(error))

    with mg.dag.record() as tape:
        thread = threading.Thread(target=elsewhere, args=(tape.watch(numbers(3)),))
        thread.start()
        thread.join()
    assert "another thread" in caught[0]


def test_what_another_thread_computed_from_parameters_is_no_constant():
    w, made = f64(3), []
    with mg.dag.record() as tape:
        thread = threading.Thread(target=lambda: made.append(w * 2))
        thread.start()
        thread.join()
        with pytest.raises(RuntimeError, match=r"MulBackward0.*inside mg\.dag\.record"):
            tape.watch(numbers(3)) * made[0]


def test_a_kept_tensor_that_was_changed_since():
    w = f64(3, 3)
    with mg.dag.record() as tape:
        y = mg.linear_act(tape.watch(numbers(2, 3)), w, None, "tanh").sum()
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place between the recording and"):
        tape.backward(y)


def test_watch_takes_floating_tensors():
    with mg.dag.record() as tape:
        for wrong in (3.0, torch.tensor([1]), [numbers(3)]):
            with pytest.raises(TypeError, match="watch takes"):
                tape.watch(wrong)


def test_watch_takes_no_graph_of_torchs():
    computed = f64(3) * 2
    with mg.dag.record() as tape, pytest.raises(RuntimeError, match="MulBackward0"):
        tape.watch(computed)


def test_autocast_is_refused():
    a, refused = torch.ones(2, 2), pytest.raises(RuntimeError, match="outside of it")
    with mg.dag.record() as tape, torch.autocast("cpu", torch.bfloat16), refused:
        tape.watch(a) @ a


def test_a_recording_is_entered_once():
    recording = mg.dag.record()
    with recording as tape:
        tape.watch(numbers(3))
    with pytest.raises(RuntimeError, match=r"call record\(\) again"), recording:
        pass


def test_a_rule_of_ones_own_is_checked():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, y):
            return x * y

        @staticmethod
        def backward(ctx, grad):
            return grad.sum()

    class Misshapen(Wrong):
        @staticmethod
        def backward(ctx, grad):
            return grad.sum(), None

    for function, message in (
        (Wrong, "1 gradients for 2 inputs"),
        (Misshapen, r"shape \(\) to input 0"),
    ):
        with mg.dag.record() as tape:
            y = mg.dag.apply(function, tape.watch(numbers(3)), 2.0).sum()
        with pytest.raises(RuntimeError, match=message):
            tape.backward(y)


# renderings


def test_text_and_graphviz():
    model = Block()
    tape, _ = recorded(model, numbers(5, 4), numbers(5, 3))
    text, dot = str(tape), tape.to_dot()
    assert "first.weight" in text
    assert "|adjoint|" in text
    assert dot.startswith("digraph tape {")
    assert dot.count("->") == sum(p is not None for n in tape.nodes for p in n.parents)
    h = next(n for n in tape.nodes if len(n.received) == 2)
    for sent in h.received:
        size = f"{torch.linalg.vector_norm(sent.adjoint).item():.3g}"
        assert re.search(rf'v{h.index} -> v{sent.successor} .*label="{re.escape(size)}"', dot)
        assert f"{size} ({sent.successor})" in text


def test_a_picture_written_whole_or_not_at_all(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    tape, _ = recorded(Block(), numbers(5, 4), numbers(5, 3))
    for name, head in (("tape.png", b"\x89PNG"), ("tape.svg", b"<?xml")):
        tape.draw(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(head)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tape.png", "tape.svg"]
    svg = (tmp_path / "tape.svg").read_text()
    kept = svg

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        tape.draw(tmp_path / "tape.svg")
    assert (tmp_path / "tape.svg").read_text() == kept
    assert len(list(tmp_path.iterdir())) == 2
    with mg.dag.record() as deep:
        a = deep.watch(numbers(1))
        for _ in range(300):
            a = a * 1.0
    with pytest.raises(ValueError, match="room for 1 to 200 nodes"):
        deep.draw(tmp_path / "deep.png")
