"""What all composers have in common."""

from __future__ import annotations

import threading
from typing import Any

import keras

from tf_fashion.core.errors import UsageError
from tf_fashion.core.registry import Registry

COMPOSERS: Registry[type[Composer]] = Registry("composer")


class Composer(keras.layers.Layer):
    """Base of the layers that turn a reference image's feature and a text feature into the feature of the wanted image.

    To add one: a file in this folder with a subclass, registered with `@COMPOSERS.register(name)` and
    `@keras.saving.register_keras_serializable("tf_fashion")`, that creates its weights in `build(image_shape, text_shape)`
    and returns all constructor arguments from `get_config`. `tf_fashion.testing.contracts.run_composer_test` then checks the
    promises below. Losses of the composer's own go through `self.add_loss` inside `call`.

    Class attributes:
        spatial: False: image features are vectors `(batch, dim)`. True: they are maps `(batch, height, width, channels)` and the
            composer returns a map of the same shape, which the model pools and projects as it does the target's.
        multilevel: A spatial composer that takes a list of maps, one per tap of the image encoder, and returns such a list.
        uses_image, uses_text: Whether the query depends on the input. A model need not encode what is not used.
        normalizes_text: The text feature only enters through a batch normalisation, so that its mean has no effect.

    Call arguments:
        image: Floating tensor `(batch, dim)`, or `(batch, height, width, channels)` if `spatial`.
        text: Floating tensor `(batch, text_dim)`.
        training: Whether batch statistics and dropout are used.

    Returns:
        Query, not normalised, of the shape of `image`.
    """

    spatial = False
    multilevel = False
    uses_image = True
    uses_text = True
    normalizes_text = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._of_this_replica = threading.local()

    def build(self, image_shape: tuple, text_shape: tuple) -> None:
        self.built = True

    def call(self, image: Any, text: Any, training: bool | None = None) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must define call(image, text, training)")

    def compute_output_shape(self, image_shape: tuple, text_shape: tuple) -> tuple:
        return tuple(image_shape)

    # The replicas of a MirroredStrategy are threads that share this layer, and Keras' list of added losses: each must see its own.

    def add_loss(self, loss: Any) -> None:
        """As in Keras; each replica of a `tf.distribute` strategy finds the losses of its own rows in `losses`."""
        known = [x for x in self._added_here() if any(x is y for y in self._losses)]
        self._of_this_replica.losses = [*known, *keras.tree.flatten(loss)]
        super().add_loss(loss)

    def _added_here(self) -> list[Any]:
        return getattr(self._of_this_replica, "losses", [])

    def _get_own_losses(self) -> list[Any]:
        return [x for x in super()._get_own_losses() if any(x is y for y in self._added_here())]

    def _require_equal_widths(self, image_shape: tuple, text_shape: tuple) -> None:
        if image_shape[-1] != text_shape[-1]:
            raise UsageError(
                f"{type(self).__name__} needs image and text features of equal width; found {image_shape[-1]} for the image and "
                f"{text_shape[-1]} for the text. Set the text encoder's `dim` to {image_shape[-1]}."
            )
