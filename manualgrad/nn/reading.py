"""Which activation a class applies to which of its layers, read in the class's own source.

    x = self.fc1(x)                     return self.down(self.act(self.gate(x)) * self.up(x))
    x = self.act(x)

A pair is believed only where the source shows every use: each mention of the activation is a call
on the result of such a layer, and each call of the layer is the argument of that activation, or a
variable that alone it takes, whatever path is taken. Anything else is no find. A run that was
observed is believed but for what the source says of the paths that it did not take.
"""

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator
from types import CodeType
from typing import Any

from torch import nn

SET_UP = ("__init__", "__setstate__", "_init_weights", "init_weights")
FORM = {"device", "dim", "dtype", "ndim", "shape", "size"}  # the same for z and for a
SIMPLE = (ast.AnnAssign, ast.Assign, ast.AugAssign, ast.Expr, ast.Return)
JUMPS = (ast.Break, ast.Continue)
LOOPS = (ast.DictComp, ast.GeneratorExp, ast.ListComp, ast.SetComp)
PERHAPS = (ast.BoolOp, ast.IfExp, ast.Lambda, *LOOPS)  # what stands in these may not run, or often
WALKS = {"_modules", "children", "named_children"}  # a forward that calls its modules unnamed

UNKNOWN = ""  # an attribute is mentioned, not called: in a list, by its name, as an argument
Notes = dict[str, set[str | None]]  # None: it is called, and not in such a pair


def applied(cls: type, layers: frozenset[str], acts: frozenset[str]) -> dict[str, str]:
    """{layer: activation} for the attributes of cls that its methods use as such pairs only.

    layers, acts: names of attributes. Empty where the source is not there, or not as plain.
    """
    forward: Any = inspect.unwrap(getattr(cls, "forward"))  # noqa: B009
    if not inspect.isfunction(forward) or _names(forward.__code__) & WALKS:
        return {}
    calls, uses = _noted(cls, layers, acts)
    sound = {}
    for layer, after in calls.items():
        (act,) = after if len(after) == 1 else (None,)
        if act and None not in uses[act]:
            sound[layer] = act
    # the activation of a layer that is not only ever paired is not only ever paired either
    return {l: act for l, act in sound.items() if uses[act] <= set(sound)}


def contradicts(
    cls: type, layers: frozenset[str], acts: frozenset[str], layer: str, act: str | None
) -> bool:
    """The source of cls shows a path on which the layer's result does not go to act alone.

    act: the name of its attribute, None where cls does not hold it.
    """
    calls, uses = _noted(cls, layers, acts)
    after, paired = calls.get(layer, set()), {act or UNKNOWN, UNKNOWN}
    on = uses[act] - {UNKNOWN} if act in uses and act in after else set()
    return not after <= paired or any(x is None or not calls[x] <= paired for x in on)


