"""Each kernel computes what the equations say: every activation, odd sizes, four dtypes."""

import functools

import pytest
import torch
from cases import DTYPES, FEW_SHAPES, NAMES, SHAPES, assert_as_exact, layer, normal, shapes_of

from manualgrad import aten, routed
from manualgrad.activations import ACTIVATIONS, activation_of
from manualgrad.backends import Choice

names = pytest.mark.parametrize("name", NAMES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])


def forward(backend, x, weight, bias, act, skip=None, with_z=False):
    return backend.linear_act_forward(x, weight, bias, act, skip, with_z)


def bp1(backend, grad_a, s, act):
    delta, rows = backend.bp1_output_error(grad_a, s, act)
    return delta, backend.bp3_bias_gradient(rows, delta.dtype)


def bp2(backend, delta, weight, s, act, skip, skip_z=None):
    below, rows, a = backend.bp2_propagate_error(delta, weight, s, act, skip, skip_z=skip_z)
    without, _, nothing = backend.bp2_propagate_error(delta, weight, s, act, skip, False, skip_z)
    assert nothing is None
    assert torch.equal(below, without)
    return below, backend.bp3_bias_gradient(rows, below.dtype), a


def bp4(backend, delta, x, into):
    fresh = backend.bp4_weight_gradient(delta, x)
    return fresh, backend.bp4_weight_gradient(delta, x, into.clone())


def test_memory_is_filled_with_nan():
    assert torch.empty(8).isnan().all(), "else a kernel that writes too little passes by luck"


@names
@dtypes
def test_forward(kernels, name, dtype, exhaustive):
    act, cases = ACTIVATIONS[name], []
    for i, shape in shapes_of(name, dtype, exhaustive):
        x, weight, bias, _, skip = layer(shape, act, dtype)
        bias, skip = bias if i % 3 else None, skip if i % 2 else None
        cases.append((x, weight, bias, act, skip, i % 5 < 2))  # z asked for in four of ten
    assert_as_exact(forward, kernels, cases)


@names
@dtypes
def test_bp1_and_bp3(kernels, name, dtype, exhaustive):
    act, cases = ACTIVATIONS[name], []
    for _, shape in shapes_of(name, dtype, exhaustive):
        *_, s, grad_a = layer(shape, act, dtype)
        cases.append((grad_a, s, act))
    assert_as_exact(bp1, kernels, cases)


@names
@dtypes
def test_bp2(kernels, name, dtype, exhaustive):
    act, cases = ACTIVATIONS[name], []
    for i, shape in shapes_of(name, dtype, exhaustive):
        *_, s, _ = layer(shape, act, dtype)  # layer l; above it stands a layer of 20 outputs
        delta, weight = normal(shape[0], 20, dtype=dtype), normal(20, shape[1], dtype=dtype)
        skip = normal(shape[0], shape[1], dtype=dtype) if i % 2 else None
        skip_z = normal(shape[0], shape[1], dtype=dtype) if i % 4 in (1, 2) else None
        cases.append((delta, weight, s, act, skip, skip_z))
    assert_as_exact(bp2, kernels, cases)


@pytest.mark.parametrize("name", ["relu", "gelu", "identity"])
@dtypes
def test_the_passes_behind_another_librarys_product(name, dtype):
    act, layers, above = ACTIVATIONS[name], [], []
    for i, shape in enumerate(FEW_SHAPES):
        x, weight, bias, s, skip = layer(shape, act, dtype)
        delta, upper = normal(shape[0], 20, dtype=dtype), normal(20, shape[1], dtype=dtype)
        for more in (None, skip):
            layers.append((x, weight, bias if i else None, act, more, i > 0))
            above.append((delta, upper, s, act, more, torch.ones_like(skip)))
        above.append((delta, upper, s, act, None, None))
    assert_as_exact(forward, Hybrid, layers)
    assert_as_exact(bp2, Hybrid, above)


class Hybrid:
    """The route that leaves the products to cuBLAS (here: to ATen), as a backend."""

    linear_act_forward = functools.partial(routed.forward_by, Choice("hybrid", ""))
    bp2_propagate_error = functools.partial(routed.bp2_by, Choice("hybrid", ""))
    bp3_bias_gradient = staticmethod(aten.bp3_bias_gradient)


@dtypes
def test_bp3_alone(kernels, dtype):
    cases = [(normal(M, N, dtype=dtype),) for M, N, _ in SHAPES]
    assert_as_exact(lambda on, rows: [rows, on.bp3_bias_gradient(rows, rows.dtype)], kernels, cases)


@dtypes
def test_bp4(kernels, dtype):
    cases = [
        (normal(M, N, dtype=dtype), normal(M, K, dtype=dtype), normal(N, K, dtype=dtype))
        for M, N, K in [*SHAPES, (200, 17, 33)]
    ]
    assert_as_exact(bp4, kernels, cases)


@dtypes
@pytest.mark.parametrize(
    "module", [torch.nn.LeakyReLU(0.3), torch.nn.ELU(0.7), torch.nn.Softplus(2.0, 10.0)], ids=str
)
def test_activations_with_constants_of_their_own(kernels, module, dtype):
    act = activation_of(module, "test")
    layers = [layer(shape, act, dtype) for shape in FEW_SHAPES]
    assert_as_exact(forward, kernels, [(x, w, b, act) for x, w, b, _, _ in layers])
    assert_as_exact(bp1, kernels, [(grad_a, s, act) for *_, s, grad_a in layers])


@dtypes
def test_an_operation_is_bit_equal_from_run_to_run(kernels, dtype):
    act = ACTIVATIONS["gelu"]
    *_, s, _ = layer((65, 63, 17), act, dtype)
    delta, weight, x = (normal(*n, dtype=dtype) for n in ((65, 20), (20, 63), (65, 63)))
    runs = []
    for _ in range(2):
        below, rows, _ = kernels.bp2_propagate_error(delta, weight, s, act, x, True, s)
        grads = kernels.bp3_bias_gradient(rows, dtype), kernels.bp4_weight_gradient(delta, x)
        results = kernels.linear_act_forward(x, weight, None, act, delta, True)
        runs.append((below, rows, *grads, *results))
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


@names
def test_infinities_and_nan_pass_through(kernels, name):
    act = ACTIVATIONS[name]
    z = torch.tensor([[torch.inf, -torch.inf, torch.nan, 1e4, -1e4, 300.0, -300.0, 0.5]])
    x = z.t().contiguous().to(normal(1).device)
    one = torch.ones(1, 1, device=x.device)
    a, _ = kernels.linear_act_forward(x, one, None, act)
    truth = act.sigma(x.double())
    torch.testing.assert_close(a.double(), truth, rtol=1e-5, atol=1e-6, equal_nan=True)
    kept = x if act.keeps == "z" else a
    delta, _ = kernels.bp1_output_error(torch.ones_like(a), kept, act)
    slope = (
        torch.ones_like(truth)
        if act.is_identity
        else act.sigma_prime(x.double() if act.keeps == "z" else truth)
    )
    torch.testing.assert_close(delta.double(), slope, rtol=1e-5, atol=1e-6, equal_nan=True)
    below, _, _ = kernels.bp2_propagate_error(torch.ones_like(a), one, kept, act)
    torch.testing.assert_close(below.double(), slope, rtol=1e-5, atol=1e-6, equal_nan=True)
