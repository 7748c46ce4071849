"""Products that a compiled graph holds whole: operators for those of manualgrad.products.

torch.compile leaves products to ATen and fuses what is elementwise around them. Where ours are
faster it had better leave them to us, and fuse all the same.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from manualgrad import products

LIBRARY = torch.library.Library("manualgrad", "FRAGMENT")


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return products.linear(x, weight, bias)


def _error_below(delta: Tensor, weight: Tensor) -> Tensor:
    return products.error_below(delta, weight)


def _weight_gradient(delta: Tensor, a: Tensor) -> Tensor:
    return products.weight_gradient(delta, a, None)


# signature: (kernel, fake)
OPERATORS: dict[str, tuple[Callable[..., Tensor], Callable[..., Any]]] = {
    "linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor": (
        _linear,
        lambda x, weight, bias: x.new_empty(x.shape[0], weight.shape[0]),
    ),
    "error_below(Tensor delta, Tensor weight) -> Tensor": (
        _error_below,
        lambda delta, weight: delta.new_empty(delta.shape[0], weight.shape[1]),
    ),
    "weight_gradient(Tensor delta, Tensor a) -> Tensor": (
        _weight_gradient,
        lambda delta, a: delta.new_empty(delta.shape[1], a.shape[1]),
    ),
}

for _signature, (_kernel, _fake) in OPERATORS.items():
    _name = _signature.partition("(")[0]
    LIBRARY.define(_signature, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"manualgrad::{_name}", _fake, lib=LIBRARY)
