"""Prototypes of concepts against plain loops, and their table inside graphs."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.retrieval import prototypes as module
from tf_fashion.retrieval.prototypes import ConceptPrototypes, diverse_order, nearest_images, select_prototypes


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def vectors(concepts=9, images=50, dim=6, seed=0):
    random = np.random.default_rng(seed)
    return unit(random.normal(size=(concepts, dim))), unit(random.normal(size=(images, dim)))


def naive(concept, images, count, candidates, diversity):
    """One concept by loops."""
    relevance = (images.astype(np.float64) @ concept).astype(np.float32)
    likeness = (images.astype(np.float64) @ images.T.astype(np.float64)).astype(np.float32)
    pool = sorted(range(len(images)), key=lambda k: (-relevance[k], k))[:candidates]
    chosen = [pool[0]]
    while len(chosen) < min(count, len(pool)):
        rest = [k for k in pool if k not in chosen]
        gains = [np.float32(1 - diversity) * relevance[k] - np.float32(diversity) * max(likeness[k, j] for j in chosen) for k in rest]
        chosen.append(rest[int(np.argmax(gains))])
    return chosen + [-1] * (count - len(chosen))


@pytest.mark.parametrize(
    ("images", "count", "candidates", "diversity"),
    [(50, 10, 20, 0.8), (50, 3, 3, 0.8), (12, 10, 20, 0.5), (4, 10, 20, 0.8), (1, 2, 5, 0.8), (40, 10, 20, 0.0)],
)
def test_selection(images, count, candidates, diversity, monkeypatch):
    monkeypatch.setattr(module, "CONCEPT_BLOCK", 4)
    concepts, pool = vectors(images=images)
    chosen = select_prototypes(concepts, pool, count, candidates, diversity)
    assert chosen.dtype == np.int64
    assert chosen.tolist() == [naive(concept, pool, count, candidates, diversity) for concept in concepts]
    nearest, scores = nearest_images(concepts, pool, candidates)
    assert nearest.shape == scores.shape == (9, min(candidates, images))
    if diversity == 0.0:
        assert (chosen == nearest[:, :count]).all()


def test_equal_pictures_stay_in_order():
    concepts, pool = vectors(images=5)
    pool = np.repeat(pool, 3, axis=0)
    nearest, _ = nearest_images(concepts, pool, 15)
    assert (nearest.reshape(-1, 5, 3) % 3 == np.arange(3)).all()
    relevance, likeness = np.full((2, 4), 0.5, np.float32), np.full((2, 4, 4), 0.25, np.float32)
    assert diverse_order(relevance, likeness, 10).tolist() == [[0, 1, 2, 3]] * 2


def test_table():
    concepts, pool = vectors(concepts=5)
    ids = np.array([7, 0, 900_000_000_000, 3, 4])
    table = ConceptPrototypes(ids, 6, 4)
    asked = tf.constant([[3, -1], [7, 8], [900_000_000_000, 0]], tf.int64)
    function = tf.function(table.gather)
    assert not function(asked).numpy().any()
    for images, padded in ((pool, 0), (pool[::-1], 0), (pool[:3], 1)):
        positions = table.update(concepts, images, candidates=8)
        assert positions is table.positions and positions.shape == (5, 4) and (positions < 0).sum() == 5 * padded
        wanted = np.zeros((3, 2, 4, 6), np.float32)
        for place, concept in (((0, 0), 3), ((1, 0), 0), ((2, 0), 2), ((2, 1), 1)):
            there = positions[concept] >= 0
            wanted[place][there] = images[positions[concept][there]]
        for found in (table.gather(asked), function(asked), table.gather(asked.numpy().astype(np.int64))):
            np.testing.assert_array_equal(found, wanted)
    rows = tf.data.Dataset.from_tensor_slices(asked).batch(2).map(table.gather)
    assert rows.element_spec.shape.as_list() == [None, 2, 4, 6]
    np.testing.assert_array_equal(np.concatenate(list(rows.as_numpy_iterator())), wanted)
    assert table.gather(np.int32(-1)).shape == (4, 6)


def test_refusals():
    concepts, pool = vectors()
    for arguments, message in (
        ({"count": 0}, "1 <= count"),
        ({"count": 21}, "1 <= count"),
        ({"diversity": 1.5}, "diversity in"),
    ):
        with pytest.raises(UsageError, match=message):
            select_prototypes(concepts, pool, **arguments)
    with pytest.raises(DataError, match="pool of concept images is empty"):
        nearest_images(concepts, pool[:0])
    with pytest.raises(UsageError, match="k must be"):
        nearest_images(concepts, pool, 0)
    pool[3] = np.nan
    with pytest.raises(DataError, match="NaN"):
        select_prototypes(concepts, pool)
    for ids, message in (([], "whole numbers"), ([0.5], "whole numbers"), ([-1, 2], "not negative"), ([2, 2], "must be different")):
        with pytest.raises(UsageError, match=message):
            ConceptPrototypes(ids, 6)
    with pytest.raises(UsageError, match="expected concept vectors"):
        ConceptPrototypes([1, 2], 6).update(concepts, pool[:3])
