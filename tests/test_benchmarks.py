"""The benchmarks run, check before they time, and count bytes right."""

import functools
import json

import pytest
import torch

import benchmarks.__main__ as command
import manualgrad as mg
from benchmarks import (
    ceilings,
    contest,
    contests,
    equations,
    memory,
    problems,
    scaling,
    small,
    suites,
    timing,
    weighing,
)

BPS = ["BP1", "BP2", "BP3", "BP4"]


def test_memory_prints_exact_counts():
    table = memory.kept()
    assert "0.562" in table  # GELU: 9 of eager's 16 tensors
    assert "recompute" in table


def test_a_chain_never_holds_more_than_eager(monkeypatch):
    shapes = [(torch.nn.GELU, 1024, 256, 8), (torch.nn.ReLU, 1024, 256, 8)]
    monkeypatch.setattr(memory, "PEAKS", [*shapes, (torch.nn.GELU, 65536, 64, 4)])
    for line in memory.peaks(compiles=False).splitlines()[-3:]:
        eager, checkpointed, chain, recompute = map(float, line.split()[4:])
        assert chain <= eager
        assert recompute <= checkpointed
    assert recompute < 0.6 * checkpointed  # in tiles


def test_a_layer_never_holds_more_than_eager():
    eager = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.GELU())
    ours = mg.nn.Linear(256, 256, activation="gelu")
    x, grad = torch.randn(1024, 256, requires_grad=True), torch.ones(1024, 256)

    def both(net):
        net(x).backward(grad)
        for tensor in (x, *net.parameters()):
            tensor.grad = None

    held = [weighing.peak_bytes(functools.partial(both, net), "cpu") for net in (eager, ours)]
    assert held[1] <= held[0]


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
    cells = small.row(3, "relu", torch.nn.ReLU)
    assert len(cells) == 6
    assert all(value > 0 for value in (cells[2], cells[3], cells[5]))
    monkeypatch.setattr(small, "check", lambda *nets: 0.1)
    assert "not timed" in small.row(3, "relu", torch.nn.ReLU)[2]


def test_contestants_are_interleaved():
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = timing.interleaved(steps, 5)
    assert [len(v) for v in seconds.values()] == [5, 5]
    rounds = calls[20:]
    assert all(set(rounds[i : i + 2]) == {"a", "b"} for i in range(0, 10, 2))
    assert timing.quantiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 5.0)


def test_unknown_suites_and_bad_options_are_a_line(capsys, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for words, said in (
        (["smal"], "unknown suite 'smal'; there are small, memory, compiled"),
        (["layer", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["layer", "--out", str(file)], f"--out {file} cannot be written in"),
    ):
        assert command.main(words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert said in error


@pytest.fixture
def tiny(monkeypatch):
    """Every suite has one small chain, and there are no ceilings to be measured."""
    make = functools.partial(problems.chain, 8, [4, 4, 4], "gelu", torch.float32, "cpu", width=4)
    monkeypatch.setattr(suites, "of", lambda *_: [make])
    monkeypatch.setattr(
        ceilings, "measured", lambda *_: ceilings.Ceilings({"float32": 1e9, "bfloat16": 1e9}, 1e9)
    )
    monkeypatch.setattr(contests, "ROUNDS", 5)
    compiled = {"eager": lambda p: p.eager, "manualgrad": lambda p: p.ours}
    compiled["torch.compile"] = compiled["eager"]  # a compiler takes longer than all of this
    monkeypatch.setattr(
        contest, "contestants", lambda problem, _: {n: f(problem) for n, f in compiled.items()}
    )


def test_a_suite_prints_and_records_each_contestant(tiny, tmp_path, capsys):
    assert command.main(["chain", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "vs eager" in text
    assert "geometric mean" in text
    (folder,) = tmp_path.iterdir()
    names = {file.name for file in folder.iterdir()}
    assert names == {"chain.json", "chain.csv", "chain.png", "chain-roofline-float32.png"}
    told = json.loads((folder / "chain.json").read_text())
    assert {"device", "torch", "threads", "commit"} <= set(told["machine"])
    assert [row["provider"] for row in told["rows"]] == ["eager", "manualgrad", "torch.compile"]
    for row in told["rows"]:
        assert row["p20_ms"] <= row["both_ms"] <= row["p80_ms"]
        assert row["share of roofline"] > 0
        assert row["both vs eager"] > 0
        assert row["peak_bytes"] >= row["saved_bytes"] > 0
    eager, ours = told["rows"][:2]
    assert (eager["saved_bytes"], ours["saved_bytes"]) == (
        4 * 128,
        3 * 128,
    )  # x, z1, a1, z2; x, z1, z2


def test_after_a_failed_check_there_is_no_figure(tiny, tmp_path, capsys, monkeypatch):
    def wrong(*args):
        return 1.01 * right(*args)

    right = mg.nn.MLP.forward
    monkeypatch.setattr(mg.nn.MLP, "forward", wrong)
    assert command.main(["chain", "--out", str(tmp_path)]) == 1
    assert "not timed: off by" in capsys.readouterr().out
    (file,) = tmp_path.glob("*/chain.json")
    _, ours, _ = json.loads(file.read_text())["rows"]
    assert "off by" in ours["not timed"]
    assert "both_ms" not in ours


def test_a_contestant_that_cannot_run_is_named_with_its_reason(tiny, tmp_path, capsys, monkeypatch):
    class Broken(torch.nn.Module):
        def forward(self, x):
            raise RuntimeError("no compiler here")

    found = contest.contestants
    monkeypatch.setattr(
        contest, "contestants", lambda *given: {**found(*given), "torch.compile": Broken()}
    )
    assert command.main(["chain", "--out", str(tmp_path)]) == 0
    assert "not timed: RuntimeError: no compiler here" in capsys.readouterr().out


def test_peak_bytes_of_what_is_known():
    def call():
        a = torch.ones(1000)
        b = a + 1
        del a
        return b + 1

    assert 8000 <= weighing.peak_bytes(call, "cpu") < 8100  # and the numbers 1


def test_equations_and_scaling_have_rows(monkeypatch):
    roof = ceilings.Ceilings({"float32": 1e12}, 1e12)
    monkeypatch.setattr(equations, "ROWS", {"cpu": (8, 4, 4)})
    rows = equations.rows("cpu", torch.float32, roof)
    assert [row["operation"].split(":")[0] for row in rows] == ["forward", *BPS]
    assert all(row["ms"] > 0 for row in rows)
    found = [{"varied": "rows", "rows": n, "ms": 2.0 * n} for n in (1, 2, 4)]
    assert scaling.slope(found, "rows") == pytest.approx(1.0)


def test_the_ceilings_bound_from_below():
    roof = ceilings.Ceilings({"float32": 100.0}, 10.0)
    assert roof.seconds(200.0, 10.0, "float32") == 2.0
    assert roof.seconds(10.0, 50.0, "float32") == 5.0
