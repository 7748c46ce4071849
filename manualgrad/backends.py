"""Which implementation runs an operation on which tensors, and why: one table, read top down.

    aten      the equations on ATen's one-pass kernels: on the CPU, and wherever nothing else wins
    cublaslt  cuBLAS with ReLU in its own epilogue
    hybrid    cuBLAS's product and one Triton pass for all that is elementwise
    triton    one Triton kernel: the product with sigma, or sigma' and column sums, in its epilogue

The numbers in the table are computed, not measured: they assume a Triton product at 0.85 of
cuBLAS's speed, 790 TFLOP/s and 4.3 TB/s (an H200). ``manualgrad.tune`` replaces them, shape by
shape, by what it measures on the GPU at hand.
"""

import contextlib
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manualgrad import compat, one_pass, tuned
from manualgrad.activations import Activation
from manualgrad.eligibility import missing_for_triton, refusal

OPERATIONS = (
    "linear_act_forward",
    "bp1_output_error",
    "bp2_propagate_error",
    "bp3_bias_gradient",
    "bp4_weight_gradient",
)
FORWARD, BP1, BP2, BP3, BP4 = OPERATIONS
MODES = ("auto", "torch", "triton", "narrow")

log = logging.getLogger("manualgrad")


class Choice(NamedTuple):
    backend: str
    reason: str
    tile: str | None = None


