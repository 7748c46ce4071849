"""Reverse mode by hand on any graph: an explicit tape, hand-derived rules, summed adjoints.

    with mg.dag.record() as tape:
        y = model(tape.watch(x))
    tape.backward(y)
    tape.adjoint(x)

The rules are autograd Functions (mg.dag.rules, and those of manualgrad.functions and losses). The
tape runs their own forward, setup_context and backward; torch.autograd is never called.
"""

from manualgrad.dag import rules
from manualgrad.dag import spelling as _  # noqa: F401  fills the table
from manualgrad.dag.node import Node
from manualgrad.dag.recording import apply, through_autograd
from manualgrad.dag.table import NoRuleError, operations
from manualgrad.dag.tape import Tape, record

__all__ = [
    "NoRuleError",
    "Node",
    "Tape",
    "apply",
    "operations",
    "record",
    "rules",
    "through_autograd",
]
