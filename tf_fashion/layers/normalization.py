"""Normalisation to the unit sphere, with or without a learned radius, and the batch normalisation that all our layers use."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


def batch_norm(name: str | None = None, momentum: float = 0.9, epsilon: float = 1e-5, **kwargs: Any) -> keras.layers.BatchNormalization:
    """The batch normalisation of this library: momentum 0.9, epsilon 1e-5, statistics over all replicas.

    Without `synchronized=True` the moving statistics of the replicas of a `tf.distribute` strategy drift apart, and only the
    first replica's are saved. On one device the results are the same as without.
    """
    return keras.layers.BatchNormalization(momentum=momentum, epsilon=epsilon, synchronized=True, name=name, **kwargs)


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
