"""The picture of the noise of mini-batches."""

from typing import Any

from experiments.pictures import COLOURS, MARKERS, curve
from experiments.statistics import Rows

ONE_RUN = ["updates", "seed"]


def draw(rows: Rows, axes: list[Any]) -> None:
    law, scale = axes
    # over tr Sigma, which differs between seeds and falls with training, all lie on one line
    relative = rows.assign(relative=rows["variance"] / (rows["law"] * rows["batch"]))
    for number, (updates, at) in enumerate(relative.groupby("updates")):
        curve(law, at, "batch", "relative", number, f"{updates} updates", linestyle="none")
    batches = sorted(rows["batch"].unique())
    law.plot(batches, [1 / M for M in batches], color="black", linewidth=0.8, label="1 / M")
    law.set(
        xscale="log",
        yscale="log",
        xlabel="batch size M (examples)",
        ylabel="E|g_M - G|^2 / tr Sigma",
        title="Variance of a mini-batch's gradient",
    )
    law.legend()
    once = rows.drop_duplicates(ONE_RUN)
    for number, (updates, group) in enumerate(once.groupby("updates")):
        scale.plot(
            group["loss"],
            group["noise_scale"],
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            linestyle="none",
            label=f"{updates} updates",
        )
    scale.set(
        xscale="log",
        yscale="log",
        xlabel="training loss (nats)",
        ylabel="tr Sigma / |G|^2 (examples)",
        title="Noise scale, one mark per seed",
    )
    scale.legend()
