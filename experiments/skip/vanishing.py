"""What the error's way down shows: its claims and its picture."""

import math
from typing import Any

import numpy as np

from experiments.pictures import COLOURS, MARKERS, curve
from experiments.results import Claim, held
from experiments.skip.chains import KINDS, named
from experiments.statistics import Interval, Rows, interval

NETS = {"sigmoid": "lecun", "tanh": "lecun", "relu": "he"}  # and their initial values
VANISHED, KEPT = -8.0, (0.0, 0.3)  # log10, of 16 layers of sigmoid: plain, with skips
ORDERS = 1.0  # of magnitude: what counts as no change


def at_start(
    rows: Rows, kind: str, branch: str, activation: str, init: str = "", **more: Any
) -> Rows:
    """The whole chains' ratios of one network as it was initialised."""
    init = init or NETS[activation]
    where = {"kind": kind, "branch": branch, "activation": activation, "init": init}
    where |= {"updates": 0, "layer": 1} | more
    for name, value in where.items():
        rows = rows[rows[name] == value]
    return rows


def per_layer(rows: Rows) -> Interval:
    """By which power of 2 the error grows with each layer that it passes, per seed."""
    slopes = []
    for _, group in rows.groupby("seed"):
        there = group.dropna(subset=["ratio"])
        if there["depth"].nunique() > 1:
            slope = np.polyfit(there["depth"].astype(float), there["ratio"].astype(float), 1)[0]
            slopes.append(slope / math.log10(2))
    return interval(slopes)


def claims(rows: Rows) -> list[Claim]:
    return [*_sigmoid(rows), *_relu(rows), _after(rows)]


def _sigmoid(rows: Rows) -> list[Claim]:
    plain = interval(at_start(rows, "plain", "unit", "sigmoid", depth=16)["ratio"])
    pre, post = (
        interval(at_start(rows, kind, "unit", "sigmoid", depth=16)["ratio"])
        for kind in ("pre", "post")
    )
    slope = per_layer(at_start(rows, "plain", "unit", "sigmoid"))
    return [
        Claim(
            "in a plain sigmoid network the error vanishes on its way down",
            "Nielsen, chapter 5",
            f"log10 |delta^1| / |delta^16| = {plain.text()}",
            f"below {VANISHED:g}",
            held(plain.mean < VANISHED, plain.mean > 0),
        ),
        Claim(
            "each sigmoid layer divides it by 4 or more, for sigma' <= 1/4",
            "Nielsen, chapter 5",
            f"2^({slope.text(3)}) per layer, LeCun's initial values",
            "the power is at most -2",
            held(slope.mean <= -2, slope.mean > 0),
        ),
        Claim(
            "a skip brings the error down a sigmoid network whole",
            "He et al. 2016b",
            f"log10 |delta^1| / |delta^16| = {pre.text()} (pre, s = 1)",
            f"within {list(KEPT)}",
            held(KEPT[0] <= pre.mean <= KEPT[1], pre.mean < VANISHED),
        ),
        Claim(
            "so does a skip whose sum goes through the sigmoid",
            "asked here; He et al. 2016b: the way of the skip must stay free",
            f"log10 |delta^1| / |delta^16| = {post.text()} (post, s = 1)",
            f"within {-ORDERS:g} and {ORDERS:g}",
            held(abs(post.mean) <= ORDERS, post.mean < -ORDERS),
        ),
    ]


