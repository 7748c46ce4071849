"""Hand-derived backward passes for a model that is there already, and the way back."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from manualgrad.nn import swaps
from manualgrad.nn.agreement import Example, copied, undisturbed
from manualgrad.nn.finding import Finder
from manualgrad.nn.finds import Find
from manualgrad.nn.layout import Layout, Selection
from manualgrad.nn.observing import Observation, observe
from manualgrad.nn.pairs import HeldFunction
from manualgrad.nn.report import Entry, PatchReport, UnpatchReport

# the random generators that an example's runs are repeated from are the process's
_ONE_AT_A_TIME = threading.RLock()

Rule = Sequence[str] | Callable[[str, nn.Module], bool] | None


def patch(
    model: nn.Module,
    *example_inputs: Any,
    include: Rule = None,
    exclude: Rule = None,
    **example_kwargs: Any,
) -> PatchReport:
    """Fuse the linear layers of a model with the activations that follow them, in place.

    model: any torch.nn.Module. Its Parameters, state_dict, names, hooks and classes (for
        isinstance) stay; layers get another class each, which ``unpatch`` takes back.
    example_inputs, example_kwargs: what the model is called with. Without them, only what is sure
        from the structure is fused: neighbours in torch.nn.Sequential, and what the source of a
        class shows (as in timm, torchvision, Hugging Face, torch.nn.TransformerEncoderLayer). With
        them, one run is observed, which finds pairs in any code; then outputs and gradients are
        compared with those before, and what differs is undone and reported. Where the model draws
        random numbers, no other thread may draw from the same generator meanwhile: dropout would
        differ, and all be refused.
    include, exclude: patterns of paths, as in fnmatch, or a function of (path, module); a pattern
        that matches a module matches all that is in it.

    Returns a PatchReport: ``replaced`` and ``refused``, entries with path, activation and reason.
    It prints as a table; its length is the number of layers fused.

    Raises TypeError for what is no model or no pattern, ValueError for an example on a model whose
    parameters are on the meta device, and whatever the model raises on the
    example; the model is then as it was.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"manualgrad.patch: expected a torch.nn.Module, got {type(model).__name__}")
    selection = Selection(include, exclude)
    with _ONE_AT_A_TIME, torch.inference_mode(False):
        _restored(Layout(model), lambda changed: not changed.stands())  # to be found anew
        finder = Finder(model, selection)
        before = sum(map(swaps.is_swapped, finder.layout.places))
        notes = [f"{before} modules were patched before"] if before else []
        if not (example_inputs or example_kwargs):
            finder.find()
            _apply(finder.groups)
            return _report(finder, finder.groups, finder.refused, notes)
        if any(parameter.is_meta for parameter in model.parameters()):
            raise ValueError(
                "manualgrad.patch: parameters on the meta device give nothing to compare; patch "
                "without an example"
            )
        finder.find(_observed(finder, model, example_inputs, example_kwargs))
        refused = finder.refused
        kept = finder.groups
        if kept:
            example = Example(model, example_inputs, example_kwargs)
            example.remember()
            kept, different = _agreeing(example, kept)
            refused = [*refused, *different]
        return _report(finder, kept, refused, notes)


def unpatch(model: nn.Module) -> UnpatchReport:
    """Give every module that ``patch`` changed its own class, or function, back.

    Returns an UnpatchReport, whose ``restored`` lists their paths; a model that was not patched is
    left as it is, and the report says so.

    Raises TypeError for what is no model, ValueError where a patched layer was changed on top
    (parametrised, for example): undo that first. Nothing is restored then.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"manualgrad.unpatch: expected a torch.nn.Module, got {type(model).__name__}"
        )
    with _ONE_AT_A_TIME:
        layout = Layout(model)
        for module in layout.places:
            if swaps.is_swapped(module) and not _by_itself(module):
                raise ValueError(
                    f"manualgrad.unpatch: {layout.path(module)!r} became a "
                    f"{type(module).__name__} after it was patched; undo that first"
                )
        return UnpatchReport(_restored(layout))


def _by_itself(module: nn.Module) -> bool:
    """Its class is the one that patch gave it, and not one made of that."""
    return "_original" in vars(type(module))


def _restored(layout: Layout, wanted: Callable[[Any], bool] = lambda changed: True) -> list[str]:
    """Give what was changed, and is wanted, its class or function back, and say where it stands."""
    changed = filter(swaps.is_swapped, layout.places)
    modules = [module for module in changed if _by_itself(module) and wanted(module)]
    held = [(m, name, v) for m in layout.places for name, v in m.__dict__.items()]
    functions = [at for at in held if isinstance(at[2], HeldFunction) and wanted(at[2])]
    for module in modules:
        swaps.restore(module)
    for module, name, value in functions:
        setattr(module, name, value.function)
    restored = [layout.path(module) for module in modules]
    return restored + [layout.child_paths(module, name)[0] for module, name, _ in functions]


def _observed(finder: Finder, model: nn.Module, args: tuple, kwargs: dict) -> Observation | None:
    layers = finder.layers()
    if not layers:
        return None
    with undisturbed(model):
        copies = {}
        args, kwargs = copied(args, copies), copied(kwargs, copies)
        return observe(model, args, kwargs, layers, finder.activations())


def _agreeing(example: Example, groups: list[list[Find]]) -> tuple[list[list[Find]], list[Entry]]:
    """Apply what does not change the results: all at once if that agrees, or group by group."""
    try:
        _apply(groups)
        if example.difference() is None:
            return groups, []
        _undo(groups)
        kept, refused = [], []
        for group in groups:
            _apply([group])
            difference = example.difference()
            if difference is None:
                kept.append(group)
            else:
                _undo([group])
                refused += [Entry(f.path, str(f.record), reason=difference) for f in group]
        return kept, refused
    except BaseException:
        _undo(groups)
        raise


def _apply(groups: list[list[Find]]) -> None:
    for group in groups:
        for find in group:
            find.apply()


def _undo(groups: list[list[Find]]) -> None:
    for group in reversed(groups):
        for find in reversed(group):
            find.undo()


def _report(finder: Finder, groups: list[list[Find]], refused: list[Entry], notes: list[str]):
    """In the order in which the layers stand in the model."""
    finds = [find for group in groups for find in group]
    replaced = [Entry(find.path, str(find.record), find.fused_with) for find in finds]
    places = [place for places in finder.layout.places.values() for place in places]
    order = {place: i for i, place in enumerate(places)}
    replaced, refused = (
        sorted(entries, key=lambda entry: order[entry.path]) for entries in (replaced, refused)
    )
    return PatchReport(replaced, refused, notes)
