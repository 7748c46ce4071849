"""The demonstration and its data, down to the files that are wrong."""

import gzip
import pathlib
import struct

import numpy as np
import pytest
import torch

from experiments import demo
from experiments.data import DataError, digits, load, mnist


@pytest.fixture(autouse=True)
def _same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def write_idx(path, array, magic=None):
    header = bytes(magic or (0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(directory, part, count, suffix=""):
    rng = np.random.default_rng(count)
    write_idx(
        directory / f"{part}-images-idx3-ubyte{suffix}", rng.integers(0, 256, (count, 28, 28))
    )
    write_idx(directory / f"{part}-labels-idx1-ubyte{suffix}", rng.integers(0, 10, (count,)))


def test_digits_are_real_split_and_standardised():
    data = digits()
    assert data.train_x.shape == (1024, 64)
    assert data.test_x.shape == (773, 64)
    assert sorted(set(data.train_y.tolist())) == list(range(10))
    assert abs(data.train_x.mean()) < 1e-12
    assert abs(data.train_x.std() - 1) < 1e-12


def test_the_demo_runs_and_its_claims_hold(capsys):
    assert demo.main([]) == 0
    out = capsys.readouterr().out
    assert "test accuracy is 9" in out
    assert "layers.0.weight" in out
    assert "NO " not in out
    assert "FAILED" not in out
    assert out.count("  ok  ") >= 22


def test_the_demo_says_what_did_not_hold(capsys):
    assert demo.verdict(1e-3, 0.5, 0.96, ["gradcheck of relu: Jacobian mismatch"]) == 1
    out = capsys.readouterr().out
    assert out.count("NO ") == 3
    assert "Jacobian mismatch" in out


def test_a_short_run_is_not_judged_by_its_accuracy(tmp_path, capsys):
    write_mnist(tmp_path, "t10k", 100)
    arguments = ["--data", "mnist", "--data-dir", str(tmp_path), "--epochs", "1"]
    assert demo.main(arguments) == 0
    assert "test accuracy is" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_files_are_read(tmp_path, suffix):
    write_mnist(tmp_path, "train", 60, suffix)
    write_mnist(tmp_path, "t10k", 20, suffix)
    data = mnist(tmp_path)
    assert data.name == "mnist"
    assert data.train_x.shape == (60, 784)
    assert data.test_x.shape == (20, 784)


def test_the_test_files_alone_are_split(tmp_path):
    write_mnist(tmp_path, "t10k", 100)
    data = load("mnist", str(tmp_path))
    assert (len(data.train_y), len(data.test_y)) == (81, 19)
    assert "test files only" in str(data)


def truncate(path: pathlib.Path):
    path.write_bytes(path.read_bytes()[:-5])


def relabel(path: pathlib.Path):
    path.write_bytes((path.parent / "t10k-labels-idx1-ubyte").read_bytes() + bytes(16))


def damage(path: pathlib.Path):
    path.with_name(path.name + ".gz").write_bytes(b"\x1f\x8b" + bytes(40))
    path.unlink()


def lengthen(path: pathlib.Path):
    path.write_bytes(path.read_bytes() + b"x")


IMAGES = "t10k-images-idx3-ubyte"
HARM = {
    "missing": (IMAGES, pathlib.Path.unlink, "is missing"),
    "truncated": (IMAGES, truncate, "is truncated: 15675 bytes of data"),
    "cut in its header": (IMAGES, lambda p: p.write_bytes(b"\0\0"), "its header alone is 16"),
    "mislabelled": (IMAGES, relabel, r"is mislabelled: it begins with \(0, 0, 8, 1\)"),
    "damaged": (IMAGES, damage, "cannot be read"),
    "too long": (IMAGES, lengthen, "is too long"),
    "of another count": (
        "t10k-labels-idx1-ubyte",
        lambda p: write_idx(p, np.zeros(19)),
        "20 t10k images but 19 labels",
    ),
    "too few": (
        "t10k-labels-idx1-ubyte",
        lambda p: write_mnist(p.parent, "t10k", 40),
        None,
    ),
    "all alike": (IMAGES, lambda p: write_idx(p, np.zeros((20, 28, 28))), "do not differ"),
    "of other classes": (
        "t10k-labels-idx1-ubyte",
        lambda p: write_idx(p, np.full(20, 11)),
        "a t10k label is 11",
    ),
}


@pytest.mark.parametrize("harm", HARM)
def test_bad_files_give_one_line_and_status_2(tmp_path, capsys, harm):
    write_mnist(tmp_path, "t10k", 20)
    name, spoil, message = HARM[harm]
    spoil(tmp_path / name)
    if message:  # else it can be read, and only the demonstration cannot use it
        with pytest.raises(DataError, match=message):
            mnist(tmp_path)
    assert demo.main(["--data", "mnist", "--data-dir", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("experiments.demo: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "mnist"], "--data mnist needs --data-dir DIR"),
        (["--data", "mnist", "--data-dir", "/nowhere"], "/nowhere is not a directory"),
    ],
)
def test_bad_arguments_give_one_line_and_status_2(capsys, arguments, message):
    assert demo.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--epochs", "-3"], ["--epochs", "0"], ["--data", "cifar"], ["--seed", "-1"]]
)
def test_the_command_line_refuses(arguments):
    with pytest.raises(SystemExit) as caught:
        demo.main(arguments)
    assert caught.value.code == 2
