"""Derivatives by differences, with an error bar: the only judge that needs no backward pass.

Central differences at steps h, h/r, h/r^2, ... extrapolated to h = 0 (Richardson, Ridders 1982):
the truncation error falls by h^2 with each column of the tableau, and what two neighbouring columns
disagree by is the error bar. In float64 twelve digits are common where gradcheck's single step
leaves six.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

FIRST_STEP = 0.1
RATIO = 1.7  # of the steps; not 2, or a function rounded to a grid could look smooth
STEPS = 28
COLUMNS = 6
BLUNT = 1e-5  # the relative error bar from where on differences in float64 say nothing


class Slope(NamedTuple):
    """phi'(0), its error bar, the size of phi itself, and the last place it is computed to."""

    value: float
    bar: float
    size: float
    eps: float

    def says_nothing(self, size: float) -> bool:
        """The error bar is beyond what a derivative of this size, or phi, leaves to compare."""
        blunt = max(BLUNT, min(30.0 * self.eps**0.5, 0.05))
        return not self.bar <= blunt * max(size, self.size)


def slope(phi: Callable[[float], tuple[float, float]], eps: float, enough: float) -> Slope:
    """phi'(0) by differences.

    phi: h -> (value, size), size being that of the value's summands, whose rounding is felt.
    eps: the unit in the last place of what phi computes in. enough: an error bar to stop at.
    Steps at which phi is not finite are passed over; NaN with the bar inf if it nowhere is.
    """
    best, bar, rows, scale = math.nan, math.inf, [], 0.0
    for k in range(STEPS):
        h = FIRST_STEP / RATIO**k
        (high, size), (low, other) = phi(h), phi(-h)
        if not (math.isfinite(high) and math.isfinite(low)):
            rows.clear()
            continue
        rows.append((high - low) / (2.0 * h))
        scale = max(scale, size, other)
        noise = eps * max(size, other) / h
        if noise > bar:
            break
        value, gap = extrapolated(rows[-COLUMNS:])
        if gap + noise < bar:
            best, bar = value, gap + noise
        if bar <= enough:
            break
    return Slope(best, bar, scale, eps)


def extrapolated(rows: Sequence[float]) -> tuple[float, float]:
    """(the value at h = 0, error bar) of central differences at h, h/r, h/r^2, ..."""
    before: list[float] = []
    last: list[float] = []
    for difference in rows:
        before, last = last, [difference]
        for j, older in enumerate(before, start=1):
            last.append(last[-1] + (last[-1] - older) / (RATIO ** (2 * j) - 1.0))
    if len(rows) < 2:
        return last[-1], math.inf
    return last[-1], max(abs(last[-1] - last[-2]), abs(last[-1] - before[-1]))


def inner(ones: Sequence[Tensor | None], twos: Sequence[Tensor | None]) -> tuple[float, float]:
    """(sum of the products, sum of their magnitudes), real part, in float64."""
    total = size = 0.0
    for one, two in zip(ones, twos, strict=True):
        if one is None or two is None or one.numel() == 0:
            continue
        if one.is_complex() or two.is_complex():
            products = (one.to(torch.complex128).conj() * two.to(torch.complex128)).real
        else:
            products = one.double() * two.double()
        total += products.sum().item()
        size += products.abs().sum().item()
    return total, size


def kinked(phi: Callable[[float], tuple[float, float]], eps: float) -> bool:
    """Do the slopes to the left and to the right differ, however near one looks?"""
    middle, size = phi(0.0)
    step = max(1e-6, eps**0.5)  # nearer, rounding is all one sees
    jumps = []
    for h in (10.0 * step, step):
        right, left = (phi(h)[0] - middle) / h, (middle - phi(-h)[0]) / h
        jumps.append(abs(right - left))
        sizes = abs(right) + abs(left)
    noise = 30.0 * eps * size / step
    return jumps[1] > 0.5 * jumps[0] and jumps[1] > 1e-4 * sizes + noise
