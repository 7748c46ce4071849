"""Residual connections: which layers of an MLP are branches, and x + scale block(x) as a module."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from manualgrad import compat, functions
from manualgrad.chain import Chain, Skip, check_scale, is_tensor
from manualgrad.functional import run
from manualgrad.nn.branches import keep_scale, shown_scale
from manualgrad.nn.linear import Linear
from manualgrad.nn.mlp import MLP

__all__ = ["Residual"]


class Residual(nn.Module):
    """x + branch_scale * block(x), the plain residual connection (He et al. 2016a).

    block: any module whose output has its input's shape. branch_scale: a number, or a Parameter of
    shape (), (1,) or (features,) to learn it.

    A manualgrad.nn.Linear or a plain manualgrad.nn.MLP is fused with its skip into one node of the
    graph; any other block is called, and PyTorch adds the skip.

    forward: input (..., features) -> (..., features).
    Raises TypeError for a block that is no module, ValueError for a block of another width.
    """

    def __init__(self, block: nn.Module, branch_scale: float | Tensor = 1.0) -> None:
        super().__init__()
        if not isinstance(block, nn.Module):
            raise TypeError(f"manualgrad.nn.Residual: block must be a module, got {block!r}")
        check_scale("manualgrad.nn.Residual", branch_scale)
        self.block = block
        keep_scale(self, branch_scale)

    def forward(self, input: Tensor) -> Tensor:
        layers = chain_of(self.block)
        if layers is None:
            return self._added(input)
        acts, params, recompute = layers
        skip = Skip(0, len(acts) - 1, "out", cast(Any, self.branch_scale))
        chain = Chain(acts, recompute, (skip,))
        return run("nn.Residual", functions.mlp, input, chain, params, chain.scales)

    def _added(self, input: Tensor) -> Tensor:
        branch, scale = self.block(input), cast(Any, self.branch_scale)
        if isinstance(branch, Tensor):
            self._check(input, branch, scale)
        elif not is_tensor(branch):
            raise TypeError(
                f"manualgrad.nn.Residual: block gives a {type(branch).__name__}; a skip needs a "
                f"tensor of the input's shape"
            )
        return input + scale * branch

    def _check(self, input: Tensor, branch: Tensor, scale: Any) -> None:
        if branch.shape != input.shape:
            raise ValueError(
                f"manualgrad.nn.Residual: input has shape {tuple(input.shape)}, but block gives "
                f"{tuple(branch.shape)}; a skip needs equal shapes"
            )
        if isinstance(scale, Tensor) and scale.shape not in ((), (1,), input.shape[-1:]):
            raise ValueError(
                f"manualgrad.nn.Residual: branch_scale has shape {tuple(scale.shape)}, but input "
                f"has {input.shape[-1]} features; give a number, or shape (), (1,) or theirs"
            )

    def extra_repr(self) -> str:
        return shown_scale(self.branch_scale)


def chain_of(block: nn.Module) -> tuple[Any, Sequence[Any], bool] | None:
    """(activations, parameters, recompute) of a block that is no more than a chain, else None."""
    if compat.global_module_hooks():
        return None
    if type(block) is Linear and compat.is_its_weights(block, Linear.forward):
        return (functions.IDENTITY, block.activation), compat.weight_and_bias(block), False
    if type(block) is MLP and block.residual is None:
        return block.as_chain() if compat.is_its_weights(block, MLP.forward) else None
    return None
