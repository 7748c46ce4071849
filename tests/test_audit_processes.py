"""The processes of `manualgrad check`: interrupted, and killed."""

import os
import pathlib
import signal
import threading
import time

import pytest
from helpers import command

from manualgrad.verify.audit import interrupts_held


def _hears_interrupts():
    """Also where the tests run behind a shell, which has its children ignore them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _workers(process):
    """Two, once there are as many; deaf to interrupts since before their first line of Python."""
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    for _ in range(1200):
        time.sleep(0.05)
        found = [pathlib.Path("/proc", pid) for pid in children.read_text().split()]
        workers = [one for one in found if "spawn_main" in (one / "cmdline").read_text()]
        if len(workers) >= 2:
            return [int(one.name) for one in workers]
    raise AssertionError("no workers in a minute")


@pytest.mark.parametrize("later", [0, 5], ids=["at once", "while they work"])
def test_an_interrupted_audit_ends_with_130_and_no_file(later, tmp_path):
    file = tmp_path / "audit.json"
    own = {"cwd": tmp_path, "start_new_session": True, "preexec_fn": _hears_interrupts}
    with command("check", "--json", str(file), "--jobs", "2", **own) as process:
        try:
            _workers(process)
            time.sleep(later)
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, out + err
    assert "manualgrad check: interrupted" in err
    assert "Traceback" not in err
    assert "Warning" not in err
    assert not list(pathlib.Path(tmp_path).iterdir())


def test_an_audit_whose_worker_is_killed_says_so(tmp_path):
    with command("check", "--jobs", "2", cwd=tmp_path) as process:
        try:
            os.kill(_workers(process)[0], signal.SIGKILL)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 2
    assert "a worker process ended early" in err
    assert "Traceback" not in err


def _interrupted(thread, reached):
    with interrupts_held():
        signal.pthread_kill(thread.ident, signal.SIGINT)
        time.sleep(0.1)
        reached.append(True)


def test_workers_end_with_a_killed_audit(tmp_path):
    with command("check", "--jobs", "2", cwd=tmp_path) as process:
        try:
            workers = _workers(process)
            time.sleep(5)  # until they have begun
        finally:
            process.kill()
        process.communicate(timeout=60)
    for _ in range(600):
        if not any(pathlib.Path("/proc", str(worker)).exists() for worker in workers):
            return
        time.sleep(0.05)
    raise AssertionError(f"workers {workers} go on without anybody to work for")


@pytest.mark.parametrize("taken_by", ["this thread", "another"])
def test_an_interrupt_that_is_held_comes_at_the_end(taken_by):
    """Whichever thread of the process takes it: one of a library's may."""
    ended = threading.Event()
    other = threading.Thread(target=ended.wait)
    other.start()
    thread = other if taken_by == "another" else threading.main_thread()
    reached = []
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            _interrupted(thread, reached)
    finally:
        signal.signal(signal.SIGINT, handler)
        ended.set()
        other.join()
    assert reached
