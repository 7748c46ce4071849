"""Which batch size is best: with so many epochs, or with so many updates?

Each (limit, batch, learning_rate) is an arm. A rule for the learning rate chooses from these: the
one of the base batch for all, in proportion to the batch or to its square root, or the best of all.
"""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from experiments.networks import gradient_difference
from experiments.pictures import curve
from experiments.results import Claim, Table, held, less, more
from experiments.statistics import Interval, Rows, best_rate, interval, paired
from experiments.study import Setting
from experiments.training import accuracy, loss_of, train

PANELS = 2
BASE, RATE = 16, 0.1  # the rules agree here
RULES = {"fixed": 0.0, "square root": 0.5, "linear": 1.0}  # power of the batch
FOLLOWS = 1.5  # a loss within this factor of the base batch's counts as the same
DIVERGED = 1.0  # a loss above this, or none


@dataclass(frozen=True)
class Config:
    width: int = 64
    examples: int = 1024
    batches: tuple[int, ...] = (8, 16, 64, 256, 1024)
    epochs: int = 10
    updates: int = 160
    # beside the rules' rates, as multiples of the base rate, with that many epochs and updates
    epoch_factors: tuple[float, ...] = (2.0, 4.0)
    small_factors: tuple[float, ...] = (2.0,)  # of batches below the base: they take the longest
    update_factors: tuple[float, ...] = (1.0, 2.0, 4.0)
    update_rules: tuple[str, ...] = ("fixed",)


CONFIGS = {
    "smoke": Config(
        batches=(16, 64, 1024), epochs=4, updates=40, epoch_factors=(), update_factors=(1.0, 4.0)
    ),
    "quick": Config(),
    "full": Config(
        batches=(4, 16, 64, 256, 1024),
        epochs=20,
        updates=320,
        epoch_factors=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
        small_factors=(0.25, 0.5, 1.0, 2.0, 4.0),
        update_factors=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
        update_rules=tuple(RULES),
    ),
}


def rate_of(rule: str, batch: int) -> float:
    return RATE * (batch / BASE) ** RULES[rule]


def arms(config: Config) -> list[dict[str, Any]]:
    found = []
    for budget, factors, rules in (
        ("epochs", config.epoch_factors, tuple(RULES)),
        ("updates", config.update_factors, config.update_rules),
    ):
        for batch in config.batches:
            small = budget == "epochs" and batch < BASE
            rates = {RATE * factor for factor in (config.small_factors if small else factors)}
            rates |= {rate_of(rule, batch) for rule in rules}
            found += [
                {"limit": budget, "batch": batch, "learning_rate": rate} for rate in sorted(rates)
            ]
    return found


def updates_of(budget: str, batch: int, config: Config) -> int:
    return config.epochs * config.examples // batch if budget == "epochs" else config.updates


def work(arm: dict[str, Any], config: Config) -> float:
    return updates_of(arm["limit"], arm["batch"], config) * (1 + arm["batch"] / 500) / 1000


def measure(arm: dict[str, Any], config: Config, setting: Setting) -> list[dict[str, Any]]:
    data = setting.dataset()
    x, y = data.train_x[: config.examples], data.train_y[: config.examples]
    net = setting.network([x.shape[1], config.width, config.width, 10])
    updates = updates_of(arm["limit"], arm["batch"], config)
    train(
        net,
        x,
        y,
        batch=arm["batch"],
        learning_rate=arm["learning_rate"],
        updates=updates,
        seed=setting.seed,
        every=lambda update: update + 16,  # how often it is asked whether the loss is a number
    )
    loss = loss_of(net, x, y)
    whole = math.isfinite(loss)
    return [
        {
            "updates": updates,
            "train_loss": loss if whole else math.nan,
            "test_accuracy": accuracy(net, data.test_x, data.test_y) if whole else math.nan,
            "gradient_difference": gradient_difference(net, "cross_entropy", x, y),
        }
    ]


