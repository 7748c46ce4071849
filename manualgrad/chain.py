"""What a chain of layers is besides its tensors: activations, skips, and who shares a parameter.

    "pre"   z^end = z^start + scale (W a + b)          He et al. 2016b, "Identity mappings"
    "post"  a^end = sigma(a^start + scale (W a + b))   He et al. 2016a, "Deep residual learning"
    "out"   a^end = a^start + scale sigma(W a + b)

with W, b the parameters of layer ``end`` and a = a^{end-1}. In the first two, and in "out" without
an activation, a branch scaled by s is a layer whose parameters are s W and s b: scaling them costs
a pass over the parameters, scaling the branch one over the examples.
"""

import numbers
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manualgrad.activations import Activation

KINDS = ("pre", "post", "out")


@dataclass(frozen=True, eq=False)
class Skip:
    """A skip connection over the layers start + 1 .. end of a chain; layer 0 is the input.

    kind: "pre": z^end = z^start + scale (W a + b); start >= 1, since the input has no z.
          "post": a^end = sigma(a^start + scale (W a + b)).
          "out": a^end = a^start + scale sigma(W a + b). A block of two layers is "out" over a last
          layer that is the identity.
    scale: of the branch: a number, or a tensor of shape (), (1,) or (N_end,), a Parameter to learn
        it (per feature: LayerScale).

    Raises TypeError and ValueError for other kinds of arguments, and unless 0 <= start < end.
    """

    start: int
    end: int
    kind: str = "post"
    scale: float | Tensor = 1.0

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, operator.index(value))
            except TypeError:
                raise TypeError(
                    f"manualgrad.Skip: {name} must be the number of a layer, got {value!r}"
                ) from None
        if not 0 <= self.start < self.end:
            raise ValueError(
                f"manualgrad.Skip: start {self.start} and end {self.end} must be layers with "
                f"0 <= start < end (layer 0 is the input)"
            )
        if self.kind not in KINDS:
            raise ValueError(
                f"manualgrad.Skip: kind {self.kind!r} is none of {', '.join(map(repr, KINDS))}"
            )
        if self.kind == "pre" and self.start == 0:
            raise ValueError(
                "manualgrad.Skip: kind 'pre' adds z^start and the input has no z; let it start at "
                "layer 1, or use kind 'post' or 'out'"
            )
        check_scale("manualgrad.Skip", self.scale)


def check_scale(call: str, scale: Any) -> None:
    if is_tensor(scale):
        if not isinstance(scale, Tensor):  # a Proxy of torch.fx, which has no shape to check
            return
        if scale.dim() > 1:
            raise ValueError(
                f"{call}: scale has shape {tuple(scale.shape)}; give a number, or a tensor of "
                f"shape (), (1,) or (features,)"
            )
        if not scale.is_floating_point():
            raise TypeError(f"{call}: scale is a tensor of {scale.dtype}; give a floating one")
    elif isinstance(scale, bool) or not isinstance(scale, numbers.Real):
        raise TypeError(f"{call}: scale must be a number or a tensor, got {scale!r}")


def is_tensor(scale: Any) -> bool:
    """Or something in a tensor's place, such as a Proxy of torch.fx."""
    return isinstance(scale, Tensor) or hasattr(type(scale), "__torch_function__")


class Branch(NamedTuple):
    """The skip that ends at a layer. at: the scale's number among the tensors, if it is one."""

    start: int
    kind: str
    scale: Any
    at: int | None


Slot = tuple[int, int]
"""The numbers, among a chain's tensors, of a layer's weight and its bias."""
NO_LAYER: Slot = (-1, -1)  # layer 0, the input


def own_slots(depth: int) -> tuple[Slot, ...]:
    """Each layer has parameters of its own: W^1, b^1, ..., W^L, b^L."""
    if depth < len(OWN):
        return OWN[: depth + 1]
    return NO_LAYER, *[(at, at + 1) for at in range(0, 2 * depth, 2)]


OWN: tuple[Slot, ...] = ()
OWN = own_slots(64)


