"""What a caller passes, checked: whether it fits together, and what is said where it does not."""

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from manualgrad.chain import Skip

# what each caller calls the weight and the bias of layer {}
NAMES = {
    "linear_act": ("weight", "bias"),
    "nn.Linear": ("weight", "bias"),
    "explain": ("weight", "bias"),
    "mlp": ("weights[{}]", "biases[{}]"),
    "nn.MLP": ("layers.{}.weight", "layers.{}.bias"),
    "nn.Residual": ("the weight of layer {} of block", "the bias of layer {} of block"),
}


def check(call: str, input: Any, params: Sequence[Any]) -> None:
    """Raises ValueError or TypeError, in the words of call, unless the tensors fit together."""
    if not fit(input, params):
        refuse(call, input, params)


def fit(input: Any, params: Sequence[Any]) -> bool:
    """Do the tensors fit together? This runs on every call; refuse says why they do not."""
    try:
        width, dtype, device = input.shape[-1], input.dtype, input.device
        if not input.is_floating_point() or input.layout is not torch.strided:
            return False
        strided = torch.strided
        for weight, bias in zip(params[::2], params[1::2], strict=True):
            rows, columns = weight.shape
            if (
                columns != width
                or weight.dtype is not dtype
                or weight.device != device
                or weight.layout is not strided
            ):
                return False
            if bias is not None and (
                bias.shape != (rows,)
                or bias.dtype is not dtype
                or bias.device != device
                or bias.layout is not strided
            ):
                return False
            width = rows
        return True
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False  # not tensors, nested ones, or of other ranks


def check_skips_fit(
    call: str, input: Tensor, skips: Sequence[Skip], params: Sequence[Any], scales: Sequence[Any]
) -> None:
    """Raises ValueError for skips between different widths, and for scales that do not fit."""
    widths = [input.shape[-1], *(weight.shape[0] for weight in params[::2])]
    for skip in skips:
        start, end = widths[skip.start], widths[skip.end]
        if start != end:
            raise ValueError(
                f"manualgrad.{call}: {skip} joins layer {skip.start}, which has {start} features, "
                f"and layer {skip.end}, which has {end}; a skip needs equal widths"
            )
        shape = tuple(skip.scale.shape) if isinstance(skip.scale, Tensor) else ()
        if shape not in ((), (1,), (end,)):
            raise ValueError(
                f"manualgrad.{call}: the scale of a skip has shape {shape}, but "
                f"layer {skip.end} has {end} features; give a number, or shape (), (1,) or ({end},)"
            )
    for scale in scales:
        _refuse_operand(call, "the scale of a skip", scale, input)


def refuse(call: str, input: Any, params: Sequence[Any]) -> NoReturn:
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
        double = torch.float64 in (input.dtype, tensor.dtype)
        autocast = "" if double else ", or use torch.autocast"  # it casts no float64
        raise ValueError(
            f"manualgrad.{call}: input is {input.dtype} but {name} is {tensor.dtype}; cast one, "
            f"e.g. input.to({tensor.dtype}){autocast}"
        )
    if tensor.device != input.device:
        raise ValueError(
            f"manualgrad.{call}: input is on {input.device} but {name} is on {tensor.device}; "
            f"move one, e.g. input.to({str(tensor.device)!r})"
        )


def _refuse_kind(call: str, name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"manualgrad.{call}: {name} must be a tensor, got {kind(tensor)}")
    if not tensor.is_floating_point() or tensor.layout is not torch.strided or tensor.is_nested:
        raise TypeError(
            f"manualgrad.{call}: {name} is {kind(tensor)}; give a dense floating tensor, "
            f"e.g. {name}.to(torch.float32)"
        )


def kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"{type(value).__name__} {value!r:.60}" if not callable(value) else repr(value)
    layout = "" if value.layout is torch.strided else f" {value.layout}"
    layout += " nested" if value.is_nested else ""
    return f"a tensor of {value.dtype}{layout}"


def checked_skips(call: str, skips: Iterable[Any], depth: int) -> tuple[Skip, ...]:
    """The skips in the order of their ends, after a look at what they say about layers."""
    if not isinstance(skips, Iterable):
        raise TypeError(f"manualgrad.{call}: skips must be manualgrad.Skip's, got {skips!r}")
    skips = tuple(skips)
    for skip in skips:
        if not isinstance(skip, Skip):
            raise TypeError(
                f"manualgrad.{call}: skips must be manualgrad.Skip's, e.g. manualgrad.Skip(1, 2), "
                f"got {skip!r}"
            )
        if skip.end > depth:
            raise ValueError(
                f"manualgrad.{call}: {skip} ends at layer {skip.end}, but there are {depth} layers"
            )
    ends = [skip.end for skip in skips]
    for end in ends:
        if ends.count(end) > 1:
            raise ValueError(
                f"manualgrad.{call}: two skips end at layer {end}; let one end at a layer of its "
                f"own, or add it outside"
            )
    return tuple(sorted(skips, key=lambda skip: skip.end))
