"""mg.explain: which backend runs, and why."""

from typing import Any

from torch import Tensor

from manualgrad import compat, narrow, tiling
from manualgrad.activations import activation_of
from manualgrad.backends import BP1, BP2, BP3, BP4, FORWARD, Choice, choose
from manualgrad.chain import Chain
from manualgrad.functional import as_autocast_casts
from manualgrad.narrow import NO_GPU
from manualgrad.operands import check


class Explanation:
    """What runs, and why: ``choices`` maps each operation to (backend, reason, tile).

    ``depth``: the number of layers. ``rows``: over how many rows at a time they walk, 0 for all.
    ``narrow``: why they do not run in one kernel each way, or None where they do.
    ``narrow_forward``: the same of forward alone.
    """

    def __init__(
        self,
        choices: dict[str, Choice],
        depth: int = 1,
        rows: int = 0,
        narrow: str | None = NO_GPU,
        narrow_forward: str | None = NO_GPU,
    ):
        self.choices, self.depth, self.rows = choices, depth, rows
        self.narrow, self.narrow_forward = narrow, narrow_forward

    def __repr__(self) -> str:
        table = [(name, c.backend, c.reason) for name, c in self.choices.items()]
        left, middle = (max(len(row[i]) for row in table) for i in (0, 1))
        lines = [f"{name:{left}}  {who:{middle}}  {why}" for name, who, why in table]
        chain = f"a chain of {self.depth} such layers"
        if self.depth > 1 and self.narrow is None:
            lines.insert(0, f"{chain} runs in one kernel each way; of one:")
        elif self.depth > 1:
            rows = f"in tiles of {self.rows} rows" if self.rows else "over all rows at once"
            lines.append(f"{chain} is walked {rows}")
            if self.narrow_forward is None:
                lines[-1] = f"{chain} runs forward in one kernel, and backward layer by layer"
            if self.narrow != NO_GPU:
                lines.append(f"and not in one kernel each way: {self.narrow}")
        return "\n".join(lines)


def explain(
    input: Tensor,
    weight: Tensor,
    activation: Any = "identity",
    *,
    bias: bool = True,
    depth: int = 1,
) -> Explanation:
    """Which backend runs each of the five operations on these tensors, and why.

    input: (..., K). weight: (N, K). activation: as in ``linear_act``. bias: whether there is one.
    depth: of how many such layers a chain is; on a CPU a large one is walked in tiles of rows, on a
    GPU a narrow one runs in one kernel each way.
    BP2 is explained for this weight above a layer with the same activation. Prints as a table;
    ``.choices[operation]`` is (backend, reason, tile), ``.rows`` a tile's rows, 0 without tiles.

    Under autocast, for the tensors as autocast casts them. Raises as ``linear_act`` does, and
    ValueError for a depth below 1, or above 1 for a layer that cannot follow itself.
    """
    act = activation_of(activation, "explain")
    dtype = compat.autocast_dtype(input.device) if isinstance(input, Tensor) else None
    if dtype is not None:
        input, weight = as_autocast_casts(input, dtype), as_autocast_casts(weight, dtype)
    check("explain", input, (weight, None))
    x = input.unsqueeze(0) if input.dim() == 1 else input.flatten(0, -2)
    (M, K), N = x.shape, weight.shape[0]
    if depth < 1 or (depth > 1 and N != K):
        raise ValueError(
            f"manualgrad.explain: depth is {depth} and weight has shape {tuple(weight.shape)}; a "
            f"chain of one layer several times needs a depth >= 1 and a square weight"
        )
    choices = {}
    sizes = {FORWARD: (M, N, K), BP1: (M, N, 0), BP2: (M, K, N), BP3: (M, N, 0), BP4: (N, K, M)}
    for operation, size in sizes.items():
        try:
            choices[operation] = choose(operation, act, *size, x, weight, bias=bias)
        except ValueError as error:
            choices[operation] = Choice("refused", str(error))
    chain = Chain((act,) * (depth + 1))
    tensors = [own for _ in range(depth) for own in (weight.detach(), None)]  # none is shared
    rows = tiling.rows_at_once(chain, x, tensors)
    return Explanation(choices, depth, rows, *narrow.why_not(chain, x, tensors))
