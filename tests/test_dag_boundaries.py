"""Where a recording ends: complex numbers, compiled functions, hooks, and the memory of adjoints."""

import pytest
import torch
from dag_models import Block, numbers
from helpers import f64
from torch import nn

import manualgrad as mg

# complex numbers

COMPLEX = {
    "fft": lambda x: torch.fft.fft(x).real,
    "rfft": lambda x: torch.fft.rfft(x).abs(),
    "views": lambda x: torch.view_as_real(torch.view_as_complex(x) * (1 + 2j)),
    "complex": lambda x: torch.complex(x, x).abs(),
    "times 1j": lambda x: (x * 1j).imag,
    "plus 1j": lambda x: (x + 1j).abs(),
    "to": lambda x: x.to(torch.complex128).abs(),
    "to, like": lambda x: x.to(torch.zeros(1, dtype=torch.complex128)).real,
    "cdouble": lambda x: x.cdouble().real,
    "a constant": lambda x: (x * torch.ones(3, 2, dtype=torch.complex128)).real,
}


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_results_are_no_constants(name):
    """Each has a gradient of torch's, which would be lost in silence."""
    x, leaf = numbers(3, 2), f64(3, 2)
    (gradient,) = torch.autograd.grad(COMPLEX[name](leaf).sum(), leaf, allow_unused=True)
    assert gradient is not None
    with mg.dag.record() as tape:
        a = tape.watch(x)
        with pytest.raises(mg.dag.NoRuleError):
            a.sum() + COMPLEX[name](a).sum()
    with mg.dag.through_autograd(), pytest.raises(mg.dag.NoRuleError):
        leaf.sum() + COMPLEX[name](leaf).sum()


def test_complex_leaves_are_refused():
    c = nn.Parameter(torch.ones(3, dtype=torch.complex128))
    with mg.dag.record() as tape:
        with pytest.raises(TypeError, match="real and the imaginary part as two"):
            tape.watch(c)
        for use in (lambda: c * 2, lambda: c * c, lambda: c.sum(), lambda: c.abs()):
            with pytest.raises(mg.dag.NoRuleError):
                use()
    with mg.dag.through_autograd(), pytest.raises(mg.dag.NoRuleError, match="complex"):
        c * c


def test_complex_constants_are_as_before():
    x, c = numbers(3), torch.full((3,), 3 + 4j, dtype=torch.complex128)
    with mg.dag.record() as tape:
        y = (tape.watch(x) * (c * c).abs()).sum()
        assert (x.detach() * 1j).is_complex()
    tape.backward(y)
    assert torch.equal(tape.adjoint(x), torch.full_like(x, 25.0))


# compiled functions


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("first", [True, False], ids=["in the block", "compiled before"])
@pytest.mark.filterwarnings("ignore")
def test_compiled_functions_are_refused(backend, first):
    """Dynamo traced the tape's own code: wrong numbers, RecursionError, an int for a tensor."""
    for module in (lambda v: (v * v).tanh(), nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double()):
        torch.compiler.reset()
        compiled, x = torch.compile(module, backend=backend), numbers(3, 4)
        if not first:
            compiled(x)
        with mg.dag.record() as tape:
            a = tape.watch(x)
            for operand in (a, x):
                with pytest.raises(RuntimeError, match="cannot be recorded; call it uncompiled"):
                    compiled(operand)
            module(a)  # the way out
        with mg.dag.through_autograd(), pytest.raises(RuntimeError, match="call it uncompiled"):
            compiled(x.clone().requires_grad_())
        assert torch.allclose(compiled(x), module(x))  # no trace is left of the recording
    torch.compiler.reset()


# memory


def test_what_is_returned_shares_no_memory():
    x, k, start = numbers(3), numbers(3), numbers(3)
    kept = start.clone()
    with mg.dag.record() as tape:
        h = tape.watch(x) * 2.0
        y = h + tape.watch(k)
    tape.backward(y, start)
    read = [
        lambda: tape.adjoint(h),
        lambda: tape.adjoint(k),
        lambda: tape.adjoint(y),
        lambda: tape.contributions(h)[0],
        lambda: tape.contributions(k)[0],
    ]
    for change in read:
        change().mul_(5)
    assert all(torch.equal(r(), kept) for r in read)
    assert torch.equal(start, kept)
    start.mul_(5)
    assert all(torch.equal(r(), kept) for r in read)


def test_an_adjoint_that_is_expanded_can_be_changed():
    x = numbers(3)
    with mg.dag.record() as tape:
        y = (tape.watch(x) * 1.0).tanh()
        cost = y.sum()
    tape.backward(cost)
    changed = tape.adjoint(y)
    changed[0] = 7.0
    assert changed.tolist() == [7.0, 1.0, 1.0]


# hooks


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_that_were_there_before_are_refused(register):
    model, x = Block(), numbers(5, 4)
    handle = getattr(model.first.weight, register)(lambda *_: None)
    leaf = f64(3)
    getattr(leaf, register)(lambda *_: None)
    with mg.dag.record(model) as tape:
        with pytest.raises(RuntimeError, match=r"first\.weight .*calls no hooks; remove them"):
            model(tape.watch(x))
        with pytest.raises(RuntimeError, match="calls no hooks"):
            tape.watch(leaf)
        handle.remove()
        y = model(tape.watch(x)).sum()
    tape.backward(y)
    assert tape.adjoint(model.first.weight).any()
