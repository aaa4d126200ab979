"""Composers without weights: the baselines that a real one has to beat."""

from __future__ import annotations

from typing import Any

import keras

from tf_fashion.composers.base import COMPOSERS, Composer


@COMPOSERS.register("image_only")
@keras.saving.register_keras_serializable("tf_fashion")
class ImageOnly(Composer):
    """The query is the reference image's feature; the text is ignored."""

    uses_text = False

    def call(self, image: Any, text: Any, training: bool | None = None) -> Any:
        return keras.ops.copy(image)


@COMPOSERS.register("text_only")
@keras.saving.register_keras_serializable("tf_fashion")
class TextOnly(Composer):
    """The query is the text feature, which must be as wide as the image feature; the image is ignored."""

    uses_image = False

    def build(self, image_shape: tuple, text_shape: tuple) -> None:
        self._require_equal_widths(image_shape, text_shape)
        self.built = True

    def call(self, image: Any, text: Any, training: bool | None = None) -> Any:
        return keras.ops.copy(text)


@COMPOSERS.register("sum")
@keras.saving.register_keras_serializable("tf_fashion")
class Sum(Composer):
    """The query is the sum of the two features, which must be equally wide."""

    def build(self, image_shape: tuple, text_shape: tuple) -> None:
        self._require_equal_widths(image_shape, text_shape)
        self.built = True

    def call(self, image: Any, text: Any, training: bool | None = None) -> Any:
        return image + text
