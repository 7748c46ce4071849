"""ATen's kernels as we call them: infinities, results written over arguments, memory."""

import functools

import pytest
import torch

import manualgrad as mg
from benchmarks.weighing import peak_bytes
from manualgrad import aten, one_pass
from manualgrad.activations import activation_of

ONE_PASS = sorted(one_pass.ONE_PASS)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu", "mish", "hardswish"])
def test_large_matrices_are_looked_at_and_infinities_exact(name, monkeypatch):
    act = activation_of(name, "test")
    torch.manual_seed(0)
    z = 3 * torch.randn(one_pass.CHECKED)
    v = torch.randn(one_pass.CHECKED)
    sigma, times_prime = one_pass.kernels_of(act)
    clamps = []
    clamp = torch.Tensor.clamp
    monkeypatch.setattr(
        torch.Tensor, "clamp", lambda self, *a, **k: clamps.append(0) or clamp(self, *a, **k)
    )
    plain = sigma(z.clone()), times_prime(v, z)
    assert not clamps
    for mine, by_formula in zip(plain, (act.sigma(z), v * act.sigma_prime(z)), strict=True):
        torch.testing.assert_close(mine, by_formula, rtol=2e-5, atol=2e-6)
    largest = torch.finfo(z.dtype).max
    values = [torch.inf, -torch.inf, 1e30, -1e30, largest / 4, -largest / 4]
    # ATen's hardswish_backward knows NaN or not, by how many entries there are
    for value in values if name == "hardswish" else [*values, torch.nan]:
        z[7] = value
        small = z[:16].clone(), v[:16].clone()
        for large, few in (
            (sigma(z.clone()), sigma(small[0].clone())),
            (times_prime(v, z), times_prime(small[1], small[0])),
            (times_prime(over := v.clone(), z, into=over), times_prime(small[1], small[0])),
            (times_prime(v, over := z.clone(), into=over), times_prime(small[1], small[0])),
        ):
            torch.testing.assert_close(large[7], few[7], rtol=0, atol=0, equal_nan=True)
    assert clamps


FEW = [(8, 64), (1, 64), (64, 1), (0, 8), (5,), (2, 3, 4)]


@pytest.mark.parametrize("shape", FEW, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_gelu_of_few_entries(shape, dtype, monkeypatch):
    """A matrix goes past oneDNN, seen transposed; what comes back lies in memory as ever."""
    transposed = []
    t = torch.Tensor.t
    monkeypatch.setattr(torch.Tensor, "t", lambda self: transposed.append(0) or t(self))
    act = activation_of("gelu", "test")
    torch.manual_seed(0)
    z, v = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    sigma, times_prime = one_pass.kernels_of(one_pass.of_finite_z(act))
    a, delta = sigma(z), times_prime(v, z)
    past = dtype in (torch.float32, torch.bfloat16) and shape == (8, 64)
    assert len(transposed) == (5 if past else 0)
    assert a.is_contiguous()
    assert delta.is_contiguous()
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6}.get(dtype, 2e-2)
    exact, slope = act.sigma(z.double()), v.double() * act.sigma_prime(z.double())
    torch.testing.assert_close(a.double(), exact, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(delta.double(), slope, rtol=tolerance, atol=tolerance)
    assert torch.equal(times_prime(v.clone(), z, into=(over := v.clone())), over)
    if len(shape) == 2:  # seen transposed, what is transposed would go to oneDNN
        transposed.clear()
        there = z.mT.contiguous().mT
        torch.testing.assert_close(sigma(there), a)
        assert len(transposed) == 0 or there.is_contiguous()


@pytest.mark.parametrize("name", ONE_PASS)
def test_over_the_adjoint_the_same_numbers_are_written(name):
    act = activation_of(name, "test")
    torch.manual_seed(0)
    v, s = torch.randn(one_pass.CHECKED), torch.rand(one_pass.CHECKED)
    times_prime = one_pass.kernels_of(act)[1]
    expected, adjoint = times_prime(v, s), v.clone()
    below = times_prime(adjoint, s, into=adjoint)
    assert torch.equal(below, expected)
    assert (below.data_ptr() == adjoint.data_ptr()) is (name not in ("mish", "hardswish"))


def test_bp2_makes_no_second_matrix():
    delta, weight = torch.randn(256, 64), torch.randn(64, 64)
    s, act = torch.randn(256, 64).tanh(), activation_of("tanh", "test")
    found = []
    mm = torch.Tensor.mm

    def seen(self, other):
        found.append(mm(self, other))
        return found[-1]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.Tensor, "mm", seen)
        below, _, a = aten.bp2_propagate_error(delta, weight, s, act)
    assert below is found[0]
    assert a is s
    torch.testing.assert_close(below, delta @ weight * (1 - s * s), rtol=1e-5, atol=1e-5)
    few, _, _ = aten.bp2_propagate_error(delta[:8], weight, s[:8], act)
    torch.testing.assert_close(few, below[:8], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("act", [torch.nn.GELU, torch.nn.ReLU])
def test_without_gradients_nothing_is_kept(act):
    torch.manual_seed(0)
    eager = torch.nn.Sequential(*(m for _ in range(8) for m in (torch.nn.Linear(64, 64), act())))
    net = mg.nn.MLP.from_sequential(eager)
    x = torch.randn(4096, 64)
    with torch.no_grad():
        torch.testing.assert_close(net(x), eager(x))
        held = peak_bytes(functools.partial(net, x), "cpu")
    assert held <= 3 * x.nbytes  # what a layer reads, its z and its a, however many layers
