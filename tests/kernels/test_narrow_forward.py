"""Chains of layers up to 128 wide: forward in one kernel, which writes what backward reads."""

import pytest
import torch
from cases import NAMES, normal
from narrow_chains import SKIPS, both, compare, operands

import manualgrad as mg

FORWARD = ["narrow_forward_kernel"]  # the interpreter's other operations are ATen's


@pytest.mark.parametrize("kind", SKIPS)
@pytest.mark.parametrize("acts", [("gelu", "tanh", "silu", "relu"), ("relu",) * 4], ids=str)
def test_wide_layers_forward(kind, acts, launched):
    """What each layer keeps is written by one kernel: s^l, and a^l where a skip is added to it."""
    compare(acts, SKIPS[kind], operands(9, [66] * 5), launched, FORWARD)


@pytest.mark.parametrize("name", NAMES)
def test_wide_layers_forward_with_every_activation(name, launched):
    tensors = operands(5, [3, 128, 7])
    tensors[1].data *= 0.5
    compare((name, name), [], tensors, launched, FORWARD)


def test_wide_layers_without_gradients(launched):
    tensors = operands(33, [3, 100, 128, 128, 2], biased=False)
    ours, native = both(("gelu", "silu", "tanh", "identity"), SKIPS["pre"][1:])
    with torch.no_grad():
        tensors[5] = tensors[5][:, :100] @ normal(100, 128)
        torch.testing.assert_close(ours(*tensors), native(*tensors))
    assert launched == FORWARD


def test_wide_layers_that_keep_their_input_alone(launched):
    """With recompute backward walks forward again: in one kernel too."""
    x, w, b = (tensor.requires_grad_() for tensor in (normal(9, 70), normal(70, 70), normal(70)))

    def chain(backend):
        with mg.backend(backend):
            return mg.mlp(x, [w / 8] * 3, [b] * 3, "gelu", recompute=True)

    found, expected = (torch.autograd.grad(chain(m).sum(), [x, w, b]) for m in ("narrow", "torch"))
    torch.testing.assert_close(found, expected)
    assert launched == FORWARD * 2


def test_wide_layers_second_derivatives():
    tensors = [tensor.requires_grad_() for tensor in operands(2, [2, 66, 2])]
    ours, _ = both(("silu", "tanh"), [])
    assert torch.autograd.gradcheck(ours, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(ours, tensors, fast_mode=True)


def test_weights_that_do_not_fit_on_the_chip_are_refused(kernels):
    machine = kernels.launch.Machine("cuda", 90, 132, 232448)
    x = torch.empty(8, 128, dtype=torch.bfloat16, device="meta")
    with kernels.launch.rehearse(machine):
        assert kernels.narrow_problem([128] * 7, range(6), x, "forward") is None
        told = kernels.narrow_problem([128] * 8, range(7), x, "forward")
        assert "246784 bytes of shared memory; there are 232448" in told
        assert kernels.narrow_problem([128] * 15, [0] * 14, x, "forward") is None
