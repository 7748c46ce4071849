"""The cost experiment: what is counted is right; times are planted, never asserted."""

import dataclasses
import importlib
import math

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from experiments.cost import PARTS, measures
from experiments.results import NOT_SHOWN, OPPOSITE, SHOWN
from experiments.study import Setting, label, part_name

NAMES = [part_name(part) for part in PARTS]
TIMED = [
    f"{who}{what}_ms" for who in ("", "native_") for what in ("forward", "backward")
]  # columns of every part
SMALL = {
    "parameters": {"widths": (8, 256, 300), "repeats": (1, 2)},
    "differences": {"hidden": ("2", "3-2"), "examples": 32, "repeats": 1},
    "uses": {"width": 16, "uses": (1, 4, 8), "repeats": (1, 2)},
    "depth_and_batch": {"width": 16, "layers": (2, 8), "batches": (16, 32), "repeats": (1, 2)},
}


def part_of(name):
    return importlib.import_module(f"experiments.cost.{name}")


def config_of(name):
    return dataclasses.replace(part_of(name).CONFIGS["smoke"], **SMALL[name])


def run(name, seeds=2, **setting):
    """Rows as the runner hands them on."""
    part, rows = part_of(name), []
    config = config_of(name)
    for arm in part.arms(config):
        for seed in range(seeds):
            where = Setting(seed=seed, dtype="float64", **setting)
            for row in part.measure(arm, config, where):
                rows.append({"part": name, "arm": label(arm), "seed": seed, **arm, **row})
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def found():
    return {name: run(name) for name in NAMES}


def verdict(part, rows, words):
    """Of the one claim that has these words."""
    (claim,) = [claim for claim in part_of(part).claims(rows) if words in claim.text]
    return claim.verdict


def planted(rows, time):
    """Rows whose time of every pass is what time(row) says."""
    values = rows.apply(time, axis=1)
    return rows.assign(**dict.fromkeys(TIMED, values))


@pytest.mark.parametrize("name", NAMES)
def test_a_part_measures_and_says_what_it_found(found, name):
    rows, part = found[name], part_of(name)
    assert (rows[TIMED] > 0).all(axis=None)
    assert rows["gradient_difference"].max() < 1e-13
    assert all(math.isfinite(part.work(arm, config_of(name))) for arm in part.arms(config_of(name)))
    for table in part.tables(rows):
        assert {len(line) for line in table.rows} == {len(table.headers)}
        assert "nan" not in table.text()
    axes = Figure().subplots(1, part.PANELS, squeeze=False)[0]
    part.draw(rows, list(axes))
    for axis in axes:
        assert axis.get_xlabel()
        assert axis.get_ylabel()
        assert axis.get_legend() is not None


@pytest.mark.parametrize("name", NAMES)
def test_a_part_survives_numbers_that_are_none_and_a_single_seed(found, name):
    part, rows = part_of(name), found[name]
    single = rows[rows["seed"] == 0]
    numbers = [c for c in rows.columns if c in {*TIMED, "error", "differences_s"}]
    for some in (single, rows.assign(**dict.fromkeys(numbers, np.nan))):
        assert part.tables(some)
        assert {claim.verdict for claim in part.claims(some)} <= {SHOWN, NOT_SHOWN, OPPOSITE}
        axes = Figure().subplots(1, part.PANELS, squeeze=False)[0]
        part.draw(some, list(axes))


@pytest.mark.parametrize("name", NAMES)
def test_both_backends_count_alike(found, name):
    ours, theirs = found[name], run(name, seeds=1, backend="autograd")
    assert not (theirs["gradient_difference"] > 1e-13).any()
    ours = ours[ours["seed"] == 0].reset_index(drop=True)
    for column in {"P", "gradient_bytes", "far", "far_at_kink"} & set(ours):
        assert ours[column].tolist() == theirs[column].tolist()
    if "kept_bytes" in ours:  # autograd's cross entropy keeps one number more
        assert (theirs["kept_bytes"] - ours["kept_bytes"]).unique().tolist() == [8]
    if "error" in ours:
        assert ours["largest_entry"].tolist() == pytest.approx(theirs["largest_entry"], rel=1e-12)


# what is counted


def test_what_is_kept_is_an_activation_a_layer(found):
    rows = found["parameters"]
    assert rows["kept_bytes"].tolist() == (5 * 64 * 8 * rows["width"] + 8 * 64).tolist()
    assert rows["gradient_bytes"].tolist() == (8 * rows["P"]).tolist()
    assert verdict("parameters", rows, "(L+1) M n") == SHOWN
    assert verdict("parameters", rows, "as many bytes") == SHOWN
    rows = found["depth_and_batch"]
    assert verdict("depth_and_batch", rows, "(L+1) M n") == SHOWN
    assert verdict("depth_and_batch", rows, "with recompute it does not grow") == SHOWN
    kept = rows[rows["keeps"] == "input"]["kept_bytes"]
    assert kept.unique().tolist() == [2 * 64 * 16 * 8 + 8 * 64]


