"""Labels that refine each other's logits."""

import numpy as np
import pytest
import tensorflow as tf

from tf_fashion.core.errors import UsageError
from tf_fashion.layers.label_correlation import LabelCorrelation, label_lifts, label_probabilities
from tf_fashion.testing.contracts import run_layer_test


@pytest.mark.parametrize("options", [{}, {"rank": 2, "l2": 0.1}, {"groups": [[0, 3], [1, 4, 5]], "initial_scale": 0.5}])
def test_contract_and_start(options):
    logits = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32) * 50.0
    layer = run_layer_test(LabelCorrelation, options, [logits], (5, 7), "float32")
    np.testing.assert_array_equal(layer(logits), logits)


def test_formula():
    random = np.random.default_rng(1)
    logits, targets = random.normal(size=(4, 6)).astype(np.float32), random.uniform(size=(50, 6)) < 0.4
    groups = [[1, 4], [5, 0]]
    layer = LabelCorrelation(groups=groups, initial_scale=2.0)
    layer.build((None, 6))
    layer.start_from(targets)
    lifts, prior = label_lifts(targets)
    p = 1.0 / (1.0 + np.exp(-logits.astype(float)))
    for group in groups:
        e = np.exp(logits[:, group].astype(float))
        p[:, group] = e / e.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(label_probabilities(logits, groups), p, rtol=1e-5)
    np.testing.assert_allclose(layer(logits), logits + 2.0 * (p - prior) @ lifts, rtol=1e-4, atol=1e-5)
    low = LabelCorrelation(rank=6, groups=groups, initial_scale=2.0)
    low.build((None, 6))
    low.start_from(targets)
    np.testing.assert_allclose(low(logits), layer(logits), rtol=1e-4, atol=1e-5)
    # A label says nothing about itself, whatever has been learned.
    layer.matrix.assign(np.eye(6) * 9.0)
    np.testing.assert_allclose(layer(logits), logits)


def test_lifts_are_conditional_probabilities():
    targets = np.array([[1, 1, 0], [1, 1, 1], [0, 0, 1], [0, 1, -1]])
    lifts, prior = label_lifts(targets, smoothing=0.0)
    np.testing.assert_allclose(prior, [0.5, 0.75, 2 / 3])
    assert lifts[0, 1] == 1.0 - 0.5 and lifts[1, 0] == 2 / 3 - 0.0
    # The last row does not know label 2.
    assert lifts[0, 2] == 0.5 - 1.0 and lifts[2, 0] == 0.5 - 1.0
    assert np.diag(lifts).tolist() == [0.0] * 3
    constant, _ = label_lifts(np.ones((4, 3)), smoothing=0.0)
    assert not constant.any(), "a label that always applies says nothing"
    assert abs(label_lifts(targets, smoothing=1e9)[0]).max() < 1e-6


def test_dependent_labels_are_learned():
    """Label 1 repeats label 0, but the picture tells only label 0."""
    random = np.random.default_rng(3)
    yes = (random.uniform(size=(64, 1)) < 0.5).astype(np.float32)
    targets, logits = np.repeat(yes, 2, axis=1), np.concatenate([8.0 * yes - 4.0, np.zeros_like(yes)], axis=1)
    layer = LabelCorrelation()
    layer.build((None, 2))
    layer.start_from(targets)
    optimizer_step = 5.0
    for _ in range(60):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(targets, layer(logits)))
        for weight, gradient in zip(
            layer.trainable_variables, tape.gradient(loss, [v.value for v in layer.trainable_variables]), strict=True
        ):
            weight.assign_sub(optimizer_step * gradient)
    assert np.array_equal(layer(logits)[:, 1] > 0.0, yes[:, 0] > 0.0)


@pytest.mark.parametrize(
    "options", [{"rank": 0}, {"l2": -1.0}, {"groups": [[0]]}, {"groups": [[0, 1], [1, 2]]}, {"groups": [[0, 9]]}, {"rank": 5}]
)
def test_refusals(options):
    with pytest.raises(UsageError, match="LabelCorrelation"):
        LabelCorrelation(**options).build((None, 4))


def test_targets_of_other_labels():
    layer = LabelCorrelation()
    layer.build((None, 4))
    with pytest.raises(UsageError, match="3 labels"):
        layer.start_from(np.zeros((2, 3)))
    with pytest.raises(UsageError, match="expected targets"):
        label_lifts(np.zeros(3))
