"""manualgrad.aten for whoever reads the kept z^l last: what is computed is written over it.

New memory costs more than a pass over it, in page faults. z^l is made by a Function and shown to
nobody; once backward has taken it from a graph that is not retained, no other tensor shares its
memory, and that is looked up each time. BP1 then writes delta^L over z^L, and BP2, which needs
sigma'(z^l) and a^l = sigma(z^l), the latter over z^l. The numbers are those of manualgrad.aten.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from manualgrad import aten, compat, one_pass
from manualgrad.activations import Activation

A = torch.ops.aten
# sigma(z) over z, of what one_pass has for acts that keep z, and that needs no care for infinities
OVER_Z: dict[str, Callable[..., Any]] = {
    "elu": F.elu_,
    "selu": F.selu_,
    "celu": F.celu_,
    "silu of finite z": A.silu_.default,
    "mish of finite z": A.mish_.default,
    "hardswish of finite z": A.hardswish_.default,
    "gelu of finite z": A.gelu_.default,
    "gelu_tanh of finite z": functools.partial(A.gelu_.default, approximate="tanh"),
}


def bp1_output_error(grad_a: Tensor, s: Tensor, act: Activation) -> tuple[Tensor, Tensor]:
    """BP1, over s = z^L.  grad_a, s (M, N).  Returns (delta, rows)."""
    if not (_last(s, act) and grad_a.dtype is s.dtype):
        return aten.bp1_output_error(grad_a, s, act)
    delta = one_pass.kernels_of(act)[1](grad_a, s.detach(), into=s.detach())
    return delta, delta


def bp2_propagate_error(delta, weight, s, act, skip=None, with_a=True, skip_z=None):
    """BP2, and a^l over s = z^l.  Returns (delta^l, rows, a^l)."""
    below, rows, _ = aten.bp2_propagate_error(delta, weight, s, act, skip, False, skip_z)
    if not with_a:
        return below, rows, None
    over = OVER_Z.get(act.name)
    if over is None or not _last(s, act):
        return below, rows, aten.output(s, act)
    return below, rows, over(s.detach(), **dict(act.parameters))


def __getattr__(name: str) -> Any:
    """The other operations are aten's."""
    return getattr(aten, name)


def _last(s: Tensor, act: Activation) -> bool:
    """Whether s is a z^l of some size on the CPU that nobody else can read."""
    return (
        act.hides_z and s.numel() >= one_pass.CHECKED and compat.readable(s) and compat.held_once(s)
    )
