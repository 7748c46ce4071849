"""The five operations of manualgrad.equations as Triton kernels, under the same names.

Installed as ``manualgrad.triton_kernels``: the import name ``triton_kernels`` is Triton's own.
Imports torch and triton, never manualgrad: an activation is anything with plain functions sigma
and sigma_prime, and with is_identity, keeps and hides_z. Read bp2.py first.

Matrices are plain 2-D tensors on one device, of one dtype out of float64, float32, float16 and
bfloat16, in any layout, and not empty: that the caller sees to. Shapes that do not fit are a
ValueError. Beyond the five: ``sigma_pass`` and
``sigma_prime_pass``, the elementwise halves alone, for use behind another library's product, and
``narrow_forward`` and ``narrow_backward``, a narrow chain in a kernel each (narrow.py).
"""

from . import launch
from .bp1 import bp1_output_error, sigma_prime_pass
from .bp2 import bp2_propagate_error
from .bp3 import bp3_bias_gradient
from .bp4 import bp4_weight_gradient
from .device_math import untranslatable
from .forward import linear_act_forward, output, sigma_pass
from .narrow_launch import Layer, narrow_backward, narrow_forward
from .narrow_launch import problem as narrow_problem
from .operands import describable

__all__ = [
    "Layer",
    "bp1_output_error",
    "bp2_propagate_error",
    "bp3_bias_gradient",
    "bp4_weight_gradient",
    "describable",
    "launch",
    "linear_act_forward",
    "narrow_backward",
    "narrow_forward",
    "narrow_problem",
    "output",
    "sigma_pass",
    "sigma_prime_pass",
    "untranslatable",
]
