"""The benchmarks run, check before they time, and count bytes right."""

import functools
import types

import pytest
import torch

import manualgrad as mg
from benchmarks import (
    ceilings,
    checking,
    contest,
    equations,
    memory,
    peers,
    problems,
    scaling,
    small,
    timing,
    weighing,
)
from benchmarks.outcome import Settings
from manualgrad import gates, products

ROOF = ceilings.Ceilings({"float32": 1e9, "bfloat16": 1e9}, 1e9)


def test_memory_prints_exact_counts():
    table = memory.kept_table(memory.kept())
    assert "0.562" in table  # GELU: 9 of eager's 16 tensors
    assert "recompute" in table


def test_a_chain_never_holds_more_than_eager():
    shapes = [(torch.nn.GELU, 1024, 256, 8), (torch.nn.ReLU, 1024, 256, 8)]
    shapes += [(torch.nn.GELU, 256, 64, 8), (torch.nn.GELU, 65536, 64, 4)]
    rows = memory.peaks(shapes, compiles=False)
    for row in rows:
        own = workspace(row["rows"], row["width"], row["width"]) / 2**20
        assert row["chain MiB"] <= row["eager MiB"] + own
        assert row["recompute MiB"] <= row["checkpoint MiB"]
    assert rows[-1]["recompute MiB"] < 0.6 * rows[-1]["checkpoint MiB"]  # in tiles
    line = memory.peaks_table(rows).splitlines()[-1].split()
    assert line[:4] == ["GELU", "65536", "64", "4"]


def held_by(net, x, grad):
    """The most bytes in a forward and a backward pass."""

    def both():
        net(x).backward(grad)
        for tensor in (x, *net.parameters()):
            tensor.grad = None

    return weighing.peak_bytes(both, "cpu")


def workspace(M, K, N):
    """What oneDNN takes for BP2 besides the result: PyTorch sees that, but not what MKL takes."""
    delta, weight = torch.randn(M, N), torch.randn(N, K)
    if N > products.TERMS or not products.onednn_wins_here():
        return 0
    return weighing.peak_bytes(lambda: products._onednn(delta, weight.t(), None), "cpu") - 4 * M * K


@pytest.mark.parametrize("sizes", [(256, 256), (512, 2048), (1024, 256), (768, 768)])
@pytest.mark.parametrize("act", [torch.nn.GELU, torch.nn.ReLU, torch.nn.Identity])
@pytest.mark.parametrize("M", [256, 512, 1024])
def test_a_layer_holds_no_more_than_eager(M, act, sizes):
    """With less than 1024 examples up to a megabyte more: blocks have a least size."""
    eager = torch.nn.Sequential(torch.nn.Linear(*sizes), act())
    ours = mg.nn.Linear(*sizes, activation=act.__name__.lower())
    x, grad = torch.randn(M, sizes[0], requires_grad=True), torch.ones(M, sizes[1])
    more = held_by(ours, x, grad) - held_by(eager, x, grad)
    assert more <= (workspace(M, *sizes) if M >= 1024 else 1.1e6)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("kind", "matrices"), [(None, 3), ("pre", 4), ("post", 3), ("out", 3)])
def test_a_forward_pass_holds_no_activation_that_nobody_will_read(kind, matrices, recompute):
    M, N, depth = 1024, 64, 6
    x = torch.randn(M, N)
    weights = [torch.randn(N, N, requires_grad=recompute) for _ in range(depth)]
    skips = [mg.Skip(l - 1, l, kind) for l in range(2, depth + 1)] if kind else ()

    def chain():
        with torch.set_grad_enabled(recompute):
            return mg.mlp(x, weights, None, "gelu", skips=skips, recompute=recompute)

    assert weighing.peak_bytes(chain, "cpu") // x.nbytes == matrices


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's import of torch.jit
def test_small_times_only_what_agrees(monkeypatch):
    monkeypatch.setattr(small, "ROUNDS", 3)
    monkeypatch.setattr(small, "compiles", lambda step: False)
    (row,) = small.rows(3, "relu", torch.nn.ReLU)
    assert all(row[key] > 0 for key in ("theirs_us", "ours_us", "ratio"))
    assert row["p20_us"] <= row["ours_us"] <= row["p80_us"]
    monkeypatch.setattr(small, "check", lambda *nets: 0.1)
    (row,) = small.rows(3, "relu", torch.nn.ReLU)
    assert "ours_us" not in row
    assert "gradients differ by 1.0e-01: not timed" in small.table([row])


def test_contestants_are_interleaved():
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = timing.interleaved(steps, 5)
    assert [len(v) for v in seconds.values()] == [5, 5]
    rounds = calls[20:]
    assert all(set(rounds[i : i + 2]) == {"a", "b"} for i in range(0, 10, 2))
    assert timing.quantiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 5.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_gradient_that_is_wrong_is_named(dtype):
    """However many others are right, and however much larger they are."""
    problem = problems.chain(64, [16] * 5, "relu", dtype, "cpu")
    grad = checking.arriving(problem)
    judge = checking.judge_of(problem, grad)
    found = checking.tried(problem.ours, problem, grad)
    assert judge.error(found)[0] <= 1
    for number, name in enumerate(judge.names):
        for off in (0.0, 1.5, float("nan")):
            planted = [*found]
            planted[number] = off * found[number]
            share, told = judge.error(planted)
            assert share > 1
            assert told.startswith(f"{name} is off by")
        assert judge.error([*found[:number], None, *found[number + 1 :]])[0] > 1


