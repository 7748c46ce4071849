"""One fused layer as a module."""

from typing import Any

import torch
from torch import Tensor, nn

from manualgrad import compat
from manualgrad.activations import activation_of
from manualgrad.functional import linear_act


class Linear(nn.Linear):
    """torch.nn.Linear with an activation: a = sigma(input W^T + b), backward by BP1-BP4.

    in_features, out_features: counts, >= 0. bias: learn b, or leave it out. device, dtype: of the
    parameters. activation: a name, a torch activation module such as nn.LeakyReLU(0.1), or a
    function such as F.gelu.

    weight (out_features, in_features) and bias (out_features,) are torch.nn.Linear's own, with the
    same initial values under the same seed and the same state_dict.

    forward: input (..., in_features) -> (..., out_features).
    Raises ValueError for an unknown name or a negative count, TypeError for another kind of object.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: Any = "identity",
    ) -> None:
        act = activation_of(activation, "nn.Linear")
        for name, value in (("in_features", in_features), ("out_features", out_features)):
            check_width("nn.Linear", name, value)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.activation = act

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = compat.weight_and_bias(self)
        return linear_act(input, weight, bias, self.activation)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}"


def check_width(call: str, name: str, value: Any) -> None:
    """Raise unless value is a number of features."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"manualgrad.{call}: {name} must be an int, got {value!r}")
    if value < 0:
        raise ValueError(f"manualgrad.{call}: {name} must be >= 0, got {value}")
