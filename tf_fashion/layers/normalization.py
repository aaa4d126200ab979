"""Normalisation to the unit sphere, with or without a learned radius, and the batch normalisation that all our layers use."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tf_fashion.core.errors import UsageError


@keras.saving.register_keras_serializable("tf_fashion")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Keras' batch normalisation, computed by TensorFlow's fused kernel where that gives the same: on the last axis, without a
    mask, on one replica. It reads its input less often, and subtracts the mean before it scales, which loses fewer digits.

    On several replicas statistics are taken over all of them (`synchronized=True`), by Keras' own formula. Weights and, but for one
    option, moving statistics are those of `keras.layers.BatchNormalization`.

    Args:
        unbiased_variance: Takes up the batch's variance with n - 1 in the denominator into the moving one, as PyTorch does, where
            Keras has n; n counts the values of a channel, over all replicas.
        **kwargs: As for `keras.layers.BatchNormalization`.
    """

    def __init__(self, *args: Any, unbiased_variance: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.unbiased_variance = unbiased_variance

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        # Left out where it changes nothing, so that files of before stay as they are.
        return {**config, "unbiased_variance": True} if self.unbiased_variance else config

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        rank = len(inputs.shape)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync if self.synchronized else 1
        fused = (
            rank in (2, 4)
            and self.axis in (-1, rank - 1)
            and mask is None
            and replicas == 1
            and self.scale
            and self.center
            and keras.backend.standardize_dtype(inputs.dtype) in ("float32", "float16", "bfloat16")
            and not isinstance(inputs, keras.KerasTensor)
        )
        if not fused:
            return self._unfused(inputs, training, mask, replicas)
        learning = bool(training and self.trainable)
        x = tf.cast(inputs, self.compute_dtype)
        maps = x if rank == 4 else x[:, tf.newaxis, tf.newaxis, :]
        result, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=maps,
            scale=tf.cast(self.gamma, tf.float32),
            offset=tf.cast(self.beta, tf.float32),
            mean=tf.zeros((0,)) if learning else tf.cast(self.moving_mean, tf.float32),
            variance=tf.zeros((0,)) if learning else tf.cast(self.moving_variance, tf.float32),
            epsilon=self.epsilon,
            exponential_avg_factor=1.0,
            is_training=learning,
        )
        if learning:
            count = tf.cast(tf.size(maps) // tf.shape(maps)[-1], tf.float32)
            self._move(self.moving_mean, mean)
            # The kernel divides by n - 1.
            self._move(self.moving_variance, variance if self.unbiased_variance else variance * (count - 1.0) / count)
        return result if rank == 4 else result[:, 0, 0, :]

    def _unfused(self, inputs: Any, training: bool | None, mask: Any, replicas: int) -> Any:
        """Keras' own computation, whose moving variance is brought from n to n - 1 if that is wanted."""
        if not (self.unbiased_variance and training and self.trainable):
            return super().call(inputs, training=training, mask=mask)
        if mask is not None:
            raise UsageError("BatchNormalization(unbiased_variance=True) takes no mask.")
        kept = ops.convert_to_tensor(self.moving_variance.value) * self.momentum
        result = super().call(inputs, training=training)
        values = ops.cast(ops.size(inputs), "float32") / self.moving_variance.shape[0] * replicas
        factor = ops.cast(values / ops.maximum(values - 1.0, 1.0), kept.dtype)
        self.moving_variance.assign(kept + (self.moving_variance.value - kept) * factor)
        return result

    def _move(self, average: Any, value: tf.Tensor) -> None:
        value = tf.cast(value, average.dtype)
        average.assign(average.value * self.momentum + value * (1.0 - self.momentum))


def batch_norm(name: str | None = None, momentum: float = 0.9, epsilon: float = 1e-5, **kwargs: Any) -> FusedBatchNormalization:
    """The batch normalisation of this library: momentum 0.9, epsilon 1e-5, statistics over all replicas.

    Without `synchronized=True` the moving statistics of the replicas of a `tf.distribute` strategy drift apart, and only the
    first replica's are saved. On one device the results are the same as without.
    """
    return FusedBatchNormalization(momentum=momentum, epsilon=epsilon, synchronized=True, name=name, **kwargs)


def l2_normalize(x: Any, epsilon: float = 1e-12) -> Any:
    """Divides the vectors of the last axis by their length; a zero vector stays zero and has gradient zero times 1/sqrt(epsilon).

    Args:
        x: Floating tensor `(..., dim)`.
        epsilon: Lower bound of the squared length.

    Returns:
        Tensor of the shape and dtype of `x`.
    """
    squared = ops.sum(ops.square(x), axis=-1, keepdims=True)
    return x * ops.rsqrt(ops.maximum(squared, ops.cast(epsilon, squared.dtype)))


class _Float32Layer(keras.layers.Layer):
    """A layer that computes in float32 whatever the global policy is."""

    def __init__(self, **kwargs: Any) -> None:
        if kwargs.get("dtype") is None:
            kwargs["dtype"] = "float32"
        super().__init__(**kwargs)


@keras.saving.register_keras_serializable("tf_fashion")
class L2Normalize(_Float32Layer):
    """Scales vectors to length one, in float32 also under mixed precision.

    Args:
        epsilon: Lower bound of the squared length, so that zero vectors give zeros and not NaN.

    Call arguments:
        x: Floating tensor `(..., dim)`.

    Returns:
        float32 tensor of the same shape, values in [-1, 1].
    """

    def __init__(self, epsilon: float = 1e-12, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def call(self, x: Any) -> Any:
        return l2_normalize(x, self.epsilon)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}


@keras.saving.register_keras_serializable("tf_fashion")
class ScaledL2Norm(_Float32Layer):
    """Scales vectors to a common, learned length: `s * x / ||x||` with one scalar weight s.

    The normalisation of TIRG (Vo et al., CVPR 2019; initial scale 4) and of the FashionIQ 2020 entry (initial scale 5). Use
    one instance for queries and targets alike. With it on both sides the dot products are `s^2 cos`.

    Args:
        initial_scale: Start value of s.
        trainable: Whether s is trained.
        epsilon: Lower bound of the squared length, so that zero vectors give zeros and not NaN.

    Call arguments:
        x: Floating tensor `(..., dim)`.

    Returns:
        float32 tensor of the same shape.
    """

    def __init__(self, initial_scale: float = 4.0, trainable: bool = True, epsilon: float = 1e-12, **kwargs: Any) -> None:
        super().__init__(trainable=trainable, **kwargs)
        self.initial_scale = initial_scale
        self.epsilon = epsilon

    def build(self, input_shape: tuple) -> None:
        self.scale = self.add_weight(
            name="scale", shape=(), initializer=keras.initializers.Constant(self.initial_scale), dtype="float32"
        )
        self.built = True

    def call(self, x: Any) -> Any:
        return self.scale * l2_normalize(x, self.epsilon)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "initial_scale": self.initial_scale, "epsilon": self.epsilon}
