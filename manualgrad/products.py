"""Products of matrices on a CPU: ATen's, or oneDNN's where those are faster on this machine.

ATen hands float32 products to MKL. On some CPUs oneDNN, which PyTorch brings along too, is twice as
fast (measured on an AMD EPYC with AVX-512); both add up in float32. Which one is faster here is
measured once per process and number of threads, on first need. BP4 is left to ATen: oneDNN would
copy its operand delta^T, and hold more memory than eager does.
"""

import functools
import logging
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from manualgrad import compat

LARGE = 1 << 22  # multiplications: below, oneDNN's call costs more than it saves
CLEARLY = 1.25  # times as fast, or ATen's it is: a close call must not change bits from run to run

log = logging.getLogger("manualgrad")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b.  x (M, K), weight (N, K), bias (N,) or None."""
    if _by_onednn(x, weight):
        return compat.onednn_linear(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def error_below(delta: Tensor, weight: Tensor) -> Tensor:
    """delta W, BP2's product.  delta (M, N), weight (N, K)."""
    if _by_onednn(delta, weight):
        return compat.onednn_linear(delta, weight.t(), None, "none", [], "")
    return delta.mm(weight)


def _by_onednn(left: Tensor, right: Tensor) -> bool:
    """Whether oneDNN makes the product of these two, which share a dimension."""
    return (
        left.dtype is torch.float32
        and left.numel() * right.numel() >= LARGE * max(left.shape[1], 1)
        and compat.readable(left)
        and compat.readable(right)
        and left.is_contiguous()
        and right.is_contiguous()
        and torch.backends.mkldnn.enabled
        and onednn_wins(torch.get_num_threads())
    )


@functools.cache
def onednn_wins(threads: int) -> bool:
    """Whether oneDNN is clearly the faster here: measured, a hundredth of a second."""
    if compat.onednn_linear is None:
        return False
    x = torch.linspace(-1, 1, 512 * 512).view(512, 512)
    theirs = functools.partial(compat.onednn_linear, x, x, None, "none", [], "")
    try:
        times = _seconds([functools.partial(F.linear, x, x), theirs])
    except RuntimeError:  # a build without it
        return False
    ratio = times[0] / times[1]
    log.info("manualgrad: on %d threads oneDNN is %.2f times as fast as MKL", threads, ratio)
    return ratio >= CLEARLY


def _seconds(steps: list[Callable[[], object]]) -> list[float]:
    """The least of each, in turn."""
    least = [float("inf")] * len(steps)
    for _ in range(6):
        for i, step in enumerate(steps):
            start = time.perf_counter()
            step()
            least[i] = min(least[i], time.perf_counter() - start)
    return least
