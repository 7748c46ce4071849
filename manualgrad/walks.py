"""The two walks over a chain of layers: forward l = 1..L, and backward, which is BP1 to BP4.

Adjoints are summed over successors (eq. 13). A skip makes z^start or a^start a node with several
successors, a shared parameter is one too: both are sums here, and no case of their own.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, cast

from torch import Tensor

from manualgrad.activations import ACTIVATIONS
from manualgrad.chain import Branch, Chain, added, scale_gradient, scaled
from manualgrad.keeping import hidden_outputs
from manualgrad.ops import backend_for

IDENTITY = ACTIVATIONS["identity"]


def forward_pass(
    chain: Chain, x: Tensor, tensors: Sequence[Any], hidden: bool = True
) -> tuple[Tensor, ...]:
    """Walks l = 1..L.  x (M, N_0); tensors: the chain's.

    Returns (a^L, s^1, ..., s^{L-1}), then s^L if the chain hides it, then a^l for each l < L that
    is kept besides: where a skip is added to sigma(z^l) s^l does not give a^l, and elsewhere a^l
    may be worth its memory. Unless hidden, (a^L,) alone: each layer's memory is then given back
    once the next layer has read it.
    """
    linear_act, acts, slots = backend_for(x).linear_act_forward, chain.acts, chain.slots
    beside = chain.beside
    a, s_hidden, a_hidden, skips = x, [], [], bool(chain.branches)
    carried = {("a", 0): x}
    for l in range(1, chain.depth + 1):
        act, (weight_at, bias_at) = acts[l], slots[l]
        if not skips:
            a, s = linear_act(a, tensors[weight_at], tensors[bias_at], act)
            if hidden:
                s_hidden.append(s)
                if l in beside:
                    a_hidden.append(a)
            del s
            continue
        weight, bias = chain.weight(l, tensors), chain.bias(l, tensors)
        branch, with_z = chain.branches.get(l), l in chain.carries_z
        brought = None if branch is None else _brought(chain, l, branch, carried)
        skip = None if l in chain.outs else brought
        a, s = linear_act(a, weight, bias, act, skip, with_z)
        if with_z:
            carried["z", l], s = s, (s if act.keeps == "z" else a)
        if hidden:
            s_hidden.append(s)
        del s
        if l in chain.outs:
            a = added(cast(Tensor, brought), a, chain.scale(l, tensors))
        if hidden and (l in chain.outs or l in beside):
            a_hidden.append(a)
        if l in chain.carries_a:
            carried["a", l] = a
    if not hidden:
        return (a,)
    if not chain.hides_top:
        s_hidden.pop()
    if chain.depth in chain.outs:
        a_hidden.pop()
    return a, *s_hidden, *a_hidden


def _brought(chain: Chain, l: int, branch: Branch, carried: dict) -> Tensor:
    """What the skip that ends at layer l brings, and let go of if it is the last to."""
    what, last = ("z", chain.carries_z) if branch.kind == "pre" else ("a", chain.carries_a)
    there = what, branch.start
    return carried.pop(there) if last[branch.start] == l else carried[there]


class Adjoints:
    """What arrives at each z^l and a^l besides BP2's product: from skips, and from outside.

    branch: what arrives at sigma(z^l) alone, where a skip is added to it. over: the adjoint of
    a^L, if it may be written over.
    """

    __slots__ = ("a", "branch", "over", "z")

    def __init__(self, chain: Chain, grad_a: Tensor | None, grad_hidden: Sequence[Tensor | None]):
        self.a: dict[int, Tensor] = {} if grad_a is None else {chain.depth: grad_a}
        self.z: dict[int, Tensor] = {}
        self.branch: dict[int, Tensor] = {}
        self.over: Tensor | None = None
        if any(grad is not None for grad in grad_hidden):
            for (what, l), grad in zip(hidden_outputs(chain), grad_hidden, strict=True):
                if grad is not None:
                    getattr(self, what)[l] = grad

    def send(self, what: str, l: int, adjoint: Tensor) -> None:
        """One more successor's."""
        there = getattr(self, what)
        there[l] = _sum(there.get(l), adjoint)

    def highest(self) -> int:
        """The highest layer that anything arrives at; 0 if there is none."""
        return max((*self.a, *self.z, *self.branch), default=0)


