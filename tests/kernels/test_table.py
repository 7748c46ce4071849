"""The kernel rows of the one table of cases, with the kernels running: interpreted or compiled."""

import pytest
from cases import DEVICE

from manualgrad.backends import OPERATIONS
from manualgrad.verify.audit import judge
from manualgrad.verify.table import table

ROWS = [case for case in table() if case.operation in OPERATIONS]


@pytest.mark.parametrize("case", ROWS, ids=str)
def test_no_finding_and_nothing_left_out(kernels, case):
    report = judge(case, ("kernel",), DEVICE)
    assert report.passed, report
    assert not report.not_run, report
