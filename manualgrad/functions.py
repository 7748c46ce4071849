"""The autograd Functions: a chain of layers is one node, and its backward is BP1 to BP4.

One node, because BP2 spans two layers: cut at a^l, no node would hold both delta^{l+1} W^{l+1}
and sigma'(z^l), and their product would cost a pass of its own.

Gradients of gradients. Besides a^L the node returns, hidden from the caller, the s^l that backward
keeps. When backward itself is to be differentiated (create_graph=True) it runs on the reference
equations with the s^l as variables; the adjoint that this sends to a hidden s^l is added where s^l
was made, as any successor's is (eq. 13). Second and higher derivatives thus need no rule of their
own beyond sigma'', and no second forward pass. A graph that torch.compile traced has no second
derivatives: what it sends to a hidden s^l is zero, and ctx.traced says to leave that out.
"""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from manualgrad import backends, compat, composite, equations
from manualgrad import ops as operators
from manualgrad.activations import ACTIVATIONS, Activation
from manualgrad.differentiable import differentiable
from manualgrad.ops import backend_for

IDENTITY = ACTIVATIONS["identity"]


class LinearActFunction(Function):
    """a = sigma(x W^T + b), one layer: the four equations in a row."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, act: Activation, weight: Tensor, bias: Tensor | None):
        """x (M, K), weight (N, K), bias (N,) or None.  Returns (a,), or (a, z) if z is kept."""
        a, s = backend_for(x).linear_act_forward(x, weight, bias, act)
        return (a, s) if act.hides_z else (a,)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        x, ctx.act, weight, _ = inputs
        ctx.device, ctx.traced = output[0].device, torch.compiler.is_compiling()
        ctx.set_materialize_grads(False)
        needs_x, _, needs_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(
            x if needs_weight else None,
            weight if needs_x else None,
            None if ctx.act.is_identity else output[-1],
        )

    @staticmethod
    def backward(ctx: Any, grad_a: Tensor | None, grad_z: Tensor | None = None):
        if compat.any_autocast() and compat.autocast_dtype(ctx.device) is not None:
            with without_autocast(ctx):
                return LinearActFunction.backward(ctx, grad_a, grad_z)
        if ctx.traced:
            grad_z = None
        if grad_a is None and grad_z is None:
            return None, None, None, None
        act, (needs_x, _, needs_weight, needs_bias) = ctx.act, ctx.needs_input_grad
        x, weight, s = ctx.saved_tensors
        ops: ModuleType = equations
        if _to_be_differentiated():
            act = differentiable(act)
        else:
            ops = backend_for(s if grad_a is None else grad_a)
        grad_x = grad_weight = grad_bias = None
        delta = rows = grad_z
        if grad_a is not None:
            delta, rows = ops.bp1_output_error(grad_a, s, act)
            if grad_z is not None:
                delta = rows = delta + grad_z
        if needs_bias:
            grad_bias = ops.bp3_bias_gradient(rows, cast(Tensor, delta).dtype)
        if needs_x:  # the input is its own activation
            grad_x, _, _ = ops.bp2_propagate_error(delta, weight, x, IDENTITY, with_a=False)
        if needs_weight:
            grad_weight = ops.bp4_weight_gradient(delta, x)
        return grad_x, None, grad_weight, grad_bias


class Chain:
    """What a chain is besides its tensors.

    acts: acts[l] for l = 1..L; acts[0], the input's, is identity. depth: L.
    recompute: keep only the input and the parameters; backward walks forward once more.
    hides_top: z^L is a hidden output, because sigma' of the top layer is written in it.
    """

    __slots__ = ("acts", "depth", "hides_top", "recompute")

    def __init__(self, acts: tuple[Activation, ...], recompute: bool = False):
        self.acts, self.depth, self.recompute = acts, len(acts) - 1, recompute
        self.hides_top = acts[-1].hides_z

    def up_to(self, top: int) -> "Chain":
        """The layers 1..top as a chain whose output is s^top: z^top, if that is what is kept."""
        act = IDENTITY if self.acts[top].keeps == "z" else self.acts[top]
        return Chain((*self.acts[:top], act))


# MLPFunction's inputs, and so its gradients: x, chain, W^1, b^1, ..., W^L, b^L. W^l is number 2l.


def forward_pass(chain: Chain, x: Tensor, params: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Walks l = 1..L.  Returns (a^L, s^1, ..., s^{L-1}), and z^L last if the chain hides it."""
    ops, a, hidden = backend_for(x), x, []
    for l in range(1, chain.depth + 1):
        a, s = ops.linear_act_forward(a, params[2 * l - 2], params[2 * l - 1], chain.acts[l])
        hidden.append(s)
    if not chain.hides_top:
        hidden.pop()
    return a, *hidden


