"""A training step captured in a CUDA graph: replayed, it trains as without."""

import copy

import pytest
import torch

import manualgrad as mg

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def captured(net, optimiser, x, target):
    """The graph of one step; warmed up first, on copies, in a stream of its own."""
    step = stepping(net, optimiser, x, target)
    before = copy.deepcopy(net.state_dict())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    net.load_state_dict(before)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


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
    graph = captured(graphed, optimisers[1], x, target)
    for _ in range(3):
        stepping(plain, optimisers[0], x, target)()
        graph.replay()
        x.normal_()  # the graph reads where x stands, not what it held
    torch.testing.assert_close(dict(plain.named_parameters()), dict(graphed.named_parameters()))
