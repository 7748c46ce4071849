"""The kernels as PyTorch operators: for graphs, transforms and tensors that are not plain.

A backend like the others, the five operations under their own names, for tensors that no kernel
can take as they are. Each operator has a rule for every way in which PyTorch looks at it: fake (its
shapes), vmap, sharding, and for the forward pass autograd, which is manualgrad.functions' own. BP3
and BP4 are ATen's sum and product, which have all these rules already.

An activation travels as text, since an operator takes no Python objects.
"""

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from manualgrad import aten, backends, compat, one_pass, routed, sharding
from manualgrad._version import __version__
from manualgrad.activations import Activation, activation_of
from manualgrad.aten import bp3_bias_gradient, bp4_weight_gradient
from manualgrad.compat import PLAIN

__all__ = [
    "bp1_output_error",
    "bp2_propagate_error",
    "bp3_bias_gradient",
    "bp4_weight_gradient",
    "linear_act_forward",
    "output",
]

THIS_MODULE = sys.modules[__name__]
LIBRARY = torch.library.Library("manualgrad", "DEF")


def backend_for(tensor: Tensor) -> ModuleType:
    """The module whose five operations run on tensor: a backend's, or this one.

    This one in graphs, whose gradients are then ours whoever runs them; where torch.func batches a
    GPU's tensors, so that a kernel is given all examples at once; and for shards (DTensor) on GPUs.
    """
    if torch.compiler.is_compiling():
        return THIS_MODULE
    mode = backends.mode()
    if mode == "torch" or not (tensor.is_cuda or mode == "triton"):
        return aten
    if compat.transforms_active() or type(tensor) not in PLAIN:
        further_rules()
        return THIS_MODULE
    return routed


# the operations, as a backend's


def linear_act_forward(x, weight, bias, act, skip=None, with_z=False):
    """a = sigma(x W^T + b + skip).  x (M, K), weight (N, K), bias (N,) or None.  Returns (a, s)."""
    if skip is not None or with_z:  # ATen's operations have all the rules already
        return aten.linear_act_forward(x, weight, bias, act, skip, with_z)
    if act.hides_z:
        return torch.ops.manualgrad.linear_act_forward_z.default(x, argument(act), weight, bias)
    a = torch.ops.manualgrad.linear_act_forward.default(x, argument(act), weight, bias)
    return a, a


def bp1_output_error(grad_a, s, act):
    """BP1: delta^L = grad_a C * sigma'(z^L).  grad_a, s (M, N).  Returns (delta, rows)."""
    if act.is_identity:
        return grad_a, grad_a
    delta = torch.ops.manualgrad.bp1_output_error.default(grad_a, s, argument(act))
    return delta, delta


def bp2_propagate_error(delta, weight, s, act, skip=None, with_a=True, skip_z=None):
    """BP2: delta^l = (delta^{l+1} W^{l+1}) * sigma'(z^l).  Returns (delta^l, rows, a^l)."""
    a = output(s, act) if with_a else None
    if act.is_identity:
        below = aten.bp2_propagate_error(delta, weight, s, act, skip, with_a=False)[0]
    else:
        operator = torch.ops.manualgrad.bp2_propagate_error.default
        below = operator(delta, weight, s, skip, argument(act))
    if skip_z is not None:
        below = below + skip_z
    return below, below, a


def output(s, act):
    """a^l from s^l, as kept."""
    return torch.ops.manualgrad.output.default(s, argument(act)) if act.hides_z else s


def argument(act: Activation) -> str:
    """The activation as an operator's argument, then what torch.compile's caches must tell apart.

    They keep compiled graphs between processes, by the operators in a graph and their arguments.
    """
    return f"{act.text}@{__version__}@{act.digest}@{backends.mode()}"


@functools.lru_cache(maxsize=1024)
def act_of(argument: str) -> Activation:
    return activation_of(argument.partition("@")[0], "ops")


# each operator: what it does with real tensors, a new contiguous result each


def _kernel_forward(x, text, weight, bias):
    return routed.backend_for(x).linear_act_forward(x, weight, bias, act_of(text))[0].contiguous()


def _kernel_forward_z(x, text, weight, bias):
    a, z = routed.backend_for(x).linear_act_forward(x, weight, bias, act_of(text))
    return a.contiguous(), z.contiguous()


def _kernel_bp1(grad_a, s, text):
    return routed.backend_for(s).bp1_output_error(grad_a, s, act_of(text))[0].contiguous()


def _kernel_bp2(delta, weight, s, skip, text):
    on, act = routed.backend_for(s), act_of(text)
    return on.bp2_propagate_error(delta, weight, s, act, skip, with_a=False)[0].contiguous()


def _kernel_output(s, text):
    return routed.backend_for(s).output(s, act_of(text)).contiguous()


# ... and the shapes of its results


def _fake_forward(x, text, weight, bias):
    return x.new_empty(x.shape[0], weight.shape[0])


def _fake_forward_z(x, text, weight, bias):
    return _fake_forward(x, text, weight, bias), _fake_forward(x, text, weight, bias)


def _fake_bp1(grad_a, s, text):
    return s.new_empty(s.shape)


def _fake_bp2(delta, weight, s, skip, text):
    return s.new_empty(s.shape)


def _fake_output(s, text):
    return s.new_empty(s.shape)


# ... and vmap. A batch of examples is more examples, as long as there is one set of weights.


