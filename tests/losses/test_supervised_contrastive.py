"""The supervised contrastive loss over labelled sets, with padding and weights, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.losses import naive
from tf_fashion.core.errors import UsageError
from tf_fashion.losses.supervised_contrastive import SupervisedContrastive


def vectors(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def with_gradient(loss: SupervisedContrastive, labels: np.ndarray, x: np.ndarray, weights: object) -> tuple[float, np.ndarray]:
    tensor = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        value = loss.of_categories(labels, tensor, weights)
    return float(value), tape.gradient(value, tensor).numpy()


@settings(deadline=None, max_examples=15)
@given(
    sets=st.lists(st.lists(st.integers(0, 3), min_size=0, max_size=7), min_size=1, max_size=3),
    temperature=st.sampled_from([0.05, 0.2, 1.0]),
    kind=st.sampled_from(["none", "some", "zeros"]),
    seed=st.integers(0, 1000),
)
def test_sets_are_summed_as_in_plain_loops(sets: list[list[int]], temperature: float, kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    shape = (len(sets), max(map(len, sets)) + 1)
    labels, x = np.full(shape, -1, np.int64), random.normal(size=(*shape, 3)).astype(np.float32)
    weights = random.uniform(0.1, 1, shape).astype(np.float32)
    if kind == "zeros":
        weights[random.random(shape) < 0.4] = 0
    for place, own in enumerate(sets):
        labels[place, : len(own)] = own
    wanted = 0.0
    for own, rows, trust in zip(labels, x, weights if kind != "none" else np.ones(shape), strict=True):
        here = own >= 0
        wanted += naive.supervised_contrastive_of_set(own[here], rows[here].astype(np.float64), trust[here], temperature)
    value, gradient = with_gradient(SupervisedContrastive(temperature), labels, x, None if kind == "none" else weights)
    np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-5)
    assert np.isfinite(gradient).all() and (gradient[labels < 0] == 0).all()


def test_one_set_is_the_loss_of_a_batch() -> None:
    labels, x = np.array([0, 0, 1, 1, 1, 2]), vectors(6, 5)
    loss = SupervisedContrastive()
    np.testing.assert_allclose(loss.of_categories(labels[None], x[None]), loss(labels, x), rtol=1e-5)
    half = {"query": x[:3], "target": x[3:]}
    np.testing.assert_allclose(loss(labels[[0, 2, 5]], half), loss.of_categories(labels[[0, 2, 5] * 2][None], x[None]), rtol=1e-5)


def test_a_weight_of_two_is_a_row_that_is_there_twice_for_its_own_label() -> None:
    labels, x = np.array([[0, 0, 0, 1]]), vectors(1, 4, 5)
    unit = x[0] / np.linalg.norm(x[0], axis=1, keepdims=True)
    similarities = unit @ unit.T / 0.5
    loss = SupervisedContrastive(0.5)
    for count in (0, 2):
        positives = [[1] * count + [2], [0, 2], [0] + [1] * count]
        rows = [np.log(np.exp([*s[p], s[3]]).sum()) - s[p].mean() for s, p in zip(similarities, positives, strict=False)]
        trust = np.array([1, count, 1])
        wanted = (trust * rows).sum() / trust.sum()
        np.testing.assert_allclose(loss.of_categories(labels, x, np.array([[1, count, 1, 1]])), wanted, rtol=1e-5)
    assert float(loss.of_categories(labels, x, np.array([[1, 0, 0, 0]]))) == 0.0


def test_low_temperatures_stay_finite() -> None:
    x = np.array([[[1, 0], [-1, 0], [0, 1], [0, -1]]], np.float32)
    value, gradient = with_gradient(SupervisedContrastive(0.002), np.array([[0, 0, 1, 1]]), x, None)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(value, 500 + np.log(2), rtol=1e-4)


def test_message() -> None:
    with pytest.raises(UsageError, match="above 0, found 0"):
        SupervisedContrastive(0)
