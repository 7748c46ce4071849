"""Which problems a suite has: on a GPU, on a CPU, and a few of them to try it."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks import problems
from benchmarks.problems import Problem

F32, BF16 = torch.float32, torch.bfloat16
Make = Callable[[], Problem]
LAYER = "one linear layer with its activation: (rows, K) to (rows, N)"
MLP = "a Transformer's block of two layers: width to 4 width to width"
CHAIN = "square layers in a chain, an activation after each"
NARROW = "chains of narrow layers on many rows, as in fields, policies and physics"
PATCH = "real models with random weights, before and after manualgrad.patch"
ABOUT = {"layer": LAYER, "mlp": MLP, "chain": CHAIN, "narrow": NARROW, "patch": PATCH}

# (rows, K, N, activation)
LAYERS = {
    "cpu": [(8192, 512, 512, "relu"), (2048, 1024, 1024, "gelu"), (16384, 128, 128, "gelu")],
    "cuda": [
        (rows, d, 4 * d, act)
        for rows in (8192, 16384)
        for d in (1024, 4096)
        for act in ("relu", "gelu")
    ],
}
# (rows, width)
BLOCKS = {
    "cpu": [(4096, 256), (2048, 512), (16384, 128)],
    "cuda": [(rows, d) for rows in (8192, 16384) for d in (1024, 2048, 4096, 8192)],
}
# (rows, width, depth, activation)
CHAINS = {
    "cpu": [
        (2048, 256, 8, "relu"),
        (2048, 512, 8, "gelu"),
        (16384, 256, 4, "relu"),
        (65536, 128, 6, "relu"),
    ],
    "cuda": [(8192, d, 8, act) for d in (1024, 4096) for act in ("relu", "gelu")],
}
NARROWS = {
    "cpu": [
        (4096, 64, 8, "tanh"),
        (16384, 32, 4, "silu"),
        (65536, 16, 8, "relu"),
        (65536, 64, 4, "relu"),
    ],
    "cuda": [
        (rows, width, depth, "relu")
        for rows in (1 << 10, 1 << 15, 1 << 20)
        for width in (16, 64, 128)
        for depth in (2, 4, 8)
    ],
}


def of(suite: str, device: str, dtypes: tuple[torch.dtype, ...], quick: bool) -> list[Make]:
    """The problems of a suite, each made when its turn comes. quick: the first of them."""
    kind = device.split(":")[0]
    found = [make for dtype in dtypes for make in _all(suite, kind, device, dtype)]
    return found[:1] if quick else found


def _all(suite: str, kind: str, device: str, dtype: torch.dtype) -> Iterator[Make]:
    where = {"dtype": dtype, "device": device}
    if suite == "layer":
        for rows, K, N, act in LAYERS[kind]:
            yield partial(problems.layer, rows, K, N, act, **where)
    elif suite == "mlp":
        for rows, width in BLOCKS[kind]:
            yield partial(problems.block, rows, width, "gelu", **where)
    elif suite in ("chain", "narrow"):
        for rows, width, depth, act in (CHAINS if suite == "chain" else NARROWS)[kind]:
            sizes = [width] * (depth + 1)
            yield partial(problems.chain, rows, sizes, act, **where, width=width, depth=depth)
    elif suite == "patch" and dtype is F32:
        for name in problems.MODELS:
            yield partial(problems.model, name, **where)
