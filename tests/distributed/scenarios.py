"""What tests/distributed/train.py trains, and how each of torch's engines takes it over."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import manualgrad as mg

INPUTS, OUTPUTS = 6, 4


class Scenario(NamedTuple):
    """model() makes the model, shard(model, mesh) hands it to the engine.

    splits_batch: each process takes its own examples; otherwise all see the whole batch.
    against: what torch's own layers would be, where the precision is low; None for float64.
    """

    model: Callable[[], nn.Module]
    shard: Callable[[nn.Module, DeviceMesh], nn.Module]
    splits_batch: bool = True
    against: Callable[[nn.Module], nn.Module] | None = None


class Network(nn.Sequential):
    """One frame for torch.compile, which takes the modules of a plain Sequential one by one."""

    def forward(self, input):
        for module in self:
            input = module(input)
        return input


def network() -> Network:
    """A chain, a layer and a chain: sigma' written in z and in a, and layers without."""
    return Network(
        mg.nn.MLP([INPUTS, 8, 10], "gelu", out_activation="tanh"),
        mg.nn.Linear(10, 8, activation="silu"),
        mg.nn.MLP([8, 6, 6, OUTPUTS], ["relu", "sigmoid"]),
    ).double()


def wide_network() -> Network:
    """Several of DDP's smallest buckets, 1 MiB: torch.compile splits the graph at their limits."""
    return Network(
        mg.nn.MLP([INPUTS, 400, 400], "gelu", out_activation="tanh"),
        mg.nn.Linear(400, 400, activation="silu"),
        mg.nn.MLP([400, 400, OUTPUTS]),
    ).double()


def chain(recompute: bool = False) -> nn.Module:
    return mg.nn.MLP([INPUTS, 8, 10, OUTPUTS], ["gelu", "tanh"], recompute=recompute).double()


def recomputing_chain() -> nn.Module:
    return chain(recompute=True)


# Data parallel


def ddp(model, mesh, **options):
    return DistributedDataParallel(model, **options)


def ddp_static_graph(model, mesh):
    return ddp(model, mesh, static_graph=True)


def ddp_compiled(model, mesh):
    return torch.compile(ddp(model, mesh, bucket_cap_mb=1), backend="aot_eager")


class Accumulating(nn.Module):
    """Half of the batch under no_sync, half with: as gradients are accumulated."""

    def __init__(self, model):
        super().__init__()
        self.model = DistributedDataParallel(model)

    def forward(self, x):
        first, second = x.chunk(2)
        with self.model.no_sync():
            a = self.model(first)
        return torch.cat([a, self.model(second)])


# Fully sharded


def fsdp2_layers(model, mesh, **options):
    """Every layer a unit of its own, inside the chains too, whose layers have hooks then."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            fully_shard(module, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def fsdp2_chains(model, mesh, **options):
    """Every chain a unit; its layers have no hooks, so it stays one node."""
    for module in model.children():
        fully_shard(module, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def fsdp2_whole(model, mesh):
    return fully_shard(model, mesh=mesh)


def fsdp2_group(model, mesh):
    """Two layers of a chain as one unit, the third by the root."""
    fully_shard([model.layers[0], model.layers[1]], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def fsdp2_compiled(model, mesh):
    for module in model:
        module.compile(backend="aot_eager")
    return fsdp2_chains(model, mesh)


BF16 = MixedPrecisionPolicy(
    param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float64
)


def fsdp2_bf16(model, mesh):
    return fsdp2_chains(model, mesh, mp_policy=BF16)


def fsdp2_bf16_layers(model, mesh):
    return fsdp2_layers(model, mesh, mp_policy=BF16)


class Checkpointed(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return checkpoint(self.module, x, use_reentrant=False)


def fsdp2_checkpointed(model, mesh):
    return fsdp2_chains(Network(*map(Checkpointed, model)), mesh)


def as_torchs(model: nn.Module) -> nn.Module:
    """The same parameters in torch.nn.Linear's and activation modules."""
    layers = []
    for layer in copy.deepcopy(model).modules():
        if isinstance(layer, mg.nn.Linear):
            linear = nn.Linear(layer.in_features, layer.out_features, dtype=layer.weight.dtype)
            linear.load_state_dict(layer.state_dict())
            layers += [linear, TORCHS[layer.activation.name]()]
    return nn.Sequential(*layers)


TORCHS = {
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}


# Tensor parallel


def two_layers() -> nn.Module:
    return nn.Sequential(
        mg.nn.Linear(INPUTS, 8, activation="gelu"), mg.nn.Linear(8, OUTPUTS, activation="relu")
    ).double()


