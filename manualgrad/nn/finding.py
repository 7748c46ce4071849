"""Which layers of a model can be fused with which activations, and why others cannot.

Two kinds are sound without a run: neighbours in a torch.nn.Sequential, and what a class's source
shows (manualgrad.nn.reading). A run that was observed adds what happens in other code, and takes
away what it contradicts.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from manualgrad.nn import known, reading, swaps
from manualgrad.nn.finds import Find, HeldFind, ModuleFind, NeighbourFind
from manualgrad.nn.layout import SCRIPTED, Layout, Selection, attributes_of, refusal_of_activation
from manualgrad.nn.observing import Observation, Use
from manualgrad.nn.pairs import Pairing
from manualgrad.nn.report import Entry

SHARED = "its activation is shared: it also works on what is not fused with it"
ANOTHER_PATH = "its class's source shows that its output may go elsewhere, on another path"
SLICED = "of it and its activation a slice of a Sequential may take one without the other"


class Finder:
    """groups: finds that are applied together or not at all. refused: entries with reasons."""

    def __init__(self, model: nn.Module, selection: Selection):
        self.layout = Layout(model)
        self.classes = dict.fromkeys(map(type, self.layout.places))
        self.selection = selection
        self.groups: list[list[Find]] = []
        self.refused: list[Entry] = []
        self.neighbours: dict[nn.Module, list[NeighbourFind]] = {}
        self.paired: dict[nn.Module, nn.Module] = {}  # layer -> the module of its activation
        self.held: dict[nn.Module, HeldFind] = {}
        self.followed: dict[Any, set[nn.Module]] = {}  # activation -> all layers read before it
        self.believed: set[str] = set()  # places of layers and activations in pairs that were read
        self.doubts: dict[nn.Module, tuple[Any, str]] = {}  # layer -> activation, what may be
        self.reasons: dict[nn.Module, tuple[str, str]] = {}  # layer -> activation, why not

    def layers(self) -> list[nn.Module]:
        """The layers that a run is to be watched for."""
        places = self.layout.places
        chained = {seq._modules[n] for seq in places for n in seq.__dict__.get("_fused_names", ())}
        found = [m for m in places if known.is_linear(m) or known.is_quantised(m)]
        return [m for m in found if m not in chained and self.layout.barred_by(m) is None]

    def activations(self) -> list[nn.Module]:
        modules = [m for m in self.layout.places if known.is_activation(m)]
        return [m for m in modules if self.layout.barred_by(m) is None]

    def find(self, observation: Observation | None = None) -> None:
        """Fill groups and refused."""
        for module in self.layout.places:
            if isinstance(module, nn.Sequential):
                self._find_neighbours(module)
            else:
                self._read(module)
        if observation is not None:
            for layer in self.layers():
                if layer in observation.uses and self._wants(layer):
                    self._heed(layer, observation)
        self._note_scripted()
        self._group(observation)

    def _find_neighbours(self, seq: nn.Sequential) -> None:
        own = type(seq).forward in (nn.Sequential.forward, swaps.ChainedSequential.forward)
        if not own or "forward" in seq.__dict__:
            return
        fused = seq.__dict__.get("_fused_names", frozenset())
        children = [*seq._modules.items(), ("", None)]
        pairs, bare = [], set()
        for (name, child), (_, after) in pairwise(children):
            layer = known.is_linear(child) or known.is_quantised(child)
            if name in fused or not layer or not self._wants(child):
                continue
            if known.is_activation(after):
                pairs.append((name, child, after))
            elif isinstance(child, nn.Linear) and self.layout.refusal(child) is None:
                bare.add(name)
        for name, linear, act in pairs:
            record = self._record(linear, act)
            chained = f"the chain of {self.layout.path(seq) or 'the model'}"
            if record is None:
                continue
            if not isinstance(linear, nn.Linear):
                why = self.layout.refusal(linear) or "a chain takes torch.nn.Linear only"
                self._refuse(linear, act, why)
                continue
            find = NeighbourFind(
                self.layout.child_paths(seq, name)[0],
                linear, act, record, chained, seq, name, frozenset(bare),
            )  # fmt: skip
            self.neighbours.setdefault(linear, []).append(find)

    def _read(self, module: nn.Module) -> None:
        """Believe what the source of the module's class says of its own attributes."""
        layers, acts, held = attributes_of(module)
        if not layers or not (acts or held) or "forward" in module.__dict__:
            return
        names = acts.union(held)
        read = reading.applied(type(module), layers, names)
        before = {of: [layer for layer, act in read.items() if act == of] for of in names}
        pairings = {of: Pairing([(module, n) for n in (*before[of], of)], ()) for of in held}
        for name, of in read.items():
            linear, act = module._modules[name], module._modules.get(of)
            if linear is None:
                continue
            why = self._doubt(type(module), frozenset([name, of]))
            if why is not None:
                self.doubts[linear] = (held[of] if act is None else act, why)
            self.followed.setdefault(act or (module, of), set()).add(linear)
            if not self._wants(linear):
                continue
            self.believed |= {*self.layout.child_paths(module, name)}
            if act is not None:
                self.believed |= {*self.layout.child_paths(module, of)}
                if self.paired.setdefault(linear, act) is not act:
                    self._refuse(linear, act, "it is used in two places, with two activations")
            else:
                self.held[linear] = HeldFind(
                    self.layout.child_paths(module, name)[0],
                    linear,
                    held[of],
                    known.record_of(held[of]),
                    f"{self.layout.child_paths(module, of)[0]}, a function",
                    pairings[of],
                    holder=module,
                    attribute=of,
                )

    def _doubt(self, cls: type, names: frozenset[str]) -> str | None:
        """Why a source says that what cls holds under these names may be called in other ways."""
        if reading.computes_names(cls):
            return f"{cls.__name__} asks for attributes by names that it computes"
        for other in self.classes:
            for name in reading.read_elsewhere(other, names):
                return f"{other.__name__} reads {name} of another object, perhaps this one's"
        return None

    def _contradicted(self, layer: nn.Module, act: nn.Module) -> bool:
        """The source of a class that holds the layer shows another path for its output."""
        for holder, name in self.layout.holders(layer):
            layers, acts, _ = attributes_of(holder)
            of = [n for n in acts if holder._modules[n] is act]
            if reading.contradicts(type(holder), layers, acts, name, of[0] if of else None):
                return True
        return False

    def _heed(self, layer: nn.Module, seen: Observation) -> None:
        """Let a run that was observed decide on a layer that ran in it."""
        if layer in self.neighbours:
            if all(find.seq in seen.called for find in self.neighbours[layer]):
                return
            del self.neighbours[layer]  # someone walks through the Sequential by hand
        uses = seen.uses[layer]
        takers = {taker for use in uses for taker in use.consumers}
        acts = [taker for taker in takers if isinstance(taker, nn.Module)]
        if acts and len(takers) == 1 and all(len(use.consumers) == 1 for use in uses):
            self.paired[layer] = acts[0]
            self.held.pop(layer, None)
            return
        self.paired.pop(layer, None)
        functions = {name for use in uses for name in use.functions}
        if layer in self.held and _only(functions, uses):
            return
        self.held.pop(layer, None)
        others = sorted(str(taker) for taker in takers if not isinstance(taker, nn.Module))
        if acts:
            why = f"its output also goes to {', '.join(others)}" if others else "it is used twice"
            self._refuse(layer, acts[0], why)
        elif functions:
            (name, *_) = sorted(functions)
            why = "the function is called in code, out of which it cannot be taken"
            if not _only(functions, uses):
                why = f"its output goes to {', '.join(others)}"
            self.reasons.setdefault(layer, (name, why))

    def _group(self, seen: Observation | None) -> None:
        """Finds that share an activation stand or fall together."""
        for layer, (act, why) in self.doubts.items():
            if seen is None or layer not in seen.uses:
                self._refuse(layer, act, why)
        for layer in self.paired.keys() & (self.neighbours.keys() | self.held.keys()):
            self._refuse(layer, self.paired[layer], "it is used in two places, in two ways")
        shared: dict[nn.Module, list[nn.Module]] = {}
        for layer, act in self.paired.items():
            shared.setdefault(act, []).append(layer)
        for act, layers in shared.items():
            self._settle(act, layers, seen)
        together: dict[Any, list[Find]] = {}
        for find in self.held.values():
            if self._stands_elsewhere(find.linear):
                self._refuse(find.linear, find.act, "it stands in several places of the model")
            together.setdefault((find.holder, find.attribute), []).append(find)
        for key, held in together.items():
            if not self.followed[key].issubset(find.linear for find in held):
                for find in held:
                    self._refuse(find.linear, find.act, SHARED)
            self._accept(held)
        for finds in self.neighbours.values():
            for find in finds:
                why = refusal_of_activation(find.act)
                if why is not None:
                    self._refuse(find.linear, find.act, why)
                self._accept([find])
        for layer, (activation, why) in self.reasons.items():
            self.refused.append(Entry(self.layout.path(layer), activation, reason=why))

    def _settle(self, act: nn.Module, layers: list[nn.Module], seen: Observation | None) -> None:
        """Accept or refuse all the layers that an activation module follows."""
        foreign = not self.followed.get(act, set()).issubset(layers)
        foreign |= any(find.act is act for finds in self.neighbours.values() for find in finds)
        foreign |= any(act in m.__dict__.get("_fused_children", ()) for m in self.layout.places)
        if seen is None or act not in seen.called:
            foreign |= self._stands_elsewhere(act)
        else:
            after = {l for l, uses in seen.uses.items() if any(act in u.consumers for u in uses)}
            foreign |= act in seen.foreign or not after.issubset(layers)
        places = [place for module in (*layers, act) for place in self.layout.holders(module)]
        pairing = Pairing(places, swaps.constants_of(act))
        finds: list[Find] = []
        for layer in layers:
            record, why = self._record(layer, act), self.layout.refusal(layer)
            if why is not None:
                self._refuse(layer, act, why)
            elif foreign:
                self._refuse(layer, act, SHARED)
            elif self._contradicted(layer, act):
                self._refuse(layer, act, ANOTHER_PATH)
            elif self.layout.in_sequential(layer) or self.layout.in_sequential(act):
                self._refuse(layer, act, SLICED)
            elif (seen is None or layer not in seen.uses) and self._stands_elsewhere(layer):
                self._refuse(layer, act, "it stands in several places of the model")
            elif refusal_of_activation(act) is not None:
                self._refuse(layer, act, str(refusal_of_activation(act)))
            if record is not None:
                where = self.layout.path(act)
                finds.append(
                    ModuleFind(self.layout.path(layer), layer, act, record, where, pairing)
                )
        self._accept(finds)

    def _accept(self, finds: Sequence[Find]) -> None:
        """Unless one of them is refused; then all are."""
        for find in finds:
            why = self.layout.refusal(find.linear)
            if why is not None:
                self._refuse(find.linear, find.act, why)
        bad = [find for find in finds if find.linear in self.reasons]
        for find in finds:
            if bad:
                why = f"its activation is shared with {bad[0].path}, which is refused"
                self._refuse(find.linear, find.act, why)
        if finds and not bad:
            self.groups.append(list(finds))

    def _stands_elsewhere(self, module: nn.Module) -> bool:
        return not self.believed.issuperset(self.layout.places[module])

    def _wants(self, module: nn.Module) -> bool:
        return self.selection.wants(self.layout, module)

    def _record(self, linear: nn.Module, act: Any) -> Any:
        """The formulas of the activation after linear; None, with a reason noted, if none fit."""
        try:
            return known.record_of(act)
        except TypeError:
            self._refuse(linear, act, f"there is no formula by hand for {_name(act)}")
        except ValueError as error:
            self._refuse(linear, act, str(error).removeprefix("manualgrad.patch: "))
        return None

    def _refuse(self, linear: nn.Module, act: Any, reason: str) -> None:
        self.reasons.setdefault(linear, (_name(act), reason))

    def _note_scripted(self) -> None:
        for module in self.layout.places:
            if getattr(module, "original_name", None) in ("Linear", "Conv1D"):
                self.reasons.setdefault(module, ("", SCRIPTED))


def _only(functions: set[str], uses: list[Use]) -> bool:
    """Each output went to one function, the same activation for all."""
    once = all(len(use.consumers) == 1 and len(use.functions) == 1 for use in uses)
    return once and len(functions) == 1


def _name(act: Any) -> str:
    """The activation as the report calls it."""
    record = known.record_or_none(act)
    if record is not None:
        return str(record)
    return type(act).__name__ if isinstance(act, nn.Module) else getattr(act, "__name__", str(act))
