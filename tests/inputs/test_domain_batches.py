"""Pairs of products, batches of categories, pairs of photos; boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tf_fashion.clustering.meta_domains import Lists, PseudoLabels
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.inputs.domain_batches import (
    PAIR_KINDS,
    TARGET,
    CategoryBatches,
    PairAugmentation,
    draw_pairs,
    photo_pair_batches,
)
from tf_fashion.inputs.feature_cache import FeatureTable
from tf_fashion.inputs.images import ImageSpec
from tf_fashion.inputs.pipelines import FeatureSource, PhotoSource


def made_up(products: int = 30, categories: int = 5, seed: int = 0) -> tuple[PseudoLabels, list[np.ndarray]]:
    """Products with random rows, and vectors that say their domain and row."""
    random = np.random.default_rng(seed)
    lists, counts = [], []
    for low, high in ((1, 4), (1, 4), (0, 4)):
        sizes = random.integers(low, high, products)
        rows = random.permutation(sizes.sum())
        lists.append(Lists.of(np.split(rows, np.cumsum(sizes)[:-1])))
        counts.append(int(sizes.sum()))
    weights = random.uniform(0.1, 1, len(lists[2].rows)).astype(np.float32)
    labels = PseudoLabels("soft", np.sort(random.integers(0, categories, products)), np.arange(products) + 100, *lists, weights)
    vectors = [np.stack([np.full(n, domain), np.arange(n)], 1).astype(np.float32) for domain, n in enumerate(counts)]
    return labels, vectors


@pytest.mark.parametrize("weak", [True, False])
def test_every_product_gives_the_pairs_that_it_can(weak: bool) -> None:
    labels, _ = made_up()
    pairs = draw_pairs(labels, np.arange(30), np.random.default_rng(1), weak)
    lists = (labels.consumers, labels.shops, labels.weak)
    sizes = np.stack([entry.lengths for entry in lists], 1)
    for number in range(30):
        here = np.flatnonzero(pairs.labels == labels.products[number])
        least = {kind: 1 + (a == b) for kind, (a, b) in enumerate(PAIR_KINDS)}
        wanted = [
            kind
            for kind, ends in enumerate(PAIR_KINDS)
            if all(sizes[number, end] >= least[kind] for end in ends) and (weak or TARGET not in ends)
        ]
        assert pairs.kinds[here].tolist() == wanted and (np.diff(here) == 1).all()
        for at in here:
            for rows, side in ((pairs.anchors, 0), (pairs.positives, 1)):
                row, domain = rows[at]
                assert domain == PAIR_KINDS[pairs.kinds[at]][side] and row in lists[domain][number]
                place = labels.weak[number].tolist().index(row) if domain == TARGET else None
                trust = 1 if place is None else labels.weights_of(number)[place]
                assert pairs.weights[at, side] == np.float32(trust)
        first = dict(zip(pairs.kinds[here].tolist(), here, strict=True))
        if 3 in first:
            assert (pairs.anchors[first[3]] == pairs.anchors[first[0]]).all()
    alike = (pairs.anchors == pairs.positives).all(1)
    assert not alike.any()


def test_all_rows_are_drawn_about_equally_often() -> None:
    labels, _ = made_up(1, 1, seed=4)
    assert len(labels.shops[0]) > 1
    random = np.random.default_rng(0)
    drawn = [draw_pairs(labels, np.zeros(1, np.int64), random) for _ in range(600)]
    for kind in (0, 2):
        rows = np.concatenate([pairs.positives[pairs.kinds == kind, 0] for pairs in drawn])
        counts = np.unique(rows, return_counts=True)[1]
        assert len(counts) == len(labels.shops[0]) and counts.min() > 0.75 * 600 / len(counts)


def test_batches_repeat_start_anywhere_and_take_every_category() -> None:
    labels, vectors = made_up(40, 6)
    batches = CategoryBatches(labels, *vectors, products_per_category=4, categories_per_batch=3, seed=5)
    every = list(batches.dataset(6).as_numpy_iterator())
    later = list(batches.dataset(6, initial_step=4).as_numpy_iterator())
    for ours, wanted in zip(tf.nest.flatten(later), tf.nest.flatten(every[4:]), strict=True):
        np.testing.assert_array_equal(ours, wanted)
    other = CategoryBatches(labels, *vectors, products_per_category=4, categories_per_batch=3, seed=6)
    assert [c for c, _ in other.pairs(0)] + [c for c, _ in other.pairs(1)] != [c for c, _ in batches.pairs(0)] + [
        c for c, _ in batches.pairs(1)
    ]
    for turn in range(3):
        seen = [category for step in (2 * turn, 2 * turn + 1) for category, _ in batches.pairs(step)]
        assert sorted(seen) == sorted(set(seen)) and len(seen) == 6
    for step, (inputs, owners, weights) in enumerate(every):
        assert inputs["features"].dtype == np.float32 and inputs["features"].shape == (*owners.shape, 2)
        assert (weights[owners < 0] == 0).all() and (inputs["features"][owners < 0] == 0).all()
        for (_, pairs), own, x in zip(batches.pairs(step), owners, inputs["features"], strict=True):
            n = len(pairs)
            assert (own[: 2 * n] == np.tile(pairs.labels, 2)).all() and (own[2 * n :] == -1).all()
            np.testing.assert_array_equal(x[:n], pairs.anchors[:, ::-1])
            np.testing.assert_array_equal(x[n : 2 * n], pairs.positives[:, ::-1])
            assert len(np.unique(pairs.labels)) == min(4, (labels.categories == labels.categories[own[0] - 100]).sum())


def test_products_can_be_drawn_several_times_and_all_in_one_category() -> None:
    labels, vectors = made_up(40, 6)
    options = {"products_per_category": 9, "categories_per_batch": 1, "seed": 5}
    once, often = (CategoryBatches(labels, *vectors, merge=True, draws=draws, **options) for draws in (1, 3))
    assert once.steps_per_pass == often.steps_per_pass == 1
    seen = set()
    for step in range(6):
        ((category, single),) = once.pairs(step)
        ((_, pairs),) = often.pairs(step)
        assert category == 0 and len(pairs) == 3 * len(single) and len(np.unique(pairs.labels)) == 9
        np.testing.assert_array_equal(pairs.kinds.sum(), 3 * single.kinds.sum())
        counts = np.unique(pairs.labels[pairs.kinds == 0], return_counts=True)[1]
        assert (counts == 3).all()
        seen |= set(pairs.labels.tolist())
        assert len({int(labels.categories[number - 100]) for number in np.unique(pairs.labels)}) > 1
        x, owners, weights = often.batch(step)
        assert x.shape[:2] == owners.shape == weights.shape == (1, 2 * len(pairs))
        np.testing.assert_array_equal(x[0, : len(pairs)], pairs.anchors[:, ::-1])
        again = CategoryBatches(labels, *vectors, merge=True, draws=3, **options).batch(step)
        for ours, wanted in zip(again, (x, owners, weights), strict=True):
            np.testing.assert_array_equal(ours, wanted)
    assert len(seen) > 25
    several = CategoryBatches(labels, *vectors, products_per_category=4, categories_per_batch=3, draws=2, seed=5)
    plain = CategoryBatches(labels, *vectors, products_per_category=4, categories_per_batch=3, seed=5)
    for (category, pairs), (wanted, single) in zip(several.pairs(0)[:1], plain.pairs(0)[:1], strict=True):
        assert category == wanted and set(pairs.labels) == set(single.labels) and len(pairs) == 2 * len(single)
    with pytest.raises(UsageError, match="set categories_per_batch=1, not 3"):
        CategoryBatches(labels, *vectors, categories_per_batch=3, merge=True)
    with pytest.raises(UsageError, match=r"draws=.*found 0"):
        CategoryBatches(labels, *vectors, categories_per_batch=3, draws=0)


def test_messages_of_category_batches() -> None:
    labels, vectors = made_up()
    with pytest.raises(UsageError, match="takes 12 categories, found 5"):
        CategoryBatches(labels, *vectors)
    options = {"categories_per_batch": 2}
    with pytest.raises(DataError, match="row .* of consumer photos"):
        CategoryBatches(labels, vectors[0][:3], *vectors[1:], **options)
    with pytest.raises(UsageError, match=r"different widths: \[2, 3\]"):
        CategoryBatches(labels, np.zeros((len(vectors[0]), 3)), *vectors[1:], **options)
    with pytest.raises(UsageError, match="of the target's shop photos, found none"):
        CategoryBatches(labels, *vectors[:2], **options)
    assert CategoryBatches(labels, *vectors[:2], weak=False, **options).batch(0)[0].shape[2] == 2
    with pytest.raises(UsageError, match="at least 1"):
        CategoryBatches(labels, *vectors, products_per_category=0)


def photo_source(folder: Path, size: int = 32) -> PhotoSource:
    paths = {}
    for number in range(6):
        paths[f"p{number}"] = folder / f"{number}.png"
        pixels = np.zeros((40 + 4 * number, 60, 3), np.uint8) + np.array([40 * number, 0, 200], np.uint8)
        Image.fromarray(pixels).save(paths[f"p{number}"])
    return PhotoSource(paths, ImageSpec(size=size, scaling="raw"), PairAugmentation.of(size))


@pytest.mark.slow
def test_photo_pairs(tmp_path: Path) -> None:
    source = photo_source(tmp_path)
    products = [(["p0"], ["p1"]), (["p2"], ["p3"]), (["p4", "p5"], ["p1"])]
    batches, steps = photo_pair_batches(products, source, batch_size=2, epochs=3, seed=1)
    first, again = (list(batches.as_numpy_iterator()) for _ in range(2))
    assert steps == 1 and len(first) == 3
    inputs, labels = first[0]
    assert inputs["anchor_image"].shape == inputs["positive_image"].shape == (2, 32, 32, 3) and labels.dtype == np.int64
    for ours, wanted in zip(tf.nest.flatten(again), tf.nest.flatten(first), strict=True):
        np.testing.assert_array_equal(ours, wanted)


def test_half_of_the_pairs_are_across_domains() -> None:
    ids = [f"{kind}{n}{k}" for n in range(200) for kind in "cs" for k in range(2)]
    values = np.stack([[int(i[1:-1]), i[0] == "s"] for i in ids]).astype(np.float32)
    source = FeatureSource(FeatureTable(ids, values))
    products = [([f"c{n}0", f"c{n}1"], [f"s{n}0", f"s{n}1"]) for n in range(200)]
    for combination, shares in (("all", [0.25, 0.5, 0.25]), ("consumer_shop", [0, 1, 0])):
        batches, _ = photo_pair_batches(products, source, 100, 10, seed=2, combination=combination)
        later = photo_pair_batches(products, source, 100, 10, initial_epoch=9, seed=2, combination=combination)[0]
        every = list(batches.as_numpy_iterator())
        np.testing.assert_array_equal(next(later.as_numpy_iterator())[0]["anchor_features"], every[-2][0]["anchor_features"])
        counts = np.zeros(3)
        for inputs, labels in every:
            anchors, positives = inputs["anchor_features"], inputs["positive_features"]
            assert (anchors[:, 0] == labels).all() and (positives[:, 0] == labels).all()
            kinds = anchors[:, 1] + positives[:, 1]
            assert combination == "all" or (anchors[:, 1] == 0).all()
            counts += np.bincount(kinds.astype(int), minlength=3)
        np.testing.assert_allclose(counts / counts.sum(), shares, atol=0.05)
    with pytest.raises(DataError, match="1 of 2 products lack"):
        photo_pair_batches([(["c00"], ["s00"]), (["c00"], [])], source, 1, 1)
    with pytest.raises(UsageError, match="all, consumer_shop"):
        photo_pair_batches(products, source, 1, 1, combination="both")


def test_augmented_photos() -> None:
    change = PairAugmentation.of(224)
    assert (change.size, change.short_side) == (224, 256)
    change = PairAugmentation(size=32, short_side=40, rotate=0.0, flip=0.0)
    image = np.broadcast_to(np.arange(80, dtype=np.uint8)[:, None, None], (80, 120, 3))
    found = [change(image, tf.constant([seed, 0])).numpy() for seed in range(12)]
    first = [round(float(x[0, 0, 0])) for x in (change.before_resize(image, tf.constant([seed, 0])) for seed in range(12))]
    assert len(set(first)) > 3 and all(0 <= value <= 17 for value in first)
    assert found[0].shape == image.shape
    turned = PairAugmentation(size=32, short_side=32, flip=0.0).before_resize(np.full((64, 64, 3), 255, np.uint8), tf.constant([3, 4]))
    assert turned.shape == (32, 32, 3) and float(tf.reduce_min(turned)) == 0.0 and float(turned[16, 16, 0]) == 255.0
    again = PairAugmentation.from_config(change.to_config())
    assert again == change
    with pytest.raises(UsageError, match="short_side"):
        PairAugmentation(size=32, short_side=31)
    with pytest.raises(UsageError, match="neither"):
        PairAugmentation(translate=0.1)
