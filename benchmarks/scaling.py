"""Does the time of a step grow in proportion to rows and to parameters?"""

import math
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.contest import OURS, output, timed
from benchmarks.problems import chain

ROWS = (2048, 8192, 32768, 131072)  # at width 64, depth 4
WIDTHS = (256, 512, 1024, 2048)  # at 512 rows, depth 4
BOUND = 0.1  # of a slope from 1


def rows(device: str) -> list[dict[str, Any]]:
    """Ours alone, both passes, float32: ms per number of rows, and per number of parameters."""
    found = []
    sweeps = [("rows", n, 64) for n in ROWS] + [("parameters", 512, n) for n in WIDTHS]
    for varied, count, width in tqdm(sweeps, desc="scaling", leave=False, disable=None):
        problem = chain(count, [width] * 5, "relu", torch.float32, device)
        grad = torch.randn_like(output(problem.eager(*problem.inputs)))
        seconds = timed({OURS: problem.ours}, problem, grad, device, 15, 2.0)
        parameters = sum(p.numel() for p in problem.eager.parameters())
        found.append(
            {
                **{"varied": varied, "rows": count, "width": width, "parameters": parameters},
                "ms": 1e3 * seconds.quantile(OURS, "both", 0.5),
            }
        )
    return found


def slope(found: list[dict[str, Any]], varied: str) -> float:
    """d log time / d log of what is varied, by least squares."""
    own = [row for row in found if row["varied"] == varied]
    x, y = ([math.log(row[key]) for row in own] for key in (varied, "ms"))
    mean = sum(x) / len(x)
    square = sum((a - mean) ** 2 for a in x)
    return sum((a - mean) * b for a, b in zip(x, y, strict=True)) / square


def told(found: list[dict[str, Any]]) -> str:
    lines = []
    for varied in ("rows", "parameters"):
        value = slope(found, varied)
        verdict = "shown" if abs(value - 1) <= BOUND else "not shown"
        lines.append(f"{verdict}: time grows in proportion to {varied}, slope {value:.2f}")
    return "\n".join(lines)
