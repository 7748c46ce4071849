"""What a backward pass is asked for: which gradients, and whether those will have gradients."""

from typing import Any

import torch
from torch import Tensor

from manualgrad import compat
from manualgrad.listening import active as listening

MANY = 512  # examples


def asked_for(ctx: Any, grad_a: Tensor | None) -> tuple[bool, ...]:
    """Of which inputs a gradient is wanted; asked where not to know costs more than to ask.

    Of few examples whose x wants none, it is the rule that all parameters want theirs.
    """
    needs = ctx.needs_input_grad
    many = grad_a is not None and grad_a.shape[0] >= MANY
    if listening or not (needs[0] or many or to_be_differentiated()):
        return needs
    return compat.asked_for(ctx)


def to_be_differentiated() -> bool:
    """Gradients will have gradients of their own: they are computed by the reference equations."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()
