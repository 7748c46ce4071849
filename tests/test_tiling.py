"""A chain in tiles of rows gives what one walk over all rows gives; and when it goes in tiles."""

import itertools

import pytest
import torch
from tiles import in_tiles
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import manualgrad as mg
from manualgrad import keeping, tiling
from manualgrad.activations import activation_of

F64 = torch.float64
ROWS, WIDTH, DEPTH, TILE = 23, 3, 4, 5  # the last tile has 3 rows
SHARINGS = {"none": (0, 1, 2, 3), "two": (0, 1, 1, 3), "all": (0, 0, 0, 0)}
PLACES = (((1, 2), (2, 3), (3, 4)), ((1, 3), (0, 2), (1, 4)), ((3, 4),), ())
FROZEN = {"nothing": (), "x": ("x",), "parameters": ("W", "b"), "biases": ("b",), "scale": ("s",)}


@pytest.fixture
def tiles(monkeypatch):
    """Tiles of 5 rows for every chain; a list of the number of rows of each forward walk."""
    return in_tiles(monkeypatch, TILE * WIDTH)[0]


def problem(kind, places, sharing, scale, frozen, seed=0):
    torch.manual_seed(seed)

    def made(name, *shape):
        return torch.randn(shape, dtype=F64).requires_grad_(name not in frozen)

    own = [(made("W", WIDTH, WIDTH), made("b", WIDTH)) for _ in range(DEPTH)]
    weights, biases = zip(*(own[at] for at in SHARINGS[sharing]), strict=True)
    scale = {"number": 0.5, "()": made("s"), "(n,)": made("s", WIDTH)}[scale]
    skips = [
        mg.Skip(max(start, 1) if kind == "pre" else start, end, kind, scale)
        for start, end in places
    ]
    x = made("x", ROWS, WIDTH)
    leaves = [
        x,
        *weights,
        *biases,
        *([scale] if isinstance(scale, torch.Tensor) and places else []),
    ]
    leaves = list({id(leaf): leaf for leaf in leaves if leaf.requires_grad}.values())
    return x, weights, biases, skips, leaves


CASES = list(
    itertools.product(
        ("relu", "gelu", "identity"), ("pre", "post", "out"), PLACES, SHARINGS, (False, True)
    )
)
VARIED = [
    (*case, scale, frozen)
    for case, scale, frozen in zip(
        CASES, itertools.cycle(("number", "()", "(n,)")), itertools.cycle(FROZEN), strict=False
    )
]


