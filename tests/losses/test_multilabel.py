"""Losses for several labels, against their formulas in float64."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tf_fashion.core.errors import UsageError
from tf_fashion.losses import MULTILABEL_LOSSES
from tf_fashion.losses.multilabel import (
    AsymmetricLoss,
    BinaryCrossEntropy,
    FocalLoss,
    GroupedLoss,
    class_balanced_weights,
    positive_weights,
)
from tf_fashion.testing.contracts import replica_value_and_gradients

LABELS = 7
GROUPS = [[0, 4, 2], [6, 3]]
WEIGHTS = [1.0, 2.0, 0.5, 1.5, 0.0, 1.0, 3.0]
CASES = [
    BinaryCrossEntropy(),
    BinaryCrossEntropy(label_weights=WEIGHTS, pos_weight=3.0, label_smoothing=0.1),
    BinaryCrossEntropy(pos_weight=WEIGHTS[::-1]),
    FocalLoss(),
    FocalLoss(gamma=0.5, alpha=0.25, label_smoothing=0.2),
    AsymmetricLoss(),
    AsymmetricLoss(gamma_pos=1.0, gamma_neg=2.5, clip=0.0, label_weights=WEIGHTS),
    AsymmetricLoss(gamma_pos=0.5, gamma_neg=0.5, clip=0.2),
    GroupedLoss(GROUPS),
    GroupedLoss(GROUPS, rest=AsymmetricLoss(gamma_neg=2.0), label_smoothing=0.1, group_weight=0.5, label_weights=WEIGHTS),
    GroupedLoss([[0, 1, 2], [3, 4, 5, 6]], rest="focal"),
    GroupedLoss([], rest="bce"),
]
NAMES = [f"{loss.name}-{index}" for index, loss in enumerate(CASES)]


def naive_entry(loss, label, y, z):
    """One label of one row, from the papers' formulas."""
    p = 1.0 / (1.0 + np.exp(-z))
    if isinstance(loss, BinaryCrossEntropy):
        yes, no = -np.log(p), -np.log(1.0 - p)
    elif isinstance(loss, FocalLoss):
        alpha = (1.0, 1.0) if loss.alpha is None else (loss.alpha, 1.0 - loss.alpha)
        yes, no = -alpha[0] * (1.0 - p) ** loss.gamma * np.log(p), -alpha[1] * p**loss.gamma * np.log(1.0 - p)
    else:
        q = max(p - loss.clip, 0.0)
        yes, no = -((1.0 - p) ** loss.gamma_pos) * np.log(p), -(q**loss.gamma_neg) * np.log(1.0 - q)
    y = y * (1.0 - loss.label_smoothing) + loss.label_smoothing / 2.0
    v = np.broadcast_to(1.0 if loss.pos_weight is None else loss.pos_weight, LABELS)[label]
    w = 1.0 if loss.label_weights is None else loss.label_weights[label]
    return w * (v * y * yes + (1.0 - y) * no)


def naive(loss, targets, logits):
    """The mean over the questions that count."""
    terms = []
    groups = loss.groups if isinstance(loss, GroupedLoss) else []
    for y, z in zip(np.asarray(targets, float), np.asarray(logits, float), strict=True):
        for group in groups:
            known = [k for k in group if y[k] >= 0.0]
            total = sum(y[k] for k in known)
            if total <= 0.0:
                continue
            log_sum = np.log(sum(np.exp(z[k]) for k in known))
            s, term = loss.label_smoothing, 0.0
            for k in known:
                share = (y[k] / total) * (1.0 - s) + s / len(known)
                term -= (1.0 if loss.label_weights is None else loss.label_weights[k]) * share * (z[k] - log_sum)
            terms.append(loss.group_weight * term)
        for label in set(range(LABELS)) - {k for group in groups for k in group}:
            if y[label] >= 0.0:
                terms.append(naive_entry(loss.rest if groups or isinstance(loss, GroupedLoss) else loss, label, y[label], z[label]))
    return float(np.sum(terms) / max(len(terms), 1))


def batch(rows=6, seed=0, unknown=0.2):
    random = np.random.default_rng(seed)
    targets = (random.uniform(size=(rows, LABELS)) < 0.4).astype(np.float32)
    targets[random.uniform(size=targets.shape) < unknown] = -1.0
    return targets, (3.0 * random.normal(size=(rows, LABELS))).astype(np.float32)


