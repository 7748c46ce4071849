"""One thread, one seed per test, and empty memory that is never zero by luck.

--exhaustive: every combination, where tests/selection.py takes some of them.
"""

import pytest
import torch

from manualgrad import small, tiling
from manualgrad.activations import ACTIVATIONS

torch.set_num_threads(1)
# whose chains, small as a test's are, go the way of large ones too
BOTH_WAYS = {f"test_{what}" for what in (
    "composition", "gradients", "hazards", "modules", "numeric", "precision", "shared_parameters"
)}  # fmt: skip


def pytest_addoption(parser):
    parser.addoption("--exhaustive", action="store_true", help="every combination that there is")


def pytest_configure(config):
    config.addinivalue_line("markers", "exhaustive: a combination for --exhaustive alone")
    config.addinivalue_line("markers", "long: begun first, so that no core waits for it at the end")


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    if not config.getoption("exhaustive"):
        left = [item for item in items if item.get_closest_marker("exhaustive")]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]


def pytest_generate_tests(metafunc):
    if metafunc.module.__name__ in BOTH_WAYS:
        metafunc.parametrize("chains", ["small", "large"], indirect=True)


@pytest.fixture(scope="session")
def exhaustive(request):
    return request.config.getoption("exhaustive")


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # so that torch.empty is filled with NaN
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def chains(request, monkeypatch):
    """Chains that are small go their own way, manualgrad.small; with "large", none is."""
    monkeypatch.setattr(small, "gradients_were_differentiated", False)
    monkeypatch.setattr(tiling, "CACHE", tiling.MUCH)  # as on a machine with 32 MiB of it
    if getattr(request, "param", "small") == "large":
        monkeypatch.setattr(small, "BYTES", -1)


@pytest.fixture
def not_small(monkeypatch):
    monkeypatch.setattr(small, "BYTES", -1)


@pytest.fixture
def registry():
    """The activations, put back as they were when the test is done."""
    before = dict(ACTIVATIONS)
    yield ACTIVATIONS
    ACTIVATIONS.clear()
    ACTIVATIONS.update(before)
