"""What an experiment says: tables, and a verdict for each claim, computed from thresholds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from experiments.statistics import Interval

SHOWN, NOT_SHOWN, OPPOSITE = "shown", "not shown", "opposite"


@dataclass(frozen=True)
class Table:
    """Rows under headers. note: how to read it, or what it was made with (the grid of rates)."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""

    def text(self, style: str = "simple") -> str:
        """style: "simple" for a screen, "github" for Markdown, "html"."""
        bar = "\\|" if style == "github" else "|"  # there a bar ends the cell
        headers = [header.replace("|", bar) for header in self.headers]
        rows = [[str(cell).replace("|", bar) for cell in row] for row in self.rows]
        return tabulate(rows, headers, tablefmt=style, disable_numparse=True)


@dataclass(frozen=True)
class Claim:
    """A claim, what was measured, and the verdict by the threshold.

    source: whose claim it is. paper: the number read there, or "-". threshold: what counts as
    shown, in words.
    """

    text: str
    source: str
    measured: str
    threshold: str
    verdict: str
    paper: str = "-"

    def __post_init__(self) -> None:
        if self.verdict not in (SHOWN, NOT_SHOWN, OPPOSITE):
            raise ValueError(f"Claim: verdict {self.verdict!r} is none of the three")


def more(value: Interval, than: float = 0.0) -> str:
    """Shown if the whole interval lies above, opposite if it lies below -than, or below 0."""
    return _verdict(value.low > than, value.high < min(-than, 0.0))


def less(value: Interval, than: float = 0.0) -> str:
    """Shown if the whole interval lies below, opposite if it lies above -than, or above 0."""
    return _verdict(value.high < than, value.low > max(-than, 0.0))


def within(value: float, low: float, high: float) -> str:
    """Shown from low to high, both included; there is no opposite."""
    return _verdict(low <= value <= high, False)


def held(shown: bool, opposite: bool = False) -> str:
    return _verdict(shown, opposite)


def _verdict(shown: bool, opposite: bool) -> str:
    return SHOWN if shown else OPPOSITE if opposite else NOT_SHOWN


def claims_table(claims: Sequence[Claim]) -> Table:
    headers = ["claim", "whose", "paper", "here", "shown if", "verdict"]
    rows = [[c.text, c.source, c.paper, c.measured, c.threshold, c.verdict] for c in claims]
    return Table("Verdicts", headers, rows)
