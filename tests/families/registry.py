"""Small models of 35 families, with random weights: FAMILIES maps a name to how one is built.

A builder returns (model, args, kwargs). pairs: layers that one activation follows, of those that
there is a formula for. Nothing is downloaded.
"""

import functools
import warnings

import pytest
import torch

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


def define_operators_of_torchvision():
    """torchvision's wheel for CUDA imports beside torch for the CPU once these names exist."""
    if not hasattr(torch.ops.torchvision, "nms"):
        needed.library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            needed.library.define(f"{name}(Tensor dets, Tensor scores, float iou) -> Tensor")


def images(side=32, many=2):
    return torch.randn(many, 3, side, side)
