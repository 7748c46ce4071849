"""mg.capture: what BP3 and BP4 hold, (a, delta) of every use of a layer, for whoever wants to look.

The gradient of example i with respect to a weight is delta_i a_i^T. The inner product of those of
two examples needs no matrix: it is (delta_i . delta_j)(a_i . a_j), and (delta_i . delta_j) for the
bias. Summed over layers that is the Gram matrix of the per-example gradients,

    K_ij = sum_l (delta_i^l . delta_j^l)(a_i^{l-1} . a_j^{l-1} + 1),

whose diagonal is their squared norms, whose mean is |G|^2, and from which the gradient noise scale
follows (McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", eq. 2.9).
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from manualgrad.chain import TRANSPOSES

active: list["capture"] = []
"""Those that are listening. Of the whole process: a backward pass may run in threads of its own."""


@dataclass(frozen=True, eq=False)
class Use:
    """One use of a layer in a backward pass.

    name: of its weight in the model given to capture, else "layer 1", "layer 2", ...
    a: (M, K), what came in, a^{l-1}; None where the weight wants no gradient.
    delta: (M, N), the adjoint of W a + b.
    weight, bias: the Parameters (or what stands for them in the graph), None if without gradient.
    transposed: the layer multiplies by the transpose of ``weight``.
    """

    name: str
    a: Tensor | None
    delta: Tensor
    weight: Any
    bias: Any
    transposed: bool = False


class capture:
    """``with mg.capture() as cap: loss.backward()``: (a, delta) of each use of a layer of ours.

    model: an nn.Module whose parameters' names the layers get.
    examples: how many there are. None: each row of a layer's input is one. With inputs of shape
        (examples, T, features) a layer sees examples * T rows; say examples, and the T rows of one
        are added up.
    reduction: of the loss. "mean": backward sends 1/examples of each example's own gradient, and
        what is returned here is multiplied by examples; "sum": as it is.

    ``layers``: the uses in forward order, each with .name, .a, .delta. A layer that is used several
    times is there several times, and its uses are added up before a norm is taken.

    What it costs: a and delta of every layer stay in memory until the capture is let go of, the
    size of the forward pass' activations twice; no further passes. ``per_example_norms`` is one
    pass over them, ``grad_gram`` examples^2 (K + N) multiplications per layer. Off, it costs a look
    at an empty list per backward pass.

    Seen are linear_act, mlp, their modules, patched models; not seen are PyTorch's own layers,
    scales of skips, and graphs of torch.compile or torch.func.
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
        parameters = () if model is None else model.named_parameters()
        self._names = {id(p): name.removesuffix(".weight") for name, p in parameters}
        self._examples, self._reduction = examples, reduction
        self._uses: list[tuple] = []
        self.layers: list[Use] = []

    def __enter__(self) -> "capture":
        active.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        active.remove(self)
        for number, (a, delta, weight, bias, transposed) in enumerate(reversed(self._uses), 1):
            name = self._names.get(id(weight), f"layer {number}")
            self.layers.append(Use(name, a, delta, weight, bias, transposed))
        self._uses.clear()

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
            if use.weight is not None and use.a is not None:
                weights.setdefault(_key(use.weight), []).append(use)
            if use.bias is not None:
                summed = _wide(use.delta).unflatten(0, (count, -1)).sum(1)
                known = biases.get(_key(use.bias))
                biases[_key(use.bias)] = summed if known is None else known + summed
        if not weights and not biases:
            raise ValueError("manualgrad.capture: none of the layers seen wants a gradient")
        return [*((uses, None) for uses in weights.values()), *((None, b) for b in biases.values())]

    def _count(self) -> int:
        """The number of examples."""
        rows = {use.delta.shape[0] for use in self.layers}
        if not rows:
            raise ValueError(
                "manualgrad.capture: nothing was seen; call loss.backward() inside the with block, "
                "on layers of manualgrad, not compiled"
            )
        count = self._examples or (rows.pop() if len(rows) == 1 else None)
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


# what the Functions call


def noting(ctx: Any, needs: Sequence[bool]) -> Callable[..., None]:
    """A function that hands a use to those that listen.  needs: of x, then of each tensor.

    An input that wants a gradient is one that an edge of the graph leads to.
    """
    edges = iter([edge for edge in ctx.next_functions if edge[0] is not None])
    _, *origins = [_origin(*next(edges)) if needed else (None, False) for needed in needs]

    def note(
        weight_at: int, bias_at: int, transposed: bool, delta: Tensor, a: Tensor | None
    ) -> None:
        weight, flipped = origins[weight_at]
        detached = None if a is None or weight is None else a.detach()
        use = detached, delta.detach(), weight, origins[bias_at][0], transposed != flipped
        for listener in active:
            listener._uses.append(use)

    return note


def _origin(node: Any, number: int) -> tuple[Any, bool]:
    """(what an edge leads to through casts and transposes, was it transposed on the way).

    A Parameter, or where the graph goes on, (node, number of its output).
    """
    transposed = False
    while not hasattr(node, "variable"):
        name = node.name()
        if name not in (*TRANSPOSES, "ToCopyBackward0"):
            return (node, number), transposed
        transposed ^= name in TRANSPOSES
        node, number = node.next_functions[0]
    return node.variable, transposed


def _key(parameter: Any) -> Any:
    return (id(parameter[0]), parameter[1]) if isinstance(parameter, tuple) else id(parameter)
