"""Which of two ways is the faster on this machine: measured, once, for those who remember it."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

CLEARLY = 1.25  # times as fast, or it stays as it was: a close call has other bits, for nothing
ROUNDS, SECONDS = 40, 0.05  # at most; of slow ways, three rounds at least

log = logging.getLogger("manualgrad")


def clearly_faster(
    name: str, other: Callable, usual: Callable, shapes: Sequence[Sequence[int]],
    dtype: torch.dtype, threads: int,
) -> bool:  # fmt: skip
    """Whether other takes clearly less time than usual, given CPU tensors of these shapes.

    False where it raises RuntimeError: a build without it.
    """
    try:
        with ThreadPoolExecutor(1) as alone:  # where no mode and no tracer looks on
            times = alone.submit(_seconds, (usual, other), shapes, dtype).result()
    except RuntimeError:
        return False
    ratio, said = times[0] / times[1], "manualgrad: on %d threads, %s, %s is %.2f times as fast"
    log.info(said, threads, dtype, name, ratio)
    return ratio >= CLEARLY


def _seconds(
    ways: Sequence[Callable], shapes: Sequence[Sequence[int]], dtype: torch.dtype
) -> list[float]:
    """The least time of each, in turn."""
    tensors = [_operand(shape, dtype) for shape in shapes]
    least, began = [math.inf] * len(ways), time.perf_counter()
    for done in range(ROUNDS):
        if done >= 3 and time.perf_counter() - began > SECONDS:
            break
        for i, way in enumerate(ways):
            start = time.perf_counter()
            way(*tensors)
            least[i] = min(least[i], time.perf_counter() - start)
    return least


def _operand(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.linspace(-1, 1, math.prod(shape), dtype=dtype, device="cpu").view(*shape)
