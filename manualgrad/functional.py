"""The front door: what a caller passes is checked and completed here, and nowhere else."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from manualgrad import compat, composite, functions
from manualgrad.activations import Activation, activation_of
from manualgrad.functions import IDENTITY, Chain


def linear_act(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Any = "identity"
) -> Tensor:
    """sigma(input W^T + b), one layer (eq. 5), with a hand-derived backward pass (BP1-BP4).

    input: (..., K); the leading dimensions are examples, there may be none, and any may be empty.
    weight: (N, K). bias: (N,) or None. All of one floating dtype (under autocast: cast to its
    dtype, as torch.nn.functional.linear does) and on one device.
    activation: a name from ``manualgrad.activations()``, a torch activation module or function.

    Returns (..., N). Gradients of any order flow to input, weight and bias.

    Raises ValueError for shapes, dtypes or devices that do not fit and for unknown names,
    TypeError for non-tensors and for tensors that are not floating.
    """
    act = activation_of(activation, "linear_act")
    return run("linear_act", functions.linear_act, input, act, (weight, bias))


def mlp(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None,
    activations: Any,
    *,
    skips: Iterable[Any] = (),
    recompute: bool = False,
) -> Tensor:
    """sigma^L(... sigma^1(input W1^T + b1) ... WL^T + bL), eq. 4, as one node of the graph.

    input: (..., N_0); the leading dimensions are examples, there may be none.
    weights: L tensors, W^l of shape (N_l, N_{l-1}). biases: L entries of shape (N_l,) or None, or
    None for no bias at all. The same tensor may stand at several places: its gradient is the sum
    over its uses (eq. 13).
    activations: one for all L layers, or a list of L; each as in ``linear_act``.
    skips: not available yet; must be empty.
    recompute: keep the input and the parameters only, and compute the layers once more in backward.
        (In a graph of torch.compile its partitioner decides what is kept.)

    Returns (..., N_L). Gradients of any order flow to input, weights and biases. Backward keeps
    z^l for activations whose sigma' is written in z (gelu, silu, ...), a^l for the others, and
    frees each as soon as its layer is done.

    Raises as ``linear_act`` does, and ValueError for lists of different lengths.
    """
    if skips:
        raise NotImplementedError(
            "manualgrad.mlp: skips are not available yet; add the skip outside, x + mlp(x, ...)"
        )
    weights, biases = (
        _list("weights", weights),
        biases if biases is None else _list("biases", biases),
    )
    depth = len(weights)
    if depth == 0:
        raise ValueError("manualgrad.mlp: weights is empty; give at least one layer's weight")
    if biases is None:
        biases = (None,) * depth
    if len(biases) != depth:
        raise ValueError(
            f"manualgrad.mlp: {depth} weights but {len(biases)} biases; give one entry per weight, "
            f"None where a layer has no bias"
        )
    if isinstance(activations, (list, tuple)):
        acts = tuple([activation_of(spec, "mlp") for spec in activations])
        if len(acts) != depth:
            raise ValueError(
                f"manualgrad.mlp: {depth} weights but {len(acts)} activations; give one per "
                f"weight ('identity' for a linear layer), or a single one for all"
            )
    else:
        acts = (activation_of(activations, "mlp"),) * depth
    params = [p for layer in zip(weights, biases, strict=True) for p in layer]
    return run("mlp", functions.mlp, input, Chain((IDENTITY, *acts), bool(recompute)), params)


def _list(name: str, tensors: Any) -> Sequence[Any]:
    if isinstance(tensors, (list, tuple)):
        return tensors
    if isinstance(tensors, Iterable) and not isinstance(tensors, Tensor):
        return tuple(tensors)  # a ParameterList, a generator
    raise TypeError(
        f"manualgrad.mlp: {name} must be a list of tensors, one per layer, got "
        f"{_kind(tensors)}; for a single layer call manualgrad.linear_act"
    )


def run(call: str, function: Callable, input: Tensor, what: Any, params: Sequence[Any]) -> Tensor:
    """function(x, what, *params) on checked tensors: examples flattened to rows, and put back."""
    if has_torch_function((input, *params)):
        return _handed_over(what, input, params)
    if compat.any_autocast() and isinstance(input, Tensor):
        dtype = compat.autocast_dtype(input.device)
        if dtype is not None:
            cast = [as_autocast_casts(tensor, dtype) for tensor in (input, *params)]
            if not _fit(cast[0], cast[1:]):
                _refuse(call, input, params)  # in terms of what was passed
            with torch.autocast(input.device.type, enabled=False):
                return run(call, function, cast[0], what, cast[1:])
    if compat.tracing_by_jit() or not _fit(input, params):
        return _native_or_refused(call, input, what, params)
    dim = input.dim()
    if dim == 2:
        return function(input, what, *params)[0]
    a = function(input.unsqueeze(0) if dim == 1 else input.flatten(0, -2), what, *params)[0]
    return a.view(*input.shape[:-1], a.shape[-1])


def _handed_over(what: Any, input: Any, params: Sequence[Any]) -> Any:
    """To whoever overrides torch's functions: an fx.Proxy, a subclass of Tensor, a mode."""
    operands = (input, *params)
    if isinstance(what, Activation):
        weight, bias = params
        return handle_torch_function(linear_act, operands, input, weight, bias, what.text)
    arguments = (input, list(params[::2]), list(params[1::2]), [act.text for act in what.acts[1:]])
    return handle_torch_function(mlp, operands, *arguments, recompute=what.recompute)


