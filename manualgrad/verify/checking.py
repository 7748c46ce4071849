"""mg.check's work: the questions in order, put to one subject."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from manualgrad.verify import (  # noqa: F401  each adds its questions to CHECKS, in this order
    adjoint,
    arrivals,
    calls,
    devices,
    differences,
    engine,
    extremes,
    modes,
    native,
    seconds,
    unharmed,
)
from manualgrad.verify.callee import initialised
from manualgrad.verify.isolation import buffers_given_back, undisturbed
from manualgrad.verify.judges import CHECKS, Check, crash, put
from manualgrad.verify.report import FINDING, JUDGES, NOT_RUN, CheckReport, Outcome
from manualgrad.verify.settle import CannotRunError, settle
from manualgrad.verify.subject import Subject

RESULTS = (
    "results are looked for in tensors, and in lists, tuples and dicts of them; for another type "
    "pass a function that returns its tensors"
)


@dataclass(frozen=True)
class Settings:
    """How a check is run: by whom, from which seed, and what is tolerated besides the rule.

    without: questions that are left out, by name.
    """

    judges: Sequence[str]
    seed: int = 0
    atol: float = 0.0
    rtol: float = 0.0
    without: Sequence[str] = ()


def examine(fn: Any, inputs: tuple, params: Any, reference: Any, settings: Settings) -> CheckReport:
    """A report on fn: every question of the judges."""
    with undisturbed():
        fn, reference = initialised(fn, inputs), initialised(reference, inputs, "reference")
        with buffers_given_back((fn, reference, *inputs)):
            subject = Subject(fn, inputs, params, reference, settings.seed)
            try:
                outcomes, notes = _asked(subject, settings)
            finally:
                subject.callee.give_back()
    return CheckReport(subject.name, outcomes, notes)


def _asked(subject: Subject, settings: Settings) -> tuple[list[Outcome], list[str]]:
    questions = [c for judge in JUDGES for c in CHECKS if c.judge == judge in settings.judges]
    questions = [c for c in questions if c.name not in settings.without]
    try:
        notes = settle(subject)
    except (Exception, SystemExit) as error:
        text = str(error) if isinstance(error, CannotRunError) else crash(error)
        outcomes = [Outcome("conduct", "a call on the inputs given", FINDING, text)]
        reason = "fn does not run on the inputs given"
        outcomes += [Outcome(c.judge, c.name, NOT_RUN, reason) for c in questions]
        return outcomes, [RESULTS] if isinstance(error, CannotRunError) else []
    outcomes = []
    for check in with_progress(questions, subject.name):
        outcomes += put(check, subject, settings.atol, settings.rtol)
    return outcomes, notes


def with_progress(questions: Sequence[Check], name: str) -> Iterable[Check]:
    """A progress bar on a terminal once a check takes more than two seconds, if tqdm is there."""
    try:
        from tqdm import tqdm
    except ImportError:
        return questions
    return tqdm(questions, desc=name, leave=False, disable=None, delay=2.0)
