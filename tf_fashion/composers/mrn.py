"""MRN: multimodal residual networks."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tf_fashion.composers.base import COMPOSERS, Composer


@COMPOSERS.register("mrn")
@keras.saving.register_keras_serializable("tf_fashion")
class MRN(Composer):
    """One block of the Multimodal Residual Network (Kim et al., NIPS 2016), the text being what is kept.

    `tanh(W2 drop(tanh(W1 drop(image)))) * tanh(W3 drop(text)) + W4 drop(text)`, all results as wide as the image.

    Args:
        dropout: Share of the features dropped in training before each dense layer, in [0, 1).
    """

    def __init__(self, dropout: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dropout = dropout

    def build(self, image_shape: tuple, text_shape: tuple) -> None:
        dim, layers = image_shape[-1], {"dtype": self.dtype_policy}
        self.image_hidden = keras.layers.Dense(dim, name="image_hidden", **layers)
        self.image_out = keras.layers.Dense(dim, name="image_out", **layers)
        self.text_out = keras.layers.Dense(dim, name="text_out", **layers)
        self.shortcut = keras.layers.Dense(dim, name="shortcut", **layers)
        self.drop = keras.layers.Dropout(self.dropout, name="drop", **layers)
        for layer in (self.image_hidden, self.image_out, self.drop):
            layer.build((None, dim))
        for layer in (self.text_out, self.shortcut):
            layer.build((None, text_shape[-1]))
        self.built = True

    def call(self, image: Any, text: Any, training: bool | None = None) -> Any:
        x = ops.tanh(self.image_hidden(self.drop(image, training=training)))
        x = ops.tanh(self.image_out(self.drop(x, training=training)))
        t = ops.tanh(self.text_out(self.drop(text, training=training)))
        return x * t + self.shortcut(self.drop(text, training=training))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dropout": self.dropout}
