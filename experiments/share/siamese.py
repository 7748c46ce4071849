"""Do two towers that share their weights compare better than two towers of their own?"""

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from experiments.networks import gradient_difference
from experiments.pictures import legend_below
from experiments.results import Claim, Table, held, more
from experiments.share.common import (
    TEXT,
    advantage,
    count,
    each_tuned,
    finite,
    normals,
    rates_note,
    size_ticks,
    some,
    tuned_curve,
)
from experiments.statistics import Rows, interval
from experiments.study import Setting
from experiments.training import loss_of, train

PANELS = 1
COST = "binary_cross_entropy_with_logits"
KINDS = {
    "shared": "shared",
    "separate": "separate",
    "half width": "separate, half as wide",
}


@dataclass(frozen=True)
class Config:
    pairs: tuple[int, ...] = (256, 1024)
    learning_rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    updates: int = 600
    batch: int = 32
    hidden: int = 64
    outputs: int = 16
    examples: int = 1024
    tests: int = 4000  # pairs


CONFIGS = {
    "smoke": Config(pairs=(256,), learning_rates=(0.1,), updates=400),
    "quick": Config(),
    "full": Config(
        pairs=(256, 1024, 4096), learning_rates=(0.03, 0.1, 0.3, 1.0, 3.0), updates=1500
    ),
}


class Towers(nn.Module):
    """The logit of "same": c - k mean (f(left) - g(right))^2 over outputs; c and k are learned."""

    def __init__(self, ops: Any, pixels: int, hidden: int, outputs: int, shared: bool, normal: Any):
        super().__init__()
        self.ops, self.pixels = ops, pixels
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for _ in range(1 if shared else 2):
            for N, K in ((hidden, pixels), (outputs, hidden)):
                self.weights.append(nn.Parameter(normal(N, K) * (2 / K) ** 0.5))
                self.biases.append(nn.Parameter(torch.zeros_like(self.weights[-1][:, 0])))
        self.k = nn.Parameter(torch.ones_like(self.biases[0][0]))
        self.c = nn.Parameter(torch.ones_like(self.biases[0][0]))

    def forward(self, pair: Tensor) -> Tensor:
        weights, biases = list(self.weights), list(self.biases)
        left, right = (
            self.ops.mlp(image, w, b, ["relu", "identity"])
            for image, w, b in (
                (pair[:, : self.pixels], weights[:2], biases[:2]),
                (pair[:, self.pixels :], weights[-2:], biases[-2:]),
            )
        )
        return self.c - self.k * (left - right).square().mean(1)


