"""Dag: does an engine that is not torch.autograd agree?

fn runs on the tape of manualgrad.dag, by hand-derived rules all the way down, in another traversal
that was written for reading. Where fn does something that has no rule the question is not asked.
"""

import functools
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from manualgrad import dag
from manualgrad.verify import tolerance
from manualgrad.verify.judges import NotRun, first_line, question
from manualgrad.verify.readings import Reading, compare
from manualgrad.verify.subject import Subject, duplicate

REFUSALS = ValueError, TypeError, RuntimeError, NotImplementedError
OURS = Path(__file__).parents[1]


@question("dag", "the explicit engine")
def explicit_engine(subject: Subject) -> Iterator[Reading]:
    if subject.random:
        raise NotRun("fn draws random numbers, for which there is no rule")
    point = subject.point
    run = subject.run(point)
    v = subject.output_gradients(run.outputs)
    try:
        adjoints = on_tape(subject, point, run.wrt, v)
    except Exception as error:  # no rule for it, or not to be recorded: the words say which
        if not isinstance(error, REFUSALS) and _raised_by_us(error):
            raise  # that is no refusal: it is broken
        raise NotRun(f"fn does not run on a tape: {first_line(error)}") from error
    moved = subject.moved_by_rounding(point, run, v=v).gradients
    for i, gradient, adjoint, by in zip(run.wrt, run.gradients, adjoints, moved, strict=True):
        allowed = tolerance.beside_rounding(adjoint, by, adjoint.dtype)
        yield compare(f"gradient of {subject.label(i)}, by a tape", gradient, adjoint, allowed)


def _raised_by_us(error: Exception) -> bool:
    """Whether it comes from a line of this library, not of fn's or torch's."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return Path(last.filename).is_relative_to(OURS)


def on_tape(
    subject: Subject, tensors: Sequence[Tensor], wrt: Sequence[int], v: Sequence[Tensor]
) -> list[Tensor]:
    """The adjoints of tensors number wrt: of sum_k <v_k, output k>, so that one start will do."""
    leaves = subject.leaves(tensors, wrt)
    with dag.record() as tape:
        for i in wrt:
            tape.watch(leaves[i])  # a leaf, even if fn does not use it
        outputs = subject(leaves)
        products = [dag.rules.mul(o, duplicate(g)) for o, g in zip(outputs, v, strict=True)]
        start = functools.reduce(dag.rules.add, map(dag.rules.sum, products))
    tape.backward(start)
    return [tape.adjoint(leaves[i]) for i in wrt]
