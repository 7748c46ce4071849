"""Does noise keep the curvature below what a full batch drives it to, 2 over the learning rate?

mse_loss averages over the 10 outputs too: a rate of 0.5 here is 0.1 for half the squared distance.
"""

from dataclasses import dataclass
from typing import Any

import torch

from experiments import curvature
from experiments.networks import gradient_difference
from experiments.pictures import curve
from experiments.results import Claim, Table, held, less, more, within
from experiments.statistics import Rows, interval, paired
from experiments.study import Setting
from experiments.training import accuracy, loss_of, train

PANELS = 1
ROUNDING = 1e-6  # of a central difference with steps of 1e-5, in float64


@dataclass(frozen=True)
class Config:
    hidden: tuple[int, ...] = (64, 64)
    examples: int = 1024
    batches: tuple[int, ...] = (4, 16, 64, 1024)  # the last is the full batch
    learning_rate: float = 0.5
    slower: tuple[float, ...] = ()  # more rates, of the full batch alone
    time: float = 500.0  # learning rate x updates


CONFIGS = {
    "smoke": Config(hidden=(16,), examples=256, batches=(4, 256), time=200.0),
    "quick": Config(),
    "full": Config(batches=(4, 16, 64, 256, 1024), slower=(0.25,), time=1500.0),
}


def arms(config: Config) -> list[dict[str, Any]]:
    pairs = [(batch, config.learning_rate) for batch in config.batches]
    pairs += [(config.batches[-1], rate) for rate in config.slower]
    return [{"batch": batch, "learning_rate": rate} for batch, rate in pairs]


def work(arm: dict[str, Any], config: Config) -> float:
    return config.time / arm["learning_rate"] * (0.5 + arm["batch"] / 500) / 1000


def measure(arm: dict[str, Any], config: Config, setting: Setting) -> list[dict[str, Any]]:
    data, batch, rate = setting.dataset(), arm["batch"], arm["learning_rate"]
    x, labels = data.train_x[: config.examples], data.train_y[: config.examples]
    y = torch.nn.functional.one_hot(labels, 10).to(x)
    net = setting.network([x.shape[1], *config.hidden, 10], "tanh", init="lecun")
    updates = round(config.time / rate)
    train(
        net,
        x,
        y,
        batch=batch,
        learning_rate=rate,
        updates=updates,
        cost="mse_loss",
        seed=setting.seed,
    )
    surface = curvature.Landscape(net, "mse_loss", x, y)
    product = surface.product()
    largest = curvature.lambda_max(product, surface.origin)
    return [
        {
            "updates": updates,
            "train_loss": loss_of(net, x, y, "mse_loss"),
            "test_accuracy": accuracy(net, data.test_x, data.test_y),
            "lambda_max": largest,
            "lambda_eta": largest * rate,
            "trace": curvature.trace(product, surface.origin),
            "product_difference": curvature.disagreement(surface),
            "gradient_difference": gradient_difference(net, "mse_loss", x, y),
        }
    ]


def tables(rows: Rows) -> list[Table]:
    columns = {
        "lambda_max": 2,
        "lambda_eta": 3,
        "trace": 1,
        "train_loss": 4,
        "test_accuracy": 2,
    }
    body = [
        [rate, batch, group["updates"].iloc[0]]
        + [interval(group[name]).text(digits) for name, digits in columns.items()]
        for (rate, batch), group in rows.groupby(["learning_rate", "batch"])
    ]
    headers = ["eta", "batch", "updates", "lambda_max", "lambda_max eta", "tr H"]
    note = (
        "Of the Hessian on the training set, after the same learning rate x updates. The losses "
        "are not equal: for solutions at equal training loss see minima."
    )
    title = "Curvature where training with each batch size has arrived"
    return [Table(title, [*headers, "training loss", "test accuracy, %"], body, note)]


def claims(rows: Rows) -> list[Claim]:
    mine = rows[rows["learning_rate"] == rows["learning_rate"].max()]
    whole = rows[rows["batch"] == rows["batch"].max()]
    smallest, full = (
        mine[mine["batch"] == of] for of in (mine["batch"].min(), mine["batch"].max())
    )
    edges = whole.groupby("learning_rate")["lambda_eta"].mean()
    means = mine.groupby("batch")["lambda_max"].mean()
    off = edges.iloc[(edges - 2).abs().fillna(float("inf")).argmax()]
    flatter = paired(smallest, full, "lambda_eta")
    better = paired(smallest, full, "test_accuracy")
    worst = rows["product_difference"].max(skipna=False)
    rates = ", ".join(f"{value:.3f} at eta {rate:g}" for rate, value in edges.items())
    names = f"batch {smallest['batch'].iloc[0]} against {full['batch'].iloc[0]}, paired by seed"
    return [
        Claim(
            "the full batch sharpens until lambda_max eta = 2, at every rate",
            "Cohen et al. 2021",
            rates,
            "1.95 to 2.05",
            within(off, 1.95, 2.05),
            "2",
        ),
        Claim(
            "the smallest batch ends flatter than the full batch",
            "the text, the role of mini-batches",
            f"lambda_max eta {flatter.text()}, {names}",
            "the whole interval is below 0",
            less(flatter),
        ),
        Claim(
            "lambda_max rises with the batch size",
            "the text, the role of mini-batches",
            ", ".join(f"{value:.2f}" for value in means),
            "each mean is above the one before",
            held(
                bool(means.is_monotonic_increasing and len(means) > 1),
                bool(means.is_monotonic_decreasing and len(means) > 1),
            ),
        ),
        Claim(
            "the flatter solution classifies more test images",
            "the text; Cohen et al. 2021 claim no such link",
            f"{better.text()} points, {names}",
            "the whole interval is above 0",
            more(better),
        ),
        Claim(
            "H v through our backward twice is H v by differences of its gradients",
            "manualgrad",
            f"{worst:.1e} at most, relative, in float64",
            f"at most {ROUNDING:g}",
            held(worst <= ROUNDING),
        ),
    ]


def draw(rows: Rows, axes: list[Any]) -> None:
    (axis,) = axes
    for number, (rate, group) in enumerate(rows.groupby("learning_rate", sort=False)):
        curve(axis, group, "batch", "lambda_eta", number, f"learning rate {rate:g}")
    axis.axhline(2, color="black", linestyle=":")
    across = axis.get_yaxis_transform()
    axis.text(0.02, 2.03, "2: the edge of stability", va="bottom", transform=across)
    axis.set(
        xscale="log",
        ylim=(0, 2.4),
        xlabel="batch size (examples)",
        ylabel="largest curvature x learning rate",
        title="The full batch sits at the edge, noise keeps below it",
    )
    axis.legend(loc="lower right")
