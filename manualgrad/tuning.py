"""mg.tune: measure on the GPU at hand what the table of manualgrad.backends only computes."""

import random
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from manualgrad import aten, backends, routed, tuned
from manualgrad.activations import Activation, activation_of
from manualgrad.backends import BP1, BP2, BP4, FORWARD, Choice, Problem
from manualgrad.eligibility import missing_for_triton, triton_kernels

ROUNDS = 30
MARGIN = 0.97  # Triton is chosen where it takes at most this share of the best other's time, twice


class Measurements:
    """Milliseconds per candidate of each problem, and what was chosen; prints as a table."""

    def __init__(self) -> None:
        self.choices: dict[str, dict[str, Any]] = {}
        self.path: str | None = None

    def __repr__(self) -> str:
        lines = [f"written to {self.path}"]
        for key, choice in self.choices.items():
            chosen = _label(choice["backend"], choice["tile"])
            times = ", ".join(f"{who} {ms:.4f}" for who, ms in choice["milliseconds"].items())
            lines.append(f"{key}: {chosen}  ({times} ms)")
        return "\n".join(lines)


def tune(
    shapes: Iterable[tuple[int, int, int]],
    activation: Any = "gelu",
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: Any = "cuda",
) -> Measurements:
    """Time the backends for each shape and keep the faster: seconds a shape, once per machine.

    shapes: (M, N, K) each: examples, outputs and inputs of a layer; M counts by powers of two.
    activation: one, as in ``linear_act``, or a list of them.

    Candidates are checked against ATen's result before they are timed, in turns, medians of 30,
    twice over. Triton is chosen where it is at least 3 % faster both times. What is chosen is
    written, whole, to a JSON file of this device, torch and triton (see ``manualgrad.tuned``) and
    holds from the next call on.

    Raises ValueError without a GPU or triton, and for shapes that are not three positive integers.
    """
    missing = missing_for_triton()
    if missing:
        raise ValueError(f"manualgrad.tune: nothing to measure: {missing}")
    layers: list[Any] = [tuple(shape) for shape in shapes]
    for shape in layers:
        if len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
            raise ValueError(
                f"manualgrad.tune: {shape} is no shape; give (examples, outputs, inputs), each "
                f"a positive integer"
            )
    specs = activation if isinstance(activation, (list, tuple)) else [activation]
    acts = [activation_of(spec, "tune") for spec in specs]
    where = torch.device(device)
    index = where.index if where.index is not None else torch.cuda.current_device()
    result = Measurements()
    jobs = [
        (act, shape, operation)
        for act in acts
        for shape in layers
        for operation in (FORWARD, BP1, BP2, BP4)
    ]
    for act, shape, operation in _shown(jobs):
        key, choice = measured(operation, act, shape, dtype, where, index)
        result.choices[key] = choice
    result.path = str(tuned.write(tuned.identity(index), result.choices))
    return result


def measured(
    operation: str,
    act: Activation,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    index: int,
) -> tuple[str, dict[str, Any]]:
    """(the problem's key, what was chosen and every candidate's milliseconds)."""
    (M, N, K), sizes = shape, _sizes(operation, *shape)
    subject = aten.IDENTITY if operation == BP4 else act
    key = Problem(operation, subject, dtype, *sizes, True, True, 0, 0).key
    steps = dict(_candidates(operation, act, _tensors(M, N, K, dtype, device), index))
    expected = _first(steps[Choice("aten", "")]())
    unit = torch.finfo(dtype).eps * float(expected.abs().max())
    for choice, step in list(steps.items()):
        gap = float((_first(step()).double() - expected.double()).abs().max())
        if not gap <= 4 * unit:
            label = _label(choice.backend, choice.tile)
            warnings.warn(f"manualgrad.tune: {key}: {label} is off by {gap:.1e}", stacklevel=3)
            del steps[choice]
    rounds = [medians(steps, device) for _ in range(2)]
    best = chosen(rounds)
    return key, {
        "backend": best.backend,
        "tile": best.tile,
        "milliseconds": {_label(c.backend, c.tile): 1e3 * min(r[c] for r in rounds) for c in steps},
    }


