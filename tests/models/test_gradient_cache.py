"""Gradients of chunks against the gradient of the whole batch."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_fashion.core.errors import UsageError
from tf_fashion.layers.normalization import batch_norm
from tf_fashion.losses import LOSSES
from tf_fashion.models.gradient_cache import cached_gradients


class Towers:
    """Two small towers, the learned scale, and a loss over all their rows."""

    def __init__(self, dropout: float = 0.0) -> None:
        def random() -> keras.layers.Layer:
            return keras.layers.Dropout(dropout) if dropout else keras.layers.Identity()

        dense = keras.layers.Dense
        self.image = keras.Sequential([keras.Input((6,)), dense(8, "tanh"), random(), dense(4)])
        words = keras.layers.Embedding(9, 5)
        self.text = keras.Sequential([keras.Input((3,), dtype="int32"), words, random(), keras.layers.Flatten(), dense(4)])
        self.scale = keras.Variable(0.5, name="logit_scale")
        self.unused = keras.Variable(1.0, name="unused")
        self.variables = [*self.image.trainable_variables, *self.text.trainable_variables, self.scale, self.unused]
        self.classify = LOSSES.get("batch_classification")(directions="both", mask_same_label=False)

    def encode_image(self, inputs):
        return self.image(inputs["pixels"], training=True)

    def encode_text(self, tokens):
        return self.text(tokens, training=True)

    def loss(self, image, text):
        value = self.classify(tf.range(tf.shape(image)[0]), {"query": image * tf.exp(self.scale.value), "target": text})
        return value, image

    def cached(self, pixels, tokens, chunk_size):
        batch = ({"pixels": pixels}, tokens)
        encoders = (self.encode_image, self.encode_text)
        return cached_gradients(encoders, batch, self.loss, self.variables, chunk_size, [self.image, self.text])

    def plain(self, pixels, tokens, chunk_size):
        """One tape over everything; in chunks only so that random layers draw the same."""
        starts = range(0, len(pixels), chunk_size)
        with tf.GradientTape() as tape:
            image = tf.concat([self.encode_image({"pixels": pixels[k : k + chunk_size]}) for k in starts], 0)
            text = tf.concat([self.encode_text(tokens[k : k + chunk_size]) for k in starts], 0)
            value, _ = self.loss(image, text)
        gradients = tape.gradient(value, [variable.value for variable in self.variables])
        return value, [None if gradient is None else tf.convert_to_tensor(gradient) for gradient in gradients]

    def states(self):
        return [layer.seed_generator.state for tower in (self.image, self.text) for layer in tower.layers if "dropout" in layer.name]


def data(rows=7):
    random = np.random.default_rng(0)
    return random.normal(size=(rows, 6)).astype(np.float32), random.integers(0, 9, (rows, 3)).astype(np.int32)


def assert_same(ours, wanted):
    largest = max(float(tf.reduce_max(tf.abs(gradient))) for gradient in wanted if gradient is not None)
    for a, b in zip(ours, wanted, strict=True):
        if b is None:
            assert a is None
        else:
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * largest)


@pytest.mark.parametrize(("dropout", "chunk_size"), [(0.0, 3), (0.5, 3), (0.5, 9)])
def test_equals_the_plain_gradient(dropout, chunk_size):
    towers, (pixels, tokens) = Towers(dropout), data()
    before = [state.numpy() for state in towers.states()]
    value, gradients = towers.plain(pixels, tokens, chunk_size)
    after = [state.numpy() for state in towers.states()]
    assert (dropout > 0) == bool(after)
    shapes = [tf.TensorSpec((None, 6)), tf.TensorSpec((None, 3), tf.int32)]

    def cached(pixels, tokens):
        return towers.cached(pixels, tokens, chunk_size)

    for function in (cached, tf.function(cached, input_signature=shapes)):
        for state, start in zip(towers.states(), before, strict=True):
            state.assign(start)
        (ours, image), found = function(pixels, tokens)
        np.testing.assert_allclose(ours, value, rtol=1e-6)
        assert image.shape == (7, 4)
        assert_same(found, gradients)
        for state, end in zip(towers.states(), after, strict=True):
            np.testing.assert_array_equal(state.numpy(), end)


def test_replicas(mirrored):
    with mirrored.scope():
        towers = Towers()
    pixels, tokens = data()
    value, gradients = towers.plain(pixels, tokens, 7)

    def local(context):
        rows = slice(0, 4) if context.replica_id_in_sync_group == 0 else slice(4, 7)
        return tf.constant(pixels[rows]), tf.constant(tokens[rows])

    def replica(batch):
        (part, _), found = towers.cached(*batch, 2)
        return part, [gradient for gradient in found if gradient is not None]

    step = tf.function(lambda batch: mirrored.run(replica, args=(batch,)))
    part, found = step(mirrored.experimental_distribute_values_from_function(local))
    np.testing.assert_allclose(sum(mirrored.experimental_local_results(part)), value, rtol=1e-6)
    sums = [sum(map(tf.convert_to_tensor, mirrored.experimental_local_results(gradient))) for gradient in found]
    assert_same(sums, [gradient for gradient in gradients if gradient is not None])


def test_refusals():
    towers, batch = Towers(), data()
    with pytest.raises(UsageError, match="chunk_size must be at least 1"):
        towers.cached(*batch, 0)
    with pytest.raises(UsageError, match="one input per encoder"):
        cached_gradients([towers.encode_text], batch, towers.loss, towers.variables, 2, [towers.text])
    towers.image = keras.Sequential([keras.Input((6,)), batch_norm(), keras.layers.Dense(4)])
    with pytest.raises(UsageError, match="normalises over the batch"):
        towers.cached(*batch, 2)
    towers.image.trainable = False
    assert towers.cached(*batch, 2)[1][-2] is not None
