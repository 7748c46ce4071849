"""What several test modules share."""

import subprocess
import sys

import torch
import torch.nn.functional as F
from torch import nn

from manualgrad.activations import ACTIVATIONS
from manualgrad.backends import Problem

NAMES = sorted(ACTIVATIONS)

# torch's own module for each activation: the other implementation of forward and backward
MODULES = {
    "celu": nn.CELU(),
    "elu": nn.ELU(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "hardsigmoid": nn.Hardsigmoid(),
    "hardswish": nn.Hardswish(),
    "identity": nn.Identity(),
    "leaky_relu": nn.LeakyReLU(),
    "log_sigmoid": nn.LogSigmoid(),
    "mish": nn.Mish(),
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "selu": nn.SELU(),
    "sigmoid": nn.Sigmoid(),
    "silu": nn.SiLU(),
    "softplus": nn.Softplus(),
    "softsign": nn.Softsign(),
    "tanh": nn.Tanh(),
}


def native(name):
    """sigma as torch writes it, differentiated by torch's own autograd."""
    others = {
        # not nn.Hardsigmoid: its backward takes 1/6 in float32, also for float64
        "hardsigmoid": lambda z: F.relu6(z + 3.0) / 6.0,
        "gaussian": lambda z: torch.exp(-(z * z)),
        "quick_gelu": lambda z: z * torch.sigmoid(1.702 * z),
        "relu_squared": lambda z: torch.relu(z) * torch.relu(z),
        "sine": torch.sin,
    }
    return others.get(name) or MODULES[name]


def native_mlp(x, weights, biases, names):
    for weight, bias, name in zip(weights, biases, names, strict=True):
        x = native(name)(F.linear(x, weight, bias))
    return x


def f64(*shape, requires_grad=True):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=requires_grad)


def problem(operation, name="gelu", dtype=torch.bfloat16, M=8192, N=1024, P=1024, **others):
    """What the table of backends decides on, on an H200 unless said otherwise."""
    given = {"aligned": True, "bias": True, "arch": 90, "multiprocessors": 132} | others
    return Problem(operation, ACTIVATIONS[name], dtype, M, N, P, **given)


class Other(torch.Tensor):
    """A subclass that does not ask to be told of torch's functions, as DTensor does not."""

    __torch_function__ = torch._C._disabled_torch_function_impl


def is_small(output):
    """The chain that made it went the way of manualgrad.small."""
    return type(output.grad_fn).__name__ == "SmallMLPFunctionBackward"


def command(*arguments, **options):
    """The command line in a process of its own."""
    line = [sys.executable, "-m", "manualgrad", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(line, text=True, **pipes, **options)
