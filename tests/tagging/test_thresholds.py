"""Fitted thresholds, against every threshold there is."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tagging.made_up import label_map, predictions, sigmoid
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.labels import LabelMap
from tf_fashion.tagging.decisions import decide
from tf_fashion.tagging.metrics import Confusion
from tf_fashion.tagging.thresholds import Thresholds, assign_folds, cross_fit, fit_thresholds


def f1(decided, targets, objective):
    counts = Confusion.of(decided, targets)
    return counts.micro().f1 if objective == "micro" else counts.macro_f1()


def fitted_f1(fitted, probabilities, targets, labels):
    return f1(fitted.decide(probabilities, labels), targets, fitted.objective)


def candidates(values):
    """One number for every way to cut the values in two."""
    different = np.unique(values)
    return [*((different[:-1] + different[1:]) / 2.0), 1.0, different[0] / 2.0]


def small():
    return LabelMap.of_tasks({"color": ["a", "b"], "style": ["c"]})


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(0, 10**6), st.integers(0, 2), st.sampled_from(["micro", "macro"]))
def test_nothing_is_better(records, seed, steps, objective):
    """Global, per task and per label: equal to the best of all combinations of thresholds."""
    labels = small()
    logits, targets = predictions(records, seed, unknown=0.1, steps=steps, labels=3)
    p = sigmoid(logits)
    parts = {"global": [[0, 1, 2]], "group": [[0, 1], [2]], "label": [[0], [1], [2]]}
    for kind, blocks in parts.items():
        best = -1.0
        for choice in itertools.product(*(candidates(p[:, block]) for block in blocks)):
            limits = np.zeros(3)
            for block, value in zip(blocks, choice, strict=True):
                limits[block] = value
            best = max(best, f1(decide(p, limits, labels), targets, objective))
        fitted = fit_thresholds(p, targets, labels, kind, objective, min_support=0)
        reached = fitted_f1(fitted, p, targets, labels)
        if any((targets > 0).sum(axis=0)[block].sum() == 0 for block in blocks):
            # A part without positives keeps the global threshold.
            assert reached <= best + 1e-12
        else:
            np.testing.assert_allclose(reached, best, rtol=1e-9)
        np.testing.assert_allclose(fitted.fitted["score"], reached, rtol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(0, 10**6),
    st.integers(0, 2),
    st.sampled_from(["global", "group", "label"]),
    st.sampled_from(["micro", "macro"]),
    st.sampled_from([(), ("color",), ("color", "style", "category")]),
    st.booleans(),
    st.integers(0, 15),
    st.sampled_from(["exact", "ascent"]),
)
def test_never_below_one_half(records, seed, steps, kind, objective, exclusive, floors, min_support, solver):
    labels = label_map()
    logits, targets = predictions(records, seed, unknown=0.1, steps=steps)
    p = sigmoid(logits)
    fitted = fit_thresholds(
        p, targets, labels, kind, objective, exclusive=exclusive, floors=floors, min_support=min_support, solver=solver
    )
    reached = fitted_f1(fitted, p, targets, labels)
    np.testing.assert_allclose(fitted.fitted["score"], reached, rtol=1e-9)
    if targets.max() > 0:
        plain = decide(p, 0.5, labels, exclusive)
        if floors:
            plain &= p > 0.5
        assert reached >= f1(plain, targets, objective) - 1e-9
    again = Thresholds.from_config(json.loads(json.dumps(fitted.to_config(), allow_nan=False)), labels)
    assert again == fitted
    np.testing.assert_array_equal(again.decide(p, labels), fitted.decide(p, labels))


def test_exact_is_at_least_as_good_as_the_ascent():
    labels = label_map()
    for seed in range(20):
        logits, targets = predictions(25, seed)
        p = sigmoid(logits)
        start = f1(decide(p, 0.3, labels), targets, "micro")
        exact, ascent = (
            fit_thresholds(p, targets, labels, "label", min_support=1, default=0.3, solver=solver).fitted["score"]
            for solver in ("exact", "ascent")
        )
        assert exact >= ascent - 1e-12 and ascent > start


def test_ties_take_the_higher_threshold():
    labels = LabelMap.of_tasks({"color": ["a"]})
    # Cutting below 0.8 or below 0.4 gives F1 2/3 both times.
    p, targets = np.array([[0.8], [0.6], [0.5], [0.4]]), np.array([[1], [0], [0], [1]])
    for kind in ("global", "label"):
        for objective in ("micro", "macro"):
            fitted = fit_thresholds(p, targets, labels, kind, objective, min_support=1)
            assert fitted.values == pytest.approx((0.7,))
    next_float = np.nextafter(np.float64(0.5), 1.0)
    p = np.array([[0.5], [next_float]])
    fitted = fit_thresholds(p, np.array([[0], [1]]), labels, "label", min_support=1)
    assert fitted.decide(p, labels).ravel().tolist() == [False, True]
    single = np.array([[0.5], [np.nextafter(np.float32(0.5), np.float32(1.0))]], np.float32)
    fitted = fit_thresholds(single, np.array([[0], [1]]), labels, "label", min_support=1)
    assert fitted.decide(single, labels).ravel().tolist() == [False, True]


def test_rare_labels_keep_the_global_threshold():
    labels = label_map()
    logits, targets = predictions(200)
    targets[:, 0] = 0.0
    targets[:3, 0] = 1.0
    p = sigmoid(logits)
    everywhere = fit_thresholds(p, targets, labels, "global").values[0]
    fitted = fit_thresholds(p, targets, labels, "label", min_support=5)
    assert fitted.values[0] == everywhere
    assert len(set(fitted.values)) > 5
    assert fit_thresholds(p, targets, labels, "label", min_support=5, default=0.3).values[0] == 0.3
    assert set(fit_thresholds(p, targets, labels, "label", min_support=1000, default=0.3).values) == {0.3}
    groups = fit_thresholds(p, targets, labels, "group", "macro")
    for positions in labels.groups.values():
        assert len({groups.values[place] for place in positions}) == 1
    assert len(set(groups.values)) == 3


def test_nothing_to_fit():
    labels = label_map()
    p = np.full((4, 8), 0.3)
    for kind in ("global", "group", "label"):
        assert set(fit_thresholds(p, np.zeros((4, 8)), labels, kind).values) == {0.5}
        assert set(fit_thresholds(p, np.zeros((4, 8)), labels, kind, default=0.2).values) == {0.2}
    # All tasks exclusive: nothing is left to choose.
    fitted = fit_thresholds(p, np.ones((4, 8)), labels, exclusive=labels.tasks)
    assert set(fitted.values) == {-np.inf}
    assert fitted.decide(p, labels).sum(axis=1).tolist() == [3] * 4
    # Probabilities of exactly 0 and 1.
    fitted = fit_thresholds(np.eye(8), np.eye(8), labels, "label", min_support=1)
    assert fitted.fitted["score"] == 1.0
    np.testing.assert_array_equal(fitted.decide(np.eye(8), labels), np.eye(8) > 0)


def test_floors_allow_a_record_without_a_colour():
    labels = label_map()
    random = np.random.default_rng(0)
    targets = np.zeros((80, 8))
    targets[np.arange(40), random.choice([1, 3, 5], 40)] = 1.0
    p = 0.1 * random.uniform(size=targets.shape) + 0.5 * targets
    always = fit_thresholds(p, targets, labels, "group", exclusive=["color"], min_support=1)
    floored = fit_thresholds(p, targets, labels, "group", exclusive=["color"], floors=True, min_support=1)
    assert always.decide(p, labels)[:, [1, 3, 5]].sum() == 80
    assert floored.decide(p, labels)[:, [1, 3, 5]].sum() == 40
    assert floored.fitted["score"] == 1.0


def test_cross_fit():
    labels = label_map()
    logits, targets = predictions(90, 3)
    p = sigmoid(logits)
    keys = [f"product {row // 3}" for row in range(90)]
    result = cross_fit(p, targets, labels, folds=4, seed=1, keys=keys, kind="label", min_support=2)
    assert len(result.folds) == 4
    assert (result.fold_of.reshape(-1, 3) == result.fold_of[::3, None]).all(), "the photos of a product stay together"
    for fold, thresholds in enumerate(result.folds):
        own = result.fold_of == fold
        wanted = fit_thresholds(p[~own], targets[~own], labels, "label", min_support=2)
        assert thresholds == wanted
        np.testing.assert_array_equal(result.decisions[own], wanted.decide(p[own], labels))
    assert result.thresholds == fit_thresholds(p, targets, labels, "label", min_support=2)


def test_cross_fit_is_honest():
    """Where there is nothing to know, thresholds fitted on the same records promise too much, and cross-fitted ones do not."""
    labels = label_map()
    random = np.random.default_rng(5)
    p, targets = random.uniform(size=(60, 8)), (random.uniform(size=(60, 8)) < 0.2).astype(float)
    result = cross_fit(p, targets, labels, kind="label", objective="macro", min_support=1)
    fitted = f1(result.thresholds.decide(p, labels), targets, "macro")
    honest = f1(result.decisions, targets, "macro")
    guessing = 2 * 0.2 / 1.2
    assert fitted > guessing + 0.05 and honest < guessing + 0.05


def test_folds():
    found = assign_folds(103, 5, seed=2)
    assert np.bincount(found).max() - np.bincount(found).min() <= 1
    np.testing.assert_array_equal(found, assign_folds(103, 5, seed=2))
    assert (found != assign_folds(103, 5, seed=3)).any()
    assert sorted(assign_folds(4, 4)) == [0, 1, 2, 3]
    for records, folds, keys in ((3, 4, None), (3, 1, None), (4, 3, ["a", "a", "b", "b"]), (3, 2, ["a"])):
        with pytest.raises(UsageError):
            assign_folds(records, folds, keys=keys)


def test_files(tmp_path):
    labels = label_map()
    logits, targets = predictions(50)
    fitted = fit_thresholds(sigmoid(logits), targets, labels, "label", exclusive=["color"], min_support=2)
    path = tmp_path / "thresholds.json"
    fitted.write(path)
    assert Thresholds.read(path, labels) == fitted
    content = json.loads(path.read_text())
    assert content["thresholds"]["5"] is None and 0.0 <= content["thresholds"]["3"] <= 1.0
    other = LabelMap([label for label in labels.labels if label.id != 21])
    with pytest.raises(DataError, match=r"thresholds\.json.*8 labels, the label map has 7; only one of them has 21"):
        Thresholds.read(path, other)
    with pytest.raises(UsageError, match="Fit them anew"):
        fitted.decide(np.zeros((1, 7)), other)
    for change in (
        {"thresholds": {**content["thresholds"], "3": None}},
        {"thresholds": {**content["thresholds"], "3": 1.5}},
        {"thresholds": {**content["thresholds"], "3": "0.5"}},
        {"thresholds": [0.5] * 8},
        {"exclusive": ["size"]},
        {"exclusive": "color"},
        {"kind": "magic"},
    ):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(DataError, match=r"thresholds\.json"):
            Thresholds.read(path, labels)
    path.write_text("[1, 2]")
    with pytest.raises(DataError, match="Expected thresholds"):
        Thresholds.read(path, labels)
    with pytest.raises(DataError, match="no such file"):
        Thresholds.read(tmp_path / "none.json", labels)


def test_descriptions():
    labels = label_map()
    assert Thresholds.constant(labels).describe() == "p > 0.5"
    assert Thresholds.constant(labels, 0.3, ["color"]).describe() == "p > 0.3; arg-max of color"
    assert Thresholds.constant(labels, 0.3, labels.tasks).describe() == "arg-max of category, color, style"
    logits, targets = predictions(80)
    fitted = fit_thresholds(sigmoid(logits), targets, labels, "label", "macro", min_support=1)
    assert fitted.describe().startswith("per label, 0.") and fitted.describe().endswith("fitted for macro-F1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "constant"}, "unknown kind"),
        ({"objective": "samples"}, "unknown objective"),
        ({"solver": "grid"}, "unknown solver"),
        ({"default": 2.0}, "default must lie"),
        ({"exclusive": ["size"]}, "no task 'size'"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(UsageError, match=message):
        fit_thresholds(np.full((2, 8), 0.5), np.ones((2, 8)), label_map(), **options)
    with pytest.raises(UsageError, match=r"in \[0, 1\]"):
        fit_thresholds(np.full((2, 8), 5.0), np.ones((2, 8)), label_map())
    with pytest.raises(UsageError, match="threshold must lie"):
        Thresholds.constant(label_map(), -0.1)