def test_the_hooks_see_all_that_the_allocator_holds():
    net = Setting().network([32] * 5)
    x = torch.randn(64, 32)
    y = torch.randint(10, (64,))
    net.ops.cross_entropy(net(x), y)
    activity = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activity, profile_memory=True) as profile:
        loss = net.ops.cross_entropy(net(x), y)
    held = sum(event.self_cpu_memory_usage for event in profile.events())
    given = x.nbytes + y.nbytes  # kept, but there before
    assert held + given == measures.kept_bytes(net, "cross_entropy", x, y) + loss.nbytes


def test_gradients_of_another_size_are_seen(found):
    rows = found["parameters"].copy()
    rows.loc[1, "gradient_bytes"] *= 2
    assert verdict("parameters", rows, "as many bytes") == NOT_SHOWN


# differences


def test_differences_agree_and_take_2p_forward_passes(found, monkeypatch):
    rows = found["differences"]
    assert verdict("differences", rows, "gives what they give") == SHOWN
    assert verdict("differences", rows, "crossed a kink") == SHOWN
    placed = rows[rows["kink"] == "placed"]
    assert (placed["far"] > 0).all()
    assert (placed["error"] > 1e-6).all()
    part, calls = part_of("differences"), []
    net = Setting(dtype="float64").network([4, 3, 2], "tanh")
    before = [parameter.clone() for parameter in net.parameters()]
    loss = part._loss
    monkeypatch.setattr(part, "_loss", lambda *given: calls.append(1) or loss(*given))
    values = list(part.central_differences(net, torch.ones(2, 4).double(), torch.tensor([0, 1])))
    assert len(values) == net.size == 23
    assert len(calls) == 2 * net.size
    assert all(map(torch.equal, before, net.parameters()))


def test_the_verdict_on_kinks_needs_one_and_all_of_them_there(found):
    rows = found["differences"].assign(far=0, far_at_kink=0)
    assert verdict("differences", rows, "crossed a kink") == NOT_SHOWN
    assert verdict("differences", rows.assign(far=2, far_at_kink=2), "crossed a kink") == SHOWN
    assert verdict("differences", rows.assign(far=2, far_at_kink=1), "crossed a kink") == OPPOSITE


@pytest.mark.parametrize(("times", "said"), [(900, SHOWN), (50, NOT_SHOWN)])
def test_the_ratio_is_of_times(found, times, said):
    rows = planted(found["differences"], lambda row: 0.5 + row["seed"] / 100)
    rows["differences_s"] = times * (rows["forward_ms"] + rows["backward_ms"]) / 1e3
    assert verdict("differences", rows, "replaces 2P") == said


# times, planted


@pytest.mark.parametrize(("power", "said"), [(1.0, SHOWN), (2.0, NOT_SHOWN), (0.3, NOT_SHOWN)])
def test_slopes_in_parameters(found, power, said):
    rows = planted(found["parameters"], lambda row: (1 + row["seed"]) * row["P"] ** power)
    assert measures.slopes(rows, "P", "backward_ms").mean == pytest.approx(power)
    assert verdict("parameters", rows, "O(P)") == said


@pytest.mark.parametrize(("over", "said"), [(2.0, SHOWN), (5.0, NOT_SHOWN)])
def test_backward_over_forward(found, over, said):
    rows = planted(found["parameters"], lambda row: 1.0 + row["seed"])
    rows["backward_ms"] *= over
    assert verdict("parameters", rows, "two forward passes") == said


@pytest.mark.parametrize("name", [name for name in NAMES if name != "differences"])
@pytest.mark.parametrize(("ratio", "said"), [(0.5, SHOWN), (1.0, NOT_SHOWN), (2.0, OPPOSITE)])
def test_who_is_faster(found, name, ratio, said):
    rows = planted(found[name], lambda row: 1.0 + row["seed"])
    rows = rows.assign(forward_ms=rows["forward_ms"] * ratio, native_backward_ms=1.0)
    rows["backward_ms"] = ratio
    assert verdict(name, rows, "no longer than autograd's") == said


def test_cost_of_uses(found):
    by_uses = planted(found["uses"], lambda row: (1 + row["seed"]) * row["uses"])
    assert verdict("uses", by_uses, "whatever the parameters") == OPPOSITE
    assert verdict("uses", by_uses, "O(uses)") == SHOWN
    assert verdict("uses", by_uses, "no time") == SHOWN
    by_parameters = planted(found["uses"], lambda row: (1 + row["seed"]) * row["P"])
    assert verdict("uses", by_parameters, "whatever the parameters") == SHOWN
    assert verdict("uses", by_parameters, "O(uses)") == NOT_SHOWN
    assert verdict("uses", by_parameters, "no time") == NOT_SHOWN
    shared = found["uses"][found["uses"]["weights"] == "shared"]
    assert shared["P"].unique().tolist() == [256]


def test_depth_and_batch(found):
    cost = {"activations": 1.0, "input": 1.5}  # half of both passes' 2: a forward pass more

    def linear(row):
        return (1 + row["seed"]) * row["layers"] * row["batch"] * cost[row["keeps"]]

    rows = planted(found["depth_and_batch"], linear)
    words = ["linear in the depth", "linear in a large batch", "one more forward"]
    assert [verdict("depth_and_batch", rows, w) for w in words] == [SHOWN] * 3
    cost["input"] = 3.0
    rows = planted(found["depth_and_batch"], lambda row: linear(row) ** 2)
    assert [verdict("depth_and_batch", rows, w) for w in words] == [NOT_SHOWN] * 3
