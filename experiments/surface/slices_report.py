"""What the slices' rows show: tables, verdicts and the surfaces."""

from typing import Any

import numpy as np

from experiments.results import Claim, Table, held, less, more
from experiments.statistics import Rows, interval, paired

CASES = ("small batch", "full batch", "plain", "residual")
LOW, HIGH = 0.1, 1.0  # losses below which the area of a slice is told
UPWARD = ("low_area", "high_area", "test_accuracy")  # more is what is claimed
LEVELS = np.linspace(-3, 2, 21)  # of log10 of the loss


def per_seed(rows: Rows) -> Rows:
    """A row per case and seed: the solution, its slices averaged over pairs, the highest of all."""
    keys = ["case", "seed"]
    solved = rows[rows["kind"] == "solution"].set_index(keys)
    pairs = rows[rows["kind"] == "pair"].groupby(keys)
    found = solved[["batch", "updates", "reached", "train_loss", "test_accuracy", "around"]].copy()
    for name in ("low_area", "high_area"):
        found[name] = pairs[name].mean()
    found["highest"] = np.log10(pairs["highest"].max())
    return found.reset_index()


def tables(rows: Rows) -> list[Table]:
    seeds = per_seed(rows)
    columns = {
        "updates": 0,
        "train_loss": 4,
        "test_accuracy": 2,
        "low_area": 1,
        "high_area": 1,
        "around": 3,
        "highest": 2,
    }
    body = []
    for case in CASES:
        group = seeds[seeds["case"] == case]
        cells = [interval(group[name]).text(digits) for name, digits in columns.items()]
        reached = f"{int(group['reached'].sum())} of {len(group)}"
        body.append([case, int(group["batch"].iloc[0]), reached, *cells])
    headers = ["solution", "batch", "reached", "updates", "training loss", "test accuracy, %"]
    headers += ["area below 0.1, %", "area below 1, %", "loss at radius 0.5", "log10 highest"]
    pairs = rows[rows["kind"] == "pair"]["pair"].nunique()
    note = (
        f"Area: of the square from -1 to 1 along two filter-normalised directions, the mean of "
        f"{pairs} pairs of them; log10 highest: of the highest loss in any. Radius: the mean of "
        f"single directions. Reached: of so many seeds the training loss that both of a pair were "
        f"to stop at."
    )
    return [Table("The loss around four solutions", [*headers], body, note)]


def claims(rows: Rows) -> list[Claim]:
    seeds = per_seed(rows)
    batch = ("small batch", "full batch", "the text, flat minima; after Li et al. 2018")
    skip = ("residual", "plain", "after Li et al. 2018")
    wide, near = "has more area with a loss below", "has a lower loss at radius 0.5 than"
    return [
        _claim(seeds, batch, "low_area", f"{wide} {LOW:g} around it than", "points"),
        _claim(seeds, batch, "around", near, ""),
        _every_pair(rows, batch, "low_area", f"has more area with a loss below {LOW:g}"),
        _claim(seeds, batch, "test_accuracy", "classifies more test images than", "points"),
        _claim(seeds, skip, "high_area", f"{wide} {HIGH:g} around it than", "points"),
        _claim(seeds, skip, "around", near, ""),
        _claim(seeds, skip, "highest", "has slices that rise less high than", "in log10"),
        _every_pair(rows, skip, "highest", "has the slice that rises less high"),
    ]


def _claim(seeds: Rows, pair: tuple[str, str, str], column: str, text: str, unit: str) -> Claim:
    """Of the pair, that the first one has more (of an area, of accuracy) or less."""
    first, second, source = pair
    one, other = (seeds[seeds["case"] == case] for case in (first, second))
    value = paired(one, other, column)
    upward = column in UPWARD
    means = f"{one[column].mean():.3g} against {other[column].mean():.3g}"
    return Claim(
        f"the {first} solution {text} the {second} one",
        source,
        f"{means}; paired by seed {value.text(3)} {unit}".strip(),
        f"the whole interval is {'above' if upward else 'below'} 0",
        more(value) if upward else less(value),
    )


def _every_pair(rows: Rows, pair: tuple[str, str, str], column: str, text: str) -> Claim:
    first, second, source = pair
    slices = rows[rows["kind"] == "pair"].set_index(["seed", "pair"])
    one, other = (slices[slices["case"] == case][column] for case in (first, second))
    difference = (one - other if column in UPWARD else other - one).dropna()
    count = int((difference > 0).sum())
    return Claim(
        f"whatever the slice, the {first} solution {text}",
        source,
        f"{count} of {len(one)} pairs of directions, over all seeds",
        "all of them",
        held(count == len(one) > 0, len(one) > 0 and bool((difference < 0).sum() == len(one))),
    )


def draw(rows: Rows, axes: list[Any]) -> None:
    points, solved = rows[rows["kind"] == "point"], rows[rows["kind"] == "solution"]
    drawn = None
    for case, axis in zip(CASES, axes, strict=True):
        mine = points[points["case"] == case]
        mine = mine[mine["seed"] == mine["seed"].min()]
        of = solved[(solved["case"] == case) & (solved["seed"] == solved["seed"].min())]
        grid = mine.pivot_table(index="across", columns="along", values="loss", dropna=False)
        logs = np.log10(np.clip(grid.to_numpy(float), 1e-4, 1e30))
        drawn = axis.contourf(
            grid.columns, grid.index, logs, levels=LEVELS, extend="both", cmap="viridis"
        )
        lines = [level for level in np.log10([LOW, HIGH]) if logs.min() < level < logs.max()]
        if lines:
            drawn_lines = axis.contour(
                grid.columns, grid.index, logs, levels=lines, colors="white", linewidths=1.2
            )
            axis.clabel(drawn_lines, fmt=lambda level: f"{10**level:.1g}", fontsize=8)
        axis.plot(0, 0, marker="+", color="white", markersize=9)
        axis.set(
            aspect="equal",
            xlabel="first direction (filter-normalised)",
            ylabel="second direction",
            title=f"{case}: loss {of['train_loss'].iloc[0]:.2g} at +",
        )
        axis.grid(False)
    if drawn is not None:
        axes[0].figure.colorbar(
            drawn, ax=axes, label="log10 of the training loss", ticks=range(-3, 3)
        )
