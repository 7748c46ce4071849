"""Which problems a suite has: on a GPU, on a CPU, and the first of them to try it."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks import problems
from benchmarks.problems import Problem

Make = Callable[[], Problem]
GRID = ("layer", "mlp", "chain", "narrow")  # what "grid" stands for
ABOUT = {
    "layer": "one linear layer with its activation: (rows, K) to (rows, N)",
    "mlp": "a Transformer's block of two layers: width to 4 width to width",
    "chain": "square layers in a chain, an activation after each",
    "narrow": "chains of narrow layers on many rows, as in fields, policies and physics",
    "patch": "real models with random weights, before and after manualgrad.patch",
}
HALF = "cpu, bfloat16"  # fewer: on many CPUs its products are slower than float32's

# (rows, K, N, activation)
LAYERS = {
    "cpu": [
        (rows, K, N, act)
        for rows, K, N in ((16384, 128, 128), (8192, 512, 512), (2048, 1024, 1024))
        for act in ("relu", "gelu")
    ],
    HALF: [(8192, 512, 512, "relu"), (16384, 128, 128, "gelu")],
    "cuda": [
        (rows, d, 4 * d, act)
        for rows in (8192, 16384)
        for d in (1024, 4096)
        for act in ("relu", "gelu")
    ],
}
# (rows, width, activation); peers on a GPU have gelu_tanh
BLOCKS = {
    "cpu": [
        *((rows, d, "gelu") for rows in (1024, 4096) for d in (256, 512)),
        (16384, 128, "gelu"),
    ],
    HALF: [(4096, 256, "gelu"), (16384, 128, "gelu")],
    "cuda": [
        *((rows, d, "gelu") for rows in (8192, 16384) for d in (1024, 2048, 4096, 8192)),
        *((8192, d, "gelu_tanh") for d in (1024, 4096)),
    ],
}
# (rows, width, depth, activation)
CHAINS = {
    "cpu": [
        (2048, 128, 8, "gelu"),
        (2048, 256, 8, "relu"),
        (2048, 512, 8, "gelu"),
        (16384, 128, 4, "tanh"),
        (16384, 128, 8, "gelu"),
        (16384, 256, 4, "relu"),
        (65536, 128, 6, "relu"),
    ],
    HALF: [(2048, 256, 8, "relu"), (16384, 128, 8, "gelu")],
    "cuda": [(8192, d, 8, act) for d in (1024, 4096) for act in ("relu", "gelu")],
}
NARROWS = {
    "cpu": [
        (1 << 12, 64, 8, "tanh"),
        (1 << 10, 64, 4, "relu"),
        (1 << 12, 16, 4, "relu"),
        (1 << 12, 128, 6, "gelu"),
        (1 << 14, 32, 4, "silu"),
        (1 << 16, 16, 8, "relu"),
        (1 << 16, 64, 4, "relu"),
        (1 << 16, 128, 2, "silu"),
        (1 << 20, 16, 2, "relu"),
    ],
    HALF: [(1 << 12, 64, 8, "tanh"), (1 << 14, 32, 4, "silu"), (1 << 16, 64, 4, "relu")],
    "cuda": [
        (rows, width, depth, "relu")
        for rows in (1 << 10, 1 << 15, 1 << 20)
        for width in (16, 64, 128)
        for depth in (2, 4, 8)
    ],
}


def of(suite: str, device: str, dtypes: tuple[torch.dtype, ...], quick: bool) -> list[Make]:
    """The problems of a suite, each made when its turn comes. quick: the first of them."""
    found = [make for dtype in dtypes for make in _all(suite, device, dtype)]
    return found[:1] if quick else found


def _all(suite: str, device: str, dtype: torch.dtype) -> Iterator[Make]:
    where = {"dtype": dtype, "device": device}
    kind = device.split(":")[0]
    kind = HALF if kind == "cpu" and dtype is torch.bfloat16 else kind
    if suite == "layer":
        for rows, K, N, act in LAYERS[kind]:
            yield partial(problems.layer, rows, K, N, act, **where)
    elif suite == "mlp":
        for rows, width, act in BLOCKS[kind]:
            yield partial(problems.block, rows, width, act, **where)
    elif suite in ("chain", "narrow"):
        for rows, width, depth, act in (CHAINS if suite == "chain" else NARROWS)[kind]:
            sizes = [width] * (depth + 1)
            yield partial(problems.chain, rows, sizes, act, **where, width=width, depth=depth)
    elif suite == "patch" and kind != HALF:
        for name in problems.MODELS:
            yield partial(problems.model, name, **where)
