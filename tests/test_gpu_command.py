"""`make gpu`: says so without a GPU, and its plumbing holds without one."""

import json
import pathlib
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: it exists for Linux only")

from benchmarks.gpu.__main__ import summary
from benchmarks.gpu.stages import STAGES

ROOT = pathlib.Path(__file__).parents[1]


def gpu(*arguments):
    command = [sys.executable, str(ROOT / "tools" / "gpu.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: make gpu would run")
def test_without_a_gpu_it_says_so_and_exits_2():
    out = gpu()
    assert out.returncode == 2
    assert "torch sees no GPU here" in out.stdout


@pytest.mark.long
def test_the_dry_run_installs_tests_measures_and_sums_up():
    out = gpu("--dry-run")
    assert out.returncode == 0, out.stdout + out.stderr
    assert "failed: nothing" in out.stdout
    assert "tests: " in out.stdout
    table = out.stdout.split("failed: nothing")[1]
    for stage in STAGES:
        assert f"\n{stage}" in table
    assert "dry run" not in table, "results of a dry run are not kept"


def test_the_summary_shows_losses_and_failed_checks(tmp_path):
    rows = [
        {"operation": "bp2", "ours": "hybrid", "theirs": "eager", "ratio": 0.8},
        {"operation": "bp2", "ours": "hybrid", "theirs": "eager", "ratio": 1.4},
        {"operation": "bp2", "ours": "triton", "not timed, off by": 0.3},
    ]
    (tmp_path / "hybrid.json").write_text(json.dumps({"rows": rows}))
    text = summary(tmp_path)
    assert "bp2 hybrid / eager" in text
    assert "0.80   1.10    1.40" in text
    assert "not timed, off by" in text