def pairs_of(x: Tensor, y: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pairs of images in a row, and 1.0 where they show the same digit: one in two does."""
    draw = torch.Generator().manual_seed(seed)
    labels = y.cpu()
    left = torch.randint(len(labels), (count,), generator=draw)
    same = torch.rand(count, generator=draw) < 0.5
    right = torch.empty_like(left)
    for digit in labels.unique():
        for wanted in (True, False):
            candidates = ((labels == digit) == wanted).nonzero()[:, 0]
            chosen = (labels[left] == digit) & (same == wanted)
            number = int(chosen.sum())
            right[chosen] = candidates[torch.randint(len(candidates), (number,), generator=draw)]
    target = (labels[left] == labels[right]).to(x.device, x.dtype)
    return torch.cat([x[left.to(x.device)], x[right.to(x.device)]], 1), target


def arms(config: Config) -> list[dict[str, Any]]:
    return [
        {"pairs": pairs, "kind": kind, "learning_rate": rate}
        for pairs in config.pairs
        for kind in KINDS
        for rate in config.learning_rates
    ]


def work(arm: dict[str, Any], config: Config) -> float:
    return config.updates / 600


def measure(arm: dict[str, Any], config: Config, setting: Setting) -> list[dict[str, Any]]:
    seed = setting.seed
    train_x, train_y, test_x, test_y = some(setting.dataset(), config.examples, config.examples)
    x, same = pairs_of(train_x, train_y, arm["pairs"], 2 * seed)
    test, test_same = pairs_of(test_x, test_y, config.tests, 2 * seed + 1)
    net = Towers(
        setting.ops,
        train_x.shape[1],
        config.hidden // 2 if arm["kind"] == "half width" else config.hidden,
        config.outputs,
        arm["kind"] == "shared",
        normals(setting),
    )
    options = {"batch": config.batch, "learning_rate": arm["learning_rate"], "seed": seed}
    train(net, x, same, updates=config.updates, cost=COST, **options)
    loss = finite(loss_of(net, x, same, COST))
    with torch.no_grad():
        said = net(test) > 0
        swapped = net(test.roll(net.pixels, 1)) > 0
    right = 100 * (said == test_same.bool()).double().mean().item()
    agree = 100 * (said == swapped).double().mean().item()
    return [
        {
            "parameters": sum(p.numel() for p in net.parameters()),
            "train_loss": loss,
            "accuracy": right if loss == loss else loss,
            "agreement": agree if loss == loss else loss,
            "gradient_difference": gradient_difference(net, COST, x[:64], same[:64]),
        }
    ]


def tables(rows: Rows) -> list[Table]:
    body = []
    for pairs, group in rows.groupby("pairs"):
        for kind, best in each_tuned(group, list(KINDS)):
            cells = [best.of("train_loss").text(4), best.of("accuracy").text(1)]
            cells.append(best.of("agreement").text(1))
            body.append([pairs, KINDS[kind], count(best.rows), best.rate_text, *cells])
    headers = ["pairs", "towers", "P", "rate", "training loss", "test %", "agrees when swapped, %"]
    note = (
        f"{rates_note(rows)} agrees when swapped: of the test pairs, those whose answer does not "
        f"change when left and right change places."
    )
    return [Table("The same digit or not?", headers, body, note)]


def claims(rows: Rows) -> list[Claim]:
    made = []
    for pairs, group in rows.groupby("pairs"):
        best = dict(each_tuned(group, list(KINDS)))
        if set(best) != set(KINDS):
            continue
        for kind in ("separate", "half width"):
            gap = advantage(best["shared"], best[kind], "accuracy")
            made.append(
                Claim(
                    f"with {pairs:,} pairs shared towers are better than {KINDS[kind]} ones "
                    f"({count(best[kind].rows)} parameters)",
                    "ours",
                    f"{gap.text(1)} points, with {count(best['shared'].rows)} parameters",
                    "the whole interval of the paired difference is above 0",
                    more(gap),
                )
            )
    return [*made, *_symmetry(rows), *_data(rows)]


def _symmetry(rows: Rows) -> list[Claim]:
    """Of every run of shared towers; of separate ones at their best rate, for at a bad one both
    may answer "no" to everything, in any order."""
    shared = rows[(rows["kind"] == "shared") & rows["train_loss"].notna()]["agreement"]
    best = [
        tuned.rows["agreement"]
        for _, group in rows[rows["kind"] != "shared"].groupby("pairs")
        for _, tuned in each_tuned(group, list(KINDS))
    ]
    separate = pd.concat([*best, pd.Series(dtype="float64")])
    measured = f"shared: {shared.min():g} % at least; separate: {separate.max():.1f} % at most"
    return [
        Claim(
            "shared towers give the same answer when left and right change places, separate ones "
            "do not",
            TEXT,
            measured,
            "shared: 100 % in each run; separate, at the best rate: below 100 % in each",
            held(bool(shared.min() == 100 and separate.max() < 100), bool(shared.min() < 100)),
        )
    ]


def _data(rows: Rows) -> list[Claim]:
    """Is what sharing gains largest where data are scarce? Needs two numbers of pairs."""
    numbers = sorted(rows["pairs"].unique())
    if len(numbers) < 2:
        return []
    gains = []
    for pairs in (numbers[0], numbers[-1]):
        best = dict(each_tuned(rows[rows["pairs"] == pairs], ["shared", "half width"]))
        if len(best) < 2:
            return []
        shared, other = (best[kind].rows.set_index("seed")["accuracy"] for kind in best)
        gains.append(shared - other)
    change = interval(gains[0] - gains[1])
    return [
        Claim(
            f"sharing gains more with {numbers[0]:,} pairs than with {numbers[-1]:,}, at equal "
            f"parameters",
            "ours",
            f"{change.text(1)} points more",
            "the whole interval of the paired difference is above 0",
            more(change),
        )
    ]


def draw(rows: Rows, axes: list[Any]) -> None:
    (axis,) = axes
    for number, kind in enumerate(KINDS):
        tuned_curve(axis, rows, "pairs", kind, number, KINDS[kind])
    size_ticks(axis, rows["pairs"].unique())
    axis.set(
        xlabel="training pairs",
        ylabel="test accuracy (%)",
        title="Same digit or not: two towers",
    )
    legend_below(axis)
