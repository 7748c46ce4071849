"""What comes back to a fork: is the gradient split between skip and branch, or copied and added?

Each fork's two adjoints are looked at one by one, and the chain's own errors delta^l, in which a
skip is added in BP2's epilogue and no path can be seen, are compared with those of this graph.
"""

from dataclasses import dataclass
from typing import Any

import torch

from experiments.networks import Network, gradient_difference
from experiments.pictures import curve
from experiments.results import Claim, Table, held, more
from experiments.skip import adjoints
from experiments.skip.chains import deep, doubling, scale_of
from experiments.statistics import Rows, interval
from experiments.study import Setting

DTYPE = "float64"
PANELS = 1
ROUNDING = 1e-14
KINDS = ("pre", "post", "out", "block")


@dataclass(frozen=True)
class Config:
    nets: tuple[tuple[str, str, int], ...] = (  # activation, initial values, depth
        *(("relu", "he", depth) for depth in (4, 16, 64)),
        ("tanh", "lecun", 16),
    )
    examples: int = 128


CONFIGS = {
    "smoke": Config(nets=(("relu", "he", 4), ("tanh", "lecun", 16)), examples=32),
    "quick": Config(),
    "full": Config(
        nets=tuple(
            (activation, init, depth)
            for activation, init in (("relu", "he"), ("tanh", "lecun"))
            for depth in (4, 16, 64, 128)
        ),
        examples=256,
    ),
}


def arms(config: Config) -> list[dict[str, Any]]:
    return [
        {"activation": activation, "init": init, "kind": kind, "depth": depth}
        for activation, init, depth in config.nets
        for kind in KINDS
    ]


def work(arm: dict[str, Any], config: Config) -> float:
    return arm["depth"] * config.examples / 20000


def measure(arm: dict[str, Any], config: Config, setting: Setting) -> list[dict[str, Any]]:
    data, kind = setting.dataset(), arm["kind"]
    x, y = data.train_x[: config.examples], data.train_y[: config.examples]
    net = deep(setting, x.shape[1], arm["depth"], kind, "root", arm["activation"], arm["init"])
    walk = adjoints.by_tape if setting.backend == "manualgrad" else adjoints.by_engine
    found = walk(net, kind, x, y)
    sums = [(one.skip + one.branch, one) for one in found.forks]
    skips, branches = ([getattr(one, name) for one in found.forks] for name in ("skip", "branch"))
    pairs = list(zip(branches, skips, strict=True))
    return [
        {
            "scale": scale_of(kind, "root", arm["depth"]),
            "forks": len(sums),
            "added_bitwise": sum(torch.equal(total, one.own) for total, one in sums),
            "copied_bitwise": sum(torch.equal(one.skip, one.above) for one in found.forks),
            "sum_error": max(_apart(total, one.own) for total, one in sums),
            "chain_error": chain_error(net, found.deltas, x, y),
            "share": sum((b.norm() / s.norm()).item() for b, s in pairs) / len(pairs),
            "cosine": sum(_cosine(b, s) for b, s in pairs) / len(pairs),
            "growth": (found.forks[0].own.norm() / found.last.norm()).item(),
            "gradient_difference": gradient_difference(net, "cross_entropy", x, y),
        }
    ]


def chain_error(net: Network, deltas: list[Any], x: Any, y: Any) -> float:
    """The largest |difference| / |delta^l| of the chain's own errors and these, over the layers."""
    with net.ops.capture() as seen:
        net.ops.cross_entropy(net(x), y).backward()
    net.zero_grad()
    return max(_apart(d, use.delta) for d, use in zip(deltas, seen.layers, strict=True))


def _apart(one: Any, other: Any) -> float:
    return ((one - other).norm() / other.norm()).item()


def _cosine(one: Any, other: Any) -> float:
    return ((one * other).sum() / (one.norm() * other.norm())).item()