def _vmap(operator: Any, rows: tuple[int, ...], batched: Callable | None) -> Callable[..., Any]:
    """rows: the inputs that hold a row per example. batched: the same for as many weights."""

    def rule(info: Any, dims: tuple, *inputs: Any):
        B, leading = info.batch_size, list(inputs)
        for i, (t, dim) in enumerate(zip(inputs, dims, strict=True)):
            if isinstance(t, Tensor):
                leading[i] = t.expand(B, *t.shape) if dim is None else t.movedim(dim, 0)
        if batched is not None and any(d is not None and i not in rows for i, d in enumerate(dims)):
            return batched(*leading)
        folded = list(inputs)
        for i in rows:
            folded[i] = leading[i] if leading[i] is None else leading[i].flatten(0, 1)
        result = operator(*folded)
        if isinstance(result, Tensor):
            return _unfolded(result, B), 0
        return tuple(_unfolded(t, B) for t in result), (0,) * len(result)

    return rule


def _unfolded(t: Tensor, B: int) -> Tensor:
    return t.view(B, t.shape[0] // B, *t.shape[1:])


def _batched_forward(x, text, weight, bias):
    act, z = act_of(text), x @ weight.mT
    if bias is not None:
        z = z + bias.unsqueeze(-2)
    return z if act.is_identity else one_pass.kernels_of(act)[0](z), 0


def _batched_forward_z(x, text, weight, bias):
    z, _ = _batched_forward(x, "identity", weight, bias)
    return (one_pass.kernels_of(act_of(text))[0](z), z), (0, 0)


def _batched_bp2(delta, weight, s, skip, text):
    adjoint = delta @ weight if skip is None else skip + delta @ weight
    return one_pass.kernels_of(act_of(text))[1](adjoint, s), 0


# name: (signature, kernel, fake, inputs with a row per example, the same for many weights)
OPERATORS = {
    "linear_act_forward": (
        "(Tensor x, str act, Tensor weight, Tensor? bias) -> Tensor",
        (_kernel_forward, _fake_forward, (0,), _batched_forward),
    ),
    "linear_act_forward_z": (
        "(Tensor x, str act, Tensor weight, Tensor? bias) -> (Tensor, Tensor)",
        (_kernel_forward_z, _fake_forward_z, (0,), _batched_forward_z),
    ),
    "bp1_output_error": (
        "(Tensor grad_a, Tensor s, str act) -> Tensor",
        (_kernel_bp1, _fake_bp1, (0, 1), None),
    ),
    "bp2_propagate_error": (
        "(Tensor delta, Tensor weight, Tensor s, Tensor? skip, str act) -> Tensor",
        (_kernel_bp2, _fake_bp2, (0, 2, 3), _batched_bp2),
    ),
    "output": ("(Tensor s, str act) -> Tensor", (_kernel_output, _fake_output, (0,), None)),
}


def _define(name: str, signature: str, rules: tuple) -> None:
    kernel, fake, _, _ = rules
    LIBRARY.define(name + signature, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"manualgrad::{name}", _shapes(fake), lib=LIBRARY)


def _shapes(fake: Callable) -> Callable[..., Any]:
    def rule(*inputs: Any) -> Any:
        further_rules()
        return fake(*inputs)

    return rule


@functools.cache
def further_rules() -> None:
    """What is slow to import, registered when a tracer or a transform is there and has done so."""
    mode = compat.functional_mode()
    for name, (_, (kernel, _, rows, batched)) in OPERATORS.items():
        full = f"manualgrad::{name}"
        operator = getattr(torch.ops.manualgrad, name).default
        torch.library.register_vmap(full, _vmap(operator, rows, batched), lib=LIBRARY)
        if mode is not None:
            torch.library.register_torch_dispatch(full, mode, _in_a_graph(kernel), lib=LIBRARY)
    sharding.register()


def _in_a_graph(kernel: Callable) -> Callable[..., Any]:
    """torch.compile is shown the ATen operations inside, to fuse what is elementwise itself.

    The operator stays whole in an exported program and under backend("triton").
    """

    def rule(mode: Any, operator: Any, types: Any, inputs: tuple, keywords: Any = None):
        if backends.mode() == "triton" or torch.compiler.is_exporting():
            return mode.__torch_dispatch__(operator, types, inputs, keywords or {})
        with mode:
            return kernel(*inputs)

    return rule


for _name, (_signature, _rules) in OPERATORS.items():
    _define(_name, _signature, _rules)


def register_autograd(function: Any) -> None:
    """Train what holds the operators, an exported program say, by function's own rules.

    function: LinearActFunction. A derivative of bp1, bp2 or output is asked for by nothing of ours:
    gradients of gradients run on the equations.
    """

    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        x, text, weight, bias = inputs
        outputs = (output,) if isinstance(output, Tensor) else output
        function.setup_context(ctx, (x, act_of(text), weight, bias), outputs)

    for name in ("linear_act_forward", "linear_act_forward_z"):
        torch.library.register_autograd(
            f"manualgrad::{name}", function.backward, setup_context=setup_context, lib=LIBRARY
        )
    for name in ("bp1_output_error", "bp2_propagate_error", "output"):
        torch.library.register_autograd(f"manualgrad::{name}", _refuse(name), lib=LIBRARY)


def _refuse(name: str) -> Callable[..., Any]:
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(
            f"manualgrad::{name} is part of a backward pass and has no derivative as an operator; "
            f"for gradients of gradients call manualgrad.linear_act or manualgrad.mlp"
        )

    return backward
