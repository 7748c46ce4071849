"""Each of the five operations by itself, against the roofline of this device."""

import math
from collections.abc import Callable
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from benchmarks import pictures
from benchmarks.ceilings import wait
from benchmarks.checking import judge
from benchmarks.outcome import Outcome, Row, Settings
from benchmarks.problems import name_of
from benchmarks.timing import interleaved, quantiles
from manualgrad import equations
from manualgrad.activations import ACTIVATIONS
from manualgrad.backends import OPERATIONS
from manualgrad.routed import backend_for

SHAPES = {"cpu": (4096, 512, 512), "cuda": (16384, 4096, 4096)}  # M, N, K
ROUNDS = 15
Call = Callable[[], tuple[Tensor, ...]]


def run(settings: Settings) -> Outcome:
    dtypes = settings.dtypes[:1] if settings.quick else settings.dtypes
    found = [row for dtype in dtypes for row in rows(settings, dtype)]
    series: dict[str, dict[str, float]] = {}
    for row in found:
        if "share of roofline" in row:
            series.setdefault(row["dtype"], {})[row["operation"]] = row["share of roofline"]
    picture = pictures.bars("equations", OPERATIONS, series, "share of the roofline", 1.0)
    wrong = [f"{row['operation']}: {row['not timed']}" for row in found if "not timed" in row]
    text = tabulate(found, headers="keys", floatfmt=".3g", missingval="-")
    return Outcome(found, text, {"equations": picture}, wrong)


def rows(settings: Settings, dtype: torch.dtype, activation: str = "gelu") -> list[Row]:
    """A row per operation: time, TFLOP/s, share of the roofline; the reason where it is wrong."""
    device = settings.device
    M, N, K = SHAPES[device.split(":")[0]]
    act, name = ACTIVATIONS[activation], name_of(dtype)

    def made(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    x, weight, bias, grad_a = made(M, K), made(N, K) / math.sqrt(K), made(N), made(M, N)
    s = equations.linear_act_forward(x, weight, bias, act)[1]
    delta = equations.bp1_output_error(grad_a, s, act)[0]
    given = x, weight, bias, grad_a, s, delta
    ops = backend_for(x)
    summed = ops.bp1_output_error(grad_a, s, act)[1]  # delta, or a row per tile of it
    calls = _calls(ops, act, *given, summed)
    eager = _calls(equations, act, *given, delta)
    exact = _calls(equations, act, *(tensor.double() for tensor in (*given, delta)))
    product, ends = 2.0 * M * N * K, M * N + N * K + M * K
    # flops, and numbers that it reads or writes at least
    least: dict[str, tuple[float, int]] = dict(
        zip(
            OPERATIONS,
            (
                (product, ends + M * N),
                (0.0, 3 * M * N),
                (product, ends + 2 * M * K),
                (0.0, summed.numel()),
                (product, ends),
            ),
            strict=True,
        )
    )
    about = {"M": M, "N": N, "K": K, "activation": activation, "dtype": name}
    found: dict[str, Row] = {
        operation: {"operation": operation, **about} for operation in OPERATIONS
    }
    right = {}
    for operation, call in calls.items():
        result = call()
        names = [f"result {i} of {operation}" for i in range(len(result))]
        share, told = judge(names, exact[operation](), eager[operation]()).error(result)
        if share > 1:
            found[operation]["not timed"] = told
        else:
            right[operation] = _until_done(call, device)
    for operation, seconds in interleaved(right, ROUNDS, "equations").items():
        p20, median, p80 = quantiles(seconds)
        flops, numbers = least[operation]
        bound = settings.ceilings.seconds(flops, numbers * dtype.itemsize, name)
        found[operation] |= {"ms": 1e3 * median, "p20_ms": 1e3 * p20, "p80_ms": 1e3 * p80}
        found[operation] |= {"TFLOP/s": flops / median / 1e12, "share of roofline": bound / median}
    return list(found.values())


def _calls(ops: Any, act: Any, *tensors: Tensor) -> dict[str, Call]:
    """The operations of a backend on the same tensors; x stands for the layer below's z in BP2."""
    x, weight, bias, grad_a, s, delta, summed = tensors
    return {
        "linear_act_forward": lambda: ops.linear_act_forward(x, weight, bias, act),
        "bp1_output_error": lambda: ops.bp1_output_error(grad_a, s, act)[:1],
        "bp2_propagate_error": lambda: ops.bp2_propagate_error(delta, weight, x, act)[::2],
        "bp3_bias_gradient": lambda: (ops.bp3_bias_gradient(summed, x.dtype),),
        "bp4_weight_gradient": lambda: (ops.bp4_weight_gradient(delta, x),),
    }


def _until_done(call: Call, device: str) -> Callable[[], None]:
    def done() -> None:
        call()
        wait(device)

    return done
