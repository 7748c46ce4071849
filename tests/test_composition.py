"""Inside everything PyTorch puts around a model: right numbers, and whose backward gave them."""

import contextlib
import itertools

import pytest
import torch
import torch.nn.functional as F
from modes import MODES, OURS
from opaque import opaque_kernels
from selection import marked

import manualgrad as mg
from manualgrad import aten, differentiable, equations, ops, small
from manualgrad.activations import activation_of

ACTS = ("gelu", "relu", "identity", "leaky_relu(negative_slope=0.2)")


def tensors(dtype=torch.float64):
    torch.manual_seed(0)
    shapes = (5, 4), (6, 4), (6,), (3, 6), (3,)
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def chain(name):
    act = activation_of(name, "test")

    def f(x, w1, b1, w2, b2):
        return mg.mlp(x, [w1, w2], [b1, b2], act)

    return f


def layers(name):
    act = activation_of(name, "test")

    def f(x, w1, b1, w2, b2):
        return mg.linear_act(mg.linear_act(x, w1, b1, act), w2, b2, act)

    return f


def native(name):
    sigma = activation_of(name, "test").oracle

    def f(x, w1, b1, w2, b2):
        return sigma(F.linear(sigma(F.linear(x, w1, b1)), w2, b2))

    return f


pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch.jit's, in torch's own code
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*[Aa]nomaly"),
]


def setting(kernels, monkeypatch):
    return opaque_kernels(monkeypatch) if kernels == "opaque" else contextlib.nullcontext()


# one activation in all four settings, the others in one each; of what takes seconds, the least
SETTINGS = list(itertools.product((chain, layers), ("plain", "opaque")))
ELSEWHERE = {(chain, "plain"): ACTS[1:3], (layers, "opaque"): ACTS[3:]}
CASES = [
    (mode, act, make, kernels)
    for mode in MODES
    for make, kernels in SETTINGS
    for act in (ACTS[0], *ELSEWHERE.get((make, kernels), ()))
    if act == ACTS[0] or "inductor" not in mode
]
SENTINELS = [
    (mode, make, kernels)
    for mode, act, make, kernels in CASES
    if act == "gelu"
    and MODES[mode][1]
    and ("inductor" not in mode or (make, kernels) == (layers, "plain"))
]


def taken(cases):
    """Of a mode that takes long, two settings that differ in both.

    Where it is torch.compile, one activation elsewhere too: test_audit.py compiles them all.
    """
    diagonals = {(chain, "opaque"), (layers, "plain")}, {(chain, "plain"), (layers, "opaque")}
    slow = [mode for mode in MODES if mode.startswith(("compile", "export", "make_fx, symbolic"))]
    other = dict(zip(slow, itertools.cycle(ACTS[1:]), strict=False))

    def is_taken(mode, *act, make, kernels):
        if mode not in slow or "inductor" in mode:
            return True
        if act and act[0] != ACTS[0]:
            return act[0] == other[mode] or not mode.startswith("compile")
        return (make, kernels) in diagonals[slow.index(mode) % 2]

    return [c for c in cases if is_taken(*c[:-2], make=c[-2], kernels=c[-1])]


# gelu's numbers are asked for where it is asked whose they are
NUMBERS = [case for case in CASES if (case[0], *case[2:]) not in SENTINELS or case[1] != "gelu"]


@pytest.mark.parametrize(("mode", "act", "make", "kernels"), marked(NUMBERS, taken(NUMBERS)))
def test_right_numbers(mode, act, make, kernels, monkeypatch):
    differentiate, _ = MODES[mode]
    with setting(kernels, monkeypatch):
        got = differentiate(make(act), tensors())
    torch.testing.assert_close(got, differentiate(native(act), tensors()))


@pytest.mark.parametrize(("mode", "make", "kernels"), marked(SENTINELS, taken(SENTINELS)))
def test_whose_backward_runs(mode, make, kernels, monkeypatch, tmp_path):
    """The numbers are right; with BP4 doubled, the weights' double if, and only if, ours ran."""
    differentiate, whose = MODES[mode]
    with setting(kernels, monkeypatch) as opaque:
        before = differentiate(make("gelu"), tensors())
        torch.testing.assert_close(before, differentiate(native("gelu"), tensors()))
        for backend in (aten, differentiable, equations, ops, *([opaque] if opaque else [])):
            rule = backend.bp4_weight_gradient
            doubled = lambda *t, rule=rule, **k: 2 * rule(*t, **k)  # noqa: E731
            monkeypatch.setattr(backend, "bp4_weight_gradient", doubled)
        monkeypatch.setattr(small, "backward", with_weights_doubled(small.backward))
        # torch.compile's caches cannot tell that a rule was patched
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
        after = differentiate(make("gelu"), tensors())
    pairs = list(zip(flat(before), flat(after), strict=True))
    weights = [torch.allclose(2 * a, b) for a, b in pairs if not torch.allclose(a, b)]
    assert weights == [True] * (2 if whose == OURS else 0)


def with_weights_doubled(backward):
    def doubled(*given):
        of_x, of_chain, *grads = backward(*given)
        return of_x, of_chain, *[g if at % 2 or g is None else 2 * g for at, g in enumerate(grads)]

    return doubled


def flat(results):
    return torch.utils._pytree.tree_leaves(results)
