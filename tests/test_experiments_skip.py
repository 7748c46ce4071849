"""The parts of the experiment skip, at smoke size: what they must find, and what must not pass."""

import dataclasses
import math
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

import manualgrad as mg
from experiments import native
from experiments.rendering import ROUNDING
from experiments.runner import measured, runs_of
from experiments.skip import adjoints, delta, forks, nielsen, shatter, trained, training, vanishing
from experiments.skip.chains import KINDS, deep, scale_of
from experiments.study import Setting, part_name

GRIDS = (
    training.Grid("plain", "unit", (2, 32), (0.03,)),
    training.Grid("pre", "root", (2, 32), (0.3,)),
    training.Grid("pre", "unit", (32,), (0.1,)),
)
BRIEF = {  # parts too long for two backends at smoke size
    "delta": dataclasses.replace(delta.CONFIGS["smoke"], depths=(2, 4), profile=4, updates=3),
    "nielsen": nielsen.Config(networks=1, examples=50),
    "shatter": shatter.Config(depths=(1, 4), width=16, points=32, networks=1, nets=shatter.NETS),
    "training": training.Config(10, (*GRIDS[1:], training.Grid("out", "root", (2,), (0.1,), 2))),
    "forks": dataclasses.replace(forks.CONFIGS["smoke"], examples=8),
}
PARTS = (delta, nielsen, shatter, training, forks)


def rows_of(part, config=None, seeds=1, **setting):
    """As a run gives them; the smoke configuration unless one is given."""
    small = SimpleNamespace(
        **{name: getattr(part, name) for name in dir(part) if not name.startswith("__")},
        __name__=part.__name__,
    )
    small.CONFIGS = {"smoke": config or part.CONFIGS["smoke"]}
    rows = []
    for run in runs_of((small,), "smoke", Setting(**setting), seeds):
        (_, arm, seed), found = measured(run)
        rows += [{"part": part_name(part), "arm": arm, "seed": seed, **row} for row in found]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def smoke():
    """Rows of each part by name, made once."""
    torch.set_num_threads(1)
    config = training.Config(150, GRIDS)
    seeds = {"shatter": 2, "forks": 2}
    return {
        part_name(part): rows_of(
            part, config if part is training else None, seeds.get(part_name(part), 1)
        )
        for part in PARTS
    }


def said(part, rows):
    """Each claim's verdict by its first words."""
    return {claim.text: claim for claim in part.claims(rows)}


def verdict(part, rows, beginning):
    (found,) = [c.verdict for text, c in said(part, rows).items() if text.startswith(beginning)]
    return found


def ratio(rows, kind, branch, activation="sigmoid", depth=16):
    found = vanishing.at_start(rows, kind, branch, activation, depth=depth)["ratio"]
    assert len(found)
    return found.mean()


def test_the_error_vanishes_down_a_sigmoid_chain_and_not_along_a_free_skip(smoke):
    rows = smoke["delta"]
    assert ratio(rows, "plain", "unit") < -8
    assert 0 <= ratio(rows, "pre", "unit") <= 0.3
    assert ratio(rows, "post", "unit") < -5  # sigma' stands in the skip's way, too
    assert abs(ratio(rows, "plain", "unit", "relu")) < 1
    growth = vanishing.per_layer(vanishing.at_start(rows, "pre", "unit", "relu"))
    assert 0.4 <= growth.mean <= 0.6
    assert verdict(delta, rows, "in a plain sigmoid") == "shown"
    assert verdict(delta, rows, "a skip brings") == "shown"
    assert verdict(delta, rows, "in a plain ReLU") == "not shown"
    assert verdict(delta, rows, "with ReLU, He's") == "shown"


def test_the_book_s_norms(smoke):
    assert all(claim.verdict == "shown" for claim in nielsen.claims(smoke["nielsen"]))
    for hidden in nielsen.BOOK:
        assert min(nielsen.factors(smoke["nielsen"], hidden)) > 2