def tables(rows: Rows) -> list[Table]:
    body = []
    names = ["activation", "depth", "kind"]
    for (activation, depth, kind), group in rows.groupby(names, sort=False):
        forks = group["forks"].sum()
        body.append(
            [
                activation,
                depth,
                kind,
                f"{group['added_bitwise'].sum()} of {forks}",
                f"{group['copied_bitwise'].sum()} of {forks}",
                f"{group['sum_error'].max():.1e}",
                f"{group['chain_error'].max():.1e}",
                f"{group['scale'].iloc[0]:.3f}",
                interval(group["share"]).text(3),
                interval(group["cosine"]).text(3),
                interval(group["growth"]).text(),
            ]
        )
    headers = [
        *("activation", "L", "skips", "h's adjoint = skip + branch, bitwise"),
        *("skip = adjoint of the sum above, bitwise", "largest error of the sum"),
        *("largest error of the chain's delta", "s", "|branch| / |skip|", "cos(skip, branch)"),
        "|adjoint of the first h| / |of the last|",
    ]
    return [
        Table(
            "Adjoints at the forks of untrained networks",
            headers,
            body,
            "Adjoints are dC/dh, errors relative. s = 1/sqrt(number of branches); shares and "
            "cosines are means over a network's forks.",
        )
    ]


def claims(rows: Rows) -> list[Claim]:
    forks, added, copied = (
        int(rows[n].sum()) for n in ("forks", "added_bitwise", "copied_bitwise")
    )
    worst, chain = rows["sum_error"].max(), rows["chain_error"].max()
    ratio = rows["share"] / rows["scale"]
    aligned = rows[(rows["kind"] == "out") & (rows["activation"] == "relu")]
    deepest = aligned["depth"].max()
    out = interval(aligned[aligned["depth"] == deepest]["cosine"])
    others = rows[rows["kind"] != "out"].groupby("arm")["cosine"].mean().abs().max()
    return [
        Claim(
            "a fork's adjoint is the sum of what skip and branch send (eq. 13)",
            "the text, eq. 13",
            f"{worst:.1e} apart at most, relative; bitwise equal at {added} of {forks} forks",
            f"at most {ROUNDING:g} apart",
            held(worst <= ROUNDING),
        ),
        Claim(
            "the chain's own delta, in which the skip is added in BP2, is this graph's",
            "our own",
            f"{chain:.1e} apart at most, relative to |delta^l|",
            f"at most {ROUNDING:g}",
            held(chain <= ROUNDING),
        ),
        Claim(
            'the gradient "splits", if a split leaves each path a part of it',
            "the text, last section; its wording, taken at its word",
            f"the skip brings down the whole adjoint of the sum at {copied} of {forks} forks, bit "
            "for bit: it is copied to both paths, and where they began the two are added",
            "the skip brings down less than the whole, at every fork",
            held(copied == 0, copied == forks),
        ),
        Claim(
            "the branch brings about its scale times what the skip brings",
            "asked here",
            f"|branch| / |skip| is {ratio.min():.2f} to {ratio.max():.2f} times s",
            "from 0.5 to 1.5 times s",
            held(bool(ratio.between(0.5, 1.5).all())),
        ),
        Claim(
            "what skip and branch bring is nearly orthogonal, at the start (pre, post, block)",
            "asked here",
            f"largest |mean cosine| of a network: {others:.3f}",
            "below 0.1",
            held(others < 0.1),
        ),
        Claim(
            "with ReLU before the addition (out) they pull the same way",
            "asked here: why He et al. 2016b find it worse",
            f"cosine at L = {deepest}: {out.text(3)}",
            "the interval lies above 0",
            more(out),
        ),
    ]


def draw(rows: Rows, axes: list[Any]) -> None:
    (axis,) = axes
    relu = rows[rows["activation"] == "relu"]
    for number, (kind, group) in enumerate(relu.groupby("kind", sort=False)):
        curve(axis, group, "scale", "share", number, str(kind))
    scales = sorted(rows["scale"].unique())
    axis.plot(scales, scales, color="black", linestyle=":", label="s")
    axis.set(
        xlabel="branch scale s = 1/sqrt(number of branches)",
        ylabel="|adjoint by branch| / |adjoint by skip|",
        title="What comes back to a fork: ReLU, untrained",
    )
    doubling(axis, "x", scales, "{:.2g}")
    doubling(axis, "y", (0.125, 0.25, 0.5, 1))
    axis.legend()