def value_and_gradient(loss, targets, logits):
    z = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = loss(targets, z)
    return value, tape.gradient(value, z, unconnected_gradients="zero")


@pytest.mark.parametrize("loss", CASES, ids=NAMES)
def test_values_and_gradients(loss):
    for seed, unknown in ((0, 0.0), (1, 0.3)):
        targets, logits = batch(seed=seed, unknown=unknown)
        value, gradient = value_and_gradient(loss, targets, logits)
        assert value.dtype == tf.float32 and value.shape == ()
        np.testing.assert_allclose(value, naive(loss, targets, logits), rtol=2e-5)
        for row, label in np.ndindex(logits.shape):
            step = np.zeros(logits.shape)
            step[row, label] = 1e-6
            slope = (naive(loss, targets, logits + step) - naive(loss, targets, logits - step)) / 2e-6
            np.testing.assert_allclose(gradient[row, label], slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", CASES, ids=NAMES)
def test_configuration_and_half_precision(loss):
    targets, logits = batch()
    serialized = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    again = keras.saving.deserialize_keras_object(serialized)
    assert type(again) is type(loss) and again.get_config() == loss.get_config()
    np.testing.assert_array_equal(again(targets, logits), loss(targets, logits))
    assert type(loss) in [MULTILABEL_LOSSES.get(name) for name in MULTILABEL_LOSSES]
    half = loss(targets.astype(np.float16), logits.astype(np.float16))
    assert half.dtype == tf.float32
    np.testing.assert_allclose(half, loss(targets, logits), rtol=1e-2)


@pytest.mark.parametrize("loss", CASES, ids=NAMES)
def test_extremes_are_finite(loss):
    for size in (30.0, 200.0, 1e4, 1e30):
        logits = np.array([[size] * LABELS, [-size] * LABELS, [size, -size] * 3 + [0.0], [0.0] * LABELS], np.float32)
        for targets in (np.zeros((4, LABELS)), np.ones((4, LABELS)), np.tile([1.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.5], (4, 1))):
            value, gradient = value_and_gradient(loss, targets, logits)
            assert np.isfinite(value) and value >= 0.0
            assert np.isfinite(gradient).all()
    value, gradient = value_and_gradient(loss, -np.ones((3, LABELS)), logits[:3])
    assert value == 0.0 and not np.any(gradient), "nothing is known, nothing is learned"


@pytest.mark.slow
@pytest.mark.parametrize("loss", CASES, ids=NAMES)
def test_two_replicas_equal_one_process(loss, mirrored):
    targets, logits = batch(7)

    def call(labels, predictions):
        return loss(labels, predictions["query"])

    wanted, gradient = value_and_gradient(loss, targets, logits)
    for sizes in ((5, 2), (7, 0)):
        value, (found, _) = replica_value_and_gradients(call, targets, logits, logits, sizes, mirrored)
        np.testing.assert_allclose(value, wanted, rtol=1e-6)
        np.testing.assert_allclose(found, gradient, rtol=1e-5, atol=1e-7)


def test_reductions_and_sample_weights():
    targets, logits = batch()
    weights = np.arange(6.0)
    kinds = {kind: BinaryCrossEntropy(reduction=kind) for kind in ("none", "sum", "sum_over_batch_size")}
    rows = kinds["none"](targets, logits, weights)
    assert rows.shape == (6,)
    np.testing.assert_allclose(kinds["sum"](targets, logits, weights), np.sum(rows), rtol=1e-6)
    np.testing.assert_allclose(kinds["sum_over_batch_size"](targets, logits, weights), np.sum(rows) / (targets >= 0).sum(), rtol=1e-6)
    np.testing.assert_allclose(kinds["none"].call(tf.constant(targets), tf.constant(logits)), kinds["none"](targets, logits))


def test_losses_agree_where_they_should():
    targets, logits = batch()
    plain = BinaryCrossEntropy()(targets, logits)
    np.testing.assert_allclose(FocalLoss(gamma=0.0)(targets, logits), plain, rtol=1e-6)
    np.testing.assert_allclose(AsymmetricLoss(gamma_neg=0.0, clip=0.0)(targets, logits), plain, rtol=1e-6)
    np.testing.assert_allclose(GroupedLoss([])(targets, logits), plain, rtol=1e-6)
    # Two labels that exclude each other are one logistic regression on their difference.
    pair = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    z = np.array([[2.0, -1.0], [0.5, 0.0]], np.float32)
    difference = (z[:, :1] - z[:, 1:]).astype(np.float32)
    np.testing.assert_allclose(GroupedLoss([[0, 1]])(pair, z), BinaryCrossEntropy()(pair[:, :1], difference), rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    arrays.arrays(np.float32, (3, LABELS), elements=st.floats(-20, 20, width=32)),
    arrays.arrays(np.int8, (3, LABELS), elements=st.integers(-1, 1)),
)
def test_unknown_entries_do_not_matter(logits, targets):
    other = np.where(targets < 0, -logits + 1.0, logits)
    for loss in (BinaryCrossEntropy(), AsymmetricLoss(), GroupedLoss(GROUPS, label_smoothing=0.1)):
        np.testing.assert_allclose(loss(targets, other), loss(targets, logits), rtol=1e-6, atol=1e-7)


def test_fits_in_a_keras_model():
    targets, logits = batch(8)
    inputs = keras.Input((LABELS,))
    model = keras.Model(inputs, keras.layers.Dense(LABELS)(inputs))
    model.compile("adam", GroupedLoss(GROUPS))
    history = model.fit(logits, targets, epochs=2, batch_size=4, verbose=0).history["loss"]
    assert history[1] < history[0]


def test_class_balanced_weights():
    found = class_balanced_weights([1, 10, 1000, 0], beta=0.99)
    plain = np.array([(1 - 0.99) / (1 - 0.99**n) for n in (1, 10, 1000)])
    np.testing.assert_allclose(found[:3], plain / plain.mean(), rtol=1e-12)
    assert found[3] == 1.0
    assert class_balanced_weights([5, 7], beta=0.0) == [1.0, 1.0]
    ratio = class_balanced_weights([10, 1000], beta=1.0 - 1e-12)
    np.testing.assert_allclose(ratio[0] / ratio[1], 100.0, rtol=1e-6)
    assert class_balanced_weights([0, 0]) == [1.0, 1.0]


def test_positive_weights():
    assert positive_weights([50, 1, 0, 100], records=100, limit=20.0) == [1.0, 20.0, 20.0, 0.0]
    np.testing.assert_allclose(positive_weights([20], records=100, power=0.5), [2.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FocalLoss(gamma=-1.0), "gamma must be"),
        (lambda: FocalLoss(alpha=1.5), "alpha must lie"),
        (lambda: AsymmetricLoss(clip=1.0), "clip must lie"),
        (lambda: BinaryCrossEntropy(label_smoothing=1.0), "label_smoothing must lie"),
        (lambda: BinaryCrossEntropy(pos_weight=[-1.0]), "pos_weight must be"),
        (lambda: BinaryCrossEntropy(label_weights=[float("nan")]), "label_weights must be"),
        (lambda: BinaryCrossEntropy(reduction="mean_of_means"), "reduction"),
        (lambda: GroupedLoss([[0]]), "at least two labels"),
        (lambda: GroupedLoss([[0, 1], [1, 2]]), "each position"),
        (lambda: GroupedLoss([[0, 1]], rest="grouped"), "no element-wise loss"),
        (lambda: GroupedLoss([[0, 1]], rest="hinge"), "Unknown multi-label loss"),
        (lambda: GroupedLoss([[0, 1]], rest=GroupedLoss([[0, 1]])), "must be an element-wise loss"),
        (lambda: GroupedLoss([[0, 1]], group_weight=-1.0), "group_weight"),
        (lambda: GroupedLoss([[0, 9]])(np.zeros((2, 3)), np.zeros((2, 3))), "position 9, but there are 3"),
        (lambda: BinaryCrossEntropy(label_weights=[1.0])(np.zeros((2, 3)), np.zeros((2, 3))), "1 label_weights for 3 labels"),
        (lambda: BinaryCrossEntropy()(np.zeros((2, 3)), np.zeros((2, 4))), "one shape"),
        (lambda: class_balanced_weights([1], beta=1.0), "beta must lie"),
        (lambda: class_balanced_weights([-1]), "expected one count"),
        (lambda: positive_weights([3], records=2), "there are 2 records"),
        (lambda: positive_weights([3], records=5, limit=0.0), "limit must be"),
    ],
)
def test_refusals(make, message):
    with pytest.raises((UsageError, ValueError), match=message):
        make()
