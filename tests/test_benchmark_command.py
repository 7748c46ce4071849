"""python -m benchmarks: what it prints, records and refuses."""

import csv
import functools
import json

import pytest
import torch

import benchmarks.__main__ as command
import manualgrad as mg
from benchmarks import ceilings, contest, contests, grid, problems, scaling

ROOF = ceilings.Ceilings({"float32": 1e9, "bfloat16": 1e9}, 1e9)


def test_unknown_suites_and_bad_options_are_a_line(capsys, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for words, said in (
        (["smal"], "unknown suite 'smal'; there are layer, mlp, chain, narrow, patch, small"),
        (["layer", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["layer", "--device", "cuda:99"], "--device cuda:99: torch sees"),
        (["layer", "--device", "abacus"], "--device must be cpu, cuda, cuda:N or auto, got"),
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
    monkeypatch.setattr(grid, "of", lambda *_: [make])
    monkeypatch.setattr(ceilings, "measured", lambda *_: ROOF)
    monkeypatch.setattr(contests, "ROUNDS", 2)
    monkeypatch.setattr(scaling, "SWEEPS", {"cpu": {name: [(8, 4), (16, 8)] for name in VARIED}})
    compiled = {"eager": lambda p: p.eager, "manualgrad": lambda p: p.ours}
    compiled["torch.compile"] = compiled["eager"]  # a compiler takes longer than all of this
    monkeypatch.setattr(
        contest, "contestants", lambda problem, _: {n: f(problem) for n, f in compiled.items()}
    )


VARIED = ("rows", "parameters")


def recorded(tmp_path, suite="chain"):
    (file,) = tmp_path.glob(f"*/{suite}.json")
    return json.loads(file.read_text())


def test_a_suite_prints_and_records_each_contestant(tiny, tmp_path, capsys):
    assert command.main(["chain", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    for said in ("peers: none", "vs eager", "geometric mean", "the worst problem", "in proportion"):
        assert said in text
    (folder,) = tmp_path.iterdir()
    pictures = {"chain.png", "chain-roofline-float32.png", "chain-scaling.png"}
    assert {file.name for file in folder.iterdir()} == {"chain.json", "chain.csv", *pictures}
    told = recorded(tmp_path)
    keys = {"device", "torch", "threads", "commit", "caches", "flops", "bandwidth"}
    assert keys <= set(told["machine"])
    rows = [row for row in told["rows"] if "varied" not in row]
    assert [row["provider"] for row in rows] == ["eager", "manualgrad", "torch.compile"]
    for row in rows:
        for part in problems.PARTS:
            assert row[f"{part}_p20_ms"] <= row[f"{part}_ms"] <= row[f"{part}_p80_ms"]
            assert row[f"{part} share of roofline"] > 0
            assert row[f"{part} vs eager"] > 0
        assert row["peak_bytes"] >= row["saved_bytes"] > 0
    with (folder / "chain.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["provider"] for line in lines[:3]] == [row["provider"] for row in rows]
    assert all(line["torch"] == torch.__version__ and line["device"] for line in lines)


def test_after_a_failed_check_there_is_no_figure(tiny, tmp_path, capsys, monkeypatch):
    def wrong(*args):
        return 1.01 * right(*args)

    right = mg.nn.MLP.forward
    monkeypatch.setattr(mg.nn.MLP, "forward", wrong)
    assert command.main(["chain", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "not timed: manualgrad, rows 8" in said.out
    assert "failed its check, chain: manualgrad on rows 8, width 4, gelu, float32" in said.err
    _, ours, _, *swept = recorded(tmp_path)["rows"]
    for row in (ours, *swept):
        assert "is off by 1.0e-02" in row["not timed"]
        assert row["check"] == "wrong"
        assert not [key for key in row if key.endswith(("_ms", "_bytes"))]


def test_a_contestant_that_cannot_run_is_named_with_its_reason(tiny, tmp_path, capsys, monkeypatch):
    class Broken(torch.nn.Module):
        def forward(self, x):
            raise RuntimeError("no compiler here")

    found = contest.contestants
    others = {"torch.compile": Broken(), "apex": "not of this kind"}
    monkeypatch.setattr(contest, "contestants", lambda *given: {**found(*given), **others})
    assert command.main(["chain", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "not timed: torch.compile, rows 8, width 4, gelu, float32: RuntimeError: no comp" in text
    assert "float32: not of this kind" in text
    reasons = [row.get("not timed") for row in recorded(tmp_path)["rows"]]
    assert reasons[:4] == [None, None, "RuntimeError: no compiler here", "not of this kind"]


def test_a_problem_that_is_too_large_is_left_out_by_name(tiny, tmp_path, capsys, monkeypatch):
    def fails(*given):
        raise torch.OutOfMemoryError("of 80 GiB there are 3")

    monkeypatch.setattr(contests, "held", fails)
    assert command.main(["layer", "--out", str(tmp_path)]) == 0
    assert (
        "not timed: all, rows 8, width 4, gelu, float32: out of memory" in capsys.readouterr().out
    )


def test_a_trial_writes_over_no_measurement(tiny, tmp_path):
    assert command.main(["layer", "--quick", "--out", str(tmp_path)]) == 0
    (folder,) = tmp_path.iterdir()
    assert [file.name for file in folder.iterdir()] == ["quick"]
    assert recorded(folder, "layer")["machine"]["quick"] is True
