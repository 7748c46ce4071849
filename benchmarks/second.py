"""What do gradients of gradients cost? Steps of a PINN, and an input's gradient, against eager."""

import itertools
from collections.abc import Callable
from typing import cast

import torch
from tabulate import tabulate
from torch import nn

import manualgrad as mg
from benchmarks import pictures
from benchmarks.outcome import Outcome, Row, Settings
from benchmarks.timing import Step, interleaved, quantiles

ACTIVATIONS = {"tanh": nn.Tanh, "silu": nn.SiLU, "gelu": nn.GELU}
SHAPES = ((256, 32, 4), (2048, 64, 4), (8192, 64, 6), (16384, 128, 4))  # rows, width, depth
SECONDS = 4.0  # about, for the rounds of a row
LIMIT = 1e-4  # relative, of the largest gradient: float32, of third derivatives


def network(width: int, depth: int, act: type[nn.Module]) -> nn.Sequential:
    """u(t, x)."""
    sizes = [2, *[width] * (depth - 1), 1]
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), act()]
    return nn.Sequential(*layers[:-1])


def heat_equation(net: nn.Module, points: torch.Tensor) -> torch.Tensor:
    """The mean of (u_t - u_xx)^2 over points (M, 2), its gradients left in .grad."""
    at = points.detach().requires_grad_()
    (first,) = torch.autograd.grad(net(at).sum(), at, create_graph=True)
    (second,) = torch.autograd.grad(first[:, 1].sum(), at, create_graph=True)
    loss = (first[:, 0] - second[:, 1]).square().mean()
    loss.backward()
    return loss.detach()


def input_gradient(net: nn.Module, points: torch.Tensor) -> torch.Tensor:
    """The gradient of u by the points alone, as for a saliency map."""
    at = points.detach().requires_grad_()
    return torch.autograd.grad(net(at).sum(), at)[0]


PROBLEMS: dict[str, Callable[[nn.Module, torch.Tensor], torch.Tensor]] = {
    "heat equation": heat_equation,
    "input gradient": input_gradient,
}


def difference(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """The largest of the results' differences, each relative to its largest entry."""
    pairs = zip(ours, theirs, strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item() for a, b in pairs)


def row(problem: str, shape: tuple[int, int, int], name: str, quick: bool) -> Row:
    torch.manual_seed(0)
    (rows, width, depth), step = shape, PROBLEMS[problem]
    eager = network(width, depth, ACTIVATIONS[name])
    nets = {"eager": eager, "manualgrad": mg.nn.MLP.from_sequential(eager)}
    points, parameters = torch.rand(rows, 2), list(eager.parameters())
    about = {"problem": problem, "rows": rows, "width": width, "layers": depth, "activation": name}
    results = {}
    for key, net in nets.items():
        results[key] = [step(net, points), *[p.grad for p in parameters if p.grad is not None]]
        eager.zero_grad()
    gap = difference(results["manualgrad"], results["eager"])
    if gap > LIMIT:
        return {**about, "not timed": f"results differ by {gap:.1e}"}

    def timed(net: nn.Module) -> Step:
        def once() -> None:
            step(net, points)
            for p in parameters:
                p.grad = None

        return once

    steps = {key: timed(net) for key, net in nets.items()}
    (_, once, _) = quantiles(interleaved({"eager": steps["eager"]}, 3)["eager"])
    rounds = 5 if quick else max(20, int(SECONDS / once / 2))
    seconds = interleaved(steps, rounds, f"{problem}, {rows} rows, {name}")
    (_, theirs, _), (p20, ours, p80) = map(quantiles, seconds.values())
    found = {"theirs_ms": 1e3 * theirs, "ours_ms": 1e3 * ours, "ratio": ours / theirs}
    return {**about, **found, "p20_ms": 1e3 * p20, "p80_ms": 1e3 * p80, "difference": gap}


def table(found: list[Row]) -> str:
    lines = [
        [r["problem"], f"{r['rows']} x {r['width']} x {r['layers']}", r["activation"]]
        + ([r["not timed"]] if "not timed" in r else
           [r["theirs_ms"], r["ours_ms"], f"{r['p20_ms']:.2f}-{r['p80_ms']:.2f}", r["ratio"]])
        for r in found
    ]  # fmt: skip
    headers = ["problem", "rows x width x layers", "activation", "eager ms", "ours ms", "p20-p80",
               "ratio"]  # fmt: skip
    return tabulate(lines, headers=headers, floatfmt=("", "", "", ".2f", ".2f", "", ".2f"))


def run(settings: Settings) -> Outcome:
    cases = [(p, s, name) for p in PROBLEMS for s in SHAPES for name in ACTIVATIONS]
    found = [row(*case, settings.quick) for case in cases[: 1 if settings.quick else None]]
    text = (
        f"u(t, x) by layers of one width, float32, {torch.get_num_threads()} threads; the heat "
        f"equation's step is u_t, u_xx\nand the gradient of their difference's square by the "
        f"parameters. torch.compile has no second derivatives.\nMedians of interleaved rounds; a "
        f"ratio below 1.00: we are faster\n\n{table(found)}"
    )
    timed = [r for r in found if "ratio" in r]
    names = [f"{r['rows']} x {r['width']} x {r['layers']}, {r['activation']}" for r in timed]
    series: dict[str, dict[str, float]] = {}
    for r, name in zip(timed, names, strict=True):
        series.setdefault(cast(str, r["problem"]), {})[name] = r["ratio"]
    label = "our time / eager's (below 1: faster)"
    picture = pictures.bars("second", list(dict.fromkeys(names)), series, label, 1.0)
    wrong = [f"manualgrad, {r['problem']}, {r['rows']} rows, {r['activation']}: {r['not timed']}"
             for r in found if "not timed" in r]  # fmt: skip
    return Outcome(found, text, {"second": picture}, wrong)
