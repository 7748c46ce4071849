"""Does the noise of a mini-batch's gradient fall as 1/M, and how does it compare to the gradient?

All of it is read from (a, delta) of one backward pass: mg.capture's K_ij = g_i . g_j, the inner
products of the examples' own gradients, which themselves are never made. A mini-batch that draws
example i c_i times has the gradient g_M = sum c_i g_i / M, so |g_M|^2 = c K c / M^2.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from experiments import native
from experiments.batch.noise_picture import ONE_RUN, draw  # noqa: F401
from experiments.networks import gradient_difference
from experiments.results import Claim, Table, held, more
from experiments.statistics import Rows, interval, log_slope, paired
from experiments.study import Setting
from experiments.training import train

DTYPE = "float64"
PANELS = 2
ROUNDING = 1e-12
BATCH, LEARNING_RATE = 32, 0.05  # of the training between the looks


@dataclass(frozen=True)
class Config:
    width: int = 64
    examples: int = 1024  # the population that batches are drawn from
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    draws: int = 400
    updates: tuple[int, ...] = (0, 100, 1000, 4000)
    checked: int = 128  # examples whose norms torch.func computes too


CONFIGS = {
    "smoke": Config(batches=(1, 8, 64, 256), draws=100, updates=(0, 100), checked=32),
    "quick": Config(draws=100, updates=(0, 100, 500, 2000)),
    "full": Config(draws=1000, updates=(0, 10, 100, 1000, 4000, 10000), checked=1024),
}


def arms(config: Config) -> list[dict[str, Any]]:
    return [{"updates": updates} for updates in config.updates]


def work(arm: dict[str, Any], config: Config) -> float:
    return 1.0 + arm["updates"] / 1000


def measure(arm: dict[str, Any], config: Config, setting: Setting) -> list[dict[str, Any]]:
    data = setting.dataset()
    x, y = data.train_x[: config.examples], data.train_y[: config.examples]
    net = setting.network([x.shape[1], config.width, config.width, 10])
    train(
        net,
        x,
        y,
        batch=BATCH,
        learning_rate=LEARNING_RATE,
        updates=arm["updates"],
        seed=setting.seed,
    )
    with setting.ops.capture(net) as cap:
        loss = setting.ops.cross_entropy(net(x), y)
        loss.backward()
    K = cap.grad_gram()
    square, variance_of_one = K.mean(), K.diagonal().mean() - K.mean()
    chosen = slice(0, config.checked)
    norms = norms_by_torch(net, x[chosen], y[chosen])
    found = {
        "loss": loss.item(),
        "trace": (variance_of_one * len(x) / (len(x) - 1)).item(),
        "square": square.item(),
        "noise_scale": cap.noise_scale(),
        "norm_error": ((cap.per_example_norms()[chosen] - norms).abs().max() / norms.max()).item(),
        "square_error": (square / _square_of_gradient(net) - 1).abs().item(),
        "gradient_difference": gradient_difference(net, "cross_entropy", x, y),
    }
    generator = torch.Generator().manual_seed(setting.seed)
    rows = []
    for batch in config.batches:
        counts = drawn(config.draws, len(x), batch, generator).to(K)
        variance, cosine = distances(K, counts, batch)
        others = drawn_once(config.draws, len(x), batch, generator).to(K)
        rows.append(
            {
                "batch": batch,
                "variance": variance,
                "law": variance_of_one.item() / batch,
                "cosine": cosine,
                "variance_without": distances(K, others, batch)[0],
                "examples": len(x),
                **found,
            }
        )
    return rows


def norms_by_torch(net: Any, x: Tensor, y: Tensor) -> Tensor:
    """|g_i| from each example's gradient in full, by torch.func and PyTorch's own operations."""
    L = len(net.weights)
    parameters = tuple(p.detach() for p in [*net.weights, *net.biases])

    def cost(parameters, x, y):
        weights, biases = parameters[:L], parameters[L:]
        return native.cross_entropy(native.mlp(x[None], weights, biases, net.activations), y[None])

    parts = vmap(grad(cost), (None, 0, 0))(parameters, x, y)
    return torch.cat([part.flatten(1) for part in parts], 1).norm(dim=1)


def _square_of_gradient(net: Any) -> Tensor:
    return torch.cat([p.grad.flatten() for p in net.parameters()]).square().sum()


def drawn(draws: int, examples: int, batch: int, generator: torch.Generator) -> Tensor:
    """How often each example is in a batch, (draws, examples), drawn with replacement."""
    chosen = torch.randint(examples, (draws, batch), generator=generator)
    return torch.zeros(draws, examples).scatter_add_(1, chosen, torch.ones(draws, batch))


def drawn_once(draws: int, examples: int, batch: int, generator: torch.Generator) -> Tensor:
    """As drawn, without replacement: no example twice in a batch, as in an epoch."""
    chosen = torch.rand(draws, examples, generator=generator).argsort(1)[:, :batch]
    return torch.zeros(draws, examples).scatter_(1, chosen, 1.0)


def distances(K: Tensor, counts: Tensor, batch: int) -> tuple[float, float]:
    """Means over draws of |g_M - G|^2 and of cos(g_M, G)."""
    products = counts @ K / batch
    with_itself = (products * counts).sum(1) / batch
    with_mean, square = products.mean(1), K.mean()
    variance = (with_itself - 2 * with_mean + square).mean()
    return variance.item(), (with_mean / (with_itself * square).sqrt()).mean().item()


def slopes(rows: Rows) -> Rows:
    """Per run: the log-log slopes of the variance, and its least and largest multiple of 1/M."""
    found = rows.drop_duplicates(ONE_RUN).set_index(ONE_RUN)
    found = found[["loss", "trace", "square", "noise_scale"]].copy()
    for run, group in rows.groupby(ONE_RUN):
        without = group[group["batch"] < group["examples"]]
        n, M = without["examples"], without["batch"]
        found.loc[run, "slope"] = _slope(group["batch"], group["variance"])
        found.loc[run, "without"] = _slope(M, without["variance_without"])
        corrected = without["variance_without"] * (n - 1) / (n - M)
        found.loc[run, "corrected"] = _slope(M, corrected)
        ratio = group["variance"] / group["law"]
        found.loc[run, ["least", "most"]] = [ratio.min(), ratio.max()]
    return found.reset_index()


def _slope(x: Any, y: Any) -> float:
    good = y.notna() & (y > 0)
    return log_slope(x[good], y[good]) if good.sum() > 1 else float("nan")


def tables(rows: Rows) -> list[Table]:
    found = slopes(rows)
    law, scale, cosine = [], [], []
    batches = sorted(rows["batch"].unique())
    shown = [batch for batch in batches if batch in (1, 8, 64, 256, 512)]
    for updates, group in found.groupby("updates"):
        at = rows[rows["updates"] == updates]
        law.append(
            [
                updates,
                interval(group["slope"]).text(3),
                f"{group['least'].min():.2f} to {group['most'].max():.2f}",
                interval(group["without"]).text(3),
                interval(group["corrected"]).text(3),
            ]
        )
        square = interval(group["square"])
        scale.append(
            [
                updates,
                interval(group["loss"]).text(4),
                interval(group["trace"]).text(3),
                f"{square.mean:.2g} +- {square.half:.1g}",
                interval(group["noise_scale"]).text(0),
            ]
        )
        values = [interval(at.loc[at["batch"] == batch, "cosine"]).text(2) for batch in shown]
        cosine.append([updates, *values])
    return [
        Table(
            "Slope of log E|g_M - G|^2 over log M",
            ["updates", "slope", "times (tr Sigma) / M", "drawn once: slope", "corrected"],
            law,
            f"The law is slope -1 and a factor of 1, for examples drawn with replacement; M from "
            f"{batches[0]} to {batches[-1]}. Drawn once, as in an epoch, the variance is "
            f"smaller by (N - M) / (N - 1): corrected for it, -1 again.",
        ),
        Table(
            "The noise scale",
            ["updates", "loss", "tr Sigma", "|G|^2", "tr Sigma / |G|^2 (examples)"],
            scale,
            f"Plain SGD between, batches of {BATCH}, learning rate {LEARNING_RATE}. Norms of "
            f"single gradients, from (a, delta) against torch.func's: at most "
            f"{rows['norm_error'].max():.1e} of the largest; mean of K against |G|^2: "
            f"{rows['square_error'].max():.1e}.",
        ),
        Table("cos(g_M, G)", ["updates", *(f"M = {batch}" for batch in shown)], cosine),
    ]


def claims(rows: Rows) -> list[Claim]:
    found = slopes(rows)
    first, last = found["updates"].min(), found["updates"].max()
    slope = interval(found.loc[found["updates"] == first, "slope"])
    errors = rows[["norm_error", "square_error"]].to_numpy()  # a NaN is no rounding
    return [
        Claim(
            "the variance of a mini-batch's gradient is proportional to 1/M",
            "the text, role of mini-batches (noise is averaged out)",
            f"slope {slope.text(3)} before training",
            "from -1.03 to -0.97",
            held(-1.03 <= slope.mean <= -0.97),
        ),
        Claim(
            "(a, delta) of one backward pass tell every example's gradient norm, and |G|",
            "BP3 and BP4",
            f"{errors.max():.1e} at most, relative, in float64",
            f"at most {ROUNDING:g}",
            held(bool((errors <= ROUNDING).all())),
        ),
        _rises(found, first, last),
        _cosine(rows, first, "before training"),
        *([_cosine(rows, last, f"after {last} updates")] if last > first else []),
    ]


def _rises(found: Rows, first: int, last: int) -> Claim:
    found = found.assign(log=np.log10(found["noise_scale"]))
    change = paired(found[found["updates"] == last], found[found["updates"] == first], "log")
    means = found.groupby("updates")["noise_scale"].mean()
    text = " to ".join(f"{mean:.0f}" for mean in means)
    return Claim(
        "the noise scale tr Sigma / |G|^2 grows while the loss falls",
        "McCandlish et al. 2018",
        f"{text} examples; log10 grew by {change.text(2)}",
        "the growth's interval is above 0",
        more(change),
    )


def _cosine(rows: Rows, updates: int, when: str) -> Claim:
    """Whether a factor on M turns the gradient less the larger M is already."""
    at = rows[rows["updates"] == updates]
    wide = at.pivot(index="seed", columns="batch", values="cosine")
    low = wide.columns[0]
    # by the same factor twice, as far as the batches reach
    middle, high = max((M, M * M // low) for M in wide.columns if M * M // low in wide.columns)
    early, late = interval(wide[middle] - wide[low]), interval(wide[high] - wide[middle])
    less = interval((wide[middle] - wide[low]) - (wide[high] - wide[middle]))
    return Claim(
        f"larger batches bring diminishing returns in the gradient's direction, {when}",
        "the text, role of mini-batches",
        f"cos(g_M, G) gains {early.text()} from M = {low} to {middle}, {late.text()} from {middle} "
        f"to {high}",
        "the first gain less the second: its interval is above 0",
        more(less),
    )
