"""The Combiner of CLIP4Cir."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tf_fashion.composers.base import COMPOSERS, Composer


@COMPOSERS.register("combiner")
@keras.saving.register_keras_serializable("tf_fashion")
class Combiner(Composer):
    """A learned mixture of CLIP's image and text feature (Baldrati et al., CVPR Workshops 2022).

    With a = relu(Wt text), b = relu(Wv image), x = [a; b] (text first): `c + l * text + (1 - l) * image`, where
    `c = Wo relu(Wc x)` and the scalar `l = sigmoid(u . relu(U x))`. The original puts CLIP's raw features in, and trains with
    `BatchClassification(scale=100)` on unit vectors.

    Args:
        projection_width: Width of a and of b; None is 4 times the feature's, as the original has it for RN50x4 (640 -> 2560).
        hidden_width: Width of the two hidden layers on x; None is 8 times the feature's (640 -> 5120).
        dropout: Share dropped in training after each of the four relus, in [0, 1).

    Image and text must be equally wide.
    """

    def __init__(
        self, projection_width: int | None = None, hidden_width: int | None = None, dropout: float = 0.5, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.projection_width = projection_width
        self.hidden_width = hidden_width
        self.dropout = dropout

    def build(self, image_shape: tuple, text_shape: tuple) -> None:
        self._require_equal_widths(image_shape, text_shape)
        dim = image_shape[-1]
        projected, hidden = self.projection_width or 4 * dim, self.hidden_width or 8 * dim
        layers = {"dtype": self.dtype_policy}
        self.text_projection = keras.layers.Dense(projected, name="text_projection", **layers)
        self.image_projection = keras.layers.Dense(projected, name="image_projection", **layers)
        self.mixture_hidden = keras.layers.Dense(hidden, name="mixture_hidden", **layers)
        self.mixture_out = keras.layers.Dense(dim, name="mixture_out", **layers)
        self.balance_hidden = keras.layers.Dense(hidden, name="balance_hidden", **layers)
        self.balance_out = keras.layers.Dense(1, name="balance_out", **layers)
        self.drop = keras.layers.Dropout(self.dropout, name="drop", **layers)
        for layer, width in (
            (self.text_projection, dim),
            (self.image_projection, dim),
            (self.mixture_hidden, 2 * projected),
            (self.mixture_out, hidden),
            (self.balance_hidden, 2 * projected),
            (self.balance_out, hidden),
            (self.drop, dim),
        ):
            layer.build((None, width))
        self.built = True

    def _hidden(self, layer: keras.layers.Layer, x: Any, training: bool | None) -> Any:
        return self.drop(ops.relu(layer(x)), training=training)

    def projections(self, image: Any, text: Any, training: bool | None = None) -> tuple[Any, Any]:
        """The projected text a and image b, both `(batch, projection_width)`, values >= 0."""
        return self._hidden(self.text_projection, text, training), self._hidden(self.image_projection, image, training)

    def branches(self, projected_text: Any, projected_image: Any, training: bool | None = None) -> tuple[Any, Any]:
        """From the projections: the text's share l `(batch, 1)` in (0, 1) and the learned part c `(batch, dim)`."""
        x = ops.concatenate([projected_text, projected_image], axis=-1)
        share = ops.sigmoid(self.balance_out(self._hidden(self.balance_hidden, x, training)))
        return share, self.mixture_out(self._hidden(self.mixture_hidden, x, training))

    def call(self, image: Any, text: Any, training: bool | None = None) -> Any:
        share, learned = self.branches(*self.projections(image, text, training), training=training)
        return learned + share * text + (1.0 - share) * image

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "projection_width": self.projection_width,
            "hidden_width": self.hidden_width,
            "dropout": self.dropout,
        }
