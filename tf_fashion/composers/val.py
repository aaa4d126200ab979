"""VAL: visiolinguistic attention at one or several levels of a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from tf_fashion.composers.base import COMPOSERS, Composer
from tf_fashion.core.errors import UsageError
from tf_fashion.layers import VisiolinguisticAttention


@COMPOSERS.register("val")
@keras.saving.register_keras_serializable("tf_fashion")
class VAL(Composer):
    """One `VisiolinguisticAttention` per feature map, all with the same sentence (Chen et al., CVPR 2020).

    Nothing is mixed between the levels: each has its own module, its own loss, and its own slice of the embedding.

    Args:
        attention: Arguments of the modules, such as `{"activation": "relu6", "gate_activation": False}`.

    Call arguments:
        image: A list of maps `(batch, height, width, channels)`, one per level, or a single map.
        text: Floating tensor `(batch, text_dim)`.

    Returns:
        Maps of the same shapes, as a list if a list was given.
    """

    spatial = True
    multilevel = True

    def __init__(self, attention: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.attention = dict(attention or {})

    def build(self, image_shape: Any, text_shape: tuple) -> None:
        shapes = [image_shape] if isinstance(image_shape[-1], int) else list(image_shape)
        if any(len(shape) != 4 for shape in shapes):
            raise UsageError(f"VAL works on feature maps (batch, height, width, channels); found features of shape {image_shape}.")
        self.levels = []
        for number, shape in enumerate(shapes):
            level = VisiolinguisticAttention(**self.attention, name=f"attention{number}", dtype=self.dtype_policy)
            level.build(tuple(shape), tuple(text_shape))
            self.levels.append(level)
        self.built = True

    def call(self, image: Any, text: Any, training: bool | None = None) -> Any:
        if not isinstance(image, (list, tuple)):
            return self.levels[0](image, text, training=training)
        return [level(x, text, training=training) for level, x in zip(self.levels, image, strict=True)]

    def compute_output_shape(self, image_shape: Any, text_shape: tuple) -> Any:
        return image_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "attention": self.attention}
