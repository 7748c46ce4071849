"""Contestants of one problem: checked first, then timed in turn, in random order."""

import copy
import math
import random
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.memory import saved_bytes
from benchmarks.problems import Problem
from benchmarks.weighing import launches, peak_bytes

EAGER, COMPILED, OURS, OURS_COMPILED = (
    "eager", "torch.compile", "manualgrad", "manualgrad compiled",
)  # fmt: skip
PARTS = ("forward", "backward", "both")


@dataclass
class Seconds:
    """Of each contestant's passes, by part."""

    of: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def quantile(self, name: str, part: str, share: float) -> float:
        values = sorted(self.of[name][part])
        if share == 0.5:
            return statistics.median(values)
        return values[min(int(share * len(values)), len(values) - 1)]


def contestants(problem: Problem, device: str) -> dict[str, nn.Module]:
    """Who takes part; torch.compile compiles at a network's first call."""
    found = {EAGER: problem.eager, OURS: problem.ours, **problem.peers}
    compiled: list[tuple[str, nn.Module, str | None]] = [
        (COMPILED, problem.eager, None),
        (OURS_COMPILED, problem.ours, None),
    ]
    if device.startswith("cuda"):
        mode = "max-autotune-no-cudagraphs"
        compiled.append(("torch.compile max-autotune", problem.eager, mode))
    for name, net, mode in compiled:
        found[name] = cast(nn.Module, torch.compile(net, mode=mode, dynamic=False))
    return found


def output(result: Any) -> Tensor:
    """The tensor of a model's result."""
    if isinstance(result, Tensor):
        return result
    return next(iter(result.values())) if isinstance(result, dict) else result[0]


def gradients(net: Callable[..., Any], inputs, leaves: list[Tensor], grad: Tensor) -> list[Tensor]:
    y = output(net(*inputs))
    return [y.detach(), *torch.autograd.grad(y, leaves, grad, allow_unused=True)]


def errors(problem: Problem, nets: dict[str, nn.Module], grad: Tensor) -> dict[str, float | str]:
    """Of each contestant, the largest error of output and gradients against eager's in float64.

    Relative to the largest entry of each; a text where it cannot run.
    """
    exact = copy.deepcopy(problem.eager).double()
    inputs = tuple(
        x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x
        for x in problem.inputs
    )
    leaves = [x for x in inputs if x.requires_grad]
    leaves += [p for p in exact.parameters() if p.requires_grad]
    reference = gradients(exact, inputs, leaves, grad.double())
    found: dict[str, float | str] = {}
    for name, net in nets.items():
        own = problem.leaves()
        if name in (OURS, OURS_COMPILED):
            own = [x for x in problem.inputs if x.requires_grad]
            own += [p for p in problem.ours.parameters() if p.requires_grad]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the compiler's remarks on this machine
                result = gradients(net, problem.inputs, own, grad)
        except Exception as error:  # what a compiler raises is of any kind
            found[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            continue
        found[name] = max(map(_error, result, reference))
    return found


def _error(found: Tensor | None, exact: Tensor | None) -> float:
    if found is None or exact is None:
        return 0.0 if found is exact else math.inf
    gap = (found.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-30)
    return gap.item() if gap == gap else math.inf


def allowed(eager: float) -> float:
    """A contestant may err four times as much as eager, or as float32's rounding of a long sum."""
    return max(4 * eager, 32 * torch.finfo(torch.float32).eps)


def held(problem: Problem, device: str, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """A row per contestant: its times and bytes, or why it has none.

    At most so many rounds or so many seconds of timing, whichever ends first; five at least.
    """
    torch.compiler.reset()
    nets = contestants(problem, device)
    y = output(problem.eager(*problem.inputs))
    grad = torch.randn_like(y)
    del y
    error = errors(problem, nets, grad)
    if isinstance(error[EAGER], str):
        raise RuntimeError(f"{problem.about}: eager fails: {error[EAGER]}")
    most = allowed(cast(float, error[EAGER]))
    fit = {name: net for name, net in nets.items() if not _unfit(error[name], most)}
    times = timed(fit, problem, grad, device, rounds, seconds)
    rows = []
    for name in nets:
        row: dict[str, Any] = {**problem.about, "provider": name, "error": error[name]}
        if name not in fit:
            rows.append({**row, "not timed": _unfit(error[name], most)})
            continue
        for part in PARTS:
            row[f"{part}_ms"] = 1e3 * times.quantile(name, part, 0.5)
        for label, share in (("p20_ms", 0.2), ("p80_ms", 0.8)):
            row[label] = 1e3 * times.quantile(name, "both", share)
        for part in PARTS:
            for label, rival in (("eager", EAGER), ("compile", COMPILED)):
                if rival in fit:
                    ratio = times.quantile(rival, part, 0.5) / times.quantile(name, part, 0.5)
                    row[f"{part} vs {label}"] = ratio
        rows.append({**row, **_weights(fit[name], problem, grad, device)})
    return rows


def _unfit(error: float | str, most: float) -> str:
    if isinstance(error, str):
        return error
    return "" if error <= most else f"off by {error:.1e}, {most:.1e} is allowed"


def _weights(net: nn.Module, problem: Problem, grad: Tensor, device: str) -> dict[str, Any]:
    parameters = list(problem.eager.parameters())

    def both() -> None:
        output(net(*problem.inputs)).backward(grad)
        _forget(net, problem)

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
) -> Seconds:
    """Forward and backward passes, each contestant once a round, in random order.

    Each timed step follows one of the same contestant: as in training, memory and caches are its
    own, and not what the contestant before has left.
    """
    found = Seconds({name: {part: [] for part in PARTS} for name in nets})
    order, shuffle = list(nets), random.Random(0).shuffle
    clock = _cuda_clock if device.startswith("cuda") else time.perf_counter
    end = math.inf
    for number in range(-2, rounds):
        shuffle(order)
        for name in order:
            _passes(nets[name], problem, grad, clock)
            spans = _passes(nets[name], problem, grad, clock)
            if number >= 0:
                for part, span in zip(PARTS, spans, strict=True):
                    found.of[name][part].append(span)
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


def _cuda_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()
