"""A suite's picture: how each contestant compares with eager, problem by problem."""

import io
from typing import Any

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]


def ratios(suite: str, rows: list[dict[str, Any]], names: list[str], rival: str) -> bytes:
    """Bars: rival's time over a contestant's, both passes; above 1 it is faster. A PNG.

    names: of the problems, a label per group of rows, in order.
    """
    from matplotlib.figure import Figure

    providers = [p for p in dict.fromkeys(row["provider"] for row in rows) if p != rival]
    figure = Figure(figsize=(8, 1.2 + 0.5 * len(names)), layout="constrained")
    axis = figure.subplots()
    height = 0.8 / max(len(providers), 1)
    for number, provider in enumerate(providers):
        own = [row for row in rows if row["provider"] == provider]
        values = [row.get(f"both vs {rival}", 0.0) for row in own]
        places = [i + height * (number - (len(providers) - 1) / 2) for i in range(len(own))]
        colour = COLOURS[number % len(COLOURS)]
        hatch = ("", "//", "..", "xx")[number % 4]
        style: dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": "white"}
        axis.barh(places, values, height=height, label=provider, **style)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlabel(f"time of {rival} / time, forward and backward (above 1: faster)")
    axis.set_title(suite)
    axis.legend(loc="best", fontsize="small", frameon=False)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()


def roofline(rows: list[dict[str, Any]], ceilings: Any, dtype: str) -> bytes:
    """TFLOP/s over flops per byte of the problems that were timed, under the two ceilings."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axis = figure.subplots()
    peak, bandwidth = ceilings.flops[dtype], ceilings.bandwidth
    intensity = [2.0**power for power in range(-3, 13)]
    axis.plot(
        intensity,
        [min(peak, bandwidth * one) / 1e12 for one in intensity],
        color="black",
        label=f"measured: {peak / 1e12:.3g} TFLOP/s, {bandwidth / 1e9:.3g} GB/s",
    )
    providers = list(dict.fromkeys(row["provider"] for row in rows))
    for number, provider in enumerate(providers):
        own = [r for r in rows if r["provider"] == provider and r.get("TFLOP/s")]
        axis.plot(
            [row["flops per byte"] for row in own],
            [row["TFLOP/s"] for row in own],
            "os^DvPX"[number % 7],
            color=COLOURS[number % len(COLOURS)],
            label=provider,
        )
    axis.set(xscale="log", yscale="log", title=f"Roofline, {dtype}")
    axis.set(xlabel="flops per byte that must move", ylabel="TFLOP/s, forward and backward")
    axis.legend(fontsize="small", frameon=False)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()
