"""One comparison: what was measured, what is allowed, and what a person must know to mend it."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from manualgrad.verify.tolerance import largest

TINY = 1e-300


@dataclass(frozen=True)
class Reading:
    """measured beyond allowed is a finding; so is a message without numbers.

    size: of what it should be. allowed 0 means exactly so, whatever the caller tolerates.
    """

    message: str
    measured: float | None = None
    allowed: float | None = None
    size: float = 0.0

    def tolerating(self, atol: float, rtol: float) -> "Reading":
        """With what the caller tolerates besides."""
        if not self.allowed:
            return self
        return replace(self, allowed=self.allowed + atol + rtol * self.size)

    @property
    def wrong(self) -> bool:
        if self.measured is None or self.allowed is None:
            return True
        return not self.measured <= self.allowed  # NaN is wrong

    @property
    def share(self) -> float:
        """Of what is allowed; 0 where nothing is measured."""
        if self.measured is None or not self.allowed:
            return math.inf if self.wrong else 0.0
        return math.inf if math.isnan(self.measured) else self.measured / self.allowed


def compare(what: str, ours: Tensor | None, theirs: Tensor | None, allowed: float) -> Reading:
    """ours against what it should be; no gradient counts as a gradient of zeros.

    NaN equals NaN and infinities equal themselves. Raises nothing: shapes and dtypes that differ
    are findings too.
    """
    if ours is None:
        size = largest(theirs)
        return Reading(f"{what} is None where it should be up to {size:.6g}", size, allowed, size)
    mine, right = ours.detach(), torch.zeros_like(ours) if theirs is None else theirs.detach()
    for name in ("shape", "dtype", "device"):
        one, two = getattr(mine, name), getattr(right, name)
        if one != two:
            shown = (tuple(one), tuple(two)) if name == "shape" else (one, two)
            return Reading(f"{what} has {name} {shown[0]}, should have {shown[1]}")
    gap = error(mine, right)
    measured = gap.max().item() if gap.numel() else 0.0
    wrong = not measured <= allowed
    text = describe(what, mine, right, gap, allowed) if wrong else what
    return Reading(text, measured, allowed, largest(right))


def error(ours: Tensor, theirs: Tensor) -> Tensor:
    """|ours - theirs| per entry in float64; 0 where both are the same NaN or infinity."""
    kind = torch.complex128 if ours.is_complex() else torch.float64
    one, two = ours.to(kind), theirs.to(kind)
    gap = (one - two).abs()
    gap = torch.where((one == two) | (one.isnan() & two.isnan()), 0.0, gap)
    return torch.where(gap.isnan(), math.inf, gap)


def describe(what: str, ours: Tensor, theirs: Tensor, gap: Tensor, allowed: float) -> str:
    """Which entry is worst, what both sides say there, and what the difference looks like."""
    worst = int(gap.argmax())
    index = [int(i) for i in torch.unravel_index(gap.argmax(), gap.shape)]
    where = str(index) if index else "the value"
    one, two = (t.reshape(-1)[worst].item() for t in (ours, theirs))
    looks = pattern(ours, theirs, gap > allowed)
    text = f"{what}: {where} is {told_apart(one, two)}, should be {told_apart(two, one)}"
    return f"{text}; {looks}" if looks else text


def told_apart(value: Any, other: Any) -> str:
    """value in as many digits as tell it from the other."""
    if not isinstance(value, float):
        return str(value)
    digits = next((n for n in (6, 9, 12) if f"{value:.{n}g}" != f"{other:.{n}g}"), 17)
    return f"{value:.{digits}g}"


def pattern(ours: Tensor, theirs: Tensor, wrong: Tensor) -> str:
    """What the difference looks like as a whole: a factor, a transposition, a missing part."""
    count, total = int(wrong.sum()), wrong.numel()
    if total < 2:
        return ""
    one, two = ours.double() if not ours.is_complex() else ours, theirs
    two = two.double() if not two.is_complex() else two
    endless = int((~one.isfinite() & wrong).sum())
    if endless:
        return f"{endless} of {total} entries are not finite"
    if not one.any():
        return "all of it is zero"
    ratios = (one / two)[two.abs() > TINY]
    if len(ratios) > 1 and not ratios.is_complex():
        middle = ratios.median()
        if (ratios - middle).abs().max() <= 1e-3 * middle.abs() and abs(middle - 1) > 1e-2:
            return f"every entry is {middle.item():.6g} times what it should be"
    if one.dim() >= 2 and one.shape[-1] == one.shape[-2]:
        crossed = (one.mT - two).abs().max()
        if crossed < 1e-3 * two.abs().max():
            return "it is the transposed of what it should be"
    places = wrong.nonzero()
    for d, size in enumerate(wrong.shape):
        first, last = int(places[:, d].min()), int(places[:, d].max())
        if last - first + 1 < size and count < total:
            span = f"{first}" if first == last else f"{first} to {last}"
            return f"{count} of {total} entries differ, all at index {span} of dimension {d}"
    return f"{count} of {total} entries differ"
