"""Is a contestant right? Its output and each of its gradients against eager's in float64."""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers import reason
from benchmarks.problems import Problem, output

Found = Sequence[Tensor | None]
ROUNDING = 32 * torch.finfo(torch.float32).eps  # of a long sum in float32, relative


@dataclass(frozen=True)
class Judge:
    """names: of the tensors; exact: in float64; allowed: how far, in norm, each may be off.

    A contestant may err twice as much as eager does in the same tensor and the same dtype, and by
    float32's rounding. Norms, not largest entries: where z is nearly 0 one rounding turns relu
    over, and one entry says nothing of the other million.
    """

    names: Sequence[str]
    exact: Found
    allowed: Sequence[float]

    def error(self, found: Found) -> tuple[float, str]:
        """(the largest error as a share of what is allowed, a text that names the tensor)."""
        worst, told = 0.0, "nothing is off"
        for name, mine, exact, allowed in zip(
            self.names, found, self.exact, self.allowed, strict=True
        ):
            off = distance(mine, exact)
            share = 0.0 if off == 0 else off / allowed if allowed else math.inf
            if share > worst:
                size = max(norm(exact), 1e-300)
                worst = share
                told = f"{name} is off by {off / size:.1e}, {allowed / size:.1e} is allowed"
        return worst, told


def judge(names: Sequence[str], exact: Found, eager: Found) -> Judge:
    """exact: in float64; eager: in the dtype that is timed."""
    allowed = [2 * distance(e, x) + ROUNDING * norm(x) for e, x in zip(eager, exact, strict=True)]
    return Judge(names, exact, allowed)


def judge_of(problem: Problem, grad: Tensor) -> Judge:
    """Of a problem's networks; grad: the gradient that arrives at the output."""
    exact = copy.deepcopy(problem.eager).double()
    inputs = tuple(
        x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x
        for x in problem.inputs
    )
    names = ["output", *(f"gradient of input {i}" for i, x in enumerate(inputs) if x.requires_grad)]
    names += [f"gradient of {name}" for name, _ in parameters(problem.eager)]
    return judge(
        names,
        gradients(exact, inputs, leaves(exact, inputs), grad.double()),
        gradients(problem.eager, problem.inputs, leaves(problem.eager, problem.inputs), grad),
    )


def arriving(problem: Problem) -> Tensor:
    """A random gradient for the output; 0 on rows where float32's rounding may turn a relu over.

    There the right gradient is either of two, and an order of summation decides between them.
    """
    grad = torch.randn_like(output(problem.eager(*problem.inputs)))
    modules = list(problem.eager) if isinstance(problem.eager, nn.Sequential) else []
    if grad.dtype is torch.float32 and any(isinstance(module, nn.ReLU) for module in modules):
        z = problem.inputs[0].detach().double()
        for module in copy.deepcopy(modules):
            if isinstance(module, nn.ReLU):
                near = z.abs() <= ROUNDING * z.abs().max()
                grad.masked_fill_(near.any(1, keepdim=True), 0.0)
            with torch.no_grad():
                z = module.double()(z)
    return grad


def tried(net: nn.Module, problem: Problem, grad: Tensor) -> list[Tensor | None] | str:
    """A contestant's output and gradients; a text where it cannot run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's remarks on this machine
            own = leaves(net, problem.inputs)
            return gradients(net, problem.inputs, own, grad)
    except Exception as error:  # what a compiler or a rival raises is of any kind
        return reason(error)


def parameters(net: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in net.named_parameters() if p.requires_grad]


def leaves(net: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What gradients are asked for: the inputs that are no numbers of words, the parameters."""
    return [*(x for x in inputs if x.requires_grad), *(p for _, p in parameters(net))]


def gradients(
    net: Callable[..., Any], inputs: Sequence[Tensor], asked: list[Tensor], grad: Tensor
) -> list[Tensor | None]:
    """The output, and the gradients of what is asked for."""
    y = output(net(*inputs))
    return [y.detach(), *torch.autograd.grad(y, asked, grad, allow_unused=True)]


def norm(tensor: Tensor | None) -> float:
    return 0.0 if tensor is None else tensor.norm().item()


def distance(found: Tensor | None, exact: Tensor | None) -> float:
    """In norm, infinite where one is NaN or missing."""
    if found is None or exact is None:
        return 0.0 if found is exact else math.inf
    if found.shape != exact.shape:
        return math.inf
    off = norm(found.double() - exact)
    return off if math.isfinite(off) else math.inf
