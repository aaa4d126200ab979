"""The concept loss against plain loops, in chunks, on replicas; how it is weighed."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.losses import naive
from tests.parity.harness import run_file
from tests.shared import shared
from tf_fashion.core.errors import UsageError
from tf_fashion.losses.concept import ConceptLoss, weigh_losses


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def batch(rows=6, slots=3, count=7, dim=8, seed=0):
    """A batch with padding, with a concept that two samples share, and with prototypes that are missing."""
    random = np.random.default_rng(seed)
    image, text, prototypes = (unit(random.normal(size=s)) for s in ((rows, dim), (rows, slots, dim), (rows, slots, count, dim)))
    ids = random.integers(0, 40, (rows, slots))
    ids[random.random(ids.shape) < 0.25] = -1
    ids[:2, 0] = 3
    prototypes[ids < 0] = 0
    prototypes[2:3, :, 1:] = 0
    return image, text, prototypes, ids


def value_and_gradients(loss, image, text, prototypes, valid, scale, ids):
    with tf.GradientTape() as tape:
        tensors = [tf.convert_to_tensor(x) for x in (image, text, prototypes, scale)]
        tape.watch(tensors)
        value = loss(tensors[0], tensors[1], tensors[2], valid, tensors[3], ids)
    return value, tape.gradient(value, tensors)


@pytest.mark.parametrize(
    ("options", "seed"),
    [({}, 0), ({}, 1), ({"top": 2}, 2), ({"keep_negative": True}, 3), ({"mask_same_concept": True, "top": 3}, 4)],
    ids=str,
)
def test_naive_and_chunks(options, seed):
    image, text, prototypes, ids = batch(seed=seed)
    scale = np.float32(6.0)
    loss = ConceptLoss(**options)
    value, gradients = value_and_gradients(loss, image, text, prototypes, ids >= 0, scale, ids)
    same = ids if options.get("mask_same_concept") else None
    wanted = naive.concept(image, text, prototypes, ids >= 0, 6.0, loss.top, loss.keep_negative, same)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    assert gradients[0] is None and gradients[2] is None
    np.testing.assert_array_equal(gradients[1].numpy()[ids < 0], 0)
    assert np.isfinite(gradients[1]).all() and np.abs(gradients[1]).max() > 0
    if same is None:
        np.testing.assert_allclose(loss(image, text, prototypes, scale=scale), value, rtol=1e-6, err_msg="valid is seen from zeros")
    if seed not in (0, 4):
        return
    chunked = ConceptLoss(**options, chunk_size=9 if seed == 0 else 4)
    again, found = tf.function(value_and_gradients)(chunked, image, text, prototypes, ids >= 0, scale, ids)
    np.testing.assert_allclose(again, value, rtol=1e-5)
    for place in (1, 3):
        np.testing.assert_allclose(found[place], gradients[place], rtol=1e-4, atol=1e-6)


def test_all_similarities_positive_without_padding_is_the_original():
    image, text, prototypes, _ = batch(rows=4)
    image, prototypes = np.abs(image), unit(np.abs(prototypes) + 0.1)
    original = ConceptLoss(keep_negative=True, original_padding=True)(image, text, prototypes, scale=9.0)
    np.testing.assert_allclose(ConceptLoss()(image, text, prototypes, scale=9.0), original, rtol=1e-6)
    image, text, prototypes, _ = batch(rows=4, slots=5)
    transposed = ConceptLoss(original_transposed=True)(image, text, prototypes, scale=9.0)
    assert np.isfinite(transposed) and abs(transposed - ConceptLoss()(image, text, prototypes, scale=9.0)) > 1e-4


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_nothing_to_compare(chunk_size):
    loss = ConceptLoss(top=2, chunk_size=chunk_size)
    image, text, prototypes, _ = batch()
    for valid in (np.zeros((6, 3), bool), np.eye(6, 3, dtype=bool)):
        value, gradients = value_and_gradients(loss, image, text, prototypes, valid, np.float32(5), None)
        assert float(value) == 0.0
        np.testing.assert_array_equal(gradients[1], 0)
    empty = np.zeros((6, 3), bool)
    assert np.isnan(ConceptLoss(original_padding=True)(image, text, np.zeros_like(prototypes), empty))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"original_transposed": True}, {"mask_same_concept": True, "chunk_size": 2}], ids=str)
def test_replicas(options, mirrored):
    image, text, prototypes, ids = batch(rows=7)
    loss, scale = ConceptLoss(3, **options), np.float32(4.0)
    value, gradients = value_and_gradients(loss, image, text, prototypes, ids >= 0, scale, ids)
    total, weight = weigh_losses(0.3, value)

    def local(context):
        rows = slice(0, 5) if context.replica_id_in_sync_group == 0 else slice(5, 7)
        return tuple(tf.constant(x[rows]) for x in (image, text, prototypes, ids))

    def replica(rows):
        image, text, prototypes, ids = rows
        value, gradients = value_and_gradients(loss, image, text, prototypes, ids >= 0, tf.constant(scale), ids)
        return value, gradients[1], gradients[3], *weigh_losses(0.15, value)

    step = tf.function(lambda rows: mirrored.run(replica, args=(rows,)))
    values = step(mirrored.experimental_distribute_values_from_function(local))
    parts = [mirrored.experimental_local_results(x) for x in values]
    np.testing.assert_allclose(sum(parts[0]), value, rtol=1e-5)
    np.testing.assert_allclose(tf.concat(parts[1], 0), gradients[1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(sum(parts[2]), gradients[3], rtol=1e-4)
    np.testing.assert_allclose(sum(parts[3]), total, rtol=1e-5)
    np.testing.assert_allclose(parts[4], [weight, weight], rtol=1e-5)


def test_weighting():
    contrastive, concept = tf.constant(4.0), tf.constant(2.0)
    with tf.GradientTape() as tape:
        tape.watch((contrastive, concept))
        total, factor = weigh_losses(contrastive, concept)
    np.testing.assert_allclose([total, factor], [0.6 * 4 + 0.8, 0.4], rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(total, (contrastive, concept)), [0.6, 0.4], rtol=1e-6)
    np.testing.assert_allclose(weigh_losses(40.0, 2.0), [2.0, 1.0])
    np.testing.assert_allclose(weigh_losses(40.0, 2.0, "original"), [-120 + 8, 4.0])
    np.testing.assert_allclose(weigh_losses(40.0, 2.0, "fixed", 0.5), [41.0, 0.5])
    np.testing.assert_allclose(weigh_losses(3.0, 0.0), [3.0, 0.0])
    with pytest.raises(UsageError, match="Unknown weighting 'some'"):
        weigh_losses(1.0, 1.0, "some")
    with pytest.raises(UsageError, match="must not be negative"):
        weigh_losses(1.0, 1.0, "fixed", -1.0)


def test_configuration_and_half_precision():
    loss = ConceptLoss(top=3, mask_same_concept=True, chunk_size=4)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is ConceptLoss and again.get_config() == loss.get_config()
    image, text, prototypes, ids = batch()
    value = ConceptLoss()(image.astype(np.float16), text.astype(np.float16), prototypes.astype(np.float16), ids >= 0, 10.0)
    assert value.dtype == tf.float32
    np.testing.assert_allclose(value, ConceptLoss()(image, text, prototypes, ids >= 0, 10.0), rtol=1e-2)


def test_refusals():
    image, text, prototypes, _ = batch()
    for options, message in (({"top": 0}, "top must be at least 1"), ({"chunk_size": 0}, "chunk_size must be at least 1")):
        with pytest.raises(UsageError, match=message):
            ConceptLoss(**options)
    for options, arguments, message in (
        ({}, (image, text[:, 0], prototypes), "expected image"),
        ({}, (image, text[:, :2], prototypes), "one known number of slots"),
        ({}, (image[:, :3], text, prototypes), "one width"),
        ({"top": 8}, (image, text, prototypes), "at least 8 prototypes"),
        ({"original_transposed": True}, (image, text, prototypes), "as many slots as ranks"),
        ({"mask_same_concept": True}, (image, text, prototypes), "needs concept_ids"),
    ):
        with pytest.raises(UsageError, match=message):
            ConceptLoss(**options)(*arguments)


def test_against_the_original():
    import tests.parity.checks.clip_losses  # noqa: F401

    fixture = run_file(shared("golden/fashionklip/concept_losses.npz"))
    assert fixture.comparisons and [str(c) for c in fixture.comparisons if not c.ok] == []
    assert fixture.uncovered() == {}
