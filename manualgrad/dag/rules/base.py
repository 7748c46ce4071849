"""What the rules share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manualgrad.formula import HALF_TYPES


class Rule(Function):
    """An operation and what it sends back: forward, setup_context, backward.

    backward is written in differentiable operations, so that gradients have gradients.
    """

    generate_vmap_rule = True


def shape_of(operand: Any) -> torch.Size:
    """A number broadcasts as a tensor without dimensions."""
    return operand.shape if isinstance(operand, Tensor) else torch.Size(())


def summed(grad: Tensor, shape: Sequence[int]) -> Tensor:
    """The adjoint of an operand of this shape that was broadcast to grad's."""
    return grad if grad.shape == shape else grad.sum_to_size(shape)


def wide(tensor: Tensor) -> Tensor:
    """In float32, where sums of half types are taken."""
    return tensor.float() if tensor.dtype in HALF_TYPES else tensor
