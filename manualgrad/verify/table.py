"""The one table: what `manualgrad check` and the tests ask about the library, row by row."""

import itertools
from collections.abc import Iterator

import torch

from manualgrad.activations import ACTIVATIONS
from manualgrad.backends import OPERATIONS
from manualgrad.chain import KINDS
from manualgrad.verify.cases import ALL, Case

HALF = (torch.bfloat16, torch.float16)
NARROW = (torch.float32, *HALF)
VALUES = ("oracle", "native")
FORMULAS = ("oracle", "symbolic", "conduct")
NUMBERS = ("oracle", "native", "finite differences", "adjoint", "dag")


def of_activation(name: str) -> Iterator[Case]:
    """Its formulas, one layer, a chain of three, and the operations that it enters: every dtype."""
    three = f"{name}-tanh-{name}"
    once = ("torch.compile", "forward over reverse", "batches of every shape")  # of one layer
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


def of_skips() -> Iterator[Case]:
    """Every kind of skip, in chains that keep a, z, or neither, with and without shared weights.

    Under autocast a chain with its skips is in autocast's dtype, where the reference's sum is in
    the input's. An infinite scale of a branch makes no sense.
    """
    wider, mixed = ("autocast",), "relu-gelu-tanh"
    forward = ("forward mode", "forward over reverse", "forward mode against backward")
    once = (*wider, *forward, "torch.compile", "batches of every shape")  # they see no sharing
    options = (("learned", True), ("recompute", True))
    for kind in KINDS:
        for sharing in ("", "depth", "tied"):
            for acts in ("tanh-relu-tanh", "gelu-silu-gelu", "identity-identity-identity"):
                quick = ("native",) if sharing == "depth" else ()
                without = once if sharing else wider
                yield Case("mlp", acts, skip=kind, sharing=sharing, quick=quick, without=without)
        for learned in (options[:1], options):
            without = (*wider, "values far out", "gradients far out", "batches of every shape")
            yield Case("mlp", mixed, (3,), skip=kind, options=learned, without=without)
        yield Case("mlp", mixed, (33,), torch.bfloat16, skip=kind, judges=VALUES)


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
    others = (of_operations(), of_chains(), of_skips(), of_modules(), of_losses())
    return [*rows, *itertools.chain(*others)]
