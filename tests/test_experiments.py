"""The command line of experiments, with one that takes no time."""

import sys
import types
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import pytest

from experiments import __main__ as command
from experiments.results import Claim, Table, held
from experiments.study import Experiment


@dataclass(frozen=True)
class Config:
    arms: tuple[int, ...] = (1, 2)


@pytest.fixture
def fake(monkeypatch):
    """The experiment "fake" of one part, which counts its runs in .ran."""
    part = types.ModuleType("fake_experiment.part", "Is it right?")
    part.CONFIGS = {"smoke": Config(), "quick": Config()}
    part.PANELS, part.ran = 1, []
    part.arms = lambda config: [{"x": x} for x in config.arms]

    def measure(arm, config, setting):
        part.ran.append((arm["x"], setting.seed))
        return [{"y": arm["x"] + setting.seed, "gradient_difference": 0.0}]

    part.measure = measure
    part.tables = lambda rows: [Table("y", ["y"], [[rows["y"].mean()]])]
    part.claims = lambda rows: [Claim("y", "ours", "-", "-", held(rows["y"].max() > 0))]
    part.draw = lambda rows, axes: axes[0].plot(rows["x"], rows["y"])
    monkeypatch.setitem(sys.modules, part.__name__, part)
    monkeypatch.setattr(command, "EXPERIMENTS", {"fake": Experiment("fake", (part,), "A fake.")})
    return part


def run(out, *words):
    return command.main([*words, "--smoke", "--jobs", "1", "--out", str(out)])


def test_a_name_given_twice_runs_once(fake, tmp_path, capsys):
    assert run(tmp_path, "fake", "fake") == 0
    assert fake.ran == [(1, 0), (2, 0)]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["fake.csv", "fake.md", "fake.png"]
    assert capsys.readouterr().out.count("written:") == 1


@pytest.mark.parametrize("words", [("fake", "all"), ("report", "fake"), ("fake", "report")])
def test_all_and_report_stand_alone(fake, tmp_path, capsys, words):
    assert run(tmp_path, *words) == 2
    assert "stands alone" in capsys.readouterr().err
    assert not fake.ran


def test_a_killed_worker_is_a_line_and_finished_runs_are_kept(fake, tmp_path, capsys, monkeypatch):
    execute = command.execute

    def killed(runs, *rest):
        execute(runs[:1], *rest)
        raise BrokenProcessPool("a traceback of many lines")

    monkeypatch.setattr(command, "execute", killed)
    monkeypatch.setattr(command, "stop_workers", lambda: None)
    assert run(tmp_path, "fake") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "a worker process was killed" in error
    monkeypatch.setattr(command, "execute", execute)
    assert run(tmp_path, "fake") == 0
    assert fake.ran == [(1, 0), (2, 0)]
    assert "1 of 2 runs are finished already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text.splitlines()[0],
        lambda text: text.replace("part_dtype", "nothing"),
        lambda text: text.replace("float32", "float31"),
        lambda text: text.replace("wall_seconds", "seconds_of_wall"),
        lambda text: text.splitlines()[0] + "\n" + "?," * 30,
    ],
)
def test_a_damaged_file_of_rows_is_a_line(fake, tmp_path, capsys, damage):
    assert run(tmp_path, "fake") == 0
    file = tmp_path / "fake.csv"
    file.write_text(damage(file.read_text()))
    capsys.readouterr()
    assert run(tmp_path, "report") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "fake.csv" in error
    assert not (tmp_path / "report.html").exists()
