"""manualgrad: hand-derived backward passes for PyTorch, right, fast and readable.

Read ``manualgrad.equations`` first.
"""

import importlib
from typing import TYPE_CHECKING, Any

from manualgrad import nn
from manualgrad._version import __version__
from manualgrad.activations import activations
from manualgrad.activations import register as register_activation
from manualgrad.backends import backend
from manualgrad.capture import capture
from manualgrad.chain import Skip
from manualgrad.explanation import explain
from manualgrad.functional import linear_act, mlp
from manualgrad.losses import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from manualgrad.nn.patch import patch, unpatch
from manualgrad.tuning import tune
from manualgrad.verify import check

if TYPE_CHECKING:
    from manualgrad import dag

__all__ = [
    "Skip",
    "__version__",
    "activations",
    "backend",
    "binary_cross_entropy_with_logits",
    "capture",
    "check",
    "cross_entropy",
    "dag",
    "explain",
    "linear_act",
    "mlp",
    "mse_loss",
    "nn",
    "patch",
    "register_activation",
    "tune",
    "unpatch",
]


def __getattr__(name: str) -> Any:
    """mg.dag is imported when it is asked for."""
    if name == "dag":
        return importlib.import_module("manualgrad.dag")
    raise AttributeError(f"module 'manualgrad' has no attribute {name!r}")
