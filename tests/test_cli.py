"""The command line: what it prints, what it writes, and how it ends."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch
from helpers import command
from selection import EXHAUSTIVE

from manualgrad import cli

TARGETS = (pathlib.Path(__file__).parent / "cli_targets.py").read_text()


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """A command sets a variable for its own process; here it must not outlive it."""
    monkeypatch.setenv("TRITON_INTERPRET", "")  # so that what it was is remembered
    monkeypatch.delenv("TRITON_INTERPRET")


@pytest.fixture
def targets(tmp_path, monkeypatch):
    """A package's module of targets, in the working directory."""
    (tmp_path / "their_targets.py").write_text(TARGETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("their_targets", None)


def run(*arguments):
    try:
        return cli.main(list(arguments))
    except SystemExit as ended:
        return ended.code


def test_a_right_target_ends_with_0(targets, capsys):
    assert run("check", "their_targets:right") == 0
    printed = capsys.readouterr().out
    assert "sin: no finding in" in printed
    assert "Not run:" in printed


def test_a_wrong_target_ends_with_1(targets, capsys):
    assert run("check", "their_targets:wrong", "--only", "adjoint") == 1
    assert "gradient of x (4, 3): [" in capsys.readouterr().out
    assert run("check", "their_targets:beside") == 1
    printed = capsys.readouterr().out
    assert "native" in printed
    assert "adjoint" not in printed


def test_trees_dtypes_and_modules(targets, capsys):
    assert run("check", "their_targets:tree", "--only", "adjoint") == 0
    assert run("check", "their_targets:module", "--only", "conduct", "--dtype", "bfloat16") == 0
    assert run("check", "their_targets:right", "--only", "conduct", "--dtype", "float16") == 0
    assert "beside float64" not in capsys.readouterr().err


def test_an_activation_is_a_target(capsys):
    assert run("check", "softsign", "--only", "symbolic", "oracle") == 0
    assert "softsign: no finding in" in capsys.readouterr().out


def test_a_zero_argument_callable_may_return_a_report(targets, capsys, tmp_path):
    (tmp_path / "their_targets.py").write_text(
        "import manualgrad as mg, torch\ndef report(): return mg.check(torch.sin, torch.ones(2), only='adjoint')"
    )
    assert run("check", "their_targets:report") == 0
    assert "sin: no finding in 3 checks" in capsys.readouterr().out


USAGE = {
    "no such module": (
        ["no_such_module:f"],
        "ModuleNotFoundError: No module named 'no_such_module'",
    ),
    "no such name": (["their_targets:nobody"], "has no attribute 'nobody'"),
    "no colon": (["their_targets"], "neither package.module:callable nor an activation"),
    "not a tuple": (["their_targets:nothing"], "returned 3, not a tuple"),
    "raises": (["their_targets:broken"], "RuntimeError: no data here"),
    "misfit": (["their_targets:misfit"], "sin has no floating tensor"),
    "judge": (["their_targets:right", "--only", "jury"], "there is no judge 'jury'"),
    "device": (["their_targets:right", "--device", "moon"], "--device moon: "),
    "folder": (
        ["their_targets:right", "--json", "no/such/folder.json"],
        "nothing can be written in",
    ),
    "a folder": (
        ["their_targets:right", "--json", "."],
        "--json: . is a folder; name a file in it",
    ),
    "jobs": (["--jobs", "0"], "--jobs must be at least 1"),
    "jobs of a target": (
        ["their_targets:right", "--jobs", "2"],
        "--quick and --jobs are of the audit",
    ),
    "a quick target": (["their_targets:right", "--quick"], "--quick and --jobs are of the audit"),
    "an activation's dtype": (["gelu", "--dtype", "float16"], "do not reach an activation's cases"),
    "an activation's device": (["gelu", "--device", "cpu"], "do not reach an activation's cases"),
    "a report's judges": (
        ["their_targets:report", "--only", "native"],
        "it returned a report, too late for --only",
    ),
    "target swallowed": (
        ["--only", "adjoint", "their_targets:right"],
        "TARGET comes before --only, or after --: it took ['adjoint', 'their_targets:right']",
    ),
    "exit": (["their_targets:ends"], "their_targets:ends: SystemExit: 0"),
    "keyword": (["their_targets:misspelt"], "no keyword 'refrence'; did you mean 'reference'?"),
    "some keywords": (
        ["their_targets:half_known"],
        "no keyword 'judges'; it has reference, params",
    ),
    "uncopyable": (["their_targets:uncopyable", "--dtype", "float64"], "Linear cannot be copied"),
    "lazy": (
        ["their_targets:lazy_misfit"],
        "raised IndexError: tuple index out of range; call it once",
    ),
    "complex": (
        ["their_targets:complex", "--dtype", "float64"],
        "is none for a tensor of torch.complex64",
    ),
    "out of reach": (
        ["their_targets:reads", "--dtype", "float64"],
        "do not reach a tensor of shape (3,)",
    ),
    "empty": (["their_targets:no_tuple"], "returned (), not a tuple (fn, *inputs)"),
    "dtype": (["their_targets:right", "--dtype", "int8"], "invalid choice: 'int8'"),
    "option": (["--fast"], "unrecognized arguments: --fast"),
}


@pytest.mark.parametrize("case", USAGE)
def test_a_bad_command_line_ends_with_2_and_one_line(targets, capsys, case):
    arguments, message = USAGE[case]
    assert run("check", *arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not captured.out


def test_a_function_that_ends_the_process_is_a_finding(targets, capsys):
    assert run("check", "their_targets:ends_within") == 1
    assert "fn raised SystemExit: 0" in capsys.readouterr().out


def test_a_module_that_exits_when_imported_ends_with_2(targets, capsys):
    (targets / "their_targets.py").write_text("import sys; sys.exit(0)")
    assert run("check", "their_targets:right") == 2
    assert "their_targets:right: SystemExit: 0" in capsys.readouterr().err


def test_nothing_asked_ends_with_1(targets, capsys):
    assert run("check", "their_targets:right", "--only", "oracle") == 1
    assert "sin: nothing could be checked" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_a_dtype_reaches_trees_modules_params_and_the_reference(targets, capsys, dtype):
    assert run("check", "their_targets:everywhere", "--dtype", dtype) == 0, capsys.readouterr()
    assert run("check", "their_targets:beside_a_module", "--dtype", dtype) == 0
    assert run("check", "their_targets:lazy", "--dtype", dtype, "--only", "adjoint") == 0


def test_the_target_comes_after_two_dashes(targets, capsys):
    assert run("check", "--only", "adjoint", "--", "their_targets:right") == 0


def test_no_command_ends_with_2(capsys):
    assert run() == 2
    assert run("audit") == 2


def test_json_is_written_whole(targets, capsys):
    file = targets / "report.json"
    assert run("check", "their_targets:wrong", "--only", "adjoint", "--json", str(file)) == 1
    read = json.loads(file.read_text())
    assert read["passed"] is False
    assert {o["status"] for o in read["outcomes"]} == {"finding", "not run"}
    assert sorted(p.name for p in targets.iterdir() if p.is_file()) == [
        "report.json",
        "their_targets.py",
    ]
    capsys.readouterr()
    assert run("check", "their_targets:right", "--only", "adjoint", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["verdict"].startswith("sin: no finding")


def test_what_a_target_prints_is_not_in_its_json(targets, capsys):
    assert run("check", "their_targets:prints", "--only", "adjoint", "--json", "-") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["passed"]
    assert captured.err.startswith("made\ncalled\n")


def test_what_stood_in_the_file_stays_if_writing_fails(targets, monkeypatch, capsys):
    file = targets / "report.json"
    file.write_text("before")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    assert run("check", "their_targets:right", "--only", "adjoint", "--json", str(file)) == 2
    assert "cannot be written (disk full)" in capsys.readouterr().err
    assert file.read_text() == "before"
    assert len(list(targets.iterdir())) == 2 + (targets / "__pycache__").exists()


def test_missing_packages_are_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tabulate", None)
    assert run("check") == 2
    assert "tabulate is not installed; pip install 'manualgrad[check]'" in capsys.readouterr().err


def test_activations_and_info(capsys):
    assert run("activations") == 0
    printed = capsys.readouterr().out
    assert "gelu_tanh" in printed
    assert "max(z, 0)" in printed
    assert run("info") == 0
    printed = capsys.readouterr().out
    assert torch.__version__ in printed
    assert "Triton kernels" in printed


@pytest.mark.parametrize(
    ("some", "least"),
    [(["--dtype", "bfloat16"], 100), pytest.param([], 800, marks=EXHAUSTIVE)],
    ids=["bfloat16", "whole"],
)
def test_the_quick_audit_as_a_stranger_runs_it(tmp_path, some, least):
    """In processes of its own; test_audit.py walks its rows, of every dtype, in this one."""
    file = tmp_path / "audit.json"
    given = ["check", "--quick", *some, "--json", str(file)]
    out, err = command(*given, cwd=tmp_path).communicate()
    assert "no finding in" in out, out + err
    outcomes = json.loads(file.read_text())["outcomes"]
    assert len(outcomes) >= least
    assert not [o for o in outcomes if o["status"] == "finding"]


def test_the_script_is_installed():
    script = pathlib.Path(sys.executable).with_name("manualgrad")
    ended = subprocess.run([script, "activations"], capture_output=True, text=True)
    assert ended.returncode == 0
    assert "quick_gelu" in ended.stdout
