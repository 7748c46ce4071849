"""A tape as text: a table of its nodes, and Graphviz's DOT."""

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from manualgrad.dag.node import Node
from manualgrad.tables import table


def norm(adjoint: Tensor | None) -> str:
    """The Euclidean norm in three digits; nothing before backward."""
    if adjoint is None:
        return ""
    return f"{torch.linalg.vector_norm(adjoint.double()).item():.3g}"


def shown(nodes: Sequence[Node], order: Sequence[Node]) -> list[Node]:
    """The nodes of a rendering, first computed first: those that backward visited, if it ran."""
    return sorted(order, key=lambda node: node.index) if order else list(nodes)


def as_table(nodes: Sequence[Node]) -> str:
    """A row per node, last computed first, as backward visits them.

    from: its parents. |adjoint|: the norm of v_bar. received: the norms of what successors sent.
    """
    rows = [
        (
            node.index,
            node.name,
            "x".join(map(str, node.shape)) or "1",
            " ".join(str(p.index) for p in node.parents if p is not None),
            norm(node.adjoint),
            " + ".join(f"{norm(sent.adjoint)} ({sent.successor})" for sent in node.received),
        )
        for node in reversed(nodes)
    ]
    columns = ("node", "value", "shape", "from", "|adjoint|", "received (from)")
    return table([[f"{cell}" for cell in row] for row in rows], columns)


def as_dot(nodes: Sequence[Node]) -> str:
    """Graphviz's language: an edge per use, with the norm of what goes back along it."""
    lines = ["digraph tape {", "  node [shape=box];"]
    for node in nodes:
        text = f"{node.name}\n{tuple(node.shape)}"
        if node.adjoint is not None:
            text += f"\n|adjoint| = {norm(node.adjoint)}"
        style = " style=rounded" if node.is_leaf else ""
        lines.append(f"  v{node.index} [label={json.dumps(text)}{style}];")
    for parent, position, node, adjoint in edges(nodes):
        name = f' label="{norm(adjoint)}"' if adjoint is not None else ""
        lines.append(f"  v{parent.index} -> v{node.index} [dir=back{name}]; // input {position}")
    return "\n".join([*lines, "}", ""])


def edges(nodes: Sequence[Node]) -> list[tuple[Node, int, Node, Tensor | None]]:
    """(parent, at which input, successor, the adjoint sent back), in order of creation."""
    sent = {(s.successor, s.position): s.adjoint for node in nodes for s in node.received}
    return [
        (parent, position, node, sent.get((node.index, position)))
        for node in nodes
        for position, parent in enumerate(node.parents)
        if parent is not None
    ]
