"""Contestants of one problem: checked first, then timed in turn, in random order."""

import functools
import math
import random
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.ceilings import wait
from benchmarks.checking import arriving, judge_of, tried
from benchmarks.memory import saved_bytes
from benchmarks.problems import PARTS, Problem, output
from benchmarks.timing import quantiles
from benchmarks.weighing import launches, peak_bytes

EAGER, COMPILED, OURS, OURS_COMPILED = (
    "eager", "torch.compile", "manualgrad", "manualgrad compiled",
)  # fmt: skip
RIGHT, WRONG, ABSENT = "right", "wrong", "did not run"
RIVALS = {"eager": EAGER, "compile": COMPILED}
Times = dict[str, dict[str, list[float]]]


def contestants(problem: Problem, device: str) -> dict[str, nn.Module | str]:
    """Who takes part, or why not; torch.compile compiles at a network's first call."""
    found: dict[str, nn.Module | str] = {EAGER: problem.eager, OURS: problem.ours, **problem.peers}
    compiled: list[tuple[str, nn.Module, str | None]] = [
        (COMPILED, problem.eager, None),
        (OURS_COMPILED, problem.ours, None),
    ]
    if device.startswith("cuda"):  # CUDA graphs would write over what the check still holds
        compiled.append(("torch.compile max-autotune", problem.eager, "max-autotune-no-cudagraphs"))
    for name, net, mode in compiled:
        found[name] = cast(nn.Module, torch.compile(net, mode=mode, dynamic=False))
    return found


def held(problem: Problem, device: str, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """A row per contestant: its times and bytes, or why it has none.

    At most so many rounds or so many seconds of timing, whichever ends first; five at least.
    """
    torch.compiler.reset()
    nets = contestants(problem, device)
    grad = arriving(problem)
    checks = checked(nets, problem, grad)
    fit = {name: cast(nn.Module, nets[name]) for name in nets if checks[name]["check"] == RIGHT}
    times = timed(fit, problem, grad, device, rounds, seconds)
    rows = []
    for name in nets:
        row: dict[str, Any] = {**problem.about, "provider": name, **checks[name]}
        if name in fit:
            row |= _figures(name, times) | weights(fit[name], problem, grad, device)
        rows.append(row)
    return rows


def checked(
    nets: dict[str, nn.Module | str], problem: Problem, grad: Tensor
) -> dict[str, dict[str, Any]]:
    """Of each contestant: whether it is right, its error as a share of what is allowed, or why
    it is not timed."""
    judge, found = judge_of(problem, grad), {}
    for name, net in nets.items():
        result = net if isinstance(net, str) else tried(net, problem, grad)
        if isinstance(result, str):
            found[name] = {"check": ABSENT, "not timed": result}
            continue
        share, told = judge.error(result)
        if share <= 1:
            found[name] = {"check": RIGHT, "error of allowed": share}
        else:
            found[name] = {"check": WRONG, "error of allowed": share, "not timed": told}
    return found


def _figures(name: str, times: Times) -> dict[str, float]:
    """Median, p20 and p80 of each part, and the rivals' medians over ours."""
    row = {}
    for part in PARTS:
        p20, median, p80 = quantiles(sorted(times[name][part]))
        row |= {f"{part}_ms": 1e3 * median, f"{part}_p20_ms": 1e3 * p20}
        row |= {f"{part}_p80_ms": 1e3 * p80}
        for label, rival in RIVALS.items():
            if rival in times:
                theirs = quantiles(sorted(times[rival][part]))[1]
                row[f"{part} vs {label}"] = theirs / median
    return row


def weights(net: nn.Module, problem: Problem, grad: Tensor, device: str) -> dict[str, Any]:
    def both() -> None:
        output(net(*problem.inputs)).backward(grad)
        _forget(net, problem)

    parameters = list(problem.eager.parameters())
    return {
        "saved_bytes": saved_bytes(lambda: output(net(*problem.inputs)), parameters),
        "peak_bytes": peak_bytes(both, device),
        "launches": launches(both, device),
    }


def _forget(net: nn.Module, problem: Problem) -> None:
    for tensor in (*problem.inputs, *net.parameters()):
        tensor.grad = None


def timed(
    nets: dict[str, nn.Module],
    problem: Problem,
    grad: Tensor,
    device: str,
    rounds: int,
    seconds: float,
) -> Times:
    """Seconds of forward and backward passes, each contestant once a round, in random order.

    Each timed step follows one of the same contestant: as in training, memory and caches are its
    own, and not what the contestant before has left.
    """
    found: Times = {name: {part: [] for part in PARTS} for name in nets}
    order, shuffle = list(nets), random.Random(0).shuffle
    clock = functools.partial(_clock, device)
    end = math.inf
    for number in range(-2, rounds):
        shuffle(order)
        for name in order:
            _passes(nets[name], problem, grad, clock)
            spans = _passes(nets[name], problem, grad, clock)
            if number >= 0:
                for part, span in zip(PARTS, spans, strict=True):
                    found[name][part].append(span)
        if number < 0:
            end = time.perf_counter() + seconds
        elif number >= 4 and time.perf_counter() > end:
            break
    return found


def _passes(
    net: nn.Module, problem: Problem, grad: Tensor, clock: Callable[[], float]
) -> tuple[float, float, float]:
    """Seconds of a forward pass, of its backward pass, and of both."""
    start = clock()
    y = output(net(*problem.inputs))
    middle = clock()
    y.backward(grad)
    last = clock()
    _forget(net, problem)
    return middle - start, last - middle, last - start


def _clock(device: str) -> float:
    wait(device)
    return time.perf_counter()
