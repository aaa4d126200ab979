"""Metrics of attributes, against scikit-learn."""

import json
import warnings

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parity.harness import run_file
from tests.shared import shared
from tests.tagging.made_up import label_map, predictions, sigmoid
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.tagging import metrics as m


def test_recorded_numbers():
    import tests.parity.checks.attributes_metrics  # noqa: F401

    fixture = run_file(shared("golden/attributes/loss_metrics.npz"))
    assert fixture.comparisons and not [str(c) for c in fixture.comparisons if not c.ok]
    assert not fixture.uncovered()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 10**6), st.integers(0, 3))
def test_equal_to_scikit_learn(records, labels, seed, steps):
    logits, targets = predictions(records, seed, steps=steps, labels=labels)
    decided, truth = logits > 0.0, targets.astype(int)
    counts = m.Confusion.of(decided, targets)
    ours = {
        "micro": counts.micro().f1,
        "macro": counts.macro_f1(),
        "weighted": counts.weighted_f1(),
        "samples": m.samples_f1(decided, targets),
    }
    for average, value in ours.items():
        # One label alone is a binary problem to scikit-learn, so a row of zeros is put beside it.
        pair = [np.pad(x, ((0, 0), (0, 1))) if labels == 1 and average != "macro" else x for x in (truth, decided.astype(int))]
        if labels == 1 and average == "macro":
            average = "binary"
        wanted = sklearn.metrics.f1_score(pair[0], pair[1], average=average, zero_division=0)
        np.testing.assert_allclose(value, wanted, rtol=1e-12, atol=1e-15)
    hits = int((decided & (truth > 0)).sum())
    quality = counts.micro()
    np.testing.assert_allclose(quality.precision, hits / max(decided.sum(), 1))
    np.testing.assert_allclose(quality.recall, hits / max(truth.sum(), 1))
    precisions = m.average_precisions(logits, targets)
    for label in range(labels):
        if not truth[:, label].any():
            assert np.isnan(precisions[label])
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                wanted = sklearn.metrics.average_precision_score(truth[:, label], logits[:, label])
            np.testing.assert_allclose(precisions[label], wanted, rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 25), st.integers(0, 10**6))
def test_unknown_entries_count_nowhere(records, seed):
    logits, targets = predictions(records, seed, unknown=0.4, steps=1)
    other = np.where(targets < 0, -logits + 3.0, logits)
    np.testing.assert_array_equal(m.average_precisions(logits, targets), m.average_precisions(other, targets))
    for label in range(targets.shape[1]):
        known = targets[:, label] >= 0
        column = [x[known][:, label : label + 1] for x in (logits, targets)]
        if known.any():
            alone = m.average_precisions(*column)[0]
            np.testing.assert_allclose(m.average_precisions(logits, targets)[label], alone, rtol=1e-12)
    first, second = (m.Confusion.of(x > 0.0, targets) for x in (logits, other))
    np.testing.assert_array_equal(first.f1, second.f1)
    assert m.samples_f1(logits > 0, targets) == m.samples_f1(other > 0, targets)
    assert m.binary_cross_entropy(logits, targets) == m.binary_cross_entropy(other, targets)


def test_ties_enter_together():
    scores, targets = np.zeros((4, 1)), np.array([[0], [1], [0], [0]])
    assert m.average_precisions(scores, targets).tolist() == [0.25]
    for order in ([0, 1, 2, 3], [1, 0, 3, 2], [3, 2, 1, 0]):
        scores = np.array([[3.0], [2.0], [2.0], [1.0]])[order]
        assert m.average_precisions(scores, np.array([[0], [1], [1], [1]])[order])[0] == pytest.approx((2 * 2 / 3 + 3 / 4) / 3)


def test_task_accuracy():
    labels = label_map()
    logits = np.zeros((4, 8))
    logits[:, 3] = 1.0  # always red
    targets = np.zeros((4, 8))
    targets[0, 3] = targets[1, 1] = 1.0
    targets[2, [1, 3]] = 1.0  # two colours: left out
    targets[3, 3], targets[3, 5] = 1.0, -1.0  # not known whether white: left out
    accuracy = m.task_accuracy(logits, targets, labels)
    assert accuracy["color"] == (0.5, 2)
    assert accuracy["style"] == (0.0, 0)


