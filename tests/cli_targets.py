"""What the tests of the command line name as targets."""

from typing import NamedTuple

import torch
from torch.autograd import Function


class Wrong(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


def right():
    return torch.sin, torch.randn(4, 3)


def wrong():
    return Wrong, torch.randn(4, 3)


def beside():
    return Wrong, torch.randn(4, 3), {"reference": torch.exp, "only": ["native"]}


def tree():
    return (lambda d: d["x"] ** 2), {"x": torch.randn(3)}


def module():
    return torch.nn.Linear(3, 2), torch.randn(4, 3)


def nothing():
    return 3


def misfit():
    return torch.sin, torch.arange(3)


def broken():
    raise RuntimeError("no data here")


def ends():
    raise SystemExit(0)


def ends_within():
    return (lambda x: exit(0)), torch.randn(3)


def misspelt():
    return torch.sin, torch.randn(3), {"refrence": torch.sin}


def half_known():
    return torch.sin, torch.randn(3), {"seed": 1, "judges": "adjoint"}


def uncopyable():
    net = torch.nn.Linear(3, 2)
    net.made = net.weight * 2
    return net, torch.randn(4, 3)


def lazy():
    return torch.nn.Sequential(torch.nn.LazyLinear(2), torch.nn.LazyBatchNorm1d()), torch.randn(
        4, 3
    )


def lazy_misfit():
    return torch.nn.LazyLinear(2), torch.tensor(1.0)


def complex():
    return torch.abs, torch.randn(3, dtype=torch.complex64)


def reads():
    weight = torch.randn(3)
    return (lambda x: x * weight), torch.randn(3)


def report():
    import manualgrad as mg

    return mg.check(torch.sin, torch.ones(2), only="adjoint")


def no_tuple():
    return ()


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


def blocks():
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2).eval())


WEIGHT = torch.ones(2, requires_grad=True)
NET = blocks()


def same(d, p, t, net):
    dtypes = {x.dtype for x in (d["x"], p.x, t, net[0].weight, WEIGHT, NET[1].running_mean)}
    if len(dtypes) > 1:
        raise TypeError(f"mixed: {dtypes}")
    return NET(p.y * d["x"] + t) * WEIGHT


def everywhere():
    x = torch.randn(4, 3)
    params = [WEIGHT, *NET.parameters()]
    options = {"params": params, "only": ["adjoint", "conduct"]}
    return same, {"x": x}, Pair(x, x), x, torch.nn.Sequential(torch.nn.Linear(2, 2)), options


def beside_a_module():
    return blocks(), torch.randn(4, 3), {"reference": blocks(), "only": "native"}


def prints():
    print("made")
    return (lambda x: print("called") or x.sin()), torch.randn(3)
