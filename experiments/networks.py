"""Networks that an experiment trains: their Parameters, and who computes with them."""

import itertools
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import manualgrad as mg
from experiments import native

# standard deviation of a weight of N outputs and K inputs, by the rule's name
INITS = {
    "he": lambda N, K: math.sqrt(2 / K),  # He et al. 2015
    "lecun": lambda N, K: math.sqrt(1 / K),
    "glorot": lambda N, K: math.sqrt(2 / (N + K)),  # Glorot and Bengio 2010
    "normal": lambda N, K: 1.0,  # biases too, as in Nielsen's first chapters
    "nielsen": lambda N, K: math.sqrt(1 / K),  # with the biases of "normal": his later chapters
}
DRAWN_BIASES = ("normal", "nielsen")  # N(0, 1); the others' are zeros


class Network(nn.Module):
    """A chain of layers, L weights and biases; from one seed the same ones on every backend.

    ops: manualgrad, or experiments.native. sizes: the widths, input first. activation: of the
    hidden layers, one name for all or one each. init: a name of INITS; "he" draws the last layer,
    which has no ReLU, as "lecun". recompute: keep the input alone, and run the layers once more in
    backward.
    """

    def __init__(
        self,
        ops: ModuleType,
        sizes: Sequence[int],
        activation: str | Sequence[str] = "relu",
        *,
        init: str = "he",
        skips: Sequence[mg.Skip] = (),
        recompute: bool = False,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: Any = "cpu",
    ) -> None:
        super().__init__()
        self.ops, self.skips, self.recompute = ops, tuple(skips), recompute
        draw = torch.Generator().manual_seed(seed)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        depth = len(sizes) - 1
        hidden = [activation] * (depth - 1) if isinstance(activation, str) else activation
        self.activations = [*hidden, "identity"]
        for l, (K, N) in enumerate(itertools.pairwise(sizes), 1):
            rule = INITS["lecun" if init == "he" and l == depth else init]
            weight = torch.randn(N, K, generator=draw, dtype=torch.float64) * rule(N, K)
            bias = torch.zeros(N, dtype=torch.float64)
            if init in DRAWN_BIASES:
                bias = torch.randn(N, generator=draw, dtype=torch.float64)
            self.weights.append(nn.Parameter(weight.to(device, dtype)))
            self.biases.append(nn.Parameter(bias.to(device, dtype)))

    def forward(self, x: Tensor) -> Tensor:
        weights, biases = list(self.weights), list(self.biases)
        how: dict[str, Any] = {"skips": self.skips, "recompute": self.recompute}
        return self.ops.mlp(x, weights, biases, self.activations, **how)

    @property
    def size(self) -> int:
        """P, the number of its parameters."""
        return sum(p.numel() for p in self.parameters())


def gradients(net: nn.Module, loss: Tensor) -> list[Tensor]:
    """Of the loss, with respect to net's parameters in their order."""
    return list(torch.autograd.grad(loss, list(net.parameters())))


def gradient_difference(net: Any, cost: str, x: Tensor, y: Tensor) -> float:
    """The largest |ours - autograd's| over net's gradients, relative to the largest entry.

    net: a module whose ``ops`` is who computes. cost: "cross_entropy" or "mse_loss".
    """
    before, found = net.ops, []
    for ops in (mg, native):
        net.ops = ops
        found.append(gradients(net, getattr(ops, cost)(net(x), y)))
    net.ops = before
    ours, theirs = (torch.cat([g.flatten() for g in grads]) for grads in found)
    if not bool(theirs.isfinite().all()):  # diverged: of both, or they differ
        return 0.0 if torch.equal(ours.isfinite(), theirs.isfinite()) else math.inf
    largest = theirs.abs().max().item()
    return (ours - theirs).abs().max().item() / largest if largest else ours.abs().max().item()
