"""What patch did, and what it left alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from manualgrad.tables import table, wrapped


@dataclass(frozen=True)
class Entry:
    """One layer.

    path: its name in the model. activation: the formulas fused into it, or meant to be.
    fused_with: where that activation stands. reason: why the layer was refused.
    """

    path: str
    activation: str
    fused_with: str = ""
    reason: str = ""


class PatchReport:
    """replaced: entries of the layers fused now. refused: entries with a reason each.

    notes: what else there is to say. len() is the number of layers replaced. Prints as a table.
    """

    def __init__(self, replaced: Sequence[Entry], refused: Sequence[Entry], notes: Sequence[str]):
        self.replaced, self.refused, self.notes = list(replaced), list(refused), list(notes)

    def __len__(self) -> int:
        return len(self.replaced)

    def __str__(self) -> str:
        rows = [(e.path, e.activation, e.fused_with) for e in self.replaced]
        rows += [(e.path, e.activation, f"refused: {e.reason}") for e in self.refused]
        parts = [table(rows, ("layer", "activation", "fused with"))] if rows else []
        many, left = len(self.replaced), len(self.refused)
        verdict = f"{many} layer{'s' * (many != 1)} fused, {left} refused"
        return "\n\n".join([*parts, *(wrapped(note, "  ") for note in self.notes), verdict])

    __repr__ = __str__


class UnpatchReport:
    """restored: the paths of the modules that have their own class, or function, again."""

    def __init__(self, restored: Sequence[str]):
        self.restored = list(restored)

    def __len__(self) -> int:
        return len(self.restored)

    def __str__(self) -> str:
        if not self.restored:
            return "nothing to restore: the model was not patched"
        many = len(self.restored)
        return f"{many} module{'s' * (many != 1)} restored"

    __repr__ = __str__
