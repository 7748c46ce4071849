"""The one table of cases, walked: what `manualgrad check` asks on a user's machine is asked here.

Every row, before all its judges. Their slow questions are put to some of the rows, so that each is
asked of every activation, operation, dtype, layout, option, skip and sharing; --exhaustive puts all.
"""

from dataclasses import replace

import pytest
import torch
from selection import cover

from manualgrad import aten, small
from manualgrad.activations import ACTIVATIONS
from manualgrad.backends import OPERATIONS
from manualgrad.verify.audit import judge, rows
from manualgrad.verify.checking import CHECKS
from manualgrad.verify.report import JUDGES
from manualgrad.verify.table import table

TABLE = table()
SLOW = [
    "gradcheck",
    "undefined gradients",
    "batched gradients",
    "gradgradcheck",
    "forward mode",
    "forward over reverse",
    "second derivatives against differences",
    "torch.compile",
    "vmap and torch.func",
    "inputs of every layout",
    "output gradients of every layout",
    "batches of every shape",
    "values far out",
    "gradients far out",
]
JUDGE = {check.name: check.judge for check in CHECKS}


def hears(case, question):
    return JUDGE[question] in case.judges and question not in case.without


def matters(case):
    """What a slow question's answer may depend on. An activation's first place is enough."""
    yield from (case.activation.split("-")[0], case.layout, case.frozen, case.skip, case.dtype)
    yield from ((case.operation, part) for part in (case.dtype, case.layout, case.sharing))
    yield from ((case.operation, option) for option in (case.options, *case.options))
    yield case.skip, case.sharing, case.options


def slow_rows(question):
    """The rows that it is put to: others for each question, so that every row hears some."""
    rows = [case for case in TABLE if hears(case, question)]
    return cover(rows, matters, first=SLOW.index(question) * 3 % len(rows))


ASKED = {question: set(map(str, slow_rows(question))) for question in SLOW}


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_no_finding(case, exhaustive):
    left = [q for q in SLOW if str(case) not in ASKED[q] and not exhaustive]
    report = judge(replace(case, without=(*case.without, *left)), JUDGES)
    assert report.passed, report


@pytest.mark.parametrize("question", SLOW)
def test_a_slow_question_is_asked_of_everything(question):
    assert len(ASKED[question]) >= len(ACTIVATIONS)
    asked = [case for case in TABLE if str(case) in ASKED[question]]
    assert {c.activation.split("-")[0] for c in asked} >= set(ACTIVATIONS)
    operations = {c.operation for c in TABLE if hears(c, question)}
    assert {c.operation for c in asked} == operations


def test_the_table_has_no_row_twice_and_everything_in_it():
    names = [str(case) for case in TABLE]
    assert len(set(names)) == len(names)
    operations = {case.operation for case in TABLE}
    losses = {"mse_loss", "cross_entropy", "binary_cross_entropy_with_logits"}
    modules = {"nn.Linear", "nn.MLP", "nn.MLP.from_sequential"}
    assert operations == {"formulas", "linear_act", "mlp", *OPERATIONS, *losses, *modules}
    for operation in ("formulas", "linear_act", *OPERATIONS[:3]):
        assert {c.activation for c in TABLE if c.operation == operation} >= set(ACTIVATIONS)
    assert {c.layout for c in TABLE} == {"contiguous", "transposed"}
    assert {c.sharing for c in TABLE} == {"", "depth", "tied"}
    assert any(c.frozen for c in TABLE)
    assert {c.skip for c in TABLE} == {"", "around", "pre", "post", "out"}


def test_every_judge_that_is_there_has_something_to_say():
    asked = {name for case in TABLE for name in case.judges}
    assert asked == set(JUDGES)


def test_the_quick_rows_are_rows_of_the_table_with_fewer_judges():
    quick, names = rows(True, None), {str(case): case for case in TABLE}
    assert 100 < len(quick) < len(TABLE) / 2
    for case in quick:
        assert set(case.judges) <= set(names[str(case)].judges)
    assert {case.dtype for case in rows(False, TABLE[0].dtype)} == {TABLE[0].dtype}


def broken(operation, change):
    """An operation of ATen's backend with one result changed."""
    right = getattr(aten, operation)

    def wrong(*arguments, **keywords):
        return change(right(*arguments, **keywords))

    return wrong


CHANGES = {
    "BP1 a little off": ("bp1_output_error", lambda r: (r[0] * (1 + 1e-7), r[1])),
    "BP2 transposed signs": ("bp2_propagate_error", lambda r: (-r[0], r[1], r[2])),
    "BP2 without its last row": ("bp2_propagate_error", lambda r: (r[0].clone().index_fill_(0, torch.tensor(len(r[0]) - 1), 0.0), r[1], r[2])),
    "BP3 averaged": ("bp3_bias_gradient", lambda r: r / 5),
    "BP4 in float32": ("bp4_weight_gradient", lambda r: r.float().to(r.dtype)),
    "a clipped": ("linear_act_forward", lambda r: (r[0].clamp(max=0.5), r[1])),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["mlp gelu-tanh-gelu 5 float64", "mlp tanh-tanh-tanh 5 float64"])
def test_a_fault_in_the_library_itself_is_found(monkeypatch, not_small, change, name):
    operation, how = CHANGES[change]
    monkeypatch.setattr(aten, operation, broken(operation, how))
    (case,) = [c for c in TABLE if str(c) == name]
    report = judge(case, ("native", "adjoint", "oracle"))
    assert {"native", "oracle"} & {f.judge for f in report.findings}, report


@pytest.mark.parametrize("name", ["mlp gelu-tanh-gelu 5 float64", "mlp tanh-tanh-tanh 5 float64"])
@pytest.mark.parametrize("at", [0, 2, 3, 4, 6, 7])
def test_a_fault_in_small_chains_is_found(monkeypatch, name, at):
    """In the gradient of x, W^1, b^1, W^2, W^3 or b^3."""
    right = small.backward

    def wrong(*arguments):
        grads = list(right(*arguments))
        grads[at] = None if grads[at] is None else grads[at] * (1 + 1e-7)
        return tuple(grads)

    monkeypatch.setattr(small, "backward", wrong)
    (case,) = [c for c in TABLE if str(c) == name]
    report = judge(case, ("native", "adjoint", "oracle"))
    assert {"native", "oracle"} & {f.judge for f in report.findings}, report
