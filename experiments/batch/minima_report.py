"""What minima's rows show: tables, verdicts and a picture."""

from typing import Any

import numpy as np
from scipy.stats import spearmanr

from experiments.pictures import COLOURS, MARKERS, curve
from experiments.results import Claim, Table, held, less, more
from experiments.statistics import Interval, Rows, interval, paired

MEASURES = {  # of flatness: a header, whose it is, what the paper has
    "lambda_max": ("largest curvature", "the text, the role of mini-batches", "-"),
    "sharpness": (
        "sharpness of Keskar et al.",
        "Keskar et al. 2017, Table 3 (F1, eps 1e-3)",
        "1.23 +- 0.83 against 205.14 +- 69.52",
    ),
    "around": ("loss at filter-normalised radius 0.5", "after Li et al. 2018", "-"),
}


def tables(rows: Rows) -> list[Table]:
    sgd, adam = rows[rows["method"] == "sgd"], rows[rows["method"] == "adam"]
    found = [_flatness(sgd), _generalisation(sgd)]
    return [*found, _adam(adam)] if len(adam) else found


def _flatness(rows: Rows) -> Table:
    columns = {"updates": 0, "train_loss": 4, "lambda_max": 2, "sharpness": 2, "around": 3}
    body = []
    for (noise, batch, rate), group in _arms(rows):
        cells = [interval(group[name]).text(digits) for name, digits in columns.items()]
        body.append([f"{noise:.0%}", batch, rate, f"{rate / batch:.2g}", _reached(group), *cells])
    headers = ["label noise", "batch", "eta", "eta / batch", "reached", "updates", "training loss"]
    headers += ["lambda_max", "sharpness, %", "loss at radius 0.5"]
    note = (
        "Training ends at the first look, every 20 updates, that finds the training loss at the "
        "target; reached: of so many seeds. Sharpness: Keskar's, epsilon 1e-3. Radius: "
        "filter-normalised, the mean of 20 directions."
    )
    return Table("Flatness at equal training loss", headers, body, note)


def _generalisation(rows: Rows) -> Table:
    body = []
    for (noise, batch, rate), group in _arms(rows):
        same = rows[(rows["label_noise"] == noise) & (rows["learning_rate"] == rate)]
        full = same[same["batch"] == rows["batch"].max()]
        cells = [interval(group[name]).text(2) for name in ("test_accuracy", "gap")]
        cells.append(interval(group["test_loss"]).text(3))
        for name, digits in (("test_accuracy", 2), ("gap", 2), ("test_loss", 3)):
            alone = batch == rows["batch"].max() or full.empty
            cells.append("-" if alone else paired(group, full, name).text(digits))
        body.append([f"{noise:.0%}", batch, rate, *cells])
    headers = ["label noise", "batch", "eta", "test accuracy, %", "gap, points", "test loss"]
    headers += [f"{name} - full batch's" for name in ("accuracy", "gap", "test loss")]
    note = (
        "Gap: accuracy on the training set less that on the test set. Differences to the full "
        "batch at the same learning rate are paired by seed: same split, same first weights."
    )
    return Table("Generalisation at equal training loss", headers, body, note)


def _adam(rows: Rows) -> Table:
    columns = {"train_loss": 4, "test_accuracy": 2, "gap": 2, "sharpness": 2, "lambda_max": 2}
    body = [
        [batch, *(interval(group[name]).text(digits) for name, digits in columns.items())]
        for batch, group in rows.groupby("batch")
    ]
    headers = ["batch", "training loss", "test accuracy, %", "gap, points", "sharpness, %"]
    note = "After equal epochs: the training losses are not equal."
    title = "Adam on a network like Keskar's F1, 1/256 and 1/10 of the data in a batch"
    return Table(title, [*headers, "lambda_max"], body, note)


def _arms(rows: Rows) -> Any:
    return rows.groupby(["label_noise", "batch", "learning_rate"])


def _reached(group: Rows) -> str:
    return f"{int(group['reached'].sum())} of {len(group)}"


def claims(rows: Rows) -> list[Claim]:
    sgd, adam = rows[rows["method"] == "sgd"], rows[rows["method"] == "adam"]
    found = []
    for noise, group in sgd.groupby("label_noise"):
        mine = _at_one_rate(group)
        where = f" ({noise:.0%} of the labels random)" if noise else ""
        found += _flatter(mine, where) + _better(mine, where)
        if len(_arms(group)) > mine["batch"].nunique():
            found += _rate_over_batch(group, where)
    if len(adam):
        where = " (Adam, equal epochs)"
        found += _flatter(adam, where) + _better(adam, where)
    return found


def _at_one_rate(rows: Rows) -> Rows:
    """Those of the rate that reached the target with most batches, of several the smallest."""
    reached = rows[rows["reached"] == 1] if rows["reached"].any() else rows
    batches = reached.groupby("learning_rate")["batch"].nunique()
    return rows[rows["learning_rate"] == batches.idxmax()]


