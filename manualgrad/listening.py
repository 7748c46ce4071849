"""What the Functions tell manualgrad.capture: (a, delta) of each use of a layer."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

active: list[Any] = []
"""The captures that are on. Of the whole process: a backward pass may run in threads of its own."""


def noting(ctx: Any, needs: Sequence[bool]) -> Callable[..., None]:
    """A function that hands a use to those that listen.  needs: of x, then of each tensor.

    An input that wants a gradient is one that an edge of the graph leads to.
    """
    edges = iter([edge for edge in ctx.next_functions if edge[0] is not None])
    _, *origins = [_origin(*next(edges)) if needed else (None, False) for needed in needs]

    def note(weight_at: int, bias_at: int, delta: Tensor, a: Tensor | None) -> None:
        weight, flipped = origins[weight_at]
        detached = None if a is None or weight is None else a.detach()
        version = 0 if detached is None else detached._version
        use = detached, delta.detach(), weight, origins[bias_at][0], flipped, version
        for listener in active:
            listener.heard(*use)

    return note


def _origin(node: Any, number: int) -> tuple[Any, bool]:
    """(what an edge leads to through casts and transposes, was it transposed on the way).

    A Parameter, or where the graph goes on, (node, number of its output).
    """
    transposed = False
    while not hasattr(node, "variable"):
        flips = _transposes(node)
        if flips is None:
            return (node, number), transposed
        transposed ^= flips
        node, number = node.next_functions[0]
    return node.variable, transposed


def _transposes(node: Any) -> bool | None:
    """Whether a node transposes its matrix, as W.t(), W.mT, W.T do; None for one that computes.

    Of two dimensions, those that swap are one odd and one even, also counted from the end.
    """
    name = node.name()
    if name in ("TBackward0", "ToCopyBackward0"):
        return name == "TBackward0"
    if name == "PermuteBackward0" and hasattr(node, "_saved_dims"):
        return node._saved_dims[0] % 2 == 1
    if name == "TransposeBackward0" and hasattr(node, "_saved_dim0"):
        return (node._saved_dim0 + node._saved_dim1) % 2 == 1
    return None


def leaves(*origins: Any) -> set[int]:
    """The identities of the parameters that weights and biases are, or are computed from."""
    found, seen, todo = set(), set(), []
    for origin in origins:
        if isinstance(origin, tuple):
            todo.append(origin[0])
        elif origin is not None:
            found.add(id(origin))
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        todo += [following for following, _ in node.next_functions if following is not None]
    return found
