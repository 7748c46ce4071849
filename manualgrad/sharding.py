"""How each operator runs on shards (DTensor): which placements of its tensors give which results.

Rows are examples: what is sharded by rows needs no communication but for a sum over examples.
sigma of a sum is no sum of sigmas: partial sums are added up first, unless sigma is the identity.
"""

import sys
from typing import Any

import torch

Rule = tuple[list[Any], list[Any]]  # placements of the results, and of the arguments


def register() -> None:
    """For processes that have imported DTensor, and for nobody else: it is slow to import."""
    if "torch.distributed.tensor" not in sys.modules:
        return
    from torch.distributed.tensor.experimental import register_sharding

    operators = torch.ops.manualgrad
    register_sharding(operators.linear_act_forward.default)(_forward(1))
    register_sharding(operators.linear_act_forward_z.default)(_forward(2))
    register_sharding(operators.bp1_output_error.default)(_bp1)
    register_sharding(operators.bp2_propagate_error.default)(_bp2)
    register_sharding(operators.output.default)(_output)


def _placements() -> tuple[Any, Any, Any, Any]:
    """(whole, by rows, by columns, summands)"""
    from torch.distributed.tensor import Partial, Replicate, Shard

    return Replicate(), Shard(0), Shard(1), Partial()


def _forward(results: int) -> Any:
    def rule(x: Any, act: str, weight: Any, bias: Any) -> list[Rule]:
        whole, rows, columns, summands = _placements()
        whole_b, rows_b = (None, None) if bias is None else (whole, rows)
        found: list[Rule] = [
            ([whole] * results, [whole, None, whole, whole_b]),
            ([rows] * results, [rows, None, whole, whole_b]),
            ([columns] * results, [whole, None, rows, rows_b]),
        ]
        if act.partition("@")[0] == "identity" and bias is None:
            found.append(([summands] * results, [columns, None, columns, None]))
        return found

    return rule


def _bp1(grad_a: Any, s: Any, act: str) -> list[Rule]:
    whole, rows, columns, summands = _placements()
    alike: list[Rule] = [([p], [p, p, None]) for p in (whole, rows, columns)]
    return [*alike, ([summands], [summands, whole, None])]


def _bp2(delta: Any, weight: Any, s: Any, skip: Any, act: str) -> list[Rule]:
    whole, rows, columns, summands = _placements()

    def at(result: Any, delta: Any, weight: Any, s: Any) -> Rule:
        return [result], [delta, weight, s, None if skip is None else result, None]

    return [
        at(whole, whole, whole, whole),
        at(rows, rows, whole, rows),
        at(columns, whole, columns, columns),
        at(summands, columns, rows, whole),  # sigma' is a factor: each summand may take it
    ]


def _output(s: Any, act: str) -> list[Rule]:
    whole, rows, columns, _ = _placements()
    return [([p], [p, None]) for p in (whole, rows, columns)]
