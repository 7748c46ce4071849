"""Errors of the path that create_graph takes: at most twice torch's own, plus one last place.

Those of the ordinary path are judged in tests/test_audit.py.
"""

import pytest
import torch
from helpers import NAMES, native_mlp

import manualgrad as mg

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
names = pytest.mark.parametrize("name", NAMES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])


def outputs_and_gradients(network, tensors, grad):
    tensors = [t.detach().clone().requires_grad_() for t in tensors]
    y = network(*tensors)
    return [y.detach(), *torch.autograd.grad(y, tensors, grad.to(y.dtype))]


def assert_as_exact_as_torch(ours, theirs, tensors, grad):
    """Both run on the same rounded tensors; the truth is torch in float64 on them."""
    truth = outputs_and_gradients(theirs, [t.double() for t in tensors], grad.double())
    mine = outputs_and_gradients(ours, tensors, grad)
    native = outputs_and_gradients(theirs, tensors, grad)
    unit = torch.finfo(tensors[0].dtype).eps
    for m, n, t in zip(mine, native, truth, strict=True):
        assert m.dtype == n.dtype == tensors[0].dtype
        error, torchs, size = ((v - t).abs().max() for v in (m, n, torch.zeros_like(t)))
        assert error <= 2 * torchs + unit * size, f"{error:.3e} against torch's {torchs:.3e}"


@names
@dtypes
def test_the_equations_themselves(name, dtype):
    """The path that create_graph takes: formulas in float32, rounded once."""

    def ours(x, w, b):
        with torch.enable_grad():
            y = mg.linear_act(x, w, b, name)

        class Differentiated(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *_):
                return y.detach()

            @staticmethod
            def backward(ctx, grad):
                with torch.enable_grad():
                    return torch.autograd.grad(y, (x, w, b), grad, create_graph=True)

        return Differentiated.apply(x, w, b)

    tensors = [torch.randn(64, 48) * 2, torch.randn(32, 48) / 5, torch.randn(32)]
    assert_as_exact_as_torch(
        ours,
        lambda x, w, b: native_mlp(x, [w], [b], [name]),
        [t.to(dtype) for t in tensors],
        torch.randn(64, 32).to(dtype),
    )
