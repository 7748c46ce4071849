"""Which deep networks can be trained: plain ones, and with which skips and scale of the branch?"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from experiments.networks import gradient_difference
from experiments.results import Table
from experiments.skip.chains import BLOCKS, deep, named
from experiments.skip.trained import claims, draw
from experiments.statistics import Rows, best_rate, interval
from experiments.study import Setting
from experiments.training import accuracy, loss_of, train

__all__ = ["CONFIGS", "PANELS", "arms", "claims", "draw", "measure", "tables", "work"]

PANELS = 2
BATCH = 64
LOOKS = 25  # updates from one look at the loss to the next: one that is no number ends the run
CHECKED = 32  # examples whose gradients are compared with autograd's
NET = ["activation", "kind", "branch", "updates"]


@dataclass(frozen=True)
class Grid:
    """Networks of one kind: each depth with each rate."""

    kind: str
    branch: str
    depths: tuple[int, ...]
    rates: tuple[float, ...]
    times: int = 1  # as many updates
    activation: str = "relu"


@dataclass(frozen=True)
class Config:
    updates: int
    grids: tuple[Grid, ...]


def _tanh(*depths: int) -> Iterable[Grid]:
    for kind in ("plain", "pre", "out"):
        branch = "unit" if kind == "plain" else "root"
        yield Grid(kind, branch, depths, (0.03, 0.1, 0.3), activation="tanh")


CONFIGS = {
    "smoke": Config(
        100,
        (
            Grid("plain", "unit", (2, 32), (0.03,)),
            Grid("pre", "root", (2, 32), (0.3,)),
            Grid("pre", "unit", (32,), (0.1,)),
            Grid("pre", "zero", (2,), (0.3,)),
            Grid("block", "root", (2,), (0.1,)),
        ),
    ),
    "quick": Config(
        300,
        (
            Grid("plain", "unit", (2, 8), (0.03, 0.1, 0.3)),
            Grid("plain", "unit", (32,), (0.003, 0.01, 0.03)),
            Grid("pre", "root", (2, 8, 32), (0.1, 0.3, 1.0)),
            Grid("post", "root", (32,), (0.1, 0.3, 1.0)),
            Grid("out", "root", (8, 32), (0.01, 0.03, 0.1)),
            Grid("block", "root", (32,), (0.03, 0.1, 0.3)),
            Grid("pre", "unit", (8, 32), (0.003, 0.01)),
            Grid("block", "unit", (8, 32), (0.003, 0.01)),
            Grid("pre", "zero", (32,), (0.01, 0.03, 0.1)),
            Grid("plain", "unit", (32,), (0.01,), times=5),
        ),
    ),
    "full": Config(
        600,
        (
            Grid("plain", "unit", (2, 8, 16), (0.03, 0.1, 0.3)),
            Grid("plain", "unit", (32, 64), (0.003, 0.01, 0.03)),
            Grid("pre", "root", (2, 8, 16, 32, 64), (0.1, 0.3, 1.0)),
            Grid("post", "root", (2, 8, 32), (0.1, 0.3, 1.0)),
            Grid("out", "root", (2, 8, 32), (0.01, 0.03, 0.1)),
            Grid("block", "root", (2, 8, 32), (0.03, 0.1, 0.3)),
            Grid("pre", "unit", (2, 8, 16, 32), (0.001, 0.003, 0.01, 0.03)),
            Grid("block", "unit", (2, 8, 16, 32), (0.001, 0.003, 0.01, 0.03)),
            Grid("pre", "zero", (8, 32), (0.01, 0.03, 0.1)),
            Grid("plain", "unit", (32,), (0.003, 0.01, 0.03), times=5),
            Grid("plain", "unit", (64,), (0.003,), times=5),
            *_tanh(8, 32),
        ),
    ),
}


def arms(config: Config) -> list[dict[str, Any]]:
    return [
        {
            **{"activation": grid.activation, "kind": grid.kind, "branch": grid.branch},
            **{"depth": depth, "updates": config.updates * grid.times, "learning_rate": rate},
        }
        for grid in config.grids
        for depth in grid.depths
        for rate in grid.rates
    ]


def work(arm: dict[str, Any], config: Config) -> float:
    return arm["updates"] * (2 + arm["depth"]) / 10000


def measure(arm: dict[str, Any], config: Config, setting: Setting) -> list[dict[str, Any]]:
    data, activation = setting.dataset(), arm["activation"]
    init = "he" if activation == "relu" else "lecun"
    net = deep(
        setting, data.train_x.shape[1], arm["depth"], arm["kind"], arm["branch"], activation, init
    )
    few = data.train_x[:CHECKED], data.train_y[:CHECKED]
    difference = gradient_difference(net, "cross_entropy", *few)
    options = {name: arm[name] for name in ("learning_rate", "updates")}
    done = train(
        net,
        data.train_x,
        data.train_y,
        batch=BATCH,
        seed=setting.seed,
        every=lambda update: update + LOOKS,
        **options,
    )
    loss = loss_of(net, data.train_x, data.train_y)
    finite = math.isfinite(loss)
    return [
        {
            "made": done,
            "train_loss": loss if finite else math.nan,
            "test_accuracy": accuracy(net, data.test_x, data.test_y) if finite else math.nan,
            "gradient_difference": difference,
        }
    ]


def tables(rows: Rows) -> list[Table]:
    body = []
    for net, group in rows.groupby([*NET, "depth"], sort=False):
        activation, kind, branch, updates, depth = net
        rate, edge = best_rate(group, "train_loss")
        best = group[group["learning_rate"] == rate]
        diverged = f"{int(group['train_loss'].isna().sum())} of {len(group)}"
        tried = ", ".join(f"{one:g}" for one in sorted(group["learning_rate"].unique()))
        body.append(
            [
                *(activation, named(str(kind), str(branch)), depth, updates),
                f"{rate:g}{' (edge)' if edge else ''}" if rate == rate else "none",
                *(tried, diverged, f"{best['train_loss'].count()}"),
                interval(best["train_loss"]).text(4),
                interval(best["test_accuracy"]).text(),
            ]
        )
    headers = [
        *("activation", "skips", "L", "updates", "best rate", "rates tried", "runs diverged"),
        *("n", "training loss", "test accuracy, %"),
    ]
    return [
        Table(
            "Training against depth, at the rate of the least training loss",
            headers,
            body,
            f"L hidden layers of width 64, batches of {BATCH}. {BLOCKS} Diverged: of the runs at "
            "all rates, those whose loss is no number; n: the seeds that did not, at the best "
            "rate. Edge: the best of the rates is the largest or smallest tried. Chance is a loss "
            "of 2.30 and 10 %.",
        )
    ]
