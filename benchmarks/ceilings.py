"""What this device can do at most, measured: the two ceilings of a roofline."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from manualgrad import products


@dataclass(frozen=True)
class Ceilings:
    """flops: of a large square product, per second, by dtype. bandwidth: of a copy, bytes/s."""

    flops: dict[str, float]
    bandwidth: float

    def seconds(self, flops: float, traffic: float, dtype: str) -> float:
        """What so many operations and bytes take at least."""
        return max(flops / self.flops[dtype], traffic / self.bandwidth)


def measured(device: str, dtypes: Sequence[torch.dtype]) -> Ceilings:
    large = device.startswith("cuda")
    flops = {}
    for dtype in dtypes:
        n = 8192 if large else 2048 if dtype is torch.float32 else 1024
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        least = min(_seconds(lambda f=f: f(a, b), device) for f in (torch.mm, _by_the_faster))  # noqa: B023
        flops[str(dtype).removeprefix("torch.")] = 2.0 * n**3 / least
    source = torch.empty((1 << 30) if large else (1 << 27), device=device).normal_()
    target = torch.empty_like(source)
    copied = 2.0 * source.numel() * source.element_size()
    return Ceilings(flops, copied / _seconds(lambda: target.copy_(source), device))


def _by_the_faster(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a b^T; on a CPU of whichever library is the faster there."""
    return products.linear(a, b, None)


def _seconds(call, device: str, times: int = 7) -> float:
    """The least of a few calls: a ceiling is what was reached."""
    found = []
    for _ in range(times + 2):
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        found.append(time.perf_counter() - start)
    return min(found[2:])


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
