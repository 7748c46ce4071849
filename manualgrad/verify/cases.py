"""The one table of cases: what `manualgrad check` and the tests walk, so that neither can differ.

A case names an operation with everything that it may depend on, and builds three things: the
function under check, its tensors, and the same function written in torch's own operations.
"""

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manualgrad import functional, losses
from manualgrad.activations import ACTIVATIONS, Activation, activation_of
from manualgrad.backends import OPERATIONS
from manualgrad.nn import MLP, Linear
from manualgrad.verify.report import JUDGES

HALF = (torch.bfloat16, torch.float16)
NARROW = (torch.float32, *HALF)
VALUES = ("oracle", "native")
ALL = tuple(judge for judge in JUDGES if judge != "symbolic")  # it reads formulas, not layers
FORMULAS = ("oracle", "symbolic", "conduct")
NUMBERS = ("oracle", "native", "finite differences", "adjoint", "dag")


@dataclass(frozen=True)
class Case:
    """One row of the table.

    operation: as in manualgrad's public names. activation: of every layer, or "relu-gelu-..." one
    each. shape: of the examples. layout: of the input. frozen: names of tensors that require no
    gradient. skip: "around" for x + chain(x). sharing: "depth" for one weight in every layer,
    "tied" for a weight and its transposed. options: further keywords. judges: who are asked;
    quick: who are asked when time is short. without: questions that other rows ask.
    """

    operation: str
    activation: str = ""
    shape: tuple[int, ...] = (5,)
    dtype: torch.dtype = torch.float64
    layout: str = "contiguous"
    frozen: tuple[str, ...] = ()
    skip: str = ""
    sharing: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    judges: tuple[str, ...] = ALL
    quick: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [self.operation, self.activation, "x".join(map(str, self.shape))]
        parts += [
            str(self.dtype).removeprefix("torch."),
            self.layout if self.layout[0] != "c" else "",
        ]
        parts += [f"frozen {' '.join(self.frozen)}" if self.frozen else ""]
        parts += [
            f"skip {self.skip}" if self.skip else "",
            f"shared {self.sharing}" if self.sharing else "",
        ]
        parts += [key if value is True else f"{key}={value}" for key, value in self.options]
        return " ".join(filter(None, parts))

    def build(self, device: str = "cpu") -> tuple[Callable, tuple, Callable]:
        """(function, inputs, reference), the inputs on device and requiring what is not frozen."""
        return BUILDERS[self.operation](self, Source(self, device))


class Source:
    """The random tensors of a case, in its dtype and on a device, the same each time."""

    def __init__(self, case: Case, device: str):
        self.case, self.device = case, device
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, name: str, *shape: int, scale: float = 1.0) -> Tensor:
        """Normal numbers, named: a frozen one requires no gradient."""
        values = torch.randn(shape, generator=self.generator, dtype=torch.float64) * scale
        tensor = values.to(self.device, self.case.dtype)
        return tensor.requires_grad_(name not in self.case.frozen)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator).to(self.device)

    def input(self, *shape: int) -> Tensor:
        x = self("input", *shape, scale=2.0)
        if self.case.layout == "transposed":
            x = x.detach().mT.contiguous().mT.requires_grad_(x.requires_grad)
        return x


def twin(act: Activation) -> Callable[[Tensor], Tensor]:
    """sigma in torch's own operations, differentiated by torch's own autograd."""
    if act.name == "hardsigmoid":  # torch's backward takes 1/6 in float32, also for float64
        return lambda z: F.relu6(z + 3.0) / 6.0
    return act.oracle


# the operations


def _linear_act(case: Case, source: Source) -> tuple[Callable, tuple, Callable]:
    options = dict(case.options)
    act = activation_of(case.activation, "check")
    inputs = [source.input(*case.shape, 3), source("weight", 4, 3)]
    if options.get("bias", True):
        inputs.append(source("bias", 4))

    def linear_act(input, weight, bias=None):
        return functional.linear_act(input, weight, bias, act)

    def reference(input, weight, bias=None):
        return twin(act)(F.linear(input, weight, bias))

    return linear_act, tuple(inputs), reference


