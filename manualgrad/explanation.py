"""mg.explain: which backend runs, and why."""

from typing import Any

from torch import Tensor

from manualgrad.activations import activation_of
from manualgrad.backends import BP1, BP2, BP3, BP4, FORWARD, Choice, choose


class Explanation:
    """What runs, and why: ``choices`` maps each operation to (backend, reason, tile)."""

    def __init__(self, choices: dict[str, Choice]):
        self.choices = choices

    def __repr__(self) -> str:
        rows = [(name, c.backend, c.reason) for name, c in self.choices.items()]
        left, middle = (max(len(row[i]) for row in rows) for i in (0, 1))
        return "\n".join(f"{name:{left}}  {who:{middle}}  {why}" for name, who, why in rows)


def explain(
    input: Tensor, weight: Tensor, activation: Any = "identity", *, bias: bool = True
) -> Explanation:
    """Which backend runs each of the five operations on these tensors, and why.

    input: (..., K). weight: (N, K). activation: as in ``linear_act``. bias: whether there is one.
    BP2 is explained for this weight above a layer with the same activation. Prints as a table;
    ``.choices[operation]`` is (backend, reason, tile).

    Raises TypeError for non-tensors and ValueError for shapes that do not fit.
    """
    for name, tensor in (("input", input), ("weight", weight)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"manualgrad.explain: {name} must be a tensor, got {tensor!r:.60}")
    if weight.dim() != 2 or input.dim() < 1 or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"manualgrad.explain: input of shape {tuple(input.shape)} does not fit weight of shape "
            f"{tuple(weight.shape)}; give (..., K) and (N, K)"
        )
    act = activation_of(activation, "explain")
    (N, K), x = weight.shape, input.reshape(-1, input.shape[-1])
    M = x.shape[0]
    choices = {}
    sizes = {FORWARD: (M, N, K), BP1: (M, N, 0), BP2: (M, K, N), BP3: (M, N, 0), BP4: (N, K, M)}
    for operation, (rows, columns, depth) in sizes.items():
        try:
            choices[operation] = choose(operation, act, rows, columns, depth, x, weight, bias=bias)
        except ValueError as error:
            choices[operation] = Choice("refused", str(error))
    return Explanation(choices)
