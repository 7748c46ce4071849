"""What importing the library costs, counted in modules."""

import functools
import json
import subprocess
import sys

import pytest

NEW_MODULES = """
import json, sys
import torch
before = set(sys.modules)
import manualgrad
print(json.dumps(sorted(set(sys.modules) - before)))
"""


@functools.cache
def new_modules():
    out = subprocess.run([sys.executable, "-c", NEW_MODULES], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


def test_import_adds_only_ourselves_to_torch():
    heads = {name.split(".")[0] for name in new_modules()}
    assert heads <= {"manualgrad", *sys.stdlib_module_names}
    assert not heads & {"triton", "pandas", "sympy", "numpy", "sklearn"}


def test_import_adds_few_modules():
    ours = [name for name in new_modules() if name.startswith("manualgrad")]
    assert len(ours) <= 61


def test_import_works_without_triton():
    blocked = "import sys; sys.modules['triton'] = None; import manualgrad, torch; "
    run = "print(manualgrad.linear_act(torch.ones(1, 2), torch.ones(3, 2)).sum().item())"
    out = subprocess.run([sys.executable, "-c", blocked + run], capture_output=True, text=True)
    assert out.stdout.strip() == "6.0", out.stderr


def test_the_kernels_install_under_our_own_name():
    code = "import manualgrad.triton_kernels as t; print(t.__name__)"
    pytest.importorskip("triton", reason="triton is not installed: it exists for Linux only")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert out.stdout.strip() == "manualgrad.triton_kernels", out.stderr
