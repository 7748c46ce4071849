"""The judges' questions, and how one is asked: each ends as passed, as a finding, or as not run.

A question is a generator of readings, decorated with its judge and its name. It raises NotRun where
it cannot be asked; an exception out of fn is a finding, in the words of its traceback's last line.
"""

import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from manualgrad.verify.readings import Reading
from manualgrad.verify.report import FINDING, JUDGES, NOT_RUN, PASSED, Outcome

MOST = 8  # findings of one question that are told apart

Question = Callable[[Any], Iterable[Reading]]  # of a Subject, or of an Activation


class NotRun(Exception):  # noqa: N818  it is no error
    """A question that cannot be asked here; the message says why."""


@dataclass(frozen=True)
class Check:
    judge: str
    name: str
    ask: Question


CHECKS: list[Check] = []


def question(judge: str, name: str) -> Callable[[Question], Question]:
    """Decorator: the generator below is a question of this judge."""

    def keep(ask: Question) -> Question:
        CHECKS.append(Check(judge, name, ask))
        return ask

    return keep


def put(check: Check, subject: Any, atol: float = 0.0, rtol: float = 0.0) -> list[Outcome]:
    """Ask one question; no reading at all is not a pass. atol, rtol: tolerated besides."""
    readings: list[Reading] = []
    outcomes = []
    try:
        for reading in check.ask(subject):  # one by one: those before an exception count
            readings.append(reading.tolerating(atol, rtol))
    except NotRun as reason:
        outcomes.append(Outcome(check.judge, check.name, NOT_RUN, str(reason)))
    except (Exception, SystemExit) as error:  # fn may not end the process either
        readings.append(Reading(crash(error)))
    wrong = [r for r in readings if r.wrong]
    for r in wrong[:MOST]:
        more = f" (and {len(wrong) - MOST} more)" if r is wrong[:MOST][-1] and wrong[MOST:] else ""
        outcomes.append(
            Outcome(check.judge, check.name, FINDING, r.message + more, r.measured, r.allowed)
        )
    if readings and not wrong:
        worst = max(readings, key=lambda r: r.share)
        numbers = worst.measured, worst.allowed
        outcomes.append(Outcome(check.judge, check.name, PASSED, "", *numbers))
    if not outcomes:
        outcomes.append(Outcome(check.judge, check.name, NOT_RUN, "there is nothing to compare"))
    return outcomes


def crash(error: BaseException, whose: str = "fn") -> str:
    """The last line of a traceback, and where in the caller's code it was raised."""
    where = ""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        inside = path.is_relative_to(_TORCH) or path.is_relative_to(_HERE)
        if not inside and "<" not in frame.filename:
            where = f" ({path.name}:{frame.lineno}, in {frame.name})"
    return f"{whose} raised {first_line(error)}{where}"


def first_line(error: BaseException) -> str:
    """An exception as a traceback's last line shows it, its message cut after its first line."""
    lines = str(error).strip().splitlines() or [""]
    text = lines[0] if len(lines[0]) <= 160 else lines[0][:157] + "..."
    return f"{type(error).__name__}: {text}".rstrip(": ")


_TORCH = Path(torch.__file__).parent
_HERE = Path(__file__).parent


def refusal(call: str, reasons: Sequence[tuple[str, BaseException]]) -> NotRun:
    """NotRun for several things that fn said no to, those of the same words together."""
    groups: dict[str, list[str]] = {}
    for what, error in reasons:
        groups.setdefault(first_line(error), []).append(what)
    return NotRun(f"{call} " + "; ".join(f"{' and '.join(w)}: {why}" for why, w in groups.items()))


def chosen(only: Any) -> tuple[str, ...]:
    """The judges that ``only`` names; all of them for None."""
    if only is None:
        return JUDGES
    if not isinstance(only, (str, Iterable)):
        raise TypeError(f"manualgrad.check: only must name judges, got {only!r:.80}")
    names = [only] if isinstance(only, str) else list(only)
    known = {judge.replace(" ", "_"): judge for judge in JUDGES}
    picked = []
    for name in names:
        judge = known.get(str(name).strip().lower().replace(" ", "_").replace("-", "_"))
        if judge is None:
            raise ValueError(
                f"manualgrad.check: there is no judge {name!r}; there are {', '.join(JUDGES)}"
            )
        picked.append(judge)
    if not picked:
        raise ValueError("manualgrad.check: only is empty; name a judge, or leave it out")
    return tuple(picked)
