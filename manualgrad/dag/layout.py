"""Where the nodes of a picture stand: in rows by depth, neighbours near each other."""

from collections.abc import Sequence
from itertools import pairwise

from manualgrad.dag.node import Node

Place = tuple[int, float]  # row, from the leaves on; position in the row


def rows_of(nodes: Sequence[Node]) -> dict[int, int]:
    """A row per node: above its parents, and a leaf just below its first use."""
    row: dict[int, int] = {}
    for node in nodes:
        row[node.index] = 1 + max((row[p.index] for p in node.parents if p), default=-1)
    uses: dict[int, int] = {}
    for node in nodes:
        for p in filter(None, node.parents):
            uses[p.index] = min(uses.get(p.index, row[node.index]), row[node.index])
    for node in nodes:
        if node.is_leaf and node.index in uses:
            row[node.index] = uses[node.index] - 1
    return row


def places(nodes: Sequence[Node]) -> tuple[dict[int, Place], dict[tuple[int, int], list[Place]]]:
    """(the place of each node, the way of each edge from parent to node through the rows between).

    Rows are ordered by the mean place of their neighbours, a few times up and down.
    """
    row = rows_of(nodes)
    below: dict[object, list[object]] = {node.index: [] for node in nodes}
    level: dict[object, int] = {**row}
    ways: dict[tuple[int, int], list[object]] = {}
    for node in nodes:
        for parent in {p.index for p in node.parents if p}:
            between = [(parent, node.index, r) for r in range(row[parent] + 1, row[node.index])]
            way: list[object] = [parent, *between, node.index]
            ways[parent, node.index] = way
            for low, high in pairwise(way):
                below.setdefault(high, []).append(low)
                level.setdefault(high, 0)
            level.update({step: step[2] for step in between})
    above: dict[object, list[object]] = {v: [] for v in level}
    for high, lows in below.items():
        for low in lows:
            above[low].append(high)
    x = _ordered(level, below, above)
    at: dict[object, Place] = {v: (level[v], x[v]) for v in level}
    edges = {edge: [at[step] for step in way] for edge, way in ways.items()}
    return {node.index: at[node.index] for node in nodes}, edges


def _ordered(level: dict, below: dict, above: dict) -> dict[object, float]:
    """The position of each in its row."""
    rows: list[list] = [[] for _ in range(max(level.values()) + 1)]
    for v in level:
        rows[level[v]].append(v)
    x = {v: float(i) for members in rows for i, v in enumerate(members)}
    for sweep in range(12):
        up = sweep % 2 == 0
        neighbours = below if up else above
        for members in rows if up else rows[::-1]:
            wanted = {
                v: sum(x[n] for n in neighbours[v]) / len(neighbours[v])
                if neighbours.get(v)
                else x[v]
                for v in members
            }
            members.sort(key=wanted.__getitem__)
            _spread(members, wanted, x)
    return x


def _spread(members: list, wanted: dict, x: dict) -> None:
    """Each as near to where it wants to be as a distance of 1 to its neighbours allows."""
    groups: list[list] = []  # [offset of the first, members]: those that push each other
    for v in members:
        groups.append([wanted[v], [v]])
        while len(groups) > 1 and groups[-2][0] + len(groups[-2][1]) > groups[-1][0]:
            _, last = groups.pop()
            merged = groups[-1][1] + last
            start = sum(wanted[m] - i for i, m in enumerate(merged)) / len(merged)
            groups[-1] = [start, merged]
    for start, group in groups:
        for i, v in enumerate(group):
            x[v] = start + i
