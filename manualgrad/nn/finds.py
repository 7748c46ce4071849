"""One layer with its activation, as patch finds it, and what fusing the two changes."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from manualgrad.activations import Activation
from manualgrad.nn import known, pairs, swaps


@dataclass(eq=False)
class Find:
    """A layer whose output goes to one activation and nowhere else.

    path: the layer's name in the model. act: the activation, a module or a function; record: its
    formulas. fused_with: where it stands, for the report.
    """

    path: str
    linear: nn.Module
    act: Any
    record: Activation
    fused_with: str

    def apply(self) -> None:
        """Fuse the two; nothing if they are."""
        raise NotImplementedError

    def undo(self) -> None:
        """As it was; nothing if it is."""
        raise NotImplementedError


@dataclass(eq=False)
class PairFind(Find):
    """pairing: what fuses the two, and the other layers before this activation, together."""

    pairing: pairs.Pairing

    def apply(self) -> None:
        if not swaps.is_swapped(self.linear):
            conv1d = not isinstance(self.linear, nn.Linear)
            how = pairs.FusedConv1D if conv1d else pairs.FusedLinear
            state = {"_fused_activation": self.record, "_fused_pairing": self.pairing}
            swaps.swap(self.linear, how, **state)

    def undo(self) -> None:
        if swaps.is_swapped(self.linear):
            swaps.restore(self.linear)


class ModuleFind(PairFind):
    """The activation is a module."""

    def apply(self) -> None:
        super().apply()
        if not swaps.is_swapped(self.act):
            swaps.swap(self.act, pairs.PassedOver, _fused_pairing=self.pairing)

    def undo(self) -> None:
        super().undo()
        if swaps.is_swapped(self.act):
            swaps.restore(self.act)


@dataclass(eq=False)
class HeldFind(PairFind):
    """The activation is a function that the module ``holder`` keeps in an attribute."""

    holder: nn.Module
    attribute: str

    def apply(self) -> None:
        super().apply()
        if not isinstance(getattr(self.holder, self.attribute), pairs.HeldFunction):
            setattr(self.holder, self.attribute, pairs.HeldFunction(self.act, self.pairing))

    def undo(self) -> None:
        super().undo()
        setattr(self.holder, self.attribute, self.act)


@dataclass(eq=False)
class NeighbourFind(Find):
    """The two are neighbours in the Sequential ``seq``, and only its class changes.

    name: the layer's in seq. bare: the names of Linears there that have no activation, and join.
    """

    seq: nn.Sequential
    name: str
    bare: frozenset[str]

    def apply(self) -> None:
        swaps.chain(self.seq, self._names() | {self.name} | self.bare, known.record_or_none)

    def undo(self) -> None:
        swaps.chain(self.seq, self._names() - {self.name}, known.record_or_none)

    def _names(self) -> frozenset[str]:
        return self.seq.__dict__.get("_fused_names", frozenset())
