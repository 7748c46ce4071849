"""The command line of experiments, with one that takes no time."""

import errno
import importlib.util
import os
import sys
import types
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import pytest

from experiments import __main__ as command
from experiments import records
from experiments.records import RecordError, alone
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


def test_interrupted_it_says_what_is_kept_and_goes_on_from_there(fake, tmp_path, capsys):
    measure, stops = fake.measure, iter([False, True, False])

    def stopped(*given):
        if next(stops):
            raise KeyboardInterrupt
        return measure(*given)

    fake.measure = stopped
    assert run(tmp_path, "fake") == 130
    error = capsys.readouterr().err
    assert "interrupted; finished runs are in" in error
    assert "fake.partial.csv" in error
    assert run(tmp_path, "fake") == 0
    assert fake.ran == [(1, 0), (2, 0)]


@pytest.mark.parametrize("commit", ["6261327e7", "012345678", "none"])
def test_a_commit_that_could_be_a_number_is_a_word(commit, fake, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_commit", lambda: commit)
    unfinished(fake, tmp_path, monkeypatch)
    assert run(tmp_path, "fake") == 0
    assert not fake.ran  # all runs were kept
    assert records.read_csv(tmp_path / "fake.csv")["commit"].tolist() == [commit] * 2


def test_interrupted_before_a_run_is_finished_nothing_is_kept(fake, tmp_path, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    fake.measure = stopped
    assert run(tmp_path, "fake") == 130
    assert "no run was finished" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def unfinished(fake, out, monkeypatch):
    """The file of two finished runs whose experiment could not write its end."""

    def no_end(*_):
        raise RecordError("no end")

    with monkeypatch.context() as at:
        at.setattr(command, "in_order", no_end)
        assert run(out, "fake") == 2
    fake.ran.clear()
    return out / "fake.partial.csv"


def test_a_damaged_row_is_done_again_and_the_others_are_kept(fake, tmp_path, capsys, monkeypatch):
    file = unfinished(fake, tmp_path, monkeypatch)
    first, second, third = file.read_text().splitlines()
    file.write_text("\n".join([first, second, third.replace("x=2", "x=3")]))
    assert run(tmp_path, "fake") == 0
    assert fake.ran == [(2, 0)]
    assert "line 3 is damaged; that run is done again, the 1 others are kept" in (
        capsys.readouterr().err
    )


def test_rows_of_another_setting_are_not_gone_on_from(fake, tmp_path, capsys, monkeypatch):
    unfinished(fake, tmp_path, monkeypatch)
    assert run(tmp_path, "fake", "--dtype", "float64") == 2
    assert (
        "holds unfinished runs of dtype float32, this is dtype float64" in capsys.readouterr().err
    )
    assert run(tmp_path, "fake", "--dtype", "float64", "--fresh") == 0


def test_a_full_disk_leaves_the_old_files_and_the_finished_runs(
    fake, tmp_path, capsys, monkeypatch
):
    assert run(tmp_path, "fake") == 0
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    room = iter([True] * 4)  # for each run's row, then for .csv and .md, and none for .png

    def fsync(_):
        if not next(room, False):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    fake.ran.clear()
    assert run(tmp_path, "fake") == 2
    assert "fake.png cannot be written: No space left on device" in capsys.readouterr().err
    after = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert after.pop("fake.partial.csv").count(b"\n") == 3
    assert after == before
    monkeypatch.undo()


def test_one_writer_at_a_time(fake, tmp_path, capsys):
    with alone("fake", tmp_path):
        assert run(tmp_path, "fake") == 2
    assert "another run of fake is writing" in capsys.readouterr().err
    assert not fake.ran
    assert run(tmp_path, "fake") == 0


BAD = {
    "unknown name": (("nobody",), "unknown experiment 'nobody'; there are "),
    "unknown part": (("fake.nobody",), "unknown experiment 'fake.nobody'; there are fake.part"),
    "no seed": (("fake", "--smoke", "--seeds", "0"), "--seeds must be from 1"),
    "one seed": (("fake", "--quick", "--seeds", "1"), "--seeds must be at least 2"),
    "no process": (("fake", "--jobs", "0"), "--jobs must be"),
    "no directory of data": (("fake", "--data", "mnist"), "needs --data-dir"),
    "no data there": (("fake", "--data", "mnist", "--data-dir", "/nowhere"), "/nowhere"),
    "no device": (("fake", "--device", "nothing"), "--device nothing cannot be used here"),
    "no executor": (("fake", "--executor", "nobody"), "Invalid backend: nobody"),
    "no package": (("fake", "--executor", "dask"), "needs the package distributed: install it"),
    "a file for --out": (("fake", "--out", __file__), "it is a file; take another directory"),
}


@pytest.mark.parametrize(("words", "said"), BAD.values(), ids=BAD)
def test_a_bad_command_line_is_one_line(fake, tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert command.main(["--out", str(tmp_path), *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert not fake.ran


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
