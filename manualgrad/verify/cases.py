"""The cases that `manualgrad check` and the tests ask about: what one is, and how it is built.

A case names an operation with everything that it may depend on, and builds three things: the
function under check, its tensors, and the same function written in torch's own operations.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manualgrad import functional, losses
from manualgrad.activations import Activation, activation_of
from manualgrad.chain import KINDS, Skip
from manualgrad.nn import MLP, Linear
from manualgrad.verify.report import JUDGES

ALL = tuple(judge for judge in JUDGES if judge != "symbolic")  # it reads formulas, not layers


@dataclass(frozen=True)
class Case:
    """One row of the table.

    operation: as in manualgrad's public names. activation: of every layer, or "relu-gelu-..." one
    each. shape: of the examples. layout: of the input. frozen: names of tensors that require no
    gradient. skip: "around" for x + chain(x), or the kind of two skips inside the chain. sharing:
    "depth" for one weight in every layer, "tied" for a weight and its transposed. options: further
    keywords. judges: who are asked; quick: who are asked when time is short. without: questions
    that other rows ask.
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

    learned = options.pop("learned", False)
    scales = (source("scale", 4), source("scale", 1)) if learned else ()
    inside = _skips(case.skip, ())

    def mlp(input, weights, biases, *scales):
        skips = _skips(case.skip, scales)
        a = functional.mlp(input, *layers(weights, biases), acts, skips=skips, **options)
        return input + a if case.skip == "around" else a

    def reference(input, weights, biases, *scales):
        a, z = [input], [input]
        ends = {skip.end: skip for skip in inside}
        for l, (weight, bias, act) in enumerate(zip(*layers(weights, biases), acts, strict=True)):
            u, skip = F.linear(a[l], weight, bias), ends.get(l + 1)
            scale: Any = (scales or NUMBERS)[inside.index(skip)] if skip else None
            if skip and skip.kind != "out":
                u = (z if skip.kind == "pre" else a)[skip.start] + scale * u
            z.append(u)
            a.append(twin(act)(u))
            if skip and skip.kind == "out":
                a[-1] = a[skip.start] + scale * a[-1]
        return input + a[-1] if case.skip == "around" else a[-1]

    return mlp, (x, weights, biases, *scales), reference


NUMBERS = (1.0, 0.5)  # scales that are not learned


def _skips(kind: str, scales: tuple) -> list[Skip]:
    """Two skips in a chain of three layers that overlap at their start."""
    if kind not in KINDS:
        return []
    places = ((1, 2), (1, 3)) if kind == "pre" else ((0, 1), (0, 3))
    return [Skip(*at, kind, scale) for at, scale in zip(places, scales or NUMBERS, strict=True)]


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