def _sum(other: Tensor | None, adjoint: Tensor) -> Tensor:
    return adjoint if other is None else other + adjoint


class Walk:
    """What the steps of a backward pass share: who computes, on what, the gradients so far.

    ops: the backend. needs: which of the tensors want a gradient. grads: theirs. sent: Adjoints.
    """

    __slots__ = ("a_kept", "chain", "grads", "needs", "ops", "sent", "tensors")

    def __init__(
        self, ops: ModuleType, chain: Chain, tensors, a_kept, needs, sent: Adjoints, grads: Any
    ):
        self.ops, self.chain, self.tensors, self.needs, self.sent = ops, chain, tensors, needs, sent
        self.a_kept: dict[int, Tensor] = a_kept
        self.grads: list[Tensor | None] = grads or [None] * len(needs)

    def error(self, l: int, grad_a: Tensor | None, s: Any) -> tuple[Any, Any]:
        """BP1 at layer l, from the adjoint of a^l; to delta comes what else arrives at z^l."""
        if l in self.chain.outs:
            grad_a = self.adjoint_of_branch(l, grad_a, s)
        delta = rows = self.sent.z.pop(l, None)
        if grad_a is not None:
            others = delta
            over = {"over": True} if grad_a is self.sent.over else {}
            delta, rows = self.ops.bp1_output_error(grad_a, s, self.chain.acts[l], **over)
            if others is not None:
                delta = rows = delta + others
        return delta, rows

    def adjoint_of_branch(self, l: int, grad_a: Tensor | None, s: Tensor) -> Tensor | None:
        """The adjoint of sigma(z^l), where a^l = a^start + scale sigma(z^l), from that of a^l."""
        adjoint, chain = self.sent.branch.pop(l, None), self.chain
        if grad_a is None:
            return adjoint
        branch, scale = chain.branches[l], chain.scale(l, self.tensors)
        self.sent.send("a", branch.start, grad_a)
        if chain.learns_scale(l, self.needs):
            products = (grad_a * self.ops.output(s, chain.acts[l])).sum(0)
            self.add(branch.at, scale_gradient(scale, products))
        return _sum(adjoint, grad_a if branch.at is None and scale == 1.0 else grad_a * scale)

    def skip_ends_at(self, l: int, delta: Tensor) -> bool:
        """Whether a skip is added to z^l; if so its start is sent the adjoint, delta^l."""
        if not self.chain.scales_layer(l):
            return False
        branch = self.chain.branches[l]
        self.sent.send("z" if branch.kind == "pre" else "a", branch.start, delta)
        return True

    def propagate(self, l: int, delta: Tensor, s_below: Any, with_a: bool) -> tuple[Any, ...]:
        """BP2 to layer l - 1, and what skips send there.  Returns (delta, rows, a^{l-1})."""
        chain, sent = self.chain, self.sent
        skip, skip_z = sent.a.pop(l - 1, None), sent.z.pop(l - 1, None)
        weight = self.tensors[chain.slots[l][0]]
        if chain.branches:
            weight = chain.weight(l, self.tensors)
        bp2, act = self.ops.bp2_propagate_error, chain.acts[l - 1]
        return bp2(delta, weight, s_below, act, skip, with_a, skip_z)

    def propagate_into_branch(self, l: int, delta: Tensor, s_below: Tensor) -> tuple[Any, ...]:
        """BP2 to a layer at which a skip is added to sigma(z): the skip wants the whole sum."""
        weight, skip = self.chain.weight(l, self.tensors), self.sent.a.pop(l - 1, None)
        grad_a = self.ops.bp2_propagate_error(delta, weight, s_below, IDENTITY, skip, False)[0]
        return *self.error(l - 1, grad_a, s_below), self.a_kept.get(l - 1)

    def scaled_gradients(self, l: int, delta: Tensor, rows: Any, a: Tensor | None) -> None:
        """BP3 and BP4 of a branch's layer, whose parameters are scale W and scale b."""
        chain, (weight_at, bias_at) = self.chain, self.chain.slots[l]
        scale, learns = chain.scale(l, self.tensors), chain.learns_scale(l, self.needs)
        products = None
        if self.needs[bias_at] or (learns and self.tensors[bias_at] is not None):
            grad = self.ops.bp3_bias_gradient(rows, delta.dtype)
            if self.needs[bias_at]:
                self.add(bias_at, scaled(grad, scale))
            if learns:
                products = grad * self.tensors[bias_at]
        if a is not None:
            grad = self.ops.bp4_weight_gradient(delta, a)
            if learns:
                in_rows = (grad * self.tensors[weight_at]).sum(1)
                self.add(chain.branches[l].at, scale_gradient(scale, _sum(products, in_rows)))
            if self.needs[weight_at]:
                self.add(weight_at, scaled(grad, scale))

    def add(self, at: int | None, grad: Tensor) -> None:
        """One more use's gradient of tensor number ``at``."""
        self.grads[at] = _sum(self.grads[at], grad)  # pyright: ignore


