"""What is kept and what is not computed; the rest of conduct is judged in tests/test_audit.py."""

import pytest
import torch
from helpers import NAMES, f64
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

import manualgrad as mg
from manualgrad import aten, equations, gates
from manualgrad.backends import OPERATIONS

names = pytest.mark.parametrize("name", NAMES)
modes = pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recompute"])


def chain(name="gelu", recompute=False):
    x, w1, b1, w2, b2 = f64(5, 3), f64(4, 3), f64(4), f64(2, 4), f64(2)
    y = mg.mlp(x, [w1, w2], [b1, b2], name, recompute=recompute)
    return y, (x, w1, b1, w2, b2)


def saved_bytes(run):
    """Bytes of distinct memory that autograd holds for backward after run()."""
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = run()
    del y
    return sum(storages.values())


def test_the_output_may_be_changed_in_place_where_torch_allows_it():
    for act in ("identity", "gelu"):  # not where sigma' is written in the output, as torch's tanh'
        y, inputs = chain(act)
        want = torch.autograd.grad((2 * y).sum(), inputs, retain_graph=True)
        y.mul_(2.0)
        torch.testing.assert_close(torch.autograd.grad(y.sum(), inputs), want)
    y, inputs = chain("tanh")
    y.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@modes
def test_inputs_changed_in_place_are_noticed(recompute):
    y, (x, w1, *_) = chain("gelu", recompute)
    for tensor in (x, w1):
        with torch.no_grad():
            tensor.mul_(2.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_no_grad_and_inference_mode_record_nothing():
    x, weight = f64(3, 4), f64(2, 4)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert not mg.mlp(x, [weight], None, "relu").requires_grad


def test_training_and_evaluation_are_the_same():
    net = mg.nn.MLP([3, 4, 2], "gelu")
    x = torch.randn(5, 3)
    net.train()(x).sum().backward()
    trained = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net.eval()(x).sum().backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), trained, strict=True))


def test_hooks_on_tensors_fire_and_unused_outputs_send_nothing():
    y, inputs = chain()
    seen = []
    inputs[1].register_hook(lambda grad: seen.append(grad.shape))
    y.sum().backward()
    assert seen == [(4, 3)]
    y, inputs = chain()
    (grad,) = torch.autograd.grad(inputs[0].sum() + 0 * y.detach().sum(), inputs[:1])
    assert torch.equal(grad, torch.ones_like(grad))


# memory


def eager_chain(act, width=256, depth=8):
    return nn.Sequential(*[m for _ in range(depth) for m in (nn.Linear(width, width), act())])


@pytest.mark.parametrize(
    ("act", "units"), [(nn.GELU, 9), (nn.SiLU, 9), (nn.ReLU, 9), (nn.Tanh, 9)], ids=lambda a: str(a)
)
def test_saved_bytes_are_one_tensor_per_layer_and_the_input(act, units):
    eager = eager_chain(act)
    net = mg.nn.MLP.from_sequential(eager)
    x = torch.randn(1024, 256, requires_grad=True)
    parameters = sum(p.nbytes for p in net.parameters() if p.dim() == 2)
    ours = saved_bytes(lambda: net(x)) - parameters
    assert ours == units * x.nbytes
    if act in (nn.GELU, nn.SiLU):
        assert ours <= 0.65 * (saved_bytes(lambda: eager(x)) - parameters)
    net.recompute = True
    everything = sum(p.nbytes for p in net.parameters())
    assert saved_bytes(lambda: net(x)) == everything + x.nbytes


def test_only_what_the_gradients_asked_for_need_is_kept(monkeypatch, not_small):
    monkeypatch.setattr(gates, "MORE", 0)  # else so narrow a chain keeps a beside z
    x, w = torch.randn(64, 8), [torch.randn(8, 8, requires_grad=True) for _ in range(3)]
    activation = x.nbytes
    one = w[0].nbytes
    run = lambda: mg.mlp(x, w, None, "gelu")  # noqa: E731
    assert saved_bytes(run) == 4 * activation + 2 * one  # W1 is not: x needs no gradient
    w[0].requires_grad_(False)
    assert saved_bytes(run) == 3 * activation + one  # neither x nor W2
    w[1].requires_grad_(False)
    assert saved_bytes(run) == 2 * activation
    x.requires_grad_()
    w[2].requires_grad_(False)
    assert saved_bytes(run) == 3 * activation + 3 * one  # x is not: no weight needs it
    assert saved_bytes(lambda: mg.linear_act(x, w[0])) == one


