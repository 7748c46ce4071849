"""The parts of the batch experiment, small: what must hold, on both backends, and what must not."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

import manualgrad as mg
from experiments import native
from experiments.batch import averaging, budget, noise, steps, steps_fit, throughput
from experiments.results import NOT_SHOWN, OPPOSITE, SHOWN
from experiments.study import Setting

CONFIGS = {
    averaging: averaging.CONFIGS["smoke"],
    noise: replace(noise.CONFIGS["smoke"], examples=512, checked=16),
    steps: replace(steps.CONFIGS["smoke"], momenta=(0.0, 0.9)),
    budget: budget.CONFIGS["smoke"],
    throughput: replace(throughput.CONFIGS["smoke"], updates=3),
}
NUMBERS = {
    averaging: ["error", "sum_over_mean"],
    noise: ["variance", "cosine", "noise_scale", "trace", "loss", "norm_error", "variance_without"],
    steps: ["steps"],
    budget: ["train_loss", "test_accuracy"],
    throughput: ["milliseconds", "ratio", "examples_per_second", "epoch"],
}
PARTS = list(CONFIGS)
NAMES = [part.__name__.split(".")[-1] for part in PARTS]


def rows_of(part, seeds=(0,), backend="manualgrad", config=None):
    config = config or CONFIGS[part]
    rows = []
    for arm in part.arms(config):
        for seed in seeds:
            setting = Setting(seed=seed, dtype="float64", backend=backend)
            found = part.measure(arm, config, setting)
            rows += [{"seed": seed, **arm, **row} for row in found]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def measured():
    """Rows of each part, two seeds, once for all tests."""
    torch.set_num_threads(1)
    return {part: rows_of(part, seeds=(0, 1)) for part in PARTS}


@pytest.fixture(scope="module")
def in_autograd():
    return {part: rows_of(part, backend="autograd") for part in PARTS if part is not throughput}


def verdicts(part, rows):
    return [claim.verdict for claim in part.claims(rows)]


def says(part, rows):
    """Tables, claims and picture, from rows alone."""
    axes = [Figure().add_subplot() for _ in range(part.PANELS)]
    part.draw(rows, axes)
    assert all(axis.get_xlabel() and axis.get_ylabel() for axis in axes)
    return [table.text() for table in part.tables(rows)], part.claims(rows)


@pytest.mark.parametrize(
    "part", [p for p in PARTS if p is not throughput], ids=lambda p: p.__name__
)
def test_both_backends_give_the_same_numbers(part, measured, in_autograd):
    ours = measured[part].query("seed == 0").reset_index(drop=True)
    theirs = in_autograd[part]
    assert len(ours) == len(theirs) > 0
    for name in NUMBERS[part]:
        if "error" not in name:
            assert ours[name].notna().any(), name
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-7, err_msg=name)


@pytest.mark.parametrize("part", PARTS, ids=NAMES)
def test_gradients_are_autograds(part, measured):
    assert measured[part]["gradient_difference"].max() < 1e-11


@pytest.mark.parametrize("part", PARTS, ids=NAMES)
def test_tables_claims_and_pictures_stand_one_seed_and_what_is_no_number(part, measured):
    rows = measured[part]
    texts, claims = says(part, rows)
    assert all(texts)
    assert claims
    says(part, rows.query("seed == 0").reset_index(drop=True))
    for gone in (rows["seed"] == 0, rows["batch"] == rows["batch"].max(), rows["seed"] >= 0):
        holed = rows.copy()
        holed[NUMBERS[part]] = holed[NUMBERS[part]].astype(float)
        holed.loc[gone, NUMBERS[part]] = math.nan
        says(part, holed)
    assert SHOWN not in verdicts(part, holed)  # of no numbers at all nothing is shown


@pytest.mark.parametrize("part", PARTS, ids=NAMES)
def test_every_budget_has_arms_that_differ(part):
    for config in part.CONFIGS.values():
        arms = part.arms(config)
        assert len({str(arm) for arm in arms}) == len(arms)
        assert all(part.work(arm, config) > 0 for arm in arms)


def test_averaging_is_exact(measured):
    rows = measured[averaging]
    assert rows["error"].max() <= 1e-14
    np.testing.assert_allclose(rows["sum_over_mean"], rows["batch"], rtol=1e-12)
    assert verdicts(averaging, rows) == [SHOWN]


def test_averaging_finds_a_cost_that_does_not_divide_by_M(monkeypatch):
    right = mg.cross_entropy
    monkeypatch.setattr(
        mg, "cross_entropy", lambda x, y, **how: right(x, y, **how) * (1 + 1e-9 * (len(x) > 1))
    )
    assert verdicts(averaging, rows_of(averaging)) == [NOT_SHOWN]


def test_noise_falls_as_1_over_M(measured):
    rows = measured[noise]
    found = noise.slopes(rows)
    before = found[found["updates"] == 0]
    assert ((before["slope"] > -1.06) & (before["slope"] < -0.94)).all()
    assert before["without"].max() < before["corrected"].min()  # drawn once: less noise
    assert rows["norm_error"].max() <= 1e-12
    assert rows["square_error"].max() <= 1e-12
    scale = found.pivot(index="seed", columns="updates", values="noise_scale")
    assert (scale[100] > 3 * scale[0]).all()
    assert verdicts(noise, rows)[:2] == [SHOWN, SHOWN]


def test_noise_finds_gradients_without_their_biases(monkeypatch):
    def without_biases(self):
        K = sum((u.delta @ u.delta.T) * (u.a @ u.a.T) for u in self.layers)
        return K * len(K) ** 2

    monkeypatch.setattr(mg.capture, "grad_gram", without_biases)
    monkeypatch.setattr(
        mg.capture, "per_example_norms", lambda self: without_biases(self).diagonal().sqrt()
    )
    config = replace(CONFIGS[noise], updates=(0,), draws=10)
    rows = rows_of(noise, config=config)
    assert rows["norm_error"].min() > 1e-6
    assert rows["square_error"].min() > 1e-6
    assert verdicts(noise, rows)[1] == NOT_SHOWN


def test_noise_finds_examples_that_are_not_independent(monkeypatch):
    def one_example(draws, examples, batch, generator):
        chosen = torch.randint(examples, (draws, 1), generator=generator)
        return torch.zeros(draws, examples).scatter_(1, chosen, float(batch))

    monkeypatch.setattr(noise, "drawn", one_example)
    rows = rows_of(noise, config=replace(CONFIGS[noise], updates=(0,)))
    assert verdicts(noise, rows)[0] == NOT_SHOWN


def test_batches_are_drawn_as_said():
    generator = torch.Generator().manual_seed(0)
    counts = noise.drawn(50, 20, 10, generator)
    assert (counts.sum(1) == 10).all()
    assert counts.max() > 1
    once = noise.drawn_once(50, 20, 10, generator)
    assert (once.sum(1) == 10).all()
    assert once.max() == 1
    K = torch.randn(20, 5)
    K = K @ K.T
    variance, cosine = noise.distances(K, torch.ones(3, 20), 20)  # each example once: G itself
    assert abs(variance) < 1e-5
    assert cosine == pytest.approx(1.0, abs=1e-5)


def test_steps_fall_and_then_do_not(measured):
    rows = measured[steps]
    of = {m: steps_fit.per_seed(steps_fit.tuned(rows[rows["momentum"] == m])) for m in (0.0, 0.9)}
    assert (of[0.0]["small"] < -0.5).all()
    assert (of[0.0]["large"] > -0.3).all()
    assert (of[0.0]["price"] > 3).all()
    assert of[0.9]["log_B_crit"].mean() > of[0.0]["log_B_crit"].mean()


def test_a_target_that_is_missed_is_no_number():
    config = replace(CONFIGS[steps], batches=(1024,), momenta=(0.0,), loss=1e-9, accuracy=0.1)
    rows = rows_of(steps, config=config)
    assert rows.set_index("target")["steps"].to_dict() == {
        "training loss 1e-09": pytest.approx(math.nan, nan_ok=True),
        "test accuracy 0.1 %": 1.0,
    }


def test_the_fit_finds_what_made_the_curve():
    M = np.array([1, 4, 16, 64, 256, 1024])
    S_min, E_min = steps_fit.fit(M, 20 + 1000 / M)
    assert (S_min, E_min) == (pytest.approx(20, rel=1e-4), pytest.approx(1000, rel=1e-4))
    assert math.isnan(steps_fit.fit(M[:2], M[:2])[0])
    assert [steps_fit.regime(s) for s in (-1, -0.5, 0, math.nan)] == [
        "perfect",
        "diminishing",
        "flat",
        "-",
    ]


def curve_of(function, seeds=(0, 1, 2)):
    rows = [
        {
            "target": "training loss 0.1",
            "momentum": 0.0,
            "batch": M,
            "learning_rate": rate,
            "seed": seed,
            "steps": function(M) * (1 + 0.01 * seed) * miss,
            "gradient_difference": 0.0,
        }
        for M in (1, 4, 16, 64, 256, 1024)
        for rate, miss in ((0.1, 2.0), (0.2, 1.0), (0.4, math.nan if M > 16 else 3.0))
        for seed in seeds
    ]
    return pd.DataFrame(rows)


def test_verdicts_on_updates_follow_the_curve():
    rows = curve_of(lambda M: 20 + 1000 / M)
    assert verdicts(steps, rows) == [SHOWN, SHOWN, SHOWN]
    chosen = steps_fit.tuned(rows)
    assert set(chosen["learning_rate"]) == {0.2}
    assert not chosen["edge"].any()
    assert verdicts(steps, curve_of(lambda M: 2000 / M)) == [SHOWN, OPPOSITE, NOT_SHOWN]
    assert verdicts(steps, curve_of(lambda M: 500.0)) == [OPPOSITE, SHOWN, SHOWN]


def test_a_best_rate_on_the_grids_edge_is_flagged():
    rows = curve_of(lambda M: 20 + 1000 / M)
    text = steps.tables(rows[rows["learning_rate"] < 0.4])[0].text()
    assert text.count("(edge)") == 6
    assert "(edge)" not in steps.tables(rows)[0].text()


def test_budgets_favour_opposite_batches(measured):
    rows = measured[budget]
    epochs, updates = (budget.ruled(rows, limit, "tuned") for limit in ("epochs", "updates"))
    assert budget._gain(epochs, "test_accuracy").mean < -2
    assert budget._gain(updates, "test_accuracy").mean > 2
    linear = budget.ruled(rows, "epochs", "linear").groupby("batch")["train_loss"].mean()
    assert 1 / 1.5 < linear[64] / linear[16] < 1.5
    assert not linear[1024] <= 1


def test_the_rules_rates():
    assert [budget.rate_of(rule, 64) for rule in budget.RULES] == pytest.approx([0.1, 0.2, 0.4])
    config = budget.CONFIGS["full"]
    for batch in config.batches:
        rates = [
            arm["learning_rate"]
            for arm in budget.arms(config)
            if (arm["limit"], arm["batch"]) == ("epochs", batch)
        ]
        assert len(rates) == len({f"{rate:.6g}" for rate in rates})  # no arm twice, by rounding
        assert {f"{budget.rate_of(r, batch):.6g}" for r in budget.RULES} <= {
            f"{rate:.6g}" for rate in rates
        }


def test_budget_verdicts_turn_with_the_numbers(measured):
    rows = measured[budget].copy()
    rows["test_accuracy"] = 90.0 + 0.1 * rows["seed"] + np.log2(rows["batch"])
    rows.loc[rows["limit"] == "updates", "test_accuracy"] -= 2 * np.log2(rows["batch"])
    assert verdicts(budget, rows)[:3] == [OPPOSITE, OPPOSITE, OPPOSITE]
    rows["train_loss"] = 0.1 * rows["batch"]
    assert verdicts(budget, rows)[4] == NOT_SHOWN


def test_as_many_updates_are_timed_on_both_sides(monkeypatch):
    counts = {mg: 0, native: 0}

    def counted(ops, right):
        def cross_entropy(*arguments, **how):
            counts[ops] += 1
            return right(*arguments, **how)

        return cross_entropy

    for ops in counts:
        monkeypatch.setattr(ops, "cross_entropy", counted(ops, ops.cross_entropy))
    rows = rows_of(throughput, config=replace(CONFIGS[throughput], batches=(64,)))
    assert counts == {mg: 9, native: 9}  # of the check, of five to warm up, three timed
    (row,) = rows.to_dict("records")
    assert row["examples_per_second"] == pytest.approx(64e3 / row["milliseconds"])
    assert row["epoch"] == pytest.approx(16e-3 * row["milliseconds"])
    assert row["ratio"] == pytest.approx(row["milliseconds"] / row["milliseconds_autograd"])
