"""Mining, rows without partners, and the loss over several categories at once."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tf_fashion.core.errors import UsageError
from tf_fashion.losses.mined_triplet import MinedTriplet, hardest, mining_distances, triplets_of_pairs


def vectors(rows: int, dim: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def test_copies_of_a_row_are_at_distance_zero() -> None:
    x = vectors(40, 33)
    x[[7, 21]] = x[3]
    distances = mining_distances(x, x, np.eye(40, dtype=bool)).numpy()
    assert distances[3, 7] == distances[21, 3] == 0 and (np.diag(distances) == 0).all()
    wanted = np.linalg.norm(x[:, None].astype(np.float64) - x[None], axis=2)
    np.testing.assert_allclose(distances, wanted, atol=1e-4)


def test_rows_without_partners_are_left_out_and_fall_back_to_row_0_only_as_in_the_original() -> None:
    labels = np.array([0, 0, 1, 2, 2])
    same, own = labels[:, None] == labels, np.eye(5, dtype=bool)
    distances = mining_distances(vectors(5), vectors(5), own)
    found = hardest(distances, same & ~own, ~same)
    assert found.usable.numpy().tolist() == [True, True, False, True, True]
    original = hardest(distances, same & ~own, ~same, original_fallback=True)
    assert original.usable.numpy().all() and original.positive.numpy()[2] == 0
    x, kept = vectors(5), [0, 1, 3, 4]
    # Row 2 stays a negative of the others.
    x[2] = x[0] + 0.1 * x[2]
    alone = MinedTriplet()(labels, x)
    assert float(alone) > 0 and not np.isclose(alone, MinedTriplet()(labels[kept], x[kept]))
    assert not np.isclose(alone, MinedTriplet(original_fallback=True)(labels, x))
    assert float(MinedTriplet()(np.zeros(4, np.int64), vectors(4))) == 0.0


@pytest.mark.parametrize("original", [False, True])
def test_triplets_of_pairs(original: bool) -> None:
    positives = np.array([[0, 3], [0, 4], [1, 5], [3, 0]], np.int32)
    negatives = np.array([[0, 6], [0, 7], [0, 8], [2, 1], [3, 9]], np.int32)
    found = triplets_of_pairs(positives, negatives, 4, original).numpy().tolist()
    if original:
        assert found == [[0, 3, 6], [0, 4, 7], [0, 3, 8], [3, 0, 9]]
    else:
        assert found == [[0, p, n] for p in (3, 4) for n in (6, 7, 8)] + [[3, 0, 9]]
    assert triplets_of_pairs(positives[:0], negatives, 4, original).shape == (0, 3)


@pytest.mark.parametrize("options", [{}, {"average": "all"}, {"original_fallback": True}, {"normalize": False, "swap": True}])
def test_categories_are_summed_and_padding_does_not_count(options: dict) -> None:
    loss = MinedTriplet(**options)
    sets = [(np.array([5, 5, 7, 7, 9]), vectors(5, seed=1)), (np.array([5, 5, 6, 6]), vectors(4, seed=2))]
    labels, x = np.full((2, 8), -1, np.int64), np.zeros((2, 8, 6), np.float32)
    for place, (own, rows) in enumerate(sets):
        labels[place, : len(own)], x[place, : len(own)] = own, rows
    wanted = sum(float(loss(own, rows)) for own, rows in sets)
    for weights in (None, np.ones((2, 8), np.float32), np.full((2, 8), 0.5, np.float32)):
        value, gradient = _with_gradient(loss, labels, x, weights)
        np.testing.assert_allclose(value, wanted, rtol=1e-5)
        assert np.isfinite(gradient).all() and (gradient[labels < 0] == 0).all()


def test_weights_of_rows() -> None:
    labels = np.array([[0, 0, 0, 1, 1]])
    x = np.eye(5, dtype=np.float32)[None] + 0.01 * vectors(5, 5)[None]
    weights = np.array([[1, 1, 0, 1, 1]], np.float32)
    loss = MinedTriplet(margin=1.0)
    value, gradient = _with_gradient(loss, labels, x, weights)
    kept = [0, 1, 3, 4]
    # A row of weight 0 is no positive and no anchor, but still a negative.
    assert (gradient[0, 2] != 0).any() or np.isclose(value, loss.of_categories(labels[:, kept], x[:, kept]))
    half = np.array([[1, 1, 0.5, 1, 1]], np.float32)
    assert _with_gradient(loss, labels, x, half)[0] != value


def test_messages() -> None:
    with pytest.raises(UsageError, match="miner=.*batch_hard, multi_similarity.*'all'"):
        MinedTriplet(miner="all")
    with pytest.raises(UsageError, match="average"):
        MinedTriplet(average="none")
    with pytest.raises(UsageError, match="of_categories takes"):
        MinedTriplet(miner="multi_similarity").of_categories(np.zeros((1, 2), np.int64), np.zeros((1, 2, 3), np.float32))


def _with_gradient(loss: MinedTriplet, labels: np.ndarray, x: np.ndarray, weights: np.ndarray | None) -> tuple[float, np.ndarray]:
    tensor = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        value = loss.of_categories(labels, tensor, weights)
    return float(value), tape.gradient(value, tensor).numpy()
