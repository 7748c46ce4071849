"""The front door: what a caller passes is checked and completed here, and nowhere else."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from manualgrad import compat, composite, functions
from manualgrad.activations import Activation, activation_of
from manualgrad.chain import Chain, Skip
from manualgrad.operands import check_skips_fit, checked_skips, fit, kind, refuse
from manualgrad.walks import IDENTITY


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
    skips: Iterable[Skip] = (),
    recompute: bool = False,
) -> Tensor:
    """sigma^L(... sigma^1(input W1^T + b1) ... WL^T + bL), eq. 4, as one node of the graph.

    input: (..., N_0); the leading dimensions are examples, there may be none.
    weights: L tensors, W^l of shape (N_l, N_{l-1}). biases: L entries of shape (N_l,) or None, or
    None for no bias at all. The same tensor may stand at several places: its gradient is the sum
    over its uses (eq. 13).
    activations: one for all L layers, or a list of L; each as in ``linear_act``.
    skips: manualgrad.Skip's, at most one that ends at each layer.
    recompute: keep the input and the parameters only, and compute the layers once more in backward.
        (In a graph of torch.compile its partitioner decides what is kept.)

    Returns (..., N_L). Gradients of any order flow to input, weights, biases and the scales of
    skips. Backward keeps z^l for activations whose sigma' is written in z (gelu, silu, ...), a^l
    for the others (both where that is little memory: manualgrad.gates; neither in a chain that a
    GPU walks in one kernel each way: manualgrad.narrow), and frees each as soon as its layer is
    done.

    Raises as ``linear_act`` does, and ValueError for lists of different lengths and for skips that
    leave the chain or join layers of different widths.
    """
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
    chain = Chain((IDENTITY, *acts), bool(recompute), checked_skips("mlp", skips, depth))
    return run("mlp", functions.mlp, input, chain, params, chain.scales)


def _list(name: str, tensors: Any) -> Sequence[Any]:
    if isinstance(tensors, (list, tuple)):
        return tensors
    if isinstance(tensors, Iterable) and not isinstance(tensors, Tensor):
        return tuple(tensors)  # a ParameterList, a generator
    raise TypeError(
        f"manualgrad.mlp: {name} must be a list of tensors, one per layer, got "
        f"{kind(tensors)}; for a single layer call manualgrad.linear_act"
    )


def run(
    call: str,
    function: Callable,
    input: Tensor,
    what: Any,
    params: Sequence[Any],
    scales: Sequence[Any] = (),
) -> Tensor:
    """function(x, what, *params, *scales), checked: examples flattened to rows, and put back.

    scales: those of a chain's skips that are tensors.
    """
    if has_torch_function((input, *params, *scales)):
        return _handed_over(what, input, params, scales)
    seen = None if torch.compiler.is_compiling() else getattr(what, "seen", None)
    if seen is not None:  # held here: another thread may let go of it
        try:
            if seen.again(input, params):
                return functions.small_mlp(input, (what, seen), *params)[0]
        except (AttributeError, RuntimeError):  # not a tensor, or of other dtypes by now
            if fit(input, params):
                raise
        what.seen = None  # it holds tensors that may be out of use
    if compat.any_autocast() and isinstance(input, Tensor):
        dtype = compat.autocast_dtype(input.device)
        if dtype is not None:
            return _under_autocast(dtype, call, function, input, what, params, scales)
    if compat.tracing_by_jit() or not fit(input, params):
        return _native_or_refused(call, input, what, params, scales)
    if isinstance(what, Chain) and what.skips:
        check_skips_fit(call, input, what.skips, params, scales)
    dim = input.dim()
    if dim == 2:
        return function(input, what, *params, *scales)[0]
    x = input.unsqueeze(0) if dim == 1 else input.flatten(0, -2)
    a = function(x, what, *params, *scales)[0]
    return a.view(*input.shape[:-1], a.shape[-1])


def _under_autocast(
    dtype: torch.dtype, call: str, function: Any, input: Any, what: Any, params: Any, scales: Any
) -> Tensor:
    """run, on operands as autocast casts them; a tensor in two places is cast once."""
    cast = {id(t): as_autocast_casts(t, dtype) for t in (input, *params, *scales)}
    x, tensors = cast[id(input)], [cast[id(t)] for t in params]
    if not fit(x, tensors):
        refuse(call, input, params)  # in terms of what was passed
    with torch.autocast(input.device.type, enabled=False):
        return run(call, function, x, what, tensors, [cast[id(t)] for t in scales])


def _handed_over(what: Any, input: Any, params: Sequence[Any], scales: Sequence[Any]) -> Any:
    """To whoever overrides torch's functions: an fx.Proxy, a subclass of Tensor, a mode."""
    operands = (input, *params, *scales)
    if isinstance(what, Activation):
        weight, bias = params
        return handle_torch_function(linear_act, operands, input, weight, bias, what.text)
    arguments = (input, list(params[::2]), list(params[1::2]), [act.text for act in what.acts[1:]])
    options = {"skips": list(what.skips)} if what.skips else {}
    return handle_torch_function(mlp, operands, *arguments, recompute=what.recompute, **options)


def _native_or_refused(
    call: str, input: Any, what: Any, params: Sequence[Any], scales: Sequence[Any]
) -> Tensor:
    """What our formulas do not cover runs on PyTorch's own functions; what does not fit is refused.

    jit.trace would take the checks of shapes for part of the model.
    """
    tensor = isinstance(input, Tensor)
    if not (tensor and (input.is_complex() or input.is_nested or compat.tracing_by_jit())):
        refuse(call, input, params)
    layers: Callable[..., Any] = composite.mlp
    if isinstance(what, Activation):
        layers = composite.linear_act
    elif what.skips and not compat.tracing_by_jit():
        check_skips_fit(call, input, what.skips, params, scales)
    try:
        return layers(input, what, *params, *scales)[0]
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise TypeError(
            f"manualgrad.{call}: {kind(input)} is left to PyTorch's own functions, which do not "
            f"take it: {error}"
        ) from error


def as_autocast_casts(tensor: Any, dtype: torch.dtype) -> Any:
    """As torch's autocast casts an operand: floating tensors, but never float64."""
    eligible = isinstance(tensor, Tensor) and tensor.is_floating_point()
    return tensor.to(dtype) if eligible and tensor.dtype != torch.float64 else tensor