def test_a_narrow_chain_keeps_a_beside_z_where_it_is_read():
    x, w = torch.randn(64, 8), [torch.randn(8, 8, requires_grad=True) for _ in range(3)]
    one, activation = w[0].nbytes, x.nbytes
    run = lambda: mg.mlp(x, w, None, "gelu")  # noqa: E731
    assert saved_bytes(run) == 6 * activation + 2 * one  # x, z1, a1, z2, a2, z3
    w[2].requires_grad_(False)
    assert saved_bytes(run) == 5 * activation + 2 * one  # not a2, which BP4 at layer 3 would read
    w[0].requires_grad_(False)
    assert saved_bytes(run) == 3 * activation + one  # a1, z2, z3
    with torch.no_grad():
        assert saved_bytes(run) == 0


def test_saved_tensors_are_released_layer_by_layer(monkeypatch, not_small):
    kept, alive = [], []

    def forward(x, weight, bias, act):
        a, s = equations.linear_act_forward(x, weight, bias, act)
        kept.append(StorageWeakRef(s.untyped_storage()))
        return a, s

    def spy(delta, x, into=None):
        alive.append(sum(not storage.expired() for storage in kept))
        return equations.bp4_weight_gradient(delta, x, into)

    monkeypatch.setattr(aten, "linear_act_forward", forward)
    monkeypatch.setattr(aten, "bp4_weight_gradient", spy)
    weights = [torch.randn(16, 16, requires_grad=True) for _ in range(6)]
    y = mg.mlp(torch.randn(32, 16), weights, None, "gelu").sum()
    y.backward()
    assert alive == [5, 4, 3, 2, 1, 0]


# work


@pytest.mark.parametrize(
    ("frozen", "counts"),
    [
        ("", (1, 3, 3, 3)),
        ("x", (1, 2, 3, 3)),
        ("x w1 b1", (1, 1, 2, 2)),
        ("x w1 b1 w2 b2", (1, 0, 1, 1)),
        ("w1 w2 w3 b1 b2 b3", (1, 3, 0, 0)),
        ("b1 b2 b3", (1, 3, 0, 3)),
        ("x w1 w2 w3 b2 b3", (1, 2, 1, 0)),
    ],
)
def test_only_what_is_asked_for_is_computed(monkeypatch, not_small, frozen, counts):
    calls = dict.fromkeys(OPERATIONS, 0)

    def counted(name, operation):
        def run(*args, **kwargs):
            calls[name] += 1
            return operation(*args, **kwargs)

        return run

    for name in OPERATIONS:
        monkeypatch.setattr(aten, name, counted(name, getattr(aten, name)))
    tensors = {"x": f64(4, 3)}
    for l in "123":
        tensors |= {f"w{l}": f64(3, 3), f"b{l}": f64(3)}
    for name in frozen.split():
        tensors[name].requires_grad_(False)
    weights, biases = [tensors[f"w{l}"] for l in "123"], [tensors[f"b{l}"] for l in "123"]
    mg.mlp(tensors["x"], weights, biases, "silu").sum().backward()
    assert tuple(calls[name] for name in OPERATIONS[1:]) == counts
    assert {n for n, t in tensors.items() if t.grad is not None} == set(tensors) - set(
        frozen.split()
    )


def test_the_hand_written_rule_is_what_runs(monkeypatch, not_small):
    """Equality with torch cannot tell whose backward ran; doubling ours can."""
    x, weight = f64(4, 3), f64(2, 3)
    (want,) = torch.autograd.grad(mg.linear_act(x, weight, None, "tanh").sum(), weight)
    doubled = aten.bp1_output_error

    def twice(*args):
        delta, _ = doubled(*args)
        return 2 * delta, 2 * delta

    monkeypatch.setattr(aten, "bp1_output_error", twice)
    for run in (
        lambda: mg.linear_act(x, weight, None, "tanh"),
        lambda: mg.mlp(x, [weight], None, "tanh"),
    ):
        torch.testing.assert_close(torch.autograd.grad(run().sum(), weight)[0], 2 * want)
