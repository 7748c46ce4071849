"""The private names of torch that we lean on, each with a safe default: the slower path."""

import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import forward_ad

transforms_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
"""True inside torch.func.vmap, grad, ...: a Function must then go through its own ``apply``."""

any_autocast = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)
"""True inside torch.autocast for some device; compat.autocast_dtype says for which."""


def forward_mode() -> bool:
    """Inside torch.func.jvp, jacfwd, hessian or forward_ad.dual_level: tangents ride along.

    Without the private name we must take it that they do.
    """
    return getattr(forward_ad, "_current_level", 0) >= 0


def forward_mode_nested() -> bool:
    """Inside a jvp of a jvp; taken for granted where the private name is gone."""
    functorch = sys.modules.get("torch._functorch.eager_transforms")  # torch.func imports it
    return functorch is not None and forward_mode() and getattr(functorch, "JVP_NESTING", 2) > 1


def functional_mode() -> type | None:
    """The mode in which torch.compile rewrites a graph in ATen's operations. Slow to import."""
    try:
        from torch._subclasses.functional_tensor import FunctionalTensorMode
    except ImportError:
        return None
    return FunctionalTensorMode


_tracing_state = getattr(torch._C, "_get_tracing_state", lambda: torch.jit.is_tracing() or None)


def tracing_by_jit() -> bool:
    """Inside torch.jit.trace."""
    return _tracing_state() is not None


def observed() -> bool:
    """Somebody is to be shown each operation, or has a word in it: autocast, a tracer or compiler,
    a transform of torch.func, forward mode, a TorchDispatchMode."""
    return (
        torch.compiler.is_compiling()
        or any_autocast()
        or transforms_active()
        or forward_mode()
        or dispatch_modes_active()
        or tracing_by_jit()
    )


addmm_activation = getattr(torch, "_addmm_activation", None)
"""relu(bias + x W) with ReLU in cuBLAS's epilogue; None where torch has dropped it."""

onednn_linear: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
"""x W^T + b by oneDNN, on plain tensors; None where torch was built without it."""

_has_bfloat16: Any = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)


@functools.cache
def onednn_has_bfloat16() -> bool:
    """oneDNN multiplies bfloat16 on this CPU; False where torch does not tell."""
    return onednn_linear is not None and _has_bfloat16 is not None and bool(_has_bfloat16())


_modes = getattr(torch._C, "_len_torch_dispatch_stack", None)


def dispatch_modes_active() -> bool:
    """A TorchDispatchMode is on (FakeTensorMode, FlopCounterMode, make_fx): it must see ATen's ops.

    Without the private name we cannot know; then kernels run unseen, as any custom kernel's do.
    """
    return _modes is not None and _modes() > 0


def has_memory(tensor: torch.Tensor) -> bool:
    """False for a batched tensor of is_grads_batched=True, and for a zero that has no storage."""
    if getattr(tensor, "_is_zerotensor", bool)():
        return False
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return True


PLAIN = (torch.Tensor, torch.nn.Parameter)


def readable(*tensors: torch.Tensor) -> bool:
    """Their numbers are there to be looked at: in memory of the CPU, and nobody is tracing."""
    if torch.compiler.is_compiling() or transforms_active() or dispatch_modes_active():
        return False
    for tensor in tensors:
        if type(tensor) not in PLAIN or not tensor.is_cpu or not has_memory(tensor):
            return False
    return True


def traced_plain(*tensors: torch.Tensor) -> bool:
    """Tensors as torch.compile traces plain ones: no shards, and no other subclass."""
    try:
        from torch._subclasses.functional_tensor import FunctionalTensor
    except ImportError:
        return False
    return all(type(tensor) is FunctionalTensor for tensor in tensors)


def release_saved_tensors(ctx) -> None:
    """Let go of ctx's saved tensors now, unless the graph is retained or being traced.

    The caller holds them in a list and pops them as it walks down, so each is freed as soon as
    its layer is done. Without this every one would live until backward returns.
    """
    release = getattr(ctx, "maybe_clear_saved_tensors", None)
    if release is not None and not torch.compiler.is_compiling():
        release()


_executes: Any = getattr(torch._C, "_will_engine_execute_node", None)
_pass_number: Any = getattr(torch._C, "_current_graph_task_id", lambda: -1)
_refused = -2  # the number of the backward pass that did not want to tell


