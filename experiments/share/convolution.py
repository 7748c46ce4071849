"""Does sharing over positions help where the digits are centred anyway?

The shared layer is a convolution, one linear_act call on all patches (im2col).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.networks import gradient_difference
from experiments.pictures import legend_below
from experiments.results import Claim, Table, more
from experiments.share.common import (
    SIDE,
    advantage,
    count,
    each_tuned,
    finite,
    normals,
    per_position,
    rates_note,
    size_ticks,
    small,
    some,
    tuned_curve,
)
from experiments.statistics import Rows
from experiments.study import Setting
from experiments.training import accuracy, loss_of, train

PANELS = 1
REACH = 3  # pixels in a row of a patch
PLACES = (SIDE - REACH + 1) ** 2
KINDS = {
    "shared": "one layer for all positions",
    "separate": "one layer per position",
    "dense": "dense",
}


@dataclass(frozen=True)
class Config:
    learning_rates: tuple[float, ...] = (0.1,)
    examples: tuple[int, ...] = (64, 256)
    updates: int = 600
    batch: int = 32
    channels: int = 16
    tests: int = 1000


CONFIGS = {
    "smoke": Config(updates=100, examples=(128,)),
    "quick": Config(),
    "full": Config(learning_rates=(0.03, 0.1, 0.3), examples=(64, 256, 1024), updates=1500),
}


class Patches(nn.Module):
    """ReLU units on patches, or on the whole image, and a linear layer on all of them."""

    windows: Tensor

    def __init__(self, ops: Any, kind: str, channels: int, normal: Any) -> None:
        super().__init__()
        self.ops, self.kind = ops, kind
        units = PLACES * channels
        shape = {
            "shared": (channels, REACH * REACH),
            "separate": (PLACES, channels, REACH * REACH),
            "dense": (units, SIDE * SIDE),
        }[kind]
        self.weight = nn.Parameter(normal(*shape) * (2 / shape[-1]) ** 0.5)
        self.bias = nn.Parameter(torch.zeros_like(self.weight[..., 0]))
        self.top_weight = nn.Parameter(normal(10, units) * units**-0.5)
        self.top_bias = nn.Parameter(torch.zeros_like(self.top_weight[:, 0]))
        pixels = torch.arange(SIDE * SIDE).view(SIDE, SIDE)
        windows = pixels.unfold(0, REACH, 1).unfold(1, REACH, 1).reshape(PLACES, -1)
        self.register_buffer("windows", windows.to(self.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "separate":
            maps = per_position(x[:, self.windows], self.weight, self.bias).transpose(0, 1)
        else:
            seen = x[:, self.windows] if self.kind == "shared" else x
            maps = self.ops.linear_act(seen, self.weight, self.bias, "relu")
        return self.ops.linear_act(maps.flatten(1), self.top_weight, self.top_bias)


def arms(config: Config) -> list[dict[str, Any]]:
    return [
        {"examples": examples, "kind": kind, "learning_rate": rate}
        for examples in config.examples
        for kind in KINDS
        for rate in config.learning_rates
    ]


def work(arm: dict[str, Any], config: Config) -> float:
    return config.updates / 1000


def measure(arm: dict[str, Any], config: Config, setting: Setting) -> list[dict[str, Any]]:
    x, y, test_x, test_y = some(setting.dataset(), arm["examples"], config.tests)
    x, test_x = small(x), small(test_x)
    net = Patches(setting.ops, arm["kind"], config.channels, normals(setting))
    options = {"batch": config.batch, "learning_rate": arm["learning_rate"]}
    train(net, x, y, updates=config.updates, seed=setting.seed, **options)
    loss = finite(loss_of(net, x, y))
    return [
        {
            "parameters": sum(p.numel() for p in net.parameters()),
            "first_layer": net.weight.numel() + net.bias.numel(),
            "train_loss": loss,
            "accuracy": accuracy(net, test_x, test_y) if loss == loss else loss,
            "gradient_difference": gradient_difference(net, "cross_entropy", x[:64], y[:64]),
        }
    ]


def tables(rows: Rows) -> list[Table]:
    body = []
    for examples, group in rows.groupby("examples"):
        for kind, best in each_tuned(group, list(KINDS)):
            sizes = [count(best.rows, "first_layer"), count(best.rows)]
            found = [best.of("train_loss").text(4), best.of("accuracy").text(1)]
            body.append([examples, KINDS[kind], *sizes, best.rate_text, *found])
    headers = ["examples", "first layer", "its P", "P", "rate", "training loss", "test %"]
    return [Table("Centred digits", headers, body, rates_note(rows))]


def claims(rows: Rows) -> list[Claim]:
    made = []
    for examples, group in rows.groupby("examples"):
        best = dict(each_tuned(group, list(KINDS)))
        if set(best) != set(KINDS):
            continue
        for kind in ("separate", "dense"):
            gap = advantage(best["shared"], best[kind], "accuracy")
            sizes = [count(best[one].rows, "first_layer") for one in ("shared", kind)]
            made.append(
                Claim(
                    f"with {examples:,} examples the shared layer is better than "
                    f"{KINDS[kind]}{' units' if kind == 'dense' else ''}",
                    "LeCun 1989 for the idea",
                    f"{gap.text(2)} points, with {sizes[0]} parameters of the first layer instead "
                    f"of {sizes[1]}",
                    "the whole interval of the paired difference is above 0",
                    more(gap),
                    "5.0 % test error, without an unshared network beside it",
                )
            )
    return made


def draw(rows: Rows, axes: list[Any]) -> None:
    (axis,) = axes
    for number, kind in enumerate(KINDS):
        tuned_curve(axis, rows, "examples", kind, number, KINDS[kind], "first_layer")
    size_ticks(axis, rows["examples"].unique())
    axis.set(
        xlabel="training examples",
        ylabel="test accuracy (%)",
        title="Centred digits: 3 x 3 patches",
    )
    legend_below(axis, title="first layer")