def _ends(rows: Rows, column: str) -> tuple[Interval, str]:
    """The smallest batch's less the largest's, and the means and the names of both."""
    small, large = (rows[rows["batch"] == of] for of in (rows["batch"].min(), rows["batch"].max()))
    pair = [small[column].mean(), large[column].mean()]
    names = f"batch {small['batch'].iloc[0]} against {large['batch'].iloc[0]}"
    means = " against ".join(f"{value:.3g}" for value in pair)
    return paired(small, large, column), f"{means}, {names}; paired by seed"


def _flatter(rows: Rows, where: str) -> list[Claim]:
    found = []
    for column, (title, source, paper) in MEASURES.items():
        if rows[column].isna().all():
            continue
        value, told = _ends(rows, column)
        text = f"the smallest batch ends flatter than the largest, by the {title}{where}"
        measured = f"{told} {value.text(3)}"
        found.append(
            Claim(text, source, measured, "the whole interval is below 0", less(value), paper)
        )
    means = rows.groupby("batch")["lambda_max"].mean()
    if len(means) > 2:
        found.append(
            Claim(
                f"lambda_max rises with the batch size{where}",
                "the text, the role of mini-batches",
                ", ".join(f"{value:.2f}" for value in means),
                "each mean is above the one before",
                held(
                    bool(means.is_monotonic_increasing),
                    bool(means.is_monotonic_decreasing),
                ),
            )
        )
    return found


def _better(rows: Rows, where: str) -> list[Claim]:
    found = []
    for column, text, judge, side, paper in (
        ("test_accuracy", "classifies more test images", more, "above", "98.03 against 97.81"),
        ("gap", "has the smaller generalisation gap", less, "below", "-"),
    ):
        value, told = _ends(rows, column)
        found.append(
            Claim(
                f"the smallest batch's solution {text}{where}",
                "the text, the role of mini-batches; Keskar et al. 2017, F1",
                f"{told} {value.text()} points",
                f"the whole interval is {side} 0",
                judge(value),
                paper,
            )
        )
    return found


def _rate_over_batch(rows: Rows, where: str) -> list[Claim]:
    """Over all arms, by ranks: does learning rate / batch size order the solutions?"""
    curved, tested = _ranked(rows, "lambda_max"), _ranked(rows, "test_accuracy")
    return [
        Claim(
            f"the larger learning rate / batch size is, the smaller lambda_max{where}",
            "after Smith and Le 2018",
            f"Spearman's rho over the arms, per seed: {curved.text()}",
            "the whole interval is below 0",
            less(curved),
        ),
        Claim(
            f"the larger learning rate / batch size is, the higher the test accuracy{where}",
            "after Smith and Le 2018, with the text's flat minima",
            f"Spearman's rho over the arms, per seed: {tested.text()}",
            "the whole interval is above 0",
            more(tested),
        ),
    ]


def _ranked(rows: Rows, column: str) -> Interval:
    found = []
    for _, group in rows.dropna(subset=[column]).groupby("seed"):
        ratio = (group["learning_rate"] / group["batch"]).round(12)
        if ratio.nunique() > 2 and group[column].nunique() > 1:
            found.append(float(np.asarray(spearmanr(ratio, group[column]))[0]))
    return interval(found)


def draw(rows: Rows, axes: list[Any]) -> None:
    rows = rows[(rows["method"] == "sgd") & (rows["label_noise"] == 0)]
    mine = _at_one_rate(rows)
    rate = mine["learning_rate"].iloc[0]
    full = mine[mine["batch"] == mine["batch"].max()].set_index("seed")
    relative = mine.copy()
    for name in (*MEASURES, "test_accuracy"):
        whole = mine["seed"].map(full[name])
        relative[name] = mine[name] - whole if name == "test_accuracy" else mine[name] / whole
    flat, better, ratio = axes
    for number, (name, (title, _, _)) in enumerate(MEASURES.items()):
        curve(flat, relative, "batch", name, number, title)
    flat.axhline(1, color="black", linestyle=":")
    flat.set(ylabel="sharpness / the full batch's", title="Flatness at equal training loss")
    flat.set(xlabel=f"batch size (examples), learning rate {rate:g}", xscale="log")
    flat.set_ylim(0, 1.5 * max(1.2, flat.get_ylim()[1]))  # the legend's place
    flat.legend(loc="upper right")
    curve(better, relative, "batch", "test_accuracy", 0, "mean, 95 % interval")
    better.axhline(0, color="black", linestyle=":", label="no difference")
    better.set(ylabel="test accuracy - full batch's (points)", xscale="log")
    better.set(xlabel=f"batch size (examples), learning rate {rate:g}")
    better.set_title("Generalisation at equal training loss")
    better.legend()
    _scatter(ratio, rows)


def _scatter(axis: Any, rows: Rows) -> None:
    for number, (batch, group) in enumerate(rows.groupby("batch")):
        axis.scatter(
            group["learning_rate"] / batch,
            group["lambda_max"],
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            s=20,
            label=f"batch {batch}",
        )
    axis.set(xscale="log", xlabel="learning rate / batch size (per example)")
    axis.set_ylim(bottom=0)
    axis.set(ylabel="largest curvature", title="One variable: learning rate / batch size")
    axis.legend()
