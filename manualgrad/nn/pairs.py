"""A layer and its activation as one operation, for as long as both stand where they were found.

The layer computes both and the activation passes on what it gets. Each asks in each call whether
the other is there still; where it is not, each does its own work.
"""

import copy
import weakref
from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import Tensor, nn

from manualgrad import compat, functions
from manualgrad.activations import Activation
from manualgrad.functional import linear_act, run
from manualgrad.nn.swaps import Constants, Swapped, still_has


class Pairing:
    """The layers that were fused with one activation, with the activation, and where all stand.

    places: (module, name of an attribute) for each. constants: the activation module's.

    It holds the modules by weak references: a layer keeps no model alive, and one that was copied
    or unpickled without its model stands nowhere.
    """

    def __init__(self, places: Sequence[tuple[nn.Module, str]], constants: Constants):
        self.__setstate__((places, constants))

    def stands(self) -> bool:
        """Every place still holds what was fused, nothing of it changed, and no hook would see."""
        for holder_of, name in self.places:
            holder = holder_of()
            held = holder and (holder._modules.get(name) or holder.__dict__.get(name))
            if not isinstance(held, Paired) or held._fused_pairing is not self or held.is_seen():
                return False
        return bool(self.places) and not compat.global_module_hooks()

    def __getstate__(self) -> Any:
        places = [(holder_of(), name) for holder_of, name in self.places]
        return [] if any(holder is None for holder, _ in places) else places, self.constants

    def __setstate__(self, state: Any) -> None:
        places, self.constants = state
        self.places = tuple((weakref.ref(holder), name) for holder, name in places)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Pairing":
        """With the modules, if one of them is being copied; a layer alone takes none along."""
        memo[id(self)] = made = Pairing((), ())
        places, constants = self.__getstate__()
        if any(id(holder) in memo for holder, _ in places):
            made.__setstate__(copy.deepcopy((places, constants), memo))
        return made


class Paired:
    """What takes part in a pairing: a module of another class, or what stands for a function."""

    _fused_pairing: Pairing

    def stands(self) -> bool:
        return self._fused_pairing.stands()

    def is_seen(self) -> bool:
        """Someone would see that it does another's work, or changed what that work is."""
        return False


class FusedLayer(Paired, Swapped):
    """A linear layer that also computes the activation that follows it."""

    _fused_state = ("_fused_activation", "_fused_pairing")
    _fused_activation: Activation

    def is_seen(self: Any) -> bool:
        return bool(self._forward_hooks or self._backward_hooks or self._backward_pre_hooks)

    def extra_repr(self) -> str:
        own = super().extra_repr()  # type: ignore
        return f"{own}, activation={self._fused_activation}" if self.stands() else own


class FusedLinear(FusedLayer):
    """Of torch.nn.Linear."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.stands():
            return super().forward(input)  # type: ignore
        layer = cast(nn.Linear, self)
        return run(
            "nn.Linear",
            functions.linear_act,
            input,
            self._fused_activation,
            compat.weight_and_bias(layer),
        )


class FusedConv1D(FusedLayer):
    """Of the layer of GPT-2, whose weight is (inputs, outputs)."""

    weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if not self.stands():
            return super().forward(x)  # type: ignore
        return linear_act(x, self.weight.t(), self.bias, self._fused_activation)


class PassedOver(Paired, Swapped):
    """An activation module whose work the layer before it has done: the input is the output."""

    _fused_state = ("_fused_pairing",)

    def is_seen(self: Any) -> bool:
        hooks = self._forward_hooks or self._backward_hooks or self._backward_pre_hooks
        seen = hooks or self._forward_pre_hooks
        return bool(seen) or not still_has(self, self._fused_pairing.constants)

    def forward(self, input: Tensor) -> Tensor:
        return input if self.stands() else super().forward(input)  # type: ignore

    def extra_repr(self) -> str:
        own = super().extra_repr()  # type: ignore
        if not self.stands():
            return own
        return f"{own}, computed before" if own else "computed before"


class HeldFunction(Paired):
    """Stands where a module held an activation function whose work the layer before has done."""

    def __init__(self, function: Callable[..., Any], pairing: Pairing):
        self.function, self._fused_pairing = function, pairing

    def __call__(self, input: Tensor) -> Tensor:
        return input if self.stands() else self.function(input)

    def __repr__(self) -> str:
        return f"{self.function!r}, computed before" if self.stands() else repr(self.function)