@pytest.mark.parametrize(("act", "kind", "places", "sharing", "again", "scale", "frozen"), VARIED)
def test_tiles_give_what_one_walk_gives(
    tiles, monkeypatch, act, kind, places, sharing, again, scale, frozen
):
    x, weights, biases, skips, leaves = problem(kind, places, sharing, scale, FROZEN[frozen])
    grad_a = torch.randn(ROWS, WIDTH, dtype=F64)
    found = []
    for least in (1, ROWS):
        monkeypatch.setattr(tiling, "LEAST_ROWS", least)
        tiles.clear()
        a = mg.mlp(x, weights, biases, act, skips=skips, recompute=again)
        before = len(tiles)
        found.append((a.detach(), *torch.autograd.grad(a, leaves, grad_a, allow_unused=True)))
        if least == 1:
            assert tiles[:before] == [5, 5, 5, 5, 3]
            assert tiles[before:] == ([5, 5, 5, 5, 3] if again else [])
        else:
            assert set(tiles) == {ROWS}
    for mine, whole in zip(*found, strict=True):
        if whole is None:
            assert mine is None
        else:
            torch.testing.assert_close(mine, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("act", ["silu", "tanh"])  # z is kept, or a: then both ways lead to a^L
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("kind", ["pre", "post", "out"])
def test_first_and_second_derivatives(tiles, kind, again, act):
    x, weights, biases, skips, leaves = problem(kind, PLACES[1], "two", "(n,)", ())
    x = x[:11].detach().requires_grad_()

    def chain(*_):
        return mg.mlp(x, weights, biases, act, skips=skips, recompute=again)

    inputs = (x, *leaves[1:])
    assert gradcheck(chain, inputs)
    assert gradgradcheck(chain, inputs)
    assert tiles[:3] == [5, 5, 1]


def test_second_derivatives_where_all_ways_meet(tiles):
    """The last backward pass sends adjoints to a^L and to what is kept, and is not differentiated."""
    x, weights, biases, _, leaves = problem("post", (), "two", "number", ())
    found = []
    for chain in (mg.mlp, native):
        y = chain(x, weights, biases, "tanh")
        once = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        cost = sum(grad.square().sum() for grad in once) + y.cos().sum()
        found.append(torch.autograd.grad(cost, leaves))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


def native(x, weights, biases, act):
    for weight, bias in zip(weights, biases, strict=True):
        x = getattr(torch, act)(torch.nn.functional.linear(x, weight, bias))
    return x


def test_transforms_take_all_rows_and_are_right(tiles):
    x, weights, biases, _, _ = problem("post", (), "none", "number", ())
    xs = torch.randn(3, ROWS, WIDTH, dtype=F64)

    def chain(x):
        return mg.mlp(x, weights, biases, "tanh")

    batched = torch.func.vmap(chain)(xs)
    one_by_one = torch.stack([native(one, weights, biases, "tanh") for one in xs])
    torch.testing.assert_close(batched, one_by_one)
    slopes = torch.func.vmap(torch.func.grad(lambda x: chain(x).sum()))(xs)
    (theirs,) = torch.autograd.grad(native(xs.requires_grad_(), weights, biases, "tanh").sum(), xs)
    torch.testing.assert_close(slopes, theirs)
    assert 5 not in tiles
    grads = torch.randn(4, ROWS, WIDTH, dtype=F64)
    (mine,) = torch.autograd.grad(chain(x), x, grads, is_grads_batched=True)
    (theirs,) = torch.autograd.grad(
        native(x, weights, biases, "tanh"), x, grads, is_grads_batched=True
    )
    torch.testing.assert_close(mine, theirs)


def test_any_layout_of_what_comes_in(tiles):
    x, weights, biases, _, _ = problem("post", (), "none", "number", ())
    turned = x.detach().T.contiguous().T.requires_grad_()
    for given in (x, turned):
        (grad,) = torch.autograd.grad(mg.mlp(given, weights, biases, "tanh").sum(), given)
        h = native(given, weights, biases, "tanh")
        torch.testing.assert_close(grad, torch.autograd.grad(h.sum(), given)[0])
    assert tiles.count(5) == 8


def test_what_is_captured_is_whole(tiles):
    torch.manual_seed(0)
    net = mg.nn.MLP([WIDTH, WIDTH, WIDTH], "gelu", dtype=F64)
    x = torch.randn(ROWS, WIDTH, dtype=F64)
    with mg.capture(net) as seen:
        net(x).square().sum().backward()
    for layer, linear in zip(seen.layers, net.layers, strict=True):
        assert layer.delta.shape == (ROWS, WIDTH)
        torch.testing.assert_close(layer.delta.T @ layer.a, linear.weight.grad)


def test_twice_the_same_bits(tiles):
    x, weights, biases, _, leaves = problem("post", (), "all", "number", ())
    once, twice = (
        torch.autograd.grad(mg.mlp(x, weights, biases, "gelu").square().sum(), leaves)
        for _ in range(2)
    )
    assert all(map(torch.equal, once, twice))


class Whole(TorchDispatchMode):
    """Counts the results that have all rows."""

    def __init__(self, shape=(ROWS, WIDTH)):
        super().__init__()
        self.shape, self.memory = shape, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.shape == self.shape:
                self.memory.add(tensor.untyped_storage().data_ptr())
        return result


def test_with_recompute_only_input_output_and_their_gradients_have_all_rows(tiles):
    x, weights, biases, _, leaves = problem("post", (), "none", "number", ())
    with Whole() as forward:
        a = mg.mlp(x, weights, biases, "gelu", recompute=True)
    grad_a = torch.ones_like(a)
    with Whole() as backward:
        grads = torch.autograd.grad(a, leaves, grad_a)
    assert forward.memory <= {a.data_ptr(), x.data_ptr()}
    assert backward.memory <= {grads[0].data_ptr(), grad_a.data_ptr(), x.data_ptr()}


def rows_for(M, width, depth=4, dtype=torch.float32, **changes):
    x = torch.empty(M, width, dtype=dtype)
    weights = [torch.empty(width, width, dtype=dtype)] * depth
    tensors = [t for weight in weights for t in (changes.get("weight", weight), None)]
    chain = mg.functional.Chain((activation_of("relu", "test"),) * (depth + 1))
    return tiling.rows_at_once(chain, x, tensors)


def test_a_larger_cache_needs_fewer_tiles(monkeypatch, tmp_path):
    monkeypatch.setattr(tiling, "CACHE", 128 << 20)
    assert rows_for(65536, 64) == 0
    assert rows_for(65536, 128, 6) == 2048
    chain = mg.functional.Chain((activation_of("relu", "test"),) * 5, recompute=True)
    x, weight = torch.empty(65536, 64), torch.empty(64, 64)
    assert tiling.rows_at_once(chain, x, [weight, None] * 4) == 4096  # for the sake of memory
    for text, size in (("32768K", 48), ("266240K", 128), ("what?", 48)):
        file = tmp_path / "size"
        file.write_text(text)
        assert tiling._stays_in_cache(str(file)) == size << 20
    assert tiling._stays_in_cache(str(tmp_path / "none")) == 48 << 20


def test_the_rule():
    assert rows_for(65536, 64) == 4096
    assert rows_for(65536, 128, 6) == 2048
    assert rows_for(16384, 512) == 512
    assert rows_for(65536, 64, dtype=F64) == 4096
    assert rows_for(65536, 1024) == 0  # bound by its products
    assert rows_for(2048, 256) == 0  # in cache as it is
    assert rows_for(65536, 64, depth=1) == 0
    assert rows_for(65536, 64, dtype=torch.bfloat16) == 0
    assert rows_for(0, 64) == 0

    class Sub(torch.Tensor):
        pass

    for where, name, value in (
        (torch.compiler, "is_compiling", True),
        (tiling.compat, "transforms_active", True),
        (keeping, "backend_for", None),  # the kernels', say
    ):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(where, name, lambda *_, value=value: value)
            assert rows_for(65536, 64) == 0
    assert tiling.takes(torch.ones(2, 2), [None])
    assert not tiling.takes(torch.ones(2, 2), [None, torch.ones(2, 2)])
    assert not tiling.takes(None, [None])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not tiling.takes(torch.ones(2, 2), [None])
    assert rows_for(65536, 64, weight=torch.empty(64, 64).as_subclass(Sub)) == 0
