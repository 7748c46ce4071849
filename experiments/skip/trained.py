"""What the training against depth shows: its claims and its picture."""

import math
from typing import Any

import pandas as pd

from experiments.pictures import COLOURS, curve
from experiments.results import Claim, held, more
from experiments.skip.chains import doubling, named
from experiments.statistics import Interval, Rows, best_rate, interval, paired

TRAINED = 95.0  # per cent of the test images
POINTS = 2.0  # of accuracy: a difference that counts
FAILED = math.log(10)  # a training loss no better than chance
EMPTY = interval([])
RESIDUAL = ("pre", "root")
CURVES = [
    ("plain", "unit"), RESIDUAL, ("post", "root"), ("out", "root"), ("block", "root"),
    ("pre", "unit"), ("block", "unit"),
]  # fmt: skip


def at_best(
    rows: Rows, kind: str, branch: str, depth: int, times: int = 1, activation: str = "relu"
) -> Rows:
    """The runs of one network at its best rate: the smallest if all diverged; none if not run."""
    some = _of(rows, kind, branch, times, activation)
    some = some[some["depth"] == depth]
    if not len(some):
        return some
    rate = best_rate(some, "train_loss")[0]
    return some[some["learning_rate"] == (some["learning_rate"].min() if rate != rate else rate)]


def _of(rows: Rows, kind: str, branch: str, times: int = 1, activation: str = "relu") -> Rows:
    updates = times * rows["updates"].min()
    own = (rows["kind"] == kind) & (rows["branch"] == branch)
    return rows[own & (rows["updates"] == updates) & (rows["activation"] == activation)]


def _better(rows: Rows, one: Rows, other: Rows) -> Interval:
    """Points of accuracy that one has more than other; a diverged run's are chance, 10 %."""
    if not len(one) or not len(other):
        return EMPTY
    one, other = (
        some.assign(test_accuracy=some["test_accuracy"].fillna(10)) for some in (one, other)
    )
    return paired(one, other, "test_accuracy")


def claims(rows: Rows) -> list[Claim]:
    relu = rows[rows["activation"] == "relu"]
    plain = _of(relu, "plain", "unit")
    deep = min(32, int(plain["depth"].max()))
    pre = at_best(rows, *RESIDUAL, deep)
    return [
        *_depth(rows, deep, pre),
        *_updates(rows, deep, pre),
        *_kinds(rows, deep, pre),
        *_scales(rows, deep),
        *_tanh(rows),
    ]


def _depth(rows: Rows, deep: int, pre: Rows) -> list[Claim]:
    plain, shallow = at_best(rows, "plain", "unit", deep), at_best(rows, "plain", "unit", 2)
    loss = EMPTY
    if len(plain) and len(shallow):
        loss = paired(plain, shallow, "train_loss")
    accuracy, ahead = interval(pre["test_accuracy"]), _better(rows, pre, plain)
    gain = _better(rows, pre, at_best(rows, *RESIDUAL, 2))
    return [
        Claim(
            f"a plain network of {deep} layers has a higher training loss than one of 2",
            "He et al. 2016a: degradation, not overfitting",
            f"training loss {loss.text(3)} higher, per seed",
            "the interval lies above 0",
            more(loss),
            "top-1 error of plain-34 28.54, of plain-18 27.94",
        ),
        Claim(
            f"with skips {deep} layers train",
            "He et al. 2016a, 2016b",
            f"{accuracy.text()} % (pre, s = 1/sqrt(L))",
            f"the mean is above {TRAINED:g} %",
            held(accuracy.mean > TRAINED),
        ),
        Claim(
            f"at {deep} layers skips are better than none",
            "He et al. 2016a",
            f"pre minus plain, same updates: {ahead.text()} points",
            f"the interval lies above {POINTS:g} points",
            more(ahead, POINTS),
            "top-1 error of ResNet-34 25.03, of plain-34 28.54",
        ),
        Claim(
            f"with skips {deep} layers are better than 2",
            "He et al. 2016a",
            f"pre, {deep} minus 2 layers: {gain.text()} points",
            "the interval lies above 0",
            more(gain),
            "CIFAR-10 error of ResNet-110 6.43, of ResNet-20 8.75",
        ),
    ]


def _updates(rows: Rows, deep: int, pre: Rows) -> list[Claim]:
    longer = at_best(rows, "plain", "unit", deep, times=5)
    if not len(longer):
        return []
    loss, behind = interval(longer["train_loss"]), _better(rows, pre, longer)
    return [
        Claim(
            f"{deep} plain layers cannot be trained, with five times the updates either",
            "often said of plain networks",
            f"training loss {loss.text(3)}, test accuracy "
            f"{interval(longer['test_accuracy']).text()} %",
            f"the interval of the loss lies above {FAILED / 2:.2f}, half of chance",
            held(loss.low > FAILED / 2, loss.high < FAILED / 2),
        ),
        Claim(
            "five times the updates do not bring them to where skips are",
            "asked here: fairness",
            f"pre minus plain with 5 times the updates: {behind.text()} points",
            f"the interval lies above {POINTS:g} points",
            more(behind, POINTS),
        ),
    ]


