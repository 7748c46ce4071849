"""What a function reaches besides its arguments: the modules that it may call, its tensors."""

import contextlib
import functools
import sys
import types
from collections import deque
from collections.abc import Iterator
from typing import Any, TypeVar

Kind = TypeVar("Kind")
MOST = 10_000  # objects that are looked into, the nearest first
PLAIN = (str, bytes, int, float, complex, type(None), types.ModuleType)
OTHERS = sys.stdlib_module_names | {"torch", "numpy", "manualgrad"}  # they read no module of yours


def reached(root: Any, kind: type[Kind]) -> list[Kind]:
    """What of a kind root holds or names: in closures, globals, containers, attributes, partials.

    Functions reached are followed too; what a local import brings is not seen.
    """
    found: list[Kind] = []
    seen: dict[int, Any] = {}
    waiting = deque([root])
    while waiting and len(seen) < MOST:
        value = waiting.popleft()
        if isinstance(value, PLAIN) or id(value) in seen:
            continue
        seen[id(value)] = value  # kept, so that no other object takes its id
        if isinstance(value, kind):
            found.append(value)
        waiting.extend(_parts(value))
    return found


def _parts(value: Any) -> Iterator[Any]:
    """What one step leads to; no property of yours is asked."""
    if isinstance(value, types.FunctionType):
        yield from _read_by(value)
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, dict):
        yield from dict.values(value)
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        yield from value
    elif isinstance(value, property):
        yield value.fget
    elif isinstance(value, (types.MethodType, types.BuiltinMethodType)):
        yield from (value.__self__, getattr(value, "__func__", None))
    elif isinstance(value, (staticmethod, classmethod)):
        yield value.__func__
    elif isinstance(value, type):
        if not _is_of_others(value):
            yield from (*vars(value).values(), *value.__bases__)
        return
    with contextlib.suppress(Exception):  # it has none, or a __getattr__ that raises
        yield from vars(value).values()
    yield from _slots(value)
    yield type(value)


def _slots(value: Any) -> Iterator[Any]:
    for kind in type(value).__mro__:
        if "__slots__" in vars(kind):
            for slot in vars(kind).values():
                if isinstance(slot, types.MemberDescriptorType):
                    with contextlib.suppress(AttributeError):  # not filled
                        yield slot.__get__(value)


def _read_by(function: types.FunctionType) -> Iterator[Any]:
    """A function's closure, its defaults, and the globals that its code names."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from (function.__defaults__, function.__kwdefaults__)
    if not _is_of_others(function):
        yield from _named(function.__globals__, _names(function.__code__))


def _names(code: types.CodeType) -> set[str]:
    """The names in a function's code and in that of the functions within."""
    within = [_names(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*within)


def _named(space: dict[str, Any], names: set[str], depth: int = 3) -> Iterator[Any]:
    """The values of these names, in Python modules among them too: ``nets.blocks.norm``."""
    for value in [space[name] for name in names if name in space]:
        if not isinstance(value, types.ModuleType):
            yield value
        elif depth and value.__name__.partition(".")[0] not in OTHERS:
            yield from _named(vars(value), names, depth - 1)


def _is_of_others(value: Any) -> bool:
    return str(getattr(value, "__module__", None)).partition(".")[0] in OTHERS
