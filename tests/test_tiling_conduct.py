"""Where a chain may not go in tiles it does not, and what arrives there is not lost."""

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from tiles import in_tiles
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import manualgrad as mg
from manualgrad import backends, chain, tiling
from manualgrad.activations import activation_of

ROWS, WIDTH, DEPTH, TILE = 23, 3, 4, 5
IN_TILES = [5, 5, 5, 5, 3]


@pytest.fixture
def walked(monkeypatch):
    """(the rows of each forward walk, the rows of each backward walk over a tile)"""
    return in_tiles(monkeypatch, TILE * WIDTH)


def problem(dtype=torch.float64):
    """x, the leaves, ours and PyTorch's chain: each a function of (x, *weights, *biases)."""
    x = torch.randn(ROWS, WIDTH, dtype=dtype, requires_grad=True)
    weights = [torch.randn(WIDTH, WIDTH, dtype=dtype, requires_grad=True) for _ in range(DEPTH)]
    biases = [torch.randn(WIDTH, dtype=dtype, requires_grad=True) for _ in range(DEPTH)]

    def ours(x, *tensors, **options):
        return mg.mlp(x, tensors[:DEPTH], tensors[DEPTH:], "silu", **options)

    def native(x, *tensors):
        for weight, bias in zip(tensors[:DEPTH], tensors[DEPTH:], strict=True):
            x = F.silu(F.linear(x, weight, bias))
        return x

    return (x, *weights, *biases), ours, native


def agree(found, expected, **tolerances):
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, **tolerances)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_loss_of_the_output_and_of_its_gradient(walked, recompute):
    leaves, ours, native = problem()
    found = []
    for net in (functools.partial(ours, recompute=recompute), native):
        a = net(*leaves)
        (grad_x,) = torch.autograd.grad(a.sum(), leaves[0], create_graph=True)
        loss = a.square().sum() + grad_x.square().sum()
        found.append(torch.autograd.grad(loss, leaves))
    agree(*found)
    assert walked[0][:5] == IN_TILES


def test_twice_through_a_graph_that_is_retained(walked):
    leaves, ours, native = problem()
    a = ours(*leaves)
    expected = torch.autograd.grad(native(*leaves).sum(), leaves)
    for retained in (True, False):
        agree(torch.autograd.grad(a.sum(), leaves, retain_graph=retained), expected)
    assert walked[1] == 2 * IN_TILES
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(a.sum(), leaves)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit's, in torch's own code
def test_transforms_take_all_rows(walked):
    leaves, ours, native = problem()
    up, down = walked
    numbers = tuple(range(len(leaves)))
    gradients = [
        torch.func.grad(lambda *leaves, net=net: net(*leaves).sin().sum(), numbers)
        for net in (ours, native)
    ]
    agree(*(of(*leaves) for of in gradients))
    agree(*(torch.func.jacrev(net)(*leaves) for net in (ours, native)))
    assert up == 2 * [ROWS]
    up.clear()
    many = [torch.stack((leaf, leaf.cos())).detach() for leaf in leaves]
    agree(*(torch.func.vmap(of)(*many) for of in gradients))
    agree(*(torch.func.vmap(net)(*many) for net in (ours, native)))
    with torch.no_grad():
        agree(*(torch.func.vmap(net)(*many) for net in (ours, native)))
    assert up == 3 * [ROWS]
    assert not down


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit's, in torch's own code
def test_tangents_ride_along_without_gradients(walked):
    leaves, ours, native = problem()
    with torch.no_grad(), forward_ad.dual_level():
        duals = [forward_ad.make_dual(leaf, leaf.sin()) for leaf in leaves]
        agree(*(forward_ad.unpack_dual(net(*duals)) for net in (ours, native)))
    assert walked == ([], [])


def test_many_gradients_in_one_backward(walked):
    leaves, ours, native = problem()
    grad_a = torch.randn(7, ROWS, WIDTH, dtype=torch.float64)
    agree(
        *(
            torch.autograd.grad(net(*leaves), leaves, grad_a, is_grads_batched=True)
            for net in (ours, native)
        )
    )
    assert walked == (IN_TILES, [])


