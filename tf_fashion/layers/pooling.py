"""Pooling of image maps and of word sequences of different lengths."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tf_fashion.core.errors import UsageError
from tf_fashion.layers.normalization import _Float32Layer

SEQUENCE_POOLINGS = ("last", "max", "mean")


def reverse_sequence(sequence: Any, lengths: Any) -> Any:
    """Reverses the first `lengths[b]` steps of every row and leaves the padding where it is.

    Args:
        sequence: Tensor `(batch, steps, width)`.
        lengths: Integer tensor `(batch,)`, values in [0, steps].

    Returns:
        Tensor of the shape and dtype of `sequence`.
    """
    return tf.reverse_sequence(sequence, lengths, seq_axis=1, batch_axis=0)


def pool_sequence(sequence: Any, lengths: Any, how: str) -> Any:
    """Reduces the valid steps of every row to one vector. Padding never enters; a row of length 0 gives zeros.

    Args:
        sequence: Floating tensor `(batch, steps, width)`.
        lengths: Integer tensor `(batch,)`, values in [0, steps].
        how: `"last"` (the step before the padding), `"max"` or `"mean"`.

    Returns:
        Tensor `(batch, width)` of the dtype of `sequence`.

    Raises:
        UsageError: `how` is none of the three.
    """
    lengths = ops.cast(lengths, "int32")
    if how == "last":
        last = tf.gather(sequence, tf.maximum(lengths - 1, 0), axis=1, batch_dims=1)
        return tf.where((lengths > 0)[:, None], last, tf.zeros_like(last))
    valid = tf.sequence_mask(lengths, tf.shape(sequence)[1])[:, :, None]
    if how == "max":
        pooled = tf.reduce_max(tf.where(valid, sequence, sequence.dtype.min), axis=1)
        return tf.where((lengths > 0)[:, None], pooled, tf.zeros_like(pooled))
    if how == "mean":
        total = tf.reduce_sum(tf.where(valid, sequence, tf.zeros_like(sequence)), axis=1)
        return total / tf.cast(tf.maximum(lengths, 1), sequence.dtype)[:, None]
    raise UsageError(f"Unknown pooling of a sequence {how!r}. Known: {', '.join(SEQUENCE_POOLINGS)}.")


@keras.saving.register_keras_serializable("tf_fashion")
class SequencePooling(keras.layers.Layer):
    """Layer form of `pool_sequence`.

    Args:
        how: `"last"`, `"max"` or `"mean"`.

    Call arguments:
        sequence: Floating tensor `(batch, steps, width)`.
        lengths: Integer tensor `(batch,)`.

    Returns:
        Tensor `(batch, width)`.

    Raises:
        UsageError: `how` is none of the three.
    """

    def __init__(self, how: str = "mean", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if how not in SEQUENCE_POOLINGS:
            raise UsageError(f"Unknown pooling of a sequence {how!r}. Known: {', '.join(SEQUENCE_POOLINGS)}.")
        self.how = how

    def build(self, sequence_shape: tuple, lengths_shape: tuple | None = None) -> None:
        self.built = True

    def call(self, sequence: Any, lengths: Any) -> Any:
        return pool_sequence(sequence, lengths, self.how)

    def compute_output_shape(self, sequence_shape: tuple, lengths_shape: tuple | None = None) -> tuple:
        return (sequence_shape[0], sequence_shape[2])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "how": self.how}


@keras.saving.register_keras_serializable("tf_fashion")
class GeM(_Float32Layer):
    """Generalised-mean pooling `(mean(max(x, eps)^p))^(1/p)` with one learned exponent (Radenovic et al., PAMI 2019).

    p = 1 is average pooling of the positive part, p -> infinity is maximum pooling. Computed in float32.

    Args:
        initial_p: Start value of p, at least 1.
        trainable: Whether p is trained.
        epsilon: Lower bound of the values, because the power needs positive ones.

    Call arguments:
        x: Floating tensor `(batch, height, width, channels)`.

    Returns:
        float32 tensor `(batch, channels)`, values of at least `epsilon`.
    """

    def __init__(self, initial_p: float = 3.0, trainable: bool = True, epsilon: float = 1e-6, **kwargs: Any) -> None:
        super().__init__(trainable=trainable, **kwargs)
        self.initial_p = initial_p
        self.epsilon = epsilon

    def build(self, input_shape: tuple) -> None:
        self.p = self.add_weight(name="p", shape=(), initializer=keras.initializers.Constant(self.initial_p), dtype="float32")
        self.built = True

    def call(self, x: Any) -> Any:
        p = ops.maximum(self.p, 1.0)
        x = ops.maximum(x, self.epsilon)
        # The largest value is taken out before the power, which would overflow float32 at values above 1e4 and p above 9.
        peak = ops.max(x, axis=(1, 2), keepdims=True)
        mean = ops.mean(ops.power(x / peak, p), axis=(1, 2))
        return ops.power(mean, 1.0 / p) * peak[:, 0, 0, :]

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (input_shape[0], input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "initial_p": self.initial_p, "epsilon": self.epsilon}
