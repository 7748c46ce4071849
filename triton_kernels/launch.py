"""How a kernel is launched: on what machine, in what tiles. All tuning numbers of products."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.tools.tensor_descriptor import TensorDescriptor

from .operands import describable


@dataclass(frozen=True)
class Tile:
    """One program's share of a product, and the means it has.

    rows, columns: of the output. depth: the step along the contraction.
    tma: tiles are copied by tensor descriptors. subtiles: parts the epilogue takes the tile in.
    """

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int
    tma: bool = False
    subtiles: int = 1

    def __str__(self) -> str:
        shape = f"{self.rows}x{self.columns}x{self.depth} w{self.num_warps} s{self.num_stages}"
        return shape + (" tma" if self.tma else "") + (f" /{self.subtiles}" * (self.subtiles > 1))

    def shared_memory(self, itemsize: int) -> int:
        """Bytes, at most: the tiles in flight, or the output's on its way out."""
        in_flight = self.num_stages * (self.rows + self.columns) * self.depth * itemsize
        leaving = self.rows * self.columns // self.subtiles * max(itemsize, 4)
        return max(in_flight, leaving) + 1024


@dataclass(frozen=True)
class Machine:
    """family: 'cuda', 'hip' or 'interpreter'. arch: 90 for sm_90. shared_memory: bytes a block."""

    family: str
    arch: int
    multiprocessors: int
    shared_memory: int


INTERPRETER = Machine("interpreter", 0, 1, 1 << 30)

# BP2's epilogue reads s and writes delta and column sums: it is taken in halves. The other two
# hold one tile more in flight instead. Largest first; the first that gives every multiprocessor
# a tile is taken, else the last. What the compiler makes of each: docs/kernels.md.
HOPPER_TMA = {
    "linear_act_forward": (Tile(128, 256, 64, 8, 4, True), Tile(128, 128, 64, 8, 3, True)),
    "bp2_propagate_error": (Tile(128, 256, 64, 8, 3, True, 2), Tile(128, 128, 64, 8, 3, True, 2)),
    "bp4_weight_gradient": (Tile(128, 256, 64, 8, 3, True), Tile(128, 128, 64, 8, 3, True)),
}
SMALLER_TMA = dict.fromkeys(HOPPER_TMA, (Tile(128, 128, 32, 8, 3, True, 2),))
POINTERS = dict.fromkeys(HOPPER_TMA, (Tile(128, 128, 64, 8, 3), Tile(64, 64, 64, 4, 3)))
SMALLER = dict.fromkeys(HOPPER_TMA, (Tile(128, 128, 32, 8, 3), Tile(64, 64, 32, 4, 3)))
FLOAT32 = dict.fromkeys(HOPPER_TMA, (Tile(64, 64, 32, 4, 3),))
FLOAT64 = dict.fromkeys(HOPPER_TMA, (Tile(64, 64, 16, 8, 2),))
INTERPRETED = dict.fromkeys(HOPPER_TMA, (Tile(32, 16, 32, 4, 1),))

ROOMY = 160 * 1024  # bytes of shared memory a block; with less (sm_89, sm_120) tiles are smaller
GROUP = 8  # rows of tiles that are walked together
ELEMENTWISE = (32, 128)  # rows and columns a program of an elementwise pass takes at a time
PROGRAMS_PER_MULTIPROCESSOR = 4  # of an elementwise pass
FOLD = (32, 64)  # rows and columns that a program of BP3's fold takes at a time
LEAST_SPLIT = 1024  # examples: BP4 is not split finer
GRID_LIMIT = 2**31 - 1

TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2])
TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}