def test_no_gradient_arrives_where_a_rounding_decides():
    problem = problems.chain(64, [4, 4], "relu", torch.float32, "cpu")
    layer = problem.eager[0]
    with torch.no_grad():
        layer.bias.zero_()
        problem.inputs[0][3] = 0.0
    zero = (checking.arriving(problem) == 0).all(1)
    assert zero.nonzero().flatten().tolist() == [3]


def test_peers_take_part_where_they_are_installed(monkeypatch):
    """A stand-in of apex, whose signature this is."""
    function = types.ModuleType("apex.mlp.mlp")

    def mlp_function(bias, activation, x, first, second, *biases):
        hidden = torch.relu(x @ first.T + biases[0])
        return torch.relu(hidden @ second.T + biases[1])

    function.mlp_function = mlp_function  # pyright: ignore
    for name in ("apex", "apex.mlp"):
        monkeypatch.setitem(__import__("sys").modules, name, types.ModuleType(name))
    monkeypatch.setitem(__import__("sys").modules, "apex.mlp.mlp", function)
    monkeypatch.setattr(peers, "installed", lambda: ["apex", "quack", "tinycudann"])
    problem = problems.chain(64, [8, 8, 8], "relu", torch.float32, "cpu")
    assert "quack has blocks" in problem.peers["quack"]
    assert "no biases" in problem.peers["tinycudann"]
    grad = checking.arriving(problem)
    found = contest.checked({"apex": problem.peers["apex"]}, problem, grad)
    assert found["apex"]["check"] == "right"
    half = problems.chain(64, [8, 8, 8], "relu", torch.bfloat16, "cpu")
    assert "no bfloat16" in half.peers["apex"]


@pytest.mark.parametrize(
    ("act", "most", "eager", "ours"), [("relu", 0, 3, 3), ("gelu", 0, 4, 3), ("gelu", 9999, 4, 4)]
)
def test_saved_bytes_of_a_known_chain_are_exact(act, most, eager, ours, monkeypatch, not_small):
    """x, a1, a2; x, z1, a1, z2 and x, z1, z2, unless there is memory for a1."""
    monkeypatch.setattr(gates, "MORE", most)
    problem = problems.chain(64, [4, 4, 4], act, torch.float32, "cpu")
    for net, matrices in ((problem.eager, eager), (problem.ours, ours)):
        found = memory.saved_bytes(functools.partial(net, *problem.inputs), list(net.parameters()))
        assert found == matrices * 64 * 4 * 4


def test_peak_bytes_of_a_known_chain_are_exact():
    """eager, relu: a1, a2, delta2 and what BP2 makes of it, then grad_W2 and grad_b2."""
    problem = problems.chain(64, [4, 4, 4], "relu", torch.float32, "cpu")
    found = contest.weights(problem.eager, problem, torch.ones(64, 4), "cpu")
    assert found["peak_bytes"] == 4 * (4 * 64 * 4 + 4 * 4 + 4)
    assert found["launches"] is None


def test_peak_bytes_of_what_is_known():
    def call():
        a = torch.ones(1000)
        b = a + 1
        del a
        return b + 1

    assert 8000 <= weighing.peak_bytes(call, "cpu") < 8100  # and the numbers 1


def test_equations_are_checked_and_timed(monkeypatch):
    monkeypatch.setattr(equations, "SHAPES", {"cpu": (8, 4, 4)})
    monkeypatch.setattr(ceilings, "measured", lambda *_: ROOF)
    settings = Settings("cpu", (torch.float32, torch.bfloat16))
    outcome = equations.run(settings)
    assert [row["operation"] for row in outcome.rows] == [*equations.OPERATIONS] * 2
    assert all(row["ms"] > 0 and row["share of roofline"] > 0 for row in outcome.rows)
    assert not outcome.wrong
    backend = equations.backend_for(torch.ones(1))
    names = {name: getattr(backend, name) for name in equations.OPERATIONS}
    names["bp4_weight_gradient"] = lambda delta, x: 1.1 * backend.bp4_weight_gradient(delta, x)
    planted = types.SimpleNamespace(**names)
    monkeypatch.setattr(equations, "backend_for", lambda x: planted)
    outcome = equations.run(settings)
    assert [text.split(":")[0] for text in outcome.wrong] == ["bp4_weight_gradient"] * 2
    assert ["ms" in row for row in outcome.rows] == [True, True, True, True, False] * 2


def test_scaling_has_verdicts():
    found = [
        {"varied": varied, varied: n, "step_ms": 2.0 * n**power, "check": "right"}
        for varied, power in (("rows", 1.0), ("parameters", 1.2))
        for n in (1, 2, 4)
    ]
    rows, parameters = scaling.told(found).splitlines()
    shown = "shown: time grows in proportion to"
    assert rows == f"{shown} rows, slope 1.00 from 1 to 4; from one to the next: 1.00, 1.00"
    assert parameters.startswith(f"not {shown} parameters, slope 1.20 from 1 to 4")
    planted = [
        {**row, "check": "wrong", "not timed": "off", "width": 4, "rows": 1} for row in found
    ]
    assert scaling.told(planted).count("not timed: manualgrad on rows 1, width 4: off") == 6


def test_the_ceilings_bound_from_below():
    roof = ceilings.Ceilings({"float32": 100.0}, 10.0)
    assert roof.seconds(200.0, 10.0, "float32") == 2.0
    assert roof.seconds(10.0, 50.0, "float32") == 5.0


def test_work_is_counted():
    problem = problems.layer(8, 4, 2, "relu", torch.float32, "cpu")
    ends, parameters = 4 * (8 * 4 + 8 * 2), 4 * (4 * 2 + 2)
    assert problem.work["forward"] == (2 * 8 * 4 * 2, ends + parameters)
    assert problem.work["step"] == (3 * 2 * 8 * 4 * 2, 2 * (ends + parameters))