def backward_pass(ops: ModuleType, chain: Chain, grad_a, weights, s, needs, grad_s):
    """BP1 at the top, then BP3, BP2, BP4 per layer, down to the lowest tensor that needs it.

    weights W^1..W^L and s^0..s^L as kept_for_backward returns them; s is emptied on the way, so
    that each tensor dies once used. grad_s: the adjoints sent to the hidden s^1, s^2, ...
    Returns the gradients in the order of MLPFunction's inputs, None where ``needs`` is False.
    """
    grads: list[Tensor | None] = [None] * len(needs)
    lowest = lowest_needed(needs)
    nothing = grad_s.count(None) == len(grad_s)
    sent = {} if nothing else dict(enumerate(grad_s, start=1))  # sent[l]: to s^l, from outside
    delta, rows = ops.bp1_output_error(grad_a, s.pop(), chain.acts[-1])
    if sent.get(chain.depth) is not None:
        delta = rows = delta + sent[chain.depth]
    for l in range(chain.depth, 0, -1):
        act, s_below, a, below = chain.acts[l - 1], s.pop(), None, None
        if needs[2 * l + 1]:
            grads[2 * l + 1] = ops.bp3_bias_gradient(rows, delta.dtype)
        if l > lowest:
            skip = sent.get(l - 1)
            to_a, to_z = (skip, None) if act.keeps == "a" else (None, skip)
            below, rows, a = ops.bp2_propagate_error(
                delta, weights[l - 1], s_below, act, skip=to_a, with_a=needs[2 * l]
            )
            if to_z is not None:
                below = rows = below + to_z
        elif needs[2 * l]:
            a = ops.output(s_below, act)
        if needs[2 * l]:
            grads[2 * l] = ops.bp4_weight_gradient(delta, a)
        if below is None:
            return grads
        delta = below
    grads[0] = delta
    return grads


def lowest_needed(needs: Sequence[bool]) -> int:
    """The lowest layer with a tensor that needs a gradient; 0 if the input does."""
    return needs.index(True) // 2 if True in needs else len(needs)


def kept_for_backward(needs, x, chain: Chain, params, output) -> list[Tensor | None]:
    """W^1..W^L, s^0..s^L with s^0 = x; None for each that the gradients asked for do without.

    BP2 at layer l wants W^{l+1} and s^l, BP4 wants a^{l-1}; below the lowest layer nothing runs.
    """
    lowest, depth = lowest_needed(needs), chain.depth
    s = [x, *output[1:]]
    if not chain.hides_top:
        s.append(output[0])
    weights = [params[2 * l - 2] if l > lowest else None for l in range(1, depth + 1)]
    for l, act in enumerate(chain.acts):
        for_sigma_prime = l >= lowest and not act.is_identity
        for_weight = l < depth and needs[2 * l + 2]
        if not (for_sigma_prime or for_weight):
            s[l] = None
    return [*weights, *s]


