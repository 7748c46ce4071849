"""Small models of 35 families, with random weights: FAMILIES maps a name to how one is built.

A builder returns (model, args, kwargs). pairs: layers that one activation follows, of those that
there is a formula for. Nothing is downloaded.
"""

import functools
import warnings

import pytest
import torch

from benchmarks.problems import define_operators_of_torchvision

FAMILIES = {}


def family(name, pairs):
    def add(build):
        FAMILIES[name] = (build, pairs)
        return build

    return add


@functools.cache
def needed(name):
    """The package, or a skip. Importing them warns of what they use of torch; that is theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        define_operators_of_torchvision()  # timm and transformers import it too
        return pytest.importorskip(name)


def images(side=32, many=2):
    return torch.randn(many, 3, side, side)
