"""What is timed: a function and its gradients, by PyTorch's own modules and by ours."""

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import manualgrad as mg

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


@dataclass
class Problem:
    """One network twice, on the same Parameters.

    about: what a table says of it. flops: multiplications and additions of a forward pass.
    traffic: bytes that a forward and a backward pass cannot avoid to move, each tensor once: the
    input, the output, the parameters, and all their gradients.
    """

    about: dict[str, Any]
    inputs: tuple[Tensor, ...]
    eager: nn.Module
    ours: nn.Module
    flops: float = float("nan")
    traffic: float = float("nan")
    peers: dict[str, nn.Module] = field(default_factory=dict)

    def leaves(self) -> list[Tensor]:
        """What gradients are asked for: the inputs that are no numbers of words, the parameters."""
        inputs = [x for x in self.inputs if x.requires_grad]
        return [*inputs, *(p for p in self.eager.parameters() if p.requires_grad)]


def chain(
    rows: int, sizes: Sequence[int], activation: str, dtype: torch.dtype, device: str, **about: Any
) -> Problem:
    """A perceptron of these widths, the input first, an activation after each layer."""
    torch.manual_seed(0)
    modules: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        modules += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
    eager = nn.Sequential(*modules).to(device, dtype)
    ours: nn.Module = mg.nn.MLP.from_sequential(eager)
    return _of_layers(rows, sizes, eager, ours, dtype, device, activation=activation, **about)


def layer(
    rows: int, fan_in: int, fan_out: int, activation: str, dtype: torch.dtype, device: str
) -> Problem:
    """One linear layer with its activation."""
    torch.manual_seed(0)
    linear = nn.Linear(fan_in, fan_out).to(device, dtype)
    eager = nn.Sequential(linear, ACTIVATIONS[activation]())
    ours = mg.nn.Linear(fan_in, fan_out, activation=activation, device=device, dtype=dtype)
    ours.weight, ours.bias = linear.weight, linear.bias
    sizes = (fan_in, fan_out)
    about = {"K": fan_in, "N": fan_out, "activation": activation}
    return _of_layers(rows, sizes, eager, ours, dtype, device, **about)


def block(rows: int, width: int, activation: str, dtype: torch.dtype, device: str) -> Problem:
    """A Transformer's: width -> 4 width -> width, no activation after the second layer."""
    torch.manual_seed(0)
    eager = nn.Sequential(
        nn.Linear(width, 4 * width), ACTIVATIONS[activation](), nn.Linear(4 * width, width)
    ).to(device, dtype)
    ours = mg.nn.MLP.from_sequential(eager)
    sizes = (width, 4 * width, width)
    about = {"width": width, "activation": activation}
    return _of_layers(rows, sizes, eager, ours, dtype, device, **about)


def _of_layers(rows, sizes, eager, ours, dtype, device, **about: Any) -> Problem:
    x = torch.randn(rows, sizes[0], device=device).to(dtype).requires_grad_()
    products = sum(a * b for a, b in itertools.pairwise(sizes))
    parameters = sum(p.numel() for p in eager.parameters())
    ends = rows * (sizes[0] + sizes[-1])
    return Problem(
        {"rows": rows, **about, "dtype": str(dtype).removeprefix("torch.")},
        (x,),
        eager,
        ours,
        2.0 * rows * products,
        2.0 * (ends + parameters) * dtype.itemsize,
    )


def model(name: str, dtype: torch.dtype, device: str) -> Problem:
    """A real model before and after manualgrad.patch, with random weights, without dropout."""
    torch.manual_seed(0)
    eager, inputs = MODELS[name]()
    eager = eager.to(device, dtype).train()
    for module in eager.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    inputs = tuple(x.to(device, dtype if x.is_floating_point() else x.dtype) for x in inputs)
    ours = copy.deepcopy(eager)
    report = mg.patch(ours, *inputs)
    for mine, theirs in zip(ours.parameters(), eager.parameters(), strict=True):
        mine.data = theirs.data
    about = {"model": name, "fused": len(report), "dtype": str(dtype).removeprefix("torch.")}
    return Problem(about, inputs, eager, ours)


def define_operators_of_torchvision() -> None:
    """torchvision's wheel for CUDA imports beside torch for the CPU once these names exist."""
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        LIBRARIES.append(library)
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


LIBRARIES: list[torch.library.Library] = []  # what they define lives as long as they do


def _mixer() -> tuple[nn.Module, tuple[Tensor, ...]]:
    define_operators_of_torchvision()
    import timm

    made = timm.create_model("mixer_s32_224", num_classes=10)
    return made, (torch.randn(8, 3, 224, 224),)


def _vit() -> tuple[nn.Module, tuple[Tensor, ...]]:
    define_operators_of_torchvision()
    import timm

    made = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    return made, (torch.randn(4, 3, 224, 224),)


def _bert() -> tuple[nn.Module, tuple[Tensor, ...]]:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertModel(config, add_pooling_layer=False), (torch.randint(0, 1000, (8, 128)),)


MODELS = {"timm mixer_s32": _mixer, "timm vit_tiny": _vit, "bert 4 x 256": _bert}
