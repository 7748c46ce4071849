"""What does it cost to use one layer at many depths?

ALBERT's question, asked of a residual network with 8, 4, 2 or 1 different layers, used in turn.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import manualgrad as mg
from experiments.networks import gradient_difference, gradients
from experiments.pictures import legend_below, points
from experiments.results import Claim, Table, held, less, more
from experiments.share.common import (
    Tuned,
    advantage,
    count,
    each_rate,
    each_tuned,
    finite,
    normals,
    rates_note,
    size_ticks,
    some,
)
from experiments.statistics import Interval, Rows, interval
from experiments.study import Setting
from experiments.training import accuracy, loss_of, train

PANELS = 1
# what it is called, width, depth, different layers
KINDS = {
    "8 of 8": ("8 layers, all different", 64, 8, 8),
    "4 of 8": ("8 layers, 4 different", 64, 8, 4),
    "2 of 8": ("8 layers, 2 different", 64, 8, 2),
    "1 of 8": ("8 layers, all the same", 64, 8, 1),
    "shallow": ("1 layer", 64, 1, 1),
    "narrow": ("8 narrow layers, all different", 22, 8, 8),
}
SAME_TIME = (0.8, 1.25)


@dataclass(frozen=True)
class Config:
    learning_rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    updates: int = 400
    batch: int = 64
    examples: int = 1024
    tests: int = 1000
    timed: int = 20  # updates of each of two networks, in turn


CONFIGS = {
    "smoke": Config(learning_rates=(0.1,), updates=60, timed=5),
    "quick": Config(),
    "full": Config(updates=800, timed=100),
}


class Stack(nn.Module):
    """W_in x, then z <- z + (W relu(z) + b) / sqrt(depth) with different W in turn, then W_out."""

    def __init__(self, ops: Any, kind: str, pixels: int, normal: Any) -> None:
        super().__init__()
        _, width, self.depth, different = KINDS[kind]
        self.ops = ops
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        shapes = [(width, pixels), *[(width, width)] * different, (10, width)]
        for l, (N, K) in enumerate(shapes):
            gain = 1 if l == different + 1 else 2  # He's rule, but for the last layer
            self.weights.append(nn.Parameter(normal(N, K) * (gain / K) ** 0.5))
            self.biases.append(nn.Parameter(torch.zeros_like(self.weights[-1][:, 0])))
        self.skips = [mg.Skip(l, l + 1, "pre", self.depth**-0.5) for l in range(1, self.depth + 1)]
        self.activations = ["relu"] * (self.depth + 1) + ["identity"]

    def used(self, parameters: nn.ParameterList) -> list[Tensor]:
        """The same tensor stands wherever its layer is used."""
        first, *middle, last = parameters
        return [first, *(middle[l % len(middle)] for l in range(self.depth)), last]

    def forward(self, x: Tensor) -> Tensor:
        weights, biases = self.used(self.weights), self.used(self.biases)
        return self.ops.mlp(x, weights, biases, self.activations, skips=self.skips)


def arms(config: Config) -> list[dict[str, Any]]:
    return each_rate(KINDS, config.learning_rates)


def work(arm: dict[str, Any], config: Config) -> float:
    return config.updates / 500 * (0.3 + KINDS[arm["kind"]][2] / 8)


def measure(arm: dict[str, Any], config: Config, setting: Setting) -> list[dict[str, Any]]:
    x, y, test_x, test_y = some(setting.dataset(), config.examples, config.tests)
    net = Stack(setting.ops, arm["kind"], x.shape[1], normals(setting))
    other = Stack(setting.ops, "8 of 8", x.shape[1], normals(setting))
    batch = x[: config.batch], y[: config.batch]
    step = relative_time(net, other, config.timed, *batch)
    options = {"batch": config.batch, "learning_rate": arm["learning_rate"]}
    train(net, x, y, updates=config.updates, seed=setting.seed, **options)
    loss = finite(loss_of(net, x, y))
    return [
        {
            "parameters": sum(p.numel() for p in net.parameters()),
            "products": sum(w.numel() for w in net.used(net.weights)),
            "step": step,
            "train_loss": loss,
            "test_loss": finite(loss_of(net, test_x, test_y)),
            "accuracy": accuracy(net, test_x, test_y) if loss == loss else loss,
            "gradient_difference": gradient_difference(net, "cross_entropy", *batch),
        }
    ]


def relative_time(net: Stack, other: Stack, times: int, x: Tensor, y: Tensor) -> float:
    """Of a forward and a backward pass, net's over other's: the least of each, taken in turn.

    On a CPU the time of this thread, and the least: other runs go on at the same time.
    """
    clock = time.perf_counter if x.is_cuda else time.thread_time
    seconds: dict[Stack, list[float]] = {net: [], other: []}
    for _ in range(times):
        for one, found in seconds.items():
            start = clock()
            gradients(one, one.ops.cross_entropy(one(x), y))
            if x.is_cuda:
                torch.cuda.synchronize()
            found.append(clock() - start)
    return min(seconds[net]) / min(seconds[other])


def tables(rows: Rows) -> list[Table]:
    body = []
    for kind, best in each_tuned(rows, list(KINDS)):
        losses = [best.of("train_loss").text(4), best.of("test_loss").text(3)]
        time_of = interval(rows[rows["kind"] == kind].groupby("seed")["step"].median())
        body.append(
            [
                KINDS[kind][0],
                count(best.rows),
                count(best.rows, "products"),
                time_of.text(2),
                best.rate_text,
                *losses,
                best.of("accuracy").text(1),
            ]
        )
    headers = ["network", "P", "products", "time", "rate", "training loss", "test loss", "test %"]
    note = (
        f"products: multiplications per example, forward. time: of a forward and a backward pass, "
        f"relative to the network of 8 different layers, measured in turn with it. "
        f"{rates_note(rows)}"
    )
    return [Table("Layers shared over depth", headers, body, note)]


def claims(rows: Rows) -> list[Claim]:
    best = dict(each_tuned(rows, list(KINDS)))
    if set(best) != set(KINDS):
        return []
    half = advantage(best["4 of 8"], best["8 of 8"], "accuracy")
    shared = advantage(best["1 of 8"], best["8 of 8"], "accuracy")
    control = advantage(best["1 of 8"], best["shallow"], "accuracy")
    narrow = advantage(best["1 of 8"], best["narrow"], "accuracy")
    return [
        Claim(
            "halving the different layers costs less than a point",
            "ours, after ALBERT",
            f"{half.text(2)} points",
            "the whole interval of the paired difference is above -1",
            held(half.low > -1, half.high < -1),
        ),
        Claim(
            "one layer for all depths costs accuracy",
            "ALBERT (Lan et al. 2020), table 4",
            f"{shared.text(2)} points",
            "the whole interval of the paired difference is below 0",
            less(shared),
            "82.3 to 79.8 (average score, 108M to 31M parameters)",
        ),
        _time(rows),
        Claim(
            "sharing over depth is better than one layer with as many parameters",
            "ours, the control",
            f"{control.text(2)} points at {count(best['1 of 8'].rows)} parameters",
            "the whole interval of the paired difference is above 0",
            more(control),
        ),
        Claim(
            "sharing over depth is better than narrow layers of as large a depth",
            "ours, the control",
            f"{narrow.text(2)} points, {count(best['narrow'].rows)} parameters of the narrow one",
            "the whole interval of the paired difference is above 0",
            more(narrow),
        ),
        _rate(best),
    ]


def _time(rows: Rows) -> Claim:
    own = rows[rows["kind"] == "1 of 8"]
    ratio: Interval = interval(own.groupby("seed")["step"].median())
    sizes = rows.groupby("kind")["parameters"].first()
    fewer = sizes["8 of 8"] / sizes["1 of 8"]
    low, high = SAME_TIME
    return Claim(
        "sharing saves parameters but no time: that goes with the uses",
        "ours; the text's O(P) is one use per parameter",
        f"{fewer:.1f} times fewer parameters, a step takes {ratio.text(2)} times as long",
        f"the mean is from {low:g} to {high:g}",
        held(low <= ratio.mean <= high),
    )


def _rate(best: dict[str, Tuned]) -> Claim:
    one, all_different = best["1 of 8"].rate, best["8 of 8"].rate
    return Claim(
        "a layer used at all depths wants a smaller learning rate: its gradient is a sum",
        "ours, from eq. 13",
        f"{one:g} instead of {all_different:g}",
        "the best rate is smaller",
        held(one < all_different, one > all_different),
    )


def draw(rows: Rows, axes: list[Any]) -> None:
    (axis,) = axes
    found = dict(each_tuned(rows, list(KINDS)))
    sizes = {kind: best.of("parameters").mean for kind, best in found.items()}
    sharing = [kind for kind in list(KINDS)[:4] if kind in found]
    curves = [(sharing, "64 wide, of 8 layers 8, 4, 2, 1 different", "-")]
    curves += [([kind], KINDS[kind][0], "") for kind in ("shallow", "narrow") if kind in found]
    for number, (kinds, label, line) in enumerate(curves):
        values = [found[kind].of("accuracy") for kind in kinds]
        places = [sizes[kind] for kind in kinds]
        points(axis, places, values, number, capsize=3, label=label, linestyle=line)
    size_ticks(axis, sorted(set(sizes.values())))
    axis.set(xlabel="parameters", ylabel="test accuracy (%)", title="Sharing over depth")
    legend_below(axis)
