"""`DomainAdapter`: one linear layer on pooled vectors, by which photos of two domains become comparable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.layers import Standardize, l2_normalize
from tf_fashion.layers.standardize import float64_blocks
from tf_fashion.losses import LOSSES
from tf_fashion.models.base import RetrievalModel, load_as

STARTS = ("torch", "identity")
# Length of the rows of W that `start_from_components` has no component for.
_SMALL = 0.01


@keras.saving.register_keras_serializable("tf_fashion")
class DomainAdapter(RetrievalModel):
    """`L2norm(W x + b)` of pooled vectors x (Sharma et al., "Unsupervised Meta-Domain Adaptation for Fashion Retrieval", WACV 2021).

    With a trainable image encoder (`torch_resnet101`, pooling "gem") it is the network that UDMA calls DF-BL; without an encoder, or
    with a frozen one, what it calls UDMA-MLP, which starts from the other's layer (`start_from`). `standardize` and
    `start_from_components` are for vectors of an encoder that was not trained on these domains, for instance with several taps and
    descriptors, whose values have different sizes.

    Args:
        image_encoder: None for vectors only, or an encoder that gives vectors. Frozen ones run in inference mode.
        feature_dim: Width of the vectors; only without encoder.
        dim: Width of the embeddings; default that of the vectors.
        start: "torch" (W and b uniform within 1/sqrt(width)) or "identity" (embeddings start as the vectors, cut or filled with 0).
        norm_features: Whether x is scaled to length one first.
        dropout: Share of x dropped in training.
        linear: False leaves the layer out: embeddings are the vectors themselves, at length one.
        standardize: Whether x is standardised first, value by value (`layers.Standardize`); `adapt_input` sets by what.

    Call arguments:
        inputs: Dictionary with `image`, float `(batch, size, size, 3)` in 0..255, or `features`, what `encode_image` gives or any
            `(..., feature_dim)`, for instance `(categories, rows, feature_dim)`; or pairs, `anchor_image` and `positive_image`, or
            `anchor_features` and `positive_features`.
        training: As in every Keras layer. Pairs go through the encoder together, so that batch statistics are those of both.

    Returns:
        Embeddings, float32 `(..., dim)`, length one; of pairs `{"query": anchors, "target": positives}`, as losses take them.

    Raises:
        UsageError: an encoder that gives maps, neither encoder nor width or both, an unknown `start`, or `norm_features` together with
            `standardize`.
    """

    parts = ("image_encoder",)

    def __init__(
        self,
        image_encoder: Any = None,
        feature_dim: int | None = None,
        dim: int | None = None,
        start: str = "torch",
        norm_features: bool = False,
        dropout: float = 0.0,
        linear: bool = True,
        standardize: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if (image_encoder is None) == (feature_dim is None):
            raise UsageError("DomainAdapter takes an image_encoder, or for vectors alone feature_dim, their width; one of the two.")
        if image_encoder is not None and image_encoder.pooling is None:
            raise UsageError("DomainAdapter works on vectors: give the image encoder a pooling.")
        if start not in STARTS:
            raise UsageError(f"DomainAdapter(start=...): expected one of {', '.join(STARTS)}; found {start!r}.")
        if norm_features and standardize:
            raise UsageError("DomainAdapter: choose one of norm_features and standardize; either decides the size of the vectors.")
        width = int(image_encoder.feature_shape[-1]) if feature_dim is None else int(feature_dim)
        if width < 1 or (dim is not None and dim < 1):
            raise UsageError(f"DomainAdapter: expected widths of at least 1, found feature_dim={feature_dim!r}, dim={dim!r}.")
        if not linear and dim not in (None, width):
            raise UsageError(f"DomainAdapter(linear=False) gives vectors of their own width {width}, not dim={dim}.")
        self.image_encoder = image_encoder
        self.feature_dim = feature_dim
        self.width = width
        self.dim = width if dim is None else int(dim)
        self.start = start
        self.norm_features = norm_features
        self.dropout = dropout
        self.linear = linear
        self.standardize = standardize
        # It has weights only where it is used, so that files of adapters without it stay as they are.
        self.standardizer = Standardize(name="standardize")
        if standardize:
            self.standardizer.build((None, width))
        self.drop = keras.layers.Dropout(dropout, name="dropout", dtype="float32")
        self.fc: keras.layers.Dense | None = None
        if linear:
            bound = 1 / math.sqrt(width)
            torch = start == "torch"
            self.fc = keras.layers.Dense(
                self.dim,
                kernel_initializer=keras.initializers.RandomUniform(-bound, bound) if torch else "identity",
                bias_initializer=keras.initializers.RandomUniform(-bound, bound) if torch else "zeros",
                name="fc",
            )
            self.fc.build((None, width))
        self.built = True

    def require_encoder(self, what: str) -> None:
        """Refuses `what`, which takes photos, for an adapter of vectors.

        Raises:
            UsageError: the adapter has no encoder.
        """
        if self.image_encoder is None:
            raise UsageError(
                f"{what} takes photos, and this DomainAdapter works on vectors: it has no image encoder. Build one with the "
                "encoder that made them, let it `start_from` this one, and save that."
            )

    def encode_image(self, images: Any, training: bool | None = None) -> Any:
        """Pooled vectors (UDMA's "X-1") of photos `(batch, size, size, 3)` in 0..255: what a feature cache stores.

        Raises:
            UsageError: the adapter has no encoder.
        """
        if self.image_encoder is None:
            raise UsageError("This DomainAdapter has no image encoder; give it vectors ('features').")
        return self.image_encoder.encode(images, training=bool(training) and self.image_encoder.trainable)

    def project(self, features: Any, training: bool | None = False) -> Any:
        """`W x + b` before its normalisation: float32 `(..., dim)` of vectors `(..., feature_dim)`."""
        x = ops.cast(features, "float32")
        if self.standardize:
            x = self.standardizer(x)
        elif self.norm_features:
            x = l2_normalize(x)
        x = self.drop(x, training=training)
        return ops.cast(x if self.fc is None else self.fc(x), "float32")

    def embed_features(self, features: Any, training: bool | None = False) -> Any:
        """Embeddings (UDMA's "X") of pooled vectors `(..., feature_dim)`: float32 `(..., dim)`, length one."""
        return l2_normalize(self.project(features, training), 1e-24)

    def embed_image(self, images: Any, training: bool | None = False) -> Any:
        """Embeddings of photos in 0..255: float32 `(batch, dim)`, length one."""
        return self.embed_features(self.encode_image(images, training), training)

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        for suffix, embed in (("image", self.embed_image), ("features", self.embed_features)):
            if suffix in inputs:
                return embed(inputs[suffix], training)
            names = [f"{role}_{suffix}" for role in ("anchor", "positive")]
            if all(name in inputs for name in names):
                both = embed(tf.concat([inputs[name] for name in names], axis=0), training)
                anchors = tf.shape(inputs[names[0]])[0]
                return {"query": both[:anchors], "target": both[anchors:]}
        raise UsageError(
            "Expected 'image' or 'features' among the inputs, or pairs of them ('anchor_image' and 'positive_image'); found "
            f"{sorted(inputs)}."
        )

    def adapt_input(self, features: Any, widths: Sequence[int] | None = None, weights: Sequence[float] | None = None) -> None:
        """Sets the standardisation by pooled vectors `(rows, feature_dim)`; see `Standardize.adapt` for the arguments.

        Raises:
            UsageError: the adapter was built without `standardize`; or as `Standardize.adapt`.
            DataError: as `Standardize.adapt`.
        """
        if not self.standardize:
            raise UsageError("DomainAdapter.adapt_input: build the adapter with standardize=True.")
        self.standardizer.adapt(features, widths, weights)

    def start_from_components(self, features: Any, seed: int = 0) -> None:
        """Lets W be the first `dim` principal components of vectors, without whitening.

        The analysis is that of the vectors as the layer sees them (standardised, or at length one), in float64; a component's largest
        value is positive. b is 0 with `standardize`, and -W mean without. Rows of W beyond the components that vary are normal, by
        `seed`, and 0.01 long where components are 1 long: at the start they add next to nothing, and training can use them.

        Args:
            features: Floating `(rows, feature_dim)`, at least 2 rows; memory maps are read in blocks.
            seed: Decides the rows beyond the components.

        Raises:
            UsageError: no linear layer, or features of another shape.
            DataError: values that are not finite, or rows that are all the same.
        """
        if self.fc is None:
            raise UsageError("DomainAdapter.start_from_components: the adapter has no linear layer. Build it with linear=True.")
        shape: tuple[int, ...] = tuple(getattr(features, "shape", ()))
        if len(shape) != 2 or shape[1] != self.width or shape[0] < 2:
            raise UsageError(f"start_from_components: expected at least 2 rows of features (rows, {self.width}), found {shape}.")
        mean, covariance = np.zeros(self.width), np.zeros((self.width, self.width))
        for block in float64_blocks(features):
            mean += self._seen(block).sum(axis=0) / len(features)
        for block in float64_blocks(features):
            centred = self._seen(block) - mean
            covariance += centred.T @ centred / len(features)
        variance, vectors = np.linalg.eigh(covariance)
        variance, components = variance[::-1], vectors[:, ::-1].T
        # What is below is rounding: of the sums, and of vectors that were float32.
        if not variance[0] > 1e-24 * (mean @ mean):
            raise DataError(f"start_from_components: the {len(features)} rows of features are all the same. Give other photos.")
        components = components[: min(self.dim, int((variance > 1e-12 * variance[0]).sum()))]
        largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, np.newaxis], axis=1)
        rest = np.random.default_rng(seed).normal(size=(self.dim - len(components), self.width))
        rest *= _SMALL / np.linalg.norm(rest, axis=1, keepdims=True)
        weight = np.concatenate([components * np.sign(largest), rest])
        self.set_linear(weight, np.zeros(self.dim) if self.standardize else -weight @ mean)

    def _seen(self, block: np.ndarray) -> np.ndarray:
        """What the linear layer sees of vectors, float64."""
        if self.standardize:
            mean, factor = (np.asarray(weight, np.float64) for weight in self.standardizer.get_weights())
            return (block - mean) * factor
        return block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-6) if self.norm_features else block

    def start_from(self, other: DomainAdapter) -> None:
        """Takes over the linear layer of another adapter, and how its vectors are scaled or standardised.

        Raises:
            UsageError: the other one has another width, one of the two has no linear layer, or only this one standardises.
        """
        if self.fc is None or other.fc is None or (self.width, self.dim) != (other.width, other.dim):
            shapes = ["none" if it.fc is None else f"{it.width} to {it.dim}" for it in (self, other)]
            raise UsageError(f"start_from: the linear layers differ: {shapes[0]} here, {shapes[1]} there.")
        self._scale_as(other)
        self.fc.set_weights(other.fc.get_weights())

    def _scale_as(self, other: DomainAdapter) -> None:
        if other.standardize:
            if not self.standardizer.built:
                self.standardizer.build((None, self.width))
            self.standardizer.set_weights(other.standardizer.get_weights())
        elif self.standardize:
            raise UsageError(
                "start_from: this adapter standardises vectors and the other does not. Build this one without standardize."
            )
        self.standardize, self.norm_features = other.standardize, other.norm_features

    def on_features(self) -> DomainAdapter:
        """The same adapter without encoder, for vectors that were computed before: UDMA-MLP of DF-BL."""
        adapter = DomainAdapter(
            feature_dim=self.width,
            dim=self.dim,
            norm_features=self.norm_features,
            dropout=self.dropout,
            linear=self.linear,
            standardize=self.standardize,
            name=self.name,
        )
        if self.linear:
            adapter.start_from(self)
        else:
            adapter._scale_as(self)
        return adapter

    def set_linear(self, weight: Any, bias: Any) -> None:
        """Sets the linear layer, in PyTorch's layout: `weight` `(dim, feature_dim)`, `bias` `(dim,)`.

        Raises:
            UsageError: other shapes, values that are not finite, or no linear layer.
        """
        weight, bias = np.asarray(weight, np.float32), np.asarray(bias, np.float32)
        if self.fc is None or weight.shape != (self.dim, self.width) or bias.shape != (self.dim,):
            expected = "no linear layer" if self.fc is None else f"a weight {(self.dim, self.width)} and a bias {(self.dim,)}"
            raise UsageError(f"set_linear: expected {expected}, found {weight.shape} and {bias.shape}.")
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise UsageError("set_linear: expected finite values. The training that wrote them had failed.")
        self.fc.set_weights([weight.T, bias])

    def compile(self, optimizer: Any = "adam", loss: Any = "mined_triplet", jit_compile: Any = False, **kwargs: Any) -> None:
        """As `keras.Model.compile`; `loss` is a matching loss or a name in `LOSSES`."""
        if isinstance(loss, str):
            loss = LOSSES.get(loss)()
        super().compile(optimizer=optimizer, loss=loss, jit_compile=jit_compile, **kwargs)

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True) -> Any:
        """The loss of a batch.

        `y` are integer labels: `(batch,)` of pairs or of single photos, or `(categories, rows)` with -1 for padding, of embeddings
        `(categories, rows, dim)`; then it is the sum over categories, and `sample_weight` `(categories, rows)` weighs rows.

        Raises:
            UsageError: categories with a loss that does not know them.
        """
        if isinstance(y_pred, Mapping) or len(y_pred.shape) == 2:
            loss = self.loss(y, y_pred, sample_weight=sample_weight)
        elif hasattr(self.loss, "of_categories"):
            loss = self.loss.of_categories(y, y_pred, sample_weight)
        else:
            known = " or ".join(repr(name) for name in LOSSES if hasattr(LOSSES.get(name), "of_categories"))
            raise UsageError(f"Batches of categories are trained with the loss {known}, not with {self.loss.name!r}.")
        for extra in self.losses:
            loss = loss + self._aggregate_additional_loss(extra)
        return loss

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        return cls(**config) if config.get("image_encoder") is None else super().from_config(config, custom_objects)

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            **self.part_configs(),
            "feature_dim": self.feature_dim,
            "dim": self.dim,
            "start": self.start,
            "norm_features": self.norm_features,
            "dropout": self.dropout,
            "linear": self.linear,
            "standardize": self.standardize,
        }


def load_adapter(path: str | Path) -> DomainAdapter:
    """Loads a `.keras` file of a domain adapter; raises as `load_as`."""
    return load_as(path, DomainAdapter)
