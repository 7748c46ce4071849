"""Which activation a class applies to which of its layers, read in the class's own source.

    x = self.fc1(x)                     return self.down(self.act(self.gate(x)) * self.up(x))
    x = self.act(x)

A pair is believed only where the source shows every use: each mention of the activation is a call
on the result of such a layer, and each call of the layer is the argument of that activation, or a
variable that the next statement hands to it and then forgets. Anything else is no find.
"""

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator
from types import CodeType
from typing import Any

from torch import nn

SET_UP = ("__init__", "__setstate__")
WALKS = {"_modules", "children", "named_children"}  # a forward that calls its modules unnamed


@functools.cache
def applied(cls: type, layers: frozenset[str], acts: frozenset[str]) -> dict[str, str]:
    """{layer: activation} for the attributes of cls that its methods use as such pairs only.

    layers, acts: names of attributes. Empty where the source is not there, or not as plain.
    """
    forward: Any = inspect.unwrap(getattr(cls, "forward"))  # noqa: B009
    if not inspect.isfunction(forward) or _names(forward.__code__) & WALKS:
        return {}
    calls: dict[str, set[str | None]] = {name: set() for name in layers}
    uses: dict[str, set[str | None]] = {name: set() for name in acts}
    for function in _methods(cls, layers | acts):
        try:
            source = textwrap.dedent(inspect.getsource(function))
            tree = ast.parse(source)
        except (OSError, TypeError, SyntaxError):
            return {}
        _read(_with_self(tree), calls, uses)
    sound = {}
    for layer, after in calls.items():
        (act,) = after if len(after) == 1 else (None,)
        if act is not None and None not in uses[act]:
            sound[layer] = act
    # the activation of a layer that is not only ever paired is not only ever paired either
    return {l: act for l, act in sound.items() if uses[act] <= set(sound)}


def _methods(cls: type, names: frozenset[str]) -> Iterator[Any]:
    """The functions of cls, inherited ones too, whose code speaks of one of the names."""
    for base in cls.__mro__:
        if base in (nn.Module, object):
            continue
        for member in vars(base).values():
            function = inspect.unwrap(getattr(member, "fget", member))
            function = getattr(function, "__func__", function)
            runs = inspect.isfunction(function) and function.__name__ not in SET_UP
            if runs and _names(function.__code__) & names:
                yield function


def _names(code: CodeType) -> set[str]:
    """Attributes and strings that a function's code mentions, inner functions included."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
        elif isinstance(constant, str):
            names.add(constant)
    return names


def _with_self(tree: ast.Module) -> ast.Module:
    """The same method, its first parameter called self."""
    function = tree.body[0]
    if isinstance(function, ast.FunctionDef) and function.args.args:
        first = function.args.args[0].arg
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id == first:
                node.id = "self"
    return tree


def _read(tree: ast.AST, calls: dict[str, set[str | None]], uses: dict[str, set[str | None]]):
    """Note what happens to the result of each layer, and what each activation is called on."""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in calls.keys() | uses.keys():
            for noted in (calls, uses):  # perhaps getattr(self, "fc1")
                if node.value in noted:
                    noted[node.value].add(None)
        if not isinstance(node, ast.Attribute):
            continue
        mine = isinstance(node.value, ast.Name) and node.value.id == "self"
        if mine and node.attr in calls:
            if not _only_looked_at(node, parents):
                calls[node.attr].add(_activation_after(node, parents, uses))
        elif mine and node.attr in uses:
            if not isinstance(node.ctx, ast.Load) or _layer_under(node, parents, calls) is None:
                if not _only_looked_at(node, parents):
                    uses[node.attr].add(None)
            else:
                uses[node.attr].add(_layer_under(node, parents, calls))


def _only_looked_at(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """self.fc1.weight: an attribute of it is read, and it is not called."""
    parent = parents[node]
    return isinstance(parent, ast.Attribute) and isinstance(parent.ctx, ast.Load)


def _call_of(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> ast.Call | None:
    """The call self.name(one argument) that node, self.name, is the function of."""
    call = parents[node]
    if isinstance(call, ast.Call) and call.func is node and len(call.args) == 1:
        return call if not call.keywords and not isinstance(call.args[0], ast.Starred) else None
    return None


def _mine(node: ast.AST, names: Any) -> str | None:
    """The attribute, if node is self.name(...) for one of the names."""
    func = node.func if isinstance(node, ast.Call) else None
    if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name):
        return func.attr if func.value.id == "self" and func.attr in names else None
    return None


def _activation_after(node: ast.AST, parents, acts) -> str | None:
    """The activation that alone sees the result of the layer's call."""
    call = _call_of(node, parents)
    if call is None:
        return None
    parent = parents[call]
    act = _mine(parent, acts)
    if act is not None:
        return act if _call_of(parent.func, parents) else None  # type: ignore
    nxt = _next_statement(parent, parents)
    if nxt is None or not isinstance(nxt.value, ast.Call):
        return None
    act, variable = _mine(nxt.value, acts), parent.targets[0].id  # type: ignore
    if act is None or _call_of(nxt.value.func, parents) is None:
        return None
    argument = nxt.value.args[0]
    if not (isinstance(argument, ast.Name) and argument.id == variable):
        return None
    forgotten = isinstance(nxt, ast.Return) or _assigned(nxt) == variable
    return act if forgotten or _mentions(variable, parent, parents) == 2 else None


def _layer_under(node: ast.AST, parents, layers) -> str | None:
    """The layer whose result the activation's call is on."""
    call = _call_of(node, parents)
    if call is None:
        return None
    argument = call.args[0]
    layer = _mine(argument, layers)
    if layer is not None:
        return layer
    before = _statement_before(parents[call], parents)
    if before is None or not isinstance(argument, ast.Name) or _assigned(before) != argument.id:
        return None
    return _mine(before.value, layers)


def _assigned(statement: ast.AST) -> str | None:
    """x, if the statement is x = ..."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
        return target.id if isinstance(target, ast.Name) else None
    return None


def _neighbour(statement: ast.AST, parents, step: int) -> Any:
    if not isinstance(statement, (ast.Assign, ast.Return)):
        return None
    for block in ("body", "orelse", "finalbody"):
        statements = getattr(parents[statement], block, None)
        if isinstance(statements, list) and statement in statements:
            i = statements.index(statement) + step
            found = statements[i] if 0 <= i < len(statements) else None
            return found if isinstance(found, (ast.Assign, ast.Return)) else None
    return None


def _next_statement(statement: ast.AST, parents) -> Any:
    return _neighbour(statement, parents, 1) if _assigned(statement) is not None else None


def _statement_before(statement: ast.AST, parents) -> Any:
    return _neighbour(statement, parents, -1)


def _mentions(variable: str, node: ast.AST, parents) -> int:
    """How often the function that node stands in speaks of the variable."""
    while not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        node = parents[node]
    return sum(isinstance(n, ast.Name) and n.id == variable for n in ast.walk(node))