def tiles_of(operation: str, machine: Machine, dtype: torch.dtype, tma: bool) -> tuple[Tile, ...]:
    """The tiles that are shipped for an operation, largest first. tma: descriptors will do."""
    if machine.family == "interpreter":
        return INTERPRETED[operation]
    if dtype == torch.float64 and 100 <= machine.arch < 120 and TRITON < (3, 9):
        raise ValueError(
            f"manualgrad: triton {triton.__version__} cannot compile float64 products for sm_100; "
            f"install triton >= 3.9, or use manualgrad.backend('torch')"
        )
    if machine.arch >= 120 and TRITON < (3, 9):
        tma = False  # that compiler spills the descriptors' registers in the main loop
    roomy = machine.shared_memory >= ROOMY
    if dtype in (torch.float64, torch.float32):
        tables = [FLOAT64 if dtype == torch.float64 else FLOAT32]
    elif tma and machine.family == "cuda" and machine.arch >= 90:
        tables = [HOPPER_TMA, SMALLER_TMA] if roomy else [SMALLER_TMA]
    else:
        tables = [POINTERS, SMALLER] if roomy else [SMALLER]
    for table in tables:
        fitting = [t for t in table[operation] if _fits(t, machine, dtype)]
        if fitting:
            return tuple(fitting)
    raise ValueError(
        f"manualgrad: no tile of {operation} in {dtype} fits into the {machine.shared_memory} bytes"
        f" of shared memory a block has here; use manualgrad.backend('torch')"
    )


def all_tiles(
    operation: str, machine: Machine, dtype: torch.dtype, tma: bool = True
) -> tuple[Tile, ...]:
    """Each tile of tiles_of once: with descriptors if they will do, then with pointers."""
    kinds = (True, False) if tma else (False,)
    found = [tile for kind in kinds for tile in tiles_of(operation, machine, dtype, kind)]
    return tuple(dict.fromkeys(found))


def _fits(tile: Tile, machine: Machine, dtype: torch.dtype) -> bool:
    return tile.shared_memory(dtype.itemsize) <= machine.shared_memory


def tile_for(operation: str, rows: int, columns: int, *operands: Tensor | None) -> Tile:
    """The tile for a (rows, columns) product. operands: the matrices that would be copied."""
    given = [t for t in operands if t is not None]
    machine, tma = machine_of(given[0]), all(map(describable, given))
    tiles = tiles_of(operation, machine, given[0].dtype, tma)
    for tile in tiles:
        if count(rows, columns, tile) >= machine.multiprocessors:
            return tile
    return tiles[-1]


def halved(tile: Tile) -> Tile:
    """The tile for a forward that reads a skip: then the epilogue takes too many registers whole.

    GELU's: 255 of them and a spill in the 128x256 tile, 140 in the 128x128 one, of which a
    multiprocessor holds two up to 128. BP2's with pointers, though, spills in halves.
    """
    return tile if tile.columns < 128 else replace(tile, subtiles=2)


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up. Called from the host, triton.cdiv takes microseconds."""
    return -(-a // b)


def tile_named(operation: str, name: str, like: Tensor) -> Tile | None:
    """The shipped tile that prints as name, if it fits the machine of like."""
    tiles = all_tiles(operation, machine_of(like), like.dtype)
    return next((tile for tile in tiles if str(tile) == name), None)


def count(rows: int, columns: int, tile: Tile) -> int:
    """Tiles of a (rows, columns) matrix.  Raises ValueError beyond what a launch can have."""
    tiles = cdiv(rows, tile.rows) * cdiv(columns, tile.columns)
    if tiles > GRID_LIMIT:
        raise ValueError(
            f"manualgrad: a ({rows}, {columns}) result has {tiles} tiles, more than the "
            f"{GRID_LIMIT} of one launch; split the batch or use manualgrad.backend('torch')"
        )
    return tiles


def split_for(examples: int, tiles: int, tile: Tile, machine: Machine) -> tuple[int, int]:
    """(parts, examples per part): few tiles are split over examples until all have work."""
    parts = max(1, min(machine.multiprocessors // max(tiles, 1), examples // LEAST_SPLIT))
    if machine.family == "interpreter":
        parts = 2 if examples > 2 * tile.depth else 1
    span = cdiv(cdiv(examples, parts), tile.depth) * tile.depth
    return cdiv(examples, span), span


def chunk_rows(rows: int, columns: int, machine: Machine) -> int:
    """Rows that one program of an elementwise pass walks through."""
    step, width = ELEMENTWISE
    programs = machine.multiprocessors * PROGRAMS_PER_MULTIPROCESSOR
    chunks = max(1, programs // cdiv(columns, width))
    return cdiv(cdiv(rows, chunks), step) * step


def precision_of(dtype: torch.dtype) -> str | None:
    """How float32 products are made: as torch.set_float32_matmul_precision says for torch's."""
    if dtype != torch.float32:
        return None
    if torch.version.hip:
        return "ieee"  # not every AMD GPU has another
    try:
        return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    except RuntimeError:  # set in the other, per-backend way, which this call does not express
        return "ieee"


