"""The kernels run compiled where there is a GPU, else in Triton's interpreter: one mode a process.

So these tests have a pytest process of their own: python -m pytest tests/kernels
"""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS under deterministic rules


def pytest_collection_modifyitems(config, items):
    """KERNEL_TESTS=2/8 runs the second eighth: several processes compile in parallel."""
    shard = os.environ.get("KERNEL_TESTS")
    if shard:
        part, parts = map(int, shard.split("/"))
        config.hook.pytest_deselected(items=[t for i, t in enumerate(items) if i % parts != part])
        items[:] = items[part::parts]


@pytest.fixture(scope="session")
def kernels():
    from manualgrad import triton_kernels

    interpreted = triton_kernels.launch.knobs.runtime.interpret
    if interpreted == torch.cuda.is_available():
        pytest.exit("triton was imported in the other mode before: run tests/kernels on its own")
    return triton_kernels


@pytest.fixture
def launched(kernels, monkeypatch):
    """The names of the kernels launched so far."""
    names, run = [], kernels.launch.run

    def spy(kernel, *arguments, **named):
        names.append(kernel.fn.__name__)
        return run(kernel, *arguments, **named)

    monkeypatch.setattr(kernels.launch, "run", spy)
    return names


def pytest_configure(config):
    # NumPy, which interprets, remarks on the branch of a where that is not taken, and on triton 3.6
    for remark in (".* encountered in:RuntimeWarning", "Conversion of an array:DeprecationWarning"):
        config.addinivalue_line("filterwarnings", f"ignore:{remark}")
