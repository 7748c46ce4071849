"""patch and unpatch: the same model, with our backward pass in it, and the way back."""

import copy
import io
import pickle
import threading
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from patchable import Hidden, Mlp, assert_same, chain, classes, encoder, gradients, inputs
from torch import nn

import manualgrad as mg

MODELS = {
    "a class": (Mlp, 1),
    "another forward": (Hidden, 1),
    "a chain": (chain, 2),
    "a chain, in place": (lambda: chain(lambda: nn.ReLU(inplace=True)), 2),
    "a function held": (encoder, 1),
    "a function with a constant": (lambda: encoder(F.gelu), 1),
    "nested": (lambda: nn.Sequential(chain(nn.Tanh), Mlp(nn.SiLU()), encoder(nn.GELU())), 4),
}


@pytest.fixture(params=MODELS)
def model(request):
    build, pairs = MODELS[request.param]
    net = build()
    net.pairs = pairs
    return net


def test_patched_and_back(model):
    twin, x = copy.deepcopy(model), inputs()
    parameters, keys = list(model.parameters()), list(model.state_dict())
    report = mg.patch(model, x)
    assert len(report) == len(report.replaced) == model.pairs
    assert not report.refused
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert list(model.state_dict()) == keys
    assert all(isinstance(m, t) for m, t in zip(model.modules(), classes(twin), strict=True))
    assert classes(model) != classes(twin)
    assert_same(model, twin, x)
    assert len(mg.unpatch(model)) > 0
    assert classes(model) == classes(twin)
    assert [m.__dict__.keys() for m in model.modules()] == [
        m.__dict__.keys() for m in twin.modules()
    ]
    assert torch.equal(model.eval()(x), twin.eval()(x))


def test_our_backward_runs(model):
    """Every fused layer's node is ours; torch's own activations leave the graph."""
    mg.patch(model, inputs())
    names, nodes = set(), [model(inputs()).grad_fn]
    while nodes:
        node = nodes.pop()
        names.add(type(node).__name__)
        nodes += [below for below, _ in node.next_functions if below is not None]
    ours = {"LinearActFunctionBackward", "MLPFunctionBackward", "SmallMLPFunctionBackward"}
    assert names & ours
    assert not names & {"ReluBackward0", "GeluBackward0", "TanhBackward0", "SiluBackward0"}


def test_patch_is_idempotent(model):
    mg.patch(model, inputs())
    before, x = classes(model), inputs()
    for again in (mg.patch(model, x), mg.patch(model)):
        assert len(again) == 0
        assert not again.refused
        assert "were patched before" in str(again)
    assert classes(model) == before
    mg.unpatch(model)
    assert "nothing to restore: the model was not patched" in str(mg.unpatch(model))


def test_copies_and_pickles_are_patched_and_can_be_unpatched(model):
    plain, x = classes(model), inputs()
    mg.patch(model, x)
    model.eval()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert classes(twin) == classes(model)
        assert torch.equal(twin(x), model(x))
        mg.unpatch(twin)
        assert classes(twin) == plain
        torch.testing.assert_close(twin(x), model(x))
    assert classes(model) != plain


def test_without_an_example_what_the_structure_shows():
    for name, (build, pairs) in MODELS.items():
        twin = build()
        net, x = copy.deepcopy(twin), inputs()
        assert len(mg.patch(net)) == (0 if name == "another forward" else pairs)
        assert_same(net, twin, x)


def test_the_report_is_a_table():
    net = nn.Sequential(Mlp(), Mlp(nn.PReLU()))
    report = mg.patch(net, inputs())
    (done,), (left,) = report.replaced, report.refused
    assert (done.path, done.activation, done.fused_with) == ("0.fc1", "gelu", "0.act")
    assert (left.path, left.activation) == ("1.fc1", "PReLU")
    assert left.reason == "there is no formula by hand for PReLU"
    lines = str(report).splitlines()
    assert lines[0].split() == ["layer", "activation", "fused", "with"]
    assert lines[-1] == "1 layer fused, 1 refused"
    assert "activation=gelu" in str(net)
    assert "computed before" in str(net)


def test_an_optimiser_made_before_trains_the_same_parameters():
    net = Mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    mg.patch(net, inputs())
    before = [p.clone() for p in net.parameters()]
    net(inputs()).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


def test_hooks_are_kept():
    seen = []
    net = nn.Sequential(Mlp(), chain())
    net[0].fc1.register_forward_pre_hook(lambda module, args: seen.append("input"))
    net[0].fc2.register_forward_hook(lambda *_: seen.append("output"))
    net[0].register_full_backward_hook(lambda *_: seen.append("backward"))
    net[1][5].register_forward_hook(lambda *_: seen.append("last"))
    assert len(mg.patch(net, inputs())) == 3
    seen.clear()
    gradients(net, inputs().requires_grad_())
    assert seen == ["input", "output", "last", "backward"]


