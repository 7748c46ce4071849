"""Pictures from rows: one per experiment, a panel or more per part."""

import io
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from experiments.statistics import Interval, Rows, interval
from experiments.study import Experiment, part_rows

# Okabe and Ito's colours, told apart with any colour vision; markers say the same once more
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.fontsize": "small",
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
}


def picture(experiment: Experiment, rows: Rows) -> bytes:
    """A PNG of the panels of all parts that rows has."""
    drawn = [part for part in experiment.parts if len(part_rows(part, rows))]
    with rc_context(STYLE):
        return _png(drawn, rows)


def _png(parts: list[ModuleType], rows: Rows) -> bytes:
    panels = sum(part.PANELS for part in parts)
    columns = 2 if panels == 4 else min(panels, 3)
    lines = math.ceil(panels / columns)
    figure = Figure(figsize=(4.6 * columns, 3.5 * lines), layout="constrained")
    axes = [figure.add_subplot(lines, columns, 1 + i) for i in range(panels)]
    for part in parts:
        mine, axes = axes[: part.PANELS], axes[part.PANELS :]
        part.draw(part_rows(part, rows), mine)
    for axis in figure.axes:
        _linear_without_data(axis)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()


def _linear_without_data(axis) -> None:
    """Where no number was drawn a logarithmic scale has no limits, and cannot be drawn either."""
    for name in "xy":
        if (
            getattr(axis, f"get_{name}scale")() == "log"
            and min(getattr(axis, f"get_{name}lim")()) <= 0
        ):
            getattr(axis, f"set_{name}scale")("linear")


def curve(axis, rows: Rows, x: str, y: str, number: int, label: str, **style) -> None:
    """Means over seeds of column y at each x, with 95 % intervals as bars.

    number: of the curve in its panel; it chooses colour and marker.
    """
    groups = {at: interval(group[y]) for at, group in rows.groupby(x)}
    points(axis, list(groups), list(groups.values()), number, capsize=2, label=label, **style)


def points(axis, places: Sequence, values: Sequence[Interval], number: int, **style) -> None:
    """Means with 95 % intervals as bars; number chooses colour and marker."""
    axis.errorbar(
        places,
        [value.mean for value in values],
        yerr=[0.0 if math.isnan(value.half) else value.half for value in values],
        color=COLOURS[number % len(COLOURS)],
        marker=MARKERS[number % len(MARKERS)],
        **style,
    )


def legend_below(axis, **style) -> None:
    """A legend under all that is drawn, where the axis is lengthened for it."""
    low, high = axis.get_ylim()
    axis.set_ylim(low - 0.5 * (high - low), high)
    axis.legend(loc="lower right", **style)


def ticks(axis, values, text: str = "{:,.0f}", of: str = "x") -> None:
    """Ticks of a logarithmic axis "x" or "y" at these values, and nowhere else."""
    at = sorted(set(values))
    getattr(axis, f"set_{of}ticks")(at, [text.format(value) for value in at])
    getattr(axis, f"set_{of}ticks")([], minor=True)
