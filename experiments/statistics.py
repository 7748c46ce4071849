"""Means over seeds with 95 % Student-t intervals, paired differences, slopes in log-log."""

import math
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

Rows = Any  # a pandas.DataFrame: its annotations are unions that name what cannot be


class Interval(NamedTuple):
    """mean +- half, the 95 % confidence interval of a mean over n seeds."""

    mean: float
    half: float
    n: int

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    def text(self, digits: int = 2) -> str:
        if self.n == 0:
            return "-"
        if self.n == 1:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} +- {self.half:.{digits}f}"


def interval(values: Any) -> Interval:
    """Of the mean of values; one that is NaN does not count. half is NaN below two values."""
    x = np.asarray(values, float)
    x = x[~np.isnan(x)]
    if len(x) == 0:
        return Interval(math.nan, math.nan, 0)
    if len(x) == 1:
        return Interval(float(x[0]), math.nan, 1)
    half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return Interval(float(x.mean()), float(half), len(x))


def paired(rows: Rows, reference: Rows, column: str) -> Interval:
    """Of the difference to reference's value of the same seed: one row per seed in each."""
    one, other = rows.set_index("seed")[column], reference.set_index("seed")[column]
    return interval(one - other)


def log_slope(x: Any, y: Any) -> float:
    """d log y / d log x, by least squares."""
    return float(np.polyfit(np.log(np.asarray(x, float)), np.log(np.asarray(y, float)), 1)[0])


def best_rate(rows: Rows, by: str, largest: bool = False) -> tuple[float, bool]:
    """The learning_rate of the best mean of column ``by``, and whether it is on the grid's edge.

    A rate that failed for one seed (NaN) is no candidate unless all are.
    """
    means = rows.groupby("learning_rate")[by].agg(lambda v: v.mean(skipna=False))
    if means.isna().all():
        means = rows.groupby("learning_rate")[by].mean()
    if means.isna().all():
        return math.nan, False
    rate = float(means.idxmax() if largest else means.idxmin())
    return rate, len(means) > 1 and rate in (means.index.min(), means.index.max())
