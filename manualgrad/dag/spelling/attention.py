"""Attention, in rules."""

import math
import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from manualgrad.dag import rules
from manualgrad.dag.recording import recorded, values_of
from manualgrad.dag.table import spells


@spells(F.scaled_dot_product_attention)
def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(scale Q K^T + mask) V, in that order; a mask is added, or True where it attends."""
    if dropout_p > 0 or enable_gqa:
        raise ValueError(
            "manualgrad.dag: attention has a rule without dropout and with one head per key; pass "
            "dropout_p=0 and enable_gqa=False"
        )
    if is_causal and attn_mask is not None:
        raise ValueError("manualgrad.dag: attention takes attn_mask or is_causal, not both")
    scores = rules.matmul(query, rules.transpose(key, -2, -1))
    scores = rules.scale(scores, 1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is None:
        return rules.matmul(rules.softmax(scores, -1), value)
    attends = values_of(attn_mask)
    attends = attends if attends.dtype == torch.bool else attends > -math.inf
    nothing = ~attends.any(-1, keepdim=True)  # of these rows torch makes zeros
    if attn_mask.dtype != torch.bool:
        scores = rules.add(scores, attn_mask)
    scores = rules.where(attends, scores, -math.inf)
    if not nothing.any():
        return rules.matmul(rules.softmax(scores, -1), value)
    weights = rules.softmax(rules.where(nothing, 0.0, scores), -1)
    return rules.matmul(rules.where(nothing, 0.0, weights), value)


def _recorded_inside(function: Any) -> Any:
    """torch's own Python function, which does not hand over itself: what it calls is recorded."""
    names = {**function.__globals__, "has_torch_function": lambda *_: False}
    return types.FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )


_torchs = _recorded_inside(F.multi_head_attention_forward)


@spells(F.multi_head_attention_forward, name="multi_head_attention")
def _multi_head_attention(*args: Any, **kwargs: Any) -> Any:
    """Projections, attention of every head, projection: torch's own text."""
    with recorded():
        return _torchs(*args, **kwargs)
