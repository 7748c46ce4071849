"""manualgrad.aten for whoever reads a tensor last: what is computed is written over it.

New memory costs more than a pass over it, in page faults. Two tensors are nobody else's, and that
is looked up each time. The gradient that arrives at a backward pass, where autograd holds it for
this pass alone (autograd itself adds the next one to such a gradient in place): BP1 writes delta^L
over it. And z^l, which a Function made and showed to nobody, once backward has taken it from a
graph that is not retained: BP2, which needs sigma'(z^l) and a^l = sigma(z^l), writes the latter
over it, and BP1 delta^L where it may not have the gradient. The numbers are manualgrad.aten's.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import BackwardCFunction

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


def bp1_output_error(
    grad_a: Tensor, s: Tensor, act: Activation, over: bool = False
) -> tuple[Tensor, Tensor]:
    """BP1, over grad_a if it may be, or else over s = z^L.  (M, N) each.  Returns (delta, rows)."""
    if act.is_identity or grad_a.dtype is not s.dtype or not (over or _last(s, act)):
        return aten.bp1_output_error(grad_a, s, act)
    into = grad_a if over else s
    delta = one_pass.kernels_of(act)[1](grad_a, s.detach(), into=into.detach())
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


def nobody_holds(ctx: Any, grad: Tensor | None) -> bool:
    """Whether the gradient that arrived at a Function's backward, which is the caller, is some
    size, on the CPU, and that pass's alone: no hook, no other node and no view has it."""
    if grad is None or grad.numel() < one_pass.CHECKED or torch.is_grad_enabled():
        return False
    if not isinstance(ctx, BackwardCFunction):  # a tape's, which holds what arrives
        return False
    if not (compat.readable(grad) and grad.is_contiguous()) or compat.followed():
        return False
    return compat.references(grad) in _alone()


class Arrival(Function):
    """x, and notes the references to the gradient that arrives, two calls below backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, notes: list[Any]) -> Tensor:
        ctx.notes = notes
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        _note(grad, ctx.notes)
        return grad, None


def _note(grad: Tensor, notes: list[Any]) -> None:
    notes.append(compat.references(grad))


@functools.cache
def _alone() -> set[Any]:
    """compat.references, two calls below backward, of gradients that nobody else holds: plain, and
    seen in another shape. None of them if those that other nodes are sent too look like them.
    """
    notes: list[Any] = []
    with torch.enable_grad():
        x = torch.ones(1, 2, device="cpu", requires_grad=True)
        plain, viewed = (lambda: Arrival.apply(x, notes)), (lambda: Arrival.apply(x, notes).view(2))
        for y in (plain(), viewed(), plain() + x, viewed() + x.view(2)):
            torch.autograd.grad((2.0 * y).sum(), x)
    alone, shared = set(notes[:2]), set(notes[2:])
    return set() if alone & shared else alone
