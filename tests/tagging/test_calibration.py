"""Calibration: curves, and logits that are rescaled to keep their word."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tagging.made_up import label_map, predictions, sigmoid
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.labels import LabelMap
from tf_fashion.tagging.calibration import Calibration, cross_calibrate, fit_calibration, reliability
from tf_fashion.tagging.decisions import probabilities_of
from tf_fashion.tagging.metrics import binary_cross_entropy


def drawn(records=4000, slope=1.0, offset=0.0, seed=0):
    """Targets that have the probabilities of `slope z + offset`, and the logits z, for two labels."""
    random = np.random.default_rng(seed)
    logits = 2.0 * random.normal(size=(records, 2)) - 1.0
    return logits, (random.uniform(size=logits.shape) < sigmoid(slope * logits + offset)).astype(np.int8)


def two_labels():
    return LabelMap.of_tasks({"color": ["a"], "style": ["b"]})


def test_bins():
    p = np.array([0.0, 0.05, 0.15, 0.95, 1.0, 0.5])
    truth = np.array([0, 1, 0, 1, 1, -1])
    curve = reliability(p, truth, bins=10)
    assert curve.counts.tolist() == [2, 1, 2]
    np.testing.assert_allclose(curve.probability, [0.025, 0.15, 0.975])
    assert curve.frequency.tolist() == [0.5, 0.0, 1.0]
    np.testing.assert_allclose(curve.ece, (2 * 0.475 + 0.15 + 2 * 0.025) / 5)
    np.testing.assert_allclose(curve.largest, 0.475)
    np.testing.assert_allclose(curve.brier, (0.95**2 + 0.15**2 + 0.05**2) / 5)
    curve = reliability(p, truth, bins=5, binning="mass")
    assert curve.counts.tolist() == [1] * 5
    # Equal probabilities cannot be told apart.
    assert reliability(np.full(9, 0.2), np.zeros(9), bins=3, binning="mass").counts.tolist() == [9]
    nothing = reliability(np.zeros((0, 3)), np.zeros((0, 3)))
    assert nothing.ece == nothing.brier == nothing.largest == 0.0
    json.dumps(nothing.to_config())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 10**6), st.sampled_from(["width", "mass"]))
def test_means_are_kept(records, bins, seed, binning):
    logits, targets = predictions(records, seed, unknown=0.2, steps=2)
    p, known = sigmoid(logits), targets >= 0
    curve = reliability(p, targets, bins, binning)
    assert curve.counts.sum() == known.sum() and (curve.counts > 0).all() and len(curve.counts) <= bins
    np.testing.assert_allclose(curve.counts @ curve.probability, p[known].sum())
    np.testing.assert_allclose(curve.counts @ curve.frequency, (targets[known] > 0).sum())
    assert (np.diff(curve.probability) > 0).all()


@pytest.mark.parametrize("scope", ["global", "group"])
def test_what_was_drawn_is_found(scope):
    labels = two_labels()
    logits, targets = drawn(20000, slope=0.5)
    found = fit_calibration(logits, targets, labels, "temperature", scope)
    np.testing.assert_allclose(found.slopes, 0.5, rtol=0.05)
    assert found.offsets == (0.0, 0.0) and len(set(found.slopes)) == (1 if scope == "global" else 2)
    logits, targets = drawn(20000, slope=2.0, offset=-1.0)
    found = fit_calibration(logits, targets, labels, "platt", scope)
    np.testing.assert_allclose(found.slopes, 2.0, rtol=0.06)
    np.testing.assert_allclose(found.offsets, -1.0, rtol=0.1)
    before, after = (reliability(p, targets).ece for p in (sigmoid(logits), found.probabilities(logits, labels)))
    assert after < 0.02 < before


def test_lowest_cross_entropy():
    labels = two_labels()
    logits, targets = drawn(500, slope=0.3, offset=0.5)
    for kind in ("temperature", "platt"):
        found = fit_calibration(logits, targets, labels, kind, "global")
        best = binary_cross_entropy(found.apply(logits, labels), targets)
        for slope, offset in ((1.1, 0.0), (0.9, 0.0)) + (((1.0, 0.1), (1.0, -0.1)) if kind == "platt" else ()):
            moved = found.slopes[0] * slope * logits + found.offsets[0] + offset
            assert binary_cross_entropy(moved, targets) > best


def test_exclusive_tasks_have_a_temperature():
    labels = LabelMap.of_tasks({"color": ["a", "b", "c"], "style": ["x"]})
    random = np.random.default_rng(1)
    logits = np.concatenate([3.0 * random.normal(size=(6000, 3)), random.normal(size=(6000, 1))], axis=1)
    p = probabilities_of(0.4 * logits, labels, ["color"])
    chosen = (random.uniform(size=(6000, 1)) > np.cumsum(p[:, :3], axis=1)).sum(axis=1).clip(max=2)
    targets = np.concatenate([np.eye(3)[chosen], random.uniform(size=(6000, 1)) < p[:, 3:]], axis=1)
    targets[:50, :3] = 0.0
    targets[50:90, 1] = -1.0
    for kind in ("temperature", "platt"):
        found = fit_calibration(logits, targets, labels, kind, "group", ["color"])
        np.testing.assert_allclose(found.slopes, [0.4] * 4, rtol=0.1)
        assert found.offsets[:3] == (0.0, 0.0, 0.0)
        np.testing.assert_allclose(found.probabilities(logits, labels)[:, :3].sum(axis=1), 1.0)


def test_awkward_data():
    labels = two_labels()
    # Separated without error, wrong without error, saturated, all equal.
    for size in (1e-3, 1.0, 1e4, 1e8):
        for sign in (1.0, -1.0):
            z = sign * size * np.array([[1.0, 1.0], [-1.0, -1.0], [2.0, 0.0], [-2.0, 0.0]])
            for kind in ("temperature", "platt"):
                found = fit_calibration(z, np.array([[1, 1], [0, 0], [1, 1], [0, 0]]), labels, kind)
                assert np.isfinite(found.slopes).all() and np.isfinite(found.offsets).all() and min(found.slopes) > 0.0
                assert np.isfinite(found.probabilities(z, labels)).all()
    found = fit_calibration(np.zeros((5, 2)), np.array([[1, 0]] * 5), labels, "platt", "global")
    assert np.isfinite(found.apply(np.ones((1, 2)), labels)).all()
    nothing = fit_calibration(np.ones((3, 2)), np.zeros((3, 2)), labels)
    assert nothing.slopes == (1.0, 1.0) and nothing.offsets == (0.0, 0.0)
    assert fit_calibration(np.ones((3, 2)), -np.ones((3, 2)), labels, exclusive=["color"]).slopes == (1.0, 1.0)


def test_measured_on_other_records():
    labels = two_labels()
    logits, targets = drawn(2000, slope=0.4)
    probabilities, calibration = cross_calibrate(logits, targets, labels, folds=4, seed=2)
    assert reliability(probabilities, targets).ece < 0.5 * reliability(sigmoid(logits), targets).ece
    assert (probabilities != calibration.probabilities(logits, labels)).all()
    assert calibration == fit_calibration(logits, targets, labels)
    # The order of pictures within a fold and label stays.
    np.testing.assert_array_equal(
        np.argsort(calibration.probabilities(logits, labels), axis=0, kind="stable"), np.argsort(logits, axis=0, kind="stable")
    )


def test_files(tmp_path):
    labels = label_map()
    logits, targets = predictions(80)
    found = fit_calibration(logits, targets, labels, "platt", "group", ["color"])
    path = tmp_path / "calibration.json"
    found.write(path)
    assert Calibration.read(path, labels) == found
    content = json.loads(path.read_text())
    other = LabelMap(labels.labels[1:])
    with pytest.raises(DataError, match=r"calibration\.json.*other ones"):
        Calibration.read(path, other)
    with pytest.raises(UsageError, match="Fit it anew"):
        found.apply(np.zeros((1, 7)), other)
    for change in (
        {"labels": {**content["labels"], "3": [0.0, 1.0]}},
        {"labels": {**content["labels"], "3": [1.0]}},
        {"labels": {**content["labels"], "3": "one"}},
        {"labels": []},
        {"kind": "isotonic"},
        {"exclusive": ["size"]},
    ):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(DataError, match=r"calibration\.json"):
            Calibration.read(path, labels)


def test_refusals():
    labels = two_labels()
    with pytest.raises(UsageError, match="kind of"):
        fit_calibration(np.zeros((2, 2)), np.zeros((2, 2)), labels, "isotonic")
    with pytest.raises(UsageError, match="kind of"):
        fit_calibration(np.zeros((2, 2)), np.zeros((2, 2)), labels, scope="label")
    for options in ({"bins": 0}, {"binning": "log"}):
        with pytest.raises(UsageError, match="bin"):
            reliability(np.zeros(3), np.zeros(3), **options)
    with pytest.raises(UsageError, match=r"in \[0, 1\]"):
        reliability(np.array([np.nan]), np.zeros(1))
    with pytest.raises(UsageError, match="do not belong"):
        reliability(np.zeros(3), np.zeros(2))
