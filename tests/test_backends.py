"""Which backend runs: the table, what is forced, what is explained, what was measured."""

import logging
import subprocess
import sys

import pytest
import torch
from helpers import problem
from torch import nn

import manualgrad as mg
from manualgrad import aten, backends, eligibility, explanation, routed, tuned
from manualgrad.activations import ACTIVATIONS
from manualgrad.backends import BP1, BP2, BP3, BP4, FORWARD, OPERATIONS, Problem

DECISIONS = [
    (problem(BP3), "aten"),
    (problem(BP4), "aten"),
    (problem(FORWARD, "identity"), "aten"),
    (problem(BP2, dtype=torch.float64), "aten"),
    (problem(FORWARD, "relu"), "cublaslt"),
    (problem(FORWARD, "relu", bias=False), "aten"),
    (problem(FORWARD, "relu", arch=120), "aten"),
    (problem(FORWARD, "relu", arch=80), "aten"),
    (problem(FORWARD, P=512), "triton"),
    (problem(FORWARD, P=1024), "hybrid"),
    (problem(FORWARD, P=512, aligned=False), "hybrid"),
    (problem(FORWARD, dtype=torch.float32), "hybrid"),
    (problem(FORWARD, "sigmoid"), "aten"),
    (problem(FORWARD, M=32, N=64, P=64), "hybrid"),  # ATen would take four launches
    (problem(FORWARD, "tanh", M=32, N=64, P=64), "aten"),
    (problem(BP1), "hybrid"),
    (problem(BP1, "relu", M=32, N=64, P=0), "aten"),
    (problem(BP2, "relu", P=2048), "triton"),
    (problem(BP2, "relu", P=4096), "hybrid"),
    (problem(BP2, "gelu", P=1024), "triton"),
    (problem(BP2, "gelu", P=2048), "hybrid"),
    (problem(BP2, "relu", P=2048, aligned=False), "hybrid"),
    (problem(BP2, "relu", M=512, P=2048, N=256), "aten"),
    (problem(BP2, "relu", dtype=torch.float32, P=4096), "hybrid"),
]


@pytest.mark.parametrize(("p", "backend"), DECISIONS, ids=lambda v: getattr(v, "key", v))
def test_the_table(p, backend):
    assert backends.table_choice(p).backend == backend
    assert backends.table_choice(p).reason


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_the_table_answers_everything(operation, name):
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        for arch in (0, 80, 90, 100, 120):
            for size in (1, 128, 8192):
                p = problem(operation, name, dtype, size, size, size, arch=arch)
                assert backends.table_choice(p).backend in tuned.BACKENDS


def test_the_cpu_runs_on_aten():
    x, weight = torch.randn(4, 3), torch.randn(2, 3)
    assert routed.backend_for(x) is aten
    explained = mg.explain(x, weight, "relu")
    assert list(explained.choices) == list(OPERATIONS)
    assert {c.backend for c in explained.choices.values()} == {"aten"}
    text = str(explained)
    assert text.count("\n") == 4
    assert "the kernels run on a GPU and the tensor is on cpu" in text


def test_explain_says_whether_a_chain_is_walked_in_tiles():
    x, weight = torch.empty(65536, 64), torch.empty(64, 64)
    explained = mg.explain(x, weight, "relu", depth=4)
    assert explained.rows == 4096
    assert str(explained).endswith("a chain of 4 such layers is walked in tiles of 4096 rows")
    assert list(explained.choices) == list(OPERATIONS)
    explained = mg.explain(x[:9], weight, "relu", depth=4)
    assert explained.rows == 0
    assert str(explained).endswith("a chain of 4 such layers is walked over all rows at once")
    for depth in (0, 2):
        with pytest.raises(
            ValueError, match=rf"explain: depth is {depth} and weight has shape \(2, 64"
        ):
            mg.explain(x, weight[:2], depth=depth)


def test_explain_refuses_what_is_no_layer():
    x, weight = torch.randn(4, 3), torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"manualgrad.explain: input of shape \(4, 3\) has 3 feat"):
        mg.explain(x, torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"input is torch.float32 but weight is torch.float64"):
        mg.explain(x, weight.double())
    assert mg.explain(torch.randn(2, 3, 0), torch.randn(2, 0)).choices[BP4].backend == "aten"
    with pytest.raises(TypeError, match="weight must be a tensor"):
        mg.explain(x, "relu")
    with pytest.raises(ValueError, match="reluu"):
        mg.explain(x, weight, "reluu")
    assert mg.explain(x[0], weight, nn.GELU()).choices[FORWARD].backend == "aten"


def test_explain_speaks_of_the_tensors_that_autocast_makes(monkeypatch):
    seen = []
    monkeypatch.setattr(explanation, "choose", lambda *a, **k: seen.append(a[5].dtype) or (0,))
    with torch.autocast("cpu", torch.bfloat16):
        mg.explain(torch.randn(4, 3), torch.randn(2, 3))
    assert set(seen) == {torch.bfloat16}


