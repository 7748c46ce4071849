"""What the compiler makes of each kernel: registers, spills, shared memory, tensor cores. No GPU.

The launches are the library's own, rehearsed on tensors without memory, so what is compiled here
is what a GPU would be given.
"""

import importlib
import importlib.util
import os
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
from tabulate import tabulate
from tqdm import tqdm

from benchmarks import narrow
from benchmarks.machine_code import disassembled, main_loop, number

# shared memory a block may have, and multiprocessors: H200, B200, RTX 5090, A100, MI300X
TARGETS = {
    "sm_90": ("cuda", 90, 132, 232448),
    "sm_80": ("cuda", 80, 108, 166912),
    "sm_100": ("cuda", 100, 148, 232448),
    "sm_120": ("cuda", 120, 170, 101376),
    "gfx942": ("hip", "gfx942", 304, 65536),
}
MATRIX_CORE = {
    "sm_90": r"HGMMA",
    "sm_80": r"HMMA",
    "sm_100": r"UTC\w*MMA",
    "sm_120": r"HMMA",
    "gfx942": r"v_mfma",
}
ACTIVATIONS = ("identity", "relu", "silu", "gelu")
M, N, K = 8192, 4096, 1024


@dataclass(frozen=True)
class Case:
    """One kernel of an operation for a target, in a tile (None: the kernel has none).

    skips: with all that skips can ask of it at once, z written beside a included.
    """

    operation: str
    target: str
    activation: str
    dtype: str = "bfloat16"
    tile: Any = None
    skips: bool = False
    sizes: tuple[int, ...] = ()  # of a narrow chain's layers, input first

    def __str__(self) -> str:
        shape = self.tile or "-".join(map(str, self.sizes))
        return f"{self.name} {self.target} {self.activation} {self.dtype} {shape}"

    @property
    def name(self) -> str:
        return self.operation + ", skips" * self.skips


@dataclass(frozen=True)
class Compiled:
    """registers a thread, spilled bytes a thread, those in a loop that holds a matrix product;
    shared memory in bytes; counts of matrix-core instructions and of all in the loop and after."""

    registers: int
    spilled: int
    spilled_in_loop: int
    shared: int
    bound: int
    matrix_core: int
    loop: int
    epilogue: int


def kernels():
    return importlib.import_module("manualgrad.triton_kernels")


def machine(target: str):
    launch = kernels().launch
    family, arch, multiprocessors, shared = TARGETS[target]
    number = arch if isinstance(arch, int) else 0
    return launch.Machine(family, number, multiprocessors, shared)


def cases(targets: tuple[str, ...] = tuple(TARGETS)) -> Iterator[Case]:
    """Every kernel x activations x tiles shipped for a target; other dtypes with GELU alone.

    With skips: every tile of a layer's kernels in bfloat16, with GELU, for sm_90 with ReLU too.
    Narrow chains: the widest there are, shallow and deep, with skips and without.
    """
    ops = kernels()
    launch = ops.launch
    for target in targets:
        shown = ACTIVATIONS if target == "sm_90" else ("relu", "gelu")
        skipped = ("relu", "gelu") if target == "sm_90" else ("gelu",)
        kinds = ["bfloat16", "float16", "float32", "float64"]
        if target == "sm_100" and launch.TRITON < (3, 9):
            kinds.remove("float64")  # launch refuses it: that compiler fails on it
        for operation in ("linear_act_forward", "bp2_propagate_error", "bp4_weight_gradient"):
            fused = operation != "bp4_weight_gradient"
            for dtype in kinds:
                kind = getattr(torch, dtype)
                tiles = launch.all_tiles(operation, machine(target), kind)
                names = shown if fused and dtype == "bfloat16" else ("gelu",)
                for tile in tiles:
                    for name in names if fused else ("identity",):
                        yield Case(operation, target, name, dtype, tile)
                        if fused and dtype == "bfloat16" and name in skipped:
                            yield Case(operation, target, name, dtype, tile, skips=True)
        for name in shown:
            yield Case("bp1_output_error", target, name)
            if name in skipped:
                yield Case("bp1_output_error", target, name, skips=True)
            if name != "identity":
                yield Case("sigma_pass", target, name)
        yield Case("bp3_bias_gradient", target, "identity")
        for way, sizes, name, skips in narrow.shapes(ops, machine(target)):
            yield Case(way, target, name, sizes=sizes, skips=skips)


def rehearsed(case: Case):
    """(kernel, arguments, options) of the case's first launch."""
    from manualgrad.activations import ACTIVATIONS as REGISTRY

    ops = kernels()
    act, dtype = REGISTRY[case.activation], getattr(torch, case.dtype)
    x, weight, z, bias = (
        torch.empty(*shape, dtype=dtype, device="meta") for shape in ((M, K), (N, K), (M, N), (N,))
    )
    with ops.launch.rehearse(machine(case.target)) as rehearsal:
        match case.operation:
            case "linear_act_forward":
                more = {"skip": z, "with_z": True} if case.skips else {}
                ops.linear_act_forward(x, weight, bias, act, tile=case.tile, **more)
            case "bp1_output_error":
                ops.sigma_prime_pass(z, z, act, with_a=True, skip_z=z if case.skips else None)
            case "bp2_propagate_error":
                more = {"skip": x, "skip_z": x} if case.skips else {}
                ops.bp2_propagate_error(z, weight, x, act, tile=case.tile, **more)
            case "bp3_bias_gradient":
                ops.bp3_bias_gradient(z)
            case "bp4_weight_gradient":
                ops.bp4_weight_gradient(z, x, tile=case.tile)
            case "sigma_pass":
                ops.sigma_pass(z, act)
            case _:
                narrow.launch(ops, case.operation, case.sizes, act, case.skips, dtype)
    return rehearsal.launches[0]


