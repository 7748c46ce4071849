"""What people put around a model: each mode takes a function and its tensors, and differentiates."""

import io

import torch
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint


def leaves(tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


def cost(f):
    return lambda *t: f(*t).square().sum()


def gradients(f, tensors):
    given = leaves(tensors)
    return torch.autograd.grad(cost(f)(*given), given)


def all_of(tensors):
    return tuple(range(len(tensors)))


def compiled(backend, dynamic=None):
    def run(f, tensors):
        torch._dynamo.reset()
        program = torch.compile(lambda *t: f(*t), backend=backend, fullgraph=True, dynamic=dynamic)
        return gradients(program, tensors)

    return run


def compiled_transform(transform):
    def run(f, tensors):
        torch._dynamo.reset()
        return torch.compile(transform(f, tensors), backend="aot_eager", fullgraph=True)(*tensors)

    return run


def of_grad(f, tensors):
    return grad(cost(f), all_of(tensors))


def per_example(f, tensors):
    return vmap(grad(cost(f), all_of(tensors)), (0, *[None] * (len(tensors) - 1)))


def step(f, tensors):
    torch._dynamo.reset()

    @torch.compile(backend="aot_eager")
    def train(*t):
        return torch.autograd.grad(cost(f)(*t), t)

    return train(*leaves(tensors))


def exported(strict, decomposed=False):
    class Holder(torch.nn.Module):
        def __init__(self, f, params):
            super().__init__()
            self.f, self.params = f, torch.nn.ParameterList(params)

        def forward(self, x):
            return self.f(x, *self.params)

    def run(f, tensors):
        x, *params = leaves(tensors)
        shapes = ({0: torch.export.Dim.DYNAMIC},)
        program = torch.export.export(Holder(f, params), (x,), dynamic_shapes=shapes, strict=strict)
        if decomposed:
            program = program.run_decompositions()
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        module = torch.export.load(file).module()
        module(torch.cat([x, x]))  # another batch size
        given = [x, *module.parameters()]
        return torch.autograd.grad(module(x).square().sum(), given)

    return run


def traced(mode):
    def run(f, tensors):
        graph = make_fx(lambda *t: torch.autograd.grad(cost(f)(*t), t), tracing_mode=mode)
        return graph(*leaves(tensors))(*leaves(tensors))

    return run


def under_checkpoint(f, tensors):
    return gradients(lambda *t: checkpoint(f, *t, use_reentrant=False), tensors)


def on_the_cpu(f, tensors):
    with torch.autograd.graph.save_on_cpu():
        return gradients(f, tensors)


def anomaly(f, tensors):
    with torch.autograd.set_detect_anomaly(True, check_nan=True):
        return gradients(f, tensors)


def batched_gradients(f, tensors):
    given = leaves(tensors)
    out = f(*given)
    v = torch.stack([out.detach(), 1 - out.detach()])
    return torch.autograd.grad(out, given, v, is_grads_batched=True)


def module_call(f, tensors):
    class Holder(torch.nn.Module):
        def __init__(self, params):
            super().__init__()
            self.params = torch.nn.ParameterList(params)

        def forward(self, x):
            return f(x, *self.params)

    x, *params = tensors
    holder = Holder(leaves(params))
    names = [name for name, _ in holder.named_parameters()]

    def loss(params):
        return functional_call(holder, params, (x,)).square().sum()

    return tuple(grad(loss)(dict(zip(names, params, strict=True))).values())


def ensemble(f, tensors):
    stacks = [torch.stack([t, 0.5 * t, -t]) for t in tensors[1:]]
    every = vmap(f, (None, *[0] * len(stacks)))
    return gradients(lambda *t: every(tensors[0], *t), stacks)


def forward(f, tensors):
    return jvp(f, tuple(tensors), tuple(0.5 - t for t in tensors))


def jit(f, tensors):
    program = torch.jit.trace(f, tuple(tensors), check_trace=False)
    return gradients(program, tensors)


def nested(outer, inner):
    return lambda f, tensors: outer(inner(cost(f), 1), 1)(*tensors)


def penalty(f, tensors):
    """The gradient of a gradient's norm."""
    given = leaves(tensors)
    first = torch.autograd.grad(cost(f)(*given), given, create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in first), given)


# mode -> (how it differentiates, whose backward runs; None for second derivatives)
OURS, TORCHS = "ours", "torch's"
MODES = {
    "eager": (gradients, OURS),
    "compile": (compiled("aot_eager"), OURS),
    "compile, inductor": (compiled("inductor"), OURS),
    "compile, dynamic": (compiled("aot_eager", dynamic=True), OURS),
    "compile of a train step": (step, OURS),
    "compile of func.grad": (compiled_transform(of_grad), TORCHS),
    "compile of vmap of grad": (compiled_transform(per_example), TORCHS),
    "export": (exported(strict=False), OURS),
    "export, strict": (exported(strict=True), OURS),
    "export, decomposed": (exported(strict=False, decomposed=True), OURS),
    "make_fx": (traced("real"), OURS),
    "make_fx, fake": (traced("fake"), OURS),
    "make_fx, symbolic": (traced("symbolic"), OURS),
    "checkpoint": (under_checkpoint, OURS),
    "save_on_cpu": (on_the_cpu, OURS),
    "detect_anomaly": (anomaly, OURS),
    "is_grads_batched": (batched_gradients, OURS),
    "func.grad": (lambda f, t: of_grad(f, t)(*t), OURS),
    "per-sample gradients": (lambda f, t: per_example(f, t)(*t), OURS),
    "functional_call": (module_call, OURS),
    "ensemble": (ensemble, OURS),
    "jacrev": (lambda f, t: jacrev(f, all_of(t))(*t), OURS),
    "jacfwd": (lambda f, t: jacfwd(f, all_of(t))(*t), TORCHS),
    "jvp": (forward, TORCHS),
    "jit.trace": (jit, TORCHS),
    "double backward": (penalty, None),
    "hessian": (nested(jacfwd, jacrev), None),
    "jacrev of jacrev": (nested(jacrev, jacrev), None),
    "jacrev of jacfwd": (nested(jacrev, jacfwd), None),
    "jacfwd of jacfwd": (nested(jacfwd, jacfwd), None),
}
