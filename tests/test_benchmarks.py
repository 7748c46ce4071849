"""The benchmarks run, check before they time, and count bytes right."""

import pytest
import torch

import benchmarks.__main__ as command
from benchmarks import memory, small, timing


def test_memory_prints_exact_counts():
    table = memory.run()
    assert "0.562" in table  # GELU: 9 of eager's 16 tensors
    assert "recompute" in table


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


def test_unknown_suites_are_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(["smal"])
    assert caught.value.code == 2
    assert "unknown suite 'smal'; there are small, memory, compiled" in capsys.readouterr().err
