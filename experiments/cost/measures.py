"""Times and bytes of a forward and a backward pass, beside those of native autograd."""

import gc
import itertools
import math
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory import saved_bytes
from experiments import native
from experiments.networks import gradients
from experiments.statistics import Interval, Rows, interval, log_slope

WARM = 2  # passes that are not timed: the first ones allocate, and choose kernels
PASSES = ("forward", "backward")


def now(device: str) -> float:
    """Seconds that a CPU has worked for this process, or those gone once a GPU has done its work.

    On one thread of a quiet machine the first are the second; on a busy one they leave out what
    other processes took.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def times(net: Any, cost: str, x: Tensor, y: Tensor, repeats: int) -> dict[str, float]:
    """Milliseconds of a pass: medians of net.ops's (forward_ms, backward_ms) and of autograd's
    (native_...).

    The two take turns, and turns in being first: what slows the machine down slows both.
    """
    providers: dict[str, ModuleType] = {"": net.ops, "native_": native}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in providers}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(-WARM, repeats):
            for name in sorted(providers, reverse=turn % 2 == 0):
                net.ops = providers[name]
                passes = _passes(net, cost, x, y)
                if turn >= 0:
                    taken[name].append(passes)
    finally:
        net.ops = providers[""]
        if collecting:
            gc.enable()
    return {
        f"{name}{what}_ms": 1e3 * torch.tensor(seconds, dtype=torch.float64).quantile(0.5).item()
        for name, turns in taken.items()
        for what, seconds in zip(PASSES, zip(*turns, strict=True), strict=True)
    }


def _passes(net: Any, cost: str, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Seconds of the forward and of the backward pass; what they return is freed afterwards."""
    device = str(x.device)
    start = now(device)
    loss = getattr(net.ops, cost)(net(x), y)
    between = now(device)
    found = gradients(net, loss)
    end = now(device)
    del found
    return between - start, end - between


def kept_bytes(net: Any, cost: str, x: Tensor, y: Tensor) -> int:
    """Of what a forward pass keeps for backward: each storage once, the parameters' own none."""
    return saved_bytes(lambda: getattr(net.ops, cost)(net(x), y), list(net.parameters()))


def noise(seed: int, *shape: int, like: Tensor) -> Tensor:
    """Standard normal inputs: what a pass costs does not depend on them."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64).to(like.device, like.dtype)


def labels(seed: int, examples: int, classes: int, like: Tensor) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(classes, (examples,), generator=draw).to(like.device)


def with_steps(rows: Rows) -> Rows:
    """With step_ms, native_step_ms: forward and backward; ratio: above 1, autograd is faster."""
    step, theirs = (rows[f"{n}forward_ms"] + rows[f"{n}backward_ms"] for n in ("", "native_"))
    return rows.assign(step_ms=step, native_step_ms=theirs, ratio=step / theirs)


def slopes(rows: Rows, x: str, y: str) -> Interval:
    """Of d log y / d log x, over seeds."""
    found = []
    for _, group in rows[rows[y] > 0].groupby("seed"):
        enough = group[x].nunique() > 1
        found.append(log_slope(group[x], group[y]) if enough else math.nan)
    return interval(found)


def mean_ratio(rows: Rows) -> Interval:
    """Ours over autograd's time of a step: geometric means over the arms, over seeds."""
    logs = [
        float(group["ratio"].map(lambda v: math.log(v) if v > 0 else math.nan).mean())
        for _, group in with_steps(rows).groupby("seed")
    ]
    return interval([math.exp(value) for value in logs])


def time_cells(group: Rows) -> list[str]:
    """Cells under TIMES of an arm's rows."""
    steps = with_steps(group)
    names = ["forward_ms", "backward_ms", "native_forward_ms", "native_backward_ms"]
    return [*(interval(steps[name]).text(3) for name in names), interval(steps["ratio"]).text()]


TIMES: Sequence[str] = (
    "forward (ms)",
    "backward (ms)",
    "autograd's forward (ms)",
    "autograd's backward (ms)",
    "both, ours / autograd's",
)
TIMES_NOTE = (
    "Times: medians of interleaved repetitions on one thread (of a CPU: what it worked for this "
    "process), the loss included; new weights for each seed. Ours / autograd's above 1: "
    "autograd is faster."
)


def spread(values: Any) -> str:
    """The smallest and the largest of values, as one text."""
    low, high = f"{min(values, default=math.nan):,.0f}", f"{max(values, default=math.nan):,.0f}"
    return low if low == high else f"{low} to {high}"


def products(layers: int) -> float:
    """Matrix products of a backward pass for each of a forward pass.

    BP4 takes one a layer, and BP2 one a layer but for the first, whose input needs no gradient.
    """
    return (2 * layers - 1) / layers


def chained(sizes: Sequence[int]) -> int:
    """P of a chain of these widths, biases included."""
    return sum(N * (K + 1) for K, N in itertools.pairwise(sizes))
