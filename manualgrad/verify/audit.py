"""The library's own audit: every case of the table before its judges, in several processes."""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import connection, resource_tracker

import torch

from manualgrad.activations import ACTIVATIONS, Activation
from manualgrad.verify import kernels
from manualgrad.verify.cases import Case
from manualgrad.verify.checking import Settings, examine
from manualgrad.verify.formulas import FORMULA_CHECKS
from manualgrad.verify.isolation import undisturbed
from manualgrad.verify.judges import Check, put
from manualgrad.verify.report import CheckReport, Outcome
from manualgrad.verify.table import of_activation as rows_of_activation
from manualgrad.verify.table import table


def judge(case: Case, judges: Sequence[str], device: str = "cpu") -> CheckReport:
    """One case before those of its judges that are asked for."""
    asked = [name for name in case.judges if name in judges]
    if case.operation == "formulas":
        return _record(case, [c for c in FORMULA_CHECKS if c.judge in asked])
    if case.operation in kernels.OPERATIONS:
        how = (case.operation, case.dtype, device)
        backends = {"ATen": kernels.by_aten, "Triton": kernels.by_triton}
        checks = [
            Check("kernel", f"{name} against the equations", functools.partial(_backend, run, *how))
            for name, run in backends.items()
        ]
        return _record(case, checks if "kernel" in asked else [])
    fn, inputs, reference = case.build(device)
    return examine(fn, inputs, None, reference, Settings(asked, without=case.without))


def _record(case: Case, checks: Sequence[Check]) -> CheckReport:
    act = ACTIVATIONS[case.activation]
    with undisturbed():
        return CheckReport(str(case), [o for check in checks for o in put(check, act)])


def _backend(run, operation: str, dtype: torch.dtype, device: str, act: Activation):
    return run(operation, act, dtype, device)


def outcomes(case: Case, judges: Sequence[str], device: str) -> list[Outcome]:
    """A case's outcomes under the case's own name."""
    return [replace(o, case=f"{case}: {o.case}") for o in judge(case, judges, device).outcomes]


def of_activation(name: str, judges: Sequence[str]) -> CheckReport:
    """The report on a registered activation: its formulas, and the layers that are built on it."""
    found = [o for case in rows_of_activation(name) for o in outcomes(case, judges, "cpu")]
    return CheckReport(name, found)


MOST = 61  # processes, as Windows has it
SLOWER = ("gradgradcheck", "forward mode")  # than the adjoint judge, who asks it of vectors


def rows(quick: bool, dtype: torch.dtype | None) -> list[Case]:
    """The rows of the table that an audit walks."""
    walked = [case for case in table() if dtype in (None, case.dtype)]
    if quick:
        walked = [
            replace(case, judges=case.quick, without=(*case.without, *SLOWER))
            for case in walked
            if case.quick
        ]
    return walked


def audit(
    walked: Sequence[Case], judges: Sequence[str], device: str = "cpu", jobs: int = 1
) -> Iterator[list[Outcome]]:
    """The outcomes of case after case, as they are done; in processes of one thread each.

    Raises BrokenExecutor when the system ended one of the processes.
    """
    if jobs <= 1 or len(walked) < 2:
        for case in walked:
            yield outcomes(case, judges, device)
        return
    others, workers = set(multiprocessing.active_children()), set()
    pool = ProcessPoolExecutor(min(jobs, MOST), multiprocessing.get_context("spawn"), _begin)
    try:
        with interrupts_held():
            asked = [pool.submit(outcomes, case, judges, device) for case in walked]
            workers = set(multiprocessing.active_children()) - others
        for done in as_completed(asked):
            yield done.result()
    except BaseException:  # nobody waits for cases that have begun
        for process in workers:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """In a worker: one thread for torch, and one that ends it with whoever started it."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Until the block's end; a process that is started in it inherits that, and hears none (POSIX).

    A worker would print the traceback of wherever it was; whoever started it ends it. The handler
    is for an interrupt that another thread of this process takes in the meantime.
    """
    handler = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not (main and handler and hasattr(signal, "pthread_sigmask")):
        yield
        return
    resource_tracker.ensure_running()  # up to Python 3.12 its start lets interrupts through again
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


def processes() -> int:
    """As many as there are cores for this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
