"""Which backend runs: the table, what is forced, what is explained, what was measured."""

import json
import logging
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import manualgrad as mg
from manualgrad import aten, backends, eligibility, routed, tuned, tuning
from manualgrad.activations import ACTIVATIONS
from manualgrad.backends import BP1, BP2, BP3, BP4, FORWARD, OPERATIONS, Choice, Problem

MACHINE = {"device": "NVIDIA H200", "torch": "2.11.0", "triton": "3.6.0"}


def problem(operation, name="gelu", dtype=torch.bfloat16, M=8192, N=1024, P=1024, **others):
    given = {"aligned": True, "bias": True, "arch": 90, "multiprocessors": 132} | others
    return Problem(operation, ACTIVATIONS[name], dtype, M, N, P, **given)


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


def test_explain_refuses_what_is_no_layer():
    x, weight = torch.randn(4, 3), torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"\(4, 3\) does not fit weight of shape \(2, 4\)"):
        mg.explain(x, torch.randn(2, 4))
    with pytest.raises(TypeError, match="weight must be a tensor"):
        mg.explain(x, "relu")
    with pytest.raises(ValueError, match="reluu"):
        mg.explain(x, weight, "reluu")
    assert mg.explain(x[0], weight, nn.GELU()).choices[FORWARD].backend == "aten"


def test_backend_refuses_what_is_not_there():
    with pytest.raises(ValueError, match="'cuda' is none of 'auto', 'torch', 'triton'"):
        mg.backend("cuda").__enter__()
    if not torch.cuda.is_available() and eligibility.has_triton():
        with pytest.raises(ValueError, match="'triton' cannot run here: torch sees no GPU"):
            mg.backend("triton").__enter__()
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
    mg.backend("triton").__enter__()
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


# what mg.tune keeps


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MANUALGRAD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


CHOICE = {"backend": "triton", "tile": "128x256x64 w8 s3 tma /2", "milliseconds": {"aten": 1.0}}


def test_choices_are_kept_per_machine(cache):
    key = problem(BP2).key
    path = tuned.write(MACHINE, {key: CHOICE})
    assert path.parent == cache
    assert "NVIDIA-H200" in path.name
    tuned.write(MACHINE, {"another": CHOICE | {"backend": "aten"}})
    kept = tuned.read(MACHINE)
    assert set(kept) == {key, "another"}
    assert tuned.read(MACHINE | {"triton": "3.9.0"}) == {}
    choice = backends.measured_choice(problem(BP2), kept)
    assert choice == ("triton", "measured by manualgrad.tune", CHOICE["tile"])
    assert backends.measured_choice(problem(BP2, M=5000), kept) == choice  # the same power of two
    assert backends.measured_choice(problem(BP2, M=8193), kept) is None
    assert backends.measured_choice(problem(BP2, aligned=False), kept) is None
    relu = {problem(FORWARD).key: CHOICE | {"backend": "cublaslt"}}
    assert backends.measured_choice(problem(FORWARD), relu).backend == "cublaslt"
    assert backends.measured_choice(problem(FORWARD, bias=False), relu) is None


BROKEN = {
    "truncated": (lambda text: text[:-20], "is damaged"),
    "binary": (lambda text: "\udcff", "cannot be read"),
    "another format": (lambda text: text.replace('"format": 1', '"format": 2'), "format is 2"),
    "another machine": (lambda text: text.replace("H200", "A100"), "was measured on"),
    "a list": (lambda text: "[]", "is damaged"),
    "an unknown backend": (lambda text: text.replace('"triton",', '"magic",', 1), "no.* a choice"),
    "a tile that is none": (
        lambda text: text.replace('"128x256x64 w8 s3 tma /2"', "7"),
        "is not a choice",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_damaged_or_foreign_file_is_ignored_with_a_warning(cache, how):
    path = tuned.write(MACHINE, {"key": CHOICE})
    change, message = BROKEN[how]
    path.write_text(change(path.read_text()), errors="surrogateescape")
    with pytest.warns(UserWarning, match=message) as caught:
        assert tuned.read(MACHINE) == {}
    assert len(caught) == 1
    assert "delete it, or run manualgrad.tune again" in str(caught[0].message)


def test_a_file_is_written_whole_or_not_at_all(cache, monkeypatch):
    path = tuned.write(MACHINE, {"key": CHOICE})
    before = path.read_text()
    monkeypatch.setattr(json, "dump", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        tuned.write(MACHINE, {"other": CHOICE})
    assert path.read_text() == before
    assert list(cache.iterdir()) == [path]


def test_no_file_is_no_warning(cache):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuned.read(MACHINE) == {}


ATEN, HYBRID, TRITON = (Choice(name, "") for name in ("aten", "hybrid", "triton"))


@pytest.mark.parametrize(
    ("first", "second", "winner"),
    [
        ((1.0, 0.9, 0.8), (1.0, 0.9, 0.8), TRITON),
        ((1.0, 0.9, 0.88), (1.0, 0.9, 0.88), HYBRID),  # 2 % are not enough
        ((1.0, 0.9, 0.8), (1.0, 0.9, 0.9), HYBRID),  # once is not enough
        ((1.0, 1.1, 1.2), (1.0, 1.1, 0.5), ATEN),
    ],
)
def test_triton_must_win_by_the_margin_twice(first, second, winner):
    names = (ATEN, HYBRID, TRITON)
    rounds = [dict(zip(names, times, strict=True)) for times in (first, second)]
    assert tuning.chosen(rounds) == winner


def test_a_problem_is_kept_under_one_key():
    assert problem(BP1, P=0, M=33).key == "bp1_output_error gelu bfloat16 64 1024 0"
    leaky = mg.nn.Linear(2, 2, activation=nn.LeakyReLU(0.3)).activation
    assert (
        "leaky_relu(negative_slope=0.3)"
        in Problem(FORWARD, leaky, torch.float16, 1, 1, 1, True, True, 90, 132).key
    )