def ruled(rows: Rows, budget: str, rule: str) -> Rows:
    """The rows that a rule chooses, with that budget; edge: a best rate at its grid's end.

    Empty for a rule whose rates were not run with every batch. "tuned" takes the least loss.
    """
    found, own = [], rows[rows["limit"] == budget]
    for batch, group in own.groupby("batch"):
        edge = False
        if rule == "tuned":
            rate, edge = best_rate(group, "train_loss")
            chosen = group[group["learning_rate"] == rate]
        else:
            chosen = group[(group["learning_rate"] / rate_of(rule, batch) - 1).abs() < 1e-9]
            if not len(chosen):
                return own.iloc[:0].assign(edge=False)
        found.append(chosen.assign(edge=edge))
    return pd.concat(found) if found else own.assign(edge=False)


def tables(rows: Rows) -> list[Table]:
    batches = sorted(rows["batch"].unique())
    headers = ["budget", "learning rate", *(f"M = {batch}" for batch in batches)]
    measures = [
        ("Test accuracy (%)", "test_accuracy", 2),
        ("Training loss (nats)", "train_loss", 4),
    ]
    found = [
        Table(title, headers, [*_body(rows, batches, column, digits)])
        for title, column, digits in measures
    ]
    return [*found, Table("Learning rates", headers, [*_rates(rows, batches)], _note(rows))]


def _note(rows: Rows) -> str:
    grids = []
    for budget, own in rows.groupby("limit"):
        for batch, group in own.groupby("batch"):
            rates = ", ".join(f"{rate:.3g}" for rate in sorted(group["learning_rate"].unique()))
            grids.append(f"{budget}, M = {batch}: {rates}")
    return (
        f"The rules agree at M = {BASE}, rate {RATE:g}. 'tuned' is the rate of least training loss "
        f"of all that were run: {'; '.join(grids)}. '(edge)': it is the grid's least or largest. "
        f"'-': of no seed a number any more."
    )


def _lines(rows: Rows):
    """(budget's name, rule, its rows), of those that were run."""
    for budget, own in rows.groupby("limit"):
        first = own.iloc[0]
        count = first["updates"]
        name = f"{count} updates"
        if budget == "epochs":
            name = f"{_epochs(own):.0f} epochs"
        for rule in [*RULES, "tuned"]:
            chosen = ruled(rows, str(budget), rule)
            if len(chosen):
                yield name, rule, chosen


def _epochs(own: Rows) -> float:
    """Of the budget of epochs: a full batch, the largest, makes one update in each."""
    return own.loc[own["batch"].idxmax(), "updates"]


def _body(rows: Rows, batches: list[int], column: str, digits: int):
    for name, rule, chosen in _lines(rows):
        of = {batch: interval(group[column]) for batch, group in chosen.groupby("batch")}
        yield [name, rule, *(_text(of[M], digits) if M in of else "-" for M in batches)]


def _text(value: Interval, digits: int) -> str:
    if abs(value.mean) < 1000:
        return value.text(digits)
    return f"{value.mean:.1e} +- {value.half:.1e}"


def _rates(rows: Rows, batches: list[int]):
    for name, rule, chosen in _lines(rows):
        of = chosen.drop_duplicates("batch").set_index("batch")
        cells = []
        for M in batches:
            cell = f"{of.loc[M, 'learning_rate']:.3g}" if M in of.index else "-"
            cells.append(cell + (" (edge)" if M in of.index and of.loc[M, "edge"] else ""))
        yield [name, rule, *cells]


def _gain(chosen: Rows, column: str) -> Interval:
    """The largest batch less the smallest, paired."""
    low, high = chosen["batch"].min(), chosen["batch"].max()
    return paired(chosen[chosen["batch"] == high], chosen[chosen["batch"] == low], column)


