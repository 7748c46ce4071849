"""One thread, one seed per test, and empty memory that is never zero by luck."""

import pytest
import torch

from manualgrad.activations import ACTIVATIONS

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # so that torch.empty is filled with NaN
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def registry():
    """The activations, put back as they were when the test is done."""
    before = dict(ACTIVATIONS)
    yield ACTIVATIONS
    ACTIVATIONS.clear()
    ACTIVATIONS.update(before)
