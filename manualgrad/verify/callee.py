"""What is checked, as a function of tensors alone: its arguments' and those it reads besides."""

import copy
import functools
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.parameter import UninitializedBuffer, is_lazy

from manualgrad import compat


class Callee:
    """A function. borrowed: leaf tensors that it reads without their being arguments.

    While the check runs, a borrowed tensor holds the values it is checked at; ``give_back`` ends
    that. It keeps its own memory, gradient and flags.
    """

    module: nn.Module | None = None

    def __init__(self, fn: Any, borrowed: Sequence[Tensor] = ()):
        self.fn = fn
        self.parameters = {f"params[{i}]": p for i, p in enumerate(borrowed)}
        self._own = [(p, p.data, p.requires_grad) for p in borrowed]

    def __call__(self, arguments: Sequence[Any], parameters: Sequence[Tensor]) -> Any:
        for p, value in zip(self.parameters.values(), parameters, strict=True):
            if value is p:
                continue
            if compat.transforms_active() or torch.compiler.is_compiling():
                raise RuntimeError("what fn reads besides its arguments cannot be replaced here")
            p.data = value.detach()
        return self.fn(*arguments)

    def leaf(self, i: int, value: Tensor, live: bool) -> Tensor:
        """Parameter number i, holding value, as a leaf of a new graph."""
        p, _, _ = self._own[i]
        p.data = value.detach()
        return p.requires_grad_(live)

    def give_back(self) -> None:
        for p, data, live in self._own:
            p.data = data
            p.requires_grad_(live)


class ModuleCallee(Callee):
    """A copy of a module, and its parameters. Every call starts from the buffers it was given."""

    fn: nn.Module

    def __init__(self, module: nn.Module, chosen: Iterable[str] | None = None):
        super().__init__(module)
        self.module = module
        self.parameters = dict(module.named_parameters())
        if chosen is not None:
            self.parameters = {name: self.parameters[name] for name in chosen}
        self.buffers = {name: b.detach().clone() for name, b in module.named_buffers()}

    def __call__(self, arguments: Sequence[Any], parameters: Sequence[Tensor]) -> Any:
        state = dict(zip(self.parameters, parameters, strict=True))
        floating = [t.dtype for t in (*parameters, *tensors_of(arguments)) if _is_real(t)]
        exact = bool(floating) and all(dtype == torch.float64 for dtype in floating)
        for name, p in (*self.fn.named_parameters(), *self.buffers.items()):  # not chosen ones too
            if name not in state:
                state[name] = p.detach().double() if exact and _is_real(p) else p.detach().clone()
        return torch.func.functional_call(self.fn, state, tuple(arguments))

    def leaf(self, i: int, value: Tensor, live: bool) -> Tensor:
        return value.detach().requires_grad_(live)

    def give_back(self) -> None:
        pass

    def in_mode(self, training: bool) -> "ModuleCallee":
        """The same module in training or in evaluation."""
        twin = copy.copy(self)
        twin.fn = twin.module = copy.deepcopy(self.fn).train(training)
        return twin


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point()


def name_of(fn: Any) -> str:
    """How a report calls fn."""
    if isinstance(fn, nn.Module):
        return type(fn).__name__
    if isinstance(fn, functools.partial):
        return name_of(fn.func)
    owner = getattr(fn, "__self__", None)
    if isinstance(owner, type) and issubclass(owner, Function):
        return f"{owner.__name__}.apply"
    kind = "__name__" if inspect.isbuiltin(fn) else "__qualname__"
    name = str(getattr(fn, kind, None) or type(fn).__name__)
    return name.split("<locals>.")[-1]


def called(fn: Any, role: str = "fn") -> Any:
    """fn as mg.check takes it: a callable, a module, or an autograd Function for its apply."""
    if isinstance(fn, type) and issubclass(fn, Function):
        return fn.apply
    if not callable(fn) or isinstance(fn, type):
        raise TypeError(
            f"manualgrad.check: {role} must be a callable, a module or an autograd Function, got "
            f"{fn!r:.80}"
        )
    if isinstance(fn, torch.jit.ScriptModule):
        raise TypeError(
            f"manualgrad.check: {role} is a module of torch.jit, whose parameters cannot be "
            f"replaced; pass the module that it was made from"
        )
    return fn


def initialised(module: Any, inputs: Sequence[Any], role: str = "fn") -> Any:
    """A lazy module's copy after one call on the inputs; anything else as it is."""
    if not isinstance(module, nn.Module) or not is_uninitialised(module):
        return module
    module = _copied(module)
    try:
        with torch.no_grad():
            module(*inputs)
    except (Exception, SystemExit) as error:
        raise TypeError(
            f"manualgrad.check: {role} is a lazy {type(module).__name__}, and the call on the "
            f"inputs given that would initialise it raised {type(error).__name__}: {error}; call "
            f"it once first, on inputs that it takes"
        ) from error
    if is_uninitialised(module):
        raise TypeError(
            f"manualgrad.check: {role} is a lazy {type(module).__name__}, which a call on the "
            f"inputs given does not initialise entirely; call it once first"
        )
    return module


