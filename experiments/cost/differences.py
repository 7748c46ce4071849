"""What does one backward pass save against finite differences, and do they agree?

All 2P forward passes are made, on real images. A step across a kink of ReLU makes the difference
wrong, not the backward pass: one is placed where steps cross it.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from experiments.cost.measures import chained, now, times
from experiments.networks import gradient_difference, gradients
from experiments.pictures import COLOURS, MARKERS, ticks
from experiments.results import Claim, Table, held, more
from experiments.statistics import Rows, interval
from experiments.study import Setting

DTYPE = "float64"
ALONE = True
PANELS = 2
STEP = 1e-5
FAR = 1e-8  # of an entry from its difference: more than a smooth function's error by far


@dataclass(frozen=True)
class Config:
    hidden: tuple[str, ...] = ("16", "32")  # widths
    examples: int = 64
    repeats: int = 40


CONFIGS = {
    "smoke": Config(hidden=("2", "4"), repeats=3),
    "quick": Config(),
    "full": Config(hidden=("16", "32", "64", "64-64"), repeats=200),
}


def arms(config: Config) -> list[dict[str, Any]]:
    """Smooth, with kinks where the seed has them, and with one placed within a step."""
    drawn = [
        {"activation": a, "hidden": h, "kink": "as drawn"}
        for a in ("tanh", "relu")
        for h in config.hidden
    ]
    return [*drawn, {"activation": "relu", "hidden": config.hidden[0], "kink": "placed"}]


def widths(hidden: Any, inputs: int = 64) -> list[int]:
    """Of all layers: a file of rows may have made a number of a single width."""
    return [inputs, *map(int, str(hidden).split("-")), 10]


def work(arm: dict[str, Any], config: Config) -> float:
    return 0.02 + chained(widths(arm["hidden"])) * 2e-4


def measure(arm: dict[str, Any], config: Config, setting: Setting) -> list[dict[str, Any]]:
    data = setting.dataset()
    x, y = data.train_x[: config.examples], data.train_y[: config.examples]
    init = "he" if arm["activation"] == "relu" else "lecun"
    net = setting.network(widths(arm["hidden"], x.shape[1]), arm["activation"], init=init)
    if arm["kink"] == "placed":
        place_kink(net, x)
    taken = times(net, "cross_entropy", x, y, config.repeats)
    backward = torch.cat([g.flatten() for g in gradients(net, _loss(net, x, y))])
    start = now(setting.device)
    differences = torch.tensor(list(central_differences(net, x, y)), dtype=torch.float64)
    seconds = now(setting.device) - start
    error = (backward.cpu() - differences).abs()
    far = (error > FAR).nonzero().flatten().tolist()
    return [
        {
            "P": net.size,
            "differences_s": seconds,
            **taken,
            "error": error.max().item(),
            "largest_entry": backward.abs().max().item(),
            "far": len(far),
            "far_at_kink": sum(crosses_kink(net, x, entry) for entry in far),
            "gradient_difference": gradient_difference(net, "cross_entropy", x, y),
        }
    ]


def _loss(net: Any, x: Tensor, y: Tensor) -> Tensor:
    return net.ops.cross_entropy(net(x), y)


def central_differences(net: Any, x: Tensor, y: Tensor) -> Iterator[float]:
    """(C(theta + h) - C(theta - h)) / 2h for each parameter in turn: 2P forward passes."""
    with torch.no_grad():
        for parameter in net.parameters():
            entries = parameter.view(-1)
            for i in range(entries.numel()):
                before = entries[i].item()
                entries[i] = before + STEP
                above = _loss(net, x, y).item()
                entries[i] = before - STEP
                below = _loss(net, x, y).item()
                entries[i] = before
                yield (above - below) / (2 * STEP)


@torch.no_grad()
def place_kink(net: Any, x: Tensor) -> None:
    """A bias that brings a z of the first example to a quarter of a step above ReLU's kink."""
    z = net.ops.linear_act(x[:1], net.weights[0], net.biases[0])
    net.biases[0][0] += STEP / 4 - z[0, 0]


@torch.no_grad()
def crosses_kink(net: Any, x: Tensor, entry: int) -> bool:
    """Whether a hidden z changes sign between the two steps of an entry of the gradient."""
    where = (p.view(-1)[i : i + 1] for p in net.parameters() for i in range(p.numel()))
    value = next(itertools.islice(where, entry, None))
    before, signs = value.item(), []
    for step in (STEP, -STEP):
        value.fill_(before + step)
        signs.append(_signs(net, x))
    value.fill_(before)
    return not torch.equal(*signs)


