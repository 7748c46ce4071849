"""Tiles, tensor descriptors, halved epilogues, strides: the same numbers whatever the route."""

import inspect

import pytest
import torch
from cases import DEVICE, DTYPES, assert_as_exact, normal
from test_operations import bp2, bp4, forward

from manualgrad import equations
from manualgrad.activations import ACTIVATIONS

GELU, RELU = ACTIVATIONS["gelu"], ACTIVATIONS["relu"]
OPERATIONS = ("linear_act_forward", "bp2_propagate_error", "bp4_weight_gradient")


def tiles(kernels, operation, dtype):
    """What is shipped for this GPU; in the interpreter one small tile of each kind."""
    launch = kernels.launch
    if DEVICE == "cpu":
        kinds = [(False, 1), (False, 2), (True, 1), (True, 2)]
        return [launch.Tile(32, 32, 32, 4, 1, tma, halves) for tma, halves in kinds]
    return launch.all_tiles(operation, launch.machine_of(normal(1, 1)), dtype)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_every_tile(kernels, operation, dtype, exhaustive):
    """Rows at multiples of 16 bytes, as descriptors want; not all at multiples of the tile."""
    cases = {"linear_act_forward": [], "bp2_propagate_error": [], "bp4_weight_gradient": []}
    for M, N, K in ((64, 32, 64), (33, 48, 80), (130, 16, 16)):
        x, weight, bias = (normal(*n, dtype=dtype) for n in ((M, K), (N, K), (N,)))
        delta, skip, into = (normal(*n, dtype=dtype) for n in ((M, N), (M, K), (N, K)))
        for act in (GELU, RELU):
            more = (None, False) if M == 64 else (delta, True)
            cases["linear_act_forward"].append((x, weight, bias, act, *more))
            skip_z = None if M == 64 else skip.flip(1)
            cases["bp2_propagate_error"].append((delta, weight, x, act, skip, skip_z))
        cases["bp4_weight_gradient"].append((delta, x, into))
    function = dict(zip(OPERATIONS, (forward, bp2, bp4), strict=True))[operation]
    for i, tile in enumerate(tiles(kernels, operation, dtype)):
        chosen = cases[operation]
        if not exhaustive and len(chosen) == 6:  # each tile with each shape, with each activation
            chosen = [chosen[2 * shape + (i + shape) % 2] for shape in range(3)]
        assert_as_exact(function, WithTile(kernels, tile), chosen)


class WithTile:
    """The kernels as a backend, in a given tile."""

    def __init__(self, kernels, tile):
        self.kernels, self.tile = kernels, tile

    def __getattr__(self, name):
        operation = getattr(self.kernels, name)
        if name not in OPERATIONS:
            return operation
        return lambda *arguments, **named: operation(*arguments, **named, tile=self.tile)


def layouts(rows, columns, dtype):
    """The same matrix in every layout that autograd sends."""
    plain = normal(rows, columns, dtype=dtype)
    wide = plain.new_zeros(rows, 2 * columns + 1)
    wide[:, 1 : columns + 1] = plain
    tall = plain.new_zeros(2 * rows, columns)
    tall[::2] = plain
    yield "contiguous", plain
    yield "transposed", plain.t().contiguous().t()
    yield "columns of a wider matrix", wide[:, 1 : columns + 1]
    yield "every other row", tall[::2]
    yield "every other column", torch.stack([plain, plain], 2).reshape(rows, -1)[:, ::2]
    yield "one row, expanded", plain[:1].expand(rows, columns)
    yield "one column, expanded", plain[:, :1].expand(rows, columns)
    yield "one number, expanded", plain[0, 0].expand(rows, columns)


# operation: its arguments, made of the matrices below by their names
CALLS = {
    "linear_act_forward": lambda x, weight, skip: (x, weight, None, GELU, skip),
    "bp1_output_error": lambda delta, s: (delta, s, GELU),
    "bp2_propagate_error": lambda delta, upper, x, sent: (delta, upper, x, GELU, sent, True, sent),
    "bp3_bias_gradient": lambda delta: (delta,),
    "bp4_weight_gradient": lambda delta, x: (delta, x),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_every_layout_of_every_operand(kernels, dtype):
    M, N, K = 17, 33, 16
    plain = {"x": (M, K), "weight": (N, K), "delta": (M, N), "s": (M, N), "upper": (N, K)}
    plain |= {"skip": (M, N), "sent": (M, K)}
    given = {name: normal(*shape, dtype=dtype) for name, shape in plain.items()}
    for name, shape in plain.items():
        for label, matrix in layouts(*shape, dtype):
            t = given | {name: matrix}
            before = {key: value.clone() for key, value in t.items()}
            for operation, arguments in CALLS.items():
                read = inspect.signature(arguments).parameters
                if name not in read:
                    continue
                ours, theirs = both(kernels, operation, *arguments(*(t[key] for key in read)))
                unit = 2 * torch.finfo(dtype).eps
                torch.testing.assert_close(
                    *(ours, theirs), rtol=unit, atol=20 * unit,
                    msg=lambda m, w=f"{operation}, {name} {label}": f"{w}: {m}",
                )  # fmt: skip
            for key, value in t.items():
                assert torch.equal(value, before[key]), f"{key} was written to"


def both(kernels, operation, *arguments):
    ours, theirs = (getattr(b, operation)(*arguments) for b in (kernels, equations))
    if isinstance(ours, tuple):  # the rows of a kernel are sums, those of the reference delta
        pick = (0, 2) if operation == "bp2_propagate_error" else (0,)
        return tuple(tuple(r[i] for i in pick) for r in (ours, theirs))
    return ours, theirs


@pytest.mark.parametrize("examples", [40, 200])  # 200 are split
def test_a_buffer_of_any_layout_is_added_to_in_place(kernels, examples):
    delta, x = normal(examples, 17), normal(examples, 33)
    for label, into in layouts(17, 33, torch.float64):
        if "expanded" in label:
            continue  # nobody can add to memory that stands for several elements
        want = into + delta.T @ x
        got = kernels.bp4_weight_gradient(delta, x, into)
        assert got is into, label
        torch.testing.assert_close(into, want, rtol=1e-13, atol=1e-13)


def test_a_pass_over_z_of_any_layout(kernels):
    for _, z in layouts(17, 33, torch.float64):
        want = GELU.sigma(z)
        torch.testing.assert_close(kernels.sigma_pass(z, GELU), want, rtol=1e-13, atol=1e-13)
        if z.stride(0) and z.stride(1):
            a = kernels.sigma_pass(z.clone(memory_format=torch.preserve_format), GELU, out=z)
            torch.testing.assert_close(a, want, rtol=1e-13, atol=1e-13)


def test_a_column_is_no_descriptor(kernels):
    """(M, 1) with neighbours 5 apart is row-major by torch's lights, not by the hardware's."""
    x = normal(32, 80)[:, :1].as_strided((16, 1), (16, 5))
    a, _ = kernels.linear_act_forward(x, normal(4, 1), None, GELU)
    assert not kernels.describable(x)
    assert a.isfinite().all()


def test_rows_are_few(kernels):
    """Column sums leave the kernels reduced to one row per tile, in float32."""
    delta, weight, z = normal(100, 16), normal(16, 40), normal(100, 40)
    _, rows, _ = kernels.bp2_propagate_error(delta.half(), weight.half(), z.half(), GELU)
    assert rows.dtype == torch.float32
    assert rows.shape[0] < 100
    _, rows = kernels.bp1_output_error(z, z, GELU)
    assert rows.dtype == torch.float64
    assert rows.shape[0] < 100