def is_uninitialised(module: nn.Module) -> bool:
    return any(map(is_lazy, (*module.parameters(), *module.buffers())))


def callee_of(fn: Any, params: Any = None) -> Callee:
    """fn with the parameters it is differentiated by besides its arguments."""
    if isinstance(fn, nn.Module):
        return ModuleCallee(_copied(fn), _chosen(fn, params))
    return Callee(fn, _borrowed(params))


def _copied(module: nn.Module) -> nn.Module:
    lazy = [b for b in module.buffers() if is_lazy(b)]  # torch copies lazy parameters alone
    buffer: Any = UninitializedBuffer
    memo = {id(b): buffer(device=b.device, dtype=b.dtype) for b in lazy}
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        raise TypeError(
            f"manualgrad.check: {type(module).__name__} cannot be copied ({error}), and a check "
            f"does not touch the caller's; pass a function of its tensors instead"
        ) from error


def _listed(params: Any) -> list[Any]:
    if isinstance(params, nn.Module):
        return list(params.parameters())
    if isinstance(params, dict):
        return list(params.values())
    if isinstance(params, (str, Tensor)) or not isinstance(params, Iterable):
        raise TypeError(
            f"manualgrad.check: params must be a list of tensors or of a module's parameter "
            f"names, got {params!r:.80}"
        )
    return list(params)


def _chosen(module: nn.Module, params: Any) -> list[str] | None:
    """The names of the parameters to differentiate by; None for all."""
    if params is None:
        return None
    name_by_id = {id(p): name for name, p in module.named_parameters()}
    every = dict(module.named_parameters(remove_duplicate=False))  # a tied one has several names
    names = []
    for p in _listed(params):
        own = every.get(p) if isinstance(p, str) else p
        if id(own) not in name_by_id:
            what = repr(p) if isinstance(p, str) else f"{p!r:.80}, no name and no tensor"
            what = "a tensor that is not its own" if isinstance(p, Tensor) else what
            raise ValueError(
                f"manualgrad.check: params names {what}, but {type(module).__name__} has "
                f"{', '.join(every) or 'no parameters'}"
            )
        names.append(name_by_id[id(own)])
    return list(dict.fromkeys(names))


def _borrowed(params: Any) -> list[Tensor]:
    tensors = [] if params is None else _listed(params)
    for i, p in enumerate(tensors):
        if not isinstance(p, Tensor) or not (p.is_floating_point() or p.is_complex()):
            raise TypeError(
                f"manualgrad.check: params[{i}] must be a floating tensor that fn reads besides "
                f"its arguments, got {p!r:.80}"
            )
        if not p.is_leaf:
            raise ValueError(
                f"manualgrad.check: params[{i}] was computed from other tensors; make it an "
                f"argument of fn, or pass what it was computed from"
            )
    return list({id(p): p for p in tensors}.values())


# arguments and results are trees of lists, tuples and dicts with tensors in them


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """The tensors in a tree, in order."""
    yield from (tensor for _, tensor in labelled(tree, ""))


def labelled(tree: Any, label: str) -> Iterator[tuple[str, Tensor]]:
    """(label, tensor) of every tensor in a tree, in order."""
    if isinstance(tree, Tensor):
        yield label, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from labelled(value, f"{label}[{key!r}]")
    elif isinstance(tree, (list, tuple)):
        for i, value in enumerate(tree):
            yield from labelled(value, f"{label}[{i}]")


def with_tensors(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """The same tree with the next tensors in the places of its own."""
    return changed(tree, lambda leaf: next(tensors) if isinstance(leaf, Tensor) else leaf)


def changed(tree: Any, change: Callable[[Any], Any]) -> Any:
    """The same tree with its leaves changed, those that are no tensors too."""
    if isinstance(tree, dict):
        items = {key: changed(value, change) for key, value in tree.items()}
        if isinstance(tree, defaultdict):
            return type(tree)(tree.default_factory, items)
        return type(tree)(items)
    if isinstance(tree, (list, tuple)):
        values = [changed(value, change) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    return change(tree)


def argument_names(fn: Any, count: int) -> list[str]:
    """What fn calls its first arguments, as far as it says; input[i] where it does not."""
    owner = getattr(fn, "__self__", None)
    target = fn.forward if isinstance(fn, nn.Module) else fn
    skip = 0
    if isinstance(owner, type) and issubclass(owner, Function):
        target = owner.forward
        skip = int(owner.setup_context is Function.setup_context)  # forward(ctx, ...)
    try:
        parameters = list(inspect.signature(target).parameters.values())[skip:]
    except (TypeError, ValueError):
        parameters = []
    names = []
    for i in range(count):
        kind = parameters[min(i, len(parameters) - 1)] if parameters else None
        if kind is None or kind.kind in (kind.KEYWORD_ONLY, kind.VAR_KEYWORD):
            names.append(f"input[{i}]")
        elif kind.kind is kind.VAR_POSITIONAL:
            names.append(f"{kind.name}[{i - len(parameters) + 1}]")
        else:
            names.append(kind.name)
    return names
