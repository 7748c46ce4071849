"""How many bytes does a chain keep for backward, and hold at most? Exact counts, not times."""

import functools
import warnings
from collections.abc import Callable, Sequence

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import manualgrad as mg
from benchmarks import pictures
from benchmarks.outcome import Outcome, Row, Settings
from benchmarks.weighing import peak_bytes

DEPTH, ROWS, WIDTH = 8, 1024, 256
ACTIVATIONS = (nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.Softplus, nn.ReLU, nn.Tanh, nn.Sigmoid)
Shape = tuple[type[nn.Module], int, int, int]
# activation, rows, width, layers; the last two are walked in tiles
PEAKS: tuple[Shape, ...] = (
    *((act, 1024, 256, depth) for act in (nn.GELU, nn.ReLU) for depth in (2, 8, 32)),
    *((act, 65536, 64, 8) for act in (nn.GELU, nn.ReLU)),
)


def saved_bytes(run: Callable[[], Tensor], parameters: list[nn.Parameter]) -> int:
    """Bytes of distinct memory that autograd keeps from run() for backward, parameters excluded."""
    own = {p.untyped_storage().data_ptr() for p in parameters}
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive = run()  # noqa: F841  while it lives no address is used twice
    return sum(storages.values())


def run(settings: Settings) -> Outcome:
    """Both tables."""
    saved, held = kept(), peaks(PEAKS[:1] if settings.quick else PEAKS)
    text = f"{kept_table(saved)}\n\n{peaks_table(held)}"
    names = [row["activation"] for row in saved]
    series = {
        key: {row["activation"]: row[f"{key} MiB"] / row["eager MiB"] for row in saved}
        for key in ("chain", "recompute")
    }
    label = "bytes kept for backward, as a share of eager's"
    return Outcome(
        [{"count": "kept", **row} for row in saved] + [{"count": "held", **row} for row in held],
        text,
        {"memory": pictures.bars("memory", names, series, label, 1.0)},
    )


def kept() -> list[Row]:
    """MiB kept by torch's modules, by a chain, and by one that recomputes."""
    rows = []
    for act in ACTIVATIONS:
        eager = chain_of(act, DEPTH, WIDTH)
        x = torch.randn(ROWS, WIDTH)
        nets = {
            "eager": eager,
            "chain": mg.nn.MLP.from_sequential(eager),
            "recompute": mg.nn.MLP.from_sequential(eager, recompute=True),
        }
        parameters = list(eager.parameters())
        row: Row = {"activation": act.__name__}
        for name, net in nets.items():
            row[f"{name} MiB"] = saved_bytes(functools.partial(net, x), parameters) / 2**20
        rows.append(row)
    return rows


def kept_table(rows: list[Row]) -> str:
    body = []
    for row in rows:
        eager, chain, recompute = (row[f"{name} MiB"] for name in ("eager", "chain", "recompute"))
        ratios = chain / eager, recompute / eager
        body.append((row["activation"], eager, chain, recompute, *ratios))
    headers = ["activation", "eager", "chain", "recompute", "chain / eager", "recompute / eager"]
    table = tabulate(body, headers=headers, floatfmt=("", ".2f", ".2f", ".2f", ".3f", ".3f"))
    return (
        f"MiB kept for backward by {DEPTH} layers of width {WIDTH} on {ROWS} rows, float32, the "
        f"input included,\nparameters excluded\n\n{table}"
    )


def chain_of(act: type[nn.Module], depth: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        *(module for _ in range(depth) for module in (nn.Linear(width, width), act()))
    )


def peaks(shapes: Sequence[Shape], compiles: bool = True) -> list[Row]:
    """MiB that a forward and a backward pass hold at most, gradients included."""
    rows = []
    for act, count, width, depth in shapes:
        torch.compiler.reset()  # past 8 networks Dynamo would give up
        eager = chain_of(act, depth, width)
        x = torch.randn(count, width, requires_grad=True)
        nets = {
            "eager": eager,
            "torch.compile": torch.compile(eager, dynamic=False) if compiles else None,
            "checkpoint": functools.partial(checkpoint, eager, use_reentrant=False),
            "chain": mg.nn.MLP.from_sequential(eager),
            "recompute": mg.nn.MLP.from_sequential(eager, recompute=True),
        }
        row: Row = {"activation": act.__name__, "rows": count, "width": width, "layers": depth}
        for name, net in nets.items():
            row[f"{name} MiB"] = _peak(net, x, list(eager.parameters()))
        rows.append(row)
    return rows


def peaks_table(rows: list[Row]) -> str:
    headers = [name.removesuffix(" MiB") for name in rows[0]]
    table = tabulate([list(row.values()) for row in rows], headers=headers, floatfmt=".1f")
    return f"MiB held at most in a forward and a backward pass, gradients included\n\n{table}"


def _peak(net: Callable[..., Tensor] | None, x: Tensor, parameters: list[nn.Parameter]):
    """None where the compiler does not work here."""

    def both() -> None:
        assert net is not None
        y = net(x)
        y.backward(torch.ones_like(y))
        for tensor in (x, *parameters):
            tensor.grad = None

    if net is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            both()
    except Exception as error:  # what a compiler raises is of any kind
        print(f"torch.compile left out: {str(error).splitlines()[0]}")
        return None
    return peak_bytes(both, "cpu") / 2**20
