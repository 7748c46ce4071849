"""torch's functions that move entries, in rules."""

import builtins
import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from manualgrad.dag import rules
from manualgrad.dag.table import no_rule, spells


def _sizes(given: tuple) -> tuple[int, ...]:
    """view(2, 3), view((2, 3)) and view(torch.Size([2, 3])) mean the same."""
    return tuple(given[0]) if len(given) == 1 and not isinstance(given[0], int) else given


@spells(Tensor.reshape, Tensor.view, name="reshape")
def _view(input: Tensor, *shape: Any) -> Tensor:
    if len(shape) == 1 and isinstance(shape[0], torch.dtype):
        raise no_rule(Tensor.view)
    return rules.reshape(input, _sizes(shape))


@spells(torch.reshape)
def reshape(input: Tensor, shape: Any) -> Tensor:
    return rules.reshape(input, shape)


@spells(Tensor.view_as, Tensor.reshape_as, name="reshape")
def _view_as(input: Tensor, other: Tensor) -> Tensor:
    return rules.reshape(input, other.shape)


@spells(torch.flatten, Tensor.flatten)
def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    shape, count = list(input.shape) or [1], max(input.dim(), 1)
    start, end = start_dim % count, end_dim % count
    return rules.reshape(
        input, [*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]]
    )


@spells(torch.unflatten, Tensor.unflatten)
def unflatten(input: Tensor, dim: int, sizes: Any) -> Tensor:
    dim, shape = dim % input.dim(), list(input.shape)
    return rules.reshape(input, [*shape[:dim], *sizes, *shape[dim + 1 :]])


@spells(torch.unsqueeze, Tensor.unsqueeze)
def unsqueeze(input: Tensor, dim: int) -> Tensor:
    shape = list(input.shape)
    shape.insert(dim % (input.dim() + 1), 1)
    return rules.reshape(input, shape)


@spells(torch.squeeze, Tensor.squeeze)
def squeeze(input: Tensor, dim: Any = None) -> Tensor:
    dims = range(input.dim()) if dim is None else (dim,) if isinstance(dim, int) else dim
    gone = {d % input.dim() for d in dims}
    kept = [n for d, n in enumerate(input.shape) if n != 1 or d not in gone]
    return rules.reshape(input, kept)


@spells(torch.permute, name="permute")
def permute(input: Tensor, dims: Any) -> Tensor:
    return rules.permute(input, dims)


@spells(Tensor.permute, name="permute")
def _permute(input: Tensor, *dims: Any) -> Tensor:
    return rules.permute(input, _sizes(dims))


@spells(torch.transpose, torch.swapaxes, Tensor.transpose, Tensor.swapaxes)
def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    return rules.transpose(input, dim0, dim1)


@spells(Tensor.mT.__get__, name="transpose")  # pyright: ignore
def _matrix_transposed(input: Tensor) -> Tensor:
    return rules.transpose(input, -2, -1)


@spells(torch.t, Tensor.t, Tensor.T.__get__, name="transpose")  # pyright: ignore
def _reversed(input: Tensor) -> Tensor:
    return rules.permute(input, range(input.dim() - 1, -1, -1))


@spells(Tensor.expand, Tensor.broadcast_to, name="expand")
def _expand(input: Tensor, *shape: Any) -> Tensor:
    return rules.expand(input, _sizes(shape))


@spells(torch.broadcast_to, name="expand")
def _broadcast_to(input: Tensor, shape: Any) -> Tensor:
    return rules.expand(input, shape)


@spells(Tensor.expand_as, name="expand")
def _expand_as(input: Tensor, other: Tensor) -> Tensor:
    return rules.expand(input, other.shape)


@spells(torch.clone, Tensor.clone)
def clone(input: Tensor, *, memory_format: Any = None) -> Tensor:
    return rules.copy(input, contiguous=memory_format is torch.contiguous_format)


@spells(Tensor.contiguous)
def contiguous(input: Tensor) -> Tensor:
    return input if input.is_contiguous() else rules.copy(input, contiguous=True)


@spells(torch.cat, torch.concat, torch.concatenate)
def cat(tensors: Any, dim: int = 0) -> Tensor:
    return rules.cat(tensors, dim)


