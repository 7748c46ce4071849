"""While a model runs, torch's functions are caught and their rules applied.

A mode catches every call of torch's and ours in the thread that records, and a Watched catches what
happens to it anywhere else, so that nothing is left out in silence.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from manualgrad.dag import refusals, table


class Recorder(Protocol):
    """Who applies the rules: a Tape, or torch.autograd."""

    def follows(self, tensor: Tensor) -> bool:
        """Is the tensor part of the graph?"""
        ...

    def apply(self, function: Any, inputs: tuple) -> Tensor:
        """The first result of a rule, as part of the graph if one of its inputs is."""
        ...

    def without_rule(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """A call that has no rule, or concerns nothing of the graph."""
        ...


NUMPYS: dict[str, str] = {"axis": "dim", "keepdims": "keepdim"}  # names that torch takes, too

_threads = threading.local()


def recorders() -> list[Recorder]:
    """Those of this thread, the innermost last."""
    if not hasattr(_threads, "recorders"):
        _threads.recorders = []
    return _threads.recorders


def apply(function: Any, *inputs: Any) -> Any:
    """The first result of an autograd Function, as a node of the graph that is being recorded.

    function: a torch.autograd.Function with static forward, setup_context and backward (or the
    older forward that takes ctx). inputs: what its forward takes; tensors stand on their own, not
    in lists.

    Inside ``mg.dag.record()`` the tape drives the Function's own methods; anywhere else this is
    function.apply, and torch.autograd's.
    """
    active = recorders()
    if active:
        return active[-1].apply(function, inputs)
    return first(function.apply(*map(value_of, inputs)))


def dispatch(func: Callable, args: tuple, kwargs: dict) -> Any:
    """A call of func, by its rule where it has one and where the graph is concerned."""
    active = recorders()
    if not active:
        return func(*values_of(args), **values_of(kwargs))
    refusals.refuse_compiled()
    recorder = active[-1]
    spelled = table.spelling(func)
    if spelled is not None and _of_the_graph(recorder, args, kwargs):
        return spelled(
            *args, **{NUMPYS.get(str(key), str(key)): value for key, value in kwargs.items()}
        )
    return recorder.without_rule(func, args, kwargs)


def _of_the_graph(recorder: Recorder, args: tuple, kwargs: dict) -> bool:
    """Is this a call to record? One that writes to its arguments is not: it is refused."""
    if not torch.is_grad_enabled() or kwargs.get("inplace") or kwargs.get("out") is not None:
        return False
    return any(recorder.follows(t) for t in tensors_in((args, kwargs)))


class Watched(Tensor):
    """A value of the graph, as the model sees it.

    It requires a gradient, so that whatever reaches it past its tape (a Function applied by
    torch.autograd, say) carries torch's own graph, which the tape refuses instead of taking it for
    a constant.
    """

    _tape: Any
    _node: Any

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


class Mode(TorchFunctionMode):
    """Catches the calls that no Watched takes part in: parameters meet constants."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


def recorded() -> TorchFunctionMode:
    """Inside what a recorder was handed: its calls are caught as the model's own are."""
    return Mode()


class Recording:
    """A with block in which the calls of this thread go to a recorder."""

    def __init__(self, recorder: Recorder):
        self.recorder = recorder

    def __enter__(self) -> Any:
        self._grad, self._mode = torch.enable_grad(), Mode()
        recorders().append(self.recorder)
        self._mode.__enter__()
        self._grad.__enter__()
        return self.recorder

    def __exit__(self, *error: Any) -> None:
        self._grad.__exit__(*error)
        self._mode.__exit__(*error)
        recorders().remove(self.recorder)


class Autograd:
    """The rules as torch.autograd runs them: one Function.apply each."""

    def follows(self, tensor: Tensor) -> bool:
        return tensor.requires_grad

    def apply(self, function: Any, inputs: tuple) -> Tensor:
        value = first(function.apply(*inputs))
        if torch.is_grad_enabled() and isinstance(value, Tensor) and value.requires_grad:
            followed = [i for i in inputs if isinstance(i, Tensor) and i.requires_grad]
            refusals.refuse_complex(function, inputs, [value, *followed])
        return value

    def without_rule(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        result = func(*args, **kwargs)
        if torch.is_grad_enabled() and func not in table.CONSTANT:
            results = list(tensors_in(result))
            given = list(tensors_in((args, kwargs)))
            made = [t for t in results if all(t is not g for g in given)]
            if any(t.requires_grad and t.grad_fn is not None for t in made):
                raise table.no_rule(func)
        return result


def through_autograd() -> Recording:
    """A with block in which the same rules run under torch.autograd: the other engine.

    As ``mg.dag.record()`` it takes a model as it is; gradients then come from loss.backward() or
    torch.autograd.grad. Both engines run the same Functions in the same order, so their gradients
    are equal bit for bit. An operation without a rule raises NoRuleError here too.
    """
    return Recording(Autograd())


# tensors among arguments


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and dictionaries."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from tensors_in(value)
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from tensors_in(value)


def values_of(tree: Any) -> Any:
    """The same with the values in place of what is watched."""
    if type(tree) is Watched:
        return value_of(tree)
    if type(tree) in (list, tuple):
        return type(tree)(map(values_of, tree))
    if type(tree) is dict:
        return {key: values_of(value) for key, value in tree.items()}
    return tree


def value_of(operand: Any) -> Any:
    """The plain tensor behind a watched one, once nobody records what is done with it."""
    if type(operand) is not Watched:
        return operand
    if operand._tape.recording and operand._tape not in recorders():
        raise RuntimeError(
            "manualgrad.dag: a watched tensor is used in another thread than the one that records "
            "it; run the model in one thread, or pass its detach() there"
        )
    return operand._node.value


def first(output: Any) -> Any:
    """What a rule gives to its caller; further results are its own."""
    return output[0] if isinstance(output, tuple) else output
