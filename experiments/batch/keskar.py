"""A small copy of Keskar et al. 2017's F1: Adam, a small batch against a tenth of the data.

As theirs it compares after equal epochs, at unequal training losses, and sharpness in the space as
it is. Theirs is of 60,000 images, five layers of 512 with batch normalisation, and longer.
"""

from dataclasses import dataclass
from typing import Any

import torch

from experiments import curvature
from experiments.networks import gradient_difference
from experiments.study import Setting
from experiments.training import accuracy, batches, loss_of

SHARES = {"small": 1 / 256, "large": 1 / 10}  # of the training set in a batch, as in the paper


@dataclass(frozen=True)
class Config:
    hidden: tuple[int, ...] = (256,) * 5
    learning_rate: float = 1e-3
    epochs: int = 25
    examples: int = 2048  # of the training set, that curvature is measured on


def measure(size: str, config: Config, setting: Setting) -> dict[str, Any]:
    data = setting.dataset()
    x, y = data.train_x, data.train_y
    batch = round(len(x) * SHARES[size])
    net = setting.network([x.shape[1], *config.hidden, 10])
    optimizer = torch.optim.Adam(net.parameters(), lr=config.learning_rate)
    updates = config.epochs * (len(x) // batch)
    for _, chosen in zip(range(updates), batches(len(x), batch, setting.seed), strict=False):
        optimizer.zero_grad()
        net.ops.cross_entropy(net(x[chosen]), y[chosen]).backward()
        optimizer.step()
    some = x[: config.examples], y[: config.examples]
    surface = curvature.Landscape(net, "cross_entropy", *some)
    tested = accuracy(net, data.test_x, data.test_y)
    return {
        "label_noise": 0.0,
        "batch": batch,
        "learning_rate": config.learning_rate,
        "updates": updates,
        "train_loss": loss_of(net, x, y),
        "test_accuracy": tested,
        "gap": accuracy(net, x, y) - tested,
        "test_loss": loss_of(net, data.test_x, data.test_y),
        "lambda_max": curvature.lambda_max(surface.product(), surface.origin),
        "sharpness": curvature.sharpness(surface, 1e-3),
        "gradient_difference": gradient_difference(net, "cross_entropy", *some),
    }
