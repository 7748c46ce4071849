"""Functions that are right: torch's own, ours and foreign ones. A finding here is a false alarm."""

import torch
import torch.nn.functional as F
from faults.planted import B, Layer, W, X, native, normal
from faults.transforms import Cube
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrizations

import manualgrad as mg

X32, W32, B32 = X.float(), W.float(), B.float()
SEQUENCE = normal(2, 4, 8).float()
SPARSE = torch.eye(len(X32)).to_sparse()
CLASSES = torch.tensor([0, 1, 2, 1, 0])


class Opaque(Layer):
    """Through numpy, as through somebody's kernel, and it says that it differentiates once."""

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        saved = ctx.saved_tensors
        x, weight, a, g = (t.numpy() for t in (*saved, grad))
        delta = g * (1.0 - a * a)
        rows = delta.reshape(-1, delta.shape[-1])
        found = delta @ weight, rows.T @ x.reshape(-1, x.shape[-1]), rows.sum(0)
        return tuple(torch.from_numpy(f.copy()) for f in found)


class TwoDimensional(Function):
    """As tutorials write it: right for matrices, and for nothing else."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.t() @ x


class Two(Function):
    """Two outputs, of which one may be unused."""

    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        return x.sin(), x.square()

    @staticmethod
    def backward(ctx, one, two):
        (x,) = ctx.saved_tensors
        parts = [] if one is None else [one * x.cos()]
        parts += [] if two is None else [2 * x * two]
        return sum(parts) if parts else None


def masked(x, mask, scale, name):
    """Arguments that are no floating tensors, a float and a string among them."""
    return torch.where(mask, scale * x, x.sin()) if name == "mask" else x


def _force(x):
    return torch.autograd.grad(x.pow(3).sum(), x, create_graph=True)[0]


class Empty(nn.Module):
    """A module that is false."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def __len__(self):
        return 0

    def forward(self, x):
        return x * self.weight


def _mlp(*acts):
    sizes = [3, 5, 4]
    return nn.Sequential(
        *(
            m
            for k, n, a in zip(sizes[:-1], sizes[1:], acts, strict=True)
            for m in (nn.Linear(k, n), a)
        )
    )


def foreign():
    def linear_reference(x, weight):
        return F.linear(x, weight)

    yield "a Function", Layer, (X, W, B), None
    yield "a Function in float32", Layer, (X32, W32, B32), None
    yield "a Function beside a reference", Layer, (X32, W32, B32), native
    yield "a Function with jvp and vmap", Cube, (X32,), lambda x: x**3
    yield "a Function of numpy", Opaque, (X, W, B), native
    yield "a Function of matrices", TwoDimensional, (X, W), linear_reference
    yield "a Function of two outputs", Two, (X,), lambda x: (x.sin(), x.square())
    yield "its apply", Layer.apply, (X, W, B), None