@functools.cache
def read_elsewhere(cls: type, names: frozenset[str]) -> frozenset[str]:
    """Those of the names that cls's source reads on something else than self, to be called."""
    found = set()
    for tree in filter(None, map(_tree, _methods(cls, names))):
        parents = _parents(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in names:
                if not (_is_self(node.value) or _only_looked_at(node, parents)):
                    found |= {node.attr} if isinstance(node.ctx, ast.Load) else set()
            elif (asked := _getattr_of(node)) and not _is_self(asked[0]):
                found |= names & {getattr(asked[1], "value", None)}
    return frozenset(found)


@functools.cache
def computes_names(cls: type) -> bool:
    """Its forward, or a method that this calls, reads attributes of self by computed names."""
    reached, pending = set(), {"forward"}
    while pending:
        reached |= pending
        functions = [f for f in _functions(cls) if f.__name__ in pending]
        trees = [_tree(f) for f in functions if "getattr" in f.__code__.co_names]
        asked = [_getattr_of(node) for tree in filter(None, trees) for node in ast.walk(tree)]
        for on, name in filter(None, asked):
            if _is_self(on) and not isinstance(name, ast.Constant):
                return True
        pending = {name for f in functions for name in _names(f.__code__)} - reached
    return False


@functools.cache
def _noted(cls: type, layers: frozenset[str], acts: frozenset[str]) -> tuple[Notes, Notes]:
    """For each layer what takes its results, for each activation what it is called on."""
    calls, uses = ({name: set() for name in names} for names in (layers, acts))
    for tree in map(_tree, _methods(cls, layers | acts)):
        if tree is None:
            return {}, {}
        _read(tree, calls, uses)
    return calls, uses


def _functions(cls: type) -> Iterator[Any]:
    """The functions of cls, inherited ones too, but for those that set it up."""
    for base in cls.__mro__:
        if base in (nn.Module, object):
            continue
        for member in vars(base).values():
            function = inspect.unwrap(getattr(member, "fget", member))
            function = getattr(function, "__func__", function)
            if inspect.isfunction(function) and function.__name__ not in SET_UP:
                yield function


def _methods(cls: type, names: frozenset[str]) -> Iterator[Any]:
    """Those whose code speaks of one of the names."""
    return (f for f in _functions(cls) if _names(f.__code__) & names)


def _tree(function: Any) -> ast.Module | None:
    """The function's source, its first parameter called self; None where it is not there."""
    try:
        return _with_self(ast.parse(textwrap.dedent(inspect.getsource(function))))
    except (OSError, TypeError, SyntaxError):
        return None


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


def _parents(tree: ast.AST) -> dict[ast.AST, ast.AST]:
    return {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _getattr_of(node: ast.AST) -> tuple[ast.expr, ast.expr] | None:
    """The object and the name, if node is getattr(object, name)."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return None
    named = node.func.id == "getattr" and len(node.args) > 1
    return (node.args[0], node.args[1]) if named else None


def _read(tree: ast.AST, calls: Notes, uses: Notes) -> None:
    """Note what happens to the result of each layer, and what each activation is called on."""
    parents = _parents(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            # perhaps getattr(self, "fc1")
            for noted in (calls, uses):
                noted.get(node.value, set()).add(UNKNOWN)
        if not isinstance(node, ast.Attribute) or not _is_self(node.value):
            continue
        if node.attr not in calls.keys() | uses.keys() or _only_looked_at(node, parents):
            continue
        noted = calls if node.attr in calls else uses
        if _call_of(node, parents) is None:
            noted[node.attr].add(UNKNOWN)
        elif noted is calls:
            calls[node.attr].add(_activation_after(node, parents, uses))
        else:
            uses[node.attr].add(_layer_under(node, parents, calls))


def _only_looked_at(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """self.fc1.weight, hasattr(self.fc1, "bias"): something of it is read, and it is not called."""
    parent = parents[node]
    if isinstance(parent, ast.Call) and isinstance(parent.func, ast.Name):
        return parent.func.id in ("hasattr", "isinstance")
    looked = isinstance(parent, ast.Attribute) and isinstance(parent.ctx, ast.Load)
    return looked and parent.attr not in ("forward", "__call__")  # type: ignore


def _call_of(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> ast.Call | None:
    """The call self.name(one argument) that node, self.name, is the function of."""
    call = parents[node]
    if isinstance(call, ast.Call) and call.func is node and len(call.args) == 1:
        return call if not call.keywords and not isinstance(call.args[0], ast.Starred) else None
    return None


def _mine(node: ast.AST | None, names: Any) -> str | None:
    """The attribute, if node is self.name(...) for one of the names."""
    func = node.func if isinstance(node, ast.Call) else None
    if isinstance(func, ast.Attribute) and _is_self(func.value):
        return func.attr if func.attr in names else None
    return None


def _activation_after(node: ast.AST, parents, acts) -> str | None:
    """The activation that alone sees the result of the layer's call."""
    call: Any = _call_of(node, parents)
    taker: Any = parents[call]
    if _mine(taker, acts) is None:
        taker = _only_taker(taker, parents)
    act = _mine(taker, acts)
    return act if act is not None and _call_of(taker.func, parents) else None


def _only_taker(statement: Any, parents) -> ast.AST | None:
    """What takes the variable that the statement assigns, where that alone does, on every path."""
    variable = _assigned(statement)
    if variable is None:
        return None
    found, (block, place) = [], _block(statement, parents)
    for later in block[place + 1 :]:
        loads = _loads(later, variable, parents)
        if loads and not isinstance(later, SIMPLE):
            return None
        found += loads
        if isinstance(later, ast.Return) or _assigned(later) == variable:
            break  # it is forgotten
        if _stores(later, variable) or any(isinstance(n, JUMPS) for n in ast.walk(later)):
            return None
    else:
        function = _above(statement, parents, (ast.FunctionDef, ast.AsyncFunctionDef))
        if block is not function.body and found != _loads(function, variable, parents):
            return None
    if len(found) != 1 or isinstance(_above(found[0], parents, (*PERHAPS, ast.stmt)), PERHAPS):
        return None
    return parents[found[0]]


def _loads(node: ast.AST, variable: str, parents) -> list[ast.AST]:
    """Where the variable's value is read, and not its form alone."""
    names = [n for n in ast.walk(node) if isinstance(n, ast.Name) and n.id == variable]
    read = [name for name in names if isinstance(name.ctx, ast.Load)]
    return [name for name in read if getattr(parents[name], "attr", None) not in FORM]


def _stores(node: ast.AST, variable: str) -> bool:
    names = (n for n in ast.walk(node) if isinstance(n, ast.Name) and n.id == variable)
    return any(isinstance(name.ctx, ast.Store) for name in names)


def _layer_under(node: ast.AST, parents, layers) -> str | None:
    """The layer whose result the activation's call is on."""
    call: Any = _call_of(node, parents)
    argument = call.args[0]
    if not isinstance(argument, ast.Name):
        return _mine(argument, layers)
    block, place = _block(_above(call, parents, ast.stmt), parents)
    for before in reversed(block[:place]):
        if _stores(before, argument.id):
            return _mine(before.value, layers) if _assigned(before) == argument.id else None
    return None


def _assigned(statement: Any) -> str | None:
    """x, if the statement is x = ..."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        target = statement.target
    else:
        return None
    return target.id if isinstance(target, ast.Name) else None


def _block(statement: Any, parents) -> tuple[list[Any], int]:
    """The statements that it stands among, and where."""
    blocks = [getattr(parents[statement], name, None) for name in ("body", "orelse", "finalbody")]
    (block,) = (b for b in blocks if isinstance(b, list) and statement in b)
    return block, block.index(statement)


def _above(node: ast.AST, parents, kinds: Any) -> Any:
    """The next of these kinds that the node stands in."""
    node = parents[node]
    while not isinstance(node, kinds):
        node = parents[node]
    return node
