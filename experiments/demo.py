"""Does a network trained through BP1-BP4 by hand learn what it learns under native autograd?

Run by `make demo`, or python -m experiments.demo [--data mnist --data-dir DIR].
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from tqdm import tqdm

import manualgrad as mg
from experiments.data import DataError, Dataset, load

HIDDEN = (256, 128)
BATCH = 64
MOMENTUM = 0.9
LARGEST_DIFFERENCE = 1e-12  # of the float64 gradients of ours and of native autograd


@dataclass(frozen=True)
class Setting:
    """What a data set is trained with, and the test accuracy that this must reach."""

    epochs: int
    learning_rate: float
    lowest_accuracy: float


SETTINGS = {"digits": Setting(20, 0.1, 0.96), "mnist": Setting(5, 0.02, 0.92)}


@dataclass
class Contestant:
    """One network with its own cost and optimiser."""

    name: str
    net: nn.Module
    cost: Callable[[Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer

    def gradients(self, x: Tensor, y: Tensor) -> list[Tensor]:
        self.net.zero_grad()
        self.cost(self.net(x), y).backward()
        return [p.grad for p in self.net.parameters() if p.grad is not None]

    def step(self, x: Tensor, y: Tensor) -> float:
        self.optimizer.zero_grad()
        loss = self.cost(self.net(x), y)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def accuracy(self, x: Tensor, y: Tensor) -> float:
        return (self.net(x).argmax(1) == y).double().mean().item()


def contestants(
    data: Dataset, dtype: torch.dtype, seed: int, learning_rate: float = 0.0
) -> tuple[Contestant, Contestant]:
    """The same network twice, from the same weights: by hand, and under native autograd."""
    sizes = [data.train_x.shape[1], *HIDDEN, 10]
    torch.manual_seed(seed)
    ours = mg.nn.MLP(sizes, "relu", dtype=dtype)
    torch.manual_seed(seed)
    linears = [nn.Linear(k, n, dtype=dtype) for k, n in itertools.pairwise(sizes)]
    theirs = nn.Sequential(
        linears[0], *(module for linear in linears[1:] for module in (nn.ReLU(), linear))
    )
    mine, native = (
        torch.optim.SGD(net.parameters(), learning_rate, momentum=MOMENTUM)
        for net in (ours, theirs)
    )
    return (
        Contestant("manualgrad", ours, mg.cross_entropy, mine),
        Contestant("torch", theirs, F.cross_entropy, native),
    )


def first_step(data: Dataset, seed: int) -> tuple[str, float]:
    """A table of the largest gradient difference per parameter, and the largest in float64."""
    columns, names = [], []
    for dtype in (torch.float64, torch.float32):
        ours, theirs = contestants(data, dtype, seed)
        x, y = data.train_x[:BATCH].to(dtype), data.train_y[:BATCH]
        names = [name for name, _ in ours.net.named_parameters()]
        pairs = zip(ours.gradients(x, y), theirs.gradients(x, y), strict=True)
        columns.append([(mine - native).abs().max().item() for mine, native in pairs])
    table = tabulate(
        list(zip(names, *columns, strict=True)),
        headers=["parameter", "float64", "float32"],
        floatfmt=".1e",
    )
    return table, max(columns[0])


def train(data: Dataset, epochs: int, seed: int, learning_rate: float) -> tuple[str, str, float]:
    """Both networks on the same batches: a row per epoch, the differences, our final accuracy."""
    dtype = torch.float32
    ours, theirs = contestants(data, dtype, seed, learning_rate)
    train_x, test_x = data.train_x.to(dtype), data.test_x.to(dtype)
    order = torch.Generator().manual_seed(seed)
    rows, ratios = [], []
    steps = len(train_x) // BATCH
    with tqdm(
        total=epochs * steps, desc="training both", unit="step", leave=False, disable=None
    ) as progress:
        for epoch in range(1, epochs + 1):
            losses = {ours.name: 0.0, theirs.name: 0.0}
            seconds = dict(losses)
            batches = torch.randperm(len(train_x), generator=order)[: steps * BATCH]
            for i, batch in enumerate(batches.view(steps, BATCH)):
                x, y = train_x[batch], data.train_y[batch]
                for one in (ours, theirs) if i % 2 else (theirs, ours):
                    start = time.perf_counter()
                    losses[one.name] += one.step(x, y) / steps
                    seconds[one.name] += time.perf_counter() - start
                progress.update()
            ratios.append(seconds[ours.name] / seconds[theirs.name])
            accuracies = [100 * one.accuracy(test_x, data.test_y) for one in (ours, theirs)]
            rows.append((epoch, *losses.values(), *accuracies, ratios[-1]))
    headers = ["epoch", "loss, ours", "torch", "test %, ours", "torch", "time, ours/torch"]
    table = tabulate(rows, headers=headers, floatfmt=("", ".6f", ".6f", ".2f", ".2f", ".2f"))
    distance = max(
        (mine - native).abs().max().item()
        for mine, native in zip(ours.net.parameters(), theirs.net.parameters(), strict=True)
    )
    summary = (
        f"After {epochs * steps} steps in float32 the losses differ by "
        f"{abs(rows[-1][1] - rows[-1][2]):.1e} and the parameters by at most {distance:.1e}.\n"
        f"Time per epoch, ours over torch's, median: {statistics.median(ratios):.2f}"
    )
    return table, summary, ours.accuracy(test_x, data.test_y)


def gradient_checks(seed: int) -> tuple[str, list[str]]:
    """gradcheck and gradgradcheck of every activation in a two-layer chain, and what failed."""
    rows, failed = [], []
    for name in tqdm(mg.activations(), desc="gradcheck", leave=False, disable=None):
        torch.manual_seed(seed)
        shapes = ((5, 3), (4, 3), (4,), (2, 4), (2,))
        tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]

        def chain(x, w1, b1, w2, b2, name=name):
            return mg.mlp(x, [w1, w2], [b1, b2], name)

        row = [name]
        for check in (gradcheck, gradgradcheck):
            try:
                check(chain, tensors)
                row.append("ok")
            except RuntimeError as error:
                row.append("FAILED")
                failed.append(f"{check.__name__} of {name}: {str(error).splitlines()[0]}")
        rows.append(row)
    half = (len(rows) + 1) // 2
    pairs = [
        left + right for left, right in zip(rows[:half], [*rows[half:], [""] * 3], strict=False)
    ]
    return tabulate(pairs, headers=["activation", "gradcheck", "gradgradcheck"] * 2), failed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="experiments.demo", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--data", choices=["digits", "mnist"], default="digits")
    parser.add_argument("--data-dir", metavar="DIR", help="where MNIST's IDX files are, .gz or not")
    parser.add_argument("--epochs", type=int, help="default: 20 on digits, 5 on mnist")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    setting = SETTINGS[options.data]
    epochs = setting.epochs if options.epochs is None else options.epochs
    if epochs < 1:
        parser.error(f"--epochs must be at least 1, got {epochs}")
    if not 0 <= options.seed < 2**63:
        parser.error(f"--seed must be from 0 to 2^63 - 1, got {options.seed}")
    try:
        data = load(options.data, options.data_dir, options.seed)
        if len(data.train_y) < BATCH:
            raise DataError(f"{data}; a batch alone is {BATCH}")
    except DataError as error:
        print(f"experiments.demo: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    sizes = "-".join(map(str, [data.train_x.shape[1], *HIDDEN, 10]))
    print(f"manualgrad {mg.__version__}, torch {torch.__version__}, one thread")
    print(f"{data}; a {sizes} network, ReLU, SGD with momentum, batches of {BATCH}\n")

    table, difference = first_step(data, options.seed)
    print(
        f"Gradients at the first step: the largest difference from native autograd's\n\n{table}\n"
    )
    table, summary, accuracy = train(data, epochs, options.seed, setting.learning_rate)
    print(f"Training, the same weights and batches for both\n\n{table}\n\n{summary}\n")
    table, failed = gradient_checks(options.seed)
    print(f"torch.autograd's own checks of our backward pass, float64\n\n{table}\n")
    lowest = setting.lowest_accuracy if epochs >= setting.epochs else None
    return verdict(difference, accuracy, lowest, failed)


def verdict(difference: float, accuracy: float, lowest: float | None, failed: list[str]) -> int:
    """Print what held and what did not; the exit status. lowest None: too short a run to judge."""
    gradients = f"float64 gradients differ by at most {difference:.1e}"
    claims = [
        (gradients, LARGEST_DIFFERENCE, difference <= LARGEST_DIFFERENCE),
        (f"{len(failed)} gradient checks failed", 0, not failed),
    ]
    if lowest is not None:
        claims.insert(1, (f"test accuracy is {accuracy:.2%}", lowest, accuracy >= lowest))
    for text, bound, held in claims:
        print(f"{'yes' if held else 'NO '}  {text} (bound {bound:g})")
    for line in failed:
        print("     " + line)
    return 0 if all(held for _, _, held in claims) else 1


if __name__ == "__main__":
    sys.exit(main())
