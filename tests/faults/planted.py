"""What a planted fault is, and the right rule that most of them are copies of.

Every rule in the modules beside this one is right but for the thing that its name says; most are
mistakes that published libraries have made, and the numbers say which of the table in
docs/checking.md. Tensors come from fixed seeds: no fault is found, or missed, by luck.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


@dataclass
class Fault:
    """fn with its inputs; judges: who must report it; says: what some finding's text contains."""

    fn: Any
    inputs: tuple
    judges: set[str]
    says: str
    options: dict[str, Any] = field(default_factory=dict)


FAULTS: dict[str, Callable[[], Fault]] = {}
HAZARDS: dict[int, list[str]] = {}  # the numbers of docs/checking.md and the faults that show them


def planted(*hazards: int) -> Callable[[Callable[[], Fault]], Callable[[], Fault]]:
    def keep(make: Callable[[], Fault]) -> Callable[[], Fault]:
        FAULTS[make.__name__] = make
        for number in hazards:
            HAZARDS.setdefault(number, []).append(make.__name__)
        return make

    return keep


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


X, W, B = normal(5, 3), normal(4, 3, seed=1), normal(4, seed=2)
NUMERIC = {"finite differences", "adjoint"}
CONDUCT = {"conduct"}


class Layer(Function):
    """tanh(x W^T + b), right: what the faults are copies of."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        a = torch.tanh(F.linear(x, weight, bias))
        ctx.save_for_backward(x, weight, a)
        return a

    @staticmethod
    def delta(ctx, grad):
        a = ctx.saved_tensors[2]
        return grad * (1.0 - a * a)

    @classmethod
    def gradients(cls, ctx, delta):
        x, weight, _ = ctx.saved_tensors
        rows = delta.reshape(-1, delta.shape[-1])
        return delta @ weight, rows.T @ x.reshape(-1, x.shape[-1]), rows.sum(0)

    @staticmethod
    def backward(ctx, grad):
        return Layer.gradients(ctx, Layer.delta(ctx, grad))


def native(x, weight, bias):
    return torch.tanh(F.linear(x, weight, bias))


def layer(judges: set[str], says: str, backward: Callable, **options: Any) -> Fault:
    """A copy of Layer with another backward."""
    rule = type("Copy", (Layer,), {"backward": staticmethod(backward)})
    return Fault(rule, options.pop("inputs", (X, W, B)), judges, says, options)