def test_a_hook_added_to_a_child_of_a_chain_sees_what_it_would_have_seen():
    net, x = chain(), inputs()
    mg.patch(net)
    z = []
    net[0].register_forward_hook(lambda module, args, output: z.append(output))
    net(x)
    torch.testing.assert_close(z[0], F.linear(x, net[0].weight, net[0].bias))


def test_a_chain_whose_children_changed_runs_them():
    net, x = chain().eval(), inputs()
    mg.patch(net)
    net[1] = nn.Tanh()
    torch.testing.assert_close(net(x), nn.Sequential(*net.children())(x))
    del net[3]
    net.append(nn.Linear(4, 2))
    torch.testing.assert_close(net(x), nn.Sequential(*net.children())(x))


def test_children_may_have_any_name():
    layers = {"original": nn.Linear(4, 4), "state": nn.ReLU(), "forward_": nn.Linear(4, 4)}
    net = nn.Sequential(OrderedDict(layers))
    mg.patch(net)
    assert net.original is layers["original"]
    assert net.state is layers["state"]


def test_include_and_exclude():
    for include, exclude, want in (
        (["0"], None, ["0.fc1"]),
        (["*.fc1"], None, ["0.fc1", "1.fc1"]),
        (None, ["1.*", "2.0"], ["2.2", "0.fc1"]),
        (
            lambda path, module: module.out_features == 8,
            lambda path, _: path < "1",
            ["2.0", "2.2", "1.fc1"],
        ),
    ):
        net = nn.Sequential(Mlp(), Mlp(), chain())
        twin, x = copy.deepcopy(net), inputs()
        report = mg.patch(net, x, include=include, exclude=exclude)
        assert sorted(e.path for e in report.replaced) == sorted(want)
        assert not report.refused
        assert_same(net, twin, x)


def test_a_second_patch_adds_what_the_first_left_out():
    net, x = nn.Sequential(Mlp(), chain()), inputs()
    twin = copy.deepcopy(net)
    assert len(mg.patch(net, x, include=["1.0"])) == 1
    assert [e.path for e in mg.patch(net, x).replaced] == ["0.fc1", "1.2"]
    assert_same(net, twin, x)
    mg.unpatch(net)
    assert classes(net) == classes(twin)


def test_nothing_else_of_the_model_or_the_process_changes():
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.5))
    net[0].weight.requires_grad_(False)
    x, training = torch.randn(6, 4), [m.training for m in net.modules()]
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    values = [p.detach().clone() for p in net.parameters()]
    torch.manual_seed(7)
    mg.patch(net, x)
    after = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(3))
    assert all(torch.equal(b, buffers[name]) for name, b in net.named_buffers())
    assert all(torch.equal(p, v) for p, v in zip(net.parameters(), values, strict=True))
    assert all(p.grad is None for p in net.parameters())
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]
    assert [m.training for m in net.modules()] == training
    assert not x.requires_grad
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_two_threads_patch_two_models():
    nets = [nn.Sequential(chain(), Mlp(), chain(nn.Tanh)) for _ in range(2)]
    reports = [None, None]
    examples = [inputs() for _ in range(2)]  # drawn beside a comparison they would move its dropout

    def work(i):
        for _ in range(3):
            mg.unpatch(nets[i])
            reports[i] = mg.patch(nets[i], examples[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(report) for report in reports] == [5, 5]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_whatever_mode_the_caller_is_in(mode):
    net = nn.Sequential(Mlp(), chain())
    twin = copy.deepcopy(net)
    with mode():
        assert len(mg.patch(net, inputs())) == 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert len(mg.patch(twin, inputs())) == 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Dynamo's, about Functions
def test_a_patched_model_compiles_and_transforms():
    for net in (chain(), encoder()):
        twin, x = copy.deepcopy(net.eval()), inputs()
        mg.patch(net, x)
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), twin(x))
        state = dict(net.named_parameters())
        torch.testing.assert_close(torch.func.functional_call(net, state, x), twin(x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert net(x).dtype == twin(x).dtype


def test_the_fast_path_of_torchs_encoder_stays_exact():
    for activation in ("relu", F.gelu, nn.ReLU()):
        net = nn.TransformerEncoder(encoder(activation), 2).eval()
        x = inputs()
        with torch.inference_mode():
            want = net(x)
            assert len(mg.patch(net)) == 2
            assert torch.equal(net(x), want)
