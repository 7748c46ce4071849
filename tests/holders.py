"""Networks in which somebody else has the gradient that arrives at one of our nodes."""

import numpy as np
import torch
from torch import nn

# Each calls net on x, in a network in which somebody else has the gradient of its output, and
# returns (the network's result, what is to be kept unchanged, once backward has run).


def kept_by_a_hook(net, x):
    a, kept = net(x), []
    a.register_hook(kept.append)
    return a * 3.0, lambda: kept


def kept_as_a_view(net, x):
    a, kept = net(x), []
    a.register_hook(lambda grad: kept.append(grad.detach()[1:]))
    return a * 3.0, lambda: kept


def kept_as_an_array(net, x):
    a, kept = net(x), []
    a.register_hook(lambda grad: kept.append(grad.numpy()))
    return a * 3.0, lambda: list(map(torch.from_numpy, kept))


def kept_by_a_hook_of_the_node(net, x):
    a, kept = net(x), []
    node = a.grad_fn
    while "Function" not in node.name():
        node = node.next_functions[0][0]
    node.register_prehook(lambda grads: kept.append(grads[0]))
    return a * 3.0, lambda: kept


def seen_by_a_hook_afterwards(net, x):
    a, kept = net(x), []
    node = a.grad_fn
    while "Function" not in node.name():
        node = node.next_functions[0][0]
    node.register_hook(lambda _, grads: kept.append(grads[0].clone()))
    return a * 3.0, lambda: kept


def kept_by_a_module_hook(net, x):
    kept = []
    outer = nn.Sequential(net)
    outer.register_full_backward_hook(lambda module, into, out: kept.append(out[0]))
    return outer(x) * 3.0, lambda: kept


def retained(net, x):
    a = net(x)
    a.retain_grad()
    return a * 3.0, lambda: [a.grad]


def residual(net, x):
    y = x * 1.0
    return (y + net(y)) * 3.0, list


def residual_the_other_way_round(net, x):
    y = x * 1.0
    return (net(y) + y) * 3.0, list


def added_to_a_leaf(net, x):
    return (net(x) + x) * 3.0, list


def added_to_another(net, x):
    return (net(x) + net(x)) * 3.0, list


class Keeper(torch.autograd.Function):
    """Sends its own tensor on as a gradient, and reads it again later."""

    @staticmethod
    def forward(ctx, x, kept):
        ctx.kept = kept
        return x * 3.0

    @staticmethod
    def backward(ctx, grad):
        ctx.kept.append(3.0 * grad)
        return ctx.kept[-1], None


class Saver(torch.autograd.Function):
    """Sends a saved tensor on as a gradient."""

    @staticmethod
    def forward(ctx, x, saved):
        ctx.save_for_backward(saved)
        return x * 3.0

    @staticmethod
    def backward(ctx, grad):
        return *ctx.saved_tensors, None


def another_functions(net, x):
    kept = []
    return Keeper.apply(net(x), kept), lambda: kept


def saved_by_another_function(net, x):
    kept = torch.full_like(x, 3.0).detach()
    return Saver.apply(net(x), kept), lambda: [kept]


class Lender(torch.autograd.Function):
    """Sends on as a gradient what is kept in memory that torch does not count."""

    @staticmethod
    def forward(ctx, x, lend):
        ctx.lend = lend
        return x * 3.0

    @staticmethod
    def backward(ctx, grad):
        return ctx.lend().view_as(grad), None


def _lent(net, x, lend):
    return Lender.apply(net(x), lend), lambda: [lend()]


def in_an_array(net, x):
    kept = np.full(x.numel(), 3.0, "f4")
    return _lent(net, x, lambda: torch.from_numpy(kept))


def in_a_buffer(net, x):
    kept = bytearray(np.full(x.numel(), 3.0, "f4").tobytes())
    return _lent(net, x, lambda: torch.frombuffer(kept, dtype=torch.float32))


def in_a_storage(net, x):
    kept = torch.full_like(x, 3.0).untyped_storage()
    return _lent(net, x, lambda: torch.empty(0).set_(kept))


def in_memory_of_several_processes(net, x):
    kept = torch.full_like(x, 3.0).detach().share_memory_().untyped_storage()
    return _lent(net, x, lambda: torch.empty(0).set_(kept))


ALL = [kept_by_a_hook, kept_as_a_view, kept_as_an_array, kept_by_a_hook_of_the_node,
        seen_by_a_hook_afterwards, kept_by_a_module_hook, retained, residual,
        residual_the_other_way_round, added_to_a_leaf, added_to_another, another_functions,
        saved_by_another_function, in_an_array, in_a_buffer, in_a_storage,
        in_memory_of_several_processes]  # fmt: skip
