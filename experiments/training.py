"""Stochastic gradient descent, and what is asked of a network on the way."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from experiments.networks import gradients


def batches(examples: int, batch: int, seed: int) -> Iterator[Tensor | None]:
    """Numbers of examples, in a new order each epoch; None: all of them. A ragged rest is left."""
    draw = torch.Generator().manual_seed(seed)
    while True:
        if batch >= examples:
            yield None
            continue
        order = torch.randperm(examples, generator=draw)
        yield from order[: examples - examples % batch].view(-1, batch)


def train(
    net: Any,
    x: Tensor,
    y: Tensor,
    *,
    batch: int,
    learning_rate: float,
    updates: int,
    cost: str = "cross_entropy",
    momentum: float = 0.0,
    seed: int = 0,
    schedule: Callable[[float], float] = lambda done: 1.0,
    stop: Callable[[int], bool] | None = None,
    every: Callable[[int], int] = lambda update: update + 1,
) -> int:
    """At most that many updates W <- W - eta grad_W C (eq. 7); how many were made.

    schedule: factor of the learning rate, by how much of the updates is done, from 0 to below 1.
    stop: asked after update 1, then after every(1), ...; True ends the training. A loss that is no
    number any more ends it too.
    """
    parameters, cost_of = list(net.parameters()), getattr(net.ops, cost)
    velocities: list[Tensor] = []
    asked = 1
    for update, chosen in zip(range(1, updates + 1), batches(len(x), batch, seed), strict=False):
        inputs, labels = (x, y) if chosen is None else (x[chosen], y[chosen])
        loss = cost_of(net(inputs), labels)
        steps = gradients(net, loss)
        with torch.no_grad():
            if momentum:
                velocities = velocities or [torch.zeros_like(p) for p in parameters]
                for velocity, gradient in zip(velocities, steps, strict=True):
                    velocity.mul_(momentum).add_(gradient)
                steps = velocities
            rate = learning_rate * schedule((update - 1) / updates)
            for parameter, step in zip(parameters, steps, strict=True):
                parameter.sub_(step, alpha=rate)
        if update == asked:
            if not math.isfinite(loss.item()) or (stop is not None and stop(update)):
                return update
            asked = max(update + 1, every(update))
    return updates


@torch.no_grad()
def loss_of(net: Any, x: Tensor, y: Tensor, cost: str = "cross_entropy") -> float:
    return getattr(net.ops, cost)(net(x), y).item()


@torch.no_grad()
def accuracy(net: Any, x: Tensor, y: Tensor) -> float:
    """Per cent of the examples whose largest output is their label's."""
    return 100 * (net(x).argmax(1) == y).double().mean().item()