@spells(torch.stack)
def stack(tensors: Any, dim: int = 0) -> Tensor:
    return rules.cat([unsqueeze(t, dim) for t in tensors], dim)


@spells(F.unfold)
def unfold(input: Tensor, kernel_size: Any, dilation=1, padding=0, stride=1) -> Tensor:
    return rules.unfold(input, kernel_size, dilation, padding, stride)


@spells(Tensor.unfold, name="unfold")
def _windows(input: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """Windows of size entries along a dimension; the last one counts within a window."""
    dim, count = dimension % input.dim(), (input.shape[dimension] - size) // step + 1
    starts = torch.arange(0, count * step, step, device=input.device)
    places = starts[:, None] + torch.arange(size, device=input.device)
    rest = [d for d in range(input.dim()) if d != dim]
    rows = rules.embedding(places, rules.permute(input, [dim, *rest]))  # (count, size, *rest)
    after = range(2, input.dim() + 1)
    return rules.permute(rows, [*after[:dim], 0, *after[dim:], 1])


@spells(torch.narrow, Tensor.narrow)
def narrow(input: Tensor, dim: int, start: int, length: int) -> Tensor:
    return rules.slice(input, dim, start % max(input.shape[dim], 1) if start < 0 else start, length)


@spells(torch.select, Tensor.select)
def select(input: Tensor, dim: int, index: int) -> Tensor:
    return _dropped(input, dim % input.dim(), index)


@spells(torch.split, Tensor.split)
def split(tensor: Tensor, split_size_or_sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
    size, sections = tensor.shape[dim], split_size_or_sections
    if isinstance(sections, int):
        starts = range(0, max(size, 1), max(sections, 1))
        sections = [min(sections, size - start) for start in starts]
    ends = [builtins.sum(sections[: i + 1]) for i in range(len(sections))]
    if ends[-1] != size:
        raise ValueError(
            f"manualgrad.dag: split of {size} entries along dimension {dim} into {list(sections)}; "
            f"the parts must add up to the whole"
        )
    return tuple(
        rules.slice(tensor, dim, end - n, n) for end, n in zip(ends, sections, strict=True)
    )


@spells(torch.chunk, Tensor.chunk)
def chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    return split(input, -(-input.shape[dim] // chunks), dim)


@spells(torch.unbind, Tensor.unbind)
def unbind(input: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    return tuple(_dropped(input, dim % input.dim(), i) for i in range(input.shape[dim]))


def _dropped(x: Tensor, dim: int, index: int) -> Tensor:
    """One entry of a dimension, which is gone."""
    size = x.shape[dim]
    if not -size <= index < size:
        raise IndexError(
            f"manualgrad.dag: index {index} is out of the {size} entries of dimension {dim}"
        )
    part = rules.slice(x, dim, index % size, 1)
    return rules.reshape(part, [*x.shape[:dim], *x.shape[dim + 1 :]])


@spells(Tensor.__getitem__)
def getitem(input: Tensor, index: Any) -> Tensor:
    """Integers, slices, None and ...; or rows, by one tensor of integers."""
    if isinstance(index, Tensor) and index.dtype in (torch.int32, torch.int64):
        return rules.embedding(torch.where(index < 0, index + input.shape[0], index), input)
    indices = list(index) if isinstance(index, tuple) else [index]
    plain = (int, builtins.slice, type(None), type(...))
    if any(isinstance(i, bool) or not isinstance(i, plain) for i in indices):
        raise no_rule(Tensor.__getitem__)
    if ... in indices:
        at, taken = (
            indices.index(...),
            builtins.sum(i is not None and i is not ... for i in indices),
        )
        indices[at : at + 1] = [slice(None)] * (input.dim() - taken)
    x, dim = input, 0
    for i in indices:
        if i is None:
            x, dim = unsqueeze(x, dim), dim + 1
        elif isinstance(i, int):
            x = _dropped(x, dim, i)
        else:
            start, stop, step = cast(slice, i).indices(x.shape[dim])
            count = len(range(start, stop, step))
            if step < 0:
                raise ValueError("manualgrad.dag: a slice's step must be positive, as in torch")
            if (count, step) != (x.shape[dim], 1):
                x = rules.slice(x, dim, start, count, step)
            dim += 1
    return x