def of_torch():
    yield "Linear", nn.Linear(3, 4), (X32,), nn.Linear(3, 4)
    yield "Linear and F.linear", nn.Linear(3, 4), (X32,), F.linear
    yield "Sequential", _mlp(nn.ReLU(), nn.GELU()), (X32,), None
    yield "in place", _mlp(nn.ReLU(inplace=True), nn.ELU(inplace=True)), (X32,), None
    yield "in place on the input", nn.ReLU(inplace=True), (X32,), None
    yield "ReLU at its kink", nn.ReLU(), (torch.zeros(3, 4),), F.relu
    yield "GELU", nn.GELU(), (X32,), F.gelu
    yield "Softmax", nn.Softmax(-1), (X32,), None
    yield "Conv2d", nn.Conv2d(2, 3, 3), (normal(2, 2, 5, 5).float(),), None
    yield "LayerNorm", nn.LayerNorm(8), (SEQUENCE,), None
    yield "BatchNorm1d", nn.BatchNorm1d(3), (X32,), None
    yield "BatchNorm1d, eval", nn.BatchNorm1d(3).eval(), (X32,), None
    yield "Dropout", nn.Dropout(0.5), (X32,), None
    yield "MaxPool1d", nn.MaxPool1d(2), (SEQUENCE,), None
    yield "Embedding", nn.Embedding(10, 3), (torch.tensor([[1, 2], [2, 9]]),), None
    yield "Bilinear", nn.Bilinear(3, 3, 2), (X32, X32 + 1), None
    yield "attention", nn.MultiheadAttention(8, 2, batch_first=True), (SEQUENCE,) * 3, None
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    yield "TransformerEncoderLayer, with dropout", layer, (SEQUENCE,), None
    yield "LSTM", nn.LSTM(8, 5), (SEQUENCE,), None
    yield "GRU", nn.GRU(8, 5), (SEQUENCE,), None
    yield "LazyLinear", nn.LazyLinear(4), (X32,), None
    yield "orthogonal", parametrizations.orthogonal(nn.Linear(3, 3)), (X32,), None
    yield "cross-entropy", nn.CrossEntropyLoss(), (X32, CLASSES), None
    yield "mean squared error", F.mse_loss, (X32, X32 + 1), None
    yield "scalar", torch.sin, (torch.tensor(0.3),), None
    yield "empty", torch.sin, (torch.zeros(0, 3),), None
    yield "log of a domain", torch.log, (X32.abs() + 0.1,), None
    yield "singular values", torch.linalg.svdvals, (X32,), None
    yield "a sort", lambda t: t.sort(0), (X32,), None
    yield "complex", lambda z: z.abs() + z.imag, (torch.complex(X, X + 1),), None
    yield "bfloat16", lambda x, w: F.gelu(x @ w.T), (X.bfloat16(), W.bfloat16()), None
    yield "float16", lambda x, w: torch.sigmoid(x @ w.T), (X.half(), W.half()), None
    yield "not contiguous", torch.tanh, (normal(3, 4).T,), torch.tanh
    yield "expanded", torch.tanh, (normal(1, 4).expand(3, 4),), torch.tanh
    yield "trees", lambda d, ts: {"a": d["x"] * ts[0]}, ({"x": X32}, [X32, None]), None
    yield "other arguments", masked, (X32, X32 > 0, 1.5, "mask"), None
    yield (
        "of complex numbers",
        nn.Linear(3, 2, dtype=torch.cfloat),
        (torch.complex(X32, X32),),
        None,
    )
    yield "to complex numbers", lambda x: torch.fft.rfft(x), (X32,), None
    yield "rarely random", nn.Dropout(0.02), (X32[:2, :2],), None
    yield "of probabilities", F.binary_cross_entropy, (X32.sigmoid(), (X32 > 0).float()), None
    yield "a mask", lambda x: x[x > 0], (torch.tensor([0.01, -0.02, 1.0, 2.0]),), None
    yield "a gradient", torch.func.grad(lambda x: x.pow(3).sum()), (X32,), None
    yield "a force", _force, (X32,), None
    yield "an overflow", lambda x: x * x, ((200 * X32).half(),), None
    yield "infinity", torch.tanh, (torch.tensor([torch.inf, 1.0, 2.0]),), None
    yield "NaN", torch.sin, (torch.tensor([torch.nan, 1.0, 2.0]),), None
    yield "an edge", torch.sqrt, (torch.tensor([0.0, 1.0, 2.0]),), None
    yield "a sparse matrix", lambda x: SPARSE @ x, (X32,), None
    yield "a sparse gradient", nn.Embedding(10, 3, sparse=True), (torch.tensor([1, 2, 2]),), None
    yield "a special function", torch.digamma, (X32.abs() + 0.5,), None
    yield "an empty container", Empty(), (X32,), None
    yield "a determinant", lambda x: torch.linalg.slogdet(x)[1], (normal(5, 5).float(),), None
    yield "linear algebra", torch.linalg.solve, (torch.eye(3) * 3 + 0.3 * X32[:3], X32[:3]), None


def ours():
    def reference(x, weights, biases, name):
        for weight, bias in zip(weights, biases, strict=True):
            x = F.gelu(F.linear(x, weight, bias))
        return x

    chain = (X32, [W32, normal(2, 4).float()], [B32, None], "gelu")
    yield "mlp", mg.mlp, chain, reference
    yield "MLP", mg.nn.MLP([3, 8, 2], "silu"), (X32,), None
    yield "linear_act", mg.linear_act, (X32, W32, B32, "tanh"), lambda x, w, b, _: native(x, w, b)
    yield "cross_entropy", mg.cross_entropy, (X32, CLASSES), F.cross_entropy


CORRECT = {name: (fn, inputs, ref) for name, fn, inputs, ref in (*foreign(), *of_torch(), *ours())}
