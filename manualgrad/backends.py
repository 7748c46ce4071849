"""Which module computes the five operations."""

from types import ModuleType

import torch

from manualgrad import aten

OPERATIONS = (
    "linear_act_forward",
    "bp1_output_error",
    "bp2_propagate_error",
    "bp3_bias_gradient",
    "bp4_weight_gradient",
)


def backend_for(tensor: torch.Tensor) -> ModuleType:
    """The module whose OPERATIONS run on ``tensor``."""
    return aten
