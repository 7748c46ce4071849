"""The one table of cases, walked: what `manualgrad check` asks on a user's machine is asked here."""

import pytest

from manualgrad.activations import ACTIVATIONS
from manualgrad.backends import OPERATIONS
from manualgrad.verify.audit import judge, rows
from manualgrad.verify.cases import table
from manualgrad.verify.report import JUDGES

TABLE = table()


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_no_finding(case):
    report = judge(case, JUDGES)
    assert report.passed, report


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
    assert any(c.skip for c in TABLE)


def test_every_judge_that_is_there_has_something_to_say():
    asked = {name for case in TABLE for name in case.judges}
    assert asked == set(JUDGES)


def test_the_quick_rows_are_rows_of_the_table_with_fewer_judges():
    quick, names = rows(True, None), {str(case): case for case in TABLE}
    assert 100 < len(quick) < len(TABLE) / 2
    for case in quick:
        assert set(case.judges) <= set(names[str(case)].judges)
    assert {case.dtype for case in rows(False, TABLE[0].dtype)} == {TABLE[0].dtype}