@dataclass(frozen=True)
class Problem:
    """What the table decides on.  A product of (M, P) and (P, N), or (M, N) elementwise, P = 0.

    aligned: base and rows of every matrix stand at multiples of 16 bytes, rows of 16 elements.
    """

    operation: str
    act: Activation
    dtype: torch.dtype
    M: int
    N: int
    P: int
    aligned: bool
    bias: bool
    arch: int
    multiprocessors: int

    @property
    def half(self) -> bool:
        return self.dtype in (torch.float16, torch.bfloat16)

    @property
    def launch_bound(self) -> bool:
        """The product (or, elementwise, the pass) takes less than its launch."""
        return self.M * self.N * max(self.P, 256) < 4e9

    @property
    def fusable(self) -> bool:
        """A Triton product could hold its own: half type, aligned, a tile per multiprocessor."""
        tiles = -(-self.M // 128) * -(-self.N // 128)
        return self.half and self.aligned and tiles >= self.multiprocessors

    @property
    def key(self) -> str:
        """Under which a measurement is kept; examples count by powers of two."""
        sizes = [self.M, self.N, self.P]
        examples = 2 if self.operation == BP4 else 0  # BP4 contracts over them
        sizes[examples] = 1 << max(sizes[examples] - 1, 0).bit_length()
        dtype = str(self.dtype).removeprefix("torch.")
        return " ".join(map(str, (self.operation, self.act, dtype, *sizes)))


class Row(NamedTuple):
    operations: tuple[str, ...]
    applies: Callable[[Problem], bool]
    backend: str
    reason: str


def _costs_several_passes(p: Problem) -> bool:
    """ATen has no kernel for this sigma, or one that is right at infinity only with help."""
    return p.act.hides_z or p.act.name not in one_pass.ONE_PASS


# The first row that applies decides. It is asked only for tensors that the kernels can take.
TABLE = (
    Row((BP3,), lambda p: True, "aten", "few rows are left to add: one small reduction"),
    Row((BP4,), lambda p: True, "aten", "no epilogue to fuse: cuBLAS's product is not beaten"),
    Row(OPERATIONS, lambda p: p.act.is_identity, "aten", "the identity leaves nothing to fuse"),
    Row(
        OPERATIONS,
        lambda p: p.dtype == torch.float64,
        "aten",
        "float64 is for checks, and cuBLAS's and ATen's kernels are the exact ones",
    ),
    Row(
        (FORWARD,),
        lambda p: p.act.name == "relu" and p.bias and p.half and p.arch in (90, 100, 103),
        "cublaslt",
        "cuBLAS applies ReLU in its own epilogue: no extra pass",
    ),
    Row(
        (FORWARD,),
        lambda p: p.fusable and p.P <= 512 and p.act.name in ("silu", "gelu", "gelu_tanh", "tanh"),
        "triton",
        "at most 512 inputs: the pass saved costs more than the product loses",
    ),
    Row(
        (BP2,),
        lambda p: p.fusable and (p.P <= 1024 or (p.P <= 2048 and p.act.keeps == "a")),
        "triton",
        "few outputs to contract over: sigma' and the column sums ride in the epilogue",
    ),
    Row(
        OPERATIONS,
        lambda p: p.launch_bound and not _costs_several_passes(p),
        "aten",
        "under 4e9 multiplications a launch costs more than the work it saves",
    ),
    Row((FORWARD,), _costs_several_passes, "hybrid", "ATen would take several passes for sigma"),
    Row((FORWARD,), lambda p: True, "aten", "ATen's sigma is one pass, in place"),
    Row((BP1,), lambda p: True, "hybrid", "sigma' and the column sums in one pass"),
    Row((BP2,), lambda p: True, "hybrid", "cuBLAS, then sigma' and the column sums in one pass"),
)


@functools.lru_cache(maxsize=4096)
def table_choice(p: Problem) -> Choice:
    """The table's row for a problem."""
    row = next(row for row in TABLE if p.operation in row.operations and row.applies(p))
    return Choice(row.backend, row.reason)


def measured_choice(p: Problem, kept: dict[str, dict[str, Any]]) -> Choice | None:
    """What manualgrad.tune chose for a problem, unless these tensors do without its premises."""
    found = kept.get(p.key) if kept else None
    if found is None or (found["backend"] == "triton" and not p.aligned):
        return None
    if found["backend"] == "cublaslt" and not (p.bias and p.act.name == "relu"):
        return None
    return Choice(found["backend"], "measured by manualgrad.tune", found.get("tile"))


_mode = "auto"


def mode() -> str:
    return _mode


class backend(contextlib.ContextDecorator):
    """Choose the backend: ``with manualgrad.backend("torch"): ...``

    "auto": by the table and by what ``manualgrad.tune`` measured. "torch": ATen only. "triton": the
    kernels for every operation, so that they can be tested; a tensor they cannot take is a
    ValueError. "narrow": as "auto", but chains run in one kernel each way, or forward alone, in
    every dtype, or are a ValueError. Gradients that are to be differentiated themselves always run
    on the equations.

    Holds for the whole process, since backward passes run in threads of their own: do not enter it
    in one thread while another computes. Raises ValueError for another name, and for "triton" and
    "narrow" where triton or a GPU is missing.
    """

    def __init__(self, name: str):
        if name not in MODES:
            names = ", ".join(map(repr, MODES))
            raise ValueError(f"manualgrad.backend: {name!r} is none of {names}")
        missing = missing_for_triton() if name in ("triton", "narrow") else None
        if missing:
            raise ValueError(f"manualgrad.backend: {name!r} cannot run here: {missing}")
        self._name, self._before = name, []

    def __enter__(self) -> None:
        global _mode
        self._before.append(_mode)
        _mode = self._name

    def __exit__(self, *_: object) -> None:
        global _mode
        _mode = self._before.pop()


def choose(
    operation: str, act: Activation, M: int, N: int, P: int, *tensors: Tensor | None, bias=False
) -> Choice:
    """The backend for an operation.  M, N, P: the Problem's. tensors: all that it reads.

    Raises ValueError under backend("triton") for tensors that the kernels cannot take.
    """
    if _mode == "torch":
        return Choice("aten", "manualgrad.backend('torch') says so")
    reason = refusal(act, *tensors)
    if _mode == "triton":
        if reason is None:
            return Choice("triton", "manualgrad.backend('triton') says so")
        raise ValueError(
            f"manualgrad: backend 'triton' cannot run {operation}: {reason}; use "
            f"manualgrad.backend('auto')"
        )
    first = next(t for t in tensors if t is not None)
    if reason is None and not first.is_cuda:
        reason = "Triton's interpreter is for tests; manualgrad.backend('triton') asks for it"
    if reason is not None:
        _say_once(operation, reason)
        return Choice("aten", reason)
    index = first.device.index
    index = torch.cuda.current_device() if index is None else index
    arch, multiprocessors = _device(index)
    aligned = all(_aligned(t) for t in tensors if t is not None and t.dim() == 2)
    p = Problem(operation, act, first.dtype, M, N, P, aligned, bias, arch, multiprocessors)
    choice = measured_choice(p, tuned.choices(index)) or table_choice(p)
    if choice.backend == "cublaslt" and not relu_epilogue_keeps_nan(index, p.dtype):
        return Choice("aten", "cuBLAS's ReLU epilogue is not known to pass NaN on here")
    return choice


def _aligned(matrix: Tensor) -> bool:
    step = matrix.stride(0)
    return matrix.stride(1) == 1 and step % 16 == 0 and step > 0 and matrix.data_ptr() % 16 == 0


@functools.cache
def _device(index: int) -> tuple[int, int]:
    """(10 major + minor of the compute capability; 0 on AMD, multiprocessors)."""
    properties = torch.cuda.get_device_properties(index)
    arch = 0 if torch.version.hip else 10 * properties.major + properties.minor
    return arch, properties.multi_processor_count


_keeps_nan: dict[tuple[int, torch.dtype], bool] = {}


def relu_epilogue_keeps_nan(index: int, dtype: torch.dtype) -> bool:
    """Tried once per device and dtype, on one product; not while a CUDA graph is being captured."""
    key = index, dtype
    if key not in _keeps_nan:
        if compat.addmm_activation is None or torch.cuda.is_current_stream_capturing():
            return False
        x = torch.full((256, 256), torch.nan, dtype=dtype, device=f"cuda:{index}")
        _keeps_nan[key] = bool(compat.addmm_activation(x[0], x, x).isnan().all())
    return _keeps_nan[key]


@functools.cache
def _say_once(operation: str, reason: str) -> None:
    log.info("manualgrad: %s runs on ATen: %s", operation, reason)
