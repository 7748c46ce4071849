"""A suite of contests: run, told as a table, and summed up by geometric means, losses included."""

import statistics
from collections.abc import Sequence

import torch
from tabulate import tabulate
from tqdm import tqdm

from benchmarks import grid, pictures, scaling
from benchmarks.contest import ABSENT, COMPILED, EAGER, OURS, OURS_COMPILED, WRONG, held
from benchmarks.outcome import Outcome, Row, Settings
from benchmarks.problems import PARTS, Problem

KNOWN = ("rows", "K", "N", "width", "depth", "activation", "model", "fused", "dtype")
ROUNDS, SECONDS = 25, 1.5  # of timing per problem, whichever ends first
QUICK = 7, 0.5
CLOSE = 0.97  # of eager's time: a ratio below is marked as a loss
SWEPT = {"chain": "parameters", "narrow": "rows"}  # what a suite's time must grow with


def run(suite: str, settings: Settings) -> Outcome:
    """Each problem of the suite, then how the time of its networks grows."""
    rows: list[Row] = []
    makes = grid.of(suite, settings.device, settings.dtypes, settings.quick)
    for make in tqdm(makes, desc=suite, leave=False, disable=None):
        try:
            problem = make()
        except ImportError as error:
            tqdm.write(f"{suite}: a problem is left out, {error}")
            continue
        rows += _rows(problem, settings)
    text = (
        f"{table(rows)}\n\n{summary(rows)}" if rows else "no problem in this dtype on this device"
    )
    images = drawn(suite, rows, settings) if rows else {}
    wrong = failures(rows)
    if suite in SWEPT and not settings.quick:
        swept = scaling.rows(settings.device, SWEPT[suite])
        text += f"\n\n{scaling.told(swept)}"
        rows = rows + swept
        images[f"{suite}-scaling"] = scaling.drawn(swept)
        wrong += scaling.wrong(swept)
    return Outcome(rows, text, images, wrong)


def _rows(problem: Problem, settings: Settings) -> list[Row]:
    """Of one problem: with its share of the roofline, or why it has none."""
    budget = QUICK if settings.quick else (ROUNDS, SECONDS)
    try:
        rows = held(problem, settings.device, *budget)
    except (torch.OutOfMemoryError, MemoryError) as error:
        why = f"out of memory: {str(error).splitlines()[0][:100] if str(error) else ''}"
        return [{**problem.about, "provider": "all", "check": ABSENT, "not timed": why}]
    for row in rows:
        for part in PARTS:
            if f"{part}_ms" not in row:
                continue
            (flops, traffic), seconds = problem.work[part], row[f"{part}_ms"] / 1e3
            row[f"{part} TFLOP/s"] = flops / seconds / 1e12
            row[f"{part} flops per byte"] = flops / traffic
            least = settings.ceilings.seconds(flops, traffic, row["dtype"])
            row[f"{part} share of roofline"] = least / seconds
    return rows


def failures(rows: Sequence[Row]) -> list[str]:
    """Who was wrong, and where ours did not run."""
    return [
        f"{row['provider']} on {name_of(row)}: {row['not timed']}"
        for row in rows
        if row["check"] == WRONG or (row["check"] == ABSENT and row["provider"] == OURS)
    ]


def name_of(row: Row) -> str:
    told = {key: row[key] for key in KNOWN if key in row}
    return ", ".join(f"{v}" if key in ("activation", "model", "dtype") else f"{key} {v}"
                     for key, v in told.items())  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """Of the whole step; a contestant without a time has its reason below."""
    headers = ["problem", "provider", "ms", "p20-p80", "fwd", "bwd", "vs eager", "vs compile"]
    headers += ["TFLOP/s", "roofline", "saved MiB", "peak MiB", "launches"]
    body, reasons, before = [], [], None
    for row in rows:
        name = name_of(row)
        cells: list[str] = ["" if name == before else name, row["provider"]]
        before = name
        if "not timed" in row:
            body.append(cells + ["-"] * (len(headers) - 2))
            reasons.append(f"not timed: {row['provider']}, {name}: {row['not timed']}")
            continue
        cells += [f"{row['step_ms']:.2f}", f"{row['step_p20_ms']:.2f}-{row['step_p80_ms']:.2f}"]
        cells += [f"{row['forward_ms']:.2f}", f"{row['backward_ms']:.2f}"]
        cells += [_ratio(row.get(f"step vs {rival}")) for rival in ("eager", "compile")]
        cells += [f"{row['step TFLOP/s']:.3f}", f"{row['step share of roofline']:.0%}"]
        cells += [f"{row[key] / 2**20:.1f}" for key in ("saved_bytes", "peak_bytes")]
        cells.append("-" if row["launches"] is None else str(row["launches"]))
        body.append(cells)
    return "\n".join([tabulate(body, headers, disable_numparse=True), *reasons])


def _ratio(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}{' LOSS' if value < CLOSE else ''}"


def summary(rows: Sequence[Row]) -> str:
    """Geometric means, how many problems are lost, and the worst of them."""
    body = []
    for provider in (OURS, OURS_COMPILED):
        for rival, name in (("eager", EAGER), ("compile", COMPILED)):
            key = f"step vs {rival}"
            own = [row for row in rows if row["provider"] == provider and key in row]
            for dtype in dict.fromkeys(row["dtype"] for row in own):
                chosen = [row for row in own if row["dtype"] == dtype]
                values = [row[key] for row in chosen]
                worst = min(chosen, key=lambda row: row[key])
                mean, lost = statistics.geometric_mean(values), sum(v < CLOSE for v in values)
                cells = [f"{mean:.3f}", f"{max(values):.2f}", _ratio(min(values)), name_of(worst)]
                body.append([provider, name, dtype, len(values), lost, *cells])
    headers = ["provider", "against", "dtype", "problems", f"below {CLOSE}"]
    headers += ["geometric mean", "best", "worst", "the worst problem"]
    return tabulate(body, headers, disable_numparse=True)


def drawn(suite: str, rows: Sequence[Row], settings: Settings) -> dict[str, bytes]:
    """The suite's pictures: ratios to eager, and a roofline per dtype."""
    timed = [row for row in rows if "not timed" not in row]
    names = list(dict.fromkeys(map(name_of, rows)))
    series: dict[str, dict[str, float]] = {}
    for row in timed:
        if row["provider"] != EAGER and "step vs eager" in row:
            series.setdefault(row["provider"], {})[name_of(row)] = row["step vs eager"]
    label = "time of eager / time, forward and backward (above 1: faster)"
    found = {suite: pictures.bars(suite, names, series, label, 1.0)}
    for dtype in settings.ceilings.flops:
        own = [row for row in timed if row["dtype"] == dtype]
        if own:
            image = pictures.roofline(own, settings.ceilings, dtype)
            found[f"{suite}-roofline-{dtype}"] = image
    return found
