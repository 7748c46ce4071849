"""python -m experiments share: its parts at smoke size, thresholds, both backends, planted faults."""

import dataclasses
import math

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

import manualgrad as mg
from experiments.results import NOT_SHOWN, OPPOSITE, SHOWN
from experiments.share import (
    PARTS as MODULES,
)
from experiments.share import (
    autoencoder,
    common,
    depth,
    position,
    siamese,
    uses,
)
from experiments.study import Setting
from manualgrad import aten

PARTS = {part.__name__.split(".")[-1]: part for part in MODULES}
TINY = {
    "uses": {},
    "position": {"updates": 90},
    "convolution": {"updates": 60},
    "siamese": {"updates": 200},
    "autoencoder": {"updates": 150},
    "depth": {"updates": 30},
    "embedding": {"updates": 40, "words": 6000, "vocabulary": 200},
}


def measured(name, seeds=2, **changes):
    """Rows as the runner makes them, of a part at smoke size."""
    part, setting = PARTS[name], {"dtype": "float32", **changes}
    changed = {**TINY[name], **setting.pop("config", {})}
    config = dataclasses.replace(part.CONFIGS["smoke"], **changed)
    rows = []
    for arm in part.arms(config):
        for seed in range(seeds):
            found = part.measure(arm, config, Setting(seed=seed, **setting))
            common_cells = {"seed": seed, "part_dtype": setting["dtype"]}
            rows += [{**common_cells, **arm, **row} for row in found]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def found():
    return {name: measured(name) for name in PARTS}


def said(name, rows):
    """Tables, claims and a picture of these rows; the claims."""
    part = PARTS[name]
    for table in part.tables(rows):
        assert all(len(row) == len(table.headers) for row in table.rows)
        assert table.text()
    figure = Figure()
    axes = [figure.add_subplot(1, part.PANELS, 1 + i) for i in range(part.PANELS)]
    part.draw(rows, axes)
    figure.canvas.draw()
    return part.claims(rows)


def verdicts(name, rows, *words):
    """Of the claims whose texts hold all these words."""
    return [c.verdict for c in PARTS[name].claims(rows) if all(w in c.text for w in words)]


@pytest.mark.parametrize("name", PARTS)
def test_a_part_says_what_it_found(found, name):
    claims = said(name, found[name])
    assert len(claims) >= 2
    assert len({claim.text for claim in claims}) == len(claims)
    assert not any("nan" in claim.measured for claim in claims)
    assert found[name]["gradient_difference"].max() <= 1e-4


@pytest.mark.parametrize("name", PARTS)
def test_one_seed_gives_no_interval_and_no_verdict_by_one(found, name):
    rows = found[name]
    claims = said(name, rows[rows["seed"] == 0])
    for claim in claims:
        if "interval" in claim.threshold:
            assert claim.verdict == NOT_SHOWN, claim


@pytest.mark.parametrize("name", PARTS)
def test_runs_that_diverged_show_nothing(found, name):
    rows = found[name].copy()
    measures = [
        *("error", "cosine", "norm", "rms", "train_loss", "test_loss", "accuracy", "agreement"),
        *("seen", "unseen", "moved", "perplexity", "train_perplexity"),
    ]
    rows[[m for m in measures if m in rows]] = math.nan
    for claim in said(name, rows):
        if not any(words in claim.text for words in ("last bit", "no time")):
            assert claim.verdict == NOT_SHOWN, claim
    some = found[name].copy()
    some.loc[some.index[::2], [m for m in measures if m in some]] = math.nan
    said(name, some)


@pytest.mark.parametrize("name", PARTS)
def test_both_backends_give_the_same_numbers(name):
    """Few updates: training amplifies a rounding until it is none."""
    few = {"updates": 8, "tests": 100}
    few = {
        "uses": {"examples": 8},
        "embedding": {"updates": 8},
        "position": {**few, "examples": 128},
        "depth": {**few, "timed": 1},
    }.get(name, few)
    ours, theirs = (
        measured(name, 1, dtype="float64", backend=backend, config=few)
        for backend in ("manualgrad", "autograd")
    )
    if name == "uses":
        ours, theirs = (rows[rows["precision"] == "float64"] for rows in (ours, theirs))
    assert ours["gradient_difference"].max() <= 1e-12
    roundings = ["gradient_difference", "error", "bitwise", "moved", "step"]
    compared = [c for c in ours.select_dtypes("number").columns if c not in roundings]
    assert len(compared) >= 4
    pd.testing.assert_frame_equal(ours[compared], theirs[compared], rtol=1e-9, atol=1e-12)


def test_the_sum_of_uses_is_exact(found):
    rows = found["uses"]
    for precision, bound in {"float64": 1e-14, "float32": 1e-6}.items():
        assert rows[rows["precision"] == precision]["error"].max() <= bound
    assert rows[rows["uses"] == 2]["bitwise"].all()
    assert set(rows["uses"]) == {2, 8, 36, 32}
    assert verdicts("uses", rows, "summed") == [SHOWN, SHOWN]
    assert verdicts("uses", rows, "last bit") == verdicts("uses", rows, "BP4") == [SHOWN]


def test_the_norms_and_the_cosine_are_those_of_the_uses():
    apart = torch.randn(5, 3, 4, dtype=torch.float64)
    got = uses._compared(apart.sum(0), apart)
    pairs = [
        torch.cosine_similarity(apart[i].flatten(), apart[j].flatten(), dim=0).item()
        for i in range(5)
        for j in range(5)
        if i != j
    ]
    assert math.isclose(got["cosine"], sum(pairs) / 20, rel_tol=1e-12)
    assert math.isclose(got["rms"], apart.norm().item(), rel_tol=1e-12)
    assert got["error"] == 0
    assert got["bitwise"] == 1


