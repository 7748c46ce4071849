"""How do time and memory of a step grow with the depth L and the batch size M?"""

from dataclasses import dataclass
from typing import Any

from experiments.cost.measures import (
    TIMES,
    TIMES_NOTE,
    kept_bytes,
    labels,
    noise,
    slopes,
    spread,
    time_cells,
    times,
    with_steps,
)
from experiments.cost.parameters import as_fast
from experiments.networks import gradient_difference
from experiments.pictures import curve, ticks
from experiments.results import Claim, Table, held, within
from experiments.statistics import Rows, interval
from experiments.study import Setting

ALONE = True
PANELS = 3


@dataclass(frozen=True)
class Config:
    width: int = 256
    layers: tuple[int, ...] = (2, 8, 32)  # at batch
    batches: tuple[int, ...] = (16, 64, 256, 1024)  # at depth
    batch: int = 64
    depth: int = 8
    repeats: tuple[int, int] = (6, 30)  # of the largest and of the smallest


CONFIGS = {
    "smoke": Config(width=64, layers=(2, 8), batches=(64, 256), repeats=(3, 3)),
    "quick": Config(),
    "full": Config(
        layers=(2, 4, 8, 16, 32, 64, 128),
        batches=(16, 32, 64, 128, 256, 512, 1024, 2048),
        repeats=(30, 200),
    ),
}


def arms(config: Config) -> list[dict[str, Any]]:
    """What varies, L or M, plainly and with recompute: one that is in both is in them twice."""
    varied = [{"of": "L", "layers": layers, "batch": config.batch} for layers in config.layers]
    varied += [{"of": "M", "layers": config.depth, "batch": batch} for batch in config.batches]
    return [
        {**arm, "keeps": keeps}
        for keeps in ("activations", "input")
        for arm in varied
        if keeps == "activations" or arm["of"] == "L"
    ]


