"""A training step captured in a CUDA graph: replayed, it trains as without."""

import copy

import pytest
import torch

import manualgrad as mg
from benchmarks.gpu.stages import captured

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def stepping(net, optimiser, x, target):
    def step():
        optimiser.zero_grad(set_to_none=True)
        (net(x) - target).square().mean().backward()
        optimiser.step()

    return step


@pytest.mark.parametrize("act", ["relu", "gelu"])
@pytest.mark.parametrize("width", [32, 256])  # in one kernel each way, and layer by layer
def test_a_captured_step_trains_as_without_a_graph(act, width):
    torch.manual_seed(0)
    plain = mg.nn.MLP([width] * 5, act, device="cuda", dtype=torch.bfloat16)
    graphed = copy.deepcopy(plain)
    x = torch.randn(128, width, device="cuda", dtype=torch.bfloat16)
    target = torch.randn_like(x)
    optimisers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (plain, graphed)]
    before = copy.deepcopy(graphed.state_dict())
    replay = captured(stepping(graphed, optimisers[1], x, target))
    graphed.load_state_dict(before)  # without the steps that warmed it up
    for _ in range(3):
        stepping(plain, optimisers[0], x, target)()
        replay()
        x.normal_()  # the graph reads where x stands, not what it held
    torch.testing.assert_close(dict(plain.named_parameters()), dict(graphed.named_parameters()))
