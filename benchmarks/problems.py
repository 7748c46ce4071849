"""What is timed: a function and its gradients, by PyTorch's own modules and by ours."""

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import manualgrad as mg
from benchmarks import peers

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "silu": nn.SiLU,
}


PARTS = ("forward", "backward", "step")


@dataclass
class Problem:
    """One network twice, on the same Parameters; peers: rivals' on them too, or why not.

    about: what a table says of it. work: of each part, multiplications and additions, and the
    bytes that it cannot avoid to move, each tensor once: input, output, parameters, and in
    backward all of their gradients.
    """

    about: dict[str, Any]
    inputs: tuple[Tensor, ...]
    eager: nn.Module
    ours: nn.Module
    work: dict[str, tuple[float, float]] = field(default_factory=dict)
    peers: dict[str, nn.Module | str] = field(default_factory=dict)


def work_of(
    flops: float, backward_flops: float, inputs: int, outputs: int, parameters: int
) -> dict[str, tuple[float, float]]:
    """flops and bytes by part, from the bytes of inputs, outputs and parameters."""
    ends = inputs + outputs
    return {
        "forward": (flops, ends + parameters),
        "backward": (backward_flops, ends + inputs + 2 * parameters),  # the input is read again
        "step": (flops + backward_flops, 2 * (ends + parameters)),
    }


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
    return _of_layers(rows, sizes, eager, ours, activation, **about)


def layer(
    rows: int, fan_in: int, fan_out: int, activation: str, dtype: torch.dtype, device: str
) -> Problem:
    """One linear layer with its activation."""
    torch.manual_seed(0)
    linear = nn.Linear(fan_in, fan_out).to(device, dtype)
    eager = nn.Sequential(linear, ACTIVATIONS[activation]())
    ours = mg.nn.Linear(fan_in, fan_out, activation=activation, device=device, dtype=dtype)
    ours.weight, ours.bias = linear.weight, linear.bias
    return _of_layers(rows, (fan_in, fan_out), eager, ours, activation, K=fan_in, N=fan_out)


def block(rows: int, width: int, activation: str, dtype: torch.dtype, device: str) -> Problem:
    """A Transformer's: width -> 4 width -> width, no activation after the second layer."""
    torch.manual_seed(0)
    eager = nn.Sequential(
        nn.Linear(width, 4 * width), ACTIVATIONS[activation](), nn.Linear(4 * width, width)
    ).to(device, dtype)
    ours = mg.nn.MLP.from_sequential(eager)
    return _of_layers(rows, (width, 4 * width, width), eager, ours, activation, width=width)


def _of_layers(
    rows: int,
    sizes: Sequence[int],
    eager: nn.Sequential,
    ours: nn.Module,
    activation: str,
    **about: Any,
) -> Problem:
    linears = [module for module in eager if isinstance(module, nn.Linear)]
    weight = linears[0].weight
    x = torch.randn(rows, sizes[0], device=weight.device).to(weight.dtype).requires_grad_()
    flops = 2.0 * rows * sum(a * b for a, b in itertools.pairwise(sizes))
    first, last = (rows * size * weight.itemsize for size in (sizes[0], sizes[-1]))
    return Problem(
        {"rows": rows, **about, "activation": activation, "dtype": name_of(weight.dtype)},
        (x,),
        eager,
        ours,
        work_of(flops, 2 * flops, first, last, bytes_of(*eager.parameters())),
        peers.of(peers.Stack(linears, activation, eager[-1] is not linears[-1])),
    )


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def bytes_of(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


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
    about = {"model": name, "fused": len(report), "dtype": name_of(dtype)}
    return Problem(about, inputs, eager, ours, _counted(eager, inputs))


def _counted(net: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, tuple[float, float]]:
    """A model's work: torch counts the products, attention's as products."""
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        y = output(net(*inputs))
        forward = counter.get_total_flops()
        torch.autograd.grad(y.sum(), list(net.parameters()), allow_unused=True)
    backward = counter.get_total_flops() - forward
    sizes = bytes_of(*inputs), bytes_of(y), bytes_of(*net.parameters())
    return work_of(forward, backward, *sizes)


def output(result: Any) -> Tensor:
    """The tensor of a model's result."""
    if isinstance(result, Tensor):
        return result
    return next(iter(result.values())) if isinstance(result, dict) else result[0]


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
