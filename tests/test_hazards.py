"""The 27 known ways to get a fused layer wrong: each is planted, or tested, as docs/checking.md says."""

import pathlib
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from faults import FAULTS
from faults.planted import HAZARDS
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

import manualgrad as mg

ROOT = pathlib.Path(__file__).parents[1]
ROWS = {
    int(number): cell
    for number, cell in re.findall(
        r"^\| (\d+) \|[^|]+\| ([^|]+) \|$", (ROOT / "docs" / "checking.md").read_text(), re.M
    )
}


def test_all_27_stand_in_the_table():
    assert sorted(ROWS) == list(range(1, 28))


@pytest.mark.parametrize("number", range(1, 28))
def test_what_the_table_names_is_there(number):
    """Faults that are planted under this number, or tests that exist."""
    names = re.findall(r"`(\w+)`", ROWS[number])
    assert names
    planted = {name for name in names if name in FAULTS}
    assert planted == set(HAZARDS.get(number, []))
    for name in set(names) - planted:
        found = [p for p in (ROOT / "tests").rglob("*.py") if f"def {name}(" in p.read_text()]
        assert found, f"no test and no fault is called {name}"


# those that are no wrong gradient of one function


def test_a_traced_layer_is_atens_operations_alone():
    """(9) Nothing opaque: what fuses elementwise operations can fuse ours."""
    net, x, targets = mg.nn.MLP([4, 6, 3], "gelu"), torch.randn(5, 4), []

    def keep(graph, inputs):
        targets.extend(n.target for n in graph.graph.nodes if n.op == "call_function")
        return make_boxed_func(graph.forward)

    torch.compile(net, backend=aot_autograd(fw_compiler=keep), fullgraph=True)(x).sum().backward()
    assert len(targets) > 10  # backward too
    assert all(str(target).startswith("aten.") for target in targets), targets


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Dynamo's, about Functions
def test_compiled_under_autocast_the_error_is_at_most_twice_torchs():
    """(10) Against float64, since another program in bfloat16 proves nothing."""
    net, x = mg.nn.MLP([16, 32, 8], "gelu"), torch.randn(64, 16)
    weights = [p.detach() for p in net.parameters()]

    def native(x, w1, b1, w2, b2):
        return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)

    truth = native(x.double(), *(w.double() for w in weights))
    torch.compiler.reset()
    with torch.autocast("cpu", torch.bfloat16):
        ours = torch.compile(net, backend="aot_eager", fullgraph=True)(x)
        theirs = native(x, *weights)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    errors = [(y.double() - truth).abs().max().item() for y in (ours, theirs)]
    unit = torch.finfo(torch.bfloat16).eps * truth.abs().max().item()
    assert errors[0] <= 2 * errors[1] + unit


PATCHED = """
import torch
def state():
    spaces = torch, torch.nn, torch.nn.functional, torch.nn.Linear, torch.autograd, torch.Tensor
    return {(i, name): id(value) for i, s in enumerate(spaces) for name, value in vars(s).items()}
before = state()
import manualgrad as mg
net = mg.nn.MLP.from_sequential(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()))
net(torch.ones(1, 3)).sum().backward()
changed = {key[1] for key, value in state().items() if before.get(key) != value}
print(sorted(name for name in changed if not name.startswith("_")))
"""


def test_nothing_of_torchs_is_replaced():
    """(17) Neither by the import nor by use."""
    ended = subprocess.run([sys.executable, "-c", PATCHED], capture_output=True, text=True)
    assert ended.stdout.strip() == "[]", ended.stdout + ended.stderr
