"""Normalisation and pooling layers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_fashion.core.errors import UsageError
from tf_fashion.layers import GeM, L2Normalize, ScaledL2Norm, SequencePooling, batch_norm, pool_sequence, reverse_sequence
from tf_fashion.layers.normalization import FusedBatchNormalization
from tf_fashion.testing.contracts import run_layer_test


def rows(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_scaled_norm():
    layer = run_layer_test(ScaledL2Norm, {"initial_scale": 5.0}, [rows(4, 6)], (4, 6), "float32")
    np.testing.assert_allclose(np.linalg.norm(layer(rows(4, 6)), axis=1), 5.0, rtol=1e-6)
    frozen = ScaledL2Norm(trainable=False)
    frozen(rows(2, 2))
    assert frozen.trainable_variables == []


def test_zero_vectors_have_finite_gradients():
    x = tf.zeros((2, 3))
    for layer in (ScaledL2Norm(), L2Normalize()):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        assert np.isfinite(tape.gradient(y, x)).all()
        np.testing.assert_array_equal(y, 0.0)


def test_unit_norm():
    run_layer_test(L2Normalize, {}, [rows(4, 6)], (4, 6), "float32")


def test_norm_is_float32_under_mixed_precision():
    from tf_fashion.testing.contracts import _policy

    with _policy("mixed_float16"):
        assert ScaledL2Norm()(tf.cast(rows(2, 3), tf.float16)).dtype == tf.float32


def test_gem_lies_between_mean_and_maximum():
    x = np.abs(rows(3, 4, 5, 2)) + 0.1
    pooled = run_layer_test(GeM, {}, [x], (3, 2), "float32")(x).numpy()
    assert (pooled > x.mean((1, 2))).all() and (pooled < x.max((1, 2))).all()
    np.testing.assert_allclose(GeM(initial_p=1.0)(x), x.mean((1, 2)), rtol=1e-5)
    assert np.isfinite(GeM(initial_p=20.0)(x * 1e6)).all()


@pytest.mark.parametrize("how", ["last", "max", "mean"])
def test_padding_never_enters_the_pool(how):
    x, lengths = rows(4, 5, 3), np.array([5, 2, 0, 1], dtype=np.int32)
    pooled = pool_sequence(tf.constant(x), lengths, how).numpy()
    spoiled = x.copy()
    for row, length in enumerate(lengths):
        spoiled[row, length:] = 1e9
    np.testing.assert_array_equal(pool_sequence(tf.constant(spoiled), lengths, how), pooled)
    np.testing.assert_array_equal(pooled[2], 0.0)
    wanted = {"last": x[1, 1], "max": x[1, :2].max(0), "mean": x[1, :2].mean(0)}[how]
    np.testing.assert_allclose(pooled[1], wanted, rtol=1e-6)
    run_layer_test(SequencePooling, {"how": how}, [x, lengths], (4, 3))


def test_unknown_pooling():
    with pytest.raises(UsageError, match="last, max, mean"):
        SequencePooling("sum")


def test_reverse_leaves_the_padding():
    x = np.arange(6, dtype=np.float32).reshape(1, 6, 1)
    np.testing.assert_array_equal(reverse_sequence(x, [4])[0, :, 0], [3, 2, 1, 0, 4, 5])


def test_batch_norm_agrees_with_keras_and_between_replicas(mirrored):
    x = rows(8, 3)
    ours, plain = batch_norm(), keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
    np.testing.assert_allclose(ours(x, training=True), plain(x, training=True), atol=1e-6)
    with mirrored.scope():
        shared = batch_norm()
        shared.build((None, 3))
    data = mirrored.experimental_distribute_values_from_function(lambda c: tf.constant(x[4 * c.replica_id_in_sync_group :][:4]))
    tf.function(lambda d: mirrored.run(lambda r: shared(r, training=True), args=(d,)))(data)
    for mine, value in ((ours.moving_mean, shared.moving_mean), (ours.moving_variance, shared.moving_variance)):
        for replica in mirrored.experimental_local_results(value.value):
            np.testing.assert_allclose(replica, mine.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (7, 3)])
def test_fused_batch_normalisation_is_keras_own(shape):
    random = np.random.default_rng(0)
    x, weights = (tf.constant(random.normal(2, 3, shape).astype("float32")) for _ in range(2))
    results = []
    for cls in (keras.layers.BatchNormalization, FusedBatchNormalization):
        layer = cls(momentum=0.8, epsilon=1e-3, synchronized=True)
        layer.build(shape)
        layer.gamma.assign([1.0, 2.0, 0.5])
        layer.beta.assign([0.1, 0.2, 0.3])
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            total = tf.reduce_sum(y * weights)
        gradients = tape.gradient(total, [x, layer.gamma.value, layer.beta.value])
        results.append([y, *gradients, layer.moving_mean.numpy(), layer.moving_variance.numpy(), layer(x, training=False)])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5)


def test_unbiased_moving_variances_count_all_replicas(mirrored):
    x = np.random.default_rng(0).normal(size=(8, 3, 3, 2)).astype("float32")
    spread, count = x.reshape(-1, 2).var(axis=0), 8 * 3 * 3
    expected = 0.9 + 0.1 * spread * count / (count - 1)
    layer = FusedBatchNormalization(momentum=0.9, unbiased_variance=True)
    layer(x, training=True)
    np.testing.assert_allclose(layer.moving_variance, expected, rtol=1e-5)
    assert FusedBatchNormalization.from_config(layer.get_config()).unbiased_variance
    assert "unbiased_variance" not in FusedBatchNormalization().get_config()
    # Keras' own computation is taken without a scale.
    other = FusedBatchNormalization(momentum=0.9, unbiased_variance=True, scale=False)
    other(x, training=True)
    np.testing.assert_allclose(other.moving_variance, expected, rtol=1e-5)
    with pytest.raises(UsageError, match="mask"):
        other.call(tf.constant(x), training=True, mask=tf.ones((8, 3, 3), tf.bool))
    with mirrored.scope():
        shared = FusedBatchNormalization(momentum=0.9, unbiased_variance=True, synchronized=True)
        shared.build((None, 3, 3, 2))
    data = mirrored.experimental_distribute_values_from_function(lambda c: tf.constant(x[4 * c.replica_id_in_sync_group :][:4]))
    tf.function(lambda d: mirrored.run(lambda r: shared(r, training=True), args=(d,)))(data)
    for replica in mirrored.experimental_local_results(shared.moving_variance.value):
        np.testing.assert_allclose(replica, expected, rtol=1e-5)


def test_frozen_batch_normalisation_keeps_its_statistics():
    layer = FusedBatchNormalization()
    layer.build((None, 4))
    layer.trainable = False
    x = tf.random.normal((5, 4)) + 3
    np.testing.assert_allclose(layer(x, training=True), layer(x, training=False))
    assert not layer.moving_mean.numpy().any()
