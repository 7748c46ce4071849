"""Kernel: do the backends compute what the equations say? The five operations, one by one.

The truth is manualgrad.equations in float64. A backend may err twice as much as the equations do in
the same dtype, relative to the largest entry (or to 1); column sums relative to what is summed.
"""

from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from manualgrad import aten, backends, equations, routed
from manualgrad.activations import Activation
from manualgrad.eligibility import missing_for_triton
from manualgrad.verify import tolerance
from manualgrad.verify.judges import NotRun
from manualgrad.verify.readings import Reading, error
from manualgrad.verify.subject import wide

SHAPE = 33, 17, 31  # M, N, K: sizes that no tile divides
# In float32, compiled: x / y errs by two units (div.full.f32) and e^x by one and more
# (ex2.approx.f32); torch's own kernels divide exactly, and so does the interpreter.
COMPILED_FLOAT32 = 4


Results = dict[str, Tensor]


def forward(on: ModuleType, act: Activation, x, weight, bias, s, delta, above) -> Results:
    a, kept = on.linear_act_forward(x, weight, bias, act)
    with_skip, z = on.linear_act_forward(x, weight, None, act, delta, with_z=True)
    return {"a": a, "s": kept, "a with a skip, without bias": with_skip, "z with a skip": z}


def bp1(on: ModuleType, act: Activation, x, weight, bias, s, delta, above) -> Results:
    below, rows = on.bp1_output_error(delta, s, act)
    return {"delta": below, "column sums": on.bp3_bias_gradient(rows, below.dtype)}


def bp2(on: ModuleType, act: Activation, x, weight, bias, s, delta, above) -> Results:
    below, rows, a = on.bp2_propagate_error(*above, s, act)
    skips = {"skip": delta, "skip_z": delta.flip(1)}
    added, more, _ = on.bp2_propagate_error(*above, s, act, with_a=False, **skips)
    sums, all_sums = (on.bp3_bias_gradient(r, below.dtype) for r in (rows, more))
    results = {"delta": below, "column sums": sums, "a": a}
    return results | {"delta with skips": added, "column sums with skips": all_sums}


def bp3(on: ModuleType, act: Activation, x, weight, bias, s, delta, above) -> Results:
    return {"delta": delta, "column sums": on.bp3_bias_gradient(delta, delta.dtype)}


def bp4(on: ModuleType, act: Activation, x, weight, bias, s, delta, above) -> Results:
    added = on.bp4_weight_gradient(delta, x, weight.clone())
    return {"grad_W": on.bp4_weight_gradient(delta, x), "grad_W added to another": added}


OPERATIONS: dict[str, Callable[..., Results]] = dict(
    zip(backends.OPERATIONS, (forward, bp1, bp2, bp3, bp4), strict=True)
)


def operands(act: Activation, dtype: torch.dtype, device: str) -> list[Any]:
    """x, weight, bias, s, delta of a layer, and (delta, weight) of the one above it."""
    M, N, K = SHAPE
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(sizes, generator=generator, dtype=torch.float64) * scale
        return values.to(device, dtype)

    x, weight, bias = normal(M, K), normal(N, K, scale=K**-0.5), normal(N)
    s = equations.linear_act_forward(x, weight, bias, act)[1]
    return [x, weight, bias, s, normal(M, N), (normal(M, 20), normal(20, N, scale=20**-0.5))]


def by_aten(operation: str, act: Activation, dtype: torch.dtype, device: str) -> Iterator[Reading]:
    """ATen's one-pass kernels, which run wherever nothing else wins."""
    yield from against_equations(aten, operation, act, dtype, device)


def by_triton(
    operation: str, act: Activation, dtype: torch.dtype, device: str
) -> Iterator[Reading]:
    """The Triton kernels, on a GPU or in Triton's interpreter."""
    missing = missing_for_triton()
    if missing:
        raise NotRun(f"the Triton kernels do not run here: {missing}")
    with backends.backend("triton"):
        try:
            yield from against_equations(routed, operation, act, dtype, device)
        except ValueError as refused:
            raise NotRun(str(refused)) from refused


def against_equations(
    on: ModuleType, operation: str, act: Activation, dtype: torch.dtype, device: str
) -> Iterator[Reading]:
    """The largest error of each result beside the equations' own in the same dtype."""
    run, given = OPERATIONS[operation], operands(act, dtype, device)
    truth = run(equations, act, *_exact(given))
    ours, own = run(on, act, *given), run(equations, act, *given)
    units: float = tolerance.SLACK if dtype == torch.float64 else 1
    if (device, dtype) == ("cuda", torch.float32):
        units = COMPILED_FLOAT32
    for name, true in truth.items():
        summed = truth.get(name.replace("column sums", "delta")) if "sums" in name else None
        size = true if summed is None else summed.abs().sum(0)
        scale = max(1.0, tolerance.largest(size))
        mine, theirs = (error(r[name].double(), true).max().item() / scale for r in (ours, own))
        text = f"{name} errs by {mine:.3g} of its largest entry, the equations by {theirs:.3g}"
        yield Reading(text, mine, tolerance.TWICE * theirs + units * tolerance.unit(dtype))


def _exact(values: Sequence[Any]) -> list[Any]:
    return [tuple(map(wide, v)) if isinstance(v, tuple) else wide(v) for v in values]
