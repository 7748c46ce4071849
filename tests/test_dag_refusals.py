"""What mg.dag refuses: the call, both sides, and the way out."""

import re
import threading

import pytest
import torch
import torch.nn.functional as F
from dag_models import numbers
from helpers import f64

import manualgrad as mg


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
    "softmax without a dimension": (lambda a: F.softmax(a), ValueError, "name the dimension"),
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


def test_watch_after_the_recording():
    with mg.dag.record() as tape:
        pass
    with pytest.raises(RuntimeError, match="inside the with block"):
        tape.watch(numbers(3))


def test_autocast_is_refused():
    a, refused = torch.ones(2, 2), pytest.raises(RuntimeError, match="outside of it")
    with mg.dag.record() as tape, torch.autocast("cpu", torch.bfloat16), refused:
        tape.watch(a) @ a


@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.grad], ids=["vmap", "grad"])
def test_transforms_are_refused(transform):
    with (
        mg.dag.record() as tape,
        pytest.raises(RuntimeError, match=r"manualgrad\.dag: .*(torch\.func|autograd)"),
    ):
        transform(lambda row: (row * row).sum())(tape.watch(numbers(2, 3))) * 1
    x = numbers(2, 3)
    with mg.dag.record() as tape, pytest.raises(RuntimeError, match=r"torch\.func"):
        transform(lambda row: (row * tape.watch(x[0])).sum())(x)


def test_record_takes_a_module_or_nothing():
    with pytest.raises(TypeError, match=r"record takes a torch\.nn\.Module"):
        mg.dag.record(numbers(3))


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
