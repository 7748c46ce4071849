"""A suite of contests: run, told as a table, and summed up by geometric means, losses included."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from tabulate import tabulate
from tqdm import tqdm

from benchmarks import pictures, suites
from benchmarks.ceilings import Ceilings
from benchmarks.contest import COMPILED, EAGER, OURS, OURS_COMPILED, held

Row = dict[str, Any]
KNOWN = ("rows", "K", "N", "width", "depth", "activation", "model", "fused", "dtype")
ROUNDS, SECONDS = 25, 2.5  # of timing per problem, whichever ends first
QUICK = 7, 0.5
CLOSE = 0.97  # of eager's time: a ratio below is marked as a loss


def run(
    suite: str, device: str, dtypes: tuple[torch.dtype, ...], quick: bool, ceilings: Ceilings
) -> list[Row]:
    """The rows of each problem of the suite."""
    found: list[Row] = []
    makes = suites.of(suite, device, dtypes, quick)
    for make in tqdm(makes, desc=suite, leave=False, disable=None):
        try:
            problem = make()
        except ImportError as error:
            tqdm.write(f"{suite}: left out, {error}")
            continue
        for row in held(problem, device, *(QUICK if quick else (ROUNDS, SECONDS))):
            if "both_ms" in row and math.isfinite(problem.flops):
                seconds, flops = row["both_ms"] / 1e3, 3 * problem.flops
                least = ceilings.seconds(flops, problem.traffic, row["dtype"])
                row["TFLOP/s"] = flops / seconds / 1e12
                row["flops per byte"] = flops / problem.traffic
                row["share of roofline"] = least / seconds
            found.append(row)
    return found


def name_of(row: Row) -> str:
    told = {key: row[key] for key in KNOWN if key in row}
    return ", ".join(f"{v}" if key in ("activation", "model", "dtype") else f"{key} {v}"
                     for key, v in told.items())  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    headers = ["problem", "provider", "ms", "p20-p80", "fwd", "bwd", "vs eager", "vs compile"]
    headers += ["TFLOP/s", "roofline", "saved MiB", "peak MiB", "launches"]
    body, before = [], None
    for row in rows:
        name = name_of(row)
        cells: list[str] = ["" if name == before else name, row["provider"]]
        before = name
        if "not timed" in row:
            body.append([*cells, f"not timed: {row['not timed']}"])
            continue
        cells += [f"{row['both_ms']:.2f}", f"{row['p20_ms']:.2f}-{row['p80_ms']:.2f}"]
        cells += [f"{row['forward_ms']:.2f}", f"{row['backward_ms']:.2f}"]
        cells += [_ratio(row.get(f"both vs {rival}")) for rival in ("eager", "compile")]
        cells += [f"{row[k]:.{n}f}" if k in row else "-" for k, n in (("TFLOP/s", 3),)]
        cells.append(f"{row['share of roofline']:.0%}" if "share of roofline" in row else "-")
        cells += [f"{row[key] / 2**20:.1f}" for key in ("saved_bytes", "peak_bytes")]
        cells.append("-" if row["launches"] is None else str(row["launches"]))
        body.append(cells)
    return tabulate(body, headers, disable_numparse=True)


def _ratio(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}{' LOSS' if value < CLOSE else ''}"


def ratios(rows: Sequence[Row], provider: str, rival: str, dtype: str | None = None) -> list[float]:
    """Time of the rival over the provider's, forward and backward, of each problem of both."""
    key = f"both vs {rival}"
    chosen = [row for row in rows if row["provider"] == provider and key in row]
    return [row[key] for row in chosen if dtype is None or row["dtype"] == dtype]


def summary(rows: Sequence[Row]) -> str:
    """Geometric means, the worst problem, and how many are lost."""
    body = []
    for provider in (OURS, OURS_COMPILED):
        for rival in ("eager", "compile"):
            for dtype in dict.fromkeys(row["dtype"] for row in rows):
                own = ratios(rows, provider, rival, dtype)
                if own:
                    mean = statistics.geometric_mean(own)
                    lost = sum(value < CLOSE for value in own)
                    cells = [f"{mean:.3f}", f"{min(own):.2f}", f"{max(own):.2f}"]
                    name = COMPILED if rival == "compile" else EAGER
                    body.append([provider, name, dtype, len(own), *cells, lost])
    headers = ["provider", "against", "dtype", "problems", "geometric mean", "worst", "best"]
    return tabulate(body, [*headers, f"below {CLOSE}"], disable_numparse=True)


def drawn(suite: str, rows: Sequence[Row], ceilings: Ceilings) -> dict[str, bytes]:
    """The suite's pictures."""
    names = list(dict.fromkeys(map(name_of, rows)))
    found = {suite: pictures.ratios(suite, list(rows), names, "eager")}
    for dtype in ceilings.flops:
        own = [row for row in rows if row["dtype"] == dtype and "TFLOP/s" in row]
        if own:
            found[f"{suite}-roofline-{dtype}"] = pictures.roofline(own, ceilings, dtype)
    return found
