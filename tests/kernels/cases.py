"""What the kernel tests share: sizes that do not fit tiles, and how large an error may be."""

import torch

from manualgrad import aten, equations
from manualgrad.activations import ACTIVATIONS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = sorted(ACTIVATIONS)
# In float32, compiled: x / y errs by two units (div.full.f32), e^x by one and more (ex2.approx.f32);
# torch's own kernels divide exactly. The interpreter's are exact too.
ROUNDING = {("cuda", torch.float32): 4}
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SIZES = [1, 7, 15, 16, 17, 31, 33, 63, 64, 65]
# each size in each position, in different company
SHAPES = [(SIZES[i], SIZES[(3 * i + 4) % 10], SIZES[(7 * i + 2) % 10]) for i in range(10)]
FEW_SHAPES = [(33, 17, 65), (64, 64, 64), (1, 7, 15)]


def shapes_of(name, dtype, exhaustive):
    """(number, shape) of those that a test takes: every activation, and every dtype, meets each."""
    part = NAMES.index(name) + DTYPES.index(dtype)
    return [(i, s) for i, s in enumerate(SHAPES) if exhaustive or (i + part) % len(DTYPES) == 0]


def normal(*shape, dtype=torch.float64, scale=1.0):
    return (torch.randn(*shape, dtype=torch.float64) * scale).to(DEVICE, dtype)


def layer(shape, act, dtype):
    """x, weight, bias, s, grad_a of a layer (M, N, K); s as the equations keep it."""
    M, N, K = shape
    x, weight, bias = normal(M, K, dtype=dtype), normal(N, K, dtype=dtype, scale=K**-0.5), None
    bias = normal(N, dtype=dtype)
    s = equations.linear_act_forward(x, weight, bias, act)[1]
    return x, weight, bias, s, normal(M, N, dtype=dtype)


def assert_as_exact(operation, kernels, cases):
    """The kernels err at most twice as much as ATen does, both against the float64 equations.

    In float64, 1e-13. Errors are relative to a result's largest entry, or to 1; those of column
    sums, the 1-D results, to the sums of what is summed, the first result, without its signs. The
    largest of all cases is compared: on a single number torch may be exact by luck. cases: the
    arguments of each; operation returns the tensors that a backend computes from them.
    """
    ours, theirs = {}, {}
    for arguments in cases:
        dtype = next(a.dtype for a in arguments if isinstance(a, torch.Tensor))
        truth = operation(equations, *map(_double, arguments))
        mine, native = operation(kernels, *arguments), operation(aten, *arguments)
        for i, true in enumerate(truth):
            assert mine[i].dtype == native[i].dtype == dtype
            assert mine[i].shape == true.shape
            summed = truth[0].abs().sum(0) if true.dim() == 1 else true
            size = max(1.0, float(summed.abs().max()))
            for worst, results in ((ours, mine), (theirs, native)):
                error = float((results[i].double() - true).abs().max()) / size
                worst[i] = max(worst.get(i, 0.0), error) if error == error else float("inf")
    for i, error in ours.items():
        unit = ROUNDING.get((DEVICE, dtype), 1) * torch.finfo(dtype).eps
        allowed = 1e-13 if dtype == torch.float64 else 2 * theirs[i] + unit
        assert error <= allowed, f"result {i}: {error:.2e}, torch's own {theirs[i]:.2e}"


def _double(value):
    return value.double() if isinstance(value, torch.Tensor) else value
