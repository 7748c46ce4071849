"""How reports are printed."""

import textwrap
from collections.abc import Sequence
from typing import Any


def wrapped(text: str, indent: str) -> str:
    """The text in lines of at most 100 characters."""
    return textwrap.fill(text, 100, subsequent_indent=indent, break_long_words=False)


def table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    """By tabulate; where that is not installed, the same cells between bars."""
    try:
        from tabulate import tabulate
    except ImportError:
        return "\n".join(" | ".join(map(str, row)) for row in (headers, *rows))
    return tabulate(rows, headers=headers)
