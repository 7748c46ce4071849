"""A tape as a picture, with the norms of adjoints on its edges."""

import errno
import io
import math
import pathlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from manualgrad.dag.layout import places
from manualgrad.dag.node import Node
from manualgrad.dag.text import edges, norm
from manualgrad.files import write_bytes

MOST = 200  # nodes that a page has room for
WIDE, HIGH = 1.9, 1.0  # inches between neighbours, and between rows
LEAF, PARAMETER, VALUE, END = "#d9ead3", "#fff2cc", "#e8eef7", "#f4cccc"
BACK = "#b03a2e"


def draw(nodes: Sequence[Node], path: Any, title: str) -> None:
    """Write the picture to path, whole or not at all; its ending is the format (png, svg, pdf)."""
    if not nodes or len(nodes) > MOST:
        raise ValueError(
            f"manualgrad.dag: tape.draw has room for 1 to {MOST} nodes, there are {len(nodes)}; "
            f"record a part of the model, or give tape.to_dot() to Graphviz"
        )
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "manualgrad.dag: tape.draw needs matplotlib: pip install 'manualgrad[experiments]'; "
            "print(tape) and tape.to_dot() do without"
        ) from error
    file = pathlib.Path(path)
    if not file.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT,
            f"manualgrad.dag: tape.draw: there is no folder {str(file.parent)!r} to write to",
            str(file),
        )
    at, ways = places(nodes)
    xs = [x for _, x in at.values()] + [x for way in ways.values() for _, x in way]
    rows = 1 + max(row for row, _ in at.values())
    width, height = (max(xs) - min(xs) + 1.1) * WIDE, rows * HIGH + 0.5
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(min(xs) - 0.55, max(xs) + 0.55), ylim=(-0.5, rows))
    axes.set_axis_off()
    axes.text(min(xs) - 0.5, rows - 0.12, title, fontsize=8, va="top", color="#444444")
    _edges(axes, nodes, ways)
    _nodes(axes, nodes, at)
    kind = file.suffix.removeprefix(".") or "png"
    out = io.BytesIO()
    figure.savefig(out, format=kind, dpi=150)
    write_bytes(file, out.getvalue())


def _nodes(axes: Any, nodes: Sequence[Node], at: dict[int, tuple[int, float]]) -> None:
    for node in nodes:
        row, x = at[node.index]
        colour = VALUE if not node.is_leaf else LEAF if node.name == "input" else PARAMETER
        colour = END if node is nodes[-1] and not node.is_leaf else colour
        text = f"{node.name}  {'x'.join(map(str, node.shape)) or '1'}"
        if node.adjoint is not None:
            text += f"\n|adjoint| {norm(node.adjoint)}"
        box = {"boxstyle": "round,pad=0.35", "facecolor": colour, "edgecolor": "#555555", "lw": 0.7}
        axes.text(x, row, text, ha="center", va="center", fontsize=7.5, bbox=box, zorder=3)


def _edges(axes: Any, nodes: Sequence[Node], ways: dict) -> None:
    """One curve per pair of nodes; its label is what goes back along it, one number per use."""
    sent: dict[tuple[int, int], list[Tensor | None]] = {}
    for parent, _, node, adjoint in edges(nodes):
        sent.setdefault((parent.index, node.index), []).append(adjoint)
    sizes = {edge: _size(adjoints) for edge, adjoints in sent.items()}
    largest = max(sizes.values(), default=0.0) or 1.0
    for edge, way in ways.items():
        points = [(x, row) for row, x in way]
        share = max(sizes[edge] / largest, 1e-2)
        line = 0.6 + 1.2 * (2 + math.log10(share))  # two decades
        known = sent[edge][0] is not None
        axes.plot(
            *_curve(points), color=BACK if known else "#888888", lw=line, alpha=0.65, zorder=1
        )
        (x0, y0), (x1, y1) = points[0], points[1]
        arrow = {"arrowstyle": "-|>", "color": BACK, "lw": 0, "shrinkA": 0, "shrinkB": 0}
        if known:  # it points the way that the adjoint goes, down to the parent
            curve = [_between((x0, y0), (x1, y1), t) for t in (0.21, 0.34)]
            axes.annotate("", *curve, arrowprops=arrow, zorder=2)
            text = " + ".join(norm(a) for a in sent[edge])
            middle = (x0 + x1) / 2, (y0 + y1) / 2
            box = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none"}
            axes.text(*middle, text, ha="center", va="center", fontsize=6.5, color=BACK, bbox=box)


def _size(adjoints: Sequence[Tensor | None]) -> float:
    sizes = [torch.linalg.vector_norm(a.double()).item() for a in adjoints if a is not None]
    return sum(s for s in sizes if math.isfinite(s))


def _curve(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Upright at every point, an S between two."""
    curve = [_between(low, high, i / 12) for low, high in pairwise(points) for i in range(13)]
    return [x for x, _ in curve], [y for _, y in curve]


def _between(low: tuple[float, float], high: tuple[float, float], t: float) -> tuple[float, float]:
    (x0, y0), (x1, y1) = low, high
    return x0 + (x1 - x0) * t * t * (3 - 2 * t), y0 + (y1 - y0) * t
