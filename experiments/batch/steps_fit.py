"""From runs at many learning rates to S = S_min + E_min / M, and the regimes of its slope."""

import math
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from experiments.statistics import Rows, best_rate, log_slope

PERFECT, FLAT = -0.8, -0.3  # local slopes of updates over batch that bound the regimes
SMALL, LARGE = 16, 256  # where the curve is said to be steep, and flat


def tuned(rows: Rows) -> Rows:
    """The rows at each batch's best rate; edge: whether that is the grid's least or largest."""
    found = []
    for _, group in rows.groupby("batch"):
        rate, edge = best_rate(group, "steps")
        found.append(group[group["learning_rate"] == rate].assign(edge=edge))
    return pd.concat(found)


def fit(batch: Any, steps: Any) -> tuple[float, float]:
    """(S_min, E_min) of steps = S_min + E_min / batch, by least squares of the logarithms."""
    batch, steps = np.asarray(batch, float), np.asarray(steps, float)
    good = np.isfinite(steps) & (steps > 0)
    batch, steps = batch[good], steps[good]
    if len(set(batch)) < 3:
        return math.nan, math.nan

    def distance(logs):
        return np.log(np.exp(logs[0]) + np.exp(logs[1]) / batch) - np.log(steps)

    start = np.log([steps.min(), (steps * batch).min()])
    S_min, E_min = np.exp(least_squares(distance, start, bounds=(-5.0, 20.0)).x)
    return float(S_min), float(E_min)


def per_seed(chosen: Rows) -> Rows:
    """Of each seed: the fit and its critical batch, the slopes, what large batches cost."""
    found = []
    for seed, group in chosen.groupby("seed"):
        S_min, E_min = fit(group["batch"], group["steps"])
        examples = (group["steps"] * group["batch"]).to_numpy()
        found.append(
            {
                "seed": seed,
                "S_min": S_min,
                "E_min": E_min,
                "B_crit": E_min / S_min,
                "log_B_crit": math.log10(E_min / S_min),
                "small": local_slope(group[group["batch"] <= SMALL]),
                "large": local_slope(group[group["batch"] >= LARGE]),
                "price": examples[-1] / examples[0],
            }
        )
    columns = ["seed", "S_min", "E_min", "B_crit", "log_B_crit", "small", "large", "price"]
    return pd.DataFrame(found, columns=columns)


def local_slope(rows: Rows) -> float:
    good = rows[rows["steps"].notna()]
    if good["batch"].nunique() < 2:
        return math.nan
    return log_slope(good["batch"], good["steps"])


def regime(slope: float) -> str:
    if math.isnan(slope):
        return "-"
    return "perfect" if slope <= PERFECT else "flat" if slope >= FLAT else "diminishing"


def kinds_of(rows: Rows) -> list[tuple[str, float, Rows]]:
    return [
        (str(key[0]), key[1], tuned(group)) for key, group in rows.groupby(["target", "momentum"])
    ]
