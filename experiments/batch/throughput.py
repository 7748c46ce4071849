"""How long does an update take, and an epoch, against the batch size, ours and native autograd's?

Both backends in turn on the same batch; of small layers, where calls count and not arithmetic.
"""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

import manualgrad as mg
from experiments import native
from experiments.networks import gradient_difference, gradients
from experiments.pictures import curve
from experiments.results import Claim, Table, held
from experiments.statistics import Rows, interval, log_slope
from experiments.study import Setting

ALONE = True
PANELS = 1
LEARNING_RATE = 1e-3  # of no matter: it is the time that is asked for


@dataclass(frozen=True)
class Config:
    width: int = 64
    examples: int = 1024  # of an epoch
    batches: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
    updates: int = 100  # that are timed, of each


CONFIGS = {
    "smoke": Config(batches=(1, 256), updates=10),
    "quick": Config(),
    "full": Config(batches=tuple(2**k for k in range(11)), updates=1000),
}


def arms(config: Config) -> list[dict[str, Any]]:
    return [{"batch": batch} for batch in config.batches]


def work(arm: dict[str, Any], config: Config) -> float:
    return config.updates * (1 + arm["batch"] / 300) / 500


def measure(arm: dict[str, Any], config: Config, setting: Setting) -> list[dict[str, Any]]:
    data, batch = setting.dataset(), arm["batch"]
    x, y = data.train_x[:batch], data.train_y[:batch]
    net = setting.network([x.shape[1], config.width, config.width, 10])
    difference = gradient_difference(net, "cross_entropy", x, y)
    wait = torch.cuda.synchronize if setting.device.startswith("cuda") else _nothing
    times: dict[Any, list[float]] = {mg: [], native: []}
    for round_ in range(-5, config.updates):  # five to warm up
        for ops in (mg, native) if round_ % 2 else (native, mg):
            net.ops = ops
            seconds = _seconds(net, x, y, wait)
            if round_ >= 0:
                times[ops].append(seconds)
    ours, theirs = statistics.median(times[mg]), statistics.median(times[native])
    per_epoch = max(config.examples // batch, 1)
    return [
        {
            "milliseconds": 1e3 * ours,
            "milliseconds_autograd": 1e3 * theirs,
            "ratio": ours / theirs,
            "examples_per_second": batch / ours,
            "examples_per_second_autograd": batch / theirs,
            "epoch": per_epoch * ours,
            "epoch_autograd": per_epoch * theirs,
            "gradient_difference": difference,
        }
    ]


def _nothing() -> None:
    pass


def _seconds(net: Any, x: Any, y: Any, wait: Any) -> float:
    """Of one update."""
    wait()
    start = time.perf_counter()
    steps = gradients(net, net.ops.cross_entropy(net(x), y))
    with torch.no_grad():
        for parameter, step in zip(net.parameters(), steps, strict=True):
            parameter.sub_(step, alpha=LEARNING_RATE)
    wait()
    return time.perf_counter() - start


def tables(rows: Rows) -> list[Table]:
    body = []
    for batch, group in rows.groupby("batch"):
        cells = [
            interval(group[name]).text(digits)
            for name, digits in (
                ("milliseconds", 3),
                ("milliseconds_autograd", 3),
                ("ratio", 2),
                ("examples_per_second", 0),
                ("epoch", 4),
                ("epoch_autograd", 4),
            )
        ]
        body.append([batch, *cells])
    headers = [
        "M",
        "update, ours (ms)",
        "autograd (ms)",
        "ours / autograd",
        "examples/s, ours",
        "epoch, ours (s)",
        "autograd (s)",
    ]
    note = "Medians of interleaved updates, on one thread. A ratio above 1 is a loss of ours."
    return [Table("Time against the batch size", headers, body, note)]


def claims(rows: Rows) -> list[Claim]:
    wide = rows.pivot(index="seed", columns="batch", values="milliseconds")
    low, high = wide.columns[0], wide.columns[-1]
    speed = interval((high / wide[high]) / (low / wide[low]))
    slope = interval([log_slope([low, high], seed[[low, high]]) for _, seed in wide.iterrows()])
    ratio = interval(rows.groupby("seed")["ratio"].mean())
    return [
        Claim(
            "larger batches process more examples in a second",
            "often said",
            f"{speed.text(1)} times as many with M = {high} as with M = {low}",
            "the interval is above 1",
            held(speed.low > 1, speed.high < 1),
        ),
        Claim(
            "the time of an update grows by less than the batch",
            "often said",
            f"slope {slope.text()} of log time over log M, from M = {low} to {high}",
            "the interval is below 1",
            held(slope.high < 1, slope.low > 1),
        ),
        Claim(
            "an update of ours takes no longer than native autograd's",
            "this library",
            f"{ratio.text()} of its time, mean over batch sizes",
            "the interval is below 1",
            held(ratio.high < 1, ratio.low > 1),
        ),
    ]


def draw(rows: Rows, axes: list[Any]) -> None:
    (axis,) = axes
    curve(axis, rows, "batch", "epoch", 0, "ours")
    curve(axis, rows, "batch", "epoch_autograd", 1, "native autograd")
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="batch size M (examples)",
        ylabel="time of an epoch (s)",
        title="Time per epoch",
    )
    axis.legend()
