"""Rows looked up, entries chosen."""

from typing import Any

import torch
from torch import Tensor

from manualgrad.dag.rules.base import Rule, summed, wide


class Embedding(Rule):
    """Row i of a table for every index i: a row receives the sum over its uses (eq. 13).

    padding_idx: a row that is not learned; its adjoint is 0. None for no such row.
    """

    @staticmethod
    def forward(indices: Tensor, weight: Tensor, padding_idx: int | None) -> Tensor:
        rows = weight.index_select(0, indices.reshape(-1))
        return rows.reshape(*indices.shape, *weight.shape[1:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        indices, weight, ctx.padding_idx = inputs
        ctx.shape = weight.shape
        ctx.save_for_backward(indices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        (indices,) = ctx.saved_tensors
        count, *row = ctx.shape
        indices, sent = indices.reshape(-1), wide(grad).reshape(indices.numel(), *row)
        if ctx.padding_idx is not None:
            learned = (indices != ctx.padding_idx).reshape(-1, *[1] * len(row))
            sent = torch.where(learned, sent, 0.0)
        sums = sent.new_zeros(count, *row).index_add(0, indices, sent)
        return None, sums.to(grad.dtype), None


class Where(Rule):
    """x where the condition holds, else y: each receives the adjoint of what was taken from it."""

    @staticmethod
    def forward(condition: Tensor, x: Any, y: Any) -> Tensor:
        return torch.where(condition, x, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        condition, *branches = inputs
        ctx.shapes = [t.shape if isinstance(t, Tensor) else () for t in branches]
        ctx.save_for_backward(condition)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        (condition,) = ctx.saved_tensors
        x, y = ctx.shapes
        _, needs_x, needs_y = ctx.needs_input_grad
        grad_x = summed(torch.where(condition, grad, 0.0), x) if needs_x else None
        grad_y = summed(torch.where(condition, 0.0, grad), y) if needs_y else None
        return None, grad_x, grad_y
