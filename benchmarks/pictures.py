"""The pictures of the suites: bars, lines and rooflines, with units, colours for every eye."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.ceilings import Ceilings

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo")
MARKERS = "os^DvPX"


def bars(
    title: str,
    names: Sequence[str],
    series: Mapping[str, Mapping[str, float]],
    label: str,
    line: float,
) -> bytes:
    """A group of bars per name, a bar of each series that has it; a line to compare with. A PNG."""
    figure, axis = _axis(8, 1.2 + 0.12 * len(names) * max(len(series), 3))
    height = 0.8 / max(len(series), 1)
    for number, (of, values) in enumerate(series.items()):
        shift = height * (number - (len(series) - 1) / 2)
        style: dict[str, Any] = {"color": COLOURS[number % 7], "hatch": HATCHES[number % 7]}
        axis.barh(
            [names.index(name) + shift for name in values],
            list(values.values()),
            height=height,
            label=of,
            edgecolor="white",
            **style,
        )
    axis.axvline(line, color="black", linewidth=0.8)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlabel(label)
    axis.set_title(title)
    if series:
        figure.legend(loc="outside lower center", ncols=4, fontsize="small", frameon=False)
    return _png(figure)


def lines(
    title: str, series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str
) -> bytes:
    """y over x, both logarithmic. A PNG."""
    figure, axis = _axis(6.5, 4)
    for number, (of, values) in enumerate(series.items()):
        style: dict[str, Any] = {"color": COLOURS[number % 7], "marker": MARKERS[number % 7]}
        axis.plot(*values, label=of, **style)
    axis.set(title=title, xlabel=x, ylabel=y)
    if series:
        axis.set(xscale="log", yscale="log")
        axis.legend(fontsize="small", frameon=False)
    return _png(figure)


def roofline(rows: Sequence[Mapping[str, Any]], ceilings: "Ceilings", dtype: str) -> bytes:
    """TFLOP/s over flops per byte of the problems that were timed, under the two ceilings."""
    figure, axis = _axis(6.5, 4)
    peak, bandwidth = ceilings.flops[dtype], ceilings.bandwidth
    intensity = sorted([0.125, peak / bandwidth, 4096.0])
    axis.plot(
        intensity,
        [min(peak, bandwidth * one) / 1e12 for one in intensity],
        color="black",
        label=f"measured: {peak / 1e12:.3g} TFLOP/s, {bandwidth / 1e9:.3g} GB/s",
    )
    for number, provider in enumerate(dict.fromkeys(row["provider"] for row in rows)):
        own = [row for row in rows if row["provider"] == provider]
        axis.plot(
            [row["step flops per byte"] for row in own],
            [row["step TFLOP/s"] for row in own],
            MARKERS[number % 7],
            color=COLOURS[number % 7],
            label=provider,
        )
    axis.set(xscale="log", yscale="log", title=f"Roofline, {dtype}")
    axis.set(xlabel="flops per byte that must move", ylabel="TFLOP/s, forward and backward")
    axis.legend(fontsize="small", frameon=False)
    return _png(figure)


def _axis(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()
