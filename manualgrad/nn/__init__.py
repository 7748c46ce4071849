"""Modules: torch's parameter names, shapes, initialisation and state_dict, our backward pass."""

from manualgrad.nn.linear import Linear
from manualgrad.nn.mlp import MLP
from manualgrad.nn.residual import Residual

__all__ = ["MLP", "Linear", "Residual"]
