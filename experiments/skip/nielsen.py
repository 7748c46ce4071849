"""Are the errors of Nielsen's networks, before training, what his book says?"""

import itertools
from dataclasses import dataclass
from typing import Any

import torch

from experiments.networks import gradient_difference, gradients
from experiments.pictures import COLOURS, curve
from experiments.results import Claim, Table, held
from experiments.statistics import Rows, interval
from experiments.study import Setting

DTYPE = "float64"
PANELS = 1
WIDTH = 30
# first rows of fig/norms_during_training_*_layers.json in the book's repository, hidden layers 1..
BOOK = {
    2: (0.0657, 0.3092),
    3: (0.0118, 0.0600, 0.2831),
    4: (0.00298, 0.0171, 0.0695, 0.2851),
}
FACTOR = 2.0  # how far one network may be from another


@dataclass(frozen=True)
class Config:
    examples: int = 1000
    networks: int = 10  # drawn per seed
    checked: int = 64


CONFIGS = {
    "smoke": Config(networks=5),
    "quick": Config(),
    "full": Config(networks=100),
}


def arms(config: Config) -> list[dict[str, Any]]:
    return [{"hidden": hidden} for hidden in BOOK]


def work(arm: dict[str, Any], config: Config) -> float:
    return config.networks * arm["hidden"] / 100


def measure(arm: dict[str, Any], config: Config, setting: Setting) -> list[dict[str, Any]]:
    """A row per network and hidden layer."""
    data, hidden, rows = setting.dataset(), arm["hidden"], []
    x, y = data.train_x[: config.examples], data.train_y[: config.examples]
    targets = torch.nn.functional.one_hot(y, 10).to(x.dtype)
    sizes, cost = [x.shape[1], *[WIDTH] * hidden, 10], "binary_cross_entropy_with_logits"
    for i in range(config.networks):
        seed = setting.seed * config.networks + i
        net = setting.network(sizes, "sigmoid", init="nielsen", seed=seed)
        loss = getattr(net.ops, cost)(net(x), targets, reduction="sum") / len(x)
        of_biases = gradients(net, loss)[hidden + 1 :]  # the averages of delta (BP3)
        new = [
            {"network": i, "layer": l, "norm": of_biases[l - 1].norm().item()}
            for l in range(1, hidden + 1)
        ]
        few = x[: config.checked], targets[: config.checked]
        new[0]["gradient_difference"] = gradient_difference(net, cost, *few)
        rows += new
    return rows


def factors(rows: Rows, hidden: int) -> list[float]:
    """Of growth from each hidden layer to the next: of the geometric means over networks."""
    own = rows[rows["hidden"] == hidden]
    means = [own[own["layer"] == l]["norm"].map(_log).mean() for l in range(1, hidden + 1)]
    return [float(torch.tensor(b - a).exp()) for a, b in itertools.pairwise(means)]


def _log(norm: float) -> float:
    return float(torch.tensor(norm, dtype=torch.float64).log())


def tables(rows: Rows) -> list[Table]:
    body = []
    for (hidden, l), group in rows.groupby(["hidden", "layer"]):
        norms = group["norm"]
        book = BOOK[hidden][l - 1]
        spread = f"{norms.min():.3g} to {norms.max():.3g}"
        body.append([hidden, l, f"{book:g}", interval(norms).text(4), spread])
    headers = ["hidden layers", "l", "book (one network)", "here, mean", "here, least to largest"]
    return [
        Table(
            "|mean over examples of delta^l| at the start",
            headers,
            body,
            f"{rows.groupby('seed')['network'].nunique().max()} networks per seed, all pooled; the "
            "book's numbers are one network's. Our pixels are standardised.",
        )
    ]


def claims(rows: Rows) -> list[Claim]:
    found = []
    for hidden in sorted(rows["hidden"].unique()):
        own, book = rows[rows["hidden"] == hidden], BOOK[hidden]
        means = [interval(own[own["layer"] == l]["norm"]).mean for l in range(1, hidden + 1)]
        apart = max(max(a / b, b / a) for a, b in zip(means, book, strict=True))
        found.append(
            Claim(
                f"norms of {hidden} hidden layers",
                "Nielsen, chapter 5",
                ", ".join(f"{mean:.3g}" for mean in means),
                f"each mean is within a factor of {FACTOR:g} of the book's",
                held(apart <= FACTOR),
                ", ".join(f"{value:g}" for value in book),
            )
        )
    least = min(min(factors(rows, hidden)) for hidden in rows["hidden"].unique())
    found.append(
        Claim(
            "the earlier the layer, the slower it learns",
            "Nielsen, chapter 5",
            f"each layer's norm is at least {least:.2f} times that of the layer below",
            "it is more than 2 times that, in geometric means",
            held(least > 2, least < 1),
            "3.5 to 5.7 times, of his norms",
        )
    )
    return found


def draw(rows: Rows, axes: list[Any]) -> None:
    (axis,) = axes
    for number, (hidden, group) in enumerate(rows.groupby("hidden")):
        curve(axis, group, "layer", "norm", number, f"{hidden} hidden layers")
        layers = range(1, len(BOOK[hidden]) + 1)
        book = {"marker": "x", "linestyle": "none", "color": COLOURS[number], "markersize": 8}
        axis.plot(layers, BOOK[hidden], **book)
    axis.plot([], [], "kx", label="one network, in the book")
    axis.set(
        yscale="log",
        xlabel="hidden layer l",
        ylabel="|mean of delta^l|",
        title="Nielsen's sigmoid networks, untrained",
        xticks=range(1, 5),
    )
    axis.legend(loc="lower right")