def test_plain_gradients_shatter(smoke):
    rows = smoke["shatter"]
    plain, pre = (
        shatter._at(rows, kind, b, 32) for kind, b in (("plain", "unit"), ("pre", "root"))
    )
    assert shatter._at(rows, "plain", "unit", 1).mean - plain.mean > 0.2
    assert pre.mean - plain.mean > 0.2
    assert pre.mean > 0.7


def test_autocorrelation():
    wave = torch.tensor([1.0, -1.0] * 50)
    assert shatter.autocorrelation(wave, 1) == pytest.approx(-1, abs=0.02)
    assert shatter.autocorrelation(wave, 2) == pytest.approx(1, abs=0.02)
    assert math.isnan(shatter.autocorrelation(torch.ones(9), 1))
    assert math.isnan(shatter.autocorrelation(torch.tensor([1.0, math.inf, 0.0]), 1))


def test_skips_train_where_a_plain_network_does_not(smoke):
    rows = smoke["training"].set_index(["kind", "branch", "depth"])["test_accuracy"]
    assert rows["pre", "root", 32] > 95
    assert rows["plain", "unit", 32] < rows["pre", "root", 32] - 2
    assert math.isnan(rows["pre", "unit", 32])  # diverged, and said to be
    table = training.tables(smoke["training"])[0].text()
    assert "1 of 1" in table
    assert verdict(training, smoke["training"], "with ReLU, He's") == "shown"


def test_the_identity_at_forks(smoke):
    rows = smoke["forks"]
    assert (rows["sum_error"] <= 1e-14).all()
    assert (rows["chain_error"] <= 1e-14).all()
    assert (rows["added_bitwise"] == rows["forks"]).all()
    assert (rows["copied_bitwise"] == rows["forks"]).all()
    assert verdict(forks, rows, 'the gradient "splits"') == "opposite"


def test_a_gradient_that_splits_is_found(monkeypatch):
    """Each path gets a half: the sum at a fork is still the sum, the rest is not."""
    add = mg.dag.rules.Add
    backward = add.backward
    halves = staticmethod(
        lambda ctx, g: tuple(None if s is None else s / 2 for s in backward(ctx, g))
    )
    monkeypatch.setattr(add, "backward", halves)
    rows = rows_of(forks, BRIEF["forks"])
    assert (rows["copied_bitwise"] < rows["forks"]).all()
    assert (rows["chain_error"] > 1e-3).all()
    assert verdict(forks, rows, "the chain's own delta") == "not shown"
    assert verdict(forks, rows, 'the gradient "splits"') == "shown"


def test_a_path_that_is_forgotten_is_found(monkeypatch):
    """In what the tape tells of a fork, and in what the chain adds there."""
    told = mg.dag.Tape.contributions
    forget = lambda tape, v: [sent * (i == 0) for i, sent in enumerate(told(tape, v))]  # noqa: E731
    with monkeypatch.context() as patched:
        patched.setattr(mg.dag.Tape, "contributions", forget)
        rows = rows_of(forks, BRIEF["forks"])
        assert (rows["sum_error"] > 1e-3).all()
        assert verdict(forks, rows, "a fork's adjoint") == "not shown"
    setting = Setting(dtype="float64")
    net = deep(setting, 64, 4, "pre", "root")
    data = setting.dataset()
    x, y = data.train_x[:8], data.train_y[:8]
    deltas = adjoints.by_tape(net, "pre", x, y).deltas
    assert forks.chain_error(net, deltas, x, y) <= 1e-14
    net.skips = net.skips[1:]
    assert forks.chain_error(net, deltas, x, y) > 1e-3


@pytest.mark.parametrize("part", PARTS, ids=part_name)
def test_both_backends_find_the_same(part):
    one, other = (
        rows_of(part, BRIEF[part_name(part)], dtype="float64", backend=backend)
        for backend in ("manualgrad", "autograd")
    )
    assert list(one.columns) == list(other.columns)
    for name in one.columns.drop(["seconds", "gradient_difference"]):
        if pd.api.types.is_float_dtype(one[name]):
            torch.testing.assert_close(
                *(torch.tensor(rows[name].to_numpy()) for rows in (one, other)),
                rtol=1e-8, atol=1e-11, equal_nan=True,
            )  # fmt: skip
        else:
            assert list(one[name]) == list(other[name]), name
    assert one["gradient_difference"].max() < ROUNDING["float64"]
    assert one.groupby(["arm", "seed"])["gradient_difference"].count().min() >= 1


