"""What the Triton kernels can take: on this machine, and of which tensors."""

import functools
import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from manualgrad import compat


@functools.cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Triton's interpreter is on (TRITON_INTERPRET=1): kernels run on the CPU, slowly."""
    return has_triton() and bool(triton_kernels().launch.knobs.runtime.interpret)


@functools.cache
def triton_kernels() -> Any:
    """The kernels, imported when a tensor first needs them."""
    return importlib.import_module("manualgrad.triton_kernels")


def missing_for_triton() -> str | None:
    """What this machine lacks to run the kernels, or None."""
    if not has_triton():
        return "the package triton is not installed (pip install triton; Linux only)"
    if not torch.cuda.is_available() and not interpreted():
        return "torch sees no GPU (or set TRITON_INTERPRET=1 to interpret kernels on the CPU)"
    return None


def refusal(*tensors: Tensor | None) -> str | None:
    """Why the kernels cannot take these tensors, or None."""
    if torch.compiler.is_compiling():
        return "torch.compile traces the equations and fuses them itself"
    if compat.transforms_active():
        return "inside torch.func transforms the tensors are not plain"
    if compat.dispatch_modes_active():
        return "a TorchDispatchMode watches ATen's operations"
    for tensor in tensors:
        if tensor is None:
            continue
        reason = _refusal_of(tensor)
        if reason:
            return reason
    return None


def _refusal_of(tensor: Tensor) -> str | None:
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"{type(tensor).__name__} is a subclass of Tensor, not plain memory"
    if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        return f"there are no kernels for {tensor.dtype}"
    if not tensor.is_cuda and not (tensor.device.type == "cpu" and interpreted()):
        return f"the kernels run on a GPU and the tensor is on {tensor.device}"
    if tensor.numel() == 0:
        return f"a tensor of shape {tuple(tensor.shape)} is empty"
    if tensor.is_conj() or tensor.is_neg():
        return "a lazily negated tensor is not plain memory; call resolve_neg()"
    if max(tensor.shape) >= 2**31:
        return f"{max(tensor.shape)} rows or columns: the kernels' indices are 32 bits wide"
    return None
