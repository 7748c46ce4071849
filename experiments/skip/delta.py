"""Does the error vanish on its way down, and what do skips and their scale change about it?

Measured is |delta^1| / |delta^L| over the L hidden layers, delta^l = dC/d(W^l a + b^l), as BP2
sends it down: the larger L, the more factors W^T and sigma' it has met.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.networks import Network, gradient_difference
from experiments.pictures import COLOURS, MARKERS, curve
from experiments.results import Claim, Table, held
from experiments.skip.chains import BLOCKS, KINDS, deep, named
from experiments.statistics import Interval, Rows, interval
from experiments.study import Setting
from experiments.training import loss_of, train

DTYPE = "float64"  # a sigmoid's error is 1e-40 below 64 layers
PANELS = 2
NETS = {"sigmoid": "lecun", "tanh": "lecun", "relu": "he"}  # and their initial values
ALL = [("plain", "unit"), *((k, s) for k in KINDS[1:] for s in ("unit", "root"))]
VANISHED, KEPT = -8.0, (0.0, 0.3)  # log10, of 16 layers of sigmoid: plain, with skips
ORDERS = 1.0  # of magnitude: what counts as no change
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


def _at(rows: Rows, kind: str, branch: str, activation: str, init: str = "", **more: Any) -> Rows:
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


def claims(rows: Rows) -> list[Claim]:
    return [*_sigmoid(rows), *_relu(rows), _after(rows)]


def _sigmoid(rows: Rows) -> list[Claim]:
    plain = interval(_at(rows, "plain", "unit", "sigmoid", depth=16)["ratio"])
    pre, post = (
        interval(_at(rows, kind, "unit", "sigmoid", depth=16)["ratio"]) for kind in ("pre", "post")
    )
    slope = per_layer(_at(rows, "plain", "unit", "sigmoid"))
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
            "He et al. 2016a, as the text has it: residual connections",
            f"log10 |delta^1| / |delta^16| = {post.text()} (post, s = 1)",
            f"within {-ORDERS:g} and {ORDERS:g}",
            held(abs(post.mean) <= ORDERS, post.mean < -ORDERS),
        ),
    ]


def _relu(rows: Rows) -> list[Claim]:
    plain = _at(rows, "plain", "unit", "relu")
    deepest = plain["depth"].max()
    ratio = interval(plain[plain["depth"] == deepest]["ratio"])
    growth = per_layer(_at(rows, "pre", "unit", "relu"))
    worst = {
        kind: _at(rows, kind, "root", "relu").groupby("depth")["ratio"].mean().abs().max()
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
        curve(over_depth, _at(rows, kind, branch, activation), "depth", "ratio", number, label)
    over_depth.axhline(0, color="black", linewidth=0.8)
    over_depth.set(
        xscale="log",
        yscale=("symlog"),
        xlabel="hidden layers L",
        ylabel="log10 |delta^1| / |delta^L|, at the start",
        title="The error's way down",
    )
    over_depth.legend(loc="best")
    _draw_profiles(rows, by_layer)


def _draw_profiles(rows: Rows, axis: Any) -> None:
    trained = rows[rows["updates"] > 0]
    depth = trained["depth"].max()
    for number, (kind, group) in enumerate(trained.groupby("kind", sort=False)):
        before = _at(rows, str(kind), group["branch"].iloc[0], "relu", depth=depth, layer=1)
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