def _signs(net: Any, x: Tensor) -> Tensor:
    found, a = [], x
    hidden = zip(net.weights[:-1], net.biases[:-1], net.activations[:-1], strict=True)
    for weight, bias, activation in hidden:
        found.append((net.ops.linear_act(a, weight, bias) > 0).flatten())
        a = net.ops.linear_act(a, weight, bias, activation)
    return torch.cat(found)


def _with_ratio(rows: Rows) -> Rows:
    step = rows["forward_ms"] + rows["backward_ms"]
    theirs = rows["native_forward_ms"] + rows["native_backward_ms"]
    return rows.assign(
        step_ms=step, native_step_ms=theirs, ratio=1e3 * rows["differences_s"] / step
    )


def tables(rows: Rows) -> list[Table]:
    body = []
    keys = ["activation", "kink", "hidden", "P"]
    for (activation, kink, hidden, P), group in _with_ratio(rows).groupby(keys, sort=False):
        spent = [interval(group[name]).text(3) for name in ("step_ms", "native_step_ms")]
        spent += [f"{2 * P:,}", interval(group["differences_s"]).text()]
        far = f"{group['far'].sum():.0f}, {group['far_at_kink'].sum():.0f} of them at a kink"
        ratio, error = interval(group["ratio"]).text(0), f"{group['error'].max():.1e}"
        body.append([activation, kink, hidden, f"{P:,}", *spent, ratio, error, far])
    headers = [
        *("sigma", "kinks", "hidden", "P", "one gradient (ms)", "autograd's (ms)"),
        *("forward passes", "differences (s)", "ratio", "largest difference"),
        f"entries off by more than {FAR:g}",
    ]
    note = (
        f"Steps of {STEP:g} in float64. A gradient is a forward and a backward pass. Largest "
        f"difference and entries that are off: of all seeds."
    )
    return [Table("A gradient by one backward pass, and by differences", headers, body, note)]


def claims(rows: Rows) -> list[Claim]:
    every = _with_ratio(rows)
    smooth, kinked = (every[every["activation"] == a] for a in ("tanh", "relu"))
    ratio = interval(every[every["P"] == every["P"].min()]["ratio"])
    error, far, at_kink = smooth["error"].max(), kinked["far"].sum(), kinked["far_at_kink"].sum()
    return [
        Claim(
            "one backward pass replaces 2P forward passes",
            "the text, on complexity: all gradients in a single pass",
            f"at P = {every['P'].min():,.0f}, measured, {ratio.text(0)} times as fast",
            "more than 100 times, the whole interval",
            more(ratio, 100.0),
        ),
        Claim(
            "and gives what they give",
            "theory: rounding / step + step^2 is the error, about 1e-10",
            f"tanh: {error:.1e} at most",
            f"at most {FAR:g}",
            held(error <= FAR),
        ),
        Claim(
            "where they differ with ReLU, a step crossed a kink: the differences are wrong",
            "theory",
            f"{far:.0f} entries off by more than {FAR:g}, {at_kink:.0f} of them at a kink; "
            f"{kinked['error'].max():.1e} at most",
            "there are such entries, each at a kink",
            held(far > 0 and far == at_kink, opposite=far > at_kink),
        ),
    ]


def draw(rows: Rows, axes: list[Any]) -> None:
    cost, agreement = axes
    every = _with_ratio(rows)
    kinds = every.groupby(["activation", "kink"], sort=False)
    for number, ((activation, kink), group) in enumerate(kinds):
        name = f"{activation}, a kink placed" if kink == "placed" else activation
        style = {"color": COLOURS[number], "marker": MARKERS[number], "linestyle": "none"}
        cost.plot(group["P"], group["ratio"], label=name, **style)
        agreement.plot(group["P"], group["error"], label=name, **style)
    at = sorted(every["P"].unique())
    cost.plot(at, [2 * P for P in at], "k:", label="2P, the forward passes")
    cost.axhline(100, color="black", linestyle="--", linewidth=1, label="100")
    cost.set(ylabel="time of differences / time of a gradient", title="2P passes against one")
    agreement.axhline(FAR, color="black", linestyle="--", linewidth=1, label=f"{FAR:g}")
    agreement.set(
        ylabel="largest |difference - gradient|", title="ReLU: steps across a kink placed there"
    )
    for axis in axes:
        axis.set(xscale="log", yscale="log", xlabel="parameters P")
        ticks(axis, at)
        axis.minorticks_off()
        axis.legend(loc="center")
