"""python -m benchmarks.report: the documents' tables of measurements, from the records beside this.

A table stands between two comments, <!-- measured: KIND FOLDER --> and <!-- end -->; FOLDER is one
of benchmarks/results. What was measured is then said once, and no figure is copied by hand.
"""

import json
import pathlib
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.contest import COMPILED, EAGER, OURS, OURS_COMPILED
from benchmarks.contests import CLOSE, name_of
from benchmarks.grid import GRID
from benchmarks.outcome import Row
from manualgrad.files import write_bytes

RESULTS = pathlib.Path(__file__).with_name("results")
ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
RIVALS = {EAGER: "step vs eager", COMPILED: "step vs compile"}
HALVES = ("float32", "bfloat16", "both")
MARKED = re.compile(
    r"(?P<start><!-- measured: (?P<kind>\w+) ?(?P<folder>\S*) -->\n).*?(?=<!-- end -->)", re.S
)


def record(folder: str, suite: str) -> dict[str, Any]:
    return json.loads((RESULTS / folder / f"{suite}.json").read_text())


def of_the_grid(folder: str) -> list[Row]:
    """The rows of the grid; those in bfloat16 from a later run in bfloat16/, if there is one."""
    rows: list[Row] = []
    for suite in GRID:
        own = record(folder, suite)["rows"]
        if (RESULTS / folder / "bfloat16" / f"{suite}.json").exists():
            own = [row for row in own if row["dtype"] != "bfloat16"]
            own += record(f"{folder}/bfloat16", suite)["rows"]
        rows += [{"suite": suite, **row} for row in own if "varied" not in row]
    return rows


def table(headers: Sequence[str], body: Iterable[Sequence[Any]]) -> str:
    """In Markdown, on lines no longer than they must be."""
    lines = [headers, ["---"] * len(headers), *body]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def ratio(value: float) -> str:
    return f"**{value:.2f}**" if value < CLOSE else f"{value:.2f}"


def ratios_of(rows: Sequence[Row], dtype: str, rival: str) -> list[float]:
    """The rival's time over ours, of each problem in dtype, or in both."""
    key = RIVALS[rival]
    chosen = [row for row in rows if row["provider"] == OURS and key in row]
    return [row[key] for row in chosen if dtype in ("both", row["dtype"])]


def machines(_: str) -> str:
    """A line per machine: geometric means, and what is lost."""
    body = []
    for folder in sorted(path.name for path in RESULTS.iterdir() if (path / "layer.json").exists()):
        about, rows = record(folder, "layer")["machine"], of_the_grid(folder)
        means = [
            " / ".join(f"{statistics.geometric_mean(ratios_of(rows, d, r)):.2f}" for r in RIVALS)
            for d in HALVES
        ]
        values = ratios_of(rows, "both", EAGER)
        lost = f"{sum(v < CLOSE for v in values)} of {len(values)}, worst {min(values):.2f}"
        body.append([about["device"], about["commit"], *means, lost])
    headers = ["CPU", "commit", *HALVES[:2], "all", f"below {CLOSE} of eager"]
    return table(headers, body)


def ratios(folder: str) -> str:
    """Ours against either rival, by dtype."""
    rows, body = of_the_grid(folder), []
    for rival in RIVALS:
        for dtype in HALVES:
            values = ratios_of(rows, dtype, rival)
            mean, lost = statistics.geometric_mean(values), sum(v < CLOSE for v in values)
            cells = [f"{mean:.3f}", f"{min(values):.2f}", f"{max(values):.2f}", lost]
            body.append([rival, dtype, len(values), *cells])
    headers = ["ours against", "dtype", "problems", "geometric mean", "worst", "best"]
    return table([*headers, f"below {CLOSE}"], body)


def _by_problem(rows: Sequence[Row]) -> Iterable[dict[str, Row]]:
    """Per problem: {provider: its row}."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        name = f"{row['suite']}: {name_of(row)}"
        found.setdefault(name, {})[row["provider"]] = row
    return found.values()


def _contests(rows: Sequence[Row]) -> str:
    body = []
    for of in _by_problem(rows):
        ours = of[OURS]
        body.append([
            f"{ours['suite']}: {name_of(ours)}",
            *(f"{of[p]['step_ms']:.2f}" for p in (EAGER, COMPILED, OURS, OURS_COMPILED)),
            *(ratio(ours[key]) for key in RIVALS.values()),
            f"{ours['step share of roofline']:.0%}",
            *(" / ".join(f"{of[p][key] / 2**20:.1f}" for p in (EAGER, OURS))
              for key in ("saved_bytes", "peak_bytes")),
        ])  # fmt: skip
    headers = ["problem", "eager ms", "torch.compile ms", "ours ms", "ours compiled ms"]
    headers += ["ours vs eager", "ours vs compile", "of the roofline"]
    return table([*headers, "kept MiB, eager / ours", "peak MiB, eager / ours"], body)


def problems(folder: str) -> str:
    """Every problem of the grid."""
    return _contests(of_the_grid(folder))


def models(folder: str) -> str:
    """Models before and after mg.patch."""
    return _contests([{"suite": "patch", **row} for row in record(folder, "patch")["rows"]])


def operations(folder: str) -> str:
    """The five operations, each by itself."""
    headers = ["operation", "dtype", "ms", "TFLOP/s", "of the roofline"]
    return table(headers, (
        [r["operation"], r["dtype"], f"{r['ms']:.2f}", f"{r['TFLOP/s']:.3f}",
         f"{r['share of roofline']:.0%}"] for r in record(folder, "equations")["rows"]
    ))  # fmt: skip


def second(folder: str) -> str:
    """Gradients of gradients: our time over eager's."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in record(folder, "second")["rows"]:
        size = f"{row['rows']} x {row['width']} x {row['layers']}"
        found.setdefault((row["problem"], size), {})[row["activation"]] = f"{row['ratio']:.2f}"
    names = list(dict.fromkeys(name for of in found.values() for name in of))
    body = ([*what, *(of[name] for name in names)] for what, of in found.items())
    return table(["problem", "rows x width x layers", *names], body)


def small(folder: str) -> str:
    """Small chains: our time over the rival's."""
    found: dict[tuple[int, str], list[str]] = {}
    for row in record(folder, "small")["rows"]:
        cells = found.setdefault((row["layers"], row["activation"]), [])
        cells += [f"{row['theirs_us']:.0f}", f"{row['ours_us']:.0f}", f"{row['ratio']:.2f}"]
    each = ["us", "ours us", "ratio"]
    headers = ["layers", "activation", *(f"{rival}: {h}" for rival in RIVALS for h in each)]
    return table(headers, ([*what, *cells] for what, cells in found.items()))


KINDS: dict[str, Callable[[str], str]] = {
    of.__name__: of for of in (machines, ratios, problems, models, operations, second, small)
}


def written(text: str) -> str:
    """A document with its tables as the records have them."""
    return MARKED.sub(lambda m: m["start"] + KINDS[m["kind"]](m["folder"]), text)


def main() -> None:
    for document in DOCUMENTS:
        text = document.read_text()
        if (new := written(text)) != text:
            write_bytes(document, new.encode())
            print(f"{document.relative_to(ROOT)} has new tables")


if __name__ == "__main__":
    main()