def _kinds(rows: Rows, deep: int, pre: Rows) -> list[Claim]:
    found = []
    out = at_best(rows, "out", "root", deep)
    if len(out):
        ahead = _better(rows, pre, out)
        found.append(
            Claim(
                "ReLU before the addition (out) is worse than pre",
                "He et al. 2016b, table 2",
                f"pre minus out at {deep} layers: {ahead.text()} points",
                f"the interval lies above {POINTS:g} points",
                more(ahead, POINTS),
                "error 7.84 with ReLU before the addition, 6.61 as in 2016a",
            )
        )
    post = at_best(rows, "post", "root", deep)
    if len(post):
        ahead = _better(rows, pre, post)
        found.append(
            Claim(
                "pre is better than post",
                "He et al. 2016b, table 3",
                f"pre minus post at {deep} layers: {ahead.text()} points",
                "the interval lies above 0",
                more(ahead),
                "ResNet-1001: error 4.92 pre, 7.61 post",
            )
        )
    return found


def _scales(rows: Rows, deep: int) -> list[Claim]:
    found = []
    unit, root = ({kind: _of(rows, kind, b) for kind in ("pre", "block")} for b in ("unit", "root"))
    counts = {
        kind: (int(some["train_loss"].isna().sum()), len(some))
        for kind, some in ((k, s[s["depth"] == deep]) for k, s in unit.items())
        if len(some)
    }
    if counts:
        ok = [at_best(rows, kind, "root", deep)["train_loss"] for kind in counts if len(root[kind])]
        trains = all(bool(loss.max() < FAILED) for loss in ok if len(loss))
        words = ", ".join(f"{kind} {bad} of {n}" for kind, (bad, n) in counts.items())
        found.append(
            Claim(
                "with ReLU, He's initial values and no normalisation a scale of 1 diverges at "
                "every rate tried, one of 1/sqrt(L) trains",
                "asked here",
                f"diverged at {deep} layers and s = 1: {words} runs",
                "all runs of s = 1, and none of s = 1/sqrt(L) at its best rate",
                held(trains and all(bad == n for bad, n in counts.values())),
            )
        )
    zero = at_best(rows, "pre", "zero", deep)
    if len(zero):
        accuracy = interval(zero["test_accuracy"])
        found.append(
            Claim(
                "branches that start at zero train with a scale of 1",
                "asked here",
                f"{accuracy.text()} % at {deep} layers (pre)",
                f"the mean is above {TRAINED:g} %",
                held(accuracy.mean > TRAINED),
            )
        )
    return found


def _tanh(rows: Rows) -> list[Claim]:
    pre = at_best(rows, *RESIDUAL, 32, activation="tanh")
    out = at_best(rows, "out", "root", 32, activation="tanh")
    if not len(pre) or not len(out):
        return []
    apart = _better(rows, pre, out)
    return [
        Claim(
            "with tanh, too, activation before the addition (out) is worse than pre",
            "asked here: its mean is zero, ReLU's is not",
            f"pre minus out at 32 layers: {apart.text()} points",
            f"the interval lies above {POINTS:g} points",
            more(apart, POINTS),
        )
    ]


def draw(rows: Rows, axes: list[Any]) -> None:
    accuracy, loss = axes
    relu = rows[rows["activation"] == "relu"]
    for number, (kind, branch) in enumerate(CURVES):
        depths = sorted(_of(relu, kind, branch)["depth"].unique())
        best = [at_best(relu, kind, branch, depth) for depth in depths]
        if not best:
            continue
        beside = 1.05 ** (number - len(CURVES) // 2)  # so that no bar hides another
        together = pd.concat(best)
        together = together.assign(depth=together["depth"] * beside)
        for axis, column in ((accuracy, "test_accuracy"), (loss, "train_loss")):
            there = together[together[column].notna()]
            curve(axis, there, "depth", column, number, named(kind, branch))
        depths_of = together.groupby("depth")["train_loss"]
        lost = [depth for depth, losses in depths_of if len(losses.dropna()) == 0]
        accuracy.plot(lost, [10] * len(lost), "x", color=COLOURS[number], markersize=8)
    accuracy.plot([], [], "kx", label="diverged, all runs")
    accuracy.set(
        ylabel="test accuracy (%)", title="Trained alike: ReLU, rates tuned", ylim=(0, 103)
    )
    loss.set(yscale="log", ylabel="training loss (cross-entropy)", ylim=(5e-4, 4))
    loss.set_title("Degradation, not overfitting")
    for axis, chance, low in ((accuracy, 10, 0.12), (loss, FAILED, 0.4)):
        axis.axhline(chance, color="black", linestyle=":", linewidth=0.8, label="chance")
        axis.set_xlabel("hidden layers L")
        doubling(axis, "x", relu["depth"])
        axis.legend(loc="lower left", bbox_to_anchor=(0, low))
