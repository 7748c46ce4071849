"""mg.capture: what BP3 and BP4 hold, (a, delta) of every use of a layer, for whoever wants to look.

The gradient of example i with respect to a weight is delta_i a_i^T. The inner product of those of
two examples needs no matrix: it is (delta_i . delta_j)(a_i . a_j), and (delta_i . delta_j) for the
bias. Summed over layers that is the Gram matrix of the per-example gradients,

    K_ij = sum_l (delta_i^l . delta_j^l)(a_i^{l-1} . a_j^{l-1} + 1),

whose diagonal is their squared norms, whose mean is |G|^2, and from which the gradient noise scale
follows (McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", eq. 2.9).
"""

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from manualgrad.listening import active, leaves


@dataclass(frozen=True, eq=False)
class Use:
    """One use of a layer in a backward pass.

    name: of its weight in the model given to capture, else "layer 1", "layer 2", ...
    a: (M, K), what came in, a^{l-1}; None where the weight wants no gradient.
    delta: (M, N), the adjoint of W a + b.
    weight, bias: the Parameters, None if without gradient; where the layer uses something computed
        from parameters (a parametrisation, a part of one): (graph's node, number of its output).
    transposed: the layer multiplies by the transpose of ``weight``.
    version: of a, when it was captured: a may be the caller's own tensor.
    """

    name: str
    a: Tensor | None
    delta: Tensor
    weight: Any
    bias: Any
    transposed: bool = False
    version: int = 0


class capture:
    """``with mg.capture() as cap: loss.backward()``: (a, delta) of each use of a layer of ours.

    model: an nn.Module. Its layers alone are captured, under the names of their parameters.
    examples: how many there are. None: each row of a layer's input is one. With inputs of shape
        (examples, T, features) a layer sees examples * T rows; say examples, and the T rows of one
        are added up.
    reduction: of the loss. "mean": backward sends 1/examples of each example's own gradient, and
        what is returned here is multiplied by examples; "sum": as it is.

    ``layers``, after the block: the uses in forward order, each with .name, .a, .delta. Row i of
    every use belongs to example i: a layer that is used several times, and several backward passes
    in one block, add up. So capture one batch, and one backward pass, at a time.

    What it costs: a and delta of every layer stay in memory until the capture is let go of, about
    twice what the forward pass keeps; no further passes. ``per_example_norms`` is one pass over
    them, ``grad_gram`` examples^2 (K + N) multiplications per layer. Off, it costs a look at an
    empty list per backward pass.

    Seen are linear_act, mlp, their modules, patched models; not seen are PyTorch's own layers,
    scales of skips, and graphs of torch.compile or torch.func. With model, a warning names the
    parameters that norms leave out for that.

    Raises TypeError and ValueError for arguments of other kinds.
    """

    def __init__(
        self,
        model: torch.nn.Module | None = None,
        *,
        examples: int | None = None,
        reduction: str = "mean",
    ) -> None:
        if model is not None and not isinstance(model, torch.nn.Module):
            raise TypeError(f"manualgrad.capture: model must be a module, got {model!r}")
        if reduction not in ("mean", "sum"):
            raise ValueError(f"manualgrad.capture: reduction {reduction!r} is not 'mean' or 'sum'")
        if examples is not None and (isinstance(examples, bool) or not isinstance(examples, int)):
            raise TypeError(f"manualgrad.capture: examples must be an int, got {examples!r}")
        if examples is not None and examples < 1:
            raise ValueError(f"manualgrad.capture: examples must be at least 1, got {examples}")
        self._model, self._examples, self._reduction = model, examples, reduction
        self._uses: list[tuple] = []
        self.layers: list[Use] = []

    def __enter__(self) -> "capture":
        if self in active:
            raise RuntimeError("manualgrad.capture: this capture is on already; make another")
        self.layers = []
        active.append(self)
        return self

    def heard(self, *use: Any) -> None:
        """Called by the backward passes, from the last layer down."""
        self._uses.append(use)

    def __exit__(self, *_: object) -> None:
        active.remove(self)
        uses, self._uses = self._uses[::-1], []
        names = {}
        if self._model is not None:
            parameters = self._model.named_parameters(remove_duplicate=False)
            names = {id(p): name.removesuffix(".weight") for name, p in reversed([*parameters])}
            uses = [use for use in uses if not names.keys().isdisjoint(leaves(*use[2:4]))]
        for number, (a, delta, weight, bias, transposed, version) in enumerate(uses, 1):
            name = names.get(id(weight), f"layer {number}")
            self.layers.append(Use(name, a, delta, weight, bias, transposed, version))

    def delta_norms(self) -> list[float]:
        """|delta^l|, the Frobenius norm, of each use in forward order: the error's way down."""
        return [torch.linalg.vector_norm(use.delta.detach()).item() for use in self.layers]

    def per_example_norms(self) -> Tensor:
        """|g_i|, (examples,): the norm of each example's own gradient, over all parameters."""
        squares: Any = 0
        for uses, in_rows in self._parameters():
            squares = squares + (_squares(in_rows) if uses is None else _norms(uses, self._count()))
        return squares.clamp(min=0).sqrt() * self._factor()

    def grad_gram(self) -> Tensor:
        """K, (examples, examples): the inner products of the examples' own gradients."""
        K: Any = 0
        for uses, in_rows in self._parameters():
            K = K + (in_rows @ in_rows.T if uses is None else _gram(uses, self._count()))
        return K * self._factor() ** 2

    def noise_scale(self) -> float:
        """tr(Sigma) / |G|^2, in examples: the batch at which noise and gradient are equally strong.

        G is the mean of the examples' gradients, Sigma their covariance (of a sample: n - 1).
        """
        n = self._count()
        if n < 2:
            raise ValueError("manualgrad.capture: the noise scale needs at least two examples")
        K = self.grad_gram()
        mean_square = K.mean()
        trace = (K.diagonal().mean() - mean_square) * (n / (n - 1))
        return (trace / mean_square).item()

    def _parameters(self) -> list[tuple[Any, Any]]:
        """Per weight (its uses, None), per bias (None, each example's gradient (examples, N))."""
        count, weights, biases = self._count(), {}, {}
        for use in self.layers:
            self._check(use)
            if use.weight is not None and use.a is not None:
                weights.setdefault(id(use.weight), []).append(use)
            if use.bias is not None:
                summed = _wide(use.delta).unflatten(0, (count, -1)).sum(1)
                known = biases.get(id(use.bias))
                biases[id(use.bias)] = summed if known is None else known + summed
        if not weights and not biases:
            raise ValueError("manualgrad.capture: none of the layers seen wants a gradient")
        if self._model is not None:
            seen = weights.keys() | biases.keys()
            named = self._model.named_parameters()
            unseen = [name for name, p in named if p.requires_grad and id(p) not in seen]
            if unseen:
                names = ", ".join(unseen)
                text = f"manualgrad.capture: left out, since no layer of ours uses them: {names}"
                warnings.warn(text, stacklevel=3)
        return [*((uses, None) for uses in weights.values()), *((None, b) for b in biases.values())]

    def _check(self, use: Use) -> None:
        """Raises ValueError for a use whose gradients cannot be told from what was captured."""
        if isinstance(use.weight, tuple) or isinstance(use.bias, tuple):
            raise ValueError(
                f"manualgrad.capture: {use.name} uses a weight or bias that is computed from "
                f"parameters (a parametrisation, a part), whose gradients a and delta do not tell; "
                f".layers and delta_norms() are there all the same"
            )
        if use.a is not None and use.a._version != use.version:
            raise ValueError(
                f"manualgrad.capture: the input of {use.name} was changed in place after the "
                f"capture; call this before, or give the layer a copy"
            )

    def _count(self) -> int:
        """The number of examples."""
        if self in active:
            raise ValueError("manualgrad.capture: read it after the with block")
        rows = {use.delta.shape[0] for use in self.layers}
        if not rows:
            raise ValueError(
                "manualgrad.capture: nothing was seen; call loss.backward() inside the with block, "
                "on layers of manualgrad, not compiled"
            )
        if rows == {0}:
            raise ValueError("manualgrad.capture: the batch was empty")
        count = self._examples or (next(iter(rows)) if len(rows) == 1 else None)
        if count is None:
            raise ValueError(
                f"manualgrad.capture: the layers see different numbers of rows, {sorted(rows)}; "
                f"say how many examples there are: manualgrad.capture(examples=...)"
            )
        if any(use.delta.shape[0] % count for use in self.layers):
            raise ValueError(
                f"manualgrad.capture: {count} examples do not divide the layers' rows, "
                f"{sorted(rows)}"
            )
        return count

    def _factor(self) -> int:
        return self._count() if self._reduction == "mean" else 1