def test_a_backend_is_checked_at_once_and_can_be_entered_again():
    torch_only = mg.backend("torch")
    with torch_only, torch_only:
        assert backends.mode() == "torch"
    assert backends.mode() == "auto"

    @mg.backend("torch")
    def inside():
        return backends.mode()

    assert inside() == "torch"
    assert backends.mode() == "auto"


def test_backend_refuses_what_is_not_there():
    with pytest.raises(ValueError, match="'cuda' is none of 'auto', 'torch', 'triton', 'narrow'"):
        mg.backend("cuda")
    if not torch.cuda.is_available() and eligibility.triton_problem() is None:
        with pytest.raises(ValueError, match="'triton' cannot run here: torch sees no GPU"):
            mg.backend("triton")
        with pytest.raises(ValueError, match="nothing to measure: torch sees no GPU"):
            mg.tune([(8192, 4096, 1024)])
    with mg.backend("torch"):
        assert mg.linear_act(torch.ones(1, 2), torch.ones(3, 2)).tolist() == [[2.0] * 3]


def test_without_triton_it_is_named():
    code = """
import sys
sys.modules["triton"] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find(name, *rest)
import manualgrad as mg, torch
print(mg.linear_act(torch.ones(1, 2), torch.ones(1, 2), None, "gelu").shape)
print(mg.explain(torch.ones(1, 2), torch.ones(1, 2), "gelu"))
try:
    mg.backend("triton")
except ValueError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert "torch.Size([1, 1])" in out.stdout
    assert "the package triton is not installed" in out.stdout


def test_a_fallback_is_logged_once(caplog):
    backends._say_once.cache_clear()
    x, weight = torch.randn(4, 3), torch.randn(2, 3)
    with caplog.at_level(logging.INFO, logger="manualgrad"):
        mg.explain(x, weight)
        mg.explain(x, weight)
    lines = [record.message for record in caplog.records]
    assert len(lines) == len(OPERATIONS)
    assert "linear_act_forward runs on ATen: the kernels run on a GPU" in lines[0]


def test_a_problem_is_kept_under_one_key():
    assert problem(BP1, P=0, M=33).key == "bp1_output_error gelu bfloat16 64 1024 0"
    assert problem(BP4, M=40, N=50, P=8000).key == "bp4_weight_gradient gelu bfloat16 40 50 8192"
    leaky = mg.nn.Linear(2, 2, activation=nn.LeakyReLU(0.3)).activation
    assert (
        "leaky_relu(negative_slope=0.3)"
        in Problem(FORWARD, leaky, torch.float16, 1, 1, 1, True, True, 90, 132).key
    )


class OnAGpu:
    """What choose() asks of a matrix, without a GPU."""

    is_cuda, device = True, torch.device("cuda", 0)

    def __init__(self, rows, columns, dtype=torch.bfloat16, step=None, address=256):
        self.dtype, self._stride, self._address = dtype, (step or columns, 1), address

    def dim(self):
        return 2

    def stride(self, axis):
        return self._stride[axis]

    def data_ptr(self):
        return self._address


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(backends, "refusal", lambda act, *tensors: None)
    monkeypatch.setattr(backends, "_device", lambda index: (90, 132))
    monkeypatch.setattr(backends, "relu_epilogue_keeps_nan", lambda index, dtype: True)
    kept = {}
    monkeypatch.setattr(tuned, "choices", lambda index: kept)
    return kept


def choice(*tensors, operation=FORWARD, name="gelu", M=8192, N=1024, P=512, bias=True):
    return backends.choose(operation, ACTIVATIONS[name], M, N, P, *tensors, bias=bias)


def test_a_gpus_tensors_go_by_the_table(gpu, monkeypatch):
    weight = OnAGpu(1024, 512)
    assert choice(OnAGpu(8192, 512), weight).backend == "triton"
    assert choice(OnAGpu(8192, 512, address=264), weight).backend == "hybrid"
    assert choice(OnAGpu(8192, 512, step=520), weight).backend == "hybrid"
    assert choice(OnAGpu(8192, 512, step=528), weight).backend == "triton"
    assert choice(OnAGpu(8192, 512, torch.float32), weight).backend == "hybrid"
    assert choice(OnAGpu(8192, 512), weight, name="relu").backend == "cublaslt"
    monkeypatch.setattr(backends, "relu_epilogue_keeps_nan", lambda index, dtype: False)
    without = choice(OnAGpu(8192, 512), weight, name="relu")
    assert without.backend == "aten"
    assert "NaN" in without.reason


def test_a_measurement_comes_before_the_table(gpu):
    tensors = OnAGpu(8192, 512), OnAGpu(1024, 512)
    gpu[problem(FORWARD, P=512).key] = {"backend": "aten", "milliseconds": {}}
    assert choice(*tensors) == ("aten", "measured by manualgrad.tune", None)
    gpu[problem(FORWARD, P=512).key] = {"backend": "triton", "tile": "64x64x64 w4 s3"}
    assert choice(*tensors).tile == "64x64x64 w4 s3"
    assert choice(OnAGpu(8192, 512, step=520), tensors[1]).backend == "hybrid"
    with mg.backend("torch"):
        assert choice(*tensors).backend == "aten"
