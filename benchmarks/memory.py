"""How many bytes does a chain keep for backward? Exact counts, not times."""

import functools
from collections.abc import Callable

import torch
from tabulate import tabulate
from torch import Tensor, nn

import manualgrad as mg

DEPTH, ROWS, WIDTH = 8, 1024, 256
ACTIVATIONS = (nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.Softplus, nn.ReLU, nn.Tanh, nn.Sigmoid)


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
    """The table: MiB kept by torch's modules, by a chain, and by one that recomputes."""
    rows = []
    for act in ACTIVATIONS:
        eager = nn.Sequential(
            *(module for _ in range(DEPTH) for module in (nn.Linear(WIDTH, WIDTH), act()))
        )
        parameters = list(eager.parameters())
        x = torch.randn(ROWS, WIDTH)
        nets = [
            eager,
            mg.nn.MLP.from_sequential(eager),
            mg.nn.MLP.from_sequential(eager, recompute=True),
        ]
        kept = [saved_bytes(functools.partial(net, x), parameters) for net in nets]
        mebibytes = (n / 2**20 for n in kept)
        rows.append((act.__name__, *mebibytes, kept[1] / kept[0], kept[2] / kept[0]))
    headers = ["activation", "eager", "chain", "recompute", "chain / eager", "recompute / eager"]
    table = tabulate(rows, headers=headers, floatfmt=("", ".2f", ".2f", ".2f", ".3f", ".3f"))
    return (
        f"MiB kept for backward by {DEPTH} layers of width {WIDTH} on {ROWS} rows, float32, the "
        f"input included,\nparameters excluded\n\n{table}"
    )
