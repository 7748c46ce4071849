"""The gradient of the gradient: through backward's own graph, by differences, or refused."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from manualgrad.verify import tolerance
from manualgrad.verify.judges import NotRun, first_line
from manualgrad.verify.numeric import Slope, inner, slope
from manualgrad.verify.settle import directions, nodes, precision
from manualgrad.verify.subject import Run, Subject, random_like


@dataclass
class SecondDerivative:
    """Of <w, J^T v>, w random, at the subject's point.

    refused: fn's own words, if it says clearly that there is none. of: tensor -> its derivative
    through backward's graph, None where the graph leads nowhere. by_v: the same for the output
    gradients. missing: those for which differences say that there is one.
    """

    subject: Subject
    w: list[Tensor | None]
    v: list[Tensor]
    towards: list[Tensor | None]
    refused: str = ""
    of: dict[int, Tensor | None] = field(default_factory=dict)
    by_v: list[Tensor | None] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def is_zero(self) -> bool:
        """fn is linear in each tensor, and the gradient of a linear function has none."""
        return all(g is None or not g.any() for g in self.of.values())

    def along(self, i: int) -> Callable[[float], tuple[float, float]]:
        """h -> <w, J^T v> with tensor number i moved by h in its direction, and its size."""
        tensors, towards = self.subject.point, self.towards[i]

        def phi(h: float) -> tuple[float, float]:
            moved = list(tensors)
            moved[i] = (tensors[i] + h * cast(Tensor, towards)).to(tensors[i].dtype)
            try:
                return inner(self.w, self.subject.run(moved, v=self.v).gradients)
            except Exception:
                return math.nan, 0.0  # the step leads out of what fn takes

        return phi

    def slope(self, i: int) -> Slope:
        return slope(self.along(i), precision(self.subject.point), 1e-12)


def second_derivative(subject: Subject) -> SecondDerivative:
    """Worked out once per subject."""
    if subject.second is None:
        subject.second = _worked_out(subject)
    return subject.second


def _worked_out(subject: Subject) -> SecondDerivative:
    tensors = subject.point
    first = subject.run(tensors)
    w, v = weights(first), subject.output_gradients(first.outputs)
    second = SecondDerivative(subject, w, v, directions(subject, tensors, salt=9))
    try:
        found = double_backward(subject, tensors, w, v)
    except Exception as error:
        second.refused = f"fn has no second derivative: {first_line(error)}"
        return second
    second.of = dict(zip(subject.live, found, strict=False))
    second.by_v = found[len(subject.live) :]
    _find_missing(second, first.gradients)
    return second


def weights(run: Run) -> list[Tensor | None]:
    """Fixed random numbers in the shapes of the gradients."""
    return [None if g is None else random_like(g, 97 + i) for i, g in enumerate(run.gradients)]


def double_backward(
    subject: Subject,
    tensors: Sequence[Tensor],
    w: Sequence[Tensor | None],
    v: Sequence[Tensor],
    callee: Callable | None = None,
    batched: bool = False,
) -> list[Tensor | None]:
    """<w, J^T v> differentiated by the live tensors and by v, through backward's own graph.

    batched: J^T v is taken from a batch of output gradients, as vectorised Jacobians have them.
    """
    leaves = subject.leaves(tensors, subject.live)
    outputs = subject(leaves, callee)
    given = [g.clone().requires_grad_() for g in v]
    asked = [leaves[i] for i in subject.live]
    sent = [torch.stack([2.0 * g, g]) for g in given] if batched else given
    gradients = torch.autograd.grad(
        outputs, asked, sent, create_graph=True, allow_unused=True, is_grads_batched=batched
    )
    if batched:
        gradients = [None if g is None else g[1] for g in gradients]
    return _differentiated(gradients, w, [*asked, *given])


def unless_it_takes_no_batches(subject: Subject) -> None:
    """Raises NotRun if fn's backward refuses several output gradients at once.

    By functorch's vmap: under autograd's own one, a backward that reads `.data` kills the process.
    """
    leaves = subject.leaves(subject.point, subject.live)
    outputs = subject(leaves)
    asked = [leaves[i] for i in subject.live]

    def gradients(*v):
        found = torch.autograd.grad(outputs, asked, v, retain_graph=True, allow_unused=True)
        return [g for g in found if g is not None]

    v = [torch.stack([g, 2 * g]) for g in subject.output_gradients(outputs)]
    try:
        torch.func.vmap(gradients)(*v)
    except Exception as error:
        raise NotRun(f"fn's backward takes no batched gradients: {first_line(error)}") from error


def _differentiated(
    gradients: Sequence[Tensor | None], w: Sequence[Tensor | None], by: Sequence[Tensor]
) -> list[Tensor | None]:
    """<w, gradients> differentiated, None where no graph leads."""
    ends = [(g, u) for g, u in zip(gradients, w, strict=True) if g is not None and g.requires_grad]
    if not ends:
        return [None] * len(by)
    if any(node.name().endswith(("Error", "NotImplemented")) for node in nodes(g for g, _ in ends)):
        # autograd.grad passes over such a node where loss.backward() would raise what it says
        raise RuntimeError("it is marked as not differentiable (@once_differentiable, for one)")
    starts, weights = zip(*ends, strict=True)
    return list(torch.autograd.grad(starts, by, weights, allow_unused=True))


def _find_missing(second: SecondDerivative, gradients: Sequence[Tensor | None]) -> None:
    subject = second.subject
    eps = precision(subject.point)
    for i, found in second.of.items():
        if found is not None and found.any():
            continue
        value, bar = second.slope(i)[:2]
        size = inner(second.w, gradients)[1]
        if abs(value) > tolerance.SLACK * bar + 1e-6 * size:
            kind = "None" if found is None else "zero"
            second.missing.append(
                f"the gradient, differentiated by {subject.label(i)}, is silently {kind}: "
                f"differences of the gradient say {value:.6g} along a random direction"
            )
    for k, found in enumerate(second.by_v):
        if found is not None and found.any():
            continue
        only = [g if j == k else torch.zeros_like(g) for j, g in enumerate(second.v)]
        linear, size = inner(second.w, subject.run(subject.point, v=only).gradients)
        if abs(linear) > tolerance.SLACK * eps * size:
            kind = "None" if found is None else "zero"
            second.missing.append(
                f"the gradient, differentiated by the output gradient {k} it is proportional to, "
                f"is silently {kind}; a network below it loses that part of a gradient penalty"
            )
