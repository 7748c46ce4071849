"""Small chains on a CPU: the equations one after another, and as little else as there can be.

Where a layer's products take some microseconds each, so does what Python does around them. Here
nothing is left to be decided layer by layer: no skips, no tiles, no memory that is worth reusing.
What backward wants is kept without being made an output of the node. Only gradients of gradients
miss that: they walk forward once more. So whoever takes them gets no second chain of this kind.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from manualgrad import aten, backends, compat, gates
from manualgrad.activations import Activation
from manualgrad.chain import Chain
from manualgrad.keeping import PLAIN_OR_NONE
from manualgrad.ops import PLAIN

ENTRIES = aten.CHECKED  # of x and of each a^l: fewer
gradients_were_differentiated = False
"""Of such a chain, in this process: it will happen again, and is faster with hidden outputs."""


def takes(chain: Chain, x: Tensor, tensors: Sequence[Any]) -> bool:
    """Whether a chain of plain tensors, W^1, b^1, ..., W^L, b^L, is small.  x (M, K).

    With a frozen weight it is not: some a^l would be kept for nothing.
    """
    if chain.branches or chain.recompute or x.numel() >= ENTRIES or not x.is_cpu:
        return False
    if gradients_were_differentiated:
        return False
    if type(x) not in PLAIN or not PLAIN_OR_NONE.issuperset(map(type, tensors)):
        return False
    if backends.mode() != "auto" or compat.dispatch_modes_active():
        return False
    M, widths = x.shape[0], [w.shape[0] for w in tensors[::2] if w.requires_grad]
    if len(widths) < chain.depth or min(widths) * M == 0 or max(widths) * M >= ENTRIES:
        return False
    return M * sum(widths) * x.element_size() <= gates.LITTLE


def forward(
    acts: Sequence[Activation], x: Tensor, weights: Sequence[Tensor], biases: Sequence[Any]
) -> tuple[list[Tensor], list[Tensor]]:
    """a^0..a^L and s^0..s^L.  acts[0..L]; x = a^0 (M, N_0), W^l (N_l, N_{l-1}), b^l or None."""
    a, s, linear_act = [x], [x], aten.linear_act_forward
    for act, weight, bias in zip(acts[1:], weights, biases, strict=True):
        x, s_next = linear_act(x, weight, bias, act)
        a.append(x)
        s.append(s_next)
    return a, s


def backward(
    acts: Sequence[Activation], weights: Sequence[Any], a: Sequence[Any], s: Sequence[Any],
    needs: Sequence[bool], grad_a: Tensor,
) -> list[Tensor | None]:  # fmt: skip
    """The gradients of x, W^1, b^1, ..., W^L, b^L, None where needs is False.  grad_a (M, N_L)."""
    grads: list[Tensor | None] = [None] * len(needs)
    bp2, bp3, bp4 = aten.bp2_propagate_error, aten.bp3_bias_gradient, aten.bp4_weight_gradient
    top, lowest = len(acts) - 1, needs.index(True)
    delta, rows = aten.bp1_output_error(grad_a, s[top], acts[top])
    for l in range(top, 0, -1):
        weight, bias = 2 * l - 1, 2 * l
        if needs[bias]:
            grads[bias] = bp3(rows)
        if needs[weight]:
            grads[weight] = bp4(delta, a[l - 1])
        if lowest >= weight:
            return grads
        delta, rows, _ = bp2(delta, weights[l - 1], s[l - 1], acts[l - 1], None, False)
    grads[0] = delta
    return grads
