"""Is a shared weight's gradient the sum of the gradients of its uses?

Eq. 13: the adjoint of a node is the sum over its successors, and a shared weight is a node with
several. Each case is computed twice: with one weight for all uses, and with a clone of it per use,
whose gradients are then added. The examples of a batch are rows of one matrix and the weight's
uses one call there, whose sum is BP4's own; the clones are one call each.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import manualgrad as mg
from experiments import native
from experiments.pictures import COLOURS
from experiments.results import Claim, Table, held, more
from experiments.share.common import small
from experiments.statistics import Rows, interval
from experiments.study import DTYPES, Setting

DTYPE = "float32"  # an arm says its own; this is what the gradients' difference is judged by
PANELS = 1
ROUNDING = {"float64": 1e-14, "float32": 1e-6}
DEPTH = 8


@dataclass(frozen=True)
class Config:
    examples: int = 128


CONFIGS = {"smoke": Config(32), "quick": Config(), "full": Config()}

# weights: one per use, or one alone for all; draw: normal numbers, the same in each call
Loss = Callable[[Any, Tensor, Tensor, list[Tensor], Any], Tensor]


def residual(ops: Any, x: Tensor, y: Tensor, weights: list[Tensor], draw: Any) -> Tensor:
    skips = [mg.Skip(l, l + 1, "out", DEPTH**-0.5) for l in range(DEPTH)]
    return _stack(ops, x, y, weights, draw, skips)


def plain(ops: Any, x: Tensor, y: Tensor, weights: list[Tensor], draw: Any) -> Tensor:
    return _stack(ops, x, y, weights, draw, [])


def _stack(ops, x: Tensor, y: Tensor, weights: list[Tensor], draw: Any, skips: list) -> Tensor:
    layers = [weights[l % len(weights)] for l in range(DEPTH)]
    activations = ["relu"] * DEPTH + ["identity"]
    layers.append(draw(10, 64, std=1 / 8))
    return ops.cross_entropy(ops.mlp(x, layers, [None] * len(layers), activations, skips=skips), y)


def autoencoder(ops: Any, x: Tensor, y: Tensor, weights: list[Tensor], draw: Any) -> Tensor:
    layers = [weights[0], weights[-1].T]
    return ops.mse_loss(ops.mlp(x, layers, [None, None], ["tanh", "identity"]), x)


def recurrent(ops: Any, x: Tensor, y: Tensor, weights: list[Tensor], draw: Any) -> Tensor:
    """A row of the image per step; the weight of the state is the one that is shared."""
    of_input, top = draw(32, 8, std=8**-0.5), draw(10, 32, std=32**-0.5)
    state = x.new_zeros(len(x), 32)
    for step, row in enumerate(x.split(8, dim=1)):
        both = torch.cat([of_input, weights[step % len(weights)]], 1)
        state = ops.linear_act(torch.cat([row, state], 1), both, None, "tanh")
    return ops.cross_entropy(ops.linear_act(state, top), y)


def convolution(ops: Any, x: Tensor, y: Tensor, weights: list[Tensor], draw: Any) -> Tensor:
    """3 x 3, at 36 positions of 8 x 8 pixels."""
    patches = torch.nn.functional.unfold(x.view(-1, 1, 8, 8), 3).mT
    maps = [
        ops.linear_act(patch, weights[p % len(weights)], None, "relu")
        for p, patch in enumerate(patches.unbind(1))
    ]
    return ops.cross_entropy(ops.linear_act(torch.cat(maps, 1), draw(10, 16 * 36, std=1 / 24)), y)


def siamese(ops: Any, x: Tensor, y: Tensor, weights: list[Tensor], draw: Any) -> Tensor:
    half = len(x) // 2
    left = ops.linear_act(x[:half], weights[0], None, "tanh")
    right = ops.linear_act(x[half:], weights[-1], None, "tanh")
    score = 1 - (left - right).square().sum(1) / 4
    same = (y[:half] == y[half:]).to(x.dtype)
    return ops.binary_cross_entropy_with_logits(score, same)


def batch(ops: Any, x: Tensor, y: Tensor, weights: list[Tensor], draw: Any) -> Tensor:
    """BP4 of one layer: an example is a use."""
    if len(weights) == 1:
        return ops.cross_entropy(ops.linear_act(x, weights[0]), y)
    own = enumerate(weights)
    return ops.cross_entropy(torch.cat([ops.linear_act(x[i : i + 1], w) for i, w in own]), y)


@dataclass(frozen=True)
class Case:
    """uses: 0 is one per example. shape, std: of the shared weight."""

    what: str
    loss: Loss
    uses: int
    shape: tuple[int, int]
    std: float


CASES = {
    "residual": Case("residual stack, one weight in 8 layers", residual, DEPTH, (64, 64), 32**-0.5),
    "plain": Case("plain stack, one weight in 8 layers", plain, DEPTH, (64, 64), 32**-0.5),
    "autoencoder": Case("autoencoder, W and its transpose", autoencoder, 2, (16, 64), 1 / 8),
    "recurrent": Case("recurrent tanh network, 8 steps", recurrent, 8, (32, 32), 32**-0.5),
    "convolution": Case(
        "3 x 3 convolution, 36 positions", convolution, 36, (16, 9), (2 / 9) ** 0.5
    ),
    "siamese": Case("siamese network, two towers", siamese, 2, (32, 64), 1 / 8),
    "batch": Case("BP4: examples of a batch", batch, 0, (10, 64), 1 / 8),
}


def arms(config: Config) -> list[dict[str, Any]]:
    return [{"case": case, "precision": p} for case in CASES for p in ("float64", "float32")]


def work(arm: dict[str, Any], config: Config) -> float:
    return 0.05


def measure(arm: dict[str, Any], config: Config, setting: Setting) -> list[dict[str, Any]]:
    case, dtype = CASES[arm["case"]], DTYPES[arm["precision"]]
    data = replace(setting, dtype=arm["precision"]).dataset()
    x, y = small(data.train_x)[: config.examples], data.train_y[: config.examples]
    uses = case.uses or len(x)

    def normal(*shape: int, std: float, source: torch.Generator) -> Tensor:
        drawn = torch.randn(*shape, generator=source, dtype=torch.float64) * std
        return drawn.to(setting.device, dtype)

    def gradients(ops: Any, weights: list[Tensor]) -> list[Tensor]:
        source = torch.Generator().manual_seed(setting.seed)

        def draw(*shape: int, std: float) -> Tensor:
            return normal(*shape, std=std, source=source)

        return list(torch.autograd.grad(case.loss(ops, x, y, weights, draw), weights))

    source = torch.Generator().manual_seed(setting.seed + 1)
    weight = normal(*case.shape, std=case.std, source=source).requires_grad_()
    (shared,) = gradients(setting.ops, [weight])
    (ours,), (theirs,) = gradients(mg, [weight]), gradients(native, [weight])
    clones = [weight.detach().clone().requires_grad_() for _ in range(uses)]
    apart = torch.stack(gradients(setting.ops, clones))
    difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    return [{"uses": uses, **_compared(shared, apart), "gradient_difference": difference}]


def _compared(shared: Tensor, apart: Tensor) -> dict[str, float]:
    """apart: the gradients of the uses, (uses, N, K)."""
    total, norms = apart.sum(0), apart.flatten(1).norm(dim=1)
    directions = (apart.flatten(1) / norms[:, None].clamp_min(1e-300)).double()
    k = len(apart)
    cosines = directions.sum(0).square().sum() - directions.square().sum()
    return {
        "error": ((shared - total).norm() / total.norm()).item(),
        "bitwise": int(torch.equal(shared, total)),
        "norm": shared.norm().item(),
        "rms": norms.square().sum().sqrt().item(),
        "cosine": cosines.item() / (k * (k - 1)),
    }


def tables(rows: Rows) -> list[Table]:
    body = []
    for name, case in CASES.items():
        both = rows[rows["case"] == name]
        exact = both[both["precision"] == "float64"]
        errors = both.groupby("precision")["error"].max()
        body.append(
            [
                case.what,
                " to ".join(str(k) for k in sorted({int(k) for k in both["uses"]})),
                *(f"{errors[p]:.1e}" for p in ROUNDING),
                f"{int(both['bitwise'].sum())} of {len(both)}",
                interval(exact["norm"]).text(3),
                interval(exact["rms"]).text(3),
                interval(exact["cosine"]).text(2),
            ]
        )
    headers = ["shared weight", "uses", "error, float64", "error, float32", "bitwise"]
    headers += ["|sum|", "sqrt(sum of |use|^2)", "cosine of two uses"]
    note = (
        "error: |shared - sum of the clones' gradients| / |sum|, the largest over seeds. Where the "
        "uses' gradients have nothing in common, their cosine is 0 and the two norms are equal."
    )
    return [Table("A shared gradient against the sum of its uses'", headers, body, note)]


def claims(rows: Rows) -> list[Claim]:
    made = []
    for precision, bound in ROUNDING.items():
        worst = rows[rows["precision"] == precision]["error"].max()
        made.append(
            Claim(
                f"gradients are summed at the shared parameter, in {precision}",
                "the text, eq. 13 and its last sentence on weight sharing",
                f"{worst:.1e} at most, relative",
                f"at most {bound:g} in all {rows['case'].nunique()} cases",
                held(bool(worst <= bound)),
            )
        )
    return [*made, *_bitwise(rows), *_rows_of_a_batch(rows), *_direction(rows)]


def _bitwise(rows: Rows) -> list[Claim]:
    two, others = rows[rows["uses"] == 2], rows[rows["uses"] > 2]
    equal, often = int(two["bitwise"].sum()), int(others["bitwise"].sum())
    return [
        Claim(
            "the sum of two uses is exact to the last bit (of more, the order of the sum counts)",
            "the commutativity of a floating sum",
            f"{equal} of {len(two)}; of more than two uses {often} of {len(others)}",
            "all of two uses",
            held(equal == len(two)),
        )
    ]


def _rows_of_a_batch(rows: Rows) -> list[Claim]:
    own = rows[(rows["case"] == "batch") & (rows["precision"] == "float64")]
    worst, uses = own["error"].max(), interval(own["uses"]).mean
    measured = f"{worst:.1e} at most with {uses:.0f} examples, in float64"
    return [
        Claim(
            "BP4's sum over a batch is weight sharing over its examples",
            "ours, from eq. 13",
            measured,
            f"at most {ROUNDING['float64']:g}",
            held(bool(worst <= ROUNDING["float64"])),
        )
    ]


def _direction(rows: Rows) -> list[Claim]:
    own = rows[(rows["case"] == "residual") & (rows["precision"] == "float64")]
    cosine, growth = interval(own["cosine"]), interval(own["norm"] / own["rms"])
    return [
        Claim(
            "in a residual stack the uses pull in one direction, so that the shared gradient is "
            "longer than that of as many independent uses",
            "ours",
            f"cosine {cosine.text(2)}, {growth.text(2)} times as long",
            "the cosine's whole interval is above 0.1",
            more(cosine, 0.1),
        )
    ]


def draw(rows: Rows, axes: list[Any]) -> None:
    (axis,) = axes
    exact = rows[rows["precision"] == "float64"]
    for place, name in enumerate(reversed(CASES)):
        value = interval(exact[exact["case"] == name]["cosine"])
        half = 0.0 if math.isnan(value.half) else value.half
        axis.errorbar(value.mean, place, xerr=half, fmt="o", color=COLOURS[0], capsize=2)
    axis.axvline(0, color="black", linestyle=":")
    axis.set(
        yticks=range(len(CASES)),
        yticklabels=list(reversed(CASES)),
        xlabel="cosine of two uses' gradients (0: nothing in common)",
        title="Do the uses of a weight agree?",
    )
