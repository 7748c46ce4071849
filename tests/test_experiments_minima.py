"""curvature, batch.edge, batch.minima and surface.slices, at the size of a smoke test."""

import types
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from experiments import curvature
from experiments.batch import edge, keskar, minima
from experiments.pictures import picture
from experiments.results import NOT_SHOWN, OPPOSITE, SHOWN
from experiments.runner import measured, runs_of
from experiments.study import Experiment, Setting, part_name
from experiments.surface import slices

SEEDS = {edge: 2, minima: 2, slices: 1}
PARTS = tuple(SEEDS)
TINY_ADAM = keskar.Config(hidden=(16, 16), epochs=2, examples=64)
IDS = ("edge", "minima", "slices")


def rows_of(part, seeds, **where):
    setting = Setting(dtype="float64", **where)
    found = []
    for run in runs_of((part,), "smoke", setting, seeds):
        (_, _, seed), rows = measured(run)
        found += [{"seed": seed, **row} for row in rows]
    return pd.DataFrame(found)


@pytest.fixture(scope="module")
def ours():
    return {part: rows_of(part, seeds) for part, seeds in SEEDS.items()}


@pytest.fixture(scope="module")
def theirs():
    return {part: rows_of(part, seeds=1, backend="autograd") for part in PARTS}


def said(part, rows):
    tables, claims = part.tables(rows), part.claims(rows)
    assert picture(Experiment("of this part", (part,), ""), rows.assign(part=part_name(part)))
    assert all(table.text() for table in tables)
    assert claims
    return {claim.text: claim for claim in claims}


@pytest.mark.parametrize("part", PARTS, ids=IDS)
def test_our_gradients_are_autograds(part, ours):
    solved = ours[part]["gradient_difference"].dropna()
    assert len(solved) == SEEDS[part] * len(part.arms(part.CONFIGS["smoke"]))
    assert solved.max() < 1e-11


@pytest.mark.parametrize("part", PARTS, ids=IDS)
def test_both_backends_find_the_same_numbers(part, ours, theirs):
    mine, native_rows = ours[part], theirs[part]
    mine = mine[mine["seed"] == 0].reset_index(drop=True)
    if part is slices:  # training it multiplies what rounding began; its own test is below
        mine, native_rows = (
            rows[rows["case"] != "plain"].reset_index(drop=True) for rows in (mine, native_rows)
        )
    assert_same(mine, native_rows)


def assert_same(mine, native_rows):
    assert len(mine) == len(native_rows)
    for name in set(mine.columns) - {"seconds", "gradient_difference", "product_difference"}:
        if pd.api.types.is_numeric_dtype(mine[name]):
            np.testing.assert_allclose(mine[name], native_rows[name], 1e-6, 1e-9, err_msg=name)
        else:
            assert mine[name].fillna("").equals(native_rows[name].fillna("")), name


def test_both_backends_begin_alike_with_the_deep_plain_network():
    config = replace(slices.CONFIGS["smoke"], updates=20)
    mine, native_rows = (
        pd.DataFrame(slices.measure({"case": "plain"}, config, Setting(dtype="float64", backend=b)))
        for b in ("manualgrad", "autograd")
    )
    assert mine["updates"].iloc[0] == 20
    assert_same(mine, native_rows)


@pytest.mark.parametrize("part", PARTS, ids=IDS)
def test_verdicts_survive_one_seed_and_what_did_not_happen(part, ours):
    rows = ours[part]
    said(part, rows)
    for claim in said(part, rows[rows["seed"] == 0]).values():
        assert claim.verdict in (SHOWN, NOT_SHOWN, OPPOSITE)
    numbers = [n for n in rows.select_dtypes("float").columns if n not in ("learning_rate", "pair")]
    numbers = [n for n in numbers if n not in ("label_noise", "along", "across", "batch")]
    nothing = rows.copy()
    nothing[numbers] = np.nan
    exact = [c for c in said(part, nothing).values() if c.verdict == SHOWN]
    assert not exact


def test_the_full_batch_sits_at_the_edge_and_a_small_one_below_it():
    config = edge.CONFIGS["quick"]  # a smaller network's curvature is not there, or overshoots
    config = replace(config, batches=(config.batches[0], config.batches[-1]))
    runs = [
        {"seed": seed, **arm, **edge.measure(arm, config, Setting(seed=seed))[0]}
        for arm in edge.arms(config)
        for seed in (0, 1)
    ]
    rows = pd.DataFrame(runs)
    assert rows["product_difference"].max() < edge.ROUNDING
    means = rows.groupby("batch")["lambda_eta"].mean()
    assert 1.95 <= means.iloc[-1] <= 2.05
    assert means.iloc[0] < 1.2
    claims = said(edge, rows)
    assert (
        claims["the full batch sharpens until lambda_max eta = 2, at every rate"].verdict == SHOWN
    )
    assert claims["lambda_max rises with the batch size"].verdict == SHOWN
    below = rows.assign(lambda_eta=rows["lambda_eta"] * 0.96)
    assert said(edge, below)[next(iter(claims))].verdict == NOT_SHOWN


