"""Does a backward pass cost O(P), and how does it compare with a forward pass?"""

from dataclasses import dataclass
from typing import Any

from experiments.cost.measures import (
    TIMES,
    TIMES_NOTE,
    chained,
    kept_bytes,
    labels,
    mean_ratio,
    noise,
    products,
    slopes,
    spread,
    time_cells,
    times,
    with_steps,
)
from experiments.networks import gradient_difference, gradients
from experiments.pictures import curve
from experiments.results import Claim, Table, held, less, within
from experiments.statistics import Rows, interval
from experiments.study import Setting

ALONE = True
PANELS = 2
LAYERS, BATCH = 4, 64
LARGE = 2.5e5  # parameters, above which the calls' own cost no longer matters


@dataclass(frozen=True)
class Config:
    widths: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024, 2048)
    repeats: tuple[int, int] = (5, 60)  # of the widest and of the narrowest


CONFIGS = {
    "smoke": Config(widths=(16, 256, 512), repeats=(3, 3)),
    "quick": Config(),
    "full": Config(
        widths=(16, 32, 64, 128, 256, 512, 1024, 2048, 4096),
        repeats=(12, 200),
    ),
}


def arms(config: Config) -> list[dict[str, Any]]:
    return [{"width": width} for width in config.widths]


def repeats(width: int, config: Config) -> int:
    """Fewer where each takes long, but for four times the work half as many."""
    fewest, most = config.repeats
    return max(fewest, min(most, fewest * max(config.widths) // width))


def work(arm: dict[str, Any], config: Config) -> float:
    return 0.02 + repeats(arm["width"], config) * arm["width"] ** 2 / 4e7


def measure(arm: dict[str, Any], config: Config, setting: Setting) -> list[dict[str, Any]]:
    width, seed = arm["width"], setting.seed
    net = setting.network([width] * (LAYERS + 1))
    x = noise(seed, BATCH, width, like=net.weights[0])
    y = labels(seed, BATCH, min(10, width), x)
    found = gradients(net, setting.ops.cross_entropy(net(x), y))
    return [
        {
            "P": net.size,
            "number_bytes": x.element_size(),
            "kept_bytes": kept_bytes(net, "cross_entropy", x, y),
            "gradient_bytes": sum(gradient.nbytes for gradient in found),
            "parameter_bytes": sum(parameter.nbytes for parameter in net.parameters()),
            **times(net, "cross_entropy", x, y, repeats(width, config)),
            "gradient_difference": gradient_difference(net, "cross_entropy", x, y),
        }
    ]


def _with_rest(rows: Rows) -> Rows:
    """With what is kept beyond the (L+1) M n numbers, in bytes, and backward over forward."""
    numbers = (LAYERS + 1) * BATCH * rows["width"] * rows["number_bytes"]
    ratio = rows["backward_ms"] / rows["forward_ms"]
    return rows.assign(rest=rows["kept_bytes"] - numbers, backward_over_forward=ratio)


def tables(rows: Rows) -> list[Table]:
    body, memory = [], []
    for width, group in _with_rest(rows).groupby("width"):
        P, first = chained([width] * (LAYERS + 1)), group.iloc[0]
        over = interval(group["backward_over_forward"]).text()
        body.append([width, f"{P:,}", *time_cells(group), over])
        kept, held_bytes = (spread(group[n]) for n in ("kept_bytes", "gradient_bytes"))
        numbers = (LAYERS + 1) * BATCH * width * first["number_bytes"]
        parameters = f"{first['parameter_bytes']:,.0f}"
        memory.append([width, kept, f"{numbers:,.0f}", spread(group["rest"])])
        memory[-1] += [held_bytes, parameters]
    note = f"{LAYERS} layers of one width, M = {BATCH}. {TIMES_NOTE}"
    headers = ["width n", "P", *TIMES, "backward / forward"]
    bytes_headers = ["width n", "kept", "(L+1) M n numbers", "beyond", "gradients", "parameters"]
    about = "Kept: the storages that the graph holds on to, parameters not counted."
    return [
        Table("Time of a pass against the number of parameters P", headers, body, note),
        Table("Bytes", bytes_headers, memory, about),
    ]


def claims(rows: Rows) -> list[Claim]:
    every = _with_rest(rows)
    large = every[every["P"] > LARGE]
    slope, whole = slopes(large, "P", "backward_ms"), slopes(every, "P", "backward_ms")
    return [
        Claim(
            "a backward pass takes time O(P)",
            "the text, on complexity",
            f"log-log slope {slope.text()} for P > {LARGE:,.0f}, {whole.text()} over all P, where "
            f"calls cost more than the arithmetic",
            "from 0.8 to 1.1 for the large ones",
            within(slope.mean, 0.8, 1.1),
        ),
        _two_forward_passes(large),
        *_bytes(every),
        as_fast(rows),
    ]


def _two_forward_passes(large: Rows) -> Claim:
    over = interval(large.groupby("seed")["backward_over_forward"].mean())
    return Claim(
        "a backward pass costs about two forward passes",
        f"theory: {products(LAYERS):.2f} matrix products for each of the forward pass",
        f"{over.text()} for P > {LARGE:,.0f}",
        "from 1.5 to 3",
        within(over.mean, 1.5, 3.0),
    )


def _bytes(rows: Rows) -> list[Claim]:
    rest, spare = rows["rest"], 8 * BATCH + rows["number_bytes"]
    gradient, parameter = rows["gradient_bytes"], rows["parameter_bytes"]
    return [
        Claim(
            "what is kept for backward is (L+1) M n numbers: one activation a layer, once",
            "ours",
            f"{spread(rest)} bytes beyond them",
            "nothing beyond but the labels (8 M bytes) and one number",
            held(bool(((rest >= 0) & (rest <= spare)).all())),
        ),
        Claim(
            "the gradients take as many bytes as the parameters",
            "theory",
            f"{int((gradient == parameter).sum())} of {len(rows)} runs",
            "in every run, exactly",
            held(bool((gradient == parameter).all())),
        ),
    ]


def as_fast(rows: Rows) -> Claim:
    """Of any part's rows of times."""
    steps, ratio = with_steps(rows), mean_ratio(rows)
    by_arm = steps.groupby("arm" if "arm" in rows else "P")["ratio"].mean()
    return Claim(
        "hand-written passes take no longer than autograd's",
        "ours",
        f"ours / autograd's {ratio.text()}, the geometric mean over {len(by_arm)} settings; from "
        f"{by_arm.min():.2f} to {by_arm.max():.2f}",
        "the whole interval is below 1",
        less(interval([]) if ratio.n == 0 else ratio._replace(mean=ratio.mean - 1)),
    )


def draw(rows: Rows, axes: list[Any]) -> None:
    time, memory = axes
    for number, (name, label) in enumerate(
        [
            ("forward_ms", "forward"),
            ("backward_ms", "backward"),
            ("native_forward_ms", "forward, autograd"),
            ("native_backward_ms", "backward, autograd"),
        ]
    ):
        curve(time, rows, "P", name, number, label, linestyle="--" if number > 1 else "-")
    largest = rows[rows["P"] == rows["P"].max()]
    end, at = interval(largest["backward_ms"]).mean, sorted(rows["P"].unique())
    line = [2 * end * P / at[-1] for P in at]
    time.plot(at, line, color="black", linestyle=":", label="proportional to P")
    time.set(title=f"Time of a pass, {LAYERS} layers, M = {BATCH}", ylabel="time (ms)")
    if rows["forward_ms"].min() > 0:
        time.set_ylim(bottom=rows["forward_ms"].min() / 2)  # the line would go far below
    curve(memory, rows, "P", "kept_bytes", 0, "kept for backward")
    curve(memory, rows, "P", "gradient_bytes", 1, "gradients = parameters")
    memory.set(title="Memory of a step, beside the parameters", ylabel="bytes")
    for axis in axes:
        axis.set(xscale="log", yscale="log", xlabel="parameters P")
        axis.legend()
