"""One fused layer as a module."""

from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from manualgrad import compat, functions
from manualgrad.activations import Activation, activation_of
from manualgrad.functional import run


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
        if isinstance(bias, str) or callable(bias):  # true, and not what was meant
            raise TypeError(
                f"manualgrad.nn.Linear: bias must be True or False, got {bias!r}; an activation is "
                "passed by name, activation="
            )
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"manualgrad.nn.Linear: dtype must be a floating one, got {dtype}")
        super().__init__(int(in_features), int(out_features), bias, device, dtype)
        self.activation = act

    def forward(self, input: Tensor) -> Tensor:
        return run(
            "nn.Linear", functions.linear_act, input, self._activation, compat.weight_and_bias(self)
        )

    @property
    def activation(self) -> Activation:
        """sigma; set it to anything that the constructor takes."""
        return self._activation

    @activation.setter
    def activation(self, activation: Any) -> None:
        self._activation = activation_of(activation, "nn.Linear")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}"


def check_width(call: str, name: str, value: Any) -> None:
    """Raise unless value is a number of features."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"manualgrad.{call}: {name} must be an int, got {value!r}")
    if value < 0:
        raise ValueError(f"manualgrad.{call}: {name} must be >= 0, got {value}")
