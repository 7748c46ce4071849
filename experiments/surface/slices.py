"""Is the loss surface wider around a small batch's solution, and smoother where there are skips?

One slice is an anecdote: several pairs of directions per solution, and a mean over many single
ones. The grid of the first pair is kept for the first seed alone, as the picture's rows; its
summary for every pair and seed.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

import manualgrad as mg
from experiments import curvature
from experiments.networks import Network, gradient_difference
from experiments.study import Setting
from experiments.surface.slices_report import HIGH, LOW, claims, draw, tables
from experiments.training import accuracy, loss_of, train

__all__ = ["CONFIGS", "PANELS", "arms", "claims", "draw", "measure", "tables", "work"]

PANELS = 4
DEEP = ("plain", "residual")


@dataclass(frozen=True)
class Config:
    small: int = 4  # batch sizes
    full: int = 1024
    depth: int = 32  # hidden layers of the deep networks
    width: int = 64
    deep_batch: int = 64
    rate: float = 0.1  # learning rates
    plain_rate: float = 0.01  # it diverges or stays behind with more
    residual_rate: float = 0.1
    target: float = 0.01  # training loss of the batch sizes' networks
    deep_target: float = 0.3  # of the deep ones: the plain network needs long to come further
    updates: int = 2000  # at most
    examples: int = 256  # of the training set, that a slice is measured on
    steps: int = 15  # points along a direction, from -1 to 1
    pairs: int = 3
    directions: int = 20


CONFIGS = {
    "smoke": Config(
        small=4,
        full=256,
        depth=16,
        width=32,
        plain_rate=0.03,
        target=0.05,
        deep_target=1.0,
        updates=300,
        examples=128,
        steps=5,
        pairs=2,
    ),
    "quick": Config(),
    "full": Config(deep_target=0.1, updates=6000, examples=1024, steps=25, pairs=5),
}


def arms(config: Config) -> list[dict[str, Any]]:
    return [{"case": case} for case in ("small batch", "full batch", "plain", "residual")]


def work(arm: dict[str, Any], config: Config) -> float:
    deep = arm["case"] in DEEP
    return (4.0 if deep else 1.0) * config.steps**2 * config.pairs * config.examples / 2e5 + 3


def solution(case: str, config: Config, setting: Setting) -> tuple[Network, int, int, float]:
    """A network to be trained; its batch size, how many examples it learns from, its rate."""
    pixels, width = setting.dataset().train_x.shape[1], config.width
    if case in ("small batch", "full batch"):
        net = setting.network([pixels, width, width, 10])
        return net, config.small if case == "small batch" else config.full, config.full, config.rate
    sizes = [pixels, *[width] * (config.depth + 1), 10]
    if case == "plain":
        return setting.network(sizes), config.deep_batch, config.full, config.plain_rate
    scale = 1 / math.sqrt(config.depth)
    skips = [mg.Skip(l - 1, l, "pre", scale) for l in range(2, config.depth + 2)]
    net = setting.network(sizes, skips=skips)
    return net, config.deep_batch, config.full, config.residual_rate


def measure(arm: dict[str, Any], config: Config, setting: Setting) -> list[dict[str, Any]]:
    data = setting.dataset()
    net, batch, examples, rate = solution(arm["case"], config, setting)
    x, y = data.train_x[:examples], data.train_y[:examples]
    target = config.deep_target if arm["case"] in DEEP else config.target
    updates = train(
        net,
        x,
        y,
        batch=batch,
        learning_rate=rate,
        updates=config.updates,
        seed=setting.seed,
        stop=lambda update: loss_of(net, x, y) <= target,
        every=lambda update: update + 10,
    )
    loss = loss_of(net, x, y)
    some = x[: config.examples], y[: config.examples]
    surface = curvature.Landscape(net, "cross_entropy", *some, dtype=x.dtype)
    solved = {
        "kind": "solution",
        "batch": batch,
        "updates": updates,
        "reached": int(loss <= target),
        "train_loss": loss,
        "test_accuracy": accuracy(net, data.test_x, data.test_y),
        "around": float(np.mean(surface.around(0.5, config.directions, seed=1000))),
        "gradient_difference": gradient_difference(net, "cross_entropy", *some),
    }
    return [solved, *sliced(surface, config, keep=setting.seed == 0)]


def sliced(surface: curvature.Landscape, config: Config, keep: bool) -> list[dict[str, Any]]:
    """A row per pair of directions; of the first, where it is kept, one per point."""
    steps = np.linspace(-1, 1, config.steps)
    pairs, points = [], []
    for pair in range(config.pairs):
        first, second = (surface.direction(2 * pair + i) for i in (0, 1))
        losses = np.array(surface.slice(first, second, steps.tolist()))
        summary = {
            "low_area": 100 * float((losses < LOW).mean()),
            "high_area": 100 * float((losses < HIGH).mean()),
            "highest": float(losses.max()),
        }
        pairs.append({"kind": "pair", "pair": pair, **summary})
        if keep and pair == 0:
            points = [
                {"kind": "point", "along": a, "across": b, "loss": float(losses[i, j])}
                for i, a in enumerate(steps.tolist())
                for j, b in enumerate(steps.tolist())
            ]
    return pairs + points