@functools.lru_cache
def _machine(index: int) -> Machine:
    properties = torch.cuda.get_device_properties(index)
    shared = properties.shared_memory_per_block_optin
    arch = 0 if torch.version.hip else 10 * properties.major + properties.minor
    return Machine("cuda" if arch else "hip", arch, properties.multi_processor_count, shared)


def machine_of(tensor: Tensor) -> Machine:
    if _rehearsals:
        return _rehearsals[-1].machine
    if knobs.runtime.interpret:
        return INTERPRETER
    index = tensor.device.index
    return _machine(torch.cuda.current_device() if index is None else index)


@dataclass
class Rehearsal:
    """What would have been launched on a machine: (kernel, arguments by name, options)."""

    machine: Machine
    launches: list[tuple[Any, dict[str, Any], Mapping[str, int]]] = field(default_factory=list)


_rehearsals: list[Rehearsal] = []


@contextlib.contextmanager
def rehearse(machine: Machine) -> Iterator[Rehearsal]:
    """Inside, kernels are not launched but written down, as they would be on machine.

    So what a GPU would run can be compiled and looked at where there is none. Not thread-safe.
    """
    _rehearsals.append(Rehearsal(machine))
    try:
        yield _rehearsals[-1]
    finally:
        _rehearsals.pop()


def run(
    kernel: Any,
    grid: tuple[int, ...],
    reads: dict[str, Any],
    writes: dict[str, Any],
    tile: Tile | None = None,
    options: Mapping[str, int] = {},
    **arguments: Any,
) -> None:
    """Launch a kernel.

    reads, writes: name -> a tensor, None, (a matrix, its tile that is copied at a time), or a list
    of tensors and None, to be given as a tuple.
    Parameters NAME_stride and NAME_step get the strides of rows and columns; None for None: then
    the compiled kernel has neither.
    DTYPE, ACC and PRECISION follow from the first tensor. options: without a tile, the compiler's.

    In Triton's interpreter bfloat16 is computed in float32, on copies, and rounded by torch:
    there a bfloat16 product is garbage, without a word.
    """
    matrices: dict[str, tuple[list, list]] = {}  # as given, as the kernel gets them
    for name, what in (reads | writes).items():
        if isinstance(what, list):
            matrices[name] = what, list(map(_widened, what))
            arguments[name] = tuple(matrices[name][1])
            continue
        given, block = what if isinstance(what, tuple) else (what, None)
        matrix = _widened(given)
        matrices[name] = [given], [matrix]
        if matrix is not None and block and tile and tile.tma:
            arguments[name] = TensorDescriptor.from_tensor(matrix, list(block))
        else:
            arguments[name] = matrix
        for axis, suffix in ((0, "_stride"), (1, "_step")):
            if name + suffix in kernel.arg_names:
                arguments[name + suffix] = None if matrix is None else matrix.stride(axis)
    first = next(iter(matrices.values()))[1][0]
    arguments["ACC"] = tl.float64 if first.dtype == torch.float64 else tl.float32
    if "DTYPE" in kernel.arg_names:
        arguments["DTYPE"] = TYPES[first.dtype]
    if tile is not None:
        arguments |= {"PRECISION": precision_of(first.dtype), "TMA": tile.tma, "GROUP": GROUP}
        options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    if _rehearsals:
        _rehearsals[-1].launches.append((kernel, arguments, options))
        return
    with torch.cuda.device_of(first) if first.is_cuda else contextlib.nullcontext():
        kernel[grid](**arguments, **options)
    for name in writes:
        for matrix, written in zip(*matrices[name], strict=True):
            if written is not matrix:
                matrix.copy_(written)


def _widened(matrix: Tensor | None) -> Tensor | None:
    if matrix is None or not knobs.runtime.interpret or matrix.dtype != torch.bfloat16:
        return matrix
    return matrix.float()
