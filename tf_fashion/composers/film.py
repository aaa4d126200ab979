"""FiLM: feature-wise linear modulation of a feature map by the text."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tf_fashion.composers.base import COMPOSERS, Composer
from tf_fashion.core.errors import UsageError
from tf_fashion.layers import batch_norm


@COMPOSERS.register("film")
@keras.saving.register_keras_serializable("tf_fashion")
class FiLM(Composer):
    """Residual blocks whose batch normalisation takes its scale g and shift b from the text (Perez et al., AAAI 2018).

    A block: `x <- relu(g * BN(conv3x3(r)) + b) + r` with `r = relu(conv1x1(x))`; BN has no parameters of its own, the 3x3
    convolution no bias and zero padding. One dense layer on the text gives g and b of all blocks, in the order g0, b0, g1, b1, ...
    The model pools and projects the resulting map exactly as it does the target's map.

    Args:
        blocks: Number of blocks, at least 1.
        legacy_padding: The 1x1 convolution pads its map with a border of zeros, so that the map grows by 2 in height and width
            with every block and its border is the bias, as in RTIC's code.

    Raises:
        UsageError: no block, or image features that are no maps.
    """

    spatial = True

    def __init__(self, blocks: int = 4, legacy_padding: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if blocks < 1:
            raise UsageError(f"FiLM(blocks=...): expected at least 1 block, found {blocks!r}.")
        self.blocks = blocks
        self.legacy_padding = legacy_padding

    def build(self, image_shape: tuple, text_shape: tuple) -> None:
        if len(image_shape) != 4:
            raise UsageError(
                f"FiLM works on feature maps (batch, height, width, channels); found image features of shape "
                f"{tuple(image_shape)}. Give it the map before pooling."
            )
        channels, layers = image_shape[-1], {"dtype": self.dtype_policy}
        self.modulation = keras.layers.Dense(2 * self.blocks * channels, name="modulation", **layers)
        self.modulation.build((None, text_shape[-1]))
        self.pointwise, self.spread, self.norms = [], [], []
        for k in range(self.blocks):
            self.pointwise.append(keras.layers.Conv2D(channels, 1, name=f"pointwise_{k}", **layers))
            self.spread.append(keras.layers.Conv2D(channels, 3, padding="same", use_bias=False, name=f"spread_{k}", **layers))
            self.norms.append(batch_norm(f"norm_{k}", center=False, scale=False, **layers))
        for layer in (*self.pointwise, *self.spread, *self.norms):
            layer.build((None, None, None, channels))
        self.built = True

    def call(self, image: Any, text: Any, training: bool | None = None) -> Any:
        modulation = ops.split(self.modulation(text)[:, None, None, :], 2 * self.blocks, axis=-1)
        x = image
        for k in range(self.blocks):
            scale, shift = modulation[2 * k : 2 * k + 2]
            if self.legacy_padding:
                x = ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
            x = ops.relu(self.pointwise[k](x))
            x = x + ops.relu(scale * self.norms[k](self.spread[k](x), training=training) + shift)
        return x

    def compute_output_shape(self, image_shape: tuple, text_shape: tuple) -> tuple:
        if not self.legacy_padding:
            return tuple(image_shape)
        height, width = (None if side is None else side + 2 * self.blocks for side in image_shape[1:3])
        return (image_shape[0], height, width, image_shape[3])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "blocks": self.blocks, "legacy_padding": self.legacy_padding}