def build(launched, target: str):
    """Compile a rehearsed launch as Triton would."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, arguments, options = launched
    signature: dict[str, Any] = {}
    constants: dict[Any, Any] = {}
    attributes: dict[tuple[int, ...], list] = {}
    for position, name in enumerate(kernel.arg_names):
        value, parameter = arguments[name], kernel.params[position]
        if isinstance(value, tuple) and not parameter.is_constexpr:
            kinds = [_kind(each, parameter) for each in value]
            signature[name] = tuple(kind for kind, _ in kinds)
            places = [((position, i), (position, i)) for i in range(len(kinds))]
        else:
            kinds, places = [_kind(value, parameter)], [(name, (position,))]
            signature[name] = kinds[0][0]
        for (kind, value), (key, place) in zip(kinds, places, strict=True):
            if kind == "constexpr":
                constants[key] = value
            elif value:
                attributes[place] = [["tt.divisibility", 16]]
    family, arch, *_ = TARGETS[target]
    source = ASTSource(kernel, signature, constants, attributes)
    on = GPUTarget(family, arch, 64 if family == "hip" else 32)
    return triton.compile(source, target=on, options=options)


SPELLED = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}


def _kind(value, parameter):
    """(type as Triton spells it, is it a multiple of 16); or ('constexpr', value)."""
    if parameter.is_constexpr or value is None:
        return "constexpr", value
    if isinstance(value, int):
        if value == 1 and not parameter.do_not_specialize:
            return "constexpr", 1
        return "i32", value % 16 == 0 and not parameter.do_not_specialize
    if isinstance(value, torch.Tensor):
        return "*" + SPELLED[str(value.dtype)[6:]], True
    shape = ", ".join(map(str, value.block_shape))  # a tensor descriptor
    return f"tensordesc<{SPELLED[str(value.base.dtype)[6:]]}[{shape}]>", False


def look(case: Case) -> Compiled:
    """Compile the case and read its machine code.  Raises RuntimeError if it does not compile."""
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    try:
        kernel = build(rehearsed(case), case.target)
    except Exception as error:
        raise RuntimeError(f"{case} does not compile: {error}") from error
    bound = case.tile.shared_memory(getattr(torch, case.dtype).itemsize) if case.tile else 0
    shared = kernel.metadata.shared
    if case.target.startswith("gfx"):
        text = kernel.asm["amdgcn"]
        found = {
            key: number(rf"\.{key}:\s+(\d+)", text) for key in ("vgpr_count", "vgpr_spill_count")
        }
        count = len(re.findall(MATRIX_CORE[case.target], text))
        spilled = 4 * found["vgpr_spill_count"]
        return Compiled(found["vgpr_count"], spilled, 0, shared, bound, count, 0, 0)
    registers, spilled, code = disassembled(kernel)
    core = MATRIX_CORE[case.target] if case.dtype.endswith("16") else r"HGMMA|HMMA|DMMA|FFMA|DFMA"
    body, after = main_loop(code, core)
    in_loop = sum(op.startswith(("STL", "LDL")) for op in body)
    count = sum(bool(re.match(core, op)) for op, _ in code)
    return Compiled(registers, spilled, in_loop, shared, bound, count, len(body), len(after))


def compiled(chosen: list[Case], workers: int | None = None) -> dict[Case, Compiled | None]:
    """Each case's Compiled, on all cores; None, and the reason printed, where it fails."""
    results: dict[Case, Compiled | None] = {}
    workers = workers or os.cpu_count() or 1
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(look, case) for case in chosen]
        shown = tqdm(futures, desc="compiling", leave=False, disable=None)
        for case, future in zip(chosen, shown, strict=True):
            try:
                results[case] = future.result()
            except RuntimeError as error:
                print(error)
                results[case] = None
    return results


HEADERS = ("kernel", "activation", "dtype", "tile", "registers", "spilled", "in loop",
           "shared", "matrix core", "loop", "after it")  # fmt: skip


def cells(c: Case, r: Compiled) -> tuple:
    return (
        c.name, c.activation, c.dtype, str(c.tile or _shape(c.sizes)), r.registers, r.spilled,
        r.spilled_in_loop, r.shared, r.matrix_core or "-", r.loop or "-", r.epilogue or "-",
    )  # fmt: skip


def _shape(sizes: tuple[int, ...]) -> str:
    return f"{len(sizes) - 1} layers of {max(sizes)}" if sizes else "-"


def table(results: dict[Case, Compiled | None]) -> str:
    rows = [cells(c, r) if r else (c.operation, c.activation, c.dtype, str(c.tile), "does not "
            "compile") for c, r in results.items()]  # fmt: skip
    return tabulate(rows, HEADERS, tablefmt="github")


def shown_cases() -> list[Case]:
    """Those of the table in docs/kernels.md."""
    return [case for case in cases(("sm_90",)) if case.dtype in ("bfloat16", "float64")]


def run() -> str:
    if importlib.util.find_spec("triton") is None:
        return "left out: triton is not installed (it exists for Linux only)"
    import triton

    return f"triton {triton.__version__}, sm_90\n\n{table(compiled(shown_cases()))}"
