"""From backbone features to the space in which items are compared."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tf_fashion.core.errors import UsageError
from tf_fashion.layers.normalization import batch_norm

PROJECTIONS = ("linear", "mlp", "none")


@keras.saving.register_keras_serializable("tf_fashion")
class ProjectionHead(keras.layers.Layer):
    """Normalises, pools a map (if it is one), and projects.

    The two halves are there by themselves too: composers that work on maps stand between `normalize` and `project`, so that only
    features as the backbone gives them pass the normalisation, whose statistics are those of photos.

    Args:
        dim: Width of the result; with "none" it is the width of the features.
        kind: "linear" (one dense layer, as the originals), "mlp" (dense, gelu, dropout, dense, plus a linear shortcut), "none".
        norm: Whether a batch normalisation (per channel) comes first. Features of several taps and descriptors have very different
            sizes and need it.
        dropout: Share of the features dropped in training.

    Call arguments:
        features: `(batch, width)`, or a map `(batch, height, width, channels)`, whose mean over the places is taken.

    Returns:
        `(batch, dim)`, not normalised.

    Raises:
        UsageError: unknown `kind`.
    """

    def __init__(self, dim: int, kind: str = "linear", norm: bool = False, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if kind not in PROJECTIONS:
            raise UsageError(f"projection: expected one of {', '.join(PROJECTIONS)}; found {kind!r}.")
        self.dim = dim
        self.kind = kind
        self.use_norm = norm
        self.dropout = dropout

    def build(self, input_shape: tuple) -> None:
        width = input_shape[-1]
        self.norm = batch_norm("norm", dtype="float32") if self.use_norm else None
        self.drop = keras.layers.Dropout(self.dropout, name="dropout", dtype=self.dtype_policy)
        if self.norm is not None:
            self.norm.build((None, *input_shape[1:]))
        if self.kind != "none":
            self.out = keras.layers.Dense(self.dim, name="out", dtype=self.dtype_policy)
            self.out.build((None, width))
        if self.kind == "mlp":
            self.hidden = keras.layers.Dense(2 * self.dim, activation="gelu", name="hidden", dtype=self.dtype_policy)
            self.hidden_drop = keras.layers.Dropout(self.dropout, name="hidden_dropout", dtype=self.dtype_policy)
            self.hidden_out = keras.layers.Dense(self.dim, name="hidden_out", dtype=self.dtype_policy)
            self.hidden.build((None, width))
            self.hidden_out.build((None, 2 * self.dim))
        self.built = True

    def call(self, features: Any, training: bool | None = None) -> Any:
        return self.project(self.normalize(features, training), training)

    def normalize(self, features: Any, training: bool | None = None) -> Any:
        """The first half: float32, same shape."""
        x = ops.cast(features, "float32")
        return x if self.norm is None else self.norm(x, training=training)

    def project(self, features: Any, training: bool | None = None) -> Any:
        """The second half: pooled, with dropout, `(batch, dim)`."""
        x = ops.mean(features, axis=(1, 2)) if len(features.shape) == 4 else features
        x = self.drop(x, training=training)
        if self.kind == "none":
            return x
        y = self.out(x)
        if self.kind == "mlp":
            y = y + self.hidden_out(self.hidden_drop(self.hidden(x), training=training))
        return y

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (input_shape[0], input_shape[-1] if self.kind == "none" else self.dim)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dim": self.dim, "kind": self.kind, "norm": self.use_norm, "dropout": self.dropout}
