"""mg.explain: which backend runs, and why."""

from typing import Any

from torch import Tensor

from manualgrad import compat
from manualgrad.activations import activation_of
from manualgrad.backends import BP1, BP2, BP3, BP4, FORWARD, Choice, choose
from manualgrad.functional import as_autocast_casts
from manualgrad.operands import check


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

    Under autocast, for the tensors as autocast casts them. Raises as ``linear_act`` does.
    """
    act = activation_of(activation, "explain")
    dtype = compat.autocast_dtype(input.device) if isinstance(input, Tensor) else None
    if dtype is not None:
        input, weight = as_autocast_casts(input, dtype), as_autocast_casts(weight, dtype)
    check("explain", input, (weight, None))
    x = input.unsqueeze(0) if input.dim() == 1 else input.flatten(0, -2)
    (M, K), N = x.shape, weight.shape[0]
    choices = {}
    sizes = {FORWARD: (M, N, K), BP1: (M, N, 0), BP2: (M, K, N), BP3: (M, N, 0), BP4: (N, K, M)}
    for operation, (rows, columns, depth) in sizes.items():
        try:
            choices[operation] = choose(operation, act, rows, columns, depth, x, weight, bias=bias)
        except ValueError as error:
            choices[operation] = Choice("refused", str(error))
    return Explanation(choices)
