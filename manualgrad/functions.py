"""The autograd Functions: a chain of layers is one node, and its backward is BP1 to BP4.

One node, because BP2 spans two layers: cut at a^l, no node would hold both delta^{l+1} W^{l+1}
and sigma'(z^l), and their product would cost a pass of its own.

Gradients of gradients. Besides a^L the node returns, hidden from the caller, the s^l (and some a^l)
that backward keeps. When backward itself is to be differentiated (create_graph=True) it runs on the
reference equations with those as variables; the adjoint that this sends to a hidden s^l is added
where s^l was made, as any successor's is (eq. 13). Second and higher derivatives thus need no rule
of their own beyond sigma'', and no second forward pass, but for chains whose node returns a^L
alone: those with recompute, narrow ones on a GPU, and small ones on a CPU. A graph that
torch.compile traced has no second derivatives: what it sends to a hidden s^l is zero, and
ctx.traced says to leave that out.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from manualgrad import (
    aten,
    compat,
    composite,
    differentiable,
    in_place,
    narrow,
    one_pass,
    small,
    tiling,
)
from manualgrad import ops as operators
from manualgrad.activations import Activation
from manualgrad.asking import asked_for, to_be_differentiated
from manualgrad.chain import Chain, merged, shares
from manualgrad.front_door import front_door, without_prologue
from manualgrad.keeping import kept_for_backward, unpacked
from manualgrad.listening import active as listening
from manualgrad.listening import noting
from manualgrad.ops import backend_for
from manualgrad.walks import IDENTITY, Adjoints, backward_pass


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
        ctx.untouched = compat.saved_untouched()
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
            with without_autocast(ctx.device):
                return LinearActFunction.backward(ctx, grad_a, grad_z)
        if ctx.traced:
            grad_z = None
        if grad_a is None and grad_z is None:
            return None, None, None, None
        over = not listening and in_place.nobody_holds(ctx, grad_a)
        act, (needs_x, _, needs_weight, needs_bias) = ctx.act, asked_for(ctx, grad_a)
        x, weight, s = ctx.saved_tensors
        compat.release_saved_tensors(ctx)
        ops: ModuleType = differentiable
        if not to_be_differentiated():
            ops = backend_for(s if grad_a is None else grad_a)
            if ops is aten and ctx.untouched:
                ops = in_place
        grad_x = grad_weight = grad_bias = None
        delta = rows = grad_z
        if grad_a is not None:
            options = {"over": over} if ops is in_place else {}
            delta, rows = ops.bp1_output_error(grad_a, s, act, **options)
            if grad_z is not None:
                delta = rows = delta + grad_z
        del s, grad_z  # their memory is BP2's and BP4's now
        if needs_weight:
            grad_weight = ops.bp4_weight_gradient(delta, x)
        if needs_bias:
            grad_bias = ops.bp3_bias_gradient(rows, cast(Tensor, delta).dtype)
        if listening and not compat.transforms_active() and not ctx.traced:
            needs = needs_x, needs_weight, needs_bias
            noting(ctx, needs)(0, 1, delta, x)
        if needs_x:  # the input is its own activation
            frugal = getattr(ops, "bp2_frugal", None)
            if frugal is None:
                grad_x, _, _ = ops.bp2_propagate_error(delta, weight, x, IDENTITY, with_a=False)
            else:  # delta may be autograd's, or a capture's
                over = over or not (listening or grad_a is None or delta is grad_a)
                grad_x, _, _ = frugal(delta, weight, x, IDENTITY, over, at_peak=True)
        return grad_x, None, grad_weight, grad_bias


# MLPFunction's inputs, and so its gradients: x, chain, then the chain's tensors, W^1, b^1, ...,
# W^L, b^L and the scales of skips; where several places share a tensor, each tensor once.


class MLPFunction(Function):
    """sigma^L(... sigma^1(x W1^T + b1) ... WL^T + bL), and skips, as one node of the graph."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, chain: Chain, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        """x (M, K); tensors W1 (N1, K), b1 (N1,) or None, ...  Returns (a^L, hidden ones)."""
        return walked_forward(chain, x, tensors, hidden=not chain.recompute)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        x, chain, *tensors = inputs
        ctx.chain, ctx.device = chain, output[0].device
        ctx.finite, ctx.untouched = chain.finite, compat.saved_untouched()
        ctx.set_materialize_grads(False)
        if chain.recompute:
            ctx.save_for_backward(x, *tensors)
        else:
            needs_x, _, *needs = ctx.needs_input_grad
            kept = kept_for_backward(chain, x, tensors, output, (needs_x, *needs))
            ctx.save_for_backward(*kept)

    @staticmethod
    def backward(ctx: Any, grad_a: Tensor | None, *grad_hidden: Tensor | None):
        if compat.any_autocast() and compat.autocast_dtype(ctx.device) is not None:
            with without_autocast(ctx.device):
                return MLPFunction.backward(ctx, grad_a, *grad_hidden)
        over = in_place.nobody_holds(ctx, grad_a)
        return _chain_backward(ctx, ctx.chain, grad_a, grad_hidden, over=over)


def _chain_backward(
    ctx: Any, chain: Chain, grad_a: Any, grad_hidden: Any, inputs: Any = None, over: bool = False
):
    """MLPFunction's backward. inputs: x and the tensors, where ctx did not keep them so.

    over: grad_a may be written over.
    """
    recompute = chain.recompute
    needs_x, _, *needs = asked_for(ctx, grad_a)
    sent = Adjoints(chain, grad_a, grad_hidden)
    top = sent.highest()  # above, nothing was used but by a derivative of a derivative
    if top == 0 or top < chain.lowest(needs_x, needs):
        return (None,) * (2 + len(needs))
    saved = list(inputs or ctx.saved_tensors)
    compat.release_saved_tensors(ctx)
    differentiated = to_be_differentiated()
    if inputs is None and ctx.finite and not (differentiated or torch.compiler.is_compiling()):
        chain = chain.but(acts=chain.acts_if_finite, acts_if_finite=None)
    listened = listening and not compat.transforms_active()
    if not (listened or differentiated):  # else the layers are walked one by one
        adjoint, all_needs = cast(Tensor, grad_a), (needs_x, *needs)
        if chain.rows and tiling.takes(grad_a, grad_hidden):
            grad_x, *grads = tiling.backward(chain, saved, all_needs, adjoint, over)
            return grad_x, None, *grads
        if chain.narrow == "backward" and narrow.takes(grad_a):
            grad_x, *grads = narrow.backward(chain, saved, all_needs, adjoint)
            return grad_x, None, *grads
    if chain.recompute:
        chain = chain.but(recompute=False, narrow="forward" if chain.narrow else "")
        x, *tensors = saved
        again = _mlp if differentiated else MLPFunction.forward
        output = again(x, chain, *tensors)
        saved = kept_for_backward(chain, x, tensors, output, (needs_x, *needs))
        del x, tensors, output
    tensors, s, a_kept = unpacked(chain, saved, len(needs))
    del saved, s[top + 1 :]
    ops: ModuleType = differentiable
    if not differentiated:
        ops = backend_for(cast(Tensor, s[top]) if grad_a is None else grad_a)
        if ops is aten and (recompute or ctx.untouched):
            ops = in_place
    if over and ops is in_place and not (listened or chain.branches):
        sent.over = grad_a
    note = noting(ctx, (needs_x, *needs)) if listened else None
    grad_x, *grads = backward_pass(ops, chain, tensors, s, a_kept, (needs_x, *needs), sent, note)
    return grad_x, None, *grads


class SmallMLPFunction(Function):
    """MLPFunction for what manualgrad.small takes: what backward wants is kept, but is no output.

    It is computed again for gradients of gradients, and for tracers.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, call: tuple[Chain, small.Seen], *tensors: Any
    ) -> tuple[Tensor]:
        """x (M, K); call: a chain, and what was seen of it; tensors W1, b1, ...  Returns (a^L,)."""
        chain, seen = call
        beside, if_finite = seen.about
        acts, large = if_finite or chain.acts, seen.has_large_products()
        a, s = small.forward(acts, x, tensors, large, seen.tanh)
        if if_finite and not one_pass.finite(a[-1]):
            acts = chain.acts
            a, s = small.forward(acts, x, tensors, large, seen.tanh)
        if acts[-1].is_identity:
            s = [*s[:-1], None]
        first = tensors[0] if ctx.needs_input_grad[0] else None
        ctx.save_for_backward(first, *tensors[2::2], *s, *[a[l] for l in beside])
        ctx.chain, ctx.acts, ctx.beside, ctx.tensors = chain, acts, beside, tensors
        ctx.large, ctx.versions = large, small.versions(tensors)
        ctx.set_materialize_grads(False)
        return (a[-1],)

    @staticmethod
    def backward(ctx: Any, grad_a: Tensor | None):
        if grad_a is None:
            return (None,) * len(ctx.needs_input_grad)
        if compat.any_autocast() and compat.autocast_dtype(grad_a.device) is not None:
            with without_autocast(grad_a.device):
                return SmallMLPFunction.backward(ctx, grad_a)
        chain, saved, needs = ctx.chain, list(ctx.saved_tensors), asked_for(ctx, grad_a)
        depth = chain.depth
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            if small.versions(ctx.tensors) != ctx.versions:
                raise RuntimeError(small.MODIFIED)
            small.gradients_were_differentiated |= to_be_differentiated()
            inputs = saved[depth], *ctx.tensors
            return _chain_backward(ctx, chain.but(recompute=True), grad_a, (), inputs)
        compat.release_saved_tensors(ctx)
        weights, s, a = saved[:depth], saved[depth : 2 * depth + 1], saved[depth : 2 * depth]
        for at, l in enumerate(ctx.beside, start=2 * depth + 1):
            a[l] = saved[at]
        del saved
        if not listening or compat.transforms_active():
            return small.backward(ctx.acts, weights, a, s, needs, grad_a, ctx.large)
        chain, needs = chain.but(acts=ctx.acts), (needs[0], *needs[2:])
        a_kept, sent = {l: a[l] for l in ctx.beside}, Adjoints(chain, grad_a, ())
        note = noting(ctx, needs)
        grads = backward_pass(aten, chain, ctx.tensors, s, a_kept, needs, sent, note)
        return grads[0], None, *grads[1:]


