"""One row per rule: the rule, its inputs in float64, and torch's own operation beside it."""

import torch
import torch.nn.functional as F

import manualgrad as mg
from manualgrad.dag import rules

INDICES = torch.tensor([[0, 3, 3], [1, 0, 3]])
MASK = torch.tensor([[True, False, True], [False, False, True]])


# name: (rule, torch's, shapes of the inputs)
ROWS = {
    "add": (rules.add, torch.add, [(2, 3), (2, 3)]),
    "add, broadcast": (rules.add, torch.add, [(2, 1, 3), (4, 1)]),
    "add, a number": (lambda x: rules.add(2.5, x), lambda x: 2.5 + x, [(2, 3)]),
    "sub": (rules.sub, torch.sub, [(2, 3), (3,)]),
    "sub, from a number": (lambda x: rules.sub(1.0, x), lambda x: 1.0 - x, [(2, 3)]),
    "mul": (rules.mul, torch.mul, [(2, 3), (2, 3)]),
    "mul, broadcast": (rules.mul, torch.mul, [(2, 1, 3), (4, 1)]),
    "div": (
        lambda x, y: rules.div(x, 2.0 + y * y),
        lambda x, y: x / (2.0 + y * y),
        [(2, 3), (3,)],
    ),
    "div, by a number": (lambda x: rules.div(x, 3.0), lambda x: x / 3.0, [(2, 3)]),
    "scale": (lambda x: rules.scale(x, -0.3), lambda x: x * -0.3, [(2, 3)]),
    "power": (lambda x: rules.power(x, 3), lambda x: x**3, [(2, 3)]),
    "power, of a root": (
        lambda x: rules.power(1.5 + x * x, -0.5),
        lambda x: (1.5 + x * x) ** -0.5,
        [(2, 3)],
    ),
    "power, 0": (lambda x: rules.power(x, 0) * x, lambda x: x**0 * x, [(2, 3)]),
    "exp": (rules.exp, torch.exp, [(2, 3)]),
    "log": (lambda x: rules.log(1.5 + x * x), lambda x: torch.log(1.5 + x * x), [(2, 3)]),
    "matmul": (rules.matmul, torch.matmul, [(2, 3), (3, 4)]),
    "matmul, batches": (rules.matmul, torch.matmul, [(5, 1, 2, 3), (4, 3, 2)]),
    "matmul, vectors": (rules.matmul, torch.matmul, [(3,), (3,)]),
    "matmul, vector and matrices": (rules.matmul, torch.matmul, [(3,), (2, 3, 4)]),
    "matmul, matrices and vector": (rules.matmul, torch.matmul, [(2, 4, 3), (3,)]),
    "sum": (rules.sum, torch.sum, [(2, 3)]),
    "sum, a dimension": (lambda x: rules.sum(x, -2), lambda x: x.sum(-2), [(2, 3, 4)]),
    "mean": (
        lambda x: rules.mean(x, (0, 2), keepdim=True),
        lambda x: x.mean((0, 2), keepdim=True),
        [(2, 3, 4)],
    ),
    "reshape": (lambda x: rules.reshape(x, (3, -1)), lambda x: x.reshape(3, -1), [(2, 3, 4)]),
    "permute": (
        lambda x: rules.permute(x, (2, 0, -2)),
        lambda x: x.permute(2, 0, 1),
        [(2, 3, 4)],
    ),
    "transpose": (lambda x: rules.transpose(x, -1, 0), lambda x: x.transpose(-1, 0), [(2, 3)]),
    "expand": (lambda x: rules.expand(x, (4, 2, 3)), lambda x: x.expand(4, 2, 3), [(2, 1)]),
    "copy": (rules.copy, torch.clone, [(2, 3)]),
    "slice": (lambda x: rules.slice(x, 1, 1, 2), lambda x: x[:, 1:3], [(2, 4)]),
    "slice, every other": (
        lambda x: rules.slice(x, -1, 0, 2, 2),
        lambda x: x[..., 0:3:2],
        [(2, 5)],
    ),
    "cat": (lambda x, y: rules.cat((x, y), -1), lambda x, y: torch.cat((x, y), -1), [(2, 3), (2, 1)]),
    "unfold": (
        lambda x: rules.unfold(x, (2, 3), 1, (1, 0), 2),
        lambda x: F.unfold(x, (2, 3), 1, (1, 0), 2),
        [(2, 1, 4, 5)],
    ),
    "softmax": (lambda x: rules.softmax(x, -1), lambda x: x.softmax(-1), [(2, 5)]),
    "softmax, over rows": (lambda x: rules.softmax(x, 0), lambda x: x.softmax(0), [(4, 2)]),
    "layer norm": (
        lambda x, w, b: rules.layer_norm(x, (4,), w, b),
        lambda x, w, b: F.layer_norm(x, (4,), w, b),
        [(3, 2, 4), (4,), (4,)],
    ),
    "layer norm, two dimensions": (
        lambda x: rules.layer_norm(x, (2, 4), eps=1e-3),
        lambda x: F.layer_norm(x, (2, 4), eps=1e-3),
        [(3, 2, 4)],
    ),
    "embedding": (
        lambda w: rules.embedding(INDICES, w),
        lambda w: F.embedding(INDICES, w),
        [(4, 2)],
    ),
    "embedding, padding": (
        lambda w: rules.embedding(INDICES, w, 3),
        lambda w: F.embedding(INDICES, w, 3),
        [(4, 2)],
    ),
    "where": (
        lambda x, y: rules.where(MASK, x, y),
        lambda x, y: torch.where(MASK, x, y),
        [(2, 3), (3,)],
    ),
    "where, a number": (
        lambda x: rules.where(MASK, -1e9, x),
        lambda x: x.masked_fill(MASK, -1e9),
        [(2, 3)],
    ),
}  # fmt: skip

ACTIVATIONS = [name for name in mg.activations() if name != "identity"]
