"""What the parts of `share` have in common: images of one size, runs tuned by their rate."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.data import Dataset
from experiments.pictures import curve, ticks
from experiments.statistics import Interval, Rows, best_rate, interval, paired
from experiments.study import DTYPES, Setting

SIDE = 8  # of the images in parts that need a square
TEXT = "the text, weight sharing"


def side_of(images: Tensor) -> int:
    """How many pixels wide, of images that are rows of pixels."""
    side = math.isqrt(images.shape[1])
    if side * side != images.shape[1]:
        raise ValueError(f"images of {images.shape[1]} pixels are not square; this part needs that")
    return side


def small(images: Tensor) -> Tensor:
    """Rows of SIDE x SIDE pixels: larger images by averages over patches."""
    side = side_of(images)
    if side == SIDE:
        return images
    square = images.view(-1, 1, side, side)
    return F.adaptive_avg_pool2d(square, SIDE).flatten(1)


def some(data: Dataset, train: int, test: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """At most so many examples: train_x, train_y, test_x, test_y."""
    return (
        data.train_x[:train],
        data.train_y[:train],
        data.test_x[:test],
        data.test_y[:test],
    )


def finite(value: float) -> float:
    """NaN for what a diverged run gives."""
    return value if math.isfinite(value) else math.nan


def normals(setting: Setting) -> Callable[..., Tensor]:
    """Normal numbers from the setting's seed, in its dtype, on its device."""
    source = torch.Generator().manual_seed(setting.seed)

    def normal(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=source, dtype=torch.float64)
        return drawn.to(setting.device, DTYPES[setting.dtype])

    return normal


class Tuned(NamedTuple):
    """The rows of the learning rate with the least training loss, a row per seed."""

    rows: Rows
    rate: float
    edge: bool

    def of(self, column: str) -> Interval:
        return interval(self.rows[column])

    @property
    def rate_text(self) -> str:
        if math.isnan(self.rate):
            return "all diverged"
        return f"{self.rate:g}{' (edge)' if self.edge else ''}"


def tuned(rows: Rows) -> Tuned:
    rate, edge = best_rate(rows, by="train_loss")
    return Tuned(rows[rows["learning_rate"] == rate], rate, edge)


def each_tuned(rows: Rows, names: Sequence[str]) -> Iterator[tuple[str, Tuned]]:
    """Of column kind's values, in the order of names, those that rows have."""
    for name in names:
        group = rows[rows["kind"] == name]
        if len(group):
            yield name, tuned(group)


def rates_note(rows: Rows) -> str:
    rates = ", ".join(f"{rate:g}" for rate in sorted(rows["learning_rate"].unique()))
    if "," not in rates:
        return f"Learning rate: {rates} for all."
    return (
        f"Learning rate: of {rates}, the one with the least training loss; (edge): it is the "
        f"smallest or largest of them, so that a better one may lie beyond."
    )


def advantage(one: Tuned, other: Tuned, column: str) -> Interval:
    """one's column minus other's, seed by seed."""
    return paired(one.rows, other.rows, column)


def ratio(one: Tuned, other: Tuned, column: str) -> Interval:
    """one's column over other's, seed by seed."""
    top, bottom = (t.rows.set_index("seed")[column] for t in (one, other))
    return interval(top / bottom)


def count(rows: Rows, column: str = "parameters") -> str:
    """A whole number that all rows have."""
    values: list[Any] = sorted(rows[column].dropna().unique())
    return " to ".join(f"{int(value):,}" for value in values[:: max(1, len(values) - 1)]) or "-"


def size_ticks(axis: Any, sizes: Sequence[float]) -> None:
    """On a logarithmic x axis: these sizes and no others."""
    axis.set_xscale("log")
    ticks(axis, [size for size in sizes if not math.isnan(size)])


def each_rate(kinds: Iterable[str], rates: Iterable[float]) -> list[dict[str, Any]]:
    """Arms: each kind with each learning rate."""
    return [{"kind": kind, "learning_rate": rate} for kind in kinds for rate in rates]


def tuned_curve(
    axis: Any, rows: Rows, x: str, kind: str, number: int, label: str, size: str = "parameters"
) -> None:
    """A kind's accuracy at each x, tuned there; its number of parameters is in the label."""
    own = rows[rows["kind"] == kind]
    best = [tuned(group).rows for _, group in own.groupby(x)]
    if best:
        text = f"{label}, {count(own, size)} parameters"
        curve(axis, pd.concat(best), x, "accuracy", number, text)


def per_position(patches: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """ReLU units with a weight for each position, by a product for each, of PyTorch.

    patches (M, P, K), weight (P, N, K), bias (P, N).  Returns (P, M, N).
    """
    return torch.baddbmm(bias.unsqueeze(1), patches.transpose(0, 1), weight.mT).relu()
