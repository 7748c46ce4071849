"""The rest of what a module meets: tracers of modules, files, optimisers, hooks, subclasses."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import manualgrad as mg


def models():
    torch.manual_seed(0)
    leaky = nn.LeakyReLU(0.2)
    yield mg.nn.MLP([4, 6, 3], leaky)
    yield mg.nn.Linear(4, 3, activation="gelu")
    yield nn.Sequential(mg.nn.Linear(4, 4, activation=leaky), mg.nn.MLP([4, 5, 3], "silu"))


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
each_model = pytest.mark.parametrize("model", list(models()), ids=["MLP", "Linear", "Sequential"])


def gradients(model, x=X):
    return torch.autograd.grad(model(x).square().sum(), list(model.parameters()))


@each_model
def test_fx(model):
    """A layer is one node of the graph, and trains as before."""
    traced = torch.fx.symbolic_trace(model)
    calls = [n.target for n in traced.graph.nodes if n.op == "call_function"]
    assert set(calls) <= {mg.linear_act, mg.mlp}
    torch.testing.assert_close(traced(X), model(X))
    torch.testing.assert_close(gradients(traced), gradients(model))
    again = pickle.loads(pickle.dumps(traced))
    torch.testing.assert_close(again(X), model(X))


@each_model
def test_copies_and_files(model, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(X), model(X))
    safetensors.save_model(model, str(tmp_path / "model.safetensors"))
    other = copy.deepcopy(model)
    for p in other.parameters():
        nn.init.zeros_(p)
    assert safetensors.load_model(other, str(tmp_path / "model.safetensors")) == (set(), [])
    torch.testing.assert_close(other(X), model(X))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    with torch.device("meta"):
        empty = copy.deepcopy(model).to("meta")
    assert empty(X.to("meta")).shape == (5, 3)
    empty.to_empty(device="cpu").load_state_dict(torch.load(file))
    torch.testing.assert_close(empty(X), model(X))


@pytest.mark.parametrize(
    "wrap",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ],
    ids=["weight_norm", "spectral_norm", "orthogonal", "pruning"],
)
def test_parametrised_and_pruned_layers(wrap):
    twins = []
    for make in (lambda: mg.nn.Linear(4, 4, activation="tanh"), lambda: nn.Linear(4, 4)):
        torch.manual_seed(2)
        layer = make().double()
        torch.manual_seed(3)
        wrap(layer)
        twins.append(layer.eval())
    ours, theirs = twins
    x = X.double()
    want = torch.autograd.grad(torch.tanh(theirs(x)).square().sum(), list(theirs.parameters()))
    torch.testing.assert_close(gradients(ours, x), want)


@each_model
def test_optimisers_and_scalers(model):
    model = copy.deepcopy(model)
    twin = copy.deepcopy(model)
    for net, fused in ((model, True), (twin, False)):
        optimiser = torch.optim.AdamW(net.parameters(), lr=0.1, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for _ in range(3):
            optimiser.zero_grad()
            scaler.scale(net(X).square().sum()).backward()
            scaler.step(optimiser)
            scaler.update()
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_models_stacked_and_mapped():
    nets = [mg.nn.MLP([4, 6, 3], "gelu") for _ in range(3)]
    params, buffers = torch.func.stack_module_state(nets)

    def run(params, buffers):
        return torch.func.functional_call(nets[0], (params, buffers), (X,))

    torch.testing.assert_close(torch.vmap(run)(params, buffers), torch.stack([n(X) for n in nets]))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch's own code
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_autograd():
    model = next(models())
    want = gradients(model)
    torch._dynamo.reset()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        model(X).square().sum().backward()
    torch.testing.assert_close(tuple(p.grad for p in model.parameters()), want)


@each_model
def test_hooks_of_modules(model):
    seen = []
    forward = model.register_forward_hook(lambda m, i, o: seen.append(tuple(o.shape)))
    backward = model.register_full_backward_hook(lambda m, i, o: seen.append(tuple(o[0].shape)))
    model(X.clone().requires_grad_()).sum().backward()
    forward.remove()
    backward.remove()
    assert seen == [(5, 3), (5, 3)]


class Named(torch.Tensor):
    """A subclass that overrides nothing."""


@each_model
def test_subclasses_of_tensor_stay_what_they_are(model):
    assert type(model(X.as_subclass(Named))) is Named
