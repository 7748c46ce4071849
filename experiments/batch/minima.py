"""At the same training loss: are small batches' solutions flatter, and do they generalise better?

Every run ends when its training loss is down to the same target; flatness is measured three ways.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments import curvature
from experiments.batch import keskar
from experiments.batch.minima_report import claims, draw, tables
from experiments.networks import gradient_difference
from experiments.study import Setting
from experiments.training import accuracy, loss_of, train

__all__ = ["CONFIGS", "PANELS", "arms", "claims", "draw", "measure", "tables", "work"]

PANELS = 3
HIDDEN = {"digits": (64, 64), "mnist": (128, 128)}
MOST_TESTS = 4000
MEASURED = ("test_accuracy", "gap", "test_loss", "lambda_max", "sharpness", "around")


@dataclass(frozen=True)
class Config:
    """pairs: of (batch size, learning rate); the largest batch is the full one."""

    pairs: tuple[tuple[int, float], ...]
    examples: int = 1024
    target: float = 0.01
    noisy_pairs: tuple[tuple[int, float], ...] = ()
    noise: float = 0.2  # of the labels, drawn anew
    noisy_target: float = 0.05
    updates: int = 8000  # at most
    adam: keskar.Config | None = None


GRID = tuple((batch, rate) for batch in (8, 32, 128, 1024) for rate in (0.05, 0.1, 0.2))
CONFIGS = {
    "smoke": Config(pairs=((4, 0.1), (32, 0.1), (256, 0.1)), examples=256, target=0.05),
    # two of the four arms have one learning rate / batch size: is that the variable?
    "quick": Config(pairs=((8, 0.1), (16, 0.2), (32, 0.1), (1024, 0.1))),
    "full": Config(
        pairs=GRID,
        noisy_pairs=((8, 0.05), (32, 0.05), (1024, 0.05)),
        updates=12000,
        adam=keskar.Config(),
    ),
}


def arms(config: Config) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"method": "sgd", "label_noise": noise, "batch": batch, "learning_rate": rate}
        for noise, pairs in ((0.0, config.pairs), (config.noise, config.noisy_pairs))
        for batch, rate in pairs
    ]
    if config.adam is not None:  # what its batch is depends on the data: the rows tell
        found += [{"method": "adam", "size": size} for size in keskar.SHARES]
    return found


def work(arm: dict[str, Any], config: Config) -> float:
    if arm["method"] == "adam":
        return 40.0
    return (0.5 + arm["batch"] / 500) / arm["learning_rate"] / (5 if arm["label_noise"] else 20)


def examples_of(config: Config, setting: Setting) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """So many to train with; all others are for the test, as far as MOST_TESTS goes."""
    data, first = setting.dataset(), config.examples
    test_x = torch.cat([data.train_x[first:], data.test_x])[:MOST_TESTS]
    test_y = torch.cat([data.train_y[first:], data.test_y])[:MOST_TESTS]
    return data.train_x[:first], data.train_y[:first], test_x, test_y


def noisy(labels: Tensor, share: float, seed: int) -> Tensor:
    """The labels, each with that probability replaced by any of the ten."""
    draw = np.random.default_rng(seed)
    other = torch.from_numpy(draw.integers(0, 10, len(labels))).to(labels)
    changed = torch.from_numpy(draw.random(len(labels)) < share).to(labels.device)
    return torch.where(changed, other, labels)


def measure(arm: dict[str, Any], config: Config, setting: Setting) -> list[dict[str, Any]]:
    if arm["method"] == "adam":
        assert config.adam is not None
        return [keskar.measure(arm["size"], config.adam, setting)]
    x, y, test_x, test_y = examples_of(config, setting)
    noise, batch = arm["label_noise"], arm["batch"]
    if noise:
        y = noisy(y, noise, setting.seed)
    target = config.noisy_target if noise else config.target
    net = setting.network([x.shape[1], *HIDDEN[setting.data], 10])
    updates = train(
        net,
        x,
        y,
        batch=batch,
        learning_rate=arm["learning_rate"],
        updates=config.updates,
        seed=setting.seed,
        stop=lambda update: loss_of(net, x, y) <= target,
        every=lambda update: update + 20,
    )
    row: dict[str, Any] = {"updates": updates, "train_loss": loss_of(net, x, y)}
    row["gradient_difference"] = gradient_difference(net, "cross_entropy", x, y)
    row["reached"] = int(row["train_loss"] <= target)
    if not row["reached"]:
        return [row | dict.fromkeys(MEASURED, math.nan)]
    return [row | of_solution(net, x, y, test_x, test_y, setting.seed)]


def of_solution(net: Any, x, y, test_x, test_y, seed: int) -> dict[str, float]:
    surface = curvature.Landscape(net, "cross_entropy", x, y)
    tested = accuracy(net, test_x, test_y)
    return {
        "test_accuracy": tested,
        "gap": accuracy(net, x, y) - tested,
        "test_loss": loss_of(net, test_x, test_y),
        "lambda_max": curvature.lambda_max(surface.product(), surface.origin),
        "sharpness": curvature.sharpness(surface, 1e-3),
        "around": float(np.mean(surface.around(0.5, directions=20, seed=1000 * seed))),
    }
