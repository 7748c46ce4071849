"""A chain of fused layers as a module."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from manualgrad import compat, composite, functions
from manualgrad.activations import Activation, activation_of
from manualgrad.chain import Chain, is_tensor
from manualgrad.functional import run
from manualgrad.nn.branches import (
    SharedLayers,
    branch_scale_of,
    branches,
    check_shared,
    keep_scale,
    shown_scale,
)
from manualgrad.nn.linear import Linear, check_width
from manualgrad.walks import IDENTITY


class MLP(nn.Module):
    """A multi-layer perceptron (eq. 4) that is one node of the autograd graph.

    sizes: L + 1 widths, input first. activation: of the L - 1 hidden layers; one for all, or a
    list. out_activation: of the last layer. bias: every layer learns one. recompute: keep only the
    input for backward and compute the layers once more (memory independent of depth).

    residual: skips over the hidden layers of equal width behind the first, s = branch_scale:
        "pre"    z^l = z^{l-1} + s (W^l a^{l-1} + b^l)              (He et al. 2016b)
        "post"   a^l = sigma(a^{l-1} + s (W^l a^{l-1} + b^l))       (He et al. 2016a)
        "block"  a^{l+1} = a^{l-1} + s (W^{l+1} a^l + b^{l+1}), a^l = sigma(W^l a^{l-1} + b^l):
                 the layers in pairs, and the second of a pair has no activation
    branch_scale: a number, or a Parameter, shape (), (1,) or (width,), to learn it, one for all
        branches; "auto": 1 / sqrt(number of branches), with which 64 ReLU layers train (with 1 they
        explode).
    zero_init: the branches' last layers start at zero, so that the network starts as if without.
    shared: hidden layers of equal shape are one module, ``layers[1] is layers[2]``, whose
        Parameters parameters() and state_dict() list once (Lan et al. 2020, ALBERT); their gradient
        is the sum over their uses (eq. 13).

    ``layers[i]`` is a manualgrad.nn.Linear: layers.0.weight (N_1, N_0), layers.0.bias (N_1,), ...;
    under the same seed the initial values are those of the torch.nn.Linear's of the same sizes,
    made in the same order. forward() runs the whole chain at once. Where a layer is more than its
    weights (hooks, pruning, another module in its place) it calls the layers one by one instead,
    each keeping its own activation whatever recompute says. With residual the layers are the linear
    parts alone, and the MLP adds the skips and applies the activations.

    forward: input (..., sizes[0]) -> (..., sizes[-1]).
    Raises ValueError for fewer than two sizes, an unknown activation or residual, no layers to skip
    or to share, TypeError for other kinds.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: Any = "relu",
        *,
        out_activation: Any = "identity",
        bias: bool = True,
        residual: str | None = None,
        branch_scale: float | str | Tensor = "auto",
        shared: bool = False,
        recompute: bool = False,
        zero_init: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        acts = _activations(sizes, activation, out_activation)
        self._residual, self.recompute = residual, bool(recompute)
        if residual is not None:
            self._skips, acts = branches(residual, sizes, acts)
            self._acts = (IDENTITY, *acts)
            keep_scale(self, branch_scale_of(branch_scale, len(self._skips)))
            acts = [IDENTITY] * len(acts)
        elif zero_init or branch_scale != "auto":
            raise ValueError(
                "manualgrad.nn.MLP: branch_scale and zero_init say something about branches; give "
                "residual='pre', 'post' or 'block'"
            )
        made: dict[tuple[int, int], Linear] = {}
        layers = []
        for l, (inputs, outputs, act) in enumerate(zip(sizes[:-1], sizes[1:], acts, strict=True)):
            layer = made.get((inputs, outputs)) if shared and l + 2 < len(sizes) else None
            layer = layer or Linear(inputs, outputs, bias, device, dtype, activation=act)
            made.setdefault((inputs, outputs), layer)
            layers.append(layer)
        if shared:
            check_shared(sizes, acts, layers)
        self.layers: Any = SharedLayers(layers) if shared else nn.ModuleList(layers)
        if zero_init and shared and residual == "block":
            raise ValueError(
                "manualgrad.nn.MLP: zero_init would zero both layers of a shared block, which then "
                "never learns; use residual='pre' or 'post', or a small branch_scale"
            )
        if zero_init:
            for skip in self._skips:
                for parameter in layers[skip.end - 1].parameters():
                    nn.init.zeros_(parameter)

    @classmethod
    def from_sequential(cls, seq: nn.Sequential, *, recompute: bool = False) -> "MLP":
        """The same network as an MLP that holds the caller's own Parameters.

        seq: torch.nn.Linear's, each followed by an activation module or by none; nested
        Sequentials are read in order, Identity and Dropout(p=0) are passed over. Later changes of
        its Parameters are seen by both. state_dict keys are the MLP's: layers.0.weight, ...

        Raises TypeError for a module without a hand-derived rule, ValueError where the order is
        not linear, activation, linear, ..., or where a module carries hooks that would be lost.
        """
        if not isinstance(seq, nn.Sequential):
            raise TypeError(
                f"manualgrad.nn.MLP.from_sequential: expected a torch.nn.Sequential, got "
                f"{type(seq).__name__}"
            )
        layers: list[Linear] = []
        seen: set[nn.Linear] = set()
        for name, module in _flattened(seq, ""):
            if _passes_through(module):
                continue
            if isinstance(module, nn.Linear):
                if module in seen:
                    raise ValueError(
                        f"manualgrad.nn.MLP.from_sequential: the Linear at {name!r} stands in it "
                        f"twice; call manualgrad.mlp with its weight in both places instead"
                    )
                seen.add(module)
                layers.append(_layer_around(name, module))
                continue
            act = activation_of(module, f"nn.MLP.from_sequential at {name!r}")
            if not layers or not layers[-1].activation.is_identity:
                raise ValueError(
                    f"manualgrad.nn.MLP.from_sequential: {type(module).__name__} at {name!r} does "
                    f"not follow a Linear; each Linear takes at most one activation"
                )
            layers[-1].activation = act
        if not layers:
            raise ValueError("manualgrad.nn.MLP.from_sequential: there is no Linear in it")
        net = cls.__new__(cls)
        nn.Module.__init__(net)
        net.layers = nn.ModuleList(layers)
        net._residual, net.recompute = None, bool(recompute)
        return net.train(seq.training)

    def forward(self, input: Tensor) -> Tensor:
        layers = self.as_chain()
        if layers is None:
            return self._layer_by_layer(input)
        acts, params, recompute = layers
        if not params:
            return input  # of no layers, as an empty Sequential
        plain = self._residual is None
        chain = self._chain(acts, recompute) if plain else self._residual_chain()
        return run("nn.MLP", functions.mlp, input, chain, params, chain.scales)

    @property
    def residual(self) -> str | None:
        """The kind of skips that the layers were laid out for; it stays."""
        return self._residual

    def as_chain(self) -> tuple[tuple[Activation, ...], list[Any], bool] | None:
        """(activations, parameters, recompute) of layers that are no more than their weights."""
        if compat.global_module_hooks():
            return None
        layers = cast(Iterable[Linear], self._modules.get("layers") or self.layers)
        plain = compat.plain_layers(layers, Linear, "_activation")
        if plain is None:
            if not all(compat.is_its_weights(layer, Linear.forward) for layer in layers):
                return None
            params = [p for layer in layers for p in compat.weight_and_bias(layer)]
            acts = [layer._activation for layer in layers]
        else:
            params, acts = plain
        if self._residual is not None and not all(act.is_identity for act in acts):
            return None  # a layer is more than a branch's linear part
        return (IDENTITY, *acts), params, self.recompute

    def _chain(self, acts: tuple[Activation, ...], recompute: bool, *scale: Any) -> Chain:
        """Made anew only where something of it was changed, or its scale is learned.

        Skips take long, and what was seen of a small chain (small.Seen) holds for its next call.
        """
        new = torch.compiler.is_compiling() or any(map(is_tensor, scale))
        known = None if new else self.__dict__.get("_known_chain")
        if known is not None and known[0] == (acts, recompute, scale):
            return known[1]
        skips = [replace(skip, scale=scale[0]) for skip in self._skips] if scale else ()
        chain = Chain(acts, recompute, skips)
        if not new:
            self.__dict__["_known_chain"] = (acts, recompute, scale), chain
        return chain

    def _residual_chain(self) -> Chain:
        if len(self.layers) != len(self._acts) - 1:
            raise RuntimeError(
                f"manualgrad.nn.MLP: {len(self.layers)} layers, but its skips were laid out for "
                f"{len(self._acts) - 1}; make another MLP"
            )
        return self._chain(self._acts, self.recompute, self.branch_scale)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_known_chain"}

    def _layer_by_layer(self, input: Tensor) -> Tensor:
        if self._residual is not None:
            chain = self._residual_chain()
            return composite.residual(input, chain, chain.scales, list(self.layers))
        if not torch.compiler.is_compiling():  # what was seen may hold parameters out of use
            self.__dict__.pop("_known_chain", None)
        for layer in self.layers:
            input = layer(input)
        return input

    def extra_repr(self) -> str:
        said = []
        if self._residual is not None:
            acts = {str(act) for act in self._acts[1:-1] if not act.is_identity}
            said += [f"residual={self._residual!r}", f"activation={'/'.join(sorted(acts))}"]
            said += [shown_scale(self.branch_scale)]
        return ", ".join([*said, *(["recompute=True"] if self.recompute else [])])


