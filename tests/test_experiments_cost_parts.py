"""What the parts of the cost experiment are made of."""

import pytest
import torch
from test_experiments_cost import TIMED, part_of, run, verdict

import manualgrad as mg
from experiments import native
from experiments.cost import PARTS, measures
from experiments.results import NOT_SHOWN, OPPOSITE
from experiments.runner import runs_of
from experiments.study import Setting


def test_every_run_of_the_quick_budget_has_an_arm_of_its_own():
    runs = runs_of(PARTS, "quick", Setting(), 3)
    assert len({run.key for run in runs}) == len(runs)
    assert all(run.alone for run in runs)


class Hoarding(torch.autograd.Function):
    """The identity, which keeps a copy for itself."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.clone())
        return x.view_as(x)

    @staticmethod
    def backward(ctx, *grads):
        return grads[0]


@pytest.mark.parametrize("name", ["parameters", "depth_and_batch"])
def test_one_matrix_too_many_is_seen(monkeypatch, name):
    chain = mg.mlp
    monkeypatch.setattr(mg, "mlp", lambda *args, **how: Hoarding.apply(chain(*args, **how)))
    rows = run(name, seeds=1)
    assert verdict(name, rows, "(L+1) M n") == NOT_SHOWN
    if name == "depth_and_batch":
        assert verdict(name, rows, "with recompute it does not grow") == NOT_SHOWN


def test_a_wrong_gradient_is_no_kink(monkeypatch):
    chain = mg.mlp

    def half(x, weights, *args, **how):
        first = weights[0]  # the value is right, the gradient is half of it
        return chain(x, [(first + first.detach()) / 2, *weights[1:]], *args, **how)

    monkeypatch.setattr(mg, "mlp", half)
    rows = run("differences", seeds=1)
    assert verdict("differences", rows, "gives what they give") == NOT_SHOWN
    assert verdict("differences", rows, "crossed a kink") == OPPOSITE
    assert rows["gradient_difference"].min() > 1e-3


def test_a_step_across_a_kink_is_found():
    part = part_of("differences")
    net = Setting(dtype="float64").network([2, 2, 2])
    x, y = torch.tensor([[1.0, 0.5]]).double(), torch.tensor([0])
    with torch.no_grad():
        net.weights[0].copy_(torch.tensor([[1.0, -2 + part.STEP / 2], [1.0, 1.0]]))
        net.weights[1].copy_(torch.tensor([[1.0, 0.5], [-1.0, 2.0]]))
    gradient = torch.cat([g.flatten() for g in part.gradients(net, part._loss(net, x, y))])
    differences = torch.tensor(list(part.central_differences(net, x, y)), dtype=torch.float64)
    off = (gradient - differences).abs() > part.FAR
    crossing = [part.crosses_kink(net, x, entry) for entry in range(net.size)]
    assert off.tolist() == crossing
    assert crossing == [True, True, *[False] * 6, True, *[False] * 3]  # z_1's own, weight and bias


def test_the_two_take_turns_and_their_medians_count(monkeypatch):
    """A clock that the calls move on: ours by 1 and 2 seconds, autograd's by 3 and 4."""
    clock, order, slow = [0.0], [], {1}
    net = Setting().network([4, 3])

    def forward(ops, seconds):
        def loss(*_):
            order.append(ops)
            clock[0] += 100 if len(order) in slow else seconds
            return ops

        return loss

    class Ours:
        cross_entropy = staticmethod(forward("ours", 1))

    def backward(_, ops):
        clock[0] += {"ours": 2, "theirs": 4}[ops]

    monkeypatch.setattr(native, "cross_entropy", forward("theirs", 3))
    monkeypatch.setattr(measures, "gradients", backward)
    monkeypatch.setattr(measures, "now", lambda device: clock[0])
    monkeypatch.setattr(type(net), "forward", lambda self, x: x)
    net.ops = Ours
    slow.add(2 * measures.WARM + 1)  # the first one that counts, whoever's
    found = measures.times(net, "cross_entropy", torch.ones(1), torch.ones(1), 5)
    assert found == dict(zip(TIMED, [1000, 2000, 3000, 4000], strict=True))
    assert net.ops is Ours
    turns = [tuple(order[i : i + 2]) for i in range(0, len(order), 2)]
    assert len(turns) == measures.WARM + 5
    assert turns.count(("ours", "theirs")) in (3, 4)
    assert set(turns) == {("ours", "theirs"), ("theirs", "ours")}
