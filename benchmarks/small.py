"""What does a call cost where the matrices are small? Forward and backward, one thread."""

import warnings
from typing import cast

import torch
from tabulate import tabulate
from torch import nn

import manualgrad as mg
from benchmarks import pictures
from benchmarks.outcome import Outcome, Row, Settings
from benchmarks.timing import Step, check, interleaved, quantiles, training_step

BATCH, WIDTH = 32, 64
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU, "gelu": nn.GELU}
DEPTHS = (1, 3, 8)
ROUNDS = 1000
RIVALS = ("eager", "torch.compile")


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


def rows(depth: int, name: str, act: type[nn.Module]) -> list[Row]:
    """Ours against each rival, two at a time: a third contestant would empty the caches of both."""
    torch.manual_seed(0)
    torch.compiler.reset()  # each network is compiled afresh: past 8, Dynamo would give up
    nets, x = networks(depth, act), torch.randn(BATCH, WIDTH)
    about = {"layers": depth, "activation": name}
    difference = check(nets["manualgrad"], nets["eager"], x)
    if difference > 1e-5:
        return [{**about, "not timed": f"gradients differ by {difference:.1e}"}]
    steps = {key: training_step(net, x) for key, net in nets.items()}
    found = []
    for rival in RIVALS:
        if rival == "torch.compile" and not compiles(steps[rival]):
            continue
        pair = {key: steps[key] for key in (rival, "manualgrad")}
        seconds = interleaved(pair, ROUNDS, f"{depth} layers, {name}, {rival}")
        (_, theirs, _), (p20, ours, p80) = map(quantiles, seconds.values())
        row = {**about, "against": rival, "theirs_us": 1e6 * theirs, "ours_us": 1e6 * ours}
        found.append({**row, "p20_us": 1e6 * p20, "p80_us": 1e6 * p80, "ratio": ours / theirs})
    return found


def table(found: list[Row]) -> str:
    """A line per network: microseconds of each pair, and ours as a ratio to theirs."""
    lines: dict[tuple[int, str], list[object]] = {}
    for row in found:
        line = lines.setdefault((row["layers"], row["activation"]), [])
        if "not timed" in row:
            line.append(f"{row['not timed']}: not timed")
        else:
            line += [row["theirs_us"], row["ours_us"], f"{row['p20_us']:.0f}-{row['p80_us']:.0f}"]
            line.append(row["ratio"])
    return tabulate(
        [[*key, *line] for key, line in lines.items()],
        headers=["layers", "activation", *["theirs us", "ours us", "p20-p80", "ratio"] * 2],
        floatfmt=("", "", *(".1f", ".1f", "", ".2f") * 2),
    )


def run(settings: Settings) -> Outcome:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    networks = [(depth, *one) for depth in DEPTHS for one in ACTIVATIONS.items()]
    found = [row for one in networks[: 1 if settings.quick else None] for row in rows(*one)]
    torch.set_num_threads(threads)
    text = (
        f"Forward and backward of Linear + activation, width {WIDTH}, batch {BATCH}, float32, one "
        f"thread;\nmedian of {ROUNDS} interleaved rounds, first against eager, then against "
        f"torch.compile;\na ratio below 1.00: we are faster\n\n{table(found)}"
    )
    series: dict[str, dict[str, float]] = {}
    names = [f"{depth} layers, {name}" for depth, name, _ in networks]
    for row in found:
        if "ratio" in row:
            name = f"{row['layers']} layers, {row['activation']}"
            series.setdefault(f"against {row['against']}", {})[name] = row["ratio"]
    picture = pictures.bars("small", names, series, "our time / theirs (below 1: faster)", 1.0)
    wrong = [f"manualgrad, {row['layers']} layers, {row['activation']}: {row['not timed']}"
             for row in found if "not timed" in row]  # fmt: skip
    return Outcome(found, text, {"small": picture}, wrong)