def test_small_batches_end_flatter_at_equal_loss(ours):
    rows = ours[minima]
    assert rows["reached"].all()
    assert rows["train_loss"].max() <= minima.CONFIGS["smoke"].target
    means = rows.groupby("batch")[["lambda_max", "around"]].mean()
    assert means["lambda_max"].is_monotonic_increasing
    assert means["around"].is_monotonic_increasing
    assert said(minima, rows)["lambda_max rises with the batch size"].verdict == SHOWN


def test_a_target_out_of_reach_is_no_number_and_no_error(ours):
    config = replace(minima.CONFIGS["smoke"], updates=2)
    rows = ours[minima].copy()
    (row,) = minima.measure(minima.arms(config)[-1], config, Setting())
    assert row["reached"] == 0
    assert np.isnan(row["lambda_max"])
    rows = pd.concat([rows, pd.DataFrame([{**rows.iloc[-1], "seed": 2, **row}])])
    assert "2 of 3" in minima.tables(rows)[0].text()


def test_noisy_labels_and_adam_have_verdicts_of_their_own(ours):
    config = replace(minima.CONFIGS["smoke"], pairs=(), adam=TINY_ADAM)
    runs = [
        {"seed": seed, **arm, **minima.measure(arm, config, Setting(seed=seed))[0]}
        for arm in minima.arms(config)
        for seed in (0, 1)
    ]
    adam = pd.DataFrame(runs)
    assert sorted(adam["batch"].unique()) == [4, 102]
    noisy = ours[minima].assign(label_noise=0.2)
    claims = said(minima, pd.concat([ours[minima], noisy, adam], ignore_index=True))
    for where in ("(Adam, equal epochs)", "(20% of the labels random)"):
        assert sum(where in text for text in claims) >= 4


def test_random_labels_are_as_many_as_they_should_be():
    labels = torch.zeros(10000, dtype=torch.int64)
    changed = minima.noisy(labels, 0.2, seed=0)
    assert 0.16 < (changed != 0).double().mean() < 0.20  # one in ten draws the old one
    assert torch.equal(changed, minima.noisy(labels, 0.2, seed=0))


def test_skips_keep_the_surface_low(ours):
    rows = ours[slices]
    highest = rows[rows["kind"] == "pair"].groupby("case")["highest"].max()
    assert highest["residual"] < highest["plain"] / 10
    around = rows[rows["kind"] == "solution"].groupby("case")["around"].mean()
    assert around["residual"] < around["plain"]
    assert around["small batch"] < around["full batch"]
    points = rows[rows["kind"] == "point"]
    assert set(points["seed"]) == {0}
    assert len(points) == 4 * slices.CONFIGS["smoke"].steps ** 2


@pytest.fixture
def landscape():
    data = Setting().dataset()
    net = Setting(dtype="float64").network([64, 6, 10], "tanh", init="lecun")
    return curvature.Landscape(net, "cross_entropy", data.train_x[:64], data.train_y[:64])


def test_the_largest_curvature_is_the_dense_hessians(landscape):
    product, P = landscape.product(), len(landscape.origin)
    dense = torch.stack([product(e) for e in torch.eye(P, dtype=torch.float64)])
    largest = torch.linalg.eigvalsh(dense)[-1].item()
    assert curvature.lambda_max(product, landscape.origin) == pytest.approx(largest, rel=1e-3)
    estimate = curvature.trace(product, landscape.origin, probes=100)
    assert estimate == pytest.approx(dense.trace().item(), rel=0.1)


def test_a_spectrum_that_is_known():
    values = torch.tensor([3.0, -5.0, 1.0], dtype=torch.float64)  # the largest, not the longest
    assert curvature.lambda_max(lambda v: values * v, values) == pytest.approx(3.0)
    assert curvature.trace(lambda v: values * v, values) == pytest.approx(-1.0)
    assert np.isnan(curvature.lambda_max(lambda v: v * np.nan, values))


def test_sharpness_of_a_slope_is_its_corner():
    slope = torch.tensor([2.0, -1.0], dtype=torch.float64)
    origin = torch.tensor([1.0, 3.0], dtype=torch.float64)
    plane = types.SimpleNamespace(
        origin=origin,
        loss=lambda point=origin: (slope @ (point - origin)).item(),
        gradient=lambda point: ((slope @ (point - origin)).item(), slope),
    )
    rise = 100 * (2 * 0.01 * 2 + 1 * 0.01 * 4)
    assert curvature.sharpness(plane, 0.01) == pytest.approx(rise)


def test_directions_are_as_long_as_the_neurons_and_slices_start_at_the_loss(landscape):
    first, second = landscape.direction(0), landscape.direction(1)
    weights = landscape.origin[: 6 * 64].view(6, 64)
    assert torch.allclose(first[: 6 * 64].view(6, 64).norm(dim=1), weights.norm(dim=1))
    assert not first[6 * 64 + 10 * 6 :].any()  # the biases, behind all weights
    assert not torch.equal(first, second)
    before = landscape.loss()
    losses = landscape.slice(first, second, [-1.0, 0.0, 1.0])
    assert losses[1][1] == before == landscape.loss()
    assert losses[2][1] == landscape.loss(landscape.origin + first)
    assert np.mean(losses) > before
