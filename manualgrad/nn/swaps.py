"""Reversible changes of single modules: the instance gets another class, and nothing else moves.

The new class is a subclass of the module's own, so isinstance, names, parameters, hooks and
state_dict stay. What it needs to know stands in the instance, so that copies and pickles of a
patched model are patched models, and ``restore`` needs nothing but the module.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from manualgrad import compat, functions
from manualgrad.activations import Activation
from manualgrad.chain import Chain
from manualgrad.functional import run
from manualgrad.walks import IDENTITY

Constants = tuple[tuple[str, Any], ...]


class Swapped:
    """The first base of every swapped class; the module's own class is the second.

    _original: that class. _fused_state: the names of what the swap keeps in the instance. (Their
    underscores keep them clear of a module's children, which may be called anything.)
    """

    _original: type
    _fused_state: tuple[str, ...] = ()

    def stands(self) -> bool:
        """What the swap was made for is there still; if not, the module works as its own class."""
        raise NotImplementedError

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As the original class does it, but for the class: no import would find ours."""
        make, arguments, *rest = cast(tuple, super().__reduce_ex__(protocol))
        if arguments == (type(self),):  # make is copyreg's: cls.__new__(cls)
            make, arguments = _new, (type(self).__mro__[1], self._original)
        return make, arguments, *rest


@functools.cache
def swapped_class(how: type[Swapped], original: type) -> type:
    """The one subclass of original that works as ``how`` says; its name is original's.

    Called, it makes one of the original: a slice of a Sequential calls its class.
    """

    @functools.wraps(original.__init__)
    def as_original(self: Any, *args: Any, **kwargs: Any) -> None:
        restore(self)
        self.__init__(*args, **kwargs)

    names = {key: getattr(original, key) for key in ("__module__", "__qualname__", "__doc__")}
    own = {**names, "_original": original, "__init__": as_original}
    return type(original.__name__, (how, original), own)


def _new(how: type[Swapped], original: type) -> Any:
    cls: Any = swapped_class(how, original)
    return cls.__new__(cls)


def swap(module: nn.Module, how: type[Swapped], **state: Any) -> None:
    """Give module the class that works as ``how`` says, and the state that it reads."""
    module.__dict__.update(state)
    module.__class__ = swapped_class(how, type(module))


def restore(module: nn.Module) -> None:
    """Give a swapped module its own class back."""
    cls: Any = type(module)
    module.__class__ = cls._original
    for name in cls._fused_state:
        module.__dict__.pop(name, None)


def is_swapped(module: Any) -> bool:
    return isinstance(module, Swapped)


def constants_of(act: nn.Module) -> Constants:
    """The attributes of an activation module that its formula may depend on, with their values."""
    own = act.__dict__.items()
    return tuple((n, v) for n, v in own if not n.startswith("_") and n != "training")


def still_has(act: nn.Module, constants: Constants) -> bool:
    """Its constants are those that constants_of gave."""
    for name, value in constants:  # noqa: SIM110, asked in each call, where a generator is slow
        if getattr(act, name, None) != value:
            return False
    return True


@dataclass(frozen=True, eq=False)
class Run:
    """Neighbours in a Sequential, the children start..stop-1, that are one chain.

    linears: the positions of the Linears among them. acts: those of the others, their activations,
    with class and constants. chain: the activations, with the input's.
    """

    start: int
    stop: int
    linears: tuple[int, ...]
    acts: tuple[tuple[int, type, Constants], ...]
    chain: Chain

    def stands(self, children: Sequence[nn.Module]) -> bool:
        """The children are still no more than their weights and formulas: no hooks, no changes."""
        for i in range(self.start, self.stop):
            child = children[i]
            forward = nn.Linear.forward if i in self.linears else type(child).forward
            if not compat.is_its_weights(child, forward) or is_compiled(child):
                return False
        for i, cls, constants in self.acts:
            if type(children[i]) is not cls or not still_has(children[i], constants):
                return False
        return True


class ChainedSequential(Swapped):
    """A torch.nn.Sequential that computes each run of Linears and activations as one chain.

    The children stay as they are, for whoever calls them one by one: so does this class, where
    they have got hooks, or are no longer those that the runs were made of.
    """

    _fused_state = ("_fused_names", "_fused_children", "_fused_runs")
    _fused_names: frozenset[str]
    _fused_children: tuple[nn.Module, ...]
    _fused_runs: tuple[Run, ...]

    def forward(self, input: Tensor) -> Tensor:
        children: Any = tuple(cast(nn.Module, self)._modules.values())
        if children != self._fused_children or compat.global_module_hooks():
            return super().forward(input)  # type: ignore
        done = 0
        for fused in self._fused_runs:
            if fused.stands(children):
                for child in children[done : fused.start]:
                    input = child(input)
                input, done = _chained(input, fused, children), fused.stop
        for child in children[done:]:
            input = child(input)
        return input

    def stands(self) -> bool:
        children: Any = tuple(cast(nn.Module, self)._modules.values())
        return children == self._fused_children and all(
            r.stands(children) for r in self._fused_runs
        )

    def extra_repr(self) -> str:
        places = ", ".join(f"{fused.start}-{fused.stop - 1}" for fused in self._fused_runs)
        return (
            f"{places} as one chain each" if len(self._fused_runs) > 1 else f"{places} as a chain"
        )


def _chained(input: Tensor, fused: Run, children: Sequence[Any]) -> Tensor:
    params = [p for i in fused.linears for p in compat.weight_and_bias(children[i])]
    if fused.chain.depth == 1:
        return run("nn.Linear", functions.linear_act, input, fused.chain.acts[1], params)
    return run("mlp", functions.mlp, input, fused.chain, params)


def is_compiled(module: nn.Module) -> bool:
    """After module.compile()."""
    return getattr(module, "_compiled_call_impl", None) is not None


def chain(
    seq: nn.Sequential,
    names: Iterable[str],
    activation_of: Callable[[nn.Module | None], Activation | None],
) -> None:
    """Make seq compute the Linears called ``names``, with the activations behind them, in runs.

    activation_of: the record of a child's activation, None where it is none that we know.
    Where no activation is left to fuse, seq gets its own class back.
    """
    names = frozenset(names)
    children: Any = tuple(seq._modules.items())
    runs: list[Run] = []
    i = 0
    while i < len(children):
        start, linears, acts = i, [], [IDENTITY]
        while i < len(children) and children[i][0] in names:
            linears.append(i)
            act = activation_of(children[i + 1][1]) if i + 1 < len(children) else None
            acts.append(act or IDENTITY)
            i += 1 if act is None else 2
        if any(not act.is_identity for act in acts):
            others = [j for j in range(start, i) if j not in linears]
            modules = [(j, children[j][1]) for j in others]
            formulas = tuple((j, type(act), constants_of(act)) for j, act in modules)
            runs.append(Run(start, i, tuple(linears), formulas, Chain(tuple(acts))))
        i += not linears
    if not is_swapped(seq):
        swap(seq, ChainedSequential)
    if not runs:
        restore(seq)
        return
    seq.__dict__.update(
        _fused_names=names,
        _fused_children=tuple(child for _, child in children),
        _fused_runs=tuple(runs),
    )
