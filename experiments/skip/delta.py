"""Does the error vanish on its way down, and what do skips and their scale change about it?

Measured is |delta^1| / |delta^L| over the L hidden layers, delta^l = dC/d(W^l a + b^l), as BP2
sends it down: the larger L, the more factors W^T and sigma' it has met.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.networks import Network, gradient_difference
from experiments.results import Table
from experiments.skip.chains import BLOCKS, KINDS, deep, named
from experiments.skip.vanishing import NETS, claims, draw, per_layer
from experiments.statistics import Rows, interval
from experiments.study import Setting
from experiments.training import loss_of, train

__all__ = ["CONFIGS", "DTYPE", "PANELS", "arms", "claims", "draw", "measure", "tables", "work"]

DTYPE = "float64"  # a sigmoid's error is 1e-40 below 64 layers
PANELS = 2
ALL = [("plain", "unit"), *((k, s) for k in KINDS[1:] for s in ("unit", "root"))]
ARM = ["activation", "init", "kind", "branch"]
PROFILE = 9  # layers of a profile, evenly spaced


@dataclass(frozen=True)
class Config:
    depths: tuple[int, ...] = (2, 8, 16, 32, 64)
    examples: int = 64
    checked: int = 32  # examples whose gradients are compared with autograd's
    profile: int = 16  # the depth whose layers are shown, and that is trained
    updates: int = 300
    rates: tuple[tuple[str, float], ...] = (("plain", 0.01), ("pre", 0.1))  # of the trained


CONFIGS = {
    "smoke": Config(depths=(2, 8, 16), examples=32, updates=20),
    "quick": Config(),
    "full": Config(
        depths=(2, 8, 16, 32, 64, 128),
        examples=512,
        profile=32,
        updates=600,
        rates=(("plain", 0.01), ("pre", 0.1), ("post", 0.1)),
    ),
}


def arms(config: Config) -> list[dict[str, Any]]:
    """Initial values: all; trained: ReLU, plain against the branches that are scaled."""
    nets = [(activation, init, *one) for activation, init in NETS.items() for one in ALL]
    nets += [("sigmoid", "normal", *one) for one in ALL[:3]]
    fresh = [dict(zip(ARM, net, strict=True), updates=0, learning_rate=0.0) for net in nets]
    trained = []
    for kind, rate in config.rates:
        net = ("relu", "he", kind, "unit" if kind == "plain" else "root")
        trained.append(dict(zip(ARM, net, strict=True), updates=config.updates, learning_rate=rate))
    return fresh + trained


def work(arm: dict[str, Any], config: Config) -> float:
    if arm["updates"]:
        return arm["updates"] * config.profile / 2000
    return sum(config.depths) * config.examples / 50000


def measure(arm: dict[str, Any], config: Config, setting: Setting) -> list[dict[str, Any]]:
    """A row per depth; of the depth whose profile is shown, a row per layer."""
    data, rows = setting.dataset(), []
    x, y = data.train_x[: config.examples], data.train_y[: config.examples]
    for depth in (config.profile,) if arm["updates"] else config.depths:
        net = deep(setting, x.shape[1], depth, *(arm[n] for n in ("kind", "branch")), **_made(arm))
        if arm["updates"]:
            options = {name: arm[name] for name in ("learning_rate", "updates")}
            train(net, data.train_x, data.train_y, batch=64, seed=setting.seed, **options)
        norms = hidden_deltas(net, x, y)
        shown = [0]
        if depth == config.profile:
            shown = np.unique(np.linspace(0, depth - 1, PROFILE).round().astype(int))
        loss = loss_of(net, x, y)
        rows += [
            {"depth": depth, "layer": int(l) + 1, "ratio": orders(norms[l], norms[-1])}
            | {"loss": loss if math.isfinite(loss) else math.nan}
            for l in shown
        ]
        if depth == config.profile:
            few = x[: config.checked], y[: config.checked]
            rows[-1]["gradient_difference"] = gradient_difference(net, "cross_entropy", *few)
    return rows


def _made(arm: dict[str, Any]) -> dict[str, str]:
    return {name: arm[name] for name in ("activation", "init")}


def hidden_deltas(net: Network, x: Any, y: Any) -> list[float]:
    """|delta^l| of the hidden layers behind the first."""
    with net.ops.capture() as seen:
        net.ops.cross_entropy(net(x), y).backward()
    net.zero_grad()
    return list(seen.delta_norms())[1:-1]


def orders(norm: float, of: float) -> float:
    """log10 of their ratio; NaN where one of them is zero or no number."""
    if not (0 < norm < math.inf and 0 < of < math.inf):
        return math.nan
    return math.log10(norm) - math.log10(of)


def tables(rows: Rows) -> list[Table]:
    fresh = rows[(rows["updates"] == 0) & (rows["layer"] == 1)]
    depths, body = sorted(fresh["depth"].unique()), []
    for (activation, init, kind, branch), group in fresh.groupby(ARM, sort=False):
        cells = [interval(group[group["depth"] == depth]["ratio"]).text() for depth in depths]
        slope = per_layer(group).text(3)
        body.append([f"{activation}, {init}", named(str(kind), str(branch)), *cells, slope])
    headers = ["activation, initial values", "skips", *(f"L = {depth}" for depth in depths)]
    return [
        Table(
            "log10 |delta^1| / |delta^L| at the start",
            [*headers, "power of 2 per layer"],
            body,
            "L hidden layers; negative: the error is smaller below, it vanishes. The last column "
            f"is the slope over these depths. {BLOCKS}",
        ),
        _profiles(rows),
    ]


def _profiles(rows: Rows) -> Table:
    trained = rows[rows["updates"] > 0]
    depth, updates = trained["depth"].max(), trained["updates"].max()
    layers, body = sorted(trained["layer"].unique()), []
    for (kind, branch, rate), group in trained.groupby(
        ["kind", "branch", "learning_rate"], sort=False
    ):
        before = rows[(rows["updates"] == 0) & (rows["depth"] == depth)]
        for name, value in (("kind", kind), ("branch", branch), ("activation", "relu")):
            before = before[before[name] == value]
        for when, some in (("start", before), (f"{updates} updates, rate {rate:g}", group)):
            cells = [interval(some[some["layer"] == l]["ratio"]).text() for l in layers]
            loss = interval(some[some["layer"] == 1]["loss"]).text(3)
            body.append([named(str(kind), str(branch)), when, *cells, loss])
    return Table(
        f"log10 |delta^l| / |delta^L| by layer, ReLU, L = {depth}",
        ["skips", "when", *(f"l = {l}" for l in layers), "loss"],
        body,
    )