def test_batches_of_the_original():
    logits, targets = predictions(10)
    decided = logits > 0
    f1 = m.original_f1(decided, targets, 4)
    assert f1.sizes.tolist() == [4, 4, 2]
    assert f1.values[2] == m.Confusion.of(decided[8:], targets[8:]).micro().f1
    np.testing.assert_allclose(f1.mean, (4 * f1.values[0] + 4 * f1.values[1] + 2 * f1.values[2]) / 10)
    counts = m.Confusion.of(decided, targets)
    loss = m.legacy_val_loss(decided, targets, 10)
    parts = np.log(2.0) * (~decided).sum() + np.log1p(np.exp(-1.0)) * counts.hits.sum() + np.log1p(np.e) * counts.false.sum()
    np.testing.assert_allclose(loss.values, [parts / decided.size])
    for sizes in (0, [4, 4], [10, 0]):
        with pytest.raises(UsageError):
            m.original_f1(decided, targets, sizes)


def test_cross_entropy():
    logits, targets = predictions(20)
    np.testing.assert_allclose(m.probability_cross_entropy(sigmoid(logits), targets), m.binary_cross_entropy(logits, targets))
    assert m.binary_cross_entropy(np.array([[1e4, -1e4]]), np.array([[0, 1]])) == 1e4
    assert np.isfinite(m.probability_cross_entropy(np.array([[1.0, 0.0]]), np.array([[0, 1]])))
    assert m.binary_cross_entropy(np.zeros((2, 2)), -np.ones((2, 2))) == 0.0


def test_everything_together():
    labels = label_map()
    logits, targets = predictions(30, unknown=0.1)
    targets[:, 7] = 0.0
    result = m.evaluate_attributes(sigmoid(logits), targets, logits > 0, labels, logits, thresholds=[0.5] * 7 + [-np.inf])
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["labels_present"] == 7 and result["records"] == 30
    assert result["bce"] == m.binary_cross_entropy(logits, targets)
    assert result["macro_f1_present"] == pytest.approx(result["macro_f1"] * 8 / 7)
    assert [entry["threshold"] for entry in result["per_label"]] == [0.5] * 7 + [None]
    assert result["per_label"][7]["average_precision"] is None
    assert [entry["task"] for entry in result["per_label"]][:3] == ["category", "color", "category"]
    color = m.Confusion.of((logits > 0)[:, [1, 3, 5]], targets[:, [1, 3, 5]])
    assert result["tasks"]["color"]["micro_f1"] == color.micro().f1
    assert result["tasks"]["color"]["labels"] == 3
    empty = m.evaluate_attributes(np.zeros((0, 8)), np.zeros((0, 8)), np.zeros((0, 8), bool), labels)
    assert empty["micro_f1"] == 0.0 and empty["mAP"] is None
    json.dumps(empty, allow_nan=False)


def test_refusals():
    labels = label_map()
    good = np.full((3, 8), 0.5)
    with pytest.raises(UsageError, match=r"in \[0, 1\]"):
        m.evaluate_attributes(good + 1.0, good, good > 1, labels)
    with pytest.raises(UsageError, match="Targets"):
        m.evaluate_attributes(good, good[:2], good > 1, labels)
    with pytest.raises(UsageError, match="boolean decisions"):
        m.evaluate_attributes(good, good, good, labels)
    with pytest.raises(UsageError, match="one column for each label"):
        m.evaluate_attributes(good[:, :5], good, good > 1, labels)
    with pytest.raises(UsageError, match="each of the 8 labels"):
        m.evaluate_attributes(good, good, good > 1, labels, thresholds=[0.5])
    good[1, 2] = np.nan
    with pytest.raises(DataError, match="row 1 for 'Dress'"):
        m.evaluate_attributes(good, good, np.zeros((3, 8), bool), labels)
    with pytest.raises(DataError, match="finite"):
        m.average_precisions(good, np.zeros((3, 8)))
