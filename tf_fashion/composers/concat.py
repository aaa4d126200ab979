"""Concatenation and a two-layer perceptron."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tf_fashion.composers.base import COMPOSERS, Composer
from tf_fashion.layers import batch_norm


@COMPOSERS.register("concat")
@keras.saving.register_keras_serializable("tf_fashion")
class Concat(Composer):
    """`W2 drop(relu(BN(W1 relu(BN([image; text])))))`, the concatenation baseline of TIRG (Vo et al., CVPR 2019).

    W1 keeps the width of the concatenation, W2 leads to the image feature's width.

    Args:
        dropout: Share of the hidden units that is dropped in training, in [0, 1).
    """

    normalizes_text = True

    def __init__(self, dropout: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dropout = dropout

    def build(self, image_shape: tuple, text_shape: tuple) -> None:
        width = image_shape[-1] + text_shape[-1]
        layers = {"dtype": self.dtype_policy}
        self.norm_in = batch_norm("norm_in", **layers)
        self.hidden = keras.layers.Dense(width, name="hidden", **layers)
        self.norm_hidden = batch_norm("norm_hidden", **layers)
        self.drop = keras.layers.Dropout(self.dropout, name="drop", **layers)
        self.out = keras.layers.Dense(image_shape[-1], name="out", **layers)
        for layer in (self.norm_in, self.hidden, self.norm_hidden, self.drop, self.out):
            layer.build((None, width))
        self.built = True

    def call(self, image: Any, text: Any, training: bool | None = None) -> Any:
        x = ops.relu(self.norm_in(ops.concatenate([image, text], axis=-1), training=training))
        x = ops.relu(self.norm_hidden(self.hidden(x), training=training))
        return self.out(self.drop(x, training=training))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dropout": self.dropout}