def _relu(rows: Rows) -> list[Claim]:
    plain = at_start(rows, "plain", "unit", "relu")
    deepest = plain["depth"].max()
    ratio = interval(plain[plain["depth"] == deepest]["ratio"])
    growth = per_layer(at_start(rows, "pre", "unit", "relu"))
    worst = {
        kind: at_start(rows, kind, "root", "relu").groupby("depth")["ratio"].mean().abs().max()
        for kind in KINDS[1:]
    }
    out = worst.pop("out")
    words = ", ".join(f"{kind} {value:.2f}" for kind, value in worst.items())
    return [
        Claim(
            "in a plain ReLU network with He's initial values it vanishes too",
            "the usual reason given for skips",
            f"log10 |delta^1| / |delta^{deepest}| = {ratio.text()}",
            f"below {-ORDERS:g}",
            held(ratio.high < -ORDERS, ratio.low > 0),
        ),
        Claim(
            "with ReLU, He's initial values, skips of scale 1 and no normalisation it explodes, "
            "as 2^(L/2)",
            "arithmetic: each branch doubles its square",
            f"2^({growth.text(3)}) per layer (pre)",
            "the power is within [0.4, 0.6]",
            held(0.4 <= growth.mean <= 0.6, growth.mean < 0),
        ),
        Claim(
            "a scale of 1/sqrt(L) keeps it within an order of magnitude at every depth",
            "arithmetic: (1 + 1/L)^(L/2) < sqrt(e)",
            f"largest |mean log10|: {words}",
            f"at most {ORDERS:g} of each kind",
            held(all(value <= ORDERS for value in worst.values())),
        ),
        Claim(
            "and if the branch ends in its ReLU (out), too",
            "asked here: its outputs are not centred, so branches add up",
            f"largest |mean log10|: {out:.2f}",
            f"at most {ORDERS:g}",
            held(out <= ORDERS),
        ),
    ]


def _after(rows: Rows) -> Claim:
    trained = rows[(rows["updates"] > 0) & (rows["layer"] == 1)]
    found = {kind: interval(group["ratio"]) for kind, group in trained.groupby("kind", sort=False)}
    worst = max((abs(value.mean) for value in found.values()), default=math.nan)
    return Claim(
        "training a ReLU network leaves it within an order of magnitude, plain or not",
        "asked here",
        "log10 |delta^1| / |delta^L| after training: "
        + ", ".join(f"{kind} {value.text()}" for kind, value in found.items()),
        f"every |mean| is at most {ORDERS:g}",
        held(worst <= ORDERS),
    )


def draw(rows: Rows, axes: list[Any]) -> None:
    over_depth, by_layer = axes
    shown = [("sigmoid", "plain", "unit"), ("sigmoid", "pre", "unit"), ("relu", "plain", "unit")]
    shown += [("relu", "pre", "unit"), ("relu", "pre", "root"), ("relu", "out", "root")]
    for number, (activation, kind, branch) in enumerate(shown):
        label = f"{activation} {named(kind, branch)}"
        curve(over_depth, at_start(rows, kind, branch, activation), "depth", "ratio", number, label)
    over_depth.axhline(0, color="black", linewidth=0.8)
    over_depth.set(
        xlabel="hidden layers L",
        ylabel="log10 |delta^1| / |delta^L|, at the start",
        title="The error's way down",
    )
    over_depth.legend(loc="lower left")
    _draw_profiles(rows, by_layer)


def _draw_profiles(rows: Rows, axis: Any) -> None:
    trained = rows[rows["updates"] > 0]
    depth = trained["depth"].max()
    for number, (kind, group) in enumerate(trained.groupby("kind", sort=False)):
        before = at_start(rows, str(kind), group["branch"].iloc[0], "relu", depth=depth, layer=1)
        before = rows[(rows["depth"] == depth) & rows["arm"].isin(before["arm"])]
        label = named(str(kind), group["branch"].iloc[0])
        curve(axis, group, "layer", "ratio", number, f"{label}, trained")
        means = before.groupby("layer")["ratio"].mean()
        style = {"color": COLOURS[number], "marker": MARKERS[number], "fillstyle": "none"}
        axis.plot(means.index, means, linestyle=":", label=f"{label}, start", **style)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(
        xlabel="hidden layer l",
        ylabel="log10 |delta^l| / |delta^L|",
        title=f"ReLU, L = {depth}: before and after training",
    )
    axis.legend()
