"""One text per formula, for torch and for Triton: the same numbers, and it compiles for a GPU."""

import json
import pathlib
import subprocess
import sys

import pytest
import torch
from helpers import NAMES

pytest.importorskip("triton", reason="triton is not installed: it exists for Linux only")

SCRIPT = pathlib.Path(__file__).parent / "device_formulas.py"
CARRYING = ["LeakyReLU(negative_slope=0.3)", "ELU(alpha=0.7)", "Softplus(beta=2.0, threshold=10.0)"]
names = pytest.mark.parametrize("name", [*NAMES, *CARRYING])


def run(mode):
    out = subprocess.run([sys.executable, str(SCRIPT), mode], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def interpreted():
    return run("interpret")


@pytest.fixture(scope="module")
def compiled():
    return run("compile")


@names
def test_the_device_computes_what_torch_computes(interpreted, name):
    """In Triton's interpreter, infinities and NaN too.

    float32 errs at most twice as much as torch does with the same text, against float64; torch's
    float64 is the truth, so there the two may only round differently.
    """
    results = {case: found for case, found in interpreted[name].items() if "fast" not in case}
    assert len(results) == 6
    for case, (device, torchs) in results.items():
        allowed = 1e-13 if "64" in case else 2 * torchs + torch.finfo(torch.float32).eps
        assert device <= allowed, case


@names
def test_the_fast_spelling_is_exact_to_a_sixteenth_of_float16(interpreted, name):
    """It is used for results that are rounded to 16 bits: there it must not be seen."""
    results = {case: found for case, found in interpreted[name].items() if "fast" in case}
    assert len(results) == 3
    for case, (device, _) in results.items():
        assert device <= torch.finfo(torch.float16).eps / 16, case


@names
def test_every_formula_compiles_for_a_gpu(compiled, name):
    kinds = [f"{key}{fast}" for key in ("sigma", "prime", "second") for fast in ("", ", fast")]
    assert compiled[name] == dict.fromkeys(kinds, "compiled")