class MLPFunction(Function):
    """sigma^L(... sigma^1(x W1^T + b1) ... WL^T + bL) as one node of the autograd graph."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, chain: Chain, *params: Tensor | None) -> tuple[Tensor, ...]:
        """x (M, K); params W1 (N1, K), b1 (N1,) or None, W2, b2, ...  Returns (a^L, hidden s)."""
        output = forward_pass(chain, x, params)
        return output[:1] if chain.recompute else output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        x, chain, *params = inputs
        ctx.chain, ctx.device = chain, output[0].device
        ctx.set_materialize_grads(False)
        if chain.recompute:
            ctx.save_for_backward(x, *params)
        else:
            needs = ctx.needs_input_grad
            ctx.save_for_backward(*kept_for_backward(needs, x, chain, params, output))

    @staticmethod
    def backward(ctx: Any, grad_a: Tensor | None, *grad_s: Tensor | None):
        if compat.any_autocast() and compat.autocast_dtype(ctx.device) is not None:
            with without_autocast(ctx):
                return MLPFunction.backward(ctx, grad_a, *grad_s)
        chain, needs = ctx.chain, ctx.needs_input_grad
        top = chain.depth  # the highest layer that an adjoint arrives at
        if grad_a is None:  # only hidden s^l were used, by a derivative of a derivative
            top = max((l for l, g in enumerate(grad_s, start=1) if g is not None), default=0)
            if top == 0 or not any(needs[: 2 * top + 2]):
                return (None,) * len(needs)
        saved = list(ctx.saved_tensors)
        compat.release_saved_tensors(ctx)
        if chain.recompute:
            chain = Chain(chain.acts)
            x, *params = saved
            again = mlp if _to_be_differentiated() else _forward_once_more
            saved = kept_for_backward(needs, x, chain, params, again(x, chain, *params))
            del x, params
        weights, s = saved[: chain.depth], saved[chain.depth : chain.depth + top + 1]
        del saved
        if grad_a is None:  # the walk begins at s^top, which is z^top or a^top
            chain, needs = chain.up_to(top), needs[: 2 * top + 2]
            grad_a, grad_s = cast(Tensor, grad_s[top - 1]), grad_s[: top - 1]
        ops: ModuleType = equations
        if _to_be_differentiated():
            chain = Chain(tuple(map(differentiable, chain.acts)))
        else:
            ops = backend_for(grad_a)
        grads = backward_pass(ops, chain, grad_a, weights, s, needs, grad_s)
        return *grads, *[None] * (len(ctx.needs_input_grad) - len(grads))


def without_autocast(ctx: Any) -> torch.autocast:
    """Backward computes in the dtypes of what forward kept, wherever it is called."""
    return torch.autocast(ctx.device.type, enabled=False)


def _to_be_differentiated() -> bool:
    """Gradients will have gradients of their own: they are computed by the reference equations."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _forward_once_more(x: Tensor, chain: Chain, *params: Tensor | None) -> tuple[Tensor, ...]:
    return forward_pass(chain, x, params)


def front_door(
    function: type[Function],
    composite: Callable[..., Any],
    in_graphs: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """function.apply, in the form that is sound where it is called.

    composite computes the same in PyTorch's own operations: for forward mode, wherever PyTorch
    gets a Function wrong, and for graphs under backend("torch"). in_graphs: what other graphs, of
    torch.compile and torch.export, hold instead of the Function; it must bring its own backward.

    Otherwise apply's Python prologue, a call of inspect.signature, is left out, but for torch.func,
    which needs it.
    """
    directly: Callable[..., Any] = getattr(super(Function, function), "apply")  # noqa: B009

    def apply(*inputs):
        compiling, transforms = torch.compiler.is_compiling(), compat.transforms_active()
        if compat.forward_mode() or (compiling and transforms) or compat.tracing_by_jit():
            return composite(*inputs)
        if compiling and in_graphs:
            return (composite if backends.mode() == "torch" else in_graphs)(*inputs)
        if compiling and torch.compiler.is_exporting():  # it would lose a Function's backward
            return composite(*inputs)
        return (function.apply if compiling or transforms else directly)(*inputs)

    return apply


operators.register_autograd(LinearActFunction)

# (x, act, weight, bias) -> (a, hidden z if any);  (x, chain, W1, b1, ...) -> (a^L, hidden s...)
linear_act = front_door(LinearActFunction, composite.linear_act, LinearActFunction.forward)
mlp = front_door(MLPFunction, composite.mlp, MLPFunction.forward)