@pytest.mark.parametrize("part", PARTS, ids=part_name)
def test_what_is_said_survives_what_did_not_happen(part, smoke):
    """One seed, and numbers that are none: no crash, and nothing shown where nothing was seen."""
    rows = smoke[part_name(part)]
    config = BRIEF[part_name(part)]
    measured_columns = [c for c in rows.columns if c in MEASURED[part_name(part)]]
    assert measured_columns == MEASURED[part_name(part)]
    lost = rows.assign(**dict.fromkeys(measured_columns, math.nan))
    assert all(claim.verdict != "shown" for claim in part.claims(lost))
    holes = rows.copy()
    holes.loc[::3, measured_columns] = math.nan
    for some in (rows[rows["seed"] == 0], lost, holes):
        assert all(table.text() for table in part.tables(some))
        assert part.claims(some)
        figure = Figure()
        axes = [figure.add_subplot(1, part.PANELS, 1 + i) for i in range(part.PANELS)]
        part.draw(some, axes)
        assert all(axis.get_xlabel() and axis.get_ylabel() for axis in axes)
    assert len(part.arms(config)) == len({str(arm) for arm in part.arms(config)})


MEASURED = {
    "delta": ["ratio", "loss"],
    "nielsen": ["norm"],
    "shatter": [f"lag_{lag}" for lag in shatter.LAGS],
    "training": ["train_loss", "test_accuracy"],
    "forks": ["sum_error", "chain_error", "share", "cosine", "growth"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_is_the_function_that_its_docstring_says(kind):
    net = deep(Setting(dtype="float64"), 5, 4, kind, "root", "tanh", "lecun", width=3)
    x, s = torch.randn(2, 5, dtype=torch.float64), scale_of(kind, "root", 4)
    first, *hidden, last = [
        lambda a, w=w, b=b: a @ w.T + b for w, b in zip(net.weights, net.biases, strict=True)
    ]
    h = first(x) if kind == "pre" else first(x).tanh()
    if kind == "block":
        for one, two in (hidden[:2], hidden[2:]):
            h = h + s * two(one(h).tanh())
    else:
        for layer in hidden:
            h = {
                "plain": lambda h, f: f(h).tanh(),
                "pre": lambda h, f: h + s * f(h.tanh()),
                "post": lambda h, f: (h + s * f(h)).tanh(),
                "out": lambda h, f: h + s * f(h).tanh(),
            }[kind](h, layer)
    expected = last(h.tanh() if kind == "pre" else h)
    torch.testing.assert_close(net(x), expected, rtol=1e-12, atol=1e-12)
    assert s == {"plain": 1.0, "block": 2**-0.5}.get(kind, 0.5)
    assert net.size == deep(Setting(), 5, 4, "plain", width=3).size


def test_branches_that_start_at_zero():
    for kind in ("pre", "block"):
        net = deep(Setting(), 5, 4, kind, "zero", width=3)
        zero = [not bool(w.any()) for w in net.weights]
        assert zero == [False, *([False, True] * 2 if kind == "block" else [True] * 4), False]


def test_the_native_capture_tells_what_ours_does():
    setting = Setting(dtype="float64")
    x, y = (t[:8] for t in (setting.dataset().train_x, setting.dataset().train_y))
    for kind in KINDS:
        net, found = deep(setting, 64, 4, kind, "root"), []
        for net.ops in (mg, native):
            found.append(delta.hidden_deltas(net, x, y))
        torch.testing.assert_close(*map(torch.tensor, found), rtol=1e-12, atol=0)


def test_the_best_rate_of_a_network_that_always_diverged(smoke):
    rows = smoke["training"]
    assert len(trained.at_best(rows, "pre", "unit", 32)) == 1
    assert not len(trained.at_best(rows, "pre", "unit", 8))
    apart = trained._better(rows, *(trained.at_best(rows, "pre", b, 32) for b in ("root", "unit")))
    assert apart.mean > 80  # a diverged network is one that guesses
