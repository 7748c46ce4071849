"""What the parts of the share experiment are made of."""

import math
import types

import pandas as pd
import pytest
import torch
from test_experiments_share import PARTS

import manualgrad as mg
from experiments.results import NOT_SHOWN, OPPOSITE, SHOWN
from experiments.share import (
    common,
    convolution,
    depth,
    embedding,
    position,
    siamese,
)
from experiments.study import Setting


def test_windows_and_tori():
    windows = position.windows()
    assert windows.shape == (100, 64)
    assert windows[0, :9].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 10]
    assert windows[99, :4].tolist() == [99, 90, 91, 92]  # around both edges
    assert windows.flatten().bincount().tolist() == [64] * 100
    images = torch.rand(50, 64) + 1
    tori = position.pasted(images, (5,), 0.0, seed=0).view(50, 10, 10)
    assert (tori[:, :, 3:5] == 0).all()
    assert torch.equal(tori.flatten(1).sort(1)[0][:, 36:], images.sort(1)[0])
    rows_used = {int((torus.sum(1) == 0).nonzero()[0]) for torus in tori}
    assert len(rows_used) > 5


def test_a_convolution_by_patches_is_torch_s():
    net = convolution.Patches(mg, "shared", 16, common.normals(Setting()))
    x = torch.rand(5, 64)
    maps = mg.linear_act(x[:, net.windows], net.weight, net.bias, "relu").mT
    kernel = net.weight.detach().view(16, 1, 3, 3)
    theirs = torch.nn.functional.conv2d(x.view(5, 1, 8, 8), kernel, net.bias).relu().flatten(2)
    torch.testing.assert_close(maps, theirs)


def test_pairs_are_half_of_each_kind_and_rightly_named():
    x, y = torch.arange(200.0).unsqueeze(1), torch.arange(200) % 10
    pairs, same = siamese.pairs_of(x, y, 2000, seed=0)
    left, right = (pairs[:, i].long() for i in (0, 1))
    assert torch.equal(same.bool(), y[left] == y[right])
    assert 900 < same.sum() < 1100


def test_time_is_taken_of_both_in_turn():
    normal = common.normals(Setting())
    net, other = (depth.Stack(mg, kind, 64, normal) for kind in ("shallow", "8 of 8"))
    order = []
    for one in (net, other):
        forward = one.forward
        one.forward = lambda x, one=one, forward=forward: (order.append(one), forward(x))[1]
    data = Setting().dataset()
    ratio = depth.relative_time(net, other, 3, data.train_x[:8], data.train_y[:8])
    assert order == [net, other] * 3
    assert ratio > 0


def test_verdicts_follow_the_numbers():
    """Claims of rows whose answer is known: better is shown, worse is the opposite."""

    def claims(times):
        rows = [
            {"kind": kind, "learning_rate": 1.0, "seed": seed, "train_loss": 1.0,
             "parameters": 100, "train_perplexity": 9.0 * factor + seed,
             "perplexity": 10.0 * factor + seed}
            for kind, factor in {"untied": 1, "tied": times, "untied half": 1.5}.items()
            for seed in range(4)
        ]  # fmt: skip
        return [claim.verdict for claim in embedding.claims(pd.DataFrame(rows))]

    assert claims(0.8) == [SHOWN, SHOWN, OPPOSITE, SHOWN]
    assert claims(1.0) == [NOT_SHOWN, SHOWN, NOT_SHOWN, SHOWN]
    assert claims(1.8) == [OPPOSITE, OPPOSITE, SHOWN, OPPOSITE]


def test_tuned_takes_the_least_training_loss_and_says_where_it_lies():
    rows = pd.DataFrame(
        {"kind": "x", "learning_rate": [0.1, 0.3, 1.0], "seed": 0, "train_loss": [2.0, 1.0, 3.0]}
    )
    best = common.tuned(rows)
    assert (best.rate, best.edge, best.rate_text) == (0.3, False, "0.3")
    assert common.tuned(rows.iloc[:2]).rate_text == "0.3 (edge)"
    assert common.tuned(rows.assign(train_loss=math.nan)).rate_text == "all diverged"


def test_images_are_made_small_and_must_be_square():
    images = torch.rand(3, 28 * 28)
    assert common.small(images).shape == (3, 64)
    assert torch.allclose(common.small(torch.full((1, 784), 0.7)), torch.full((1, 64), 0.7))
    assert common.small(images[:, :64]) is not None
    with pytest.raises(ValueError, match="not square"):
        common.small(images[:, :50])


def test_parts_are_modules_of_the_package():
    assert all(isinstance(part, types.ModuleType) for part in PARTS.values())
    for part in PARTS.values():
        assert (part.__doc__ or "").splitlines()[0].endswith("?")
        assert set(part.CONFIGS) == {"smoke", "quick", "full"}
