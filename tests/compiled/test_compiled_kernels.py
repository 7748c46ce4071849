"""What the compiler makes of every kernel for five GPUs, none of which need be here."""

import os
import pathlib

import pytest
import torch
from selection import EXHAUSTIVE, cover

pytest.importorskip("triton", reason="triton is not installed: it exists for Linux only")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

from manualgrad.triton_kernels import launch

from benchmarks import compiled
from manualgrad.activations import activation_of


def needs(case):
    """What is compiled at least once by `make test`: for every target, and over all of them."""
    yield from ((case.target, case.operation, x) for x in (case.tile, case.dtype, case.skips))
    yield from ((case.target, case.activation), (case.operation, case.activation, case.skips))


CASES = list(compiled.cases())
CHOSEN = cover(CASES, needs, first=0 if launch.TRITON >= (3, 9) else len(CASES) // 2)
PRODUCTS = [case for case in CASES if case.tile is not None]


def parameters(cases):
    marks = (() if case in CHOSEN else EXHAUSTIVE for case in cases)
    return [pytest.param(case, marks=m) for case, m in zip(cases, marks, strict=True)]


@pytest.fixture(scope="module")
def results(exhaustive):
    return compiled.compiled(CASES if exhaustive else CHOSEN)


@pytest.mark.parametrize("case", parameters(CASES), ids=str)
def test_every_kernel_compiles_within_the_limits(results, case):
    """Its shared memory fits the GPU and what launch.py counts on; no loop spills registers.

    But for the largest narrow chains, with gelu and skips on sm_90: 8 layers of 64 by triton 3.9,
    and layers of 128 by triton 3.6.
    """
    found = results[case]
    assert found is not None, "does not compile"
    assert found.shared <= compiled.TARGETS[case.target][3]
    if case.tile is not None:
        assert found.shared <= found.bound
    allowed = 10 if case.sizes == (64,) * 9 and case.operation == "narrow_backward" else 0
    wide = case.sizes[:1] == (128,) and launch.TRITON < (3, 9)
    assert found.spilled_in_loop <= (0.018 * found.loop if wide else allowed)
    if case.target == "sm_90" and case.dtype == "bfloat16" and not wide:
        assert found.spilled <= 64


@pytest.mark.parametrize("case", parameters([c for c in PRODUCTS if c.dtype != "float32"]), ids=str)
def test_products_run_on_matrix_cores(results, case):
    assert results[case].matrix_core > 0
    if case.target == "sm_90" and case.dtype.endswith("float16"):
        assert results[case].loop > 0, "the wgmma instructions stand in a loop"


def test_tensor_descriptors_are_shipped_for_hopper_and_later():
    with_tma = {(c.target, c.operation) for c in PRODUCTS if c.tile.tma}
    later = {"sm_90", "sm_100", "sm_120"} if launch.TRITON >= (3, 9) else {"sm_90", "sm_100"}
    assert {target for target, _ in with_tma} == later
    assert len(with_tma) == 3 * len(later)


def machine(target):
    return compiled.machine(target)


def test_the_largest_tile_that_gives_all_multiprocessors_work_is_taken():
    x, weight = (torch.empty(n, 1024, dtype=torch.bfloat16, device="meta") for n in (8192, 4096))
    with launch.rehearse(machine("sm_90")):
        tile = launch.tile_for("linear_act_forward", 8192, 4096, x, weight)
        assert (tile.rows, tile.columns, tile.tma) == (128, 256, True)
        tile = launch.tile_for("linear_act_forward", 512, 4096, x[:512], weight)
        assert (tile.rows, tile.columns, tile.tma) == (128, 128, True)
        tile = launch.tile_for("linear_act_forward", 8192, 4096, x[:, 1:], weight)
        assert not tile.tma, "rows that begin at odd addresses have no descriptor"
    with launch.rehearse(machine("gfx942")):
        assert not launch.tile_for("bp2_propagate_error", 8192, 1024, x, weight).tma


def test_a_grid_beyond_the_limit_is_refused():
    tile = launch.Tile(16, 16, 16, 4, 1)
    with pytest.raises(ValueError, match=r"4294967296 tiles, more than the 2147483647"):
        launch.count(2**20, 2**20, tile)


def test_no_tile_that_fits_is_an_error():
    tiny = launch.Machine("cuda", 75, 40, 16 * 1024)
    with pytest.raises(ValueError, match="16384 bytes of shared memory"):
        launch.tiles_of("linear_act_forward", tiny, torch.bfloat16, False)


def test_few_tiles_are_split_over_examples():
    tile = launch.HOPPER_TMA["bp4_weight_gradient"][0]
    parts, span = launch.split_for(16384, 32, tile, machine("sm_90"))
    assert (parts, span) == (4, 4096)
    assert launch.split_for(16384, 200, tile, machine("sm_90")) == (1, 16384)
    assert launch.split_for(100, 1, tile, machine("sm_90")) == (1, 128)


def test_constants_of_an_activation_reach_the_machine_code():
    """Two activations of one formula with other constants must not share a compiled kernel."""
    texts = []
    for slope in (0.3, 0.1):
        act = activation_of(torch.nn.LeakyReLU(slope), "test")
        z = torch.empty(256, 128, dtype=torch.bfloat16, device="meta")
        with launch.rehearse(machine("sm_90")) as rehearsal:
            launch_sigma(z, act)
        texts.append(compiled.build(rehearsal.launches[0], "sm_90").asm["ptx"])
    assert texts[0] != texts[1]


def launch_sigma(z, act):
    from manualgrad import triton_kernels

    triton_kernels.sigma_pass(z, act)


def test_the_table_in_the_documentation_is_what_compiles(results):
    """docs/kernels.md holds the output of `python -m benchmarks compiled`."""
    import triton

    if not triton.__version__.startswith("3.9."):
        pytest.skip(f"the documentation shows triton 3.9; this is {triton.__version__}")
    text = (pathlib.Path(__file__).parents[2] / "docs" / "kernels.md").read_text()
    lines = {tuple(map(str.strip, line.strip("|").split("|"))) for line in text.splitlines()}
    for case in [c for c in compiled.shown_cases() if c in results]:
        assert tuple(map(str, compiled.cells(case, results[case]))) in lines, case


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_another_number_of_examples_is_another_kernel_only_a_few_times(target):
    """Nothing is tuned at a call, and lengths that change do not compile anew each time."""
    x, weight = (torch.empty(n, 1024, dtype=torch.bfloat16, device="meta") for n in (65536, 4096))
    with launch.rehearse(machine(target)):
        tiles = {
            launch.tile_for("linear_act_forward", M, 4096, x[:M], weight)
            for M in [*range(1, 4097, 7), 8192, 65536]
        }
    assert len(tiles) <= 4