def _wide(tensor: Tensor) -> Tensor:
    """Half types are added up in float32."""
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _sides(use: Use) -> tuple[Tensor, Tensor]:
    """(left, right) with left_i right_i^T the gradient of the weight from row i."""
    a, delta = _wide(cast(Tensor, use.a)), _wide(use.delta)
    return (a, delta) if use.transposed else (delta, a)


def _squares(rows: Tensor) -> Tensor:
    return rows.square().sum(1)


def _gradients(uses: Sequence[Use], count: int) -> Tensor:
    """Each example's gradient of one weight, (examples, N K), its uses added up."""
    total: Any = 0
    for use in uses:
        left, right = (side.unflatten(0, (count, -1)) for side in _sides(use))
        total = total + left.mT @ right
    return total.flatten(1)


def _in_one_row(uses: Sequence[Use], count: int) -> bool:
    return all(use.delta.shape[0] == count for use in uses)


def _norms(uses: Sequence[Use], count: int) -> Tensor:
    """Each example's squared norm of the gradient of one weight."""
    if not _in_one_row(uses, count):
        return _squares(_gradients(uses, count))
    total: Any = 0
    for (left, right), (other_left, other_right) in itertools.product(map(_sides, uses), repeat=2):
        total = total + (left * other_left).sum(1) * (right * other_right).sum(1)
    return total


def _gram(uses: Sequence[Use], count: int) -> Tensor:
    """The inner products of the examples' gradients of one weight."""
    if not _in_one_row(uses, count):
        gradients = _gradients(uses, count)
        return gradients @ gradients.T
    total: Any = 0
    for (left, right), (other_left, other_right) in itertools.product(map(_sides, uses), repeat=2):
        total = total + (left @ other_left.T) * (right @ other_right.T)
    return total