class Chain:
    """What a chain is besides its tensors.

    acts: acts[l] for l = 1..L; acts[0], the input's, is identity. depth: L.
    recompute: keep only the input and the parameters; backward walks forward once more.
    slots: slots[l], where layer l's parameters stand among the tensors.
    branches: {end: Branch}; an "out" over the identity is the same as a "post", and is one here if
        nobody asks for z^end.
    carries_z, carries_a: {start: end} of the layers whose z, or a, skips carry on, the last end.
    outs: the layers at which an "out" skip ends: a^l is not s^l, and both are kept.
    beside: the layers l < L whose a^l is kept beside z^l, from which it could be computed again.
    acts_if_finite: acts to try first, as if no z were infinite (manualgrad.gates), or None.
    finite: the forward pass found every z finite; then the chain is that call's own.
    rows: of a tile in which all layers are walked (manualgrad.tiling); 0: all rows together.
    narrow: one kernel walks all layers (manualgrad.narrow): "backward", and forward as well, or
        "forward" alone; "" for neither.
    hides_top: s^L is a hidden output, because it is not the output a^L itself.
    seen: what manualgrad.small found out about the call that this chain was made for, or None.
    skips: as they were given, in the order of their ends. scales: those that are tensors.
    """

    __slots__ = (
        "acts", "acts_if_finite", "beside", "branches", "carries_a", "carries_z", "depth", "finite",
        "hides_top", "narrow", "outs", "recompute", "rows", "scales", "seen", "skips", "slots",
    )  # fmt: skip

    def __init__(
        self,
        acts: tuple[Activation, ...],
        recompute: bool = False,
        skips: Sequence[Skip] = (),
        slots: tuple[Slot, ...] | None = None,
    ):
        self.acts, self.depth, self.recompute = acts, len(acts) - 1, recompute
        self.slots = own_slots(self.depth) if slots is None else slots
        self.branches: dict[int, Branch] = {}
        self.carries_z: dict[int, int] = {}
        self.carries_a: dict[int, int] = {}
        self.outs: frozenset[int] = frozenset()
        self.beside: frozenset[int] = frozenset()
        self.acts_if_finite: Any = None
        self.finite = False
        self.rows = 0
        self.narrow = ""
        self.seen: Any = None
        self.skips, self.scales = skips, ()
        if skips:
            self._add(sorted(skips, key=lambda skip: skip.end))
        self.hides_top = acts[-1].hides_z or self.depth in self.outs

    def _add(self, skips: Sequence[Skip]) -> None:
        self.skips = tuple(skips)
        self.scales = tuple(skip.scale for skip in skips if is_tensor(skip.scale))
        at = 2 * self.depth  # the scales stand behind the parameters
        z_wanted = {skip.start for skip in skips if skip.kind == "pre"}
        for skip in skips:
            kind, scale, number = skip.kind, skip.scale, None
            if kind == "out" and self.acts[skip.end].is_identity and skip.end not in z_wanted:
                kind = "post"
            if is_tensor(scale):
                scale, number, at = 1.0, at, at + 1
            self.branches[skip.end] = Branch(skip.start, kind, scale, number)
            (self.carries_z if kind == "pre" else self.carries_a)[skip.start] = skip.end
        self.outs = frozenset(end for end, b in self.branches.items() if b.kind == "out")

    def but(self, **changes: Any) -> "Chain":
        """The same chain with other slots, branches, acts or without recompute."""
        chain = Chain.__new__(Chain)
        for name in Chain.__slots__:
            setattr(chain, name, changes.get(name, getattr(self, name)))
        return chain

    @property
    def keeps_a(self) -> list[int]:
        """The layers of which backward may be given a^l itself, besides s^l."""
        return sorted(self.outs | self.beside)

    def scale(self, l: int, tensors: Sequence[Any]) -> Any:
        """Layer l's branch scale: 1.0 without a branch, a number, or a tensor."""
        branch = self.branches.get(l)
        if branch is None:
            return 1.0
        return branch.scale if branch.at is None else tensors[branch.at]

    def weight(self, l: int, tensors: Sequence[Any]) -> Any:
        """W^l as the layer's product uses it, scaled by its branch."""
        weight = tensors[self.slots[l][0]]
        if not self.branches or not self.scales_layer(l):
            return weight
        return scaled(weight, self.scale(l, tensors))

    def bias(self, l: int, tensors: Sequence[Any]) -> Any:
        """b^l as the layer uses it, scaled by its branch; None without one."""
        bias = tensors[self.slots[l][1]]
        if bias is None or not self.branches or not self.scales_layer(l):
            return bias
        return scaled(bias, self.scale(l, tensors))

    def scales_layer(self, l: int) -> bool:
        """A skip is added to z^l, so that the layer's parameters are scale W and scale b."""
        return l in self.branches and l not in self.outs

    def lowest(self, needs_x: bool, needs: Sequence[bool]) -> int:
        """The lowest layer with a tensor that needs a gradient; 0 if the input does."""
        if needs_x:
            return 0
        for l, (weight, bias) in enumerate(self.slots[1:], start=1):
            if needs[weight] or needs[bias] or (self.branches and self.learns_scale(l, needs)):
                return l
        return self.depth + 1

    def learns_scale(self, l: int, needs: Sequence[bool]) -> bool:
        """Layer l's branch scale needs a gradient."""
        branch = self.branches.get(l)
        return branch is not None and branch.at is not None and needs[branch.at]


def scaled(tensor: Tensor, scale: Any) -> Tensor:
    """scale times a weight (N, K) or a bias (N,), row by row; scale a number, (), (1,) or (N,)."""
    if not isinstance(scale, Tensor):
        return tensor if scale == 1.0 else tensor * scale
    return tensor * scale.reshape(-1, *[1] * (tensor.dim() - 1))


def added(skip: Tensor, branch: Tensor, scale: Any) -> Tensor:
    """skip + scale branch, feature by feature."""
    if isinstance(scale, Tensor):
        return torch.addcmul(skip, branch, scale)
    return torch.add(skip, branch, alpha=scale)


def scale_gradient(scale: Tensor, products: Tensor) -> Tensor:
    """A scale's gradient from one product per feature, (N,): their sum unless it has N entries."""
    if scale.dim() == 1 and scale.shape == products.shape:
        return products.to(scale.dtype)
    return products.sum().to(scale.dtype).reshape(scale.shape)


def shares(tensors: Sequence[Any]) -> bool:
    """A tensor stands at two places."""
    if len(set(map(id, tensors))) == len(tensors):
        return False
    given = [tensor for tensor in tensors if tensor is not None]
    return len(set(map(id, given))) < len(given)


def merged(chain: Chain, tensors: Sequence[Any]) -> tuple[Any, ...]:
    """The chain on each tensor once: a parameter that stands at several places has one gradient.

    Its uses are then summed in one buffer. (W.T is another tensor than W, and may be asked for a
    gradient of its own: PyTorch adds the two.)
    """
    at: dict[int, int] = {}
    once: list[Any] = []
    for tensor in tensors:
        if id(tensor) not in at:
            at[id(tensor)] = len(once)
            once.append(tensor)
    slots = [chain.slots[0]]
    for weight, bias in chain.slots[1:]:
        slots.append((at[id(tensors[weight])], at[id(tensors[bias])]))
    branches = {
        end: b if b.at is None else b._replace(at=at[id(tensors[b.at])])
        for end, b in chain.branches.items()
    }
    return chain.but(slots=tuple(slots), branches=branches), *once
