"""What does a call cost where the matrices are small? Forward and backward, one thread."""

import warnings
from typing import cast

import torch
from tabulate import tabulate
from torch import nn

import manualgrad as mg
from benchmarks.timing import Step, check, interleaved, quantiles, training_step

BATCH, WIDTH = 32, 64
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU, "gelu": nn.GELU}
DEPTHS = (1, 3, 8)
ROUNDS = 1000


def networks(depth: int, act: type[nn.Module]) -> dict[str, nn.Module]:
    """The same Parameters in torch's modules, compiled, and in ours."""
    linears = [nn.Linear(WIDTH, WIDTH) for _ in range(depth)]
    eager = nn.Sequential(*(module for linear in linears for module in (linear, act())))
    ours: nn.Module = mg.nn.MLP.from_sequential(eager)
    if depth == 1:
        ours = mg.nn.Linear(WIDTH, WIDTH, activation=act())
        ours.weight, ours.bias = linears[0].weight, linears[0].bias
    compiled = cast(nn.Module, torch.compile(eager))
    return {"eager": eager, "torch.compile": compiled, "manualgrad": ours}


def compiles(step: Step) -> bool:
    """Whether torch.compile works here: it wants a C++ compiler."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # inductor's remarks on this machine
            step()
    except Exception as error:
        print(f"torch.compile left out: {str(error).splitlines()[0]}")
        return False
    return True


def row(depth: int, name: str, act: type[nn.Module]) -> list[object]:
    """Ours against each rival, two at a time: a third contestant would empty the caches of both."""
    torch.manual_seed(0)
    torch.compiler.reset()  # each network is compiled afresh: past 8, Dynamo would give up
    nets, x = networks(depth, act), torch.randn(BATCH, WIDTH)
    difference = check(nets["manualgrad"], nets["eager"], x)
    if difference > 1e-5:
        return [depth, name, f"gradients differ by {difference:.1e}: not timed"]
    steps = {key: training_step(net, x) for key, net in nets.items()}
    cells: list[object] = [depth, name]
    for rival in ("eager", "torch.compile"):
        if rival == "torch.compile" and not compiles(steps[rival]):
            continue
        pair = {key: steps[key] for key in (rival, "manualgrad")}
        seconds = interleaved(pair, ROUNDS, f"{depth} layers, {name}, {rival}")
        theirs, ours = quantiles(seconds[rival]), quantiles(seconds["manualgrad"])
        cells += [1e6 * theirs[1], 1e6 * ours[1], f"{1e6 * ours[0]:.0f}-{1e6 * ours[2]:.0f}"]
        cells.append(ours[1] / theirs[1])
    return cells


def run() -> str:
    """The table: microseconds of each pair, and ours as a ratio to theirs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = [row(depth, name, act) for depth in DEPTHS for name, act in ACTIVATIONS.items()]
    torch.set_num_threads(threads)
    table = tabulate(
        rows,
        headers=["layers", "activation", *["theirs us", "ours us", "p20-p80", "ratio"] * 2],
        floatfmt=("", "", *(".1f", ".1f", "", ".2f") * 2),
    )
    return (
        f"Forward and backward of Linear + activation, width {WIDTH}, batch {BATCH}, float32, one "
        f"thread;\nmedian of {ROUNDS} interleaved rounds, first against eager, then against "
        f"torch.compile;\na ratio below 1.00: we are faster\n\n{table}"
    )
