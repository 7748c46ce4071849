"""Each of the five operations by itself, against the roofline of this device."""

import math
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.ceilings import Ceilings, wait
from benchmarks.timing import interleaved, quantiles
from manualgrad.activations import ACTIVATIONS
from manualgrad.routed import backend_for

ROWS = {"cpu": (4096, 512, 512), "cuda": (16384, 4096, 4096)}  # M, N, K


def rows(
    device: str, dtype: torch.dtype, ceilings: Ceilings, activation: str = "gelu"
) -> list[dict[str, Any]]:
    """A row per operation: time, TFLOP/s, bytes it cannot avoid, share of the roofline."""
    M, N, K = ROWS[device.split(":")[0]]
    act, size, name = ACTIVATIONS[activation], dtype.itemsize, str(dtype).removeprefix("torch.")

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    x, weight, bias, grad_a = made(M, K), made(N, K) / math.sqrt(K), made(N), made(M, N)
    ops = backend_for(x)
    _, s = ops.linear_act_forward(x, weight, bias, act)
    delta, sums = ops.bp1_output_error(grad_a, s, act)
    product = 2.0 * M * N * K
    # operation: (call, flops, numbers that it reads or writes at least)
    steps: dict[str, tuple[Callable[[], Any], float, int]] = {
        "forward: a = sigma(x W^T + b)": (
            lambda: ops.linear_act_forward(x, weight, bias, act),
            product,
            M * K + N * K + 2 * M * N,
        ),
        "BP1: delta = grad_a * sigma'(z)": (
            lambda: ops.bp1_output_error(grad_a, s, act),
            0.0,
            3 * M * N,
        ),
        "BP2: delta = (delta W) * sigma'(z)": (
            lambda: ops.bp2_propagate_error(delta, weight, x, act, None, True),
            product,
            M * N + N * K + 3 * M * K,
        ),
        "BP3: grad_b = sum of delta": (lambda: ops.bp3_bias_gradient(sums), 0.0, M * N),
        "BP4: grad_W = delta^T a": (
            lambda: ops.bp4_weight_gradient(delta, x),
            product,
            M * N + M * K + N * K,
        ),
    }
    calls = {label: _until_done(call, device) for label, (call, _, _) in steps.items()}
    seconds = interleaved(calls, 15, "equations")
    found = []
    for label, (_, flops, numbers) in steps.items():
        p20, median, p80 = quantiles(seconds[label])
        found.append(
            {
                **{"operation": label, "M": M, "N": N, "K": K, "activation": activation},
                **{"dtype": name, "ms": 1e3 * median, "p20_ms": 1e3 * p20, "p80_ms": 1e3 * p80},
                "TFLOP/s": flops / median / 1e12,
                "share of roofline": ceilings.seconds(flops, numbers * size, name) / median,
            }
        )
    return found


def _until_done(call: Callable[[], Any], device: str) -> Callable[[], None]:
    def done() -> None:
        call()
        wait(device)

    return done
