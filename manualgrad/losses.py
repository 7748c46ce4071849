"""Costs C and their gradients, where the 1/M of a mini-batch enters (and nowhere else).

Where an output activation and a cost cancel they are one function of z^L, and BP1's product
grad_a C * sigma'(z^L) collapses to a difference:

    softmax and cross-entropy              delta^L = softmax(z) - y
    sigmoid and binary cross-entropy       delta^L = sigmoid(z) - y

C itself is torch's, so signatures, values, reductions and what is refused are torch's own. The
gradients are derived by hand, in differentiable torch, so higher derivatives follow from them.
Half types are computed in float32 and rounded once.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.overrides import handle_torch_function, has_torch_function

from manualgrad.formula import HALF_TYPES
from manualgrad.functions import front_door


class LossInputError(ValueError, RuntimeError, IndexError):
    """Bad input to a loss: a ValueError, and also what torch's own loss raises in its place."""


def mse_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Squared error, C = (a - y)^2, as torch.nn.functional.mse_loss.

    input a, target y: the same shape (others are broadcast, with torch's warning).
    reduction: "mean" over all elements, "sum" or "none". Gradients flow to both.
    Raises ValueError for shapes that do not fit and for another reduction, TypeError for others.
    """
    return _call("mse_loss", _mse_loss, input, target, reduction)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Softmax and cross-entropy, C = -sum_c w_c y_c log softmax(z)_c.

    As torch.nn.functional.cross_entropy. input z: (C,), (M, C) or (M, C, d1, ...). target: class
    indices (input's shape without C) or probabilities (input's shape). weight: (C,). Indices equal
    to ignore_index do not count; "mean" divides by the weights of those that do.
    Gradients flow to input, and to probabilities and their weight.
    Raises ValueError for what torch refuses, TypeError for non-tensors.
    """
    indices = isinstance(target, Tensor) and not target.is_floating_point()
    _check_weight("cross_entropy", "weight", weight, fixed=indices)
    options = (ignore_index, reduction, label_smoothing)
    return _call("cross_entropy", _cross_entropy, input, target, weight, *options)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Sigmoid and cross-entropy, C = -w (p y log sigmoid(z) + (1 - y) log(1 - sigmoid(z))).

    As torch.nn.functional.binary_cross_entropy_with_logits. input z, target y: the same shape;
    weight w and pos_weight p broadcast to it. Gradients flow to input and target.
    Raises ValueError for what torch refuses, TypeError for non-tensors.
    """
    call = "binary_cross_entropy_with_logits"
    _check_weight(call, "weight", weight, fixed=True)
    _check_weight(call, "pos_weight", pos_weight, fixed=True)
    return _call(call, _bce_with_logits, input, target, weight, pos_weight, reduction)


def _check_weight(call: str, name: str, weight: Any, *, fixed: bool) -> None:
    """fixed: the loss has no gradient for it, nor has torch's."""
    if weight is not None and not isinstance(weight, Tensor):
        raise TypeError(f"manualgrad.{call}: {name} must be a tensor, got {weight!r:.80}")
    if fixed and weight is not None and weight.requires_grad and torch.is_grad_enabled():
        raise LossInputError(
            f"manualgrad.{call}: {name} must not require a gradient here; pass {name}.detach()"
        )


def _call(call: str, apply: Callable[..., Tensor], input: Any, target: Any, *rest: Any) -> Tensor:
    for name, value in (("input", input), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"manualgrad.{call}: {name} must be a tensor, got {value!r:.80}")
    operands = (input, target, *rest)
    try:
        if has_torch_function(operands):  # a subclass of Tensor, or a mode
            return handle_torch_function(apply, operands, *operands)
        return apply(*operands)
    except torch.OutOfMemoryError:
        raise
    except NotImplementedError as error:
        if input.is_floating_point():  # nothing about the input: a derivative that is not there
            raise
        raise LossInputError(_complaint(call, error, input, target, rest)) from error
    except (RuntimeError, ValueError, IndexError) as error:
        raise LossInputError(_complaint(call, error, input, target, rest)) from error


def _complaint(call: str, error: Exception, input: Tensor, target: Tensor, rest: tuple) -> str:
    tensors = {"input": input, "target": target}
    weights = zip(("weight", "pos_weight"), rest, strict=False)
    tensors |= {name: weight for name, weight in weights if isinstance(weight, Tensor)}
    what = ", ".join(f"{k} {tuple(t.shape)} {t.dtype} on {t.device}" for k, t in tensors.items())
    return f"manualgrad.{call}: {error} ({what})"


class MSELossFunction(Function):
    """C = (a - y)^2, grad_a C = 2 (a - y)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, target: Tensor, reduction: str) -> Tensor:
        return F.mse_loss(input, target, reduction=reduction)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, target, ctx.reduction = inputs
        ctx.save_for_backward(input, target)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        a, y = ctx.saved_tensors
        error = _wide(a) - _wide(y)
        grad_a = 2.0 * error * _per_term(grad, ctx.reduction, error.numel())
        needs_a, needs_y, _ = ctx.needs_input_grad
        return (
            grad_a.sum_to_size(a.shape).to(a.dtype) if needs_a else None,
            -grad_a.sum_to_size(y.shape).to(y.dtype) if needs_y else None,
            None,
        )


class CrossEntropyFunction(Function):
    """C = -sum_c q_c log softmax(z)_c, delta = (sum_c q_c) softmax(z) - q: the weighted target q.

    q = w y for probabilities y. For a class index t, q = w_t at t and 0 elsewhere. Label smoothing
    mixes the uniform distribution into y.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(input, target, weight, ignore_index, reduction, label_smoothing) -> Tensor:
        return F.cross_entropy(
            input,
            target,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, target, weight, *ctx.options = inputs
        ctx.save_for_backward(input, target, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        z, target, weight = ctx.saved_tensors
        weight = None if weight is None else _wide(weight)
        classes = 1 if z.dim() > 1 else 0
        if target.is_floating_point():
            grads = _from_probabilities(ctx, grad, z, target, weight, classes)
        else:
            grads = _from_indices(ctx, grad, z, target, weight, classes), None, None
        return *grads, None, None, None


def _from_indices(ctx, grad, z, target, weight, classes) -> Tensor:
    """delta where the target is one class per example."""
    ignore_index, reduction, smoothing = ctx.options
    target = target.long()
    counts = target != ignore_index
    target = target * counts  # some class, where it does not count
    of_target = counts if weight is None else weight[target] * counts
    grad = _wide(grad)
    if reduction == "mean":
        grad = grad / of_target.sum()
    grad = torch.where(counts, grad, 0.0)  # where nothing counts, 0 and not 0 / 0
    spread = None
    if smoothing:
        share = _uniform(weight, z.shape[classes], smoothing, grad)
        spread = grad.unsqueeze(classes) * _along(share, z, classes)
        grad = (1.0 - smoothing) * grad
    hot = (grad if weight is None else grad * of_target).unsqueeze(classes)
    sum_q = hot if spread is None else hot + spread.sum(classes, keepdim=True)
    delta = torch.softmax(_wide(z), classes) * sum_q
    if spread is not None:
        delta = delta - spread
    delta = delta.scatter_add_(classes, target.unsqueeze(classes), -hot)
    return delta.to(z.dtype)


def _from_probabilities(ctx, grad, z, target, weight, classes):
    """(delta, gradient of the probabilities, gradient of the weight)."""
    _, reduction, smoothing = ctx.options
    needs_z, needs_y, needs_w, *_ = ctx.needs_input_grad
    count = z.shape[classes]
    y = _wide(target) * (1.0 - smoothing) + smoothing / max(count, 1)
    w = 1.0 if weight is None else _along(weight, z, classes)
    terms = _per_term(grad, reduction, z.numel() // count if count else 0)
    grad = terms.unsqueeze(classes) if reduction == "none" else terms
    delta = grad_y = grad_w = None
    if needs_z:
        q = w * y
        delta = torch.softmax(_wide(z), classes) * q.sum(classes, keepdim=True) - q
        delta = (grad * delta).to(z.dtype)
    if needs_y or needs_w:
        of_class = -grad * torch.log_softmax(_wide(z), classes)
        if needs_y:
            grad_y = ((1.0 - smoothing) * w * of_class).to(target.dtype)
        if needs_w:
            grad_w = (of_class * y).movedim(classes, -1).reshape(-1, count).sum(0)
    return delta, grad_y, grad_w


class BCEWithLogitsFunction(Function):
    """delta = w (l sigmoid(z) - p y) with l = 1 + (p - 1) y: sigmoid(z) - y without weights."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input, target, weight, pos_weight, reduction) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            input, target, weight, pos_weight=pos_weight, reduction=reduction
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, target, weight, pos_weight, ctx.reduction = inputs
        ctx.save_for_backward(input, target, weight, pos_weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        kept_z, kept_y, weight, pos_weight = ctx.saved_tensors
        z, y = _wide(kept_z), _wide(kept_y)
        grad = _per_term(grad, ctx.reduction, z.numel())
        if weight is not None:
            grad = grad * _wide(weight)
        p = 1.0 if pos_weight is None else pos_weight.to(z.dtype)
        needs_z, needs_y, *_ = ctx.needs_input_grad
        delta = grad_y = None
        if needs_z:
            error = torch.sigmoid(z) - y
            if pos_weight is not None:
                error = (1.0 + (p - 1.0) * y) * torch.sigmoid(z) - p * y
            delta = (grad * error).to(kept_z.dtype)
        if needs_y:
            slope = -z if pos_weight is None else (p - 1.0) * F.softplus(-z) - z
            grad_y = (grad * slope).to(kept_y.dtype)
        return delta, grad_y, None, None, None


def _per_term(grad: Tensor, reduction: str, count: Any) -> Tensor:
    """The adjoint of each summand of C: the 1/M of "mean" enters here."""
    return _wide(grad) / count if reduction == "mean" else _wide(grad)


def _uniform(weight: Tensor | None, count: int, smoothing: float, like: Tensor) -> Tensor:
    """What label smoothing adds to q, per class."""
    ones = like.new_ones(count) if weight is None else weight
    return ones * (smoothing / max(count, 1))


def _along(vector: Tensor, z: Tensor, classes: int) -> Tensor:
    """A vector over the classes, shaped to broadcast against z."""
    return vector.reshape(-1, *[1] * (z.dim() - classes - 1))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in HALF_TYPES else tensor


_mse_loss = front_door(MSELossFunction, MSELossFunction.forward)
_cross_entropy = front_door(CrossEntropyFunction, CrossEntropyFunction.forward)
_bce_with_logits = front_door(BCEWithLogitsFunction, BCEWithLogitsFunction.forward)
