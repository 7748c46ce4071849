"""How many bytes does a chain keep for backward, and hold at most? Exact counts, not times."""

import functools
import warnings
from collections.abc import Callable

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import manualgrad as mg
from benchmarks.weighing import peak_bytes

DEPTH, ROWS, WIDTH = 8, 1024, 256
ACTIVATIONS = (nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.Softplus, nn.ReLU, nn.Tanh, nn.Sigmoid)
# activation, rows, width, layers; the last two are walked in tiles
PEAKS: tuple[tuple[type[nn.Module], int, int, int], ...] = (
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


def run() -> str:
    """Both tables."""
    return f"{kept()}\n\n{peaks()}"


def kept() -> str:
    """MiB kept by torch's modules, by a chain, and by one that recomputes."""
    rows = []
    for act in ACTIVATIONS:
        eager = chain_of(act, DEPTH, WIDTH)
        parameters = list(eager.parameters())
        x = torch.randn(ROWS, WIDTH)
        nets = [
            eager,
            mg.nn.MLP.from_sequential(eager),
            mg.nn.MLP.from_sequential(eager, recompute=True),
        ]
        found = [saved_bytes(functools.partial(net, x), parameters) for net in nets]
        mebibytes = (n / 2**20 for n in found)
        rows.append((act.__name__, *mebibytes, found[1] / found[0], found[2] / found[0]))
    headers = ["activation", "eager", "chain", "recompute", "chain / eager", "recompute / eager"]
    table = tabulate(rows, headers=headers, floatfmt=("", ".2f", ".2f", ".2f", ".3f", ".3f"))
    return (
        f"MiB kept for backward by {DEPTH} layers of width {WIDTH} on {ROWS} rows, float32, the "
        f"input included,\nparameters excluded\n\n{table}"
    )


def chain_of(act: type[nn.Module], depth: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        *(module for _ in range(depth) for module in (nn.Linear(width, width), act()))
    )


def peaks(compiles: bool = True) -> str:
    """MiB that a forward and a backward pass hold at most, gradients included."""
    rows = []
    for act, count, width, depth in PEAKS:
        eager = chain_of(act, depth, width)
        x = torch.randn(count, width, requires_grad=True)
        nets = {
            "eager": eager,
            "torch.compile": torch.compile(eager, dynamic=False) if compiles else None,
            "checkpoint": functools.partial(checkpoint, eager, use_reentrant=False),
            "chain": mg.nn.MLP.from_sequential(eager),
            "recompute": mg.nn.MLP.from_sequential(eager, recompute=True),
        }
        cells = [_peak(net, x, list(eager.parameters())) for net in nets.values()]
        rows.append((act.__name__, count, width, depth, *cells))
    headers = ["activation", "rows", "width", "layers"]
    headers += ["eager", "torch.compile", "checkpoint", "chain", "recompute"]
    table = tabulate(rows, headers=headers, floatfmt=".1f")
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