def _activations(sizes: Any, activation: Any, out_activation: Any) -> list[Any]:
    """One activation per layer, after the sizes were checked."""
    if not isinstance(sizes, Sequence) or isinstance(sizes, str):
        raise TypeError(f"manualgrad.nn.MLP: sizes must be a list of ints, got {sizes!r}")
    for i, size in enumerate(sizes):
        check_width("nn.MLP", f"sizes[{i}]", size)
    if len(sizes) < 2:
        raise ValueError(
            f"manualgrad.nn.MLP: sizes is {list(sizes)}; give at least the input's and the "
            f"output's width"
        )
    hidden = len(sizes) - 2
    many = list(activation) if isinstance(activation, (list, tuple)) else [activation] * hidden
    if len(many) != hidden:
        raise ValueError(
            f"manualgrad.nn.MLP: {hidden} hidden layers but {len(many)} activations; give one per "
            f"hidden layer, or a single one for all (the last layer's is out_activation)"
        )
    return [activation_of(spec, "nn.MLP") for spec in (*many, out_activation)]


def _flattened(seq: nn.Sequential, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules in the order in which they run, one that stands twice twice."""
    _refuse_more_than_its_weights(prefix.removesuffix(".") or "the Sequential", seq)
    for name, module in seq._modules.items():
        if isinstance(module, nn.Sequential):
            yield from _flattened(module, f"{prefix}{name}.")
        elif module is not None:
            _refuse_more_than_its_weights(prefix + name, module)
            yield prefix + name, module


def _passes_through(module: nn.Module) -> bool:
    return type(module) is nn.Identity or (type(module) is nn.Dropout and module.p == 0)


def _layer_around(name: str, module: nn.Linear) -> Linear:
    """A manualgrad.nn.Linear that holds module's own Parameters."""
    if type(module) not in (nn.Linear, Linear):
        raise TypeError(
            f"manualgrad.nn.MLP.from_sequential: {name!r} is a {type(module).__name__}, which may "
            f"compute something else than torch.nn.Linear (a parametrised layer does)"
        )
    layer = Linear(
        module.in_features,
        module.out_features,
        module.bias is not None,
        device="meta",
        activation=module.activation if isinstance(module, Linear) else IDENTITY,
    )
    layer.weight, layer.bias = module.weight, module.bias
    return layer


def _refuse_more_than_its_weights(name: str, module: nn.Module) -> None:
    forward = nn.Sequential.forward if isinstance(module, nn.Sequential) else type(module).forward
    if not compat.is_its_weights(module, forward):
        raise ValueError(
            f"manualgrad.nn.MLP.from_sequential: {type(module).__name__} at {name!r} has hooks, or "
            f"a forward of its own, that a chain would not call; remove them first"
        )