def walked_forward(
    chain: Chain, x: Tensor, tensors: Sequence[Any], hidden: bool
) -> tuple[Tensor, ...]:
    """Layer after layer: in one kernel, in tiles of rows, or over all of them."""
    if chain.narrow:
        return narrow.forward(chain, x, tensors, hidden)
    return tiling.forward(chain, x, tensors, hidden)


def without_autocast(device: torch.device) -> torch.autocast:
    """Backward computes in the dtypes of what forward kept, wherever it is called."""
    return torch.autocast(device.type, enabled=False)


operators.register_autograd(LinearActFunction)

# (x, act, weight, bias) -> (a, hidden z if any);  (x, chain, W1, b1, ...) -> (a^L, hidden ones)
linear_act = front_door(LinearActFunction, composite.linear_act, LinearActFunction.forward)
_mlp = front_door(MLPFunction, composite.mlp, MLPFunction.forward)
small_mlp = without_prologue(SmallMLPFunction)


def mlp(x: Tensor, chain: Chain, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """The chain as one node, on tensors of which one may stand at several places."""
    if torch.compiler.is_compiling():
        # operators know no skips: PyTorch differentiates those itself
        return (composite.mlp if chain.branches else _mlp)(x, chain, *tensors)
    if not compat.transforms_active():
        watched = compat.forward_mode() or compat.tracing_by_jit()
        derived = watched or torch.is_grad_enabled()
        if derived and not watched and small.takes(chain, x, tensors) and not shares(tensors):
            seen = small.Seen(chain.acts, x, tensors)
            if all(tensor is None or tensor.is_leaf for tensor in tensors):
                chain.seen = (
                    seen  # computed ones will be others, and would be held with their graph
                )
            return small_mlp(x, (chain, seen), *tensors)
        chain = narrow.prepared(tiling.prepared(chain, x, tensors), x, tensors)
        if not derived:  # nobody will read what is kept
            return walked_forward(chain, x, tensors, hidden=False)
        if shares(tensors):
            return _mlp(x, *merged(chain, tensors))
    return _mlp(x, chain, *tensors)