def chosen(rounds: list[dict[Choice, float]]) -> Choice:
    """The fastest that is not Triton, unless a Triton kernel beats it by the margin every time."""
    others = [c for c in rounds[0] if c.backend != "triton"]
    best = min(others, key=lambda c: sum(r[c] for r in rounds))
    winners = [
        c
        for c in rounds[0]
        if c.backend == "triton"
        and all(r[c] <= MARGIN * min(r[other] for other in others) for r in rounds)
    ]
    return min(winners, key=lambda c: sum(r[c] for r in rounds), default=best)


def medians(steps: dict[Choice, Callable[[], Any]], device: torch.device) -> dict[Choice, float]:
    """Seconds per call on the GPU, every round each once, in random order."""
    order, shuffle = list(steps), random.Random(0).shuffle
    spans: dict[Choice, list[Any]] = {choice: [] for choice in order}
    with torch.cuda.device(device):
        for _ in range(3):
            for step in steps.values():
                step()
        for _ in range(ROUNDS):
            shuffle(order)
            for choice in order:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                steps[choice]()
                end.record()
                spans[choice].append((start, end))
        torch.cuda.synchronize()
    return {
        choice: 1e-3 * statistics.median(start.elapsed_time(end) for start, end in pairs)
        for choice, pairs in spans.items()
    }


def _sizes(operation: str, M: int, N: int, K: int) -> tuple[int, int, int]:
    """The Problem's (rows, columns, contraction) for a layer's BP2 into the layer below, ..."""
    return {FORWARD: (M, N, K), BP1: (M, N, 0), BP2: (M, K, N), BP4: (N, K, M)}[operation]


def _tensors(M, N, K, dtype, device) -> dict[str, torch.Tensor]:
    shapes = {"x": (M, K), "weight": (N, K), "bias": (N,), "z": (M, N), "delta": (M, N)}
    generator = torch.Generator(device).manual_seed(0)
    made = {
        name: torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
        for name, shape in shapes.items()
    }
    made["weight"] /= K**0.5
    return {name: tensor.to(dtype) for name, tensor in made.items()}


def _candidates(
    operation: str, act: Activation, t: dict[str, torch.Tensor], index: int
) -> Iterator[tuple[Choice, Callable[[], Any]]]:
    names = ["aten"] if operation == BP4 else ["aten", "hybrid"]
    if operation == FORWARD and act.name == "relu" and backends.relu_epilogue_keeps_nan(index):
        names.append("cublaslt")
    choices = [Choice(name, "") for name in names]
    if operation != BP1:
        launch = triton_kernels().launch
        machine = launch.machine_of(t["x"])
        tiles = {
            tile: None
            for tma in (True, False)
            for tile in launch.tiles_of(operation, machine, t["x"].dtype, tma)
        }
        choices += [Choice("triton", "", str(tile)) for tile in tiles]
    for choice in choices:
        yield choice, _step(operation, choice, act, t)


def _step(operation, choice, act, t) -> Callable[[], Any]:
    if operation == FORWARD:
        return lambda: routed.forward_by(choice, t["x"], t["weight"], t["bias"], act)
    if operation == BP1:
        return lambda: routed.bp1_by(choice, t["delta"], t["z"], act)
    if operation == BP2:
        return lambda: routed.bp2_by(choice, t["delta"], t["weight"], t["x"], act)
    return lambda: routed.bp4_by(choice, t["delta"], t["x"])


def _first(result: Any) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else result[0]


def _label(backend: str, tile: str | None) -> str:
    return f"{backend} {tile}" if tile else backend


def _shown(jobs: list[Any]) -> Iterable[Any]:
    """jobs behind a progress bar where tqdm is installed."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return jobs
    return tqdm(jobs, desc="manualgrad.tune", leave=False, disable=None)
