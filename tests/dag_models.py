"""What the tests of mg.dag record."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import manualgrad as mg


def numbers(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64) * scale


class Block(nn.Module):
    """A residual MLP block between two layers, as a model is written."""

    def __init__(self, width=6):
        super().__init__()
        self.first, self.last = nn.Linear(4, width), mg.nn.Linear(width, 3, activation="tanh")
        self.norm, self.branch = nn.LayerNorm(width), mg.nn.MLP([width, 2 * width, width], "gelu")
        self.double()

    def forward(self, x):
        x = F.relu(self.first(x))
        x = x + 0.5 * self.branch(self.norm(x))
        return self.last(x)


def recorded(model, x, target):
    with mg.dag.record(model) as tape:
        loss = mg.mse_loss(model(tape.watch(x)), target)
    tape.backward(loss)
    return tape, loss