def repeats(arm: dict[str, Any], config: Config) -> int:
    fewest, most = config.repeats
    largest = max(max(config.layers) * config.batch, max(config.batches) * config.depth)
    return max(fewest, min(most, fewest * largest // (arm["layers"] * arm["batch"])))


def work(arm: dict[str, Any], config: Config) -> float:
    return 0.02 + repeats(arm, config) * arm["layers"] * arm["batch"] / 4e4


def measure(arm: dict[str, Any], config: Config, setting: Setting) -> list[dict[str, Any]]:
    n, batch, seed = config.width, arm["batch"], setting.seed
    net = setting.network([n] * (arm["layers"] + 1), recompute=arm["keeps"] == "input")
    x = noise(seed, batch, n, like=net.weights[0])
    y = labels(seed, batch, min(10, n), x)
    return [
        {
            "width": n,
            "P": net.size,
            "number_bytes": x.element_size(),
            "kept_bytes": kept_bytes(net, "cross_entropy", x, y),
            **times(net, "cross_entropy", x, y, repeats(arm, config)),
            "gradient_difference": gradient_difference(net, "cross_entropy", x, y),
        }
    ]


def _with_rest(rows: Rows) -> Rows:
    """With the bytes beyond what should be kept: input, activations and the loss's own matrix."""
    matrices = (rows["layers"] + 1).where(rows["keeps"] == "activations", 2)
    numbers = matrices * rows["batch"] * rows["width"] * rows["number_bytes"]
    return rows.assign(numbers=numbers, rest=rows["kept_bytes"] - numbers)


def tables(rows: Rows) -> list[Table]:
    body = []
    every = _with_rest(rows)
    for (keeps, of, L, M), group in every.groupby(["keeps", "of", "layers", "batch"], sort=False):
        own = [spread(group["kept_bytes"]), spread(group["rest"])]
        body.append([of, L, M, keeps, *time_cells(group), *own])
    note = (
        f"Width {every['width'].iloc[0]:.0f}. Beyond: of activations (L+1) M n numbers, of the "
        f"input alone 2 M n, the second being the loss's. Autograd's counterpart of keeping the "
        f"input is torch.utils.checkpoint. {TIMES_NOTE}"
    )
    headers = ["varied", "L", "M", "kept", *TIMES, "bytes kept", "beyond"]
    return [Table("Time and memory against depth and batch size", headers, body, note)]


def claims(rows: Rows) -> list[Claim]:
    every = _with_rest(rows)
    plain, input_alone = (every[every["keeps"] == k] for k in ("activations", "input"))
    depth = slopes(plain[plain["of"] == "L"], "layers", "backward_ms")
    varied = plain[plain["of"] == "M"]
    large = varied[varied["batch"] >= varied["width"]]
    batch, whole = (slopes(some, "batch", "backward_ms") for some in (large, varied))
    return [
        Claim(
            "the time of a backward pass is linear in the depth L",
            "the text, on complexity: O(P)",
            f"log-log slope {depth.text()}",
            "from 0.8 to 1.1",
            within(depth.mean, 0.8, 1.1),
        ),
        Claim(
            "it is linear in a large batch size M: O(P) for each example",
            "ours, a correction",
            f"log-log slope {batch.text()} from M = n on, {whole.text()} over all M: below n, BP4 "
            f"writes more numbers (n^2) than it reads (2 M n)",
            "from 0.8 to 1.1 from M = n on",
            within(batch.mean, 0.8, 1.1),
        ),
        _exact(plain, "what is kept for backward is linear in L and M: (L+1) M n numbers"),
        _exact(input_alone, "with recompute it does not grow with L: the input, and the loss's"),
        _one_more(plain, input_alone),
        as_fast(rows),
    ]


def _exact(rows: Rows, text: str) -> Claim:
    spare = 8 * rows["batch"] + rows["number_bytes"]
    exact = bool(((rows["rest"] >= 0) & (rows["rest"] <= spare)).all()) and len(rows) > 0
    return Claim(
        text,
        "ours",
        f"{spread(rows['rest'])} bytes beyond, from {spread(rows['kept_bytes'])} in all",
        "nothing beyond but the labels (8 M bytes) and one number",
        held(exact),
    )


def _one_more(plain: Rows, again: Rows) -> Claim:
    """What recomputation adds to a step, in forward passes."""
    keys = ["of", "layers", "batch", "seed"]
    both = with_steps(plain).merge(with_steps(again), on=keys, suffixes=("", "_again"))
    both["added"] = (both["step_ms_again"] - both["step_ms"]) / both["forward_ms"]
    added = interval(both.groupby("seed")["added"].mean())
    return Claim(
        "recomputing costs about one more forward pass",
        "theory",
        f"{added.text()} forward passes more",
        "from 0.5 to 1.5",
        within(added.mean, 0.5, 1.5),
    )


def draw(rows: Rows, axes: list[Any]) -> None:
    depth, batch, memory = axes
    plain, input_alone = (rows[rows["keeps"] == k] for k in ("activations", "input"))
    panels = [(depth, "L", "layers"), (batch, "M", "batch")]
    for axis, of, x in panels:
        own = plain[plain["of"] == of]
        for number, (name, label) in enumerate(
            [("backward_ms", "ours"), ("native_backward_ms", "autograd")]
        ):
            curve(axis, own, x, name, number, label)
        at = sorted(own[x].unique())
        end = interval(own[own[x] == at[-1]]["backward_ms"]).mean
        axis.plot(at, [end * v / at[-1] for v in at], "k:", label=f"proportional to {of}")
        axis.set(ylabel="time of a backward pass (ms)")
    depth.set(title=f"Depth, M = {plain[plain['of'] == 'L']['batch'].iloc[0]:.0f}")
    batch.set(title=f"Batch size, L = {plain[plain['of'] == 'M']['layers'].iloc[0]:.0f}")
    for number, (own, label) in enumerate([(plain, "activations"), (input_alone, "recompute")]):
        own = own[own["of"] == "L"]
        curve(memory, own.assign(mib=own["kept_bytes"] / 2**20), "layers", "mib", number, label)
    memory.set(title="Kept for backward", ylabel="MiB")
    for axis, name in zip(axes, ["layers L", "batch size M (examples)", "layers L"], strict=True):
        axis.set(xscale="log", yscale="log", xlabel=name)
        ticks(axis, rows["batch" if axis is batch else "layers"].unique())
        axis.minorticks_off()
        axis.legend()
    ticks(memory, [0.25, 0.5, 1, 2], "{:g}", of="y")
