"""Gates in a chain on a CPU: what is kept of them, and which kernels they are left to.

For gelu, silu and others BP2 reads z^l and BP4 reads a^l. One of the two is enough, and halves what
is kept; the other costs sigma once more in backward. Where little is kept at all, or where layers
are so narrow that sigma takes as long as the product, both are kept.

ATen's kernels for gates multiply infinities by 0, which is NaN. In a chain of gates and identities
alone what is not finite stays so: such a chain is walked as if it were not there, and walked again
with care if a^L is not finite. If a^L is, so was every z, and backward needs no care either.
"""

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from manualgrad import compat, one_pass
from manualgrad.activations import Activation
from manualgrad.chain import Chain
from manualgrad.keeping import plain_on_cpu
from manualgrad.walks import forward_pass

LITTLE = 4 << 20  # bytes of activations, all layers' together
NARROW, MORE = 64, 16 << 20  # in a chain of at most so many neurons a layer: so many bytes

Acts = tuple[Activation, ...]


@functools.lru_cache(maxsize=256)
def about(acts: Acts) -> tuple[frozenset[int], Acts | None]:
    """(the hidden layers with gates, the acts for finite z); None where other acts are between."""
    gates = frozenset(l for l in range(1, len(acts) - 1) if acts[l].hides_z)
    if_finite = tuple(map(one_pass.of_finite_z, acts))
    others = any(a is b and not a.is_identity for a, b in zip(acts, if_finite, strict=True))
    return gates, None if others or if_finite == acts else if_finite


def chosen(chain: Chain, x: Tensor, tensors: Sequence[Any]) -> tuple[frozenset[int], Acts | None]:
    """(the layers whose a^l is kept beside z^l, acts to try as if no z were infinite)."""
    gates, if_finite = about(chain.acts)
    if not (gates or if_finite) or not plain_on_cpu(x, tensors):
        return frozenset(), None
    widths = [tensors[weight_at].shape[0] for weight_at, _ in chain.slots[1:]]
    size = x.shape[0] * sum(widths) * x.element_size()
    if size > (MORE if max(widths) <= NARROW else LITTLE):
        gates = frozenset()
    if compat.dispatch_modes_active() or not all(widths) or not compat.has_memory(x):
        if_finite = None  # a^L may not be looked at, or a layer without neurons hides infinities
    return gates - chain.outs, if_finite


def walked(
    chain: Chain, x: Tensor, tensors: Sequence[Any], hidden: bool
) -> tuple[tuple[Tensor, ...], bool]:
    """(what forward_pass returns, whether every z is known to be finite)."""
    if chain.acts_if_finite is not None:
        output = forward_pass(chain.but(acts=chain.acts_if_finite), x, tensors, hidden)
        if one_pass.finite(output[0]):
            return output, True
    return forward_pass(chain, x, tensors, hidden), False


def all_beside(chain: Chain) -> frozenset[int]:
    """The layers whose a^l can be kept beside z^l."""
    return about(chain.acts)[0] - chain.outs
