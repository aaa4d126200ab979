"""From scores to labels."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tagging.made_up import label_map, predictions, sigmoid
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.layers import label_probabilities
from tf_fashion.tagging import decisions as d


def test_probabilities():
    labels = label_map()
    logits, _ = predictions(5)
    np.testing.assert_allclose(d.probabilities_of(logits, labels), sigmoid(logits), rtol=1e-12)
    p = d.probabilities_of(logits, labels, ["color"])
    np.testing.assert_allclose(p[:, [1, 3, 5]].sum(axis=1), 1.0)
    np.testing.assert_allclose(p, label_probabilities(tf.constant(logits), [[1, 3, 5]]), rtol=1e-5)
    extreme = d.probabilities_of(np.array([[1e30, -1e30] * 4]), labels, ["style"])
    assert extreme.tolist() == [[1.0, 0.0] * 4]


def test_strictly_above():
    labels = label_map()
    scores = np.array([[0.5, 0.4, 0.6, 0.5, 0.5, 0.3, 0.2, 0.1]])
    assert np.flatnonzero(d.decide(scores, 0.5, labels)).tolist() == [2]
    limits = np.full(8, 0.5)
    limits[7] = 0.0
    assert np.flatnonzero(d.decide(scores, limits, labels)).tolist() == [2, 7]
    # The best colour is taken whatever it is; of equal ones the first.
    assert np.flatnonzero(d.decide(scores, 0.5, labels, ["color"])).tolist() == [2, 3]
    assert np.flatnonzero(d.decide(np.zeros((1, 8)), 0.5, labels, ["color", "style"])).tolist() == [1, 6]


def test_best_of_each_task():
    labels = label_map()
    scores = np.array([[0.5, 0.4, 0.6, 0.5, 0.5, 0.3, 0.2, 0.1]])
    top = d.top_per_task(scores, labels, 2)
    assert {task: rows.tolist() for task, rows in top.items()} == {"category": [[2, 0]], "color": [[3, 1]], "style": [[6, 7]]}
    assert d.top_per_task(scores, labels, 99)["color"].shape == (1, 3)


def test_tags():
    labels = label_map()
    scores = np.array([[0.5, 0.4, 0.6, 0.5, 0.5, 0.3, 0.2, 0.1], [0.0] * 8])
    decided = d.decide(scores, 0.45, labels)
    first, second = d.tags_of(scores, decided, labels)
    assert [(tag.label.name, tag.probability, tag.decided) for tag in first["category"]] == [
        ("Dress", 0.6, True),
        ("Bag", 0.5, True),
        ("Shoe", 0.5, True),
    ]
    assert first["style"] == [] and second == {"category": [], "color": [], "style": []}
    first, _ = d.tags_of(scores, decided, labels, top=2, tasks=["color"])
    assert list(first) == ["color"]
    assert [(tag.label.name, tag.decided) for tag in first["color"]] == [("Red", True), ("Black", False)]


def test_refusals():
    labels = label_map()
    with pytest.raises(UsageError, match="no task 'colour'"):
        d.decide(np.zeros((1, 8)), 0.5, labels, ["colour"])
    with pytest.raises(UsageError, match="named twice"):
        d.decide(np.zeros((1, 8)), 0.5, labels, ["color", "color"])
    with pytest.raises(UsageError, match="one for each"):
        d.decide(np.zeros((1, 8)), [0.5, 0.4], labels)
    with pytest.raises(UsageError, match="at least 1"):
        d.top_per_task(np.zeros((1, 8)), labels, 0)
    with pytest.raises(UsageError, match="no task 'size'"):
        d.tags_of(np.zeros((1, 8)), np.zeros((1, 8), bool), labels, tasks=["size"])
    with pytest.raises(UsageError, match="do not belong"):
        d.tags_of(np.zeros((1, 8)), np.zeros((2, 8), bool), labels)
    with pytest.raises(DataError, match="finite"):
        d.probabilities_of(np.full((1, 8), np.inf), labels)
