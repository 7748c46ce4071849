"""Do gradients of deep ReLU networks look like white noise, and do skips keep them smooth?

Looked at is d out / d x along a line of 1-D inputs x.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from experiments.networks import Network
from experiments.pictures import curve
from experiments.results import Claim, Table, held, more
from experiments.skip.chains import deep, doubling, named
from experiments.statistics import Interval, Rows, interval
from experiments.study import BACKENDS, Setting

DTYPE = "float64"
PANELS = 1
LAGS = (1, 5, 10, 15)  # steps along the line; the claims are about the second
NOISE = 0.2  # an autocorrelation below it is called white noise here
DIFFERENCE = 0.2  # of autocorrelations
NETS = (("plain", "unit"), ("pre", "root"), ("out", "root"), ("pre", "tenth"))


@dataclass(frozen=True)
class Config:
    depths: tuple[int, ...] = (1, 8, 24, 64)
    width: int = 200
    points: int = 256  # on [-2, 2]
    networks: int = 4  # drawn per seed
    nets: tuple[tuple[str, str], ...] = NETS[:3]


CONFIGS = {
    "smoke": Config(depths=(1, 32), width=64, networks=8),
    "quick": Config(),
    "full": Config(depths=(1, 2, 4, 8, 16, 24, 32, 50, 64), networks=10, nets=NETS),
}


def arms(config: Config) -> list[dict[str, Any]]:
    return [
        {"kind": kind, "branch": branch, "depth": depth}
        for kind, branch in config.nets
        for depth in config.depths
    ]


def work(arm: dict[str, Any], config: Config) -> float:
    return config.networks * (1 + arm["depth"]) / 100


def measure(arm: dict[str, Any], config: Config, setting: Setting) -> list[dict[str, Any]]:
    """A row per network."""
    x = torch.linspace(-2, 2, config.points, dtype=torch.float64, device=setting.device)[:, None]
    rows = []
    for i in range(config.networks):
        seed = setting.seed * config.networks + i
        net = deep(
            setting, 1, arm["depth"], arm["kind"], arm["branch"], width=config.width, outputs=1,
            seed=seed,
        )  # fmt: skip
        draw = torch.Generator().manual_seed(2**31 + seed)
        with torch.no_grad():  # so that kinks lie all over the line, not all at 0
            net.biases[0].copy_(torch.randn(config.width, generator=draw, dtype=torch.float64))
        net.requires_grad_(False)  # only x's is asked for
        slope = slope_of(net, x)
        row = {f"lag_{lag}": autocorrelation(slope, lag) for lag in LAGS}
        rows.append({"network": i, **row})
        if i == 0:
            rows[0]["gradient_difference"] = _difference(net, x)
    return rows


def slope_of(net: Network, x: Tensor) -> Tensor:
    """d out / d x at each x."""
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(net(x).sum(), x)
    return slope[:, 0]


def autocorrelation(values: Tensor, lag: int) -> float:
    """Of values with themselves, lag places further on; NaN if they are all equal."""
    centred = values - values.mean()
    variance = centred.square().mean().item()
    if not 0 < variance < math.inf:
        return math.nan
    return (centred[lag:] * centred[:-lag]).mean().item() / variance


def _difference(net: Network, x: Tensor) -> float:
    """The largest between our d out / d x and native autograd's, relative to the largest."""
    before, found = net.ops, []
    for net.ops in BACKENDS.values():
        found.append(slope_of(net, x))
    net.ops = before
    ours, theirs = found
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def _curve(rows: Rows, kind: str, branch: str) -> Rows:
    return rows[(rows["kind"] == kind) & (rows["branch"] == branch)]


def _at(rows: Rows, kind: str, branch: str, depth: int) -> Interval:
    some = _curve(rows, kind, branch)
    return interval(some[some["depth"] == depth][f"lag_{LAGS[1]}"])


def tables(rows: Rows) -> list[Table]:
    depths = sorted(rows["depth"].unique())
    body = []
    for (kind, branch), some in rows.groupby(["kind", "branch"], sort=False):
        for lag in LAGS:
            cells = [interval(some[some["depth"] == d][f"lag_{lag}"]).text() for d in depths]
            body.append([named(str(kind), str(branch)), lag, *cells])
    networks = rows["network"].nunique()
    return [
        Table(
            "Autocorrelation of d out / d x along a line",
            ["skips", "lag", *(f"L = {depth}" for depth in depths)],
            body,
            f"L hidden ReLU layers, He's initial values. {networks} networks per seed, pooled: "
            "each is an independent draw.",
        )
    ]


def claims(rows: Rows) -> list[Claim]:
    low, deepest = rows["depth"].min(), rows["depth"].max()
    first, last = _at(rows, "plain", "unit", low), _at(rows, "plain", "unit", deepest)
    skips = {kind: _at(rows, kind, "root", deepest) for kind in ("pre", "out")}
    start = _at(rows, "pre", "root", low)
    lag = f"lag {LAGS[1]}"
    return [
        Claim(
            "the deeper a plain network, the less its gradients resemble each other",
            "Balduzzi et al. 2017",
            f"plain, {lag}: {first.text()} at L = {low}, {last.text()} at L = {deepest}",
            "the intervals do not overlap",
            held(last.high < first.low, last.low > first.high),
        ),
        Claim(
            f"{deepest} plain layers make gradients white noise",
            "Balduzzi et al. 2017, abstract",
            f"plain, {lag}: {last.text()} at L = {deepest}",
            f"the interval lies below {NOISE:g}",
            held(last.high < NOISE, last.low > NOISE),
        ),
        *[
            Claim(
                f"skips keep them alike ({kind}, s = 1/sqrt(L))",
                "Balduzzi et al. 2017",
                f"{kind} minus plain, {lag}, at L = {deepest}: {_minus(value, last).text()}",
                f"the interval of the difference lies above {DIFFERENCE:g}",
                more(_minus(value, last), DIFFERENCE),
            )
            for kind, value in skips.items()
        ],
        Claim(
            "with skips nothing is lost with depth",
            "asked here; Balduzzi et al. 2017: a decay that is slower than exponential",
            f"pre, {lag}: {start.text()} at L = {low}, {skips['pre'].text()} at L = {deepest}",
            f"the mean at L = {deepest} is within 0.1 of that at L = {low}",
            held(abs(skips["pre"].mean - start.mean) <= 0.1),
        ),
    ]


def _minus(one: Interval, other: Interval) -> Interval:
    """Of the difference of two means of independent draws."""
    n = min(one.n, other.n)
    return Interval(one.mean - other.mean, math.hypot(one.half, other.half), n)


def draw(rows: Rows, axes: list[Any]) -> None:
    (axis,) = axes
    for number, (net, some) in enumerate(rows.groupby(["kind", "branch"], sort=False)):
        curve(axis, some, "depth", f"lag_{LAGS[1]}", number, named(*map(str, net)))
    axis.set(
        ylim=(0, 1),
        xlabel="hidden layers L",
        ylabel=f"autocorrelation of d out/d x, lag {LAGS[1]}",
        title="Shattering: ReLU, untrained",
    )
    doubling(axis, "x", rows["depth"])
    axis.legend(loc="lower left")
