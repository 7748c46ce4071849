"""Kernels that refuse what a Triton kernel could not take: a run without a GPU then says something
about one. They stand where the Triton kernels stand, behind the guards of the library."""

import contextlib
import functools
import inspect

import torch
from torch import Tensor
from torch.autograd import forward_ad

from manualgrad import aten, backends, eligibility, routed
from manualgrad.backends import Choice

PLAIN = (Tensor, torch.nn.Parameter)
SKIPS = {"skip", "skip_z"}  # ATen would broadcast them, and promote


def refuse(tensor):
    """Raise unless tensor is plain memory that nobody watches."""
    functorch = torch._C._functorch
    assert type(tensor) in PLAIN, f"a {type(tensor).__name__} reached a kernel"
    assert not functorch.is_functorch_wrapped_tensor(tensor), "a functorch tensor reached a kernel"
    assert not functorch.is_legacy_batchedtensor(tensor), "a batched tensor reached a kernel"
    assert not tensor.is_meta, "a tensor on meta reached a kernel"
    assert not tensor.numel() or tensor.data_ptr(), "a tensor without memory reached a kernel"
    assert forward_ad.unpack_dual(tensor).tangent is None, "a dual tensor reached a kernel"


def kernel(equation):
    named = inspect.signature(equation).bind

    @functools.wraps(equation)
    def run(*inputs, tile=None, **keywords):
        assert torch._C._len_torch_dispatch_stack() == 0, "a dispatch mode misses a kernel"
        given = named(*inputs, **keywords).arguments
        tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        for tensor in tensors.values():
            refuse(tensor)
        with torch.no_grad():
            results = equation(**(given | {n: tensor.detach() for n, tensor in tensors.items()}))
            fresh = [r.clone() if isinstance(r, Tensor) else r for r in _as_tuple(results)]
        for name in SKIPS & set(tensors):
            assert tensors[name].shape == fresh[0].shape, f"{name} would be read beyond its end"
            assert tensors[name].dtype is fresh[0].dtype, f"{name} is of another dtype"
        run.calls += 1
        return tuple(fresh) if isinstance(results, tuple) else fresh[0]

    run.calls = 0
    return run


def _as_tuple(results):
    return results if isinstance(results, tuple) else (results,)


class Kernels:
    def __init__(self):
        for name in aten.__all__:
            setattr(self, name, kernel(getattr(aten, name)))

    @property
    def calls(self):
        return sum(getattr(self, name).calls for name in aten.__all__)


@contextlib.contextmanager
def opaque_kernels(monkeypatch):
    """Every operation on an opaque kernel, unless the library's own guard refuses its tensors."""
    kernels = Kernels()

    def choose(operation, act, M, N, P, *tensors, bias=False):
        reason = eligibility.refusal(act, *tensors)
        return Choice("aten", reason) if reason else Choice("triton", "opaque")

    with monkeypatch.context() as patch:
        patch.setattr(backends, "_mode", "triton")
        patch.setattr(routed, "choose", choose)
        patch.setattr(routed, "triton_kernels", lambda: kernels)
        patch.setattr(eligibility, "interpreted", lambda: True)
        patch.setattr(eligibility, "triton_problem", lambda: None)
        patch.setattr(eligibility, "formula_problem", lambda act: None)
        yield kernels
