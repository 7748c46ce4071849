"""Does a layer shared by all positions know what it saw at one position at every other?

The shared layer is one linear_act call on the patches of all positions (im2col), on a torus, a
picture without borders.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.networks import gradient_difference
from experiments.pictures import COLOURS
from experiments.results import Claim, Table, held, more, within
from experiments.share.common import (
    SIDE,
    TEXT,
    advantage,
    count,
    each_rate,
    each_tuned,
    finite,
    normals,
    per_position,
    rates_note,
    small,
    some,
)
from experiments.statistics import Rows, interval
from experiments.study import Setting
from experiments.training import accuracy, loss_of, train

PANELS = 1
TORUS = 10  # pixels in a row, and in a column
SEEN, UNSEEN = (0, 1, 2), (5, 6, 7)  # columns
KINDS = {
    "shared": "one layer for all positions",
    "separate": "one layer per position",
    "dense": "dense, 100-64-10",
}
ROUNDING = {"float64": 1e-12, "float32": 1e-4}  # of outputs, relative to the largest
CHANCE = 10.0


@dataclass(frozen=True)
class Config:
    learning_rates: tuple[float, ...] = (0.3,)
    updates: int = 600
    batch: int = 32
    channels: int = 16
    examples: int = 1024
    tests: int = 1000


CONFIGS = {
    "smoke": Config(updates=150),
    "quick": Config(),
    "full": Config(learning_rates=(0.1, 0.3, 1.0, 3.0), updates=1000),
}


class Positions(nn.Module):
    """ReLU units on the patch around each position, the largest over positions, a linear layer."""

    windows: Tensor

    def __init__(self, ops: Any, kind: str, channels: int, normal: Any) -> None:
        super().__init__()
        self.ops, self.kind = ops, kind
        places, pixels = TORUS * TORUS, SIDE * SIDE
        shape = {
            "shared": (channels, pixels),
            "separate": (places, channels, pixels),
            "dense": (4 * channels, places),
        }[kind]
        std = (2 / shape[-1]) ** 0.5
        top = shape[0] if kind == "dense" else channels
        self.weight = nn.Parameter(normal(*shape) * std)
        self.bias = nn.Parameter(torch.zeros_like(self.weight[..., 0]))
        self.top_weight = nn.Parameter(normal(10, top) * top**-0.5)
        self.top_bias = nn.Parameter(torch.zeros_like(self.top_weight[:, 0]))
        self.register_buffer("windows", windows().to(self.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        features = x
        if self.kind == "shared":
            patches = x[:, self.windows]  # (M, positions, pixels)
            maps = self.ops.linear_act(patches, self.weight, self.bias, "relu")
            features = maps.amax(1)
        elif self.kind == "separate":
            features = per_position(x[:, self.windows], self.weight, self.bias).amax(0)
        else:
            features = self.ops.linear_act(x, self.weight, self.bias, "relu")
        return self.ops.linear_act(features, self.top_weight, self.top_bias)


def windows() -> Tensor:
    """The pixels that each position sees, (positions, pixels): SIDE x SIDE around the torus."""
    at, reach = torch.arange(TORUS), torch.arange(SIDE)
    lines = (at[:, None] + reach) % TORUS  # (TORUS, SIDE)
    pixels = lines[:, None, :, None] * TORUS + lines[None, :, None, :]
    return pixels.reshape(TORUS * TORUS, SIDE * SIDE)


def pasted(images: Tensor, columns: tuple[int, ...], background: float, seed: int) -> Tensor:
    """The images on tori, each at a random row and a random one of these columns."""
    draw = torch.Generator().manual_seed(seed)
    device, M = images.device, len(images)
    row = torch.randint(TORUS, (M,), generator=draw).to(device)
    column = torch.tensor(columns)[torch.randint(len(columns), (M,), generator=draw)].to(device)
    torus = images.new_full((M, TORUS, TORUS), background)
    torus[:, :SIDE, :SIDE] = images.view(M, SIDE, SIDE)
    at = torch.arange(TORUS, device=device)
    i, j = (at - row[:, None]) % TORUS, (at - column[:, None]) % TORUS
    moved = torus[torch.arange(M, device=device)[:, None, None], i[:, :, None], j[:, None, :]]
    return moved.flatten(1)


def arms(config: Config) -> list[dict[str, Any]]:
    return each_rate(KINDS, config.learning_rates)


def work(arm: dict[str, Any], config: Config) -> float:
    return config.updates / 600 * {"shared": 1.0, "separate": 1.2, "dense": 0.3}[arm["kind"]]


def measure(arm: dict[str, Any], config: Config, setting: Setting) -> list[dict[str, Any]]:
    seed = setting.seed
    train_x, y, test_x, test_y = some(setting.dataset(), config.examples, config.tests)
    train_x, test_x = small(train_x), small(test_x)
    background = train_x.min().item()
    x = pasted(train_x, SEEN, background, 3 * seed)
    seen = pasted(test_x, SEEN, background, 3 * seed + 1)
    unseen = pasted(test_x, UNSEEN, background, 3 * seed + 2)
    net = Positions(setting.ops, arm["kind"], config.channels, normals(setting))
    options = {"batch": config.batch, "learning_rate": arm["learning_rate"], "seed": seed}
    train(net, x, y, updates=config.updates, **options)
    loss = finite(loss_of(net, x, y))
    with torch.no_grad():
        here, there = net(seen), net(unseen)
    moved = ((here - there).abs().max() / here.abs().max()).item()
    return [
        {
            "parameters": sum(p.numel() for p in net.parameters()),
            "train_loss": loss,
            "seen": accuracy(net, seen, test_y) if loss == loss else loss,
            "unseen": accuracy(net, unseen, test_y) if loss == loss else loss,
            "moved": finite(moved),
            "gradient_difference": gradient_difference(net, "cross_entropy", x[:64], y[:64]),
        }
    ]


def tables(rows: Rows) -> list[Table]:
    body = []
    for kind, best in each_tuned(rows, list(KINDS)):
        moved = best.rows["moved"].max()
        cells = [best.of("train_loss").text(4), best.of("seen").text(1), best.of("unseen").text(1)]
        body.append([KINDS[kind], count(best.rows), best.rate_text, *cells, f"{moved:.1e}"])
    headers = ["network", "P", "rate", "training loss", "test %, seen columns"]
    headers += ["test %, unseen columns", "outputs differ by"]
    note = (
        f"{rates_note(rows)} outputs differ by: the largest change of an output when the same test "
        f"images move to unseen columns, relative to the largest output."
    )
    return [Table("Digits on a torus", headers, body, note)]


def claims(rows: Rows) -> list[Claim]:
    best = dict(each_tuned(rows, list(KINDS)))
    if set(best) != set(KINDS):
        return []
    return [*_exact(best["shared"].rows), *_against(best), *_chance(best)]


def _exact(rows: Rows) -> list[Claim]:
    moved, bound = rows["moved"].max(), ROUNDING[_dtype(rows)]
    gap = (rows["unseen"] - rows["seen"]).abs().max()
    return [
        Claim(
            "a shared layer with a maximum over positions does not care where the digit stands",
            f"{TEXT}; LeCun 1989 for the idea",
            f"outputs move by {moved:.1e} of the largest, test accuracy by {gap:.2f} points",
            f"outputs move by at most {bound:g}",
            held(bool(moved <= bound)),
        )
    ]


def _dtype(rows: Rows) -> str:
    return str(rows["part_dtype"].iloc[0]) if len(rows) else "float32"


def _against(best: dict[str, Any]) -> list[Claim]:
    made = []
    for kind in ("separate", "dense"):
        gap = advantage(best["shared"], best[kind], "seen")
        made.append(
            Claim(
                f"where both were trained, it is better than {KINDS[kind]}",
                "ours",
                f"{gap.text(1)} points, with {count(best['shared'].rows)} parameters instead of "
                f"{count(best[kind].rows)}",
                "the whole interval of the paired difference is above 10 points",
                more(gap, 10),
            )
        )
    return made


def _chance(best: dict[str, Any]) -> list[Claim]:
    made = []
    for kind in ("separate", "dense"):
        there = best[kind].of("unseen")
        made.append(
            Claim(
                f"{KINDS[kind]} learns nothing about columns that it did not see",
                "ours",
                f"{there.text(1)} % right there, chance is {CHANCE:g} %",
                "the mean is from 5 to 15 %",
                within(there.mean, 5, 15),
            )
        )
    return made


def draw(rows: Rows, axes: list[Any]) -> None:
    (axis,) = axes
    found = list(each_tuned(rows, list(KINDS)))
    for number, column in enumerate(("seen", "unseen")):
        values = [interval(best.rows[column]) for _, best in found]
        axis.bar(
            [place + (number - 0.5) * 0.36 for place in range(len(found))],
            [value.mean for value in values],
            width=0.34,
            yerr=[0.0 if value.half != value.half else value.half for value in values],
            color=COLOURS[number],
            hatch=("", "//")[number],
            edgecolor="white",
            capsize=3,
            label=f"{column} columns",
        )
    axis.axhline(CHANCE, color="black", linestyle=":", label="chance")
    names = [f"{kind}\n{count(best.rows)}" for kind, best in found]
    axis.set(
        xticks=range(len(found)),
        xticklabels=names,
        ylim=(0, 125),
        yticks=range(0, 101, 20),
        xlabel="network, and parameters",
        ylabel="test accuracy (%)",
        title="Sharing over positions",
    )
    axis.legend(ncols=3, loc="upper center")
