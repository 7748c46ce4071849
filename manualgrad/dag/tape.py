"""The tape: nodes in the order in which they were computed, and the way back (eq. 13)."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function

from manualgrad.dag import picture, refusals, table, text
from manualgrad.dag.context import Context, differentiable
from manualgrad.dag.node import Node, Sent
from manualgrad.dag.recording import Recording, Watched, first, tensors_in, values_of


class Tape:
    """A graph of values as it was computed; made by ``mg.dag.record()``.

    nodes: every node, in order of creation. order: those that backward visited, as visited.
    recording: inside the with block.
    """

    def __init__(self, names: dict[int, str] | None = None):
        self.nodes: list[Node] = []
        self.order: list[Node] = []
        self.recording = False
        self._leaves: dict[int, tuple[Tensor, Node]] = {}  # by id; the tensor keeps its id taken
        self._names = names or {}
        self._started = False

    # forward

    def watch(self, tensor: Tensor, name: str = "") -> Tensor:
        """The tensor as a leaf of the graph: what it meets from now on is recorded.

        Returns a tensor with the same values to compute with; the original will do as well.
        Tensors that require gradients (a model's parameters) need not be watched.

        Raises TypeError for what is not a floating tensor, ValueError for another tape's,
        RuntimeError for one with hooks, and once the block has ended.
        """
        if not self.recording:
            raise RuntimeError(
                "manualgrad.dag: watch was called after the recording, when nothing comes of it; "
                "call it inside the with block"
            )
        if not isinstance(tensor, Tensor):
            raise TypeError(f"manualgrad.dag: watch takes a tensor, got {tensor!r:.80}")
        if type(tensor) is Watched:
            self._own(tensor, "watch")
            return tensor
        if tensor.is_complex():
            raise TypeError(
                f"manualgrad.dag: watch takes real tensors, for which there are rules, got "
                f"{tensor.dtype}; watch the real and the imaginary part as two tensors"
            )
        if not tensor.is_floating_point() or tensor.layout is not torch.strided:
            raise TypeError(
                f"manualgrad.dag: watch takes dense floating tensors, which have adjoints, got "
                f"{tensor.dtype} {tensor.layout}; pass it to the model as it is"
            )
        if id(tensor) not in self._leaves and tensor.grad_fn is not None:
            raise refusals.of_autograd(tensor)
        return self._watched(self._leaf(tensor, name or "input"))

    def follows(self, tensor: Tensor) -> bool:
        return type(tensor) is Watched or id(tensor) in self._leaves or tensor.requires_grad

    def apply(self, function: Any, inputs: tuple) -> Any:
        """A rule's first result; a node of the graph, if one of its inputs is."""
        refusals.refuse_modes()
        parents: tuple[Node | None, ...] = (None,) * len(inputs)
        if torch.is_grad_enabled():
            parents = tuple([self._parent(i) if isinstance(i, Tensor) else None for i in inputs])
        pairs = zip(inputs, parents, strict=True)
        values = tuple([values_of(i) if p is None else p.value for i, p in pairs])
        needs = tuple([p is not None for p in parents])
        context = Context(function.__name__, needs)
        with torch.no_grad():
            if function.setup_context is Function.setup_context:  # forward takes ctx itself
                output = function.forward(context, *values)
            else:
                output = function.forward(*values)
                function.setup_context(context, values, output)
        value = first(output)
        if not any(needs) or context.is_constant(value):
            return value
        followed = [p.value for p in parents if p is not None]
        refusals.refuse_complex(function, inputs, [value, *followed])
        hidden = output[1:] if isinstance(output, tuple) else ()
        name = table.label(function, inputs)
        node = Node(len(self.nodes), name, value, function, parents, context, hidden)
        self.nodes.append(node)
        return self._watched(node)

    def without_rule(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """A call that has no rule: on the values, if there is no derivative to lose."""
        operands = list(tensors_in((args, kwargs)))
        known = [t for t in operands if type(t) is Watched or id(t) in self._leaves]
        if func == table.REQUIRES_GRAD:
            return bool(known) or operands[0].requires_grad
        if known and func not in table.CONSTANT:
            refusals.refuse_call(func, kwargs, any(type(t) is Watched for t in known))
        values, keywords = values_of(args), values_of(kwargs)
        live = torch.is_grad_enabled() and any(map(self.follows, operands))
        filling = not known and refusals.writes(func, kwargs)  # a parameter that is new, say
        if not live or filling:
            return func(*values, **keywords)
        with torch.no_grad():
            result = func(*values, **keywords)
        if func not in table.CONSTANT and any(map(differentiable, tensors_in(result))):
            raise table.no_rule(func)
        return result

    def _parent(self, tensor: Tensor) -> Node | None:
        """The node of an operand; None for a constant."""
        if type(tensor) is Watched:
            return self._own(tensor, "an operation")
        if id(tensor) in self._leaves:
            return self._leaves[id(tensor)][1]
        if not tensor.requires_grad:
            return None
        if tensor.grad_fn is not None:
            raise refusals.of_autograd(tensor)
        return self._leaf(tensor)

    def _leaf(self, tensor: Tensor, name: str = "parameter") -> Node:
        if id(tensor) not in self._leaves:
            name = self._names.get(id(tensor)) or name
            refusals.refuse_hooks(tensor, name)
            node = Node(len(self.nodes), name, tensor.detach())
            self.nodes.append(node)
            self._leaves[id(tensor)] = tensor, node
        return self._leaves[id(tensor)][1]

    def _watched(self, node: Node) -> Watched:
        watched = Tensor._make_subclass(Watched, node.value, True)
        watched._tape, watched._node = self, node
        return watched

    def _own(self, tensor: Watched, call: str) -> Node:
        if tensor._tape is not self:
            raise ValueError(
                f"manualgrad.dag: {call} was given {tensor._node} of another tape; a graph has one "
                f"tape: pass its detach(), as a constant, or compute it inside this recording"
            )
        return tensor._node

    # backward

    def backward(self, y: Tensor, adjoint: Tensor | None = None) -> None:
        """Visit the nodes that y depends on, last computed first, and sum what each receives.

        A node's successors were computed after it, so the reverse of the order of creation is a
        reverse topological order; it is the one that torch.autograd's engine takes, too. A node
        sends to its inputs in their order. adjoint: of y; 1 if y is a single number.

        Raises ValueError for a y of another tape or of none, for a y with several entries and no
        adjoint, for an adjoint of another shape, and for a graph with a cycle; RuntimeError if it
        ran already, or if a tensor that is needed was changed in place.
        """
        node = self.node(y, "backward")
        if self._started:
            raise RuntimeError(
                "manualgrad.dag: tape.backward ran already, and a tape goes back once; record the "
                "model again for another start"
            )
        sent = refusals.start(node, values_of(adjoint))
        self._started = True
        node.adjoint = sent
        with torch.no_grad():
            for v in reversed(self.nodes[: node.index + 1]):
                if v.adjoint is not None:
                    self._visit(v)

    def _visit(self, v: Node) -> None:
        self.order.append(v)
        adjoint = cast(Tensor, v.adjoint)
        if v.is_leaf:
            return
        for parent in v.parents:
            if parent is not None and parent.index >= v.index:
                raise ValueError(
                    f"manualgrad.dag: the graph has a cycle: {v} has the parent {parent}, which "
                    f"was not computed before it"
                )
        for position, (parent, sent) in enumerate(zip(v.parents, v.backward(adjoint), strict=True)):
            if parent is not None and sent is not None:
                parent.receive(Sent(v.index, position, sent))
        v.context = None  # what it kept for this is needed no more

    # what came back

    def node(self, tensor: Tensor, call: str = "node") -> Node:
        """The node of a watched tensor, of its original, or of a parameter."""
        if not isinstance(tensor, Tensor):
            raise TypeError(f"manualgrad.dag: tape.{call} takes a tensor, got {tensor!r:.80}")
        if type(tensor) is Watched:
            return self._own(tensor, f"tape.{call}")
        if id(tensor) in self._leaves:
            return self._leaves[id(tensor)][1]
        if tensor.grad_fn is not None:
            raise refusals.of_autograd(tensor)
        raise ValueError(
            f"manualgrad.dag: tape.{call} got a tensor of shape {tuple(tensor.shape)} that is "
            f"not on this tape: it is a constant, or was computed outside mg.dag.record() or under "
            f"torch.no_grad(); pass inputs through tape.watch(), and compute inside the block"
        )

    def adjoint(self, tensor: Tensor) -> Tensor:
        """v_bar = dC/dv: the sum over successors (eq. 13); zeros if y does not depend on it.

        A copy, the caller's to change: nodes that send on what they received share its memory.
        """
        node = self._visited(tensor, "adjoint")
        return torch.zeros_like(node.value) if node.adjoint is None else _copied(node.adjoint)

    def contributions(self, tensor: Tensor) -> list[Tensor]:
        """What each successor sent, in the order of arrival; they add up to the adjoint.

        A successor that takes the tensor twice (x * x) sends twice. Copies, as adjoint's.
        """
        return [_copied(sent.adjoint) for sent in self._visited(tensor, "contributions").received]

    def successors(self, tensor: Tensor) -> list[Node]:
        """Who sent: the nodes in the order of contributions."""
        return [self.nodes[s.successor] for s in self._visited(tensor, "successors").received]

    # renderings

    def __str__(self) -> str:
        """A row per node, as backward visits them: all of them before it ran."""
        return text.as_table(text.shown(self.nodes, self.order))

    def to_dot(self) -> str:
        """The graph in Graphviz's language, with the norms of adjoints on its edges."""
        return text.as_dot(text.shown(self.nodes, self.order))

    def draw(self, path: Any) -> None:
        """Write a picture of the graph, with the norms of adjoints on its edges.

        path: its ending is the format: png, svg or pdf. Raises ValueError for more nodes than a
        page has room for, ImportError without matplotlib, OSError where nothing can be written.
        """
        title = "arrows go the way of the adjoints; numbers are their norms" if self.order else ""
        picture.draw(text.shown(self.nodes, self.order), path, title)

    def _visited(self, tensor: Tensor, call: str) -> Node:
        node = self.node(tensor, call)
        if not self._started:
            raise RuntimeError(
                f"manualgrad.dag: tape.{call} is known after tape.backward(y); call that first"
            )
        return node


def _copied(adjoint: Tensor) -> Tensor:
    """In memory of its own, also where entries shared theirs (a sum's adjoint is expanded)."""
    return adjoint.clone(memory_format=torch.contiguous_format)


def record(model: nn.Module | None = None) -> "TapeRecording":
    """A with block that records what is computed in it: ``with mg.dag.record() as tape``.

    In the block every call of torch's and of manualgrad's that meets a tensor of the graph is
    done by its hand-derived rule, or refused (NoRuleError); torch.autograd is not used. Leaves are
    what ``tape.watch`` was given, and every tensor that requires a gradient. Under torch.no_grad()
    nothing is recorded; the results are constants, as everywhere in torch.

    model: whose parameters' names the renderings show.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(
            f"manualgrad.dag: record takes a torch.nn.Module, whose parameters' names it shows, or "
            f"nothing, got {model!r:.80}; pass inputs to tape.watch"
        )
    named = () if model is None else model.named_parameters()
    return TapeRecording(Tape({id(parameter): name for name, parameter in named}))


class TapeRecording(Recording):
    """While it lasts, its tape records."""

    recorder: Tape

    def __enter__(self) -> Tape:
        if self.recorder.recording or self.recorder.nodes:
            raise RuntimeError("manualgrad.dag: a recording is entered once; call record() again")
        self.recorder.recording = True
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.recorder.recording = False
