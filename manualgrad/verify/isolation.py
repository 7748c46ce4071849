"""Everything global that a check may touch, put back as it was."""

import contextlib
import random
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from manualgrad import small
from manualgrad.verify.reach import reached

MEMORY: Any = torch.utils.deterministic


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Generators, default dtype and modes are the caller's again on the way out.

    Inside, gradients are on, autocast is off and warnings are silent, wherever the caller stands,
    and chains go the way that they go in a new process.
    """
    numpy = sys.modules.get("numpy")
    states = random.getstate(), numpy.random.get_state() if numpy else None
    differentiated, small.gradients_were_differentiated = small.gradients_were_differentiated, False
    dtype = torch.get_default_dtype()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(_determinism())
        MEMORY.fill_uninitialized_memory = False  # one question fills it
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
        for kind in ("cpu", "cuda") if devices else ("cpu",):
            stack.enter_context(torch.autocast(kind, enabled=False))
        try:
            yield
        finally:
            random.setstate(states[0])
            if numpy:
                numpy.random.set_state(states[1])
            torch.set_default_dtype(dtype)
            small.gradients_were_differentiated = differentiated


@contextlib.contextmanager
def buffers_given_back(roots: Any) -> Iterator[None]:
    """The modules that these reach have their buffers again, a running mean, say, on the way out.

    What did not change is not written: a graph of the caller's may have saved it. Raises TypeError
    for a lazy module among them: it would stay initialised.
    """
    modules = reached(roots, nn.Module)
    for module in modules:
        if any(map(is_lazy, (*module.parameters(), *module.buffers()))):
            raise TypeError(
                f"manualgrad.check: fn calls a lazy {type(module).__name__}, which a check would "
                f"leave initialised; call it once first"
            )
    held = [(m._buffers, dict(m._buffers)) for m in modules if m._buffers]
    values = {id(b): b for _, own in held for b in own.values() if b is not None}
    before = [(b, b.detach().clone()) for b in values.values()]
    try:
        yield
    finally:
        for now, own in held:
            if list(map(id, now.values())) != list(map(id, own.values())):
                now.clear()
                now.update(own)
        for buffer, value in before:
            if not same(buffer, value):
                buffer.detach().copy_(value)


def same(one: Tensor, two: Tensor) -> bool:
    """Equal in shape and entries, NaN with NaN too."""
    if one.shape != two.shape:
        return False
    return bool(((one == two) | ((one != one) & (two != two))).all())


@contextlib.contextmanager
def uninitialised_memory_is_nan() -> Iterator[None]:
    """torch.empty returns NaN, so that what is read before it is written shows."""
    with _determinism():
        torch.use_deterministic_algorithms(True, warn_only=True)
        MEMORY.fill_uninitialized_memory = True
        yield


@contextlib.contextmanager
def _determinism() -> Iterator[None]:
    """torch's switches of determinism, put back."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = MEMORY.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        MEMORY.fill_uninitialized_memory = fill


def generators() -> tuple:
    """The states of the generators: another one after anybody drew."""
    numpy = sys.modules.get("numpy")
    theirs = numpy.random.get_state(legacy=False)["state"] if numpy else {}
    own = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        own += torch.cuda.get_rng_state_all()
    state = {name: getattr(value, "tolist", lambda v=value: v)() for name, value in theirs.items()}
    return random.getstate(), state, [s.view(torch.int64).tolist() for s in own]


def seed_everything(seed: int) -> None:
    """torch's generators, Python's and numpy's."""
    torch.manual_seed(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy:
        numpy.random.seed(seed % 2**32)
