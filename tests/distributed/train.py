"""Distributed training on torch's own engine, held to one process that sees the whole batch.

Usage: torchrun --nproc-per-node 2 tests/distributed/train.py [SCENARIO ...]

Runs every scenario, or those named, with up to 4 processes: gloo on CPUs, NCCL where each has a GPU.
A scenario hands a small model to torch's engine, trains it for a few steps, and compares the
gradients of each step and the parameters in the end with those of the same model, trained by one
process. Prints one line per scenario: ok or FAILED, its name, the largest difference (relative to
the largest number of that tensor), what is allowed, and the nodes of ours in the autograd graph,
chains and single layers. Exit status 1 if one failed.
"""

import copy
import datetime
import faulthandler
import os
import sys
import traceback
from collections import Counter

import scenarios
import torch
import torch.distributed as dist
import torch.nn.functional as F
from scenarios import ALL, Scenario
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

STEPS, BATCH = 3, 8
TOLERANCE = 1e-12  # float64: only the order of sums differs
PATIENCE = datetime.timedelta(seconds=60)  # of a process whose neighbour has failed
LIMIT = 120  # seconds for a scenario, whatever it waits for
OURS = {
    "chains": ("MLPFunctionBackward", "SmallMLPFunctionBackward"),
    "layers": ("LinearActFunctionBackward",),
}


def main(names: list[str]) -> int:
    unknown = set(names) - set(ALL)
    if unknown:
        raise SystemExit(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(ALL)}")
    torch.set_num_threads(1)
    mesh = start()
    try:
        failed = [name for name in names or ALL if not passes(name, ALL[name], mesh)]
        dist.barrier()
    finally:
        dist.destroy_process_group()
    return 1 if failed else 0


def start() -> DeviceMesh:
    """Joins the process group that torchrun describes; the mesh of all its processes."""
    rank, processes = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    cuda = torch.cuda.is_available() and torch.cuda.device_count() >= processes
    if cuda:
        torch.cuda.set_device(rank)
        torch.set_default_device(f"cuda:{rank}")
    dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    return init_device_mesh("cuda" if cuda else "cpu", (dist.get_world_size(),))


def passes(name: str, scenario: Scenario, mesh: DeviceMesh) -> bool:
    """Runs one scenario on every process, prints what the worst of them saw."""
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    try:
        difference, allowed, nodes = run(scenario, mesh)
    except Exception as error:
        traceback.print_exc()
        difference, allowed = float("inf"), 0.0
        nodes = f"{type(error).__name__}: {error}".splitlines()[0]
    outcomes = [(difference, allowed, nodes)] * mesh.size()
    dist.all_gather_object(outcomes, outcomes[0])
    difference, allowed, nodes = max(outcomes)
    passed = difference <= allowed
    if dist.get_rank() == 0:
        word = "ok" if passed else "FAILED"
        print(f"{word:7}{name:26}{difference:.1e} <= {allowed:.1e}  {nodes}", flush=True)
    return passed


def run(scenario: Scenario, mesh: DeviceMesh) -> tuple[float, float, str]:
    """The largest difference from one process's training, what is allowed, and our nodes."""
    torch.manual_seed(0)
    model = scenario.model()
    x = torch.randn(STEPS, BATCH, scenarios.INPUTS, dtype=torch.float64)
    y = torch.randn(STEPS, BATCH, scenarios.OUTPUTS, dtype=torch.float64)
    expected, _ = trained(copy.deepcopy(model), x, y)
    if scenario.splits_batch:
        share = slice(mesh.get_local_rank(), None, mesh.size())
        x, y = x[:, share], y[:, share]
    allowed = TOLERANCE
    if scenario.against is not None:  # twice the error of torch's own layers, and rounding
        twin, _ = trained(scenario.shard(scenario.against(model), mesh), x, y)
        allowed += 2 * far(twin, expected)
    found, nodes = trained(scenario.shard(model, mesh), x, y)
    return far(found, expected), allowed, nodes


def trained(model, x, y) -> tuple[list[torch.Tensor], str]:
    """Every gradient of every step, then every parameter, whole; and the nodes of the last graph."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen, nodes = [], ""
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x[step]), y[step])
        nodes = ours_in(loss)
        loss.backward()
        seen += [whole(p.grad) for p in model.parameters()]
        optimizer.step()
    return seen + [whole(p) for p in model.parameters()], nodes


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of tensor, its shards gathered and its partial sums added up."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def far(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest difference, relative to the largest number of its tensor. NaN is far."""
    differences = [
        ((mine - truth).abs().max() / truth.abs().max()).item()
        for mine, truth in zip(found, expected, strict=True)
    ]
    return max(float("inf") if d != d else d for d in differences)


def ours_in(loss: torch.Tensor) -> str:
    """How many nodes of the graph are chains, and how many single layers."""
    count, todo, seen = Counter(), [loss.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            count[node.name()] += 1
            todo += [below for below, _ in node.next_functions]
    return ", ".join(f"{sum(count[node] for node in nodes)} {what}" for what, nodes in OURS.items())


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # torch's own threads now and then abort a process that tears itself down
