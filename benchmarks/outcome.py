"""What a suite is given, and what it gives back."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from benchmarks import ceilings

Row = dict[str, Any]


class RefusedError(ValueError):
    """What was asked for cannot be done; its text is one line for the user."""


@dataclass(frozen=True)
class Settings:
    """device: "cpu" or "cuda". quick: the first problem of a suite, briefly."""

    device: str
    dtypes: tuple[torch.dtype, ...]
    quick: bool = False

    @cached_property
    def ceilings(self) -> ceilings.Ceilings:
        """Measured when first asked for, once in a run."""
        return ceilings.measured(self.device, self.dtypes)


@dataclass(frozen=True)
class Outcome:
    """rows: as recorded; text: as printed; pictures: {name: PNG}; wrong: who failed its check."""

    rows: list[Row]
    text: str
    pictures: dict[str, bytes]
    wrong: list[str] = field(default_factory=list)
