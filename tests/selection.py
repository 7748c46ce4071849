"""What `make test` takes of the combinations that tests are made of: enough for every pair.

A test of many factors (activation, layout, dtype, ...) is asked for every pair of values of two
factors, not for every combination: a fault that shows only where three meet is left to `make test
ARGS=--exhaustive`, which asks for all. The selection is the same each time.
"""

import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence

import pytest

EXHAUSTIVE = pytest.mark.exhaustive


def cover(rows: Sequence, needs: Callable[..., Iterable[Hashable]], first: int = 0) -> list:
    """Some of the rows, in their order: whatever any row needs, one of them needs.

    Greedily, the row that adds most; of equals the next one from row number first on.
    """
    wanted = {i: set(needs(row)) for i, row in enumerate(rows)}
    order = [*range(first, len(rows)), *range(first)]
    missing, chosen = set().union(*wanted.values()), set()
    while missing:
        best = max(order, key=lambda i: len(wanted[i] & missing))
        chosen.add(best)
        missing -= wanted[best]
    return [row for i, row in enumerate(rows) if i in chosen]


def pairs(row: Sequence) -> Iterable[Hashable]:
    """Every two values of a row, with their places; identity tells values apart."""
    places = [
        (i, value if isinstance(value, Hashable) else id(value)) for i, value in enumerate(row)
    ]
    return itertools.combinations(places, 2)


def marked(rows: Sequence, kept: Sequence) -> list:
    """All rows as parameters of a test, those that are not kept for --exhaustive alone."""
    own = set(map(id, kept))
    return [pytest.param(*row, marks=() if id(row) in own else EXHAUSTIVE) for row in rows]


def pairwise(names: str, *factors: Iterable):
    """Decorator: a test of these factors, for every pair of values of any two of them."""
    rows = list(itertools.product(*factors))
    return pytest.mark.parametrize(names.split(", "), marked(rows, cover(rows, pairs)))
