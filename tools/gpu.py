"""make gpu: the kernel tests and the first measurements on a machine with a CUDA GPU.

Usage: python tools/gpu.py [--dry-run] [--results FOLDER]

Wants torch, triton, pytest and setuptools in the interpreter that runs it, and no registry: it
installs manualgrad into a folder of its own, which it removes. Each stage has a process of its own
and leaves its file in benchmarks/results/DEVICE/ as it ends, so what is measured is kept whatever
happens next. Exit status: 0, 1 if a test or a stage failed, 2 without a GPU.
--dry-run tries all of this on the CPU, in Triton's interpreter, tiny, with its results elsewhere.
"""

import argparse
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from typing import IO

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARDS = min(os.cpu_count() or 1, 16)  # most of the time is compilation
BUDGET = 530  # seconds
TESTS_MAY_TAKE = 280
STAGE_MAY_TAKE = 90
STAGES = (
    "fast_forms", "narrow", "graphs", "products", "epilogues", "hybrid", "relu_epilogue",
    "launches", "chains",
)  # fmt: skip


def device_name() -> str | None:
    """The GPU that torch sees, or None with the reason printed."""
    try:
        import torch
    except ImportError:
        print(f"make gpu: {sys.executable} has no torch; name another: make gpu PYTHON=...")
        return None
    if not torch.cuda.is_available():
        print("make gpu: torch sees no GPU here; `make gpu ARGS=--dry-run` tries the plumbing")
        return None
    return torch.cuda.get_device_name()


def install(target: pathlib.Path) -> None:
    """manualgrad, its tests and its benchmarks in target; the checkout stays as it is."""
    source = target / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("manualgrad", "triton_kernels", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    pip += ["--no-deps", "--no-build-isolation", "--target", str(target / "site"), str(source)]
    if subprocess.run(pip, cwd=target).returncode:
        print("make gpu: pip could not install it, see above; its files are copied instead")
        shutil.copytree(source / "manualgrad", target / "site" / "manualgrad", dirs_exist_ok=True)
        kernels = target / "site" / "manualgrad" / "triton_kernels"
        shutil.copytree(source / "triton_kernels", kernels, dirs_exist_ok=True)
    shutil.copytree(source / "benchmarks", target / "site" / "benchmarks")
    shutil.copytree(source / "tests", target / "tests")


def environment(target: pathlib.Path, dry: bool) -> dict[str, str]:
    found = [str(target / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    made = dict(os.environ, PYTHONPATH=os.pathsep.join(found), PYTHONUNBUFFERED="1")
    made["MANUALGRAD_CACHE"] = str(target / "cache")
    made.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    made.pop("TRITON_INTERPRET", None)
    if dry:
        made["TRITON_INTERPRET"] = "1"
    return made


def run_tests(target: pathlib.Path, dry: bool, seconds: float) -> bool:
    """The kernel tests, in several processes since most of the time is compilation."""
    shards = 1 if dry else SHARDS
    command = [sys.executable, "-P", "-m", "pytest", "tests/kernels", "-q", "-W", "default"]
    command += ["-p", "no:cacheprovider", "--rootdir", str(target), "-x" if dry else "--tb=short"]
    few = ["-k", "test_memory or test_rows_are_few or hybrid"]
    command += few if dry else ["--exhaustive"]
    logs, processes = [], []
    for shard in range(shards):
        log = (target / f"tests-{shard}.log").open("w+")
        env = environment(target, dry) | {"KERNEL_TESTS": f"{shard}/{shards}"}
        logs.append(log)
        processes.append(
            subprocess.Popen(command, cwd=target, env=env, stdout=log, stderr=subprocess.STDOUT)
        )
    end = time.monotonic() + seconds
    try:
        passed = [_passed(p, log, end) for p, log in zip(processes, logs, strict=True)]
        return all(passed)
    finally:  # an interruption leaves none behind
        for process in processes:
            process.kill()


def _passed(process: subprocess.Popen, log: IO[str], end: float) -> bool:
    try:
        code: object = process.wait(timeout=max(1.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        code = "not done in time"
    log.seek(0)
    text = log.read()
    log.close()
    if code == 0:
        print("tests:", text.strip().splitlines()[-1])
    else:
        print(f"tests, a process ended with {code}:\n{text[-6000:]}")
    return code == 0


def run_stage(name: str, target: pathlib.Path, folder: pathlib.Path, dry: bool, seconds) -> bool:
    command = [sys.executable, "-P", "-m", "benchmarks.gpu", name, str(folder)]
    command += ["--dry-run"] if dry else []
    try:
        ended = subprocess.run(
            command, cwd=target, env=environment(target, dry), timeout=max(1.0, seconds)
        )
    except subprocess.TimeoutExpired:
        print(f"{name}: stopped after {seconds:.0f} s; the rows so far are kept")
        return False
    return ended.returncode == 0


def run_suites(target: pathlib.Path, results: pathlib.Path, seconds: float) -> bool:
    """python -m benchmarks, a problem of each suite, in the time that is left."""
    missing = [name for name in ("matplotlib", "tabulate", "tqdm") if not find_spec(name)]
    if missing or seconds < 60:
        why = f"{', '.join(missing)} not installed" if missing else f"{seconds:.0f} s are left"
        print(f"python -m benchmarks grid --quick: left out, {why}")
        return True
    command = [sys.executable, "-P", "-m", "benchmarks", "grid", "--quick", "--out", str(results)]
    try:
        env = environment(target, dry=False)
        return subprocess.run(command, cwd=target, env=env, timeout=seconds).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"python -m benchmarks: stopped after {seconds:.0f} s")
        return False


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "benchmarks" / "results")
    given = parser.parse_args(arguments)
    device = "dry run" if given.dry_run else device_name()
    if device is None:
        return 2
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder)
        install(target)
        results = target if given.dry_run else given.results
        results = results / re.sub(r"[^A-Za-z0-9]+", "-", device)
        failed = [] if run_tests(target, given.dry_run, TESTS_MAY_TAKE) else ["tests"]
        for stage in STAGES:
            left = BUDGET - (time.monotonic() - begun)
            seconds = left if stage == STAGES[-1] else min(left, STAGE_MAY_TAKE)
            if not run_stage(stage, target, results, given.dry_run, seconds):
                failed.append(stage)
        left = BUDGET - (time.monotonic() - begun)
        if not given.dry_run and not run_suites(target, given.results, left):
            failed.append("suites")
        print(f"\n{device}, {time.monotonic() - begun:.0f} s; failed: {failed or 'nothing'}")
        run_stage("summary", target, results, False, 60)
        if not given.dry_run:
            print(f"written to {results}")
    return 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is open is closed
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("make gpu: interrupted; the stages that ended are kept")
        sys.exit(130)