def tensor_parallel(model, mesh):
    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "1": RowwiseParallel()})


def tensor_parallel_compiled(model, mesh):
    return torch.compile(tensor_parallel(model, mesh), backend="aot_eager")


def tensor_parallel_mlp(model, mesh):
    """The same inside a chain, whose layers have hooks then and are called one by one."""
    plan = {"layers.0": ColwiseParallel(), "layers.1": RowwiseParallel()}
    return parallelize_module(model, mesh, plan)


# DTensors by hand


class LinearAct(nn.Module):
    """mg.linear_act on whatever its parameters and its input are."""

    def __init__(self, activation):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(OUTPUTS, INPUTS, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(OUTPUTS, dtype=torch.float64))
        self.activation = activation

    def forward(self, x):
        return mg.linear_act(x, self.weight, self.bias, self.activation)


class Penalised(nn.Module):
    """A chain and the squared gradient of its input: training needs second derivatives."""

    def __init__(self):
        super().__init__()
        self.chain = chain()

    def forward(self, x):
        x = x.detach().requires_grad_()
        a = self.chain(x)
        (grad_x,) = torch.autograd.grad(a.square().sum(), x, create_graph=True)
        return a + grad_x.square().sum(1, keepdim=True)


def distributed_as(**placements):
    """Input and parameters by their placements (replicated if not named), the output gathered."""

    def placement(name):
        return [placements.get(name.replace(".", "_"), Replicate())]

    def shard(model, mesh):
        def partition(prefix, module, mesh):
            for name, parameter in list(module.named_parameters(recurse=False)):
                place = placement(f"{prefix}.{name}" if prefix else name)
                sharded = nn.Parameter(distribute_tensor(parameter.data, mesh, place))
                module.register_parameter(name, sharded)

        return distribute_module(
            model,
            mesh,
            partition,
            lambda _, inputs, mesh: (distribute_tensor(inputs[0], mesh, placement("input")),),
            lambda _, output, mesh: output.full_tensor(),
        )

    return shard


ROWS, COLUMNS = Shard(0), Shard(1)  # of a weight: outputs, inputs

on_rows = distributed_as(input=Shard(1), weight=COLUMNS)
alternating = distributed_as(layers_0_weight=ROWS, layers_0_bias=ROWS, layers_1_weight=COLUMNS)
penalised = distributed_as(
    chain_layers_0_weight=ROWS, chain_layers_0_bias=ROWS, chain_layers_1_weight=COLUMNS
)


def compiled_chain(model, mesh):
    return torch.compile(alternating(model, mesh), backend="aot_eager")


ALL = {
    "ddp": Scenario(network, ddp),
    "ddp_static_graph": Scenario(network, ddp_static_graph),
    "ddp_no_sync": Scenario(network, lambda model, mesh: Accumulating(model)),
    "ddp_compiled": Scenario(network, ddp_compiled),
    "ddp_compiled_wide": Scenario(wide_network, ddp_compiled),
    "fsdp2_layers": Scenario(network, fsdp2_layers),
    "fsdp2_chains": Scenario(network, fsdp2_chains),
    "fsdp2_whole": Scenario(chain, fsdp2_whole),
    "fsdp2_recompute": Scenario(recomputing_chain, fsdp2_whole),
    "fsdp2_group": Scenario(chain, fsdp2_group),
    "fsdp2_compiled": Scenario(network, fsdp2_compiled),
    "fsdp2_bf16": Scenario(network, fsdp2_bf16, against=as_torchs),
    "fsdp2_bf16_layers": Scenario(network, fsdp2_bf16_layers, against=as_torchs),
    "fsdp2_checkpointed": Scenario(network, fsdp2_checkpointed),
    "tensor_parallel": Scenario(two_layers, tensor_parallel, False),
    "tensor_parallel_compiled": Scenario(two_layers, tensor_parallel_compiled, False),
    "tensor_parallel_mlp": Scenario(chain, tensor_parallel_mlp, False),
    "dtensor_data": Scenario(lambda: LinearAct("gelu"), distributed_as(input=Shard(0)), False),
    "dtensor_columns": Scenario(
        lambda: LinearAct("gelu"), distributed_as(weight=ROWS, bias=ROWS), False
    ),
    "dtensor_rows": Scenario(lambda: LinearAct("tanh"), on_rows, False),
    "dtensor_rows_z": Scenario(lambda: LinearAct("gelu"), on_rows, False),
    "dtensor_chain": Scenario(chain, alternating, False),
    "dtensor_chain_compiled": Scenario(chain, compiled_chain, False),
    "dtensor_second_order": Scenario(Penalised, penalised, False),
}
