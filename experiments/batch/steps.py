"""How many updates does a target need, against the batch size, each at its best learning rate?

Each (batch, learning_rate, momentum) is an arm; the tables take the rate of the fewest updates.
Perfect scaling: twice the batch, half the updates. Flat: the updates do not fall any more.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.batch.steps_fit import (
    FLAT,
    LARGE,
    PERFECT,
    SMALL,
    fit,
    kinds_of,
    per_seed,
    regime,
)
from experiments.networks import gradient_difference
from experiments.pictures import COLOURS, curve
from experiments.results import Claim, Table, held, more
from experiments.statistics import Rows, interval, paired
from experiments.study import Setting
from experiments.training import accuracy, loss_of, train

PANELS = 1
# batch: (learning rate, updates) that took the 8 x 8 digits to a training loss of 0.1; the grid of
# rates is laid around the one, and a run is given up at a multiple of the other
CALIBRATED = {
    0.0: {
        1: (2**-6, 960),
        2: (2**-5, 590),
        4: (2**-4, 390),
        8: (2**-3, 200),
        16: (2**-2, 100),
        32: (2**-1, 63),
        64: (2**-1, 34),
        128: (2**-1, 29),
        256: (2**-1, 27),
        512: (2**-1, 26),
        1024: (2**-1, 25),
    },
    0.9: {
        1: (2**-10, 1500),
        2: (2**-8, 850),
        4: (2**-7, 440),
        8: (2**-6, 250),
        16: (2**-5, 135),
        32: (2**-4, 75),
        64: (2**-3, 42),
        128: (2**-3, 33),
        256: (2**-3, 27),
        512: (2**-2, 20),
        1024: (2**-2, 17),
    },
}


@dataclass(frozen=True)
class Config:
    width: int = 64
    examples: int = 1024  # that are trained on, and whose loss is the target
    batches: tuple[int, ...] = (4, 16, 64, 256, 1024)
    momenta: tuple[float, ...] = (0.0, 0.9)
    factors: tuple[float, ...] = (0.5, 1.0, 2.0)  # of the calibrated rate
    patience: float = 2.5  # of the calibrated updates
    loss: float = 0.1
    accuracy: float = 0.0  # per cent of the test images; 0: no such target


CONFIGS = {
    "smoke": Config(batches=(4, 16, 256, 1024), factors=(1.0,), momenta=(0.0,)),
    "quick": Config(),
    "full": Config(
        batches=tuple(CALIBRATED[0.0]),
        factors=(0.25, 0.5, 1.0, 2.0, 4.0),
        patience=4.0,
        accuracy=95.0,
    ),
}


def arms(config: Config) -> list[dict[str, Any]]:
    return [
        {
            "batch": batch,
            "learning_rate": CALIBRATED[momentum][batch][0] * factor,
            "momentum": momentum,
        }
        for momentum in config.momenta
        for batch in config.batches
        for factor in config.factors
    ]


def work(arm: dict[str, Any], config: Config) -> float:
    updates = CALIBRATED[arm["momentum"]][arm["batch"]][1]
    return config.patience * updates * (1 + arm["batch"] / 500) / 1000


def measure(arm: dict[str, Any], config: Config, setting: Setting) -> list[dict[str, Any]]:
    data = setting.dataset()
    x, y = data.train_x[: config.examples], data.train_y[: config.examples]
    net = setting.network([x.shape[1], config.width, config.width, 10])
    targets = {f"training loss {config.loss:g}": lambda: loss_of(net, x, y) <= config.loss}
    if config.accuracy:
        name = f"test accuracy {config.accuracy:g} %"
        targets[name] = lambda: accuracy(net, data.test_x, data.test_y) >= config.accuracy
    reached: dict[str, int] = {}

    def stop(update: int) -> bool:
        for name, is_met in targets.items():
            if name not in reached and is_met():
                reached[name] = update
        return len(reached) == len(targets)

    train(
        net,
        x,
        y,
        batch=arm["batch"],
        learning_rate=arm["learning_rate"],
        momentum=arm["momentum"],
        updates=int(config.patience * CALIBRATED[arm["momentum"]][arm["batch"]][1]),
        seed=setting.seed,
        stop=stop,
        every=lambda update: max(update + 1, int(1.04 * update)),  # known to 4 %
    )
    difference = gradient_difference(net, "cross_entropy", x, y)
    return [
        {
            "target": name,
            "steps": reached.get(name, math.nan),
            "gradient_difference": difference,
        }
        for name in targets
    ]


def tables(rows: Rows) -> list[Table]:
    curves, fits = [], []
    for target, momentum, chosen in kinds_of(rows):
        own = rows[(rows["target"] == target) & (rows["momentum"] == momentum)]
        curves.append(
            Table(
                f"Updates to {target}, {_optimiser(momentum)}",
                ["M", "rates tried", "best", "updates", "examples", "local slope", "regime"],
                _body(own, chosen),
                f"Perfect scaling up to a slope of {PERFECT:g}, flat from {FLAT:g}. '(edge)': the "
                f"best rate is the grid's least or largest. A rate that misses the target for one "
                f"seed within its cap is no candidate.",
            )
        )
        of = per_seed(chosen)
        cells = [interval(of[name]).text(0) for name in ("S_min", "E_min", "B_crit")]
        fits.append([target, _optimiser(momentum), *cells])
    headers = ["target", "optimiser", "S_min (updates)", "E_min (examples)", "E_min / S_min"]
    note = "Fitted per seed to the logarithms; E_min / S_min is the critical batch, in examples."
    return [*curves, Table("updates = S_min + E_min / M", headers, fits, note)]


def _optimiser(momentum: float) -> str:
    return f"momentum {momentum:g}" if momentum else "plain SGD"


def _body(own: Rows, chosen: Rows) -> list[list[Any]]:
    body, before = [], None
    for batch, group in own.groupby("batch"):
        rates = sorted(group["learning_rate"].unique())
        best = chosen[chosen["batch"] == batch]
        steps = interval(best["steps"])
        rate = f"{best['learning_rate'].iloc[0]:.4g}" if len(best) else "-"
        slope = math.nan
        if before is not None and steps.n and before[1] > 0:
            slope = math.log(steps.mean / before[1]) / math.log(batch / before[0])
        body.append(
            [
                batch,
                ", ".join(f"{one:.2g}" for one in rates),
                rate + (" (edge)" if len(best) and best["edge"].iloc[0] else ""),
                steps.text(0),
                f"{steps.mean * batch:.0f}" if steps.n else "-",
                "-" if math.isnan(slope) else f"{slope:.2f}",
                regime(slope),
            ]
        )
        before = (batch, steps.mean)
    return body


def claims(rows: Rows) -> list[Claim]:
    found, kinds = [], kinds_of(rows)
    for target, momentum, chosen in kinds:
        if momentum == 0.0:
            found += _of_plain(target, per_seed(chosen))
    for target in dict.fromkeys(target for target, _, _ in kinds):
        of = {momentum: per_seed(chosen) for name, momentum, chosen in kinds if name == target}
        if len(of) > 1:
            plain, heavy = min(of), max(of)
            change = paired(of[heavy], of[plain], "log_B_crit")
            found.append(
                Claim(
                    f"momentum keeps larger batches useful ({target})",
                    "Shallue et al. 2019",
                    f"critical batch {interval(of[plain]['B_crit']).text(0)} without, "
                    f"{interval(of[heavy]['B_crit']).text(0)} with momentum {heavy:g}; log10 grew "
                    f"by {change.text()}",
                    "the growth's interval is above 0",
                    more(change),
                )
            )
    return found


def _of_plain(target: str, of: Rows) -> list[Claim]:
    small, large, price = interval(of["small"]), interval(of["large"]), interval(of["price"])
    return [
        Claim(
            f"small batches: a larger batch needs fewer updates in proportion ({target})",
            "Shallue et al. 2019",
            f"slope {small.text()} up to M = {SMALL}",
            "the interval is below -0.5",
            held(small.high < -0.5, small.low > -0.5),
        ),
        Claim(
            f"large batches: a larger batch saves no updates any more ({target})",
            "Shallue et al. 2019",
            f"slope {large.text()} from M = {LARGE}",
            f"the interval is above {FLAT:g}",
            held(large.low > FLAT, large.high < FLAT),
        ),
        Claim(
            f"there is a point of diminishing returns: large batches cost examples ({target})",
            "the text, role of mini-batches",
            f"{price.text(1)} times the examples of the smallest batch",
            "the interval is above 3",
            held(price.low > 3, price.high < 1),
        ),
    ]


def draw(rows: Rows, axes: list[Any]) -> None:
    (axis,) = axes
    target = max(rows["target"])  # of a loss; one of an accuracy is in the tables
    kinds = [(m, chosen) for name, m, chosen in kinds_of(rows) if name == target]
    for number, (momentum, chosen) in enumerate(kinds):
        curve(axis, chosen, "batch", "steps", number, _optimiser(momentum), linestyle="none")
        means = chosen.groupby("batch")["steps"].mean()
        S_min, E_min = fit(means.index, means)
        if math.isfinite(S_min):
            M = np.geomspace(means.index.min(), means.index.max(), 60)
            label = f"{S_min:.0f} + {E_min:.0f} / M, critical {E_min / S_min:.0f}"
            axis.plot(M, S_min + E_min / M, color=COLOURS[number], linewidth=0.9, label=label)
            axis.axvline(E_min / S_min, color=COLOURS[number], linestyle=":", linewidth=0.9)
    first = rows["batch"].min()
    top = float(np.nanmax([chosen["steps"].max() for _, chosen in kinds] + [1.0]))
    M = np.array([first, first * 64])
    axis.plot(
        M, 1.3 * top * first / M, color="black", linestyle="--", linewidth=0.8, label="slope -1"
    )
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="batch size M (examples)",
        ylabel=f"updates to {target}",
        title="Updates to a target, learning rate tuned",
    )
    axis.legend()
