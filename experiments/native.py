"""The names of manualgrad that experiments call, in PyTorch's operations, under its autograd.

An experiment computes with one of two modules of equal names, manualgrad or this one: a table made
with both is the proof that one can stand for the other.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import manualgrad as mg

binary_cross_entropy_with_logits = F.binary_cross_entropy_with_logits
cross_entropy = F.cross_entropy
mse_loss = F.mse_loss

ACTIVATIONS = {
    "identity": lambda z: z,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
_captures: list["capture"] = []


def linear_act(input: Tensor, weight: Tensor, bias: Any = None, activation: str = "identity"):
    """As manualgrad.linear_act."""
    return ACTIVATIONS[activation](_affine(input, weight, bias))


def mlp(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Sequence[str],
    *,
    skips: Iterable[mg.Skip] = (),
    recompute: bool = False,
) -> Tensor:
    """As manualgrad.mlp; recompute by torch.utils.checkpoint."""
    if recompute:
        layers = functools.partial(
            mlp, weights=weights, biases=biases, activations=activations, skips=skips
        )
        found: Any = checkpoint(layers, input, use_reentrant=False, preserve_rng_state=False)
        return found
    ends = {skip.end: skip for skip in skips}
    zs, outputs = [input], [input]
    for l, (weight, bias, name) in enumerate(zip(weights, biases, activations, strict=True), 1):
        z, sigma, skip = _affine(outputs[-1], weight, bias), ACTIVATIONS[name], ends.get(l)
        if skip is not None and skip.kind != "out":
            z = (zs if skip.kind == "pre" else outputs)[skip.start] + skip.scale * z
        a = sigma(z)
        if skip is not None and skip.kind == "out":
            a = outputs[skip.start] + skip.scale * a
        zs.append(z)
        outputs.append(a)
    return outputs[-1]


def _affine(a: Tensor, weight: Tensor, bias: Any) -> Tensor:
    z = F.linear(a, weight, bias)
    for one in _captures:
        one.hear(a, z)
    return z


class Use(NamedTuple):
    """A layer as it was used: what came in, and dC/d(W a + b)."""

    a: Tensor
    delta: Tensor


class capture:
    """As manualgrad.capture of a loss that is a mean, each example's gradient held in memory."""

    def __init__(self, model: Any = None) -> None:
        self._model, self._uses = model, []

    def __enter__(self) -> "capture":
        _captures.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _captures.remove(self)

    def hear(self, a: Tensor, z: Tensor) -> None:
        z.retain_grad()
        self._uses.append((a.detach(), z))

    @property
    def layers(self) -> list[Use]:
        return [Use(a, z.grad) for a, z in self._uses]

    def delta_norms(self) -> list[float]:
        return [use.delta.norm().item() for use in self.layers]

    def _gradients(self) -> Tensor:
        """Each example's own gradient, (examples, parameters), where each layer is used once."""
        parts = []
        for a, z in self._uses:
            delta = z.grad * len(z)
            parts += [torch.einsum("mi,mj->mij", delta, a).flatten(1), delta]
        return torch.cat(parts, 1)

    def grad_gram(self) -> Tensor:
        gradients = self._gradients()
        return gradients @ gradients.T

    def per_example_norms(self) -> Tensor:
        return self._gradients().norm(dim=1)

    def noise_scale(self) -> float:
        """tr(Sigma) / |G|^2, from the covariance of a sample."""
        gradients = self._gradients()
        mean = gradients.mean(0)
        trace = (gradients - mean).square().sum() / (len(gradients) - 1)
        return (trace / mean.square().sum()).item()