def asked_for(ctx: Any) -> tuple[bool, ...]:
    """ctx.needs_input_grad, but for what the backward pass that runs now does not go on to.

    torch.autograd.grad(a, x) has no use for the gradients of weights; autograd's own nodes know
    that, and a Function is not told. Where torch does not tell, all that could be asked for.
    """
    global _refused
    needs = ctx.needs_input_grad
    if _executes is None or torch.compiler.is_compiling() or transforms_active():
        return needs
    edges, number = getattr(ctx, "next_functions", ()), _pass_number()  # a tape's ctx has none
    if not edges or 0 <= number == _refused:
        return needs
    asked, first = list(needs), needs.index(True)
    try:
        last = edges[-1][0]
        if last is not None and _executes(last):  # as a rule, all of them are wanted then
            return needs
        nodes = [node for node, _ in edges if node is not None]
        if len(nodes) != needs.count(True):
            return needs
        for place in range(len(needs) - 1, first, -1):
            if needs[place]:
                asked[place] = _executes(nodes.pop())
        if True in asked[first + 1 :]:  # else it is for the first that the node runs
            asked[first] = _executes(nodes.pop())
    except RuntimeError:  # a leaf that torch.autograd.grad was given; to say so takes long
        _refused = number
    return tuple(asked)


_use_count: Any = getattr(torch._C, "_storage_Use_Count", None)
_tensor_use_count: Any = getattr(torch.Tensor, "_use_count", None)
_default_hooks: Any = getattr(
    getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", None
)


def saved_untouched() -> bool:
    """No torch.autograd.graph.saved_tensors_hooks are on: what is saved now goes through no other
    hands. False where torch does not tell, and while it is tracing."""
    if _default_hooks is None or torch.compiler.is_compiling():
        return False
    return _default_hooks(True) is None


def held_once(tensor: torch.Tensor) -> bool:
    """No other tensor shares its memory, and no saved one; False where torch does not tell."""
    return _use_count is not None and _uses(tensor) == _once()


def _uses(tensor: torch.Tensor) -> int:
    storage = tensor.untyped_storage()  # is one of them, and has to live until they are counted
    return _use_count(storage._cdata)


@functools.cache
def _once() -> int:
    return _uses(torch.empty(1))


def followed() -> bool:
    """A debugger or a profiler sees each frame, and may hold what its variables hold."""
    return sys.gettrace() is not None or sys.getprofile() is not None


def references(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """How often Python and C++ refer to a tensor, to its storage and, if it is a view, to its base.

    None where torch does not tell, and for memory that is not torch's: an array of NumPy's, a
    buffer, what processes share. What the counts are for a tensor that nobody else holds depends on
    the frames that call this, and is to be found out from there.
    """
    if _tensor_use_count is None or _use_count is None:
        return None
    storage, base = tensor.untyped_storage(), tensor._base
    if storage.is_shared() or not storage.resizable():
        return None
    of_base = () if base is None else (sys.getrefcount(base), _tensor_use_count(base))
    of_storage = sys.getrefcount(storage), _use_count(storage._cdata)
    return sys.getrefcount(tensor), _tensor_use_count(tensor), *of_storage, *of_base


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast wants on device, None where autocast is off."""
    try:
        enabled = torch.is_autocast_enabled(device.type)
        return torch.get_autocast_dtype(device.type) if enabled else None
    except RuntimeError:  # a device that autocast does not know, such as "meta"
        return None


def weight_and_bias(layer: torch.nn.Linear) -> tuple[Any, Any]:
    """layer.weight, layer.bias, read from where nn.Module's own (slow) attribute lookup ends.

    A parametrised or pruned layer keeps them elsewhere: there the attributes are read.
    """
    try:
        own = layer._parameters
        return own["weight"], own["bias"]
    except (AttributeError, KeyError):
        return layer.weight, layer.bias


def is_its_weights(layer: Any, forward: Callable[..., Any]) -> bool:
    """Calling layer is no more than forward on its parameters: no hooks, no forward of its own."""
    try:
        return layer.forward.__func__ is forward and not (
            layer._forward_pre_hooks
            or layer._forward_hooks
            or layer._backward_pre_hooks
            or layer._backward_hooks
        )
    except AttributeError:
        return False


def plain_layers(
    layers: Iterable[Any], kind: type[torch.nn.Linear], attribute: str
) -> tuple[list[Any], list[Any]] | None:
    """([weight, bias, ...], each layer's attribute) of layers that are no more than their weights.

    What is_its_weights and weight_and_bias say of each, for layers of exactly this kind, in one
    pass over what they hold: an nn.Module is slow to ask for an attribute. None where one of them
    is of another class or carries something; then those two look closer.
    """
    params, attributes = [], []
    try:
        for layer in layers:
            held = layer.__dict__
            if (
                type(layer) is not kind
                or held["_forward_pre_hooks"]
                or held["_forward_hooks"]
                or held["_backward_pre_hooks"]
                or held["_backward_hooks"]
                or "forward" in held
            ):
                return None
            own = held["_parameters"]
            params += own["weight"], own["bias"]
            attributes.append(held[attribute])
    except KeyError:
        return None
    return params, attributes


global_module_hooks = getattr(torch.nn.modules.module, "_has_any_global_hook", lambda: False)
"""True after torch.nn.modules.module.register_module_forward_hook and the like."""

_eval_frame = getattr(getattr(torch._C, "_dynamo", None), "eval_frame", None)
frame_callback = getattr(_eval_frame, "get_eval_frame_callback", lambda: None)
"""What torch.compile has set for the frames that run now: None or False outside of its own."""
