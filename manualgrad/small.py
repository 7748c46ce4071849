"""Small chains on a CPU: the equations on ATen's kernels, and as little else as there can be.

Where a layer's products take some microseconds each, so does what Python does around them. Here
nothing is left to be decided layer by layer: no skips, no tiles, no memory that is worth reusing.
The calls are those that manualgrad.aten makes, and so are the bits.

What backward wants is kept without being made an output of the node. Only gradients of gradients
miss that: they walk forward once more. So whoever takes them gets no second chain of this kind.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from manualgrad import backends, compat, gates, half_precision, one_pass, products
from manualgrad.activations import Activation
from manualgrad.chain import Chain
from manualgrad.keeping import plain_on_cpu

REQUIRES_GRAD = operator.attrgetter("requires_grad")
BYTES = 1 << 20  # of x, and of each a^l, at most
LARGE = dict.fromkeys(half_precision.DTYPES, min(half_precision.LEAST.values()))
LARGE[torch.float32] = products.LARGE
"""Multiplications of a product, from which on manualgrad.products may be better at it."""
gradients_were_differentiated = False
"""Of such a chain, in this process: it will happen again, and is faster with hidden outputs."""

MODIFIED = (
    "manualgrad.mlp: a weight or a bias was modified by an inplace operation between the forward "
    "pass and a gradient of a gradient, which needs it as it was"
)


def takes(chain: Chain, x: Tensor, tensors: Sequence[Any]) -> bool:
    """Whether a chain of plain tensors, W^1, b^1, ..., W^L, b^L, is small.  x (M, K).

    With a frozen weight it is not: some a^l would be kept for nothing.
    """
    if chain.branches or chain.recompute or gradients_were_differentiated:
        return False
    if backends.mode() != "auto" or compat.dispatch_modes_active():
        return False
    if not plain_on_cpu(x, tensors) or x.nbytes > BYTES:
        return False
    M, size = x.shape[0], x.element_size()
    widths = [weight.shape[0] for weight in tensors[::2] if weight.requires_grad]
    widest = max(widths, default=0)
    if len(widths) < chain.depth or min(widths) * M == 0 or M * widest * size > BYTES:
        return False
    return M * sum(widths) * size <= gates.LITTLE


class Seen:
    """A call that small chains take. The same again, the rule in training, needs no second look.

    The same: a module's chain, the same tensors in the same shapes, an input of the same shape and
    dtype, and nothing going on in torch that wants to know of each operation. What is left to
    F.linear is to raise for tensors of another dtype or device by now.

    about: gates.about its acts. large, tanh: manualgrad.products, or its linear_tanh, may be better
    at some of its products than F.linear and torch.mm are.
    """

    __slots__ = "about", "dtype", "large", "shape", "shapes", "tanh", "tensors"

    def __init__(self, acts: tuple[Activation, ...], x: Tensor, tensors: Sequence[Any]):
        self.shape, self.dtype, self.about = x.shape, x.dtype, gates.about(acts)
        self.tensors, self.shapes = tensors, _shapes(tensors)
        M, weights, single = x.shape[0], tensors[::2], x.dtype is torch.float32
        self.large = M * max(map(Tensor.numel, weights)) >= LARGE.get(x.dtype, math.inf)
        self.tanh = any(sigma is torch.tanh_ for sigma, *_ in kernels(acts)) and (
            not single or M * max(map(len, weights)) >= products.TANH
        )

    def again(self, x: Any, tensors: Sequence[Any]) -> bool:
        """Whether this is that call. Raises AttributeError and RuntimeError for no plain x."""
        return (
            len(tensors) == len(self.tensors)
            and all(map(operator.is_, tensors, self.tensors))
            and plain_on_cpu(x, tensors)
            and x.dtype is self.dtype
            and x.shape == self.shape
            and x.layout is torch.strided
            and _shapes(tensors) == self.shapes
            and all(map(REQUIRES_GRAD, tensors[::2]))
            and backends.mode() == "auto"
            and not (gradients_were_differentiated or compat.observed())
            and torch.is_grad_enabled()
        )

    def __reduce__(self):
        return type(None), ()  # a copy has seen nothing

    def has_large_products(self) -> bool:
        """Whether manualgrad.products may be better at some of the chain's products."""
        if self.dtype is torch.float32:
            return self.large and products.onednn_wins_here()
        return self.large and half_precision.may_take(self.tensors[0])


