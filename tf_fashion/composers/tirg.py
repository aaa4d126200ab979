"""TIRG: text-image residual gating, on vectors and on the last feature map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tf_fashion.composers.base import COMPOSERS, Composer
from tf_fashion.core.errors import UsageError
from tf_fashion.layers import batch_norm


class _GatedResidual(Composer):
    """`a0 * sigmoid(gate) * image + a1 * residual` with two learned scalars a; subclasses define the two branches.

    Args:
        initial_scalars: Start values of a0 (gated image) and a1 (residual).
        trainable_scalars: Whether a is trained. The FashionIQ 2020 entry never trained it, by mistake: `legacy_frozen_scalars`
            in its own terms is `trainable_scalars=False`.
    """

    normalizes_text = True

    def __init__(self, initial_scalars: Sequence[float] = (1.0, 10.0), trainable_scalars: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if len(initial_scalars) != 2:
            raise UsageError(f"initial_scalars: expected two numbers (gated image, residual), found {initial_scalars!r}.")
        self.initial_scalars = tuple(float(a) for a in initial_scalars)
        self.trainable_scalars = trainable_scalars

    def build(self, image_shape: tuple, text_shape: tuple) -> None:
        self.scalars = self.add_weight(
            name="scalars",
            shape=(2,),
            initializer=lambda shape, dtype: ops.convert_to_tensor(self.initial_scalars, dtype),
            trainable=self.trainable_scalars,
        )
        self._build_branches(image_shape, text_shape)
        self.built = True

    def _build_branches(self, image_shape: tuple, text_shape: tuple) -> None:
        raise NotImplementedError

    def _gate(self, x: Any, training: bool | None) -> Any:
        raise NotImplementedError

    def _residual(self, x: Any, training: bool | None) -> Any:
        raise NotImplementedError

    def _join(self, image: Any, text: Any) -> Any:
        return ops.concatenate([image, text], axis=-1)

    def branches(self, image: Any, text: Any, training: bool | None = None) -> tuple[Any, Any]:
        """The gate before its sigmoid and the residual, both of the shape of `image`."""
        x = self._join(image, text)
        return self._gate(x, training), self._residual(x, training)

    def call(self, image: Any, text: Any, training: bool | None = None) -> Any:
        gate, residual = self.branches(image, text, training)
        scalars = ops.cast(self.scalars, gate.dtype)
        return scalars[0] * ops.sigmoid(gate) * image + scalars[1] * residual

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "initial_scalars": list(self.initial_scalars),
            "trainable_scalars": self.trainable_scalars,
        }


@COMPOSERS.register("tirg")
@keras.saving.register_keras_serializable("tf_fashion")
class TIRG(_GatedResidual):
    """TIRG as published (Vo et al., CVPR 2019).

    With x = [image; text]: gate `W relu(BN(x))`, residual `W relu(W relu(BN(x)))`.
    """

    def _build_branches(self, image_shape: tuple, text_shape: tuple) -> None:
        dim, width = image_shape[-1], image_shape[-1] + text_shape[-1]
        layers = {"dtype": self.dtype_policy}
        self.gate_norm = batch_norm("gate_norm", **layers)
        self.gate_out = keras.layers.Dense(dim, name="gate_out", **layers)
        self.residual_norm = batch_norm("residual_norm", **layers)
        self.residual_hidden = keras.layers.Dense(width, name="residual_hidden", **layers)
        self.residual_out = keras.layers.Dense(dim, name="residual_out", **layers)
        for layer in (self.gate_norm, self.gate_out, self.residual_norm, self.residual_hidden, self.residual_out):
            layer.build((None, width))

    def _gate(self, x: Any, training: bool | None) -> Any:
        return self.gate_out(ops.relu(self.gate_norm(x, training=training)))

    def _residual(self, x: Any, training: bool | None) -> Any:
        x = ops.relu(self.residual_norm(x, training=training))
        return self.residual_out(ops.relu(self.residual_hidden(x)))


@COMPOSERS.register("tirg_fiq2020")
@keras.saving.register_keras_serializable("tf_fashion")
class TIRGFashionIQ2020(TIRG):
    """TIRG with a two-layer gate, `W relu(BN(W relu(BN(x))))`: the composer of the FashionIQ 2020 entry of M. Shin et al."""

    def _build_branches(self, image_shape: tuple, text_shape: tuple) -> None:
        super()._build_branches(image_shape, text_shape)
        width = image_shape[-1] + text_shape[-1]
        self.gate_hidden = keras.layers.Dense(width, name="gate_hidden", dtype=self.dtype_policy)
        self.gate_hidden_norm = batch_norm("gate_hidden_norm", dtype=self.dtype_policy)
        self.gate_hidden.build((None, width))
        self.gate_hidden_norm.build((None, width))

    def _gate(self, x: Any, training: bool | None) -> Any:
        x = self.gate_hidden(ops.relu(self.gate_norm(x, training=training)))
        return self.gate_out(ops.relu(self.gate_hidden_norm(x, training=training)))


@COMPOSERS.register("tirg_lastconv")
@keras.saving.register_keras_serializable("tf_fashion")
class TIRGLastConv(_GatedResidual):
    """TIRG on the last feature map (Vo et al., CVPR 2019): the text is repeated at every place of the map.

    Each branch is BN -> 3x3 convolution (same width) -> relu -> 3x3 convolution to the map's channels, zero padding. The model
    pools and projects the modified map exactly as it does the target's map.
    """

    spatial = True

    def _build_branches(self, image_shape: tuple, text_shape: tuple) -> None:
        if len(image_shape) != 4:
            raise UsageError(
                f"TIRGLastConv works on feature maps (batch, height, width, channels); found image features of shape "
                f"{tuple(image_shape)}. Give it the map before pooling."
            )
        channels, width = image_shape[-1], image_shape[-1] + text_shape[-1]
        for branch in ("gate", "residual"):
            parts = {
                "norm": batch_norm(f"{branch}_norm", dtype=self.dtype_policy),
                "hidden": keras.layers.Conv2D(width, 3, padding="same", name=f"{branch}_hidden", dtype=self.dtype_policy),
                "out": keras.layers.Conv2D(channels, 3, padding="same", name=f"{branch}_out", dtype=self.dtype_policy),
            }
            for part, layer in parts.items():
                layer.build((None, None, None, width))
                setattr(self, f"{branch}_{part}", layer)

    def _join(self, image: Any, text: Any) -> Any:
        shape = ops.shape(image)
        text = ops.broadcast_to(text[:, None, None, :], (shape[0], shape[1], shape[2], text.shape[-1]))
        return ops.concatenate([image, text], axis=-1)

    def _gate(self, x: Any, training: bool | None) -> Any:
        return self.gate_out(ops.relu(self.gate_hidden(self.gate_norm(x, training=training))))

    def _residual(self, x: Any, training: bool | None) -> Any:
        return self.residual_out(ops.relu(self.residual_hidden(self.residual_norm(x, training=training))))
