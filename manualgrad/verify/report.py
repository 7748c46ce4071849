"""What was checked, what was found, and what could not be asked."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from manualgrad.tables import table, wrapped

JUDGES = (
    "oracle",
    "symbolic",
    "native",
    "finite differences",
    "adjoint",
    "kernel",
    "dag",
    "conduct",
)
MOST = 20  # findings that are printed in full
PASSED, FINDING, NOT_RUN = "passed", "finding", "not run"


@dataclass(frozen=True)
class Outcome:
    """One question to one judge.

    status: "passed", "finding" or "not run". message: what is wrong and where, or why it was not
    asked. measured, allowed: the error that came closest to (or went beyond) what it may be; None
    where the answer is no number.
    """

    judge: str
    case: str
    status: str
    message: str = ""
    measured: float | None = None
    allowed: float | None = None


class CheckReport:
    """The outcomes of a check. Prints as a table; true if nothing was found and something ran."""

    def __init__(self, name: str, outcomes: Sequence[Outcome], notes: Sequence[str] = ()):
        self.name, self.outcomes, self.notes = name, list(outcomes), list(notes)

    @property
    def findings(self) -> list[Outcome]:
        return [o for o in self.outcomes if o.status == FINDING]

    @property
    def not_run(self) -> list[Outcome]:
        """What could not be asked, each with its reason in ``message``."""
        return [o for o in self.outcomes if o.status == NOT_RUN]

    @property
    def passed(self) -> bool:
        return not self.findings and any(o.status == PASSED for o in self.outcomes)

    def __bool__(self) -> bool:
        return self.passed

    @property
    def verdict(self) -> str:
        """One line: what was found, out of how much."""
        ran = len({(o.judge, o.case) for o in self.outcomes if o.status != NOT_RUN})
        left = f"; {len(self.not_run)} not run" if self.not_run else ""
        if not ran:
            return f"{self.name}: nothing could be checked{left}"
        if self.findings:
            who = ", ".join(sorted({f.judge for f in self.findings}, key=JUDGES.index))
            many = len(self.findings)
            return f"{self.name}: {many} finding{'s' * (many > 1)} in {ran} checks, by {who}{left}"
        return f"{self.name}: no finding in {ran} checks{left}"

    def summary(self) -> list[tuple[Any, ...]]:
        """A row per judge: its name, checks, passed, findings, not run, and its closest call.

        A check may be passed in part and not run in part, or have several findings.
        """
        rows = []
        for judge in JUDGES:
            mine = [o for o in self.outcomes if o.judge == judge]
            counts = [sum(o.status == s for o in mine) for s in (PASSED, FINDING, NOT_RUN)]
            if mine:
                rows.append((judge, len({o.case for o in mine}), *counts, closest_call(mine)))
        return rows

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a row per outcome: judge, case, status, message, numbers."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(
                "manualgrad.check: to_dataframe needs pandas; pip install manualgrad[check]"
            ) from error
        columns = list(Outcome.__dataclass_fields__)
        return pd.DataFrame([asdict(o) for o in self.outcomes], columns=columns)

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists; a number that JSON has no word for is a string."""
        outcomes = [{key: _plain(value) for key, value in asdict(o).items()} for o in self.outcomes]
        return {
            "name": self.name,
            "passed": self.passed,
            "verdict": self.verdict,
            "notes": self.notes,
            "outcomes": outcomes,
        }

    def __str__(self) -> str:
        headers = ("judge", "checks", "passed", "findings", "not run", "closest call")
        parts = [table(self.summary(), headers)] if self.outcomes else []
        for i, f in enumerate(self.findings[:MOST], start=1):
            lines = [wrapped(f"{i}. {f.judge}, {f.case}: {f.message}", "   ")]
            if f.measured is not None and f.allowed is not None:
                lines.append(f"   measured {f.measured:.2e}, allowed {f.allowed:.2e}")
            parts.append("\n".join(lines))
        if self.findings[MOST:]:
            parts.append(f"... and {len(self.findings) - MOST} more findings")
        if self.not_run:
            lines = [wrapped(f"- {line}", "  ") for line in self._reasons()]
            parts.append("\n".join(["Not run:", *lines]))
        parts += [wrapped(f"Note: {note}", "  ") for note in self.notes]
        return "\n\n".join([*parts, self.verdict])

    __repr__ = __str__

    def _reasons(self) -> list[str]:
        """Why what was not run was not run: a line per reason, with who was stopped by it."""
        reasons: dict[str, list[str]] = {}
        for o in self.not_run:
            question = o.case.rpartition(": ")[2]
            reasons.setdefault(o.message, []).append(f"{o.judge}, {question}")
        lines = []
        for why, who in reasons.items():
            names = list(dict.fromkeys(who))
            times = f" ({len(who)} times)" if len(who) > len(names) else ""
            lines.append(f"{'; '.join(names)}{times}: {why}")
        return lines


def closest_call(outcomes: Sequence[Outcome]) -> str:
    """The largest share of what an error may be that one reached, and where."""
    shares = [(_share(o), o.case) for o in outcomes if o.status != NOT_RUN and o.allowed]
    if not shares:
        return ""
    share, case = max(shares)
    return f"{share:.0%} of allowed: {case}" if share < 10 else f"over 10 times: {case}"


def _share(outcome: Outcome) -> float:
    measured, allowed = outcome.measured, outcome.allowed
    if measured is None or not allowed:
        return 0.0
    return math.inf if math.isnan(measured) else measured / allowed


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
