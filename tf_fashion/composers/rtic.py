"""RTIC: residual text and image composition."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tf_fashion.composers.base import COMPOSERS, Composer
from tf_fashion.core.errors import UsageError
from tf_fashion.layers import batch_norm


@keras.saving.register_keras_serializable("tf_fashion")
class ErrorEncoding(keras.layers.Layer):
    """RTIC's residual block `f + W3 act(BN(W2 act(BN(W1 f))))`, half as wide inside, act = leaky relu.

    Args:
        slope: Slope of the leaky relu below zero.

    Call arguments:
        x: Floating tensor `(batch, dim)`.
        training: Whether batch statistics are used.

    Returns:
        Tensor `(batch, dim)`.
    """

    def __init__(self, slope: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.slope = slope

    def build(self, x_shape: tuple) -> None:
        dim = x_shape[-1]
        half = max(dim // 2, 1)
        layers = {"dtype": self.dtype_policy}
        self.down = keras.layers.Dense(half, name="down", **layers)
        self.down_norm = batch_norm("down_norm", **layers)
        self.middle = keras.layers.Dense(half, name="middle", **layers)
        self.middle_norm = batch_norm("middle_norm", **layers)
        self.up = keras.layers.Dense(dim, name="up", **layers)
        self.down.build((None, dim))
        for layer in (self.down_norm, self.middle, self.middle_norm, self.up):
            layer.build((None, half))
        self.built = True

    def call(self, x: Any, training: bool | None = None) -> Any:
        error = ops.leaky_relu(self.down_norm(self.down(x), training=training), self.slope)
        error = ops.leaky_relu(self.middle_norm(self.middle(error), training=training), self.slope)
        return x + self.up(error)

    def compute_output_shape(self, x_shape: tuple) -> tuple:
        return tuple(x_shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "slope": self.slope}


@COMPOSERS.register("rtic")
@keras.saving.register_keras_serializable("tf_fashion")
class RTIC(Composer):
    """Residual Text and Image Composer (Shin et al., arXiv 2104.03015).

    With act = leaky relu: the fusion `f0 = W act(BN([image; text]))`, the gate `g = W act(BN(W f0))`, a chain of `ErrorEncoding`
    blocks from f0 to fn, and the query `sigmoid(g) * image + (1 - sigmoid(g)) * fn`.

    Args:
        blocks: Number n of error-encoding blocks (4 in the paper's unified setting, 1 in the tuned one).
        slope: Slope of the leaky relu below zero.

    Raises:
        UsageError: `blocks` is negative.
    """

    normalizes_text = True

    def __init__(self, blocks: int = 4, slope: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if blocks < 0:
            raise UsageError(f"RTIC(blocks=...): expected 0 or more error-encoding blocks, found {blocks!r}.")
        self.blocks = blocks
        self.slope = slope

    def build(self, image_shape: tuple, text_shape: tuple) -> None:
        dim, width = image_shape[-1], image_shape[-1] + text_shape[-1]
        layers = {"dtype": self.dtype_policy}
        self.fusion_norm = batch_norm("fusion_norm", **layers)
        self.fusion_out = keras.layers.Dense(dim, name="fusion_out", **layers)
        self.gate_hidden = keras.layers.Dense(dim, name="gate_hidden", **layers)
        self.gate_norm = batch_norm("gate_norm", **layers)
        self.gate_out = keras.layers.Dense(dim, name="gate_out", **layers)
        self.encoders = [ErrorEncoding(self.slope, name=f"error_encoding_{k}", **layers) for k in range(self.blocks)]
        self.fusion_norm.build((None, width))
        self.fusion_out.build((None, width))
        for layer in (self.gate_hidden, self.gate_norm, self.gate_out, *self.encoders):
            layer.build((None, dim))
        self.built = True

    def branches(self, image: Any, text: Any, training: bool | None = None) -> tuple[Any, Any]:
        """The gate before its sigmoid and the fused feature fn after the blocks, both `(batch, dim)`."""
        x = ops.concatenate([image, text], axis=-1)
        fused = self.fusion_out(ops.leaky_relu(self.fusion_norm(x, training=training), self.slope))
        gate = self.gate_norm(self.gate_hidden(fused), training=training)
        gate = self.gate_out(ops.leaky_relu(gate, self.slope))
        for encoder in self.encoders:
            fused = encoder(fused, training=training)
        return gate, fused

    def call(self, image: Any, text: Any, training: bool | None = None) -> Any:
        gate, fused = self.branches(image, text, training)
        kept = ops.sigmoid(gate)
        return kept * image + (1.0 - kept) * fused

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "blocks": self.blocks, "slope": self.slope}
