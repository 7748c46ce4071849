"""Small models that patch finds pairs in, and how two are compared."""

import torch
from torch import nn


class Mlp(nn.Module):
    """fc1, act, fc2: readable, so found without an example."""

    def __init__(self, act=None):
        super().__init__()
        self.fc1 = nn.Linear(4, 8)
        self.act = nn.GELU() if act is None else act
        self.fc2 = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Hidden(Mlp):
    """The same, called by names that no source shows: found on an example only."""

    def forward(self, x):
        for name in ("fc", "act", "fc"):
            x = getattr(self, name if name == "act" else f"{name}{1 + (x.shape[-1] == 8)}")(x)
        return x


def chain(act=nn.ReLU):
    layers = [nn.Linear(4, 8), act(), nn.Linear(8, 8), act(), nn.Dropout(0.1), nn.Linear(8, 4)]
    return nn.Sequential(*layers)


def encoder(activation="relu"):
    return nn.TransformerEncoderLayer(4, 2, 8, activation=activation, batch_first=True)


def inputs():
    return torch.randn(3, 5, 4)


def gradients(model, x, seed=0):
    torch.manual_seed(seed)
    model.zero_grad()
    y = model(x)
    y.square().sum().backward()
    return [y.detach(), *(p.grad.clone() for p in model.parameters())]


def classes(model):
    return [type(module) for module in model.modules()]


def assert_same(model, twin, x):
    # of so few entries ours is ATen's gelu, more exact than oneDNN's
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
        expected = gradients(twin, x)
    for ours, theirs in zip(gradients(model, x), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6)
