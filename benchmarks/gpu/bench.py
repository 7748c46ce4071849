"""Checked, interleaved timing of GPU work. Needs torch and triton only."""

import importlib
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

kernels = importlib.import_module("manualgrad.triton_kernels")
Row = dict[str, Any]
Steps = dict[str, Callable[[], Any]]


@dataclass
class Bench:
    """Where, in what sizes and how often. dry: on the CPU, tiny, to try the plumbing only."""

    dry: bool
    device: str = field(init=False)
    rounds: int = field(init=False)
    dtype: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        self.device, self.rounds = ("cpu", 1) if self.dry else ("cuda", 20)

    def size(self, n: int) -> int:
        return min(n, 32) if self.dry else n

    def shapes(self, of_a_gpu: list[tuple[int, int, int]]) -> list[tuple[int, ...]]:
        """In the sizes used here; those that are one in a dry run, once."""
        return list(dict.fromkeys(tuple(map(self.size, shape)) for shape in of_a_gpu))

    def randn(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, device=self.device) * scale).to(self.dtype)

    def milliseconds(self, steps: Steps) -> dict[str, float]:
        """Median per call; every round calls each step once, in random order."""
        spans: dict[str, list[float]] = {name: [] for name in steps}
        order, shuffle = list(steps), random.Random(0).shuffle
        for _ in range(1 if self.dry else 3):
            for step in steps.values():
                step()
        pending = []
        for _ in range(self.rounds):
            shuffle(order)
            for name in order:
                if self.dry:
                    start = time.perf_counter()
                    steps[name]()
                    spans[name].append(1e3 * (time.perf_counter() - start))
                else:
                    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
                    events[0].record()
                    steps[name]()
                    events[1].record()
                    pending.append((name, events))
        if pending:
            torch.cuda.synchronize()
        for name, (start, end) in pending:
            spans[name].append(start.elapsed_time(end))
        return {name: statistics.median(times) for name, times in spans.items()}


def first(result: Any) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else result[0]


def difference(mine: Any, theirs: Any) -> float:
    """Largest difference, relative to the largest entry."""
    mine, theirs = first(mine).double(), first(theirs).double()
    return float((mine - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))


def compare(
    bench: Bench, ours: Steps, theirs: Steps, allowed: float | None = None, **about: Any
) -> list[Row]:
    """A row per pair, or one that says why there is no time: a check that failed.

    allowed: the largest relative difference; None: four units in the last place.
    """
    reference = next(iter(theirs.values()))()
    rows, kept = [], {}
    allowed = 4 * torch.finfo(bench.dtype).eps if allowed is None else allowed
    for name, step in ours.items():
        gap = difference(step(), reference)
        if gap <= allowed:
            kept[name] = step
        else:
            rows.append({**about, "ours": name, "not timed, off by": gap})
    if kept:
        times = bench.milliseconds(kept | theirs)
        for mine in kept:
            for other in theirs:
                rows.append(
                    {
                        **about,
                        "ours": mine,
                        "theirs": other,
                        "ours_ms": times[mine],
                        "theirs_ms": times[other],
                        "ratio": times[mine] / times[other],
                    }
                )
    return rows


def tiles(bench: Bench, operation: str) -> list[Any]:
    machine = kernels.launch.machine_of(bench.randn(1, 1))
    return list(kernels.launch.all_tiles(operation, machine, bench.dtype))
