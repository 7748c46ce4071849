"""Runs of an experiment's arms, each once per seed: in parallel, resumable, with progress."""

import importlib
import importlib.util
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import joblib
import torch
from tqdm import tqdm

from experiments.records import KEY, Journal
from experiments.statistics import Rows
from experiments.study import Setting, label

Key = tuple[str, str, int]


@dataclass(frozen=True)
class Run:
    """One arm of a part under one seed. work: how long, relative to others."""

    part: str  # the module's full name: a worker imports it
    arm: dict[str, Any]
    config: Any
    setting: Setting
    work: float
    alone: bool

    @property
    def key(self) -> Key:
        return self.part.split(".")[-1], label(self.arm), self.setting.seed


def runs_of(parts: tuple[ModuleType, ...], budget: str, setting: Setting, seeds: int) -> list[Run]:
    """Every run, in the order of parts, arms and seeds."""
    runs = []
    for part in parts:
        config = part.CONFIGS[budget]
        where = replace(setting, dtype=getattr(part, "DTYPE", setting.dtype))
        for arm in part.arms(config):
            work = float(part.work(arm, config)) if hasattr(part, "work") else 1.0
            alone = getattr(part, "ALONE", False)
            for seed in range(seeds):
                run = Run(part.__name__, arm, config, replace(where, seed=seed), work, alone)
                runs.append(run)
    return runs


def measured(run: Run) -> tuple[Key, list[dict[str, Any]]]:
    """In a worker: the run's rows, on one thread."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    part = importlib.import_module(run.part)
    rows = part.measure(run.arm, run.config, run.setting)
    seconds = time.perf_counter() - start
    common = {"part_dtype": run.setting.dtype, "seconds": seconds}
    return run.key, [{**run.arm, **row, **common} for row in rows]


def execute(runs: list[Run], journal: Journal, jobs: int, executor: str, title: str) -> None:
    """Those that the journal lacks; each is in it once it is finished.

    executor: one of joblib's backends, or "serial". Raises what a run raises.
    """
    done = journal.done()
    waiting = [run for run in runs if run.key not in done]
    waiting.sort(key=lambda run: -run.work)  # so that no worker is left with a long one at the end
    start = time.perf_counter()
    shape = "{desc} {percentage:3.0f} %|{bar}| {elapsed} gone, {remaining} to go{postfix}"
    total = sum(run.work for run in waiting)
    with tqdm(total=total, desc=title, leave=False, disable=None, bar_format=shape) as progress:
        count = len(runs) - len(waiting)
        for alone in (False, True):
            some = [run for run in waiting if run.alone is alone]
            work = {run.key: run.work for run in some}
            for key, rows in _parallel(some, 1 if alone else jobs, executor):
                journal.add(key, rows, time.perf_counter() - start)
                count += 1
                progress.update(work[key])
                progress.set_postfix_str(f"{count} of {len(runs)} runs")


def _parallel(runs: list[Run], jobs: int, executor: str) -> Iterator[tuple[Key, list[dict]]]:
    """As they are finished, in any order."""
    if jobs == 1 or executor == "serial":
        threads = torch.get_num_threads()
        try:
            yield from map(measured, runs)
        finally:
            torch.set_num_threads(threads)
        return
    _connect(executor)
    with joblib.parallel_config(backend=executor, n_jobs=jobs), warnings.catch_warnings():
        # of an error's end: what else was on its way is lost, and done again by the next call
        warnings.filterwarnings("ignore", "[0-9]+ tasks have been successfully executed")
        at_once: Any = {"batch_size": 1}
        tasks: Any = [joblib.delayed(measured)(run) for run in runs]
        if executor == "ray":  # its backend hands results back by the list
            count = 2 * joblib.effective_n_jobs()
            for first in range(0, len(tasks), count):
                found: Any = joblib.Parallel(**at_once)(tasks[first : first + count])
                yield from found
            return
        parallel: Any = joblib.Parallel(return_as="generator_unordered", **at_once)
        yield from parallel(tasks)


def _connect(executor: str) -> None:
    """To a cluster's scheduler, at the address in the variable of environment that it reads.

    DASK_SCHEDULER_ADDRESS or RAY_ADDRESS; without, to one of its own on this machine.
    """
    packages = {"dask": "distributed", "ray": "ray"}
    if executor in packages and importlib.util.find_spec(packages[executor]) is None:
        raise ValueError(
            f"--executor {executor} needs the package {packages[executor]}: install it"
        )
    if executor == "dask":
        from distributed import Client  # pyright: ignore[reportMissingImports]

        Client()
    elif executor == "ray":
        import ray  # pyright: ignore[reportMissingImports]
        from ray.util.joblib import register_ray  # pyright: ignore[reportMissingImports]

        ray.init(ignore_reinit_error=True)
        register_ray()


def stop_workers() -> None:
    """End the processes that joblib keeps for the next call, whatever they are doing."""
    from joblib.externals.loky import get_reusable_executor

    theirs: Any = {"reuse": True}  # whatever it was started with; pyright takes it for a string
    get_reusable_executor(kill_workers=True, **theirs).shutdown(kill_workers=True)


def in_order(rows: Rows, runs: list[Run]) -> Rows:
    """The rows of these runs, in their order: they end in any."""
    place = {run.key: i for i, run in enumerate(runs)}
    keys = [place.get((p, a, int(s)), -1) for p, a, s in rows[KEY].itertuples(index=False)]
    placed = rows.assign(_place=keys)
    placed = placed[placed["_place"] >= 0].sort_values("_place", kind="stable")
    return placed.drop(columns=["_place", "rows"]).reset_index(drop=True)