def test_a_use_that_is_forgotten_is_found(monkeypatch):
    """Planted: the buffer of a shared weight is overwritten instead of added to."""
    gradient = aten.bp4_weight_gradient

    def last_one(delta, x, into=None):
        found = gradient(delta, x)
        return found if into is None else into.copy_(found)

    monkeypatch.setattr(aten, "bp4_weight_gradient", last_one)
    rows = measured("uses", 1)
    assert verdicts("uses", rows, "summed") == [NOT_SHOWN, NOT_SHOWN]
    chains = rows[rows["case"].isin(["residual", "plain"])]
    assert (chains["error"] > 1e-2).all()
    assert (chains["gradient_difference"] > 1e-2).all()


def test_a_row_of_the_batch_that_is_forgotten_is_found(monkeypatch):
    gradient = aten.bp4_weight_gradient

    def without_the_first(delta, x, into=None):
        return gradient(*((delta[1:], x[1:]) if len(delta) > 1 else (delta, x)), into)

    monkeypatch.setattr(aten, "bp4_weight_gradient", without_the_first)
    rows = measured("uses", 1)
    assert verdicts("uses", rows, "BP4") == [NOT_SHOWN]


def test_a_shared_layer_does_not_care_where_the_digit_stands(found):
    rows = found["position"]
    shared = rows[rows["kind"] == "shared"]
    assert shared["moved"].max() <= 1e-4
    assert (shared["seen"] - shared["unseen"]).abs().max() <= 0.2
    assert shared["seen"].min() > 80
    assert rows[rows["kind"] != "shared"]["unseen"].max() < 20
    assert rows[rows["kind"] != "shared"]["moved"].min() > 0.1
    assert verdicts("position", rows, "where the digit stands") == [SHOWN]


def test_a_layer_that_sees_its_position_is_found(monkeypatch):
    forward = position.Positions.forward

    def with_a_gradient_of_light(self, x):
        return forward(self, x + torch.linspace(0, 1, x.shape[1]))

    monkeypatch.setattr(position.Positions, "forward", with_a_gradient_of_light)
    rows = measured("position", 1, config={"updates": 8, "tests": 100})
    assert verdicts("position", rows, "where the digit stands") == [NOT_SHOWN]


def test_the_first_layers_have_the_sizes_that_are_told(found):
    rows = found["convolution"].groupby("kind")
    assert rows["first_layer"].first().to_dict() == {
        "shared": 160,
        "separate": 5_760,
        "dense": 37_440,
    }
    assert rows["accuracy"].min().min() > 60


def test_shared_towers_do_not_care_which_is_left(found):
    rows = found["siamese"]
    assert (rows[rows["kind"] == "shared"]["agreement"] == 100).all()
    assert rows[rows["kind"] != "shared"]["agreement"].max() < 100
    means = rows.groupby("kind")["accuracy"].mean()
    assert means["shared"] > max(means["separate"], means["half width"])
    assert verdicts("siamese", rows, "change places") == [SHOWN]


def test_a_tower_that_is_not_quite_shared_is_found(monkeypatch):
    forward = siamese.Towers.forward

    def one_sided(self, pair):
        return forward(self, torch.cat([pair[:, :64] * 1.5, pair[:, 64:]], 1))

    monkeypatch.setattr(siamese.Towers, "forward", one_sided)
    rows = measured("siamese", 1, config={"updates": 30})
    assert verdicts("siamese", rows, "change places") == [OPPOSITE]


def test_tying_costs_little_with_a_linear_code_and_much_with_tanh(found):
    rows = found["autoencoder"].set_index(["activation", "kind", "seed"])["test_loss"]
    linear, tanh = rows["identity"], rows["tanh"]
    assert (linear["tied"] / linear["untied"]).max() < 1.1
    assert (linear["untied half"] / linear["tied"]).min() > 1.5
    assert (linear["untied"] / linear["tied double"]).min() > 1.5
    assert (tanh["tied"] / tanh["untied"]).min() > 1.2
    least = found["autoencoder"].query("activation == 'identity'")
    assert (least["test_loss"] >= 0.97 * least["best_linear"]).all()


def test_both_autoencoders_start_alike():
    config, setting = autoencoder.CONFIGS["smoke"], Setting()
    nets = [
        autoencoder.Autoencoder(mg, 64, config.hidden, tied, "relu", common.normals(setting))
        for tied in (True, False)
    ]
    x = setting.dataset().test_x[:8]
    assert torch.equal(nets[0](x), nets[1](x))
    assert [sum(p.numel() for p in net.parameters()) for net in nets] == [1104, 2128]


def test_layers_over_depth_are_the_same_tensors(found):
    rows = found["depth"]
    sizes = rows.groupby("kind")["parameters"].first()
    assert sizes["8 of 8"] == 38_090
    assert sizes["4 of 8"] == 21_450
    assert sizes["1 of 8"] == sizes["shallow"] == 8_970
    products = rows.groupby("kind")["products"].first()
    assert products["8 of 8"] == products["1 of 8"] > 4 * products["shallow"]
    net = depth.Stack(mg, "2 of 8", 64, common.normals(Setting()))
    used = net.used(net.weights)
    assert len(used) == 10
    assert used[1] is used[7] is not used[2]
    assert rows["accuracy"].min() > 40


def test_embeddings_learn_words_of_the_text(found):
    rows = found["embedding"]
    assert rows["perplexity"].max() < 150 < TINY["embedding"]["vocabulary"]
    sizes = rows.groupby("kind")["parameters"].first()
    assert sizes["untied"] - sizes["tied"] == 200 * 32
