"""The same computation in other circumstances: what must not change, and who may refuse."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manualgrad.verify import tolerance
from manualgrad.verify.judges import crash, refusal
from manualgrad.verify.readings import Reading, compare
from manualgrad.verify.subject import Movement, Run, Subject

# what a function raises that says on purpose what it does not take
REFUSALS = (NotImplementedError, ValueError, TypeError, AssertionError)


@dataclass
class Variation:
    """run: the computation in its other circumstances, what: their name. want: what it must give.

    moved: what rounding does to it; None where the two must be equal bit for bit.
    """

    what: str
    run: Callable[[], Run]
    want: Run
    moved: Movement | None


def compared(
    subject: Subject, variations: Iterable[Variation], refusals: Any = REFUSALS
) -> Iterator[Reading]:
    """The readings of every variation. Raises NotRun at the end, naming those that were refused.

    What goes wrong in one circumstance is one finding, and so is one exception in several.
    """
    refused: list[tuple[str, BaseException]] = []
    crashed: dict[str, list[str]] = {}
    for variation in variations:
        try:
            got = variation.run()
        except refusals as error:
            refused.append((variation.what, error))
        except Exception as error:
            crashed.setdefault(crash(error), []).append(variation.what)
        else:
            readings = list(alike(subject, variation.what, got, variation.want, variation.moved))
            wrong = [reading for reading in readings if reading.wrong]
            yield from wrong[:1] or readings
    for text, names in crashed.items():
        yield Reading(f"{'; '.join(names)}: {text}")
    if refused:
        raise refusal("fn does not run", refused)


def alike(
    subject: Subject, what: str, got: Run, want: Run, moved: Movement | None
) -> Iterator[Reading]:
    """got against want, tensor by tensor."""
    if len(got.outputs) != len(want.outputs):
        yield Reading(f"{what}: {len(got.outputs)} results, should be {len(want.outputs)}")
        return
    names = [
        f"output {k}" if len(want.outputs) > 1 else "the output" for k in range(len(got.outputs))
    ]
    names += [f"gradient of {subject.label(i)}" for i in want.wrt]
    limits = [None] * len(names) if moved is None else [*moved.outputs, *moved.gradients]
    mine, right = [*got.outputs, *got.gradients], [*want.outputs, *want.gradients]
    for name, one, two, limit in zip(names, mine, right, limits, strict=True):
        dtype = torch.float64 if two is None else two.dtype
        allowed = 0.0 if limit is None else tolerance.beside_rounding(two, limit, dtype)
        yield compare(f"{what}: {name}", one, two, allowed)


# memory layouts of the same values


def transposed(t: Tensor) -> Tensor | None:
    return t.mT.contiguous().mT if t.dim() >= 2 else None


def reversed_dimensions(t: Tensor) -> Tensor | None:
    order = tuple(range(t.dim()))[::-1]
    return t.permute(order).contiguous().permute(order) if t.dim() >= 3 else None


def every_other_column(t: Tensor) -> Tensor | None:
    """Strides twice as large; what lies between is NaN."""
    if t.dim() == 0:
        return None
    wide = _filled(t, (*t.shape[:-1], 2 * t.shape[-1]))
    wide[..., ::2] = t
    return wide[..., ::2]


def part_of_longer_rows(t: Tensor) -> Tensor | None:
    """Rows further apart than their length, and a start off every alignment."""
    if t.dim() == 0:
        return None
    wide = _filled(t, (*t.shape[:-1], t.shape[-1] + 3))
    wide[..., 1:-2] = t
    return wide[..., 1:-2]


def _filled(t: Tensor, shape: Sequence[int]) -> Tensor:
    nothing = float("nan") if t.is_floating_point() or t.is_complex() else 0
    return torch.full(shape, nothing, dtype=t.dtype, device=t.device)


LAYOUTS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "transposed in memory": transposed,
    "with its dimensions reversed in memory": reversed_dimensions,
    "as every other column of a wider tensor": every_other_column,
    "as a slice of longer rows": part_of_longer_rows,
}


# stride 0: the values change too, so each is held to its own contiguous copy


def expanded_rows(t: Tensor) -> Tensor | None:
    return t[:1].expand_as(t) if t.dim() >= 1 and t.shape[0] > 1 else None


def expanded_columns(t: Tensor) -> Tensor | None:
    return t[..., :1].expand_as(t) if t.dim() >= 2 and t.shape[-1] > 1 else None


def expanded_scalar(t: Tensor) -> Tensor | None:
    return t.reshape(-1)[:1].reshape([1] * t.dim()).expand_as(t) if t.numel() > 1 else None


EXPANSIONS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "expanded along dimension 0 (stride 0)": expanded_rows,
    "expanded along its last dimension (stride 0)": expanded_columns,
    "expanded from one number, as .sum() sends it (all strides 0)": expanded_scalar,
}


def subsets(positions: Sequence[int], most: int = 24) -> Iterator[tuple[int, ...]]:
    """Every proper subset that is not empty; of many positions, one alone and all but one."""
    many = len(positions)
    sizes = range(1, many) if 2**many - 2 <= most else sorted({1, many - 1})
    every = itertools.chain.from_iterable(itertools.combinations(positions, k) for k in sizes)
    return itertools.islice(every, most)
