"""A chain of fused layers as a module."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from manualgrad import compat, functions
from manualgrad.activations import activation_of
from manualgrad.chain import Chain
from manualgrad.functional import run
from manualgrad.nn.linear import Linear, check_width
from manualgrad.walks import IDENTITY


class MLP(nn.Module):
    """A multi-layer perceptron (eq. 4) that is one node of the autograd graph.

    sizes: L + 1 widths, input first. activation: of the L - 1 hidden layers; one for all, or a
    list. out_activation: of the last layer. bias: every layer learns one. recompute: keep only the
    input for backward and compute the layers once more (memory independent of depth).
    residual, shared: not available yet.

    ``layers[i]`` is a manualgrad.nn.Linear: layers.0.weight (N_1, N_0), layers.0.bias (N_1,), ...;
    under the same seed the initial values are those of the torch.nn.Linear's of the same sizes,
    made in the same order. forward() runs the whole chain at once. Where a layer is more than its
    weights (hooks, pruning, another module in its place) it calls the layers one by one instead,
    each keeping its own activation whatever recompute says.

    forward: input (..., sizes[0]) -> (..., sizes[-1]).
    Raises ValueError for fewer than two sizes or an unknown activation, TypeError for other kinds.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: Any = "relu",
        *,
        out_activation: Any = "identity",
        bias: bool = True,
        residual: str | None = None,
        branch_scale: float | str = "auto",
        shared: bool = False,
        recompute: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if residual is not None or shared or branch_scale != "auto":
            raise NotImplementedError(
                "manualgrad.nn.MLP: residual, branch_scale and shared are not available yet; add "
                "the skip outside, x + mlp(x), or pass one tensor several times to manualgrad.mlp"
            )
        acts = _activations(sizes, activation, out_activation)
        self.layers = nn.ModuleList(
            Linear(inputs, outputs, bias, device, dtype, activation=act)
            for inputs, outputs, act in zip(sizes[:-1], sizes[1:], acts, strict=True)
        )
        self.recompute = bool(recompute)

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
        net.recompute = bool(recompute)
        return net.train(seq.training)

    def forward(self, input: Tensor) -> Tensor:
        params, acts = [], [IDENTITY]
        forward = Linear.forward
        for layer in cast(Iterable[Linear], self.layers):
            if not compat.is_its_weights(layer, forward):
                return self._layer_by_layer(input)
            params += compat.weight_and_bias(layer)
            acts.append(layer._activation)
        if not params:
            return input  # of no layers, as an empty Sequential
        return run("nn.MLP", functions.mlp, input, Chain(tuple(acts), self.recompute), params)

    def _layer_by_layer(self, input: Tensor) -> Tensor:
        for layer in self.layers:
            input = layer(input)
        return input

    def extra_repr(self) -> str:
        return "recompute=True" if self.recompute else ""


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
