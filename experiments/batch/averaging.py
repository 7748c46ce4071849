"""Is a batch's gradient the average of its examples' own?

The 1/M enters once, in the cost; BP3 and BP4 are sums.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils import parameters_to_vector

from experiments.networks import gradient_difference, gradients
from experiments.pictures import curve
from experiments.results import Claim, Table, held
from experiments.statistics import Rows, interval
from experiments.study import Setting

DTYPE = "float64"
PANELS = 1
ROUNDING = 1e-14


@dataclass(frozen=True)
class Config:
    sizes: tuple[int, ...] = (64, 64, 10)  # behind the input
    batches: tuple[int, ...] = (1, 8, 64, 512)


CONFIGS = {"smoke": Config(batches=(1, 8)), "quick": Config(), "full": Config()}


def arms(config: Config) -> list[dict[str, Any]]:
    return [{"batch": batch} for batch in config.batches]


def work(arm: dict[str, Any], config: Config) -> float:
    return 0.02 + arm["batch"] / 2000


def measure(arm: dict[str, Any], config: Config, setting: Setting) -> list[dict[str, Any]]:
    data, batch = setting.dataset(), arm["batch"]
    x, y = data.train_x[:batch], data.train_y[:batch]
    net = setting.network([x.shape[1], *config.sizes])
    cost = setting.ops.cross_entropy

    def gradient(x, y, reduction):
        return parameters_to_vector(gradients(net, cost(net(x), y, reduction=reduction)))

    of_batch = gradient(x, y, "mean")
    own = [gradient(x[i : i + 1], y[i : i + 1], "mean") for i in range(batch)]
    average = torch.stack(own).mean(0)
    summed = gradient(x, y, "sum")
    return [
        {
            "error": ((average - of_batch).norm() / of_batch.norm()).item(),
            "sum_over_mean": (summed.norm() / of_batch.norm()).item(),
            "gradient_difference": gradient_difference(net, "cross_entropy", x, y),
        }
    ]


def tables(rows: Rows) -> list[Table]:
    body = [
        [batch, f"{group['error'].max():.1e}", interval(group["sum_over_mean"]).text(3)]
        for batch, group in rows.groupby("batch")
    ]
    headers = [
        "M",
        "largest relative error of the average",
        "|grad of the sum| / |grad of the mean|",
    ]
    return [Table("Average of the examples' gradients against the batch's", headers, body)]


def claims(rows: Rows) -> list[Claim]:
    worst = rows["error"].max()
    return [
        Claim(
            "the gradient of a mini-batch is the average of its examples' gradients",
            "the text, note on batching",
            f"{worst:.1e} at most, relative, in float64",
            f"at most {ROUNDING:g}",
            held(worst <= ROUNDING),
        )
    ]


def draw(rows: Rows, axes: list[Any]) -> None:
    (axis,) = axes
    curve(axis, rows, "batch", "sum_over_mean", 0, "reduction='sum' over 'mean'")
    axis.plot(rows["batch"], rows["batch"], color="black", linestyle=":", label="M")
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="batch size M (examples)",
        ylabel="ratio of gradient norms",
        title="A sum is M times an average",
    )
    axis.legend()
