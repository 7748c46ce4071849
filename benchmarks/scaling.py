"""Does the time of a step grow in proportion to rows and to parameters?"""

import itertools
import math

import torch
from tabulate import tabulate
from tqdm import tqdm

from benchmarks import pictures
from benchmarks.checking import arriving
from benchmarks.contest import OURS, RIGHT, checked, timed
from benchmarks.outcome import Outcome, Row, Settings
from benchmarks.problems import chain
from benchmarks.timing import quantiles

# beyond the overhead of calls: (rows, width), depth 4, by what is varied
SWEEPS = {
    "cpu": {
        "rows": [(n, 64) for n in (2048, 8192, 32768, 131072)],
        "parameters": [(512, n) for n in (256, 512, 1024, 2048)],
    },
    "cuda": {
        "rows": [(n, 512) for n in (1 << 14, 1 << 16, 1 << 18, 1 << 20)],
        "parameters": [(8192, n) for n in (1024, 2048, 4096, 8192)],
    },
}
BOUND = 0.1  # of a slope from 1


def run(settings: Settings) -> Outcome:
    found = [row for varied in ("rows", "parameters") for row in rows(settings.device, varied)]
    text = f"{tabulate(found, headers='keys', floatfmt='.3g')}\n\n{told(found)}"
    return Outcome(found, text, {"scaling": drawn(found)}, wrong(found))


def rows(device: str, varied: str) -> list[Row]:
    """Ours alone, both passes, float32: ms per number of rows, or per number of parameters."""
    found = []
    sweep = SWEEPS[device.split(":")[0]][varied]
    for count, width in tqdm(sweep, desc=f"scaling with {varied}", leave=False, disable=None):
        problem = chain(count, [width] * 5, "relu", torch.float32, device, width=width, depth=4)
        grad = arriving(problem)
        parameters = sum(p.numel() for p in problem.eager.parameters())
        row = {"varied": varied, **problem.about, "parameters": parameters, "provider": OURS}
        row |= checked({OURS: problem.ours}, problem, grad)[OURS]
        if row["check"] == RIGHT:
            spans = timed({OURS: problem.ours}, problem, grad, device, 15, 2.0)
            p20, median, p80 = quantiles(sorted(spans[OURS]["step"]))
            row |= {"step_ms": 1e3 * median, "step_p20_ms": 1e3 * p20, "step_p80_ms": 1e3 * p80}
        found.append(row)
    return found


def wrong(found: list[Row]) -> list[str]:
    return [
        f"{OURS} on rows {row['rows']}, width {row['width']}: {row['not timed']}"
        for row in found
        if row["check"] != RIGHT
    ]


def slope(found: list[Row], varied: str) -> float:
    """d log time / d log of what is varied, by least squares."""
    x, y = ([math.log(row[key]) for row in found] for key in (varied, "step_ms"))
    mean = sum(x) / len(x)
    square = sum((a - mean) ** 2 for a in x)
    return sum((a - mean) * b for a, b in zip(x, y, strict=True)) / square


def told(found: list[Row]) -> str:
    """A verdict per sweep, none where a check failed."""
    lines = []
    for varied in dict.fromkeys(row["varied"] for row in found):
        own = [row for row in found if row["varied"] == varied]
        if wrong(own):
            lines += [f"not timed: {reason}" for reason in wrong(own)]
            continue
        value = slope(own, varied)
        verdict = "shown" if abs(value - 1) <= BOUND else "not shown"
        each = ", ".join(f"{slope([*pair], varied):.2f}" for pair in itertools.pairwise(own))
        lines.append(
            f"{verdict}: time grows in proportion to {varied}, slope {value:.2f} from "
            f"{own[0][varied]} to {own[-1][varied]}; from one to the next: {each}"
        )
    return "\n".join(lines)


def drawn(found: list[Row]) -> bytes:
    """ms of a step over what is varied."""
    series = {}
    for varied in dict.fromkeys(row["varied"] for row in found):
        own = [row for row in found if row["varied"] == varied and "step_ms" in row]
        if own:
            series[varied] = ([row[varied] for row in own], [row["step_ms"] for row in own])
    x = " or ".join(dict.fromkeys(row["varied"] for row in found))
    return pictures.lines("Time of a step", series, x, "ms, forward and backward")
