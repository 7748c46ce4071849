"""A node of the graph: a value, the rule that made it, and what came back."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from manualgrad.dag.context import Context


class Sent(NamedTuple):
    """What one successor sent to a node: its index, at which of its inputs, and how much."""

    successor: int
    position: int
    adjoint: Tensor


@dataclass(eq=False, slots=True)
class Node:
    """v_i: a leaf, or what a rule computed from its parents.

    index: in order of creation, so that parents have lower ones. name: of the leaf, or of the
    operation. rule: the Function, None for a leaf. parents: one per input of the rule's forward,
    None for what is no part of the graph. value: v. hidden: further results of the rule, which
    nobody uses. adjoint: v_bar, once backward passed by.
    received: what it is the sum of, in the order of arrival.
    """

    index: int
    name: str
    value: Tensor
    rule: Any = None
    parents: tuple["Node | None", ...] = ()
    context: Context | None = None
    hidden: tuple[Any, ...] = ()
    adjoint: Tensor | None = None
    received: list[Sent] = field(default_factory=list)

    @property
    def is_leaf(self) -> bool:
        return self.rule is None

    @property
    def shape(self) -> torch.Size:
        return self.value.shape

    def __repr__(self) -> str:
        return f"<{self.index} {self.name} {tuple(self.shape)}>"

    def receive(self, sent: Sent) -> None:
        """v_bar = sum over successors (eq. 13), in the order in which they are visited."""
        self.received.append(sent)
        adjoint = sent.adjoint
        self.adjoint = adjoint if self.adjoint is None else self.adjoint + adjoint

    def backward(self, adjoint: Tensor) -> list[Tensor | None]:
        """What the rule sends to each of its inputs, checked against their shapes."""
        context = cast(Context, self.context)
        unused: list[Tensor | None] = [None] * len(self.hidden)
        if context.materialize_grads:
            unused = [torch.zeros_like(h) if isinstance(h, Tensor) else None for h in self.hidden]
        sent = self.rule.backward(context, adjoint, *unused)
        sent = list(sent) if isinstance(sent, tuple) else [sent]
        if len(sent) < len(self.parents) or any(s is not None for s in sent[len(self.parents) :]):
            raise RuntimeError(
                f"manualgrad.dag: {self.rule.__name__}.backward returned {len(sent)} gradients for "
                f"{len(self.parents)} inputs; return one per input of forward, None where it has "
                f"none"
            )
        return [
            None if parent is None or s is None else self._fitting(i, parent, s)
            for i, (parent, s) in enumerate(zip(self.parents, sent, strict=False))
        ]

    def _fitting(self, i: int, parent: "Node", sent: Tensor) -> Tensor:
        if sent.shape != parent.shape:
            raise RuntimeError(
                f"manualgrad.dag: {self.rule.__name__}.backward sent an adjoint of shape "
                f"{tuple(sent.shape)} to input {i}, {parent.name} of shape {tuple(parent.shape)}; "
                f"an adjoint has the shape of its value"
            )
        return sent.to(parent.value.dtype)
