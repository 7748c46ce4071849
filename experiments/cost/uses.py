"""Is the cost of a backward pass set by the number of parameters, or by how often they are used?"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import manualgrad as mg
from experiments.cost.measures import TIMES, TIMES_NOTE, noise, slopes, time_cells, times
from experiments.cost.parameters import as_fast
from experiments.networks import gradient_difference
from experiments.pictures import curve
from experiments.results import Claim, Table, held, within
from experiments.statistics import Interval, Rows, interval
from experiments.study import DTYPES, Setting

ALONE = True
PANELS = 1
SAME = 2.0  # a ratio of times below which O(P) would be said to hold at equal P
MANY = 4  # uses, from which on the calls' own cost no longer matters


@dataclass(frozen=True)
class Config:
    width: int = 256
    batch: int = 64
    uses: tuple[int, ...] = (1, 4, 16, 64)
    repeats: tuple[int, int] = (5, 30)  # of the most uses and of the fewest


CONFIGS = {
    "smoke": Config(width=64, uses=(1, 4, 8), repeats=(3, 3)),
    "quick": Config(),
    "full": Config(uses=(1, 2, 4, 8, 16, 32, 64, 128), repeats=(30, 200)),
}


class Stack(nn.Module):
    """h <- h + relu(W h) / sqrt(k), k times: W is one matrix, or another in each layer."""

    def __init__(self, ops: Any, weights: list[Tensor], uses: int) -> None:
        super().__init__()
        self.ops, self.uses = ops, uses
        self.weights = nn.ParameterList(weights)

    def forward(self, x: Tensor) -> Tensor:
        k, weights = self.uses, list(self.weights)
        weights = weights * (k // len(weights))
        skips = [mg.Skip(l, l + 1, "out", 1 / math.sqrt(k)) for l in range(k)]
        return self.ops.mlp(x, weights, [None] * k, ["relu"] * k, skips=skips)


def arms(config: Config) -> list[dict[str, Any]]:
    several = [k for k in config.uses if k > 1]  # one use of one matrix is the same thing
    arms = [{"weights": "shared", "uses": k} for k in config.uses]
    return arms + [{"weights": "separate", "uses": k} for k in several]


def repeats(uses: int, config: Config) -> int:
    fewest, most = config.repeats
    return max(fewest, min(most, fewest * max(config.uses) // uses))


def work(arm: dict[str, Any], config: Config) -> float:
    return 0.02 + repeats(arm["uses"], config) * arm["uses"] / 700


def measure(arm: dict[str, Any], config: Config, setting: Setting) -> list[dict[str, Any]]:
    k, n, seed = arm["uses"], config.width, setting.seed
    draw = torch.Generator().manual_seed(seed)
    dtype = DTYPES[setting.dtype]
    drawn = [
        torch.randn(n, n, generator=draw, dtype=torch.float64) * math.sqrt(2 / n)
        for _ in range(1 if arm["weights"] == "shared" else k)
    ]
    net = Stack(setting.ops, [weight.to(setting.device, dtype) for weight in drawn], k)
    x = noise(seed, config.batch, n, like=net.weights[0])
    y = torch.zeros_like(x)
    return [
        {
            "P": sum(weight.numel() for weight in net.parameters()),
            **times(net, "mse_loss", x, y, repeats(k, config)),
            "gradient_difference": gradient_difference(net, "mse_loss", x, y),
        }
    ]


def _of(rows: Rows, weights: str) -> Rows:
    return rows[rows["weights"] == weights]


def tables(rows: Rows) -> list[Table]:
    body = []
    for (weights, k), group in rows.groupby(["weights", "uses"], sort=False):
        per_use = interval(group["backward_ms"] / k).text(3)
        body.append([weights, k, f"{group['P'].iloc[0]:,.0f}", *time_cells(group), per_use])
    headers = ["W", "uses k", "P", *TIMES, "backward (ms) / k"]
    return [Table("One matrix used k times, or k matrices", headers, body, TIMES_NOTE)]


def _paired(rows: Rows, other: Rows, column: str) -> Interval:
    """Of the ratio of the two's values of a seed."""
    one, two = (part.groupby("seed")[column].mean() for part in (rows, other))
    return interval(one / two)


def claims(rows: Rows) -> list[Claim]:
    shared, apart = _of(rows, "shared"), _of(rows, "separate")
    least, most = shared["uses"].min(), shared["uses"].max()
    ends = shared[shared["uses"] == most], shared[shared["uses"] == least]
    grown = _paired(*ends, "backward_ms")
    slope = slopes(shared[shared["uses"] >= MANY], "uses", "backward_ms")
    many, by_itself = (part[part["uses"] == most] for part in (shared, apart))
    saved = _paired(many, by_itself, "backward_ms")
    times_more = f"{most / least:.0f}"
    return [
        Claim(
            "a backward pass takes time O(P), whatever the parameters are used for",
            "the text, on complexity, taken by the letter",
            f"at the same P, {times_more} times the uses take {grown.text(1)} times as long",
            f"they take less than {SAME:g} times as long",
            held(grown.mean < SAME, opposite=grown.mean > SAME),
        ),
        Claim(
            "it takes time O(uses): of a dense chain that is O(P) for each example",
            "ours, a correction",
            f"log-log slope of time in k: {slope.text()} from k = {MANY} on",
            "from 0.8 to 1.4; above 1 where k layers leave the cache",
            within(slope.mean, 0.8, 1.4),
        ),
        Claim(
            "sharing a matrix saves parameters, no time",
            "ours",
            f"k = {most:.0f}: shared / separate {saved.text()}, for 1 / {most:.0f} of P",
            "from 0.5 to 1.5",
            within(saved.mean, 0.5, 1.5),
        ),
        as_fast(rows),
    ]


def draw(rows: Rows, axes: list[Any]) -> None:
    (axis,) = axes
    for number, (weights, label) in enumerate(
        [("shared", "one W: P stays"), ("separate", "k matrices: P grows")]
    ):
        curve(axis, _of(rows, weights), "uses", "backward_ms", number, label)
    shared = _of(rows, "shared")
    at = sorted(shared["uses"].unique())
    first = interval(shared[shared["uses"] == at[0]]["backward_ms"]).mean
    axis.plot(at, [first * k / at[0] for k in at], "k:", label="proportional to k")
    axis.axhline(first, color="black", linestyle="--", linewidth=1, label="if it were O(P), one W")
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="layers that use W: k",
        ylabel="time of a backward pass (ms)",
        title="Cost follows uses, not parameters",
    )
    axis.legend()