def backward_pass(
    ops: Any, chain: Chain, tensors, s, a_kept, needs, sent, note: Any = None, grads: Any = None
):
    """BP1 at the top, then BP3, BP2, BP4 per layer, down to the lowest tensor that needs it.

    Where a^l is there without BP2's help, BP4 comes first, and BP2 may write over delta.
    tensors, s^0..s^top, a_kept {l: a^l}: what kept_for_backward chose; s is emptied on the way, so
    that each tensor dies once used. needs: of x, then of each tensor. sent: what arrives from
    outside. note: called with each layer's slot, delta and a, if given. grads: of the tensors, by
    other examples, to add to.
    Returns the gradients of x and of each tensor, None where ``needs`` is False.
    """
    needs_x, *needs = needs
    lowest, top = chain.lowest(needs_x, needs), len(s) - 1
    walk = Walk(ops, chain, tensors, a_kept, needs, sent, grads)
    grads, acts, slots, outs = walk.grads, chain.acts, chain.slots, chain.outs
    skips, scales, at_a, at_z = bool(chain.branches), False, sent.a, sent.z
    bp3, bp4 = ops.bp3_bias_gradient, ops.bp4_weight_gradient
    arrived = at_a.pop(top, None), at_z.get(top)
    delta, rows = walk.error(top, arrived[0], s.pop())
    theirs = any(delta is one and one is not sent.over for one in arrived)  # not to write over
    bp2_frugal = None if skips or note or at_a or at_z else getattr(ops, "bp2_frugal", None)
    for l in range(top, 0, -1):
        weight_at, bias_at = slots[l]
        with_a = needs[weight_at]
        if skips:
            scales = walk.skip_ends_at(l, delta)
            with_a = with_a or (scales and chain.learns_scale(l, needs))
        s_below, a, below, below_rows = s.pop(), None, None, None
        biased = needs[bias_at] and not scales
        if l > lowest and l - 1 in outs:
            below, below_rows, a = walk.propagate_into_branch(l, delta, s_below)
        elif l > lowest:
            a = a_kept.pop(l - 1, None if acts[l - 1].hides_z else s_below)
            again = with_a and a is None
            if bp2_frugal and not (theirs or again):
                if with_a:
                    grads[weight_at] = bp4(delta, a, grads[weight_at])
                if biased:
                    grads[bias_at] = _sum(grads[bias_at], bp3(rows, delta.dtype))
                a, weight = None, tensors[weight_at]
                delta, rows, _ = bp2_frugal(delta, weight, s_below, acts[l - 1], True, l == top)
                continue
            below, below_rows, of_z = walk.propagate(l, delta, s_below, again)
            a, of_z = (of_z if again else a), None
        elif with_a:
            a = a_kept[l - 1] if l - 1 in a_kept else ops.output(s_below, acts[l - 1])
        if note is not None:
            of_layer = delta * chain.scale(l, tensors) if scales else delta
            note(weight_at, bias_at, of_layer, a if with_a else None)
        if scales:
            walk.scaled_gradients(l, delta, rows, a if with_a else None)
        elif with_a:
            grads[weight_at] = bp4(delta, a, grads[weight_at])
        if biased:  # last: Inductor computes delta anew for a sum that comes before its products
            grads[bias_at] = _sum(grads[bias_at], bp3(rows, delta.dtype))
        if below is None:
            return None, *grads
        delta, rows, theirs = below, below_rows, False
    return delta, *grads
