"""Does an autoencoder lose by using its weight's transpose to decode?

Decoded is as V of the code plus c: tied, V is W's transpose and its gradient W's second use.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.networks import gradient_difference
from experiments.pictures import points
from experiments.results import OPPOSITE, Claim, Table, held, more
from experiments.share.common import (
    Tuned,
    count,
    each_tuned,
    finite,
    normals,
    rates_note,
    ratio,
    some,
)
from experiments.statistics import Rows
from experiments.study import Setting
from experiments.training import loss_of, train

PANELS = 1
# what it is called, is it tied, how much wider than Config.hidden
KINDS = {
    "untied": ("untied", False, 1.0),
    "tied": ("tied", True, 1.0),
    "untied half": ("untied, half as wide", False, 0.5),
    "tied double": ("tied, twice as wide", True, 2.0),
}
SATURATE = ("sigmoid", "tanh")
MOST = 1.05  # error of the tied over that of the untied: what counts as no loss


@dataclass(frozen=True)
class Config:
    activations: tuple[str, ...] = ("identity", "relu", "tanh")
    learning_rates: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8, 1.6)
    updates: int = 800
    batch: int = 32
    momentum: float = 0.9
    hidden: int = 16
    examples: int = 1024
    tests: int = 1000


CONFIGS = {
    "smoke": Config(activations=("identity", "tanh"), learning_rates=(0.4,), updates=300),
    "quick": Config(),
    "full": Config(
        activations=("identity", "relu", "sigmoid", "tanh"),
        learning_rates=(0.05, 0.1, 0.2, 0.4, 0.8, 1.6),
        updates=2000,
    ),
}


class Autoencoder(nn.Module):
    def __init__(
        self, ops: Any, pixels: int, hidden: int, tied: bool, activation: str, normal: Any
    ) -> None:
        super().__init__()
        self.ops, self.activations = ops, [activation, "identity"]
        self.weight = nn.Parameter(normal(hidden, pixels) * pixels**-0.5)
        self.bias = nn.Parameter(torch.zeros_like(self.weight[:, 0]))
        self.out_bias = nn.Parameter(torch.zeros_like(self.weight[0]))
        start = self.weight.detach().T.clone()
        self.decoder = None if tied else nn.Parameter(start)

    def forward(self, x: Tensor) -> Tensor:
        decoder = self.weight.T if self.decoder is None else self.decoder
        weights, biases = [self.weight, decoder], [self.bias, self.out_bias]
        return self.ops.mlp(x, weights, biases, self.activations)


def arms(config: Config) -> list[dict[str, Any]]:
    """What saturates is asked about tying alone, not about equal parameters."""
    return [
        {"activation": activation, "kind": kind, "learning_rate": rate}
        for activation in config.activations
        for kind in (list(KINDS)[:2] if activation in SATURATE else KINDS)
        for rate in config.learning_rates
    ]


def work(arm: dict[str, Any], config: Config) -> float:
    return config.updates / 2000


def measure(arm: dict[str, Any], config: Config, setting: Setting) -> list[dict[str, Any]]:
    x, _, test, _ = some(setting.dataset(), config.examples, config.tests)
    _, tied, wider = KINDS[arm["kind"]]
    hidden = int(config.hidden * wider)
    activation = arm["activation"]
    net = Autoencoder(setting.ops, x.shape[1], hidden, tied, activation, normals(setting))
    train(
        net,
        x,
        x,
        batch=config.batch,
        learning_rate=arm["learning_rate"],
        updates=config.updates,
        cost="mse_loss",
        momentum=config.momentum,
        seed=setting.seed,
    )
    loss = finite(loss_of(net, x, x, "mse_loss"))
    return [
        {
            "hidden": hidden,
            "parameters": sum(p.numel() for p in net.parameters()),
            "train_loss": loss,
            "test_loss": finite(loss_of(net, test, test, "mse_loss")),
            "best_linear": principal(x, test, hidden),
            "gradient_difference": gradient_difference(net, "mse_loss", x[:64], x[:64]),
        }
    ]


def principal(x: Tensor, test: Tensor, hidden: int) -> float:
    """The test error of the best linear code for x, its principal components."""
    mean = x.double().mean(0)
    *_, directions = torch.linalg.svd(x.double() - mean, full_matrices=False)
    kept = directions[:hidden]
    centred = test.double() - mean
    return (centred - centred @ kept.T @ kept).square().mean().item()


def tables(rows: Rows) -> list[Table]:
    body = []
    for activation, group in rows.groupby("activation", sort=False):
        for kind, best in each_tuned(group, list(KINDS)):
            errors = [best.of(name).text(4) for name in ("train_loss", "test_loss", "best_linear")]
            body.append(
                [
                    activation,
                    KINDS[kind][0],
                    count(best.rows, "hidden"),
                    count(best.rows),
                    best.rate_text,
                    *errors,
                ]
            )
    headers = [
        "code",
        "decoder",
        "width",
        "P",
        "rate",
        "training error",
        "test error",
        "best linear",
    ]
    note = (
        f"Errors are means of squares; pixels have variance 1. best linear: the test error of as "
        f"many principal components. {rates_note(rows)}"
    )
    return [Table("Tied and untied autoencoders", headers, body, note)]


def claims(rows: Rows) -> list[Claim]:
    made = []
    for activation, group in rows.groupby("activation", sort=False):
        best = dict(each_tuned(group, list(KINDS)))
        sizes = group.groupby("kind")["parameters"].first()
        if {"tied", "untied"} <= set(best):
            made.append(_tying(str(activation), best, sizes))
        if set(best) == set(KINDS):
            made += [
                _equal_parameters(str(activation), best["untied half"], best["tied"]),
                _equal_parameters(str(activation), best["untied"], best["tied double"]),
            ]
    return made


def _tying(activation: str, best: dict[str, Tuned], sizes: Any) -> Claim:
    excess = ratio(best["tied"], best["untied"], "test_loss")
    fewer = 100 * (1 - sizes["tied"] / sizes["untied"])
    return Claim(
        f"tied weights reconstruct as well as untied ones ({activation} code, equal width)",
        "common practice",
        f"{excess.text(3)} times the test error, with {fewer:.0f} % fewer parameters",
        f"the whole interval of the ratio is below {MOST:g}; opposite if it is above",
        held(excess.high < MOST, excess.low > MOST),
    )


def _equal_parameters(activation: str, untied: Tuned, tied: Tuned) -> Claim:
    times = ratio(untied, tied, "test_loss")
    return Claim(
        f"at equal parameters, {count(tied.rows)} and {count(untied.rows)}, the tied one, twice as "
        f"wide, is better ({activation} code)",
        "ours",
        f"the untied one's test error is {times.text(2)} times as large",
        "the whole interval of the ratio is above 1.5",
        more(times, 1.5) if not times.high < 1 else OPPOSITE,
    )


def draw(rows: Rows, axes: list[Any]) -> None:
    (axis,) = axes
    codes = list(rows.groupby("activation", sort=False))
    names: dict[str, str] = {}
    for number, (activation, group) in enumerate(codes):
        found = list(each_tuned(group, list(KINDS)))
        beside = 0.12 * (number - (len(codes) - 1) / 2)
        places = [list(KINDS).index(kind) + beside for kind, _ in found]
        values = [best.of("test_loss") for _, best in found]
        points(axis, places, values, number, capsize=3, linestyle="", label=f"{activation} code")
        names.update({kind: f"{KINDS[kind][0]}\n{count(best.rows)}" for kind, best in found})
    axis.set(
        xticks=range(len(KINDS)),
        xticklabels=[names.get(kind, "").replace(", ", ",\n") for kind in KINDS],
        xlabel="decoder, and parameters",
        ylim=(0, None),
        ylabel="test error (mean square)",
        title="Autoencoders",
    )
    axis.legend()
