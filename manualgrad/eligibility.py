"""What the Triton kernels can take: on this machine, and of which tensors."""

import functools
import importlib
import importlib.metadata
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from manualgrad import compat
from manualgrad.activations import Activation

OLDEST_TRITON = (3, 6)


@functools.cache
def triton_problem() -> str | None:
    """Why the kernels cannot be imported here, or None."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (pip install triton; Linux only)"
    try:
        version = importlib.metadata.version("triton")
        if tuple(map(int, version.split(".")[:2])) < OLDEST_TRITON:
            return f"triton {version} is too old; install triton >= 3.6"
        triton_kernels()
    except (ImportError, ValueError) as error:
        return f"triton cannot be imported ({error})"
    return None


@functools.cache
def triton_kernels() -> Any:
    """The kernels, imported when a tensor first needs them."""
    return importlib.import_module("manualgrad.triton_kernels")


def interpreted() -> bool:
    """Triton's interpreter is on (TRITON_INTERPRET=1): kernels run on the CPU, slowly."""
    asked = "TRITON_INTERPRET" in os.environ and triton_problem() is None
    return asked and bool(triton_kernels().launch.knobs.runtime.interpret)


def missing_for_triton() -> str | None:
    """What this machine lacks to run the kernels, or None."""
    if triton_problem():
        return triton_problem()
    if not torch.cuda.is_available() and not interpreted():
        return "torch sees no GPU (or set TRITON_INTERPRET=1 to interpret kernels on the CPU)"
    return None


@functools.lru_cache(maxsize=1024)
def formula_problem(act: Activation) -> str | None:
    """Why the kernels cannot compute an activation, or None. Asked only where triton is there."""
    for formula in (act.sigma, act.sigma_prime):
        problem = triton_kernels().untranslatable(formula)
        if problem:
            return f"{act} cannot be translated for the device: {problem}"
    return None


def refusal(act: Activation, *tensors: Tensor | None) -> str | None:
    """Why the kernels cannot take this activation and these tensors, or None."""
    if torch.compiler.is_compiling():
        return "torch.compile traces the equations and fuses them itself"
    if compat.transforms_active():
        return "inside torch.func transforms the tensors are not plain"
    if compat.forward_mode():
        return "in forward mode tangents ride along, and a kernel would drop them"
    if compat.dispatch_modes_active():
        return "a TorchDispatchMode watches ATen's operations"
    given = [tensor for tensor in tensors if tensor is not None]
    for tensor in given:
        reason = _refusal_of(tensor)
        if reason:
            return reason
        if tensor.dtype is not given[0].dtype:
            return f"{given[0].dtype} beside {tensor.dtype}: the kernels take one dtype"
    return triton_problem() or formula_problem(act)


def _refusal_of(tensor: Tensor) -> str | None:
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"{type(tensor).__name__} is a subclass of Tensor, not plain memory"
    if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        return f"there are no kernels for {tensor.dtype}"
    if not tensor.is_cuda and not (tensor.device.type == "cpu" and interpreted()):
        return f"the kernels run on a GPU and the tensor is on {tensor.device}"
    if tensor.numel() == 0:
        return f"a tensor of shape {tuple(tensor.shape)} is empty"
    if tensor.is_neg():
        return "a lazily negated tensor is not plain memory; call resolve_neg()"
    if not compat.has_memory(tensor):
        return "a tensor without memory of its own, such as a batched one, has no address"
    if max(tensor.shape) > 2**31 - 1024:  # a tile beyond the last must have a 32-bit index
        return f"{max(tensor.shape)} rows or columns: the kernels' indices are 32 bits wide"
    return None
