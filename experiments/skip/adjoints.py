"""A chain written out node by node, so that each path's adjoint can be seen at every fork.

Under the backend manualgrad the graph is recorded on mg.dag's tape, whose hand-derived rules bring
the adjoints down; under autograd, skip and branch start at copies of their own, leaves of a kind.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

import manualgrad as mg
from experiments import native
from experiments.networks import Network

Paths = Callable[[Tensor], tuple[Tensor, Tensor]]


class Passed(NamedTuple):
    """The adjoints at one fork: what each path brought, h's own, and that of the sum above."""

    skip: Tensor
    branch: Tensor
    own: Tensor
    above: Tensor


@dataclass
class Walk:
    """What forward leaves: per fork (h, skip's start, branch's start, sum); each W a + b."""

    forks: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)
    affine: list[Tensor] = field(default_factory=list)
    output: Any = None


@dataclass
class Adjoints:
    """forks: from the input up. deltas: dC/d(W^l a + b^l), l = 1.. last: of the topmost h."""

    forks: list[Passed]
    deltas: list[Tensor]
    last: Tensor


def written_out(net: Network, kind: str, x: Tensor, fork: Paths, keep=lambda v: None) -> Walk:
    """net's forward pass in single operations. fork: where skip and branch begin, given h."""
    sigma, walk = native.ACTIVATIONS[net.activations[0]], Walk()

    def layer(a: Tensor, l: int) -> Tensor:
        u = F.linear(a, net.weights[l - 1], net.biases[l - 1])
        keep(u)
        walk.affine.append(u)
        return u

    u = layer(x, 1)
    h = u if kind == "pre" else sigma(u)
    for one in net.skips:
        keep(h)
        skip, branch = fork(h)
        if kind == "pre":
            total = out = skip + one.scale * layer(sigma(branch), one.end)
        elif kind == "post":
            total = skip + one.scale * layer(branch, one.end)
            out = sigma(total)
        elif kind == "out":
            total = out = skip + one.scale * sigma(layer(branch, one.end))
        else:
            inner = sigma(layer(branch, one.end - 1))
            total = out = skip + one.scale * layer(inner, one.end)
        keep(total)
        walk.forks.append((h, skip, branch, total))
        h = out
    keep(h)
    walk.forks.append((h, h, h, h))
    walk.output = layer(sigma(h) if kind == "pre" else h, len(net.weights))
    return walk


def by_tape(net: Network, kind: str, x: Tensor, y: Tensor) -> Adjoints:
    """By mg.dag: reverse mode by hand."""
    with mg.dag.record() as tape:
        walk = written_out(net, kind, x, lambda h: (h, h))
        cost = mg.cross_entropy(walk.output, y)
    tape.backward(cost)
    passed = []
    for h, _, _, total in walk.forks[:-1]:
        senders = [node.name for node in tape.successors(h)]
        sent = tape.contributions(h)
        skip = senders.index("add")  # the sum is the skip's only operation
        passed.append(Passed(sent[skip], sent[1 - skip], tape.adjoint(h), tape.adjoint(total)))
    deltas = [tape.adjoint(u) for u in walk.affine]
    return Adjoints(passed, deltas, tape.adjoint(walk.forks[-1][0]))


def by_engine(net: Network, kind: str, x: Tensor, y: Tensor) -> Adjoints:
    """By torch.autograd, with a copy of h for each path."""

    def copies(h: Tensor) -> tuple[Tensor, Tensor]:
        skip, branch = h.clone(), h.clone()
        skip.retain_grad()
        branch.retain_grad()
        return skip, branch

    walk = written_out(net, kind, x, copies, keep=Tensor.retain_grad)
    native.cross_entropy(walk.output, y).backward()
    net.zero_grad()
    passed = [Passed(*(_grad(v) for v in (s, b, h, total))) for h, s, b, total in walk.forks[:-1]]
    return Adjoints(passed, [_grad(u) for u in walk.affine], _grad(walk.forks[-1][0]))


def _grad(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad
