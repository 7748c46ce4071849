"""Narrow chains, ours in one kernel, and what they are compared with."""

import itertools

import torch
from cases import normal

import manualgrad as mg
from manualgrad import composite
from manualgrad.activations import ACTIVATIONS
from manualgrad.chain import Chain
from manualgrad.walks import IDENTITY

SKIPS = {
    "none": [],
    "pre": [mg.Skip(1, 2, "pre", 0.5), mg.Skip(2, 3, "pre", 0.5)],
    "post": [mg.Skip(0, 1, "post", 0.5), mg.Skip(1, 3, "post", 2.0)],
    "out": [mg.Skip(0, 2, "out", 0.5), mg.Skip(2, 3, "out", -1.0)],
    "one start": [mg.Skip(1, 2, "pre"), mg.Skip(1, 3, "out", 0.5), mg.Skip(1, 4, "post", 0.5)],
}


def operands(M, sizes, biased=True, dtype=torch.float64):
    """x, W1, b1, ..., WL, bL."""
    params = []
    for K, N in itertools.pairwise(sizes):
        params += [
            normal(N, K, dtype=dtype, scale=max(K, 1) ** -0.5),
            normal(N, dtype=dtype) if biased else None,
        ]
    return [normal(M, sizes[0], dtype=dtype), *params]


def both(acts, skips):
    chain = Chain((IDENTITY, *(ACTIVATIONS[act] for act in acts)), False, skips)

    def ours(x, *params):
        with mg.backend("narrow"):
            return mg.mlp(x, params[::2], params[1::2], list(acts), skips=skips)

    return ours, lambda x, *params: composite.mlp(x, chain, *params)[0]


def compare(acts, skips, tensors, launched, kernels, rtol=1e-10):
    for tensor in tensors:
        if tensor is not None:
            tensor.requires_grad_()
    leaves = [tensor for tensor in tensors if tensor is not None]
    results = []
    for net in both(acts, skips):
        a = net(*tensors)
        grad = torch.linspace(-1, 1, a.numel(), dtype=a.dtype, device=a.device).view(a.shape)
        results.append((a, *torch.autograd.grad(a, leaves, grad)))
    torch.testing.assert_close(*results, rtol=rtol, atol=rtol)
    assert launched == kernels
