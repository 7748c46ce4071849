"""The networks of this experiment: one chain of layers, with skips of one kind or without.

Layer 1 is the input's, L hidden layers of one width follow, then the output. With skips too, no
kind has a parameter more or less than the plain chain.

    plain   h = sigma(W h + b)
    pre     h = h + s (W sigma(h) + b)           He et al. 2016b
    post    h = sigma(h + s (W h + b))           He et al. 2016a
    out     h = h + s sigma(W h + b)             what a fused layer and a sum make
    block   h = h + s (W' sigma(W h + b) + b')   over pairs of layers
"""

from typing import Any

import torch

import manualgrad as mg
from experiments.networks import Network
from experiments.pictures import ticks
from experiments.study import Setting

KINDS = ("plain", "pre", "post", "out", "block")
WIDTH = 64
# how a branch starts and what it is multiplied with: names of columns, and as tables say it
BRANCHES = {"unit": "1", "root": "1/sqrt(L)", "tenth": "0.1", "zero": "1, W = 0"}
BLOCKS = "The L in a block's scale is the number of blocks, half that of hidden layers."


def branches_of(kind: str, depth: int) -> int:
    """How many there are."""
    return 0 if kind == "plain" else depth // 2 if kind == "block" else depth


def scale_of(kind: str, branch: str, depth: int) -> float:
    """What each branch is multiplied with."""
    if kind == "plain":
        return 1.0
    return {"root": branches_of(kind, depth) ** -0.5, "tenth": 0.1}.get(branch, 1.0)


def skips_of(kind: str, depth: int, scale: float) -> list[mg.Skip]:
    """Of a chain with depth hidden layers behind the first."""
    if kind == "plain":
        return []
    if kind == "block":
        return [mg.Skip(l - 1, l + 1, "out", scale) for l in range(2, depth + 1, 2)]
    return [mg.Skip(l - 1, l, kind, scale) for l in range(2, depth + 2)]


def deep(
    setting: Setting,
    inputs: int,
    depth: int,
    kind: str,
    branch: str = "unit",
    activation: str = "relu",
    init: str = "he",
    *,
    width: int = WIDTH,
    outputs: int = 10,
    seed: int | None = None,
) -> Network:
    """A chain with depth hidden layers behind the first. seed: the setting's, unless given."""
    acts = [activation] * (depth + 1)
    if kind == "block":
        acts[2::2] = ["identity"] * (depth // 2)
    skips = skips_of(kind, depth, scale_of(kind, branch, depth))
    given = {} if seed is None else {"seed": seed}
    sizes = [inputs, *[width] * (depth + 1), outputs]
    net = setting.network(sizes, acts, init=init, skips=skips, **given)
    if branch == "zero":
        with torch.no_grad():
            for skip in skips:
                net.weights[skip.end - 1].zero_()
    return net


def doubling(axis: Any, name: str, values: Any, text: str = "{:g}") -> None:
    """Make the axis "x" or "y" logarithmic, with these values on it and no others."""
    getattr(axis, f"set_{name}scale")("log", base=2)
    ticks(axis, values, text, name)


def named(kind: str, branch: str) -> str:
    """As a table's row or a legend says it."""
    return kind if kind == "plain" else f"{kind}, s = {BRANCHES[branch]}"