class Marked(torch.Tensor):
    """A subclass that sees its operations, and hands on what they give."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        bare, given = torch.utils._pytree.tree_map_only(
            cls, lambda marked: marked.inner, (args, kwargs or {})
        )
        return torch.utils._pytree.tree_map_only(torch.Tensor, cls, function(*bare, **given))


def test_a_gradient_that_is_a_subclass_stays_one(walked):
    leaves, ours, native = problem()
    grad_a = torch.randn(ROWS, WIDTH, dtype=torch.float64)
    found = torch.autograd.grad(ours(*leaves), leaves, Marked(grad_a))
    assert {type(grad) for grad in found} == {Marked}
    agree([grad.inner for grad in found], torch.autograd.grad(native(*leaves), leaves, grad_a))
    assert walked == (IN_TILES, [])


def test_a_graph_holds_each_layer_once(walked):
    leaves, ours, native = problem()
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(ours, backend=keep, fullgraph=True)
    agree(*(torch.autograd.grad(net(*leaves).sum(), leaves) for net in (compiled, native)))
    (graph,) = graphs
    layers = [node for node in graph.graph.nodes if "linear_act_forward" in str(node.target)]
    assert len(layers) == DEPTH


def test_a_graph_is_for_any_number_of_rows():
    """The rule asks for numbers of rows, and a graph would be for those on one side of them."""
    leaves, ours, _ = problem()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(ours, backend=counter, dynamic=True)
    for M in (tiling.LEAST_ROWS, 2 * tiling.LEAST_ROWS, 9 * tiling.LEAST_ROWS):
        compiled(torch.randn(M, WIDTH, dtype=torch.float64), *leaves[1:])
    assert counter.frame_count == 1


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch's own code
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_backward_traced_by_compiled_autograd_takes_all_rows(walked):
    leaves, ours, native = problem()
    expected = torch.autograd.grad(native(*leaves).sum(), leaves)
    a = ours(*leaves)
    torch._dynamo.reset()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        a.sum().backward()
    agree([leaf.grad for leaf in leaves], expected)
    assert walked == (IN_TILES, [])


def test_a_compiled_backward_takes_all_rows(walked):
    leaves, ours, native = problem()
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    agree(*(torch.autograd.grad(net(*leaves).sum(), leaves) for net in (compiled, native)))
    assert not walked[1]


def test_autocast_and_half_types_take_all_rows(walked):
    leaves, ours, native = problem(torch.float32)
    found = []
    for net in (ours, native):
        with torch.autocast("cpu", torch.bfloat16):
            a = net(*leaves)
        found.append((a, *torch.autograd.grad(a.float().sum(), leaves)))
    assert found[0][0].dtype == torch.bfloat16
    agree(*found, rtol=0.1, atol=0.1)
    assert walked == ([ROWS], [])


def test_in_float32_with_its_rounding(walked):
    leaves, ours, native = problem(torch.float32)
    agree(*(torch.autograd.grad(net(*leaves).sum(), leaves) for net in (ours, native)))
    assert walked == (IN_TILES, IN_TILES)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_inside_a_checkpoint(walked, recompute, reentrant):
    leaves, ours, native = problem()
    run = functools.partial(ours, recompute=recompute)
    a = checkpoint(run, *leaves, use_reentrant=reentrant)
    found = torch.autograd.grad if not reentrant else _backward
    expected = torch.autograd.grad(native(*leaves).sum(), leaves)
    agree(found(a.sum(), leaves), expected)
    assert walked[1] == IN_TILES


def _backward(loss, leaves):
    loss.backward()
    return [leaf.grad for leaf in leaves]


def test_what_is_saved_goes_through_hooks_whole(walked):
    leaves, ours, native = problem()
    shapes = []

    def pack(tensor):
        shapes.append(tuple(tensor.shape))
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        a = ours(*leaves)
    assert shapes.count((ROWS, WIDTH)) == 1 + DEPTH
    assert {shape[0] for shape in shapes} == {ROWS, WIDTH}
    agree(torch.autograd.grad(a.sum(), leaves), torch.autograd.grad(native(*leaves).sum(), leaves))
    assert walked[1] == IN_TILES


def test_without_a_gradient_only_the_output_has_all_rows(walked, monkeypatch):
    leaves, ours, native = problem()
    made = []
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda *given: made.append(given[1:]) or new_empty(*given)
    )
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            a = ours(*leaves)
        assert not a.requires_grad
        torch.testing.assert_close(a, native(*leaves).detach())
    assert made == 2 * [(ROWS, WIDTH)]
    assert walked == (2 * IN_TILES, [])


def test_the_rule_is_for_plain_tensors_of_a_cpu(monkeypatch):
    act = activation_of("relu", "test")

    def rows(M, widths, device="cpu"):
        x = torch.empty(M, widths[0], device=device)
        tensors = []
        for K, N in itertools.pairwise(widths):
            tensors += torch.empty(N, K, device=device), None
        return tiling.rows_at_once(chain.Chain((act,) * len(widths)), x, tensors)

    large = (65536, [64] * 5)
    assert rows(*large) == 4096
    assert rows(*large, device="meta") == 0
    assert rows(65536, [512, 64, 64, 63]) == 0  # less than 48 MiB, for the input is none of them
    assert rows(65536, [512, 64, 64, 64]) == 512
    with monkeypatch.context() as patched:
        patched.setattr(backends, "_mode", "triton")
        assert rows(*large) == 0
    assert torch.func.vmap(lambda _: torch.tensor(rows(*large)))(torch.zeros(2)).tolist() == [0, 0]