def _native_or_refused(call: str, input: Any, what: Any, params: Sequence[Any]) -> Tensor:
    """What our formulas do not cover runs on PyTorch's own functions; what does not fit is refused.

    jit.trace would take the checks of shapes for part of the model.
    """
    tensor = isinstance(input, Tensor)
    if not (tensor and (input.is_complex() or input.is_nested or compat.tracing_by_jit())):
        _refuse(call, input, params)
    layers: Callable[..., Any] = composite.mlp
    if isinstance(what, Activation):
        layers = composite.linear_act
    try:
        return layers(input, what, *params)[0]
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise TypeError(
            f"manualgrad.{call}: {_kind(input)} is left to PyTorch's own functions, which do not "
            f"take it: {error}"
        ) from error


def as_autocast_casts(tensor: Any, dtype: torch.dtype) -> Any:
    """As torch's autocast casts an operand: floating tensors, but never float64."""
    eligible = isinstance(tensor, Tensor) and tensor.is_floating_point()
    return tensor.to(dtype) if eligible and tensor.dtype != torch.float64 else tensor


# what each caller calls the weight and the bias of layer {}
NAMES = {
    "linear_act": ("weight", "bias"),
    "nn.Linear": ("weight", "bias"),
    "explain": ("weight", "bias"),
    "mlp": ("weights[{}]", "biases[{}]"),
    "nn.MLP": ("layers.{}.weight", "layers.{}.bias"),
}


def check(call: str, input: Any, params: Sequence[Any]) -> None:
    """Raises ValueError or TypeError, in the words of call, unless the tensors fit together."""
    if not _fit(input, params):
        _refuse(call, input, params)


def _fit(input: Any, params: Sequence[Any]) -> bool:
    """Do the tensors fit together? This runs on every call; _refuse says why they do not."""
    try:
        width, dtype, device = input.shape[-1], input.dtype, input.device
        if not input.is_floating_point() or input.layout is not torch.strided:
            return False
        for l in range(0, len(params), 2):
            weight, bias = params[l], params[l + 1]
            rows, columns = weight.shape
            if (
                columns != width
                or weight.dtype is not dtype
                or weight.device != device
                or weight.layout is not torch.strided
            ):
                return False
            if bias is not None and (
                bias.shape != (rows,)
                or bias.dtype is not dtype
                or bias.device != device
                or bias.layout is not torch.strided
            ):
                return False
            width = rows
        return True
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False  # not tensors, nested ones, or of other ranks


def _refuse(call: str, input: Any, params: Sequence[Any]) -> NoReturn:
    """Raise for the first tensor that does not fit: the call, both sides and the way out."""
    _refuse_kind(call, "input", input)
    if input.dim() == 0:
        raise ValueError(f"manualgrad.{call}: input has no dimension; the last one is its features")
    width, given = input.shape[-1], f"input of shape {tuple(input.shape)} has"
    for l in range(0, len(params), 2):
        weight, bias = params[l], params[l + 1]
        name, bias_name = (pattern.format(l // 2) for pattern in NAMES[call])
        _refuse_operand(call, name, weight, input)
        if weight.dim() != 2:
            raise ValueError(
                f"manualgrad.{call}: {name} has shape {tuple(weight.shape)}; give a matrix of "
                f"shape (outputs, inputs)"
            )
        rows, columns = weight.shape
        if columns != width:
            hint = f"; it looks transposed, pass {name}.T" if rows == width else ""
            raise ValueError(
                f"manualgrad.{call}: {given} {width} features, but {name} of shape "
                f"{(rows, columns)} takes {columns} (a weight is (outputs, inputs), as in "
                f"torch.nn.Linear){hint}"
            )
        if bias is not None:
            _refuse_operand(call, bias_name, bias, input)
            if bias.shape != (rows,):
                raise ValueError(
                    f"manualgrad.{call}: {bias_name} has shape {tuple(bias.shape)}, but {name} of "
                    f"shape {(rows, columns)} has {rows} outputs; give shape ({rows},) or None"
                )
        width, given = rows, f"{name} of shape {(rows, columns)} gives"
    raise ValueError(f"manualgrad.{call}: the tensors do not fit together")


def _refuse_operand(call: str, name: str, tensor: Any, input: Tensor) -> None:
    _refuse_kind(call, name, tensor)
    if tensor.dtype is not input.dtype:
        raise ValueError(
            f"manualgrad.{call}: input is {input.dtype} but {name} is {tensor.dtype}; cast one, "
            f"e.g. input.to({tensor.dtype}), or use torch.autocast"
        )
    if tensor.device != input.device:
        raise ValueError(
            f"manualgrad.{call}: input is on {input.device} but {name} is on {tensor.device}; "
            f"move one, e.g. input.to({str(tensor.device)!r})"
        )


def _refuse_kind(call: str, name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"manualgrad.{call}: {name} must be a tensor, got {_kind(tensor)}")
    if not tensor.is_floating_point() or tensor.layout is not torch.strided or tensor.is_nested:
        raise TypeError(
            f"manualgrad.{call}: {name} is {_kind(tensor)}; give a dense floating tensor, "
            f"e.g. {name}.to(torch.float32)"
        )


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"{type(value).__name__} {value!r:.60}" if not callable(value) else repr(value)
    layout = "" if value.layout is torch.strided else f" {value.layout}"
    layout += " nested" if value.is_nested else ""
    return f"a tensor of {value.dtype}{layout}"
