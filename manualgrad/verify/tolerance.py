"""How large an error may be: one rule, and no tolerance of its own per check.

Against a float64 truth an error may be twice torch's own in the same dtype, plus one unit in the
last place of the result's largest entry. Where no twin of torch's is at hand, its error is replaced
by what rounding alone does: how far the same result moves when every input moves by its last digit.
No algorithm can be expected to be steadier than its own inputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

TWICE = 2.0
EXACT = 1e-9  # relative
SLACK = 8.0  # on what a few random roundings moved, which is a sample and not a bound


def unit(dtype: torch.dtype) -> float:
    """One unit in the last place, relative."""
    return torch.finfo(dtype).eps


def largest(tensor: Tensor | None) -> float:
    """max |entry| of what is finite; 0 of nothing."""
    if tensor is None or tensor.numel() == 0:
        return 0.0
    if not tensor.is_complex():
        tensor = tensor.double()
    entries = tensor.detach().abs()
    return entries.where(entries.isfinite(), 0.0).max().item()


def beside_torch(truth: Tensor | None, error: float, dtype: torch.dtype) -> float:
    """What an error against the float64 truth may be, where torch's own in dtype is error."""
    return TWICE * error + unit(dtype) * largest(truth)


def beside_rounding(result: Tensor | None, moved: float, dtype: torch.dtype) -> float:
    """What two computations of one result in dtype may differ by, if rounding moves it so far."""
    return SLACK * (moved + unit(dtype) * largest(result))


def beside_differences(bar: float, eps: float, size: float) -> float:
    """What a derivative may differ from a difference quotient by, bar being the quotient's own.

    Not less than EXACT: some functions of float64 (digamma, the derivatives of lgamma) are
    themselves no more exact than that.
    """
    return max(SLACK * (bar + eps * size), EXACT * size)


def rounded_otherwise(tensors: Sequence[Tensor], seed: int) -> list[Tensor]:
    """The same tensors with every floating entry moved up or down by its last digit."""
    moved = []
    for i, t in enumerate(tensors):
        if not t.is_floating_point() and not t.is_complex():
            moved.append(t)
            continue
        wide = torch.complex128 if t.is_complex() else torch.float64
        generator = torch.Generator("cpu").manual_seed(seed * 1009 + i)
        signs = torch.randint(0, 2, t.shape, generator=generator, dtype=torch.float64, device="cpu")
        signs = signs.to(t.device) * 2.0 - 1.0
        moved.append((t.detach().to(wide) * (1.0 + unit(t.dtype) * signs)).to(t.dtype))
    return moved
