"""SigLIP's loss: its bias, its chunks, its start."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tests.losses import naive
from tf_fashion.core.errors import UsageError
from tf_fashion.losses import LOSSES
from tf_fashion.losses.sigmoid import SAME_LABEL, PairwiseSigmoid


def value_and_gradients(loss, labels, query, target, bias):
    tensors = [tf.cast(x, tf.float32) for x in (query, target, bias)]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = loss(labels, dict(zip(("query", "target", "bias"), tensors, strict=True)))
    return value, tape.gradient(value, tensors)


@pytest.mark.parametrize("same_label", SAME_LABEL)
def test_bias_and_chunks(same_label):
    random = np.random.default_rng(3)
    labels = np.array([0, 0, 1, 2, 2, 2, 3])
    query, target = (random.normal(size=(7, 5)) for _ in range(2))
    wanted, gradients = value_and_gradients(PairwiseSigmoid(same_label), labels, query, target, -1.5)
    np.testing.assert_allclose(wanted, naive.sigmoid(labels, query, target, -1.5, same_label), rtol=1e-5)
    step = 1e-4
    slope = [naive.sigmoid(labels, query, target, -1.5 + move, same_label) for move in (-step, step)]
    np.testing.assert_allclose(gradients[2], (slope[1] - slope[0]) / (2 * step), rtol=1e-4)
    for chunk_size in (3, 50):
        loss = PairwiseSigmoid(same_label, chunk_size)
        value, found = value_and_gradients(loss, labels, query, target, -1.5)
        np.testing.assert_allclose(value, wanted, rtol=1e-6)
        for ours, theirs in zip(found, gradients, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_start_of_siglip():
    # With unrelated unit vectors nearly the whole loss is the pairs': -log sigmoid(-10) of each.
    query, target = np.eye(8, dtype=np.float32), np.roll(np.eye(8, dtype=np.float32), 4, axis=1)
    loss = LOSSES.get("sigmoid")(same_label="negative")
    value = loss(np.arange(8), {"query": 10.0 * query, "target": target, "bias": -10.0})
    expected = math.log1p(math.exp(10.0)) + 6 * math.log1p(math.exp(-10.0)) + math.log(2.0)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_refusals():
    with pytest.raises(UsageError, match="unknown same_label 'maybe'"):
        PairwiseSigmoid("maybe")
    with pytest.raises(UsageError, match="chunk_size must be at least 1"):
        PairwiseSigmoid(chunk_size=0)