def _mlp(case: Case, source: Source) -> tuple[Callable, tuple, Callable]:
    options = dict(case.options)
    acts = [activation_of(name, "check") for name in case.activation.split("-")]
    sizes = [4] * 4 if case.sharing or case.skip else [3, 5, 4, 2]
    x = source.input(*case.shape, sizes[0])
    count = 1 if case.sharing else 3
    weights = [source(f"weights[{l}]", sizes[l + 1], sizes[l], scale=0.8) for l in range(count)]
    biases: list[Tensor | None] = [source(f"biases[{l}]", sizes[l + 1]) for l in range(count)]
    if count == 3:
        biases[1] = None

    def layers(weights, biases):
        if case.sharing == "depth":
            return weights * 3, biases * 3
        if case.sharing == "tied":
            return [weights[0], weights[0].T, weights[0]], biases * 3
        return weights, biases

    def mlp(input, weights, biases):
        a = functional.mlp(input, *layers(weights, biases), acts, **options)
        return input + a if case.skip else a

    def reference(input, weights, biases):
        a = input
        for weight, bias, act in zip(*layers(weights, biases), acts, strict=True):
            a = twin(act)(F.linear(a, weight, bias))
        return input + a if case.skip else a

    return mlp, (x, weights, biases), reference


MODULES = {"identity": nn.Identity, "relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


def _module(case: Case, source: Source) -> tuple[Callable, tuple, Callable]:
    options, acts = dict(case.options), case.activation.split("-")
    sizes = [3, 5, 4, 2][: len(acts) + 1]
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        layers = list(zip(sizes[:-1], sizes[1:], acts, strict=True))
        parts = [m for k, n, act in layers for m in (nn.Linear(k, n), MODULES[act]())]
        reference = nn.Sequential(*parts)
        if case.operation == "nn.Linear":
            made: nn.Module = Linear(sizes[0], sizes[1], activation=acts[0])
        elif case.operation == "nn.MLP":
            made = MLP(sizes, acts[:-1], out_activation=acts[-1], **options)
        else:
            made = MLP.from_sequential(copy.deepcopy(reference))
    where = {"device": source.device, "dtype": case.dtype}
    return made.to(**where), (source.input(*case.shape, 3),), reference.to(**where)


def _loss(case: Case, source: Source) -> tuple[Callable, tuple, Callable]:
    options = dict(case.options)
    kind = options.pop("target", "")
    shape = (*case.shape[:1], 5, *case.shape[1:])
    z = source("input", *shape)
    if kind == "indices":
        target = source.integers(5, *case.shape)
        target.view(-1)[0] = 2  # not everything is ignored
    else:
        target = source("target", *shape).detach()
        target = target if case.operation == "mse_loss" else target.softmax(1)
        target.requires_grad_("target" not in case.frozen)
    of_classes = case.operation == "cross_entropy"
    sizes = {"weight": (5,) if of_classes else shape, "pos_weight": shape[-1:]}
    weights = {name: source(name, *sizes[name]).detach().exp() for name in sizes if name in options}
    options = {key: value for key, value in options.items() if key not in weights}
    ours, theirs = getattr(losses, case.operation), getattr(F, case.operation)

    def of(cost: Callable) -> Callable:
        def loss(input, target, *given):
            return cost(input, target, **dict(zip(weights, given, strict=True)), **options)

        return loss

    return of(ours), (z, target, *weights.values()), of(theirs)


BUILDERS: dict[str, Callable[[Case, Source], tuple[Callable, tuple, Callable]]] = {
    "linear_act": _linear_act,
    "mlp": _mlp,
    "nn.Linear": _module,
    "nn.MLP": _module,
    "nn.MLP.from_sequential": _module,
    "mse_loss": _loss,
    "cross_entropy": _loss,
    "binary_cross_entropy_with_logits": _loss,
}


# the table


def of_activation(name: str) -> Iterator[Case]:
    """Its formulas, one layer, a chain of three, and the operations that it enters: every dtype."""
    three = f"{name}-tanh-{name}"
    once = ("torch.compile", "forward over reverse")  # a chain is there a row of such layers
    yield Case("formulas", name, (), judges=FORMULAS, quick=FORMULAS)
    yield Case("linear_act", name)
    yield Case("mlp", three, quick=NUMBERS, without=once)
    recompute = (("recompute", True),)
    backward = (*once, "forward mode", "forward mode against backward")  # nothing is kept for it
    yield Case("mlp", three, options=recompute, judges=(*NUMBERS, "conduct"), without=backward)
    for dtype in NARROW:
        yield Case("linear_act", name, (33,), dtype, judges=(*VALUES, "conduct"), without=once)
        quick = () if dtype == torch.float32 else VALUES
        yield Case("mlp", three, (33,), dtype, judges=VALUES, quick=quick)
    for operation, dtype in itertools.product(OPERATIONS[:3], (torch.float64, *NARROW)):
        yield Case(operation, name, (), dtype, judges=("kernel",))


def of_chains() -> Iterator[Case]:
    """What a chain may be besides its activations."""
    for act in ("relu", "gelu", "identity"):
        yield Case("linear_act", act, (2, 3), layout="transposed", options=(("bias", False),))
    for acts in ("relu-gelu-identity", "silu-identity-sigmoid", "identity-identity-identity"):
        for recompute in ((), (("recompute", True),)):
            yield Case("mlp", acts, options=recompute)
            yield Case("mlp", acts, (2, 3), layout="transposed", skip="around", options=recompute)
            for sharing in ("depth", "tied"):
                yield Case("mlp", acts, sharing=sharing, options=recompute)
    yield Case("mlp", "gelu-relu-tanh", frozen=("input", "weights[0]", "biases[0]"))
    yield Case("mlp", "gelu-relu-tanh", frozen=("weights[1]", "weights[2]"))


def of_modules() -> Iterator[Case]:
    for act in ("relu", "gelu", "identity"):
        quick = ALL if act == "gelu" else ()
        yield Case("nn.Linear", act, dtype=torch.float32, quick=quick)
    for recompute in ((), (("recompute", True),)):
        yield Case("nn.MLP", "gelu-tanh-identity", dtype=torch.float32, options=recompute)
    yield Case("nn.MLP.from_sequential", "relu-gelu-tanh", dtype=torch.float32)


def of_operations() -> Iterator[Case]:
    """BP3 and BP4, which know no activation."""
    for operation, dtype in itertools.product(OPERATIONS[3:], (torch.float64, *NARROW)):
        yield Case(operation, "identity", (), dtype, judges=("kernel",))


def of_losses() -> Iterator[Case]:
    for reduction, shape in itertools.product(("mean", "sum", "none"), ((4,), (3, 2))):
        one = {"shape": shape, "quick": NUMBERS if shape == (4,) else ()}
        base = (("reduction", reduction),)
        yield Case("mse_loss", options=base, **one)
        weighted = (("weight", True), ("pos_weight", True))
        for options in ((), weighted) if shape == (4,) else ((),):
            yield Case("binary_cross_entropy_with_logits", options=(*base, *options), **one)
        for target, options in (
            ("indices", ()),
            ("indices", (("weight", True), ("label_smoothing", 0.2), ("ignore_index", 2))),
            ("probabilities", (("label_smoothing", 0.2),)),
        ):
            kind = (("target", target), *base)
            yield Case("cross_entropy", options=(*kind, *options), **one)
    for operation, dtype in itertools.product(
        ("mse_loss", "binary_cross_entropy_with_logits", "cross_entropy"), NARROW
    ):
        options = (("target", "indices"),) if operation == "cross_entropy" else ()
        yield Case(
            operation, shape=(32,), dtype=dtype, options=options, judges=(*VALUES, "conduct")
        )


def table() -> list[Case]:
    """Every case, those of newly registered activations included."""
    rows = [case for name in sorted(ACTIVATIONS) for case in of_activation(name)]
    return [*rows, *of_operations(), *of_chains(), *of_modules(), *of_losses()]
