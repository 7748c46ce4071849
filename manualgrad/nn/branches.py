"""Which layers of an MLP are residual branches, and which are shared."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

from torch import Tensor, nn

from manualgrad.chain import Skip, check_scale
from manualgrad.nn.linear import Linear
from manualgrad.walks import IDENTITY

RESIDUALS = ("pre", "post", "block")


class SharedLayers(nn.Module):
    """A list in which a layer may stand at several places; it is registered at its first alone.

    So each Parameter has one name in the state_dict. (With two, torch.func.functional_call leaves
    what it was given behind in the module: it puts both names back, the second from the first.)
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        first = {layer: str(i) for i, layer in reversed(list(enumerate(layers)))}
        for layer, name in reversed(first.items()):
            self.add_module(name, layer)
        self._places = tuple(first[layer] for layer in layers)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter([cast(nn.Module, self._modules[name]) for name in self._places])

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]

    def __setitem__(self, index: int, layer: nn.Module) -> None:
        """Another layer in its place, and in all others where the same one stood."""
        self.add_module(self._places[index], layer)


def branches(kind: Any, sizes: Sequence[int], acts: list[Any]) -> tuple[list[Skip], list[Any]]:
    """The skips of a residual MLP, of scale 1, and its activations.  kind: as MLP's residual."""
    if kind not in RESIDUALS:
        raise ValueError(
            f"manualgrad.nn.MLP: residual {kind!r} is none of "
            f"{', '.join(map(repr, RESIDUALS))} or None"
        )
    equal = [l for l in range(2, len(sizes) - 1) if sizes[l - 1] == sizes[l]]
    if kind == "block":
        skips, acts, l = [], list(acts), 2
        while l < len(sizes) - 1:
            pair = l in equal and l + 1 in equal
            if pair:
                skips.append(Skip(l - 1, l + 1, "out"))
                acts[l] = IDENTITY  # of layer l + 1
            l += 1 + pair
    else:
        skips = [Skip(l - 1, l, kind) for l in equal]
    if not skips:
        need = "two neighbouring hidden layers" if kind == "block" else "a hidden layer"
        raise ValueError(
            f"manualgrad.nn.MLP: residual={kind!r} finds no branch in sizes {list(sizes)}: it "
            f"needs {need}, behind the first, as wide as the one before"
        )
    return skips, acts


def branch_scale_of(branch_scale: Any, count: int) -> Any:
    """The scale of each of count branches: as given, or 1 / sqrt(count) for "auto"."""
    if isinstance(branch_scale, str):
        if branch_scale != "auto":
            raise ValueError(
                f"manualgrad.nn.MLP: branch_scale {branch_scale!r} must be 'auto', a number or a "
                f"Parameter"
            )
        return count**-0.5
    check_scale("manualgrad.nn.MLP", branch_scale)
    return branch_scale


def keep_scale(module: nn.Module, scale: Any) -> None:
    """As module.branch_scale: a Parameter to be learned, another tensor as a buffer."""
    if isinstance(scale, Tensor) and not isinstance(scale, nn.Parameter):
        module.register_buffer("branch_scale", scale)
    else:
        module.branch_scale = scale


def shown_scale(scale: Any) -> str:
    if isinstance(scale, Tensor):
        return f"branch_scale={'learned' if scale.requires_grad else tuple(scale.shape)}"
    return f"branch_scale={scale:.4g}"


def check_shared(sizes: Sequence[int], acts: Sequence[Any], layers: Sequence[Linear]) -> None:
    """Raises ValueError where nothing is shared, or one layer would need two activations."""
    square = any(sizes[l] == sizes[l + 1] for l in range(len(sizes) - 2))
    if not square and len(set(layers)) == len(layers):
        raise ValueError(
            f"manualgrad.nn.MLP: shared=True, but no hidden layer of sizes {list(sizes)} could be "
            f"shared: none is as wide as its input"
        )
    for layer, act in zip(layers, acts, strict=True):
        if layer.activation is not act:
            raise ValueError(
                f"manualgrad.nn.MLP: shared=True, but layers of one shape have the activations "
                f"{layer.activation} and {act}; give them the same"
            )
