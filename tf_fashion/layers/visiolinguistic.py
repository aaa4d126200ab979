"""Visiolinguistic attention: a sentence decides what of a feature map is kept and what is changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tf_fashion.core.errors import UsageError
from tf_fashion.layers.normalization import batch_norm

ACTIVATIONS = ("relu", "relu6")


@keras.saving.register_keras_serializable("tf_fashion")
class VisiolinguisticAttention(keras.layers.Layer):
    """The composition module of VAL (Chen et al., CVPR 2020) for one feature map.

    With V the map, t the sentence, act a rectifier and BN a batch normalisation:

    * fusion `F = act(BN(W [V; t]))`, the sentence repeated at every place of the map;
    * joint attention `J = sigmoid(c) * sigmoid(s)` with a gate per channel `c = act(BN(W mean_space(F)))` and a gate per place
      `s = act(BN(conv(mean_channels(F))))`, whose kernel covers the whole map;
    * self-attention `S = act(BN(W [A_1 Q_1; A_2 Q_2]))` over the places of F, with `A = softmax(K W^T / sqrt(d))` per head;
    * result `r J V + s S` with two learned numbers r and s.

    Args:
        activation: "relu" (as with ResNet backbones) or "relu6" (as with MobileNets).
        heads: Heads of the self-attention; the channels must be divisible by it.
        attention_dropout: Share of the attention weights dropped in training.
        gate_activation: Whether the rectifier stands before the gates' sigmoid, as in the released program, which keeps each gate
            in [0.5, 1). False lets a gate close.
        signed_change: Leaves out the rectifier of S. As released, S is never negative, which fits maps that are not either; maps
            that are normalised, or come from a linear layer, have to be changed both ways.
        spatial_kernel: Side of the kernel of the gate per place; None for the size of the map, which binds the weights to it.
        initial_weights: Start values of r and s.
        norm_momentum, norm_epsilon: Of the batch normalisations (the originals: 0.9997 and 1e-3 with MobileNets, 0.997 and
            1e-5 with ResNets, which need thousands of steps before the moving statistics are of use).

    Call arguments:
        image: Floating tensor `(batch, height, width, channels)`.
        text: Floating tensor `(batch, text_dim)`.
        training: Whether batch statistics and dropout are used.

    Returns:
        Tensor of the shape of `image`.

    Raises:
        UsageError: an option out of range, or a map that does not fit.
    """

    def __init__(
        self,
        activation: str = "relu",
        heads: int = 2,
        attention_dropout: float = 0.1,
        gate_activation: bool = True,
        signed_change: bool = False,
        spatial_kernel: int | None = None,
        initial_weights: Sequence[float] = (1.0, 0.0),
        norm_momentum: float = 0.9,
        norm_epsilon: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if activation not in ACTIVATIONS:
            raise UsageError(f"VisiolinguisticAttention(activation=...): expected relu or relu6, found {activation!r}.")
        if len(initial_weights) != 2:
            raise UsageError(f"VisiolinguisticAttention(initial_weights=...): expected two numbers, found {initial_weights!r}.")
        if heads < 1 or (spatial_kernel is not None and spatial_kernel < 1):
            raise UsageError("VisiolinguisticAttention: heads and spatial_kernel must be at least 1.")
        self.activation = activation
        self.heads = heads
        self.attention_dropout = attention_dropout
        self.gate_activation = gate_activation
        self.signed_change = signed_change
        self.spatial_kernel = spatial_kernel
        self.initial_weights = tuple(float(w) for w in initial_weights)
        self.norm_momentum = norm_momentum
        self.norm_epsilon = norm_epsilon

    def _norm(self, name: str, *shape: int | None) -> keras.layers.Layer:
        layer = batch_norm(f"{name}_norm", self.norm_momentum, self.norm_epsilon, dtype=self.dtype_policy)
        layer.build((None, *shape))
        return layer

    def _dense(self, name: str, inputs: int, outputs: int) -> keras.layers.Layer:
        layer = keras.layers.Dense(outputs, use_bias=False, kernel_initializer="he_normal", name=name, dtype=self.dtype_policy)
        layer.build((None, inputs))
        return layer

    def build(self, image_shape: tuple, text_shape: tuple) -> None:
        if len(image_shape) != 4 or None in image_shape[1:]:
            raise UsageError(
                "VisiolinguisticAttention works on feature maps (batch, height, width, channels) of known size; found "
                f"{tuple(image_shape)}."
            )
        height, width, channels = image_shape[1:]
        if channels % self.heads:
            raise UsageError(f"VisiolinguisticAttention: {channels} channels cannot be split among {self.heads} heads.")
        self.join, self.join_norm = (
            self._dense("join", channels + text_shape[-1], channels),
            self._norm("join", height, width, channels),
        )
        self.channel, self.channel_norm = self._dense("channel", channels, channels), self._norm("channel", channels)
        side = self.spatial_kernel
        self.spatial = keras.layers.Conv2D(
            1,
            (height, width) if side is None else side,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            name="spatial",
            dtype=self.dtype_policy,
        )
        self.spatial.build((None, height, width, 1))
        self.spatial_norm = self._norm("spatial", height, width, 1)
        # Per head the three maps K, W, Q side by side: one product in place of three. Glorot's limit is that of a single map.
        part = channels // self.heads
        limit = (3.0 / part) ** 0.5
        self.attention_maps = self.add_weight(
            name="attention_maps",
            shape=(self.heads, part, 3 * part),
            initializer=keras.initializers.RandomUniform(-limit, limit),
        )
        self.out, self.out_norm = self._dense("out", channels, channels), self._norm("out", height, width, channels)
        for name, value in zip(("joint_weight", "self_weight"), self.initial_weights, strict=True):
            setattr(self, name, self.add_weight(name=name, shape=(), initializer=keras.initializers.Constant(value)))
        self.drop = keras.layers.Dropout(self.attention_dropout, name="attention_dropout", dtype="float32")
        self.built = True

    def _act(self, x: Any) -> Any:
        return ops.relu6(x) if self.activation == "relu6" else ops.relu(x)

    def _gate(self, x: Any) -> Any:
        return self._act(x) if self.gate_activation else x

    def parts(self, image: Any, text: Any, training: bool | None = None) -> dict[str, Any]:
        """Everything that the module computes.

        Returns:
            `fused` `(batch, h, w, channels)`; `channel_gate` `(batch, 1, 1, channels)` and `spatial_gate` `(batch, h, w, 1)` before
            the sigmoid; `attention`, one float32 `(batch, h*w, h*w)` per head, rows summing to 1 (before dropout); `heads`, the
            heads' results `(batch, h, w, channels)`; `self_attention` `(batch, h, w, channels)`; `output`.
        """
        image = ops.cast(image, self.compute_dtype)
        text = ops.cast(text, self.compute_dtype)
        _, height, width, channels = image.shape
        # W [V; t] as W_V V + W_t t: the sentence's share is computed once per map and not at every place.
        kernel = ops.cast(self.join.kernel, self.compute_dtype)
        joined = tf.nn.convolution(image, kernel[None, None, :channels]) + ops.matmul(text, kernel[channels:])[:, None, None, :]
        fused = self._act(self.join_norm(joined, training=training))
        channel = self._gate(self.channel_norm(self.channel(ops.mean(fused, axis=(1, 2))), training=training))
        spatial = self.spatial_norm(self.spatial(ops.mean(fused, axis=3, keepdims=True)), training=training)
        spatial = self._gate(spatial)

        part = channels // self.heads
        attention, results = [], []
        for head in range(self.heads):
            x = ops.reshape(fused[..., head * part : (head + 1) * part], (-1, height * width, part))
            maps = ops.matmul(x, ops.cast(self.attention_maps[head], x.dtype))
            k, w, q = (maps[..., i * part : (i + 1) * part] for i in range(3))
            scores = ops.cast(tf.matmul(k, w, transpose_b=True), "float32") / part**0.5
            weights = tf.nn.softmax(scores, axis=-1)
            attention.append(weights)
            results.append(ops.matmul(ops.cast(self.drop(weights, training=training), q.dtype), q))
        heads = ops.reshape(ops.concatenate(results, axis=-1), (-1, height, width, channels))
        attended = self.out_norm(self.out(heads), training=training)
        attended = attended if self.signed_change else self._act(attended)
        channel = channel[:, None, None, :]
        joint = ops.sigmoid(channel) * ops.sigmoid(spatial)
        output = ops.cast(self.joint_weight, image.dtype) * joint * image + ops.cast(self.self_weight, image.dtype) * attended
        return {
            "fused": fused,
            "channel_gate": channel,
            "spatial_gate": spatial,
            "attention": attention,
            "heads": heads,
            "self_attention": attended,
            "output": output,
        }

    def call(self, image: Any, text: Any, training: bool | None = None) -> Any:
        return self.parts(image, text, training)["output"]

    def compute_output_shape(self, image_shape: tuple, text_shape: tuple) -> tuple:
        return tuple(image_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "activation": self.activation,
            "heads": self.heads,
            "attention_dropout": self.attention_dropout,
            "gate_activation": self.gate_activation,
            "signed_change": self.signed_change,
            "spatial_kernel": self.spatial_kernel,
            "initial_weights": list(self.initial_weights),
            "norm_momentum": self.norm_momentum,
            "norm_epsilon": self.norm_epsilon,
        }
