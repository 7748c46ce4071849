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
from manualgrad.eligibility import triton_kernels, triton_problem

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
    dtype: float64, float32, float16 or bfloat16. device: a GPU.
    activation: one, as in ``linear_act``, or a list of them.

    Candidates are checked against ATen's result before they are timed, in turns, medians of 30,
    twice over. Triton is chosen where it is at least 3 % faster both times. What is chosen is
    written after each, whole, to a JSON file of this device, torch and triton, in
    $MANUALGRAD_CACHE or the user's cache folder, and holds from the next call on.

    Raises ValueError without a GPU or triton, where the file cannot be written, and for shapes,
    dtypes and devices that are none; TypeError for shapes that are no list.
    """
    layers, acts, index = _checked(shapes, activation, dtype, device)
    machine, where = tuned.identity(index), torch.device("cuda", index)
    result = Measurements()
    result.path = str(tuned.write(machine, {}))  # before all else: can it be written?
    with_act = [(act, layer, op) for act in acts for layer in layers for op in (FORWARD, BP1, BP2)]
    jobs = [*with_act, *((aten.IDENTITY, layer, BP4) for layer in layers)]  # BP4 has no sigma
    for act, layer, operation in _shown(jobs):
        key, choice = measured(operation, act, layer, dtype, where, index)
        result.choices[key] = choice
        tuned.write(machine, {key: choice})
    return result


def _checked(shapes, activation, dtype, device) -> tuple[list[Any], list[Activation], int]:
    """(layers, activations, the GPU's number).  Raises ValueError or TypeError."""
    missing = triton_problem()
    if missing is None and not torch.cuda.is_available():
        missing = "torch sees no GPU"
    if missing:
        raise ValueError(f"manualgrad.tune: nothing to measure: {missing}")
    if not isinstance(shapes, Iterable) or isinstance(shapes, str):
        raise TypeError(f"manualgrad.tune: shapes must be a list of (M, N, K), got {shapes!r}")
    layers = list(shapes)
    for layer in layers:
        sizes = layer if isinstance(layer, (list, tuple)) else ()
        if len(sizes) != 3 or not all(type(n) is int and n > 0 for n in sizes):
            raise ValueError(
                f"manualgrad.tune: {layer!r} is no shape; give a list of (examples, outputs, "
                f"inputs), each a positive integer"
            )
    if dtype not in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        raise ValueError(
            f"manualgrad.tune: there are no kernels for {dtype!r}; give torch.bfloat16, float16, "
            f"float32 or float64"
        )
    try:
        where = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"manualgrad.tune: device {device!r}: {error}") from error
    if where.type != "cuda":
        raise ValueError(f"manualgrad.tune: {where} is no GPU; give device='cuda' or 'cuda:1'")
    specs = activation if isinstance(activation, (list, tuple)) else [activation]
    index = torch.cuda.current_device() if where.index is None else where.index
    return layers, [activation_of(spec, "tune") for spec in specs], index


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
    key = Problem(operation, act, dtype, *sizes, True, True, 0, 0).key
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
    if operation == FORWARD and act.name == "relu":
        names += ["cublaslt"] * backends.relu_epilogue_keeps_nan(index, t["x"].dtype)
    choices = [Choice(name, "") for name in names]
    if operation != BP1:
        launch = triton_kernels().launch
        described = all(map(triton_kernels().describable, (t["x"], t["weight"], t["z"])))
        machine, kind = launch.machine_of(t["x"]), t["x"].dtype
        tiles = launch.all_tiles(operation, machine, kind, described)
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