def claims(rows: Rows) -> list[Claim]:
    low, high = rows["batch"].min(), rows["batch"].max()
    epochs, updates = (ruled(rows, budget, "tuned") for budget in ("epochs", "updates"))
    of_epochs, of_updates = _gain(epochs, "test_accuracy"), _gain(updates, "test_accuracy")
    across = f"points of test accuracy from M = {low} to {high}"
    return [
        Claim(
            "with so many epochs, small batches are better, at the best learning rates",
            "Shallue et al. 2019",
            f"{of_epochs.text()} {across}",
            "the interval is below 0",
            less(of_epochs),
        ),
        Claim(
            "with so many updates, large batches are better, at the best learning rates",
            "Shallue et al. 2019",
            f"{of_updates.text()} {across}",
            "the interval is above 0",
            more(of_updates),
        ),
        Claim(
            "what large batches lose is updates: with as many, they are not worse",
            "Hoffer et al. 2017",
            f"{of_updates.text()} {across}",
            "the interval is above -1 point",
            held(of_updates.low > -1, of_updates.high < -1),
            "F1 on MNIST: 98.27 %, large batches 97.05 %, with adapted regime 98.53 %",
        ),
        _fixed(rows),
        *_linear(rows),
    ]


def _fixed(rows: Rows) -> Claim:
    """What a fixed rate adds to the loss that large batches have with so many epochs."""
    fixed, tuned = (ruled(rows, "epochs", rule) for rule in ("fixed", "tuned"))
    high = rows["batch"].max()
    cost = paired(fixed[fixed["batch"] == high], tuned[tuned["batch"] == high], "test_accuracy")
    return Claim(
        f"at M = {high}, part of the loss is the learning rate that was not raised",
        "this table",
        f"{cost.text()} points, fixed less tuned, with so many epochs",
        "the interval is below 0",
        less(cost),
    )


def _linear(rows: Rows) -> list[Claim]:
    linear = ruled(rows, "epochs", "linear")
    means = linear.groupby("batch")["train_loss"].agg(lambda v: v.mean(skipna=False))
    base = means.get(BASE, math.nan)
    ratio = {batch: mean / base for batch, mean in means.items()}
    same = [batch for batch, one in ratio.items() if 1 / FOLLOWS <= one <= FOLLOWS]
    high = rows["batch"].max()
    broken = base <= DIVERGED and high in means and not means[high] <= DIVERGED
    said = ", ".join(f"{mean:.2g} at M = {batch}" for batch, mean in means.items())
    reached = max((batch for batch in same if batch > BASE), default=BASE)
    return [
        Claim(
            "a learning rate in proportion to the batch keeps the training loss of an epoch",
            "Goyal et al. 2017",
            said,
            f"within a factor {FOLLOWS:g} of M = {BASE}'s at 4 M",
            held(4 * BASE in same),
        ),
        Claim(
            f"the linear rule breaks at large batches (kept here up to M = {reached})",
            "Goyal et al. 2017, without warm-up",
            f"training loss {means.get(high, math.nan):.2g} at M = {high}",
            f"above {DIVERGED:g}, or no number",
            held(broken),
            "8k images: top-1 error 24.84 +- 0.37 %, 23.60 +- 0.12 % with 256",
        ),
    ]


def draw(rows: Rows, axes: list[Any]) -> None:
    titles = {"epochs": "As many epochs", "updates": "As many updates"}
    for axis, budget in zip(axes, titles, strict=True):
        for number, rule in enumerate([*RULES, "tuned"]):
            chosen = ruled(rows, budget, rule)
            if len(chosen):
                curve(axis, chosen, "batch", "test_accuracy", number, rule)
        name = next((name for name, _, _ in _lines(rows[rows["limit"] == budget])), "")
        axis.axhline(10, color="black", linestyle=":", linewidth=0.8, label="chance")
        axis.set(
            xscale="log",
            xlabel="batch size M (examples)",
            ylabel="test accuracy (%)",
            title=f"{titles[budget]}: {name}",
            ylim=(0, 102),
        )
        axis.legend(title="learning rate", loc="center left")
