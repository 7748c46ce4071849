"""What manualgrad.tune chooses, keeps and refuses."""

import os
import subprocess
import sys
import warnings

import pytest
import torch
from helpers import problem

import manualgrad as mg
from manualgrad import backends, tuned, tuning
from manualgrad.backends import BP2, FORWARD, Choice

MACHINE = {"device": "NVIDIA H200", "torch": "2.11.0", "triton": "3.6.0"}


def test_tune_refuses_what_it_cannot_measure(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for shapes in ([(8, 8)], [(8, 8, 0)], [(8, 8, True)], [8], (8, 8, 8)):
        with pytest.raises(ValueError, match="is no shape; give a list of"):
            mg.tune(shapes)
    with pytest.raises(TypeError, match="shapes must be a list"):
        mg.tune(5)
    with pytest.raises(ValueError, match=r"no kernels for torch\.int32"):
        mg.tune([(8, 8, 8)], dtype=torch.int32)
    with pytest.raises(ValueError, match="cpu is no GPU"):
        mg.tune([(8, 8, 8)], device="cpu")
    with pytest.raises(ValueError, match="device 'gpu'"):
        mg.tune([(8, 8, 8)], device="gpu")
    with pytest.raises(ValueError, match="gellu"):
        mg.tune([(8, 8, 8)], "gellu")


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
    assert backends.measured_choice(problem(FORWARD), relu) is None, "that is relu's epilogue"
    relu = {problem(FORWARD, "relu").key: CHOICE | {"backend": "cublaslt"}}
    assert backends.measured_choice(problem(FORWARD, "relu"), relu).backend == "cublaslt"
    assert backends.measured_choice(problem(FORWARD, "relu", bias=False), relu) is None


BROKEN = {
    "truncated": (lambda text: text[:-20], "is damaged"),
    "binary": (lambda text: "\udcff", "cannot be read"),
    "another format": (lambda text: text.replace('"format": 1', '"format": 2'), "format is 2"),
    "another machine": (lambda text: text.replace("H200", "A100"), "was measured on"),
    "nested without end": (lambda text: "[" * 100000, "is damaged"),
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
    monkeypatch.setattr(os, "replace", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        tuned.write(MACHINE, {"other": CHOICE})
    assert path.read_text() == before
    assert sorted(p.name for p in cache.iterdir()) == [".lock", path.name]


def test_a_folder_that_cannot_be_written_is_an_error(cache, monkeypatch):
    path = tuned.write(MACHINE, {"key": CHOICE})
    path.unlink()
    path.mkdir()
    with (
        pytest.warns(UserWarning, match="cannot be read"),
        pytest.raises(
            ValueError, match=r"cannot be written .* set MANUALGRAD_CACHE to a folder of yours"
        ),
    ):
        tuned.write(MACHINE, {"key": CHOICE})
    monkeypatch.setenv("MANUALGRAD_CACHE", "/proc/nowhere")
    with pytest.raises(ValueError, match="set MANUALGRAD_CACHE"):
        tuned.write(MACHINE, {"key": CHOICE})


def test_the_folder_is_found_without_a_home(monkeypatch):
    for name in ("MANUALGRAD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tuned.os.path, "expanduser", lambda path: path)
    assert tuned.folder().is_absolute()


def test_writers_do_not_lose_each_others_entries(cache):
    code = (
        "import sys; from manualgrad import tuned; m = dict(device='d', torch='t', triton='v')\n"
        "for i in range(30): tuned.write(m, {sys.argv[1] + str(i): {'backend': 'aten'}})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, name]) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(tuned.read({"device": "d", "torch": "t", "triton": "v"})) == 60


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
