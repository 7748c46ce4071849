"""Layers, activations, attention and costs: torch's and ours, in rules."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from manualgrad import functional, losses, operands
from manualgrad.activations import activation_of
from manualgrad.activations.names import FUNCTIONS
from manualgrad.chain import Chain
from manualgrad.dag import rules
from manualgrad.dag.recording import apply, values_of
from manualgrad.dag.table import no_rule, spells
from manualgrad.functions import IDENTITY, LinearActFunction, MLPFunction


@spells(functional.linear_act)
def linear_act(input: Any, weight: Any, bias: Any = None, activation: Any = "identity") -> Tensor:
    act = activation_of(activation, "linear_act")
    operands.check("linear_act", *values_of((input, (weight, bias))))
    return _on_rows(lambda rows: apply(LinearActFunction, rows, act, weight, bias), input)


@spells(functional.mlp)
def mlp(input: Any, weights: Any, biases: Any, activations: Any, **options: Any) -> Tensor:
    recompute, skips = bool(options.pop("recompute", False)), options.pop("skips", ())
    if any(options.values()):
        raise no_rule(functional.mlp)
    acts = [activation_of(name, "mlp") for name in activations]
    params = [p for layer in zip(weights, biases, strict=True) for p in layer]
    x, values = values_of((input, params))
    operands.check("mlp", x, values)
    chain = Chain((IDENTITY, *acts), recompute, operands.checked_skips("mlp", skips, len(acts)))
    operands.check_skips_fit("mlp", x, chain.skips, values, values_of(chain.scales))
    tensors = (*params, *chain.scales)
    return _on_rows(lambda rows: apply(MLPFunction, rows, chain, *tensors), input)


def _on_rows(layers: Any, input: Tensor) -> Tensor:
    """Examples flattened to rows, and put back."""
    if input.dim() == 2:
        return layers(input)
    a = layers(rules.reshape(input, (math.prod(input.shape[:-1]), input.shape[-1])))
    return rules.reshape(a, (*input.shape[:-1], a.shape[-1]))


@spells(F.linear)
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return linear_act(input, weight, bias)


@spells(F.embedding)
def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    if max_norm is not None or scale_grad_by_freq or sparse:
        raise ValueError(
            "manualgrad.dag: embedding has a rule for dense gradients of the table as it is; leave "
            "out max_norm, scale_grad_by_freq and sparse"
        )
    padding = None if padding_idx is None else padding_idx % weight.shape[0]
    return rules.embedding(input, weight, padding)


@spells(F.layer_norm)
def layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return rules.layer_norm(input, normalized_shape, weight, bias, eps)


@spells(F.rms_norm)
def rms_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """x (mean x^2 + eps)^(-1/2) w, of the rules for these."""
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    square = rules.mean(rules.mul(input, input), tuple(range(-len(normalized_shape), 0)), True)
    normal = rules.mul(input, rules.power(rules.add(square, eps), -0.5))
    return normal if weight is None else rules.mul(normal, weight)


@spells(torch.softmax, Tensor.softmax)
def softmax(input: Tensor, dim: int | None, dtype: torch.dtype | None = None) -> Tensor:
    if dim is None:
        raise ValueError("manualgrad.dag: softmax: name the dimension, e.g. dim=-1")
    return rules.softmax(input if dtype is None else rules.cast(input, dtype), dim)


@spells(F.softmax, name="softmax")
def _softmax(input: Tensor, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    return softmax(input, dim, dtype)


@spells(F.dropout)
def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if training and p > 0:
        raise ValueError(
            f"manualgrad.dag: dropout with p={p} draws random numbers, for which there is no rule; "
            f"call model.eval(), or set p to 0"
        )
    return input


@spells(torch.masked_fill, Tensor.masked_fill)
def masked_fill(input: Tensor, mask: Tensor, value: Any) -> Tensor:
    return rules.where(mask, value, input)


@spells(torch.where)
def where(condition: Tensor, input: Any, other: Any) -> Tensor:
    return rules.where(condition, input, other)


@spells(Tensor.where, name="where")
def _where(input: Tensor, condition: Tensor, other: Any) -> Tensor:
    return rules.where(condition, input, other)


# costs


@spells(losses._mse_loss, name="mse_loss")
def _mse_loss(*inputs: Any) -> Tensor:
    return apply(losses.MSELossFunction, *inputs)


@spells(losses._cross_entropy, name="cross_entropy")
def _cross_entropy(*inputs: Any) -> Tensor:
    return apply(losses.CrossEntropyFunction, *inputs)


@spells(losses._bce_with_logits, name="binary_cross_entropy_with_logits")
def _bce_with_logits(*inputs: Any) -> Tensor:
    return apply(losses.BCEWithLogitsFunction, *inputs)


def _reduction(size_average: Any, reduce: Any, reduction: str) -> str:
    """torch's older spelling is refused: it means what reduction= says."""
    if size_average is not None or reduce is not None:
        raise ValueError(
            "manualgrad.dag: size_average and reduce are torch's old spelling; pass reduction="
        )
    return reduction


@spells(F.mse_loss)
def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    if weight is not None:
        raise no_rule(F.mse_loss)
    return apply(losses.MSELossFunction, input, target, _reduction(size_average, reduce, reduction))


@spells(F.cross_entropy)
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    options = ignore_index, _reduction(size_average, reduce, reduction), label_smoothing
    return apply(losses.CrossEntropyFunction, input, target, weight, *options)


@spells(F.binary_cross_entropy_with_logits)
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    how = _reduction(size_average, reduce, reduction)
    return apply(losses.BCEWithLogitsFunction, input, target, weight, pos_weight, how)


# activations


def _activation(name: str) -> Any:
    def sigma(input: Tensor, *constants: Any, **named: Any) -> Tensor:
        if any(constant is True for constant in constants):
            raise RuntimeError(f"manualgrad.dag: {name} in place changes a tensor of the graph")
        return rules.activate(input, _with_constants(name, constants, named))

    return sigma


def _with_constants(name: str, constants: tuple, named: dict) -> str:
    """The activation's text, from the arguments of torch's function."""
    if name == "gelu":
        approximate = named.get("approximate", "none")
        return "gelu" if approximate == "none" else f"gelu_{approximate}"
    given = [*zip(CONSTANTS.get(name, ()), constants, strict=False), *named.items()]
    written = [f"{key}={float(value)!r}" for key, value in given if key != "inplace"]
    return f"{name}({', '.join(written)})" if written else name


CONSTANTS = {
    "leaky_relu": ("negative_slope",),
    "elu": ("alpha",),
    "celu": ("alpha",),
    "softplus": ("beta", "threshold"),
}

METHODS = {Tensor.relu: "relu", Tensor.sigmoid: "sigmoid", Tensor.tanh: "tanh", Tensor.sin: "sine"}

for function, activation in {**FUNCTIONS, **METHODS}.items():
    spells(function, name=activation)(_activation(activation))
