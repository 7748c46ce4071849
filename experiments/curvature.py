"""How curved a loss is around a network's parameters: H v, its spectrum, sharpness, slices.

The parameters are one vector, `point` (P,). H v is the gradient's own derivative, taken through
our hand-derived backward a second time; by_differences has it from gradients alone.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from experiments.networks import gradients

Product = Callable[[Tensor], Tensor]  # v -> H v


class Landscape:
    """The cost of fixed examples as a function of all of a network's parameters.

    net: it is copied, and its ``ops`` is who computes. cost: "cross_entropy" or "mse_loss".
    dtype: of the copy. What is asked of derivatives wants float64: in float32 a difference of
    gradients is of rounding's size.
    """

    def __init__(
        self, net: Any, cost: str, x: Tensor, y: Tensor, dtype: torch.dtype = torch.float64
    ) -> None:
        memo = {id(net.ops): net.ops}  # ops is a Python module: no copy of it can be made
        self.net = copy.deepcopy(net, memo).to(dtype)
        self._cost = getattr(net.ops, cost)
        self._x, self._y = x.to(dtype), y.to(dtype) if y.is_floating_point() else y
        self.origin = _flat(self.net.parameters()).detach().clone()

    def loss(self, point: Tensor | None = None) -> float:
        with self._at(point), torch.no_grad():
            return self._value().item()

    def gradient(self, point: Tensor | None = None) -> tuple[float, Tensor]:
        """The loss, and its gradient (P,)."""
        with self._at(point):
            value = self._value()
            return value.item(), _flat(gradients(self.net, value))

    def product(self) -> Product:
        """v -> H v at the origin, by double backward."""
        parameters = list(self.net.parameters())
        grads = torch.autograd.grad(self._value(), parameters, create_graph=True)

        def of(v: Tensor) -> Tensor:
            pieces = self._pieces(v)
            return _flat(torch.autograd.grad(grads, parameters, pieces, retain_graph=True))

        return of

    def by_differences(self, step: float = 1e-5) -> Product:
        """v -> H v at the origin, by central differences of gradients step |v| to either side.

        The step is small enough to cross hardly a kink of ReLU, and large enough for float64.
        """

        def of(v: Tensor) -> Tensor:
            unit = v / v.norm()
            ahead, behind = (self.gradient(self.origin + s * unit)[1] for s in (step, -step))
            return (ahead - behind) * (v.norm() / (2 * step))

        return of

    def direction(self, seed: int) -> Tensor:
        """A random direction (P,), filter-normalised (Li et al. 2018).

        The part of each neuron, a row of a weight, is as long as the neuron's own weights, so that
        a step of 1 is as large for the network whatever its layers' scales; biases stay.
        """
        draw, pieces = torch.Generator().manual_seed(seed), []
        for weight in self._pieces(self.origin):
            one = torch.randn(weight.shape, generator=draw, dtype=torch.float64).to(weight)
            if weight.dim() < 2:
                one.zero_()
            else:
                one *= weight.norm(dim=1, keepdim=True) / one.norm(dim=1, keepdim=True)
            pieces.append(one)
        return _flat(pieces)

    def slice(self, first: Tensor, second: Tensor, steps: Sequence[float]) -> list[list[float]]:
        """The loss at origin + a first + b second: a row per a of steps, a column per b."""
        return [[self.loss(self.origin + a * first + b * second) for b in steps] for a in steps]

    def around(self, radius: float, directions: int, seed: int = 0) -> list[float]:
        """The loss at that distance in so many filter-normalised directions."""
        return [
            self.loss(self.origin + radius * self.direction(seed + i)) for i in range(directions)
        ]

    def _value(self) -> Tensor:
        return self._cost(self.net(self._x), self._y)

    def _pieces(self, vector: Tensor) -> list[Tensor]:
        parameters = list(self.net.parameters())
        pieces = vector.split([p.numel() for p in parameters])
        return [piece.view_as(p) for piece, p in zip(pieces, parameters, strict=True)]

    @contextlib.contextmanager
    def _at(self, point: Tensor | None) -> Iterator[None]:
        if point is not None:
            self._move(point)
        try:
            yield
        finally:
            if point is not None:
                self._move(self.origin)

    @torch.no_grad()
    def _move(self, point: Tensor) -> None:
        for parameter, piece in zip(self.net.parameters(), self._pieces(point), strict=True):
            parameter.copy_(piece)


def _flat(tensors: Any) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def lambda_max(product: Product, like: Tensor, seed: int = 0, products: int = 20) -> float:
    """The largest eigenvalue of H, by the Lanczos method from a random vector.

    It is power iteration with a memory: of all combinations of v, H v, H^2 v, ... the one that is
    curved most. Where the largest eigenvalues are close, as they are at the edge of stability,
    power iteration stops short of the first; like: a vector of H's kind.
    """
    v = _normal(like, seed)
    basis = [v / v.norm()]
    diagonal, beside = [], []
    for _ in range(min(products, like.numel())):
        v = product(basis[-1])
        diagonal.append((v @ basis[-1]).item())
        if not math.isfinite(diagonal[-1]):
            return math.nan
        known = torch.stack(basis)
        for _ in range(2):  # once more: rounding in the first pass
            v = v - known.T @ (known @ v)
        beside.append(v.norm().item())
        if beside[-1] <= 1e-12 * abs(diagonal[0]):  # no new direction is left
            break
        basis.append(v / beside[-1])
    beside = beside[: len(diagonal) - 1]
    small = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    return float(np.linalg.eigvalsh(small)[-1])


def trace(product: Product, like: Tensor, seed: int = 0, probes: int = 10) -> float:
    """tr H = E v.H v over vectors v of random signs (Hutchinson)."""
    draw = torch.Generator().manual_seed(seed)
    total = 0.0
    for _ in range(probes):
        signs = torch.randint(0, 2, like.shape, generator=draw).to(like) * 2 - 1
        total += (signs @ product(signs)).item()
    return total / probes


def disagreement(landscape: Landscape, seed: int = 0) -> float:
    """|H v - H v| / |H v| of a random v: by double backward, and by differences of gradients."""
    v = _normal(landscape.origin, seed)
    exact = landscape.product()(v)
    return ((exact - landscape.by_differences()(v)).norm() / exact.norm()).item()


def sharpness(landscape: Landscape, epsilon: float, iterations: int = 10) -> float:
    """Keskar et al. 2017, metric 2.1 in all of the space: the largest rise, in per cent.

    100 (max C(w + z) - C(w)) / (1 + C(w)) over |z_i| <= epsilon (|w_i| + 1), the maximum as far as
    so many iterations of L-BFGS-B come.
    """
    w = landscape.origin
    if not math.isfinite(landscape.loss()):
        return math.nan

    def negative(z: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = landscape.gradient(w + torch.from_numpy(z).to(w))
        return -value, -gradient.double().cpu().numpy()

    bounds = (epsilon * (w.abs() + 1)).double().cpu().numpy()
    found = minimize(
        negative,
        np.zeros(len(w)),
        jac=True,
        method="L-BFGS-B",
        bounds=np.stack([-bounds, bounds], 1),
        options={"maxiter": iterations},
    )
    before = landscape.loss()
    return 100 * (-found.fun - before) / (1 + before)


def _normal(like: Tensor, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=draw, dtype=torch.float64).to(like)
