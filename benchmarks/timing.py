"""Interleaved timing: all contestants in one run, in random order, medians."""

import random
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import nn
from tqdm import tqdm

Step = Callable[[], object]


def interleaved(steps: Mapping[str, Step], rounds: int, label: str = "") -> dict[str, list[float]]:
    """Seconds per call, sorted, for each of steps: every round calls each once, in random order."""
    order = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    shuffle = random.Random(0).shuffle
    for step in steps.values():
        for _ in range(10):
            step()
    for _ in tqdm(range(rounds), desc=label, leave=False, disable=None):
        shuffle(order)
        for name in order:
            start = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: sorted(values) for name, values in seconds.items()}


def quantiles(seconds: list[float]) -> tuple[float, float, float]:
    """(p20, median, p80)."""
    return (
        seconds[len(seconds) // 5],
        statistics.median(seconds),
        seconds[len(seconds) * 4 // 5],
    )


def training_step(net: nn.Module, x: torch.Tensor) -> Step:
    """One forward and backward pass of net's summed output, gradients dropped."""
    parameters = list(net.parameters())

    def step():
        net(x).sum().backward()
        for p in parameters:
            p.grad = None

    return step


def check(ours: nn.Module, theirs: nn.Module, x: torch.Tensor) -> float:
    """The largest relative difference of the two networks' gradients; they share Parameters."""
    parameters = list(theirs.parameters())
    grads = [torch.autograd.grad(net(x).sum(), parameters) for net in (ours, theirs)]
    return max(
        ((mine - native).abs().max() / native.abs().max().clamp(min=1e-30)).item()
        for mine, native in zip(*grads, strict=True)
    )
