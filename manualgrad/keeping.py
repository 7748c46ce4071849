"""What a chain keeps for its backward pass, and how it is handed over."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from manualgrad import aten
from manualgrad.chain import Chain
from manualgrad.compat import PLAIN
from manualgrad.ops import backend_for

PLAIN_OR_NONE = {*PLAIN, type(None)}


def plain_on_cpu(x: Tensor, tensors: Sequence[Any]) -> bool:
    """Tensors of no subclass, that run on ATen's kernels on the CPU."""
    if not x.is_cpu or backend_for(x) is not aten:
        return False
    return type(x) in PLAIN and set(map(type, tensors)) <= PLAIN_OR_NONE


def hidden_outputs(chain: Chain) -> tuple[tuple[str, int], ...]:
    """(what, l) of each further output of forward_pass: z^l, a^l, or sigma(z^l) as "branch"."""
    if chain.recompute:
        return ()
    acts, outs, kinds = chain.acts, chain.outs, []
    for l in range(1, chain.depth + chain.hides_top):
        kinds.append(("z" if acts[l].keeps == "z" else "branch" if l in outs else "a", l))
    return *kinds, *(("a", l) for l in chain.keeps_a if l < chain.depth)


def kept_for_backward(chain: Chain, x: Tensor, tensors, output, needs) -> list[Tensor | None]:
    """The chain's tensors, s^0..s^L with s^0 = x, and the a^l that forward_pass returns last.

    None for each that the gradients asked for do without: BP2 at layer l wants W^{l+1} and s^l,
    BP4 wants a^{l-1}; below the lowest layer with a gradient nothing runs.
    """
    needs_x, *needs = needs
    lowest, depth, hidden = chain.lowest(needs_x, needs), chain.depth, chain.depth + chain.hides_top
    s: list[Tensor | None] = [x, *output[1:hidden]]
    if not chain.hides_top:
        s.append(output[0])
    wanted: list[Tensor | None] = [None] * len(tensors)
    for at, _ in chain.slots[lowest + 1 :]:
        wanted[at] = tensors[at]
    outs, learns = chain.outs, chain.learns_scale
    a_kept = dict(zip(chain.keeps_a, output[hidden:], strict=False))
    for l, act in enumerate(chain.acts):
        used = l >= lowest and not act.is_identity  # by BP1 or BP2, for sigma'
        if used and not (l in outs or l in a_kept):
            continue
        a_wanted = l < depth and (needs[chain.slots[l + 1][0]] or learns(l + 1, needs))
        if l in outs or l in a_kept:
            if l in a_kept and not a_wanted:
                a_kept[l] = None
            # BP4 does not want s^l then, but the gradient of a scale does
            a_wanted = l in outs and learns(l, needs)
        if not (a_wanted or used):
            s[l] = None
    for l, branch in chain.branches.items():
        if branch.at is not None and l >= lowest:
            wanted[branch.at] = tensors[branch.at]
            if needs[branch.at]:
                for at in chain.slots[l]:
                    wanted[at] = tensors[at]
    return [*wanted, *s, *a_kept.values()]


def unpacked(chain: Chain, kept: Sequence[Any], count: int) -> tuple[list, list, dict[int, Any]]:
    """What kept_for_backward chose, of ``count`` tensors: those, s^0..s^L and {l: a^l}."""
    tensors, s, a = (
        kept[:count],
        kept[count : count + chain.depth + 1],
        kept[count + chain.depth + 1 :],
    )
    return list(tensors), list(s), dict(zip(chain.keeps_a, a, strict=False))
