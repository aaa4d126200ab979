"""`AttributeClassifier`: which labels of several groups (category, colour, pattern, ...) a photo shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_fashion.core.errors import UsageError
from tf_fashion.datasets.labels import LabelMap
from tf_fashion.layers import LabelCorrelation, l2_normalize
from tf_fashion.layers.label_correlation import label_probabilities
from tf_fashion.layers.normalization import batch_norm
from tf_fashion.losses.multilabel import MULTILABEL_LOSSES
from tf_fashion.models.base import RetrievalModel, load_as


@keras.saving.register_keras_serializable("tf_fashion")
class AttributeClassifier(RetrievalModel):
    """A network with one logit per label (multi-label classification), and an embedding by which alike items are found.

    Without hidden layers it is the published iMaterialist model (Prinzler, VisualFashionAttributePrediction): a backbone, mean pooling
    and one dense layer.

    Args:
        image_encoder: `ImageEncoder` or `SavedModelEncoder`, giving vectors. Frozen ones run in inference mode.
        label_map: The labels; their order is that of the logits.
        hidden: Widths of dense layers (swish) between features and logits.
        exclusive: Groups (tasks of the label map) of which an item has one label at most. Their probabilities are a softmax within
            the group, those of the others a sigmoid each.
        feature_norm: Whether a batch normalisation comes first.
        feature_dropout: Share of the features dropped in training.
        hidden_dropout: Share of each hidden layer's results dropped in training.
        correlation: None, or arguments of `layers.LabelCorrelation`, which corrects the logits by what labels say about each other.

    Call arguments:
        inputs: Dictionary with `image`, float `(batch, size, size, 3)` in 0..255, or `features`, what `encode_image` gives.
        training: As in every Keras layer.

    Returns:
        Logits, float32 `(batch, labels)`.

    Raises:
        UsageError: an encoder that gives maps, or a group that the label map does not have.
    """

    parts = ("image_encoder",)

    def __init__(
        self,
        image_encoder: Any,
        label_map: LabelMap | Mapping[str, Any],
        hidden: Sequence[int] = (),
        exclusive: Sequence[str] = (),
        feature_norm: bool = False,
        feature_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        correlation: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if image_encoder.pooling is None:
            raise UsageError("AttributeClassifier works on vectors: give the image encoder a pooling.")
        self.image_encoder = image_encoder
        self.label_map = label_map if isinstance(label_map, LabelMap) else LabelMap.from_config(dict(label_map))
        unknown = [name for name in exclusive if name not in self.label_map.groups]
        if unknown:
            raise UsageError(
                f"AttributeClassifier(exclusive=...): no group {unknown[0]!r}. Groups: {', '.join(self.label_map.groups)}."
            )
        self.hidden = tuple(int(width) for width in hidden)
        self.exclusive = tuple(exclusive)
        self.groups = [[int(place) for place in self.label_map.groups[name]] for name in self.exclusive]
        self.feature_norm = feature_norm
        self.feature_dropout = feature_dropout
        self.hidden_dropout = hidden_dropout
        self.correlation = None if correlation is None else dict(correlation)
        width = int(image_encoder.feature_shape[-1])
        self.norm = batch_norm("norm", dtype="float32") if feature_norm else None
        if self.norm is not None:
            self.norm.build((None, width))
        self.drop = keras.layers.Dropout(feature_dropout, name="dropout")
        self.trunk = []
        for number, units in enumerate(self.hidden):
            dense = keras.layers.Dense(units, activation="swish", name=f"hidden_{number + 1}")
            dense.build((None, width))
            self.trunk.append((dense, keras.layers.Dropout(hidden_dropout, name=f"hidden_dropout_{number + 1}")))
            width = units
        self.dim = width
        # torch's start of a linear layer, as the original has it: both uniform within 1/sqrt(width).
        self.head = keras.layers.Dense(
            len(self.label_map),
            kernel_initializer=keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform"),
            bias_initializer=keras.initializers.RandomUniform(-1 / math.sqrt(width), 1 / math.sqrt(width)),
            name="head",
            dtype="float32",
        )
        self.head.build((None, width))
        self.correlate: LabelCorrelation | None = None
        if self.correlation is not None:
            self.correlate = LabelCorrelation(**self.correlation, groups=self.groups, name="correlation")
            self.correlate.build((None, len(self.label_map)))
        self.built = True

    def encode_image(self, images: Any, training: bool | None = None) -> Any:
        """Features of photos `(batch, size, size, 3)` in 0..255: what a feature cache stores."""
        return self.image_encoder.encode(images, training=bool(training) and self.image_encoder.trainable)

    def _represent(self, features: Any, training: bool | None = False) -> Any:
        """What the last layer sees: `(batch, dim)`."""
        x = ops.cast(features, "float32")
        if self.norm is not None:
            x = self.norm(x, training=training)
        x = self.drop(x, training=training)
        for dense, drop in self.trunk:
            x = drop(dense(x), training=training)
        return x

    def logits_of(self, features: Any, training: bool | None = False) -> Any:
        """Logits float32 `(batch, labels)` of image features."""
        logits = ops.cast(self.head(self._represent(features, training)), "float32")
        return logits if self.correlate is None else self.correlate(logits)

    def embed_features(self, features: Any, training: bool | None = False) -> Any:
        """Embeddings of image features: what the last layer sees, float32 `(batch, dim)`, length one."""
        return l2_normalize(ops.cast(self._represent(features, training), "float32"))

    def embed_image(self, images: Any, training: bool | None = False) -> Any:
        """Embeddings of photos in 0..255: float32 `(batch, dim)`, length one."""
        return self.embed_features(self.encode_image(images, training), training)

    def probabilities(self, logits: Any) -> Any:
        """Probabilities float32 `(batch, labels)` of logits: softmax within each exclusive group, sigmoid elsewhere."""
        return label_probabilities(logits, self.groups)

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        if "features" in inputs:
            return self.logits_of(inputs["features"], training)
        if "image" not in inputs:
            raise UsageError(f"Expected 'image' or 'features' among the inputs; found {sorted(inputs)}.")
        return self.logits_of(self.encode_image(inputs["image"], training), training)

    def set_label_frequencies(self, frequencies: Any) -> None:
        """Starts the last layer's bias at what the labels' frequencies say, so that training begins with their prior.

        Args:
            frequencies: `(labels,)`, shares of the training photos in 0..1.
        """
        shares = np.clip(np.asarray(frequencies, np.float64), 1e-4, 1 - 1e-4)
        bias = np.log(shares / (1 - shares))
        for places in self.groups:
            bias[places] = np.log(shares[places])
        self.head.bias.assign(bias.astype(np.float32))

    def compile(self, optimizer: Any = "adam", loss: Any = "bce", jit_compile: Any = False, **kwargs: Any) -> None:
        """As `keras.Model.compile`; `loss` is a loss of `losses.multilabel` or a name in `MULTILABEL_LOSSES`."""
        if isinstance(loss, str):
            loss = MULTILABEL_LOSSES.get(loss)()
        super().compile(optimizer=optimizer, loss=loss, jit_compile=jit_compile, **kwargs)

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True) -> Any:
        """The loss over the global batch; `y` are float32 `(batch, labels)`: 1, 0, or -1 where nothing is known."""
        loss = self.loss(y, y_pred, sample_weight=sample_weight)
        for extra in self.losses:
            loss = loss + self._aggregate_additional_loss(extra)
        return loss

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            **self.part_configs(),
            "label_map": self.label_map.to_config(),
            "hidden": list(self.hidden),
            "exclusive": list(self.exclusive),
            "feature_norm": self.feature_norm,
            "feature_dropout": self.feature_dropout,
            "hidden_dropout": self.hidden_dropout,
            "correlation": self.correlation,
        }


def load_attributes(path: str | Path) -> AttributeClassifier:
    """Loads a `.keras` file of an attribute classifier; raises as `load_as`."""
    return load_as(path, AttributeClassifier)