def _shapes(tensors: Sequence[Any]) -> list[torch.Size | None]:
    return [None if tensor is None else tensor.shape for tensor in tensors]


Kernels = tuple[Callable[..., Tensor] | None, Callable[..., Tensor] | None, bool]


@functools.lru_cache(maxsize=256)
def kernels(acts: tuple[Activation, ...]) -> list[Kernels]:
    """Of each layer 0..L: sigma(z), adjoint * sigma'(s), and whether s is z.  None: identity."""
    return [
        (None, None, False) if act.is_identity else (*one_pass.kernels_of(act), act.hides_z)
        for act in acts
    ]


def forward(
    acts: tuple[Activation, ...], x: Tensor, tensors: Sequence[Any], large: bool, tanh: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """a^0..a^L and s^0..s^L.  acts[0..L]; x = a^0 (M, N_0); tensors W^1, b^1, ..., W^L, b^L.

    large, tanh: as Seen says.
    """
    a, s, z, of_layers = [x], [x], x, kernels(acts)[1:]
    linear = products.linear if large or x.dtype is torch.bfloat16 else F.linear
    for (sigma, _, keeps_z), W, b in zip(of_layers, tensors[::2], tensors[1::2], strict=True):
        above = products.linear_tanh(x, W, b) if tanh and sigma is torch.tanh_ else None
        if above is None:
            z = linear(x, W, b)
            above = sigma(z) if sigma else z
        x = above
        a.append(x)
        s.append(z if keeps_z else x)
    return a, s


def backward(
    acts: tuple[Activation, ...], W: Sequence[Any], a: list[Any], s: list[Any],
    needs: Sequence[bool], grad_a: Tensor, large: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """BP1, then BP3, BP4 and BP2 of each layer.  W^1..W^L, a^0..a^{L-1}, s^0..s^L; grad_a (M, N_L).

    needs, and the gradients that are returned: of x, of the chain, none, and of W^1, b^1, ...
    a and s are emptied on the way.
    """
    of_layers, lowest, l = kernels(acts), needs.index(True), len(W)
    error_below = products.error_below if large else torch.mm
    weight_gradient = products.weight_gradient if large else _weight_gradient
    grads: list[Tensor | None] = [None] * len(needs)
    _, times_prime, _ = of_layers[l]
    s_below = s.pop()
    delta = times_prime(grad_a, s_below) if times_prime else grad_a  # BP1
    while True:
        weight, bias, l = 2 * l, 2 * l + 1, l - 1
        a_below, s_below = a.pop(), s.pop()
        if needs[bias]:
            grads[bias] = delta.sum(0)  # BP3
        if needs[weight]:
            grads[weight] = weight_gradient(delta, a_below)  # BP4
        if lowest >= weight:
            return tuple(grads)
        _, times_prime, _ = of_layers[l]
        delta = error_below(delta, W[l])
        delta = times_prime(delta, s_below) if times_prime else delta  # BP2
        if l == 0:
            return delta, *grads[1:]


def _weight_gradient(delta: Tensor, a: Tensor) -> Tensor:
    return delta.t().mm(a)


def versions(tensors: Sequence[Tensor | None]) -> list[int]:
    """Of those tensors that backward may not have kept, and autograd not look at: W^1, b^1, ..."""
    return [t._version for t in (tensors[0], *tensors[1::2]) if t is not None]
