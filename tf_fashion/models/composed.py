"""`ComposedRetriever`: a photo and a sentence -> the photo that is meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tf_fashion.composers import COMPOSERS, Composer
from tf_fashion.core.errors import UsageError
from tf_fashion.encoders.image import ImageEncoder
from tf_fashion.encoders.saved_model import SavedModelEncoder
from tf_fashion.encoders.text import TextEncoder
from tf_fashion.inputs.text import WordTokenizer
from tf_fashion.layers import ScaledL2Norm, batch_norm, l2_normalize
from tf_fashion.losses import LOSSES

PROJECTIONS = ("linear", "mlp")


@keras.saving.register_keras_serializable("tf_fashion")
class ComposedRetriever(keras.Model):
    """Composed image retrieval: reference photo + modification text -> embedding close to the target photo's.

    Photos go through the image encoder, a projection to `dim`, and (references) the composer, together with the encoded
    sentence. Everything is built in the constructor, so a new model can be saved, summarised or put under a strategy at once.

    Args:
        image_encoder: An `ImageEncoder` or `SavedModelEncoder`. Frozen ones (`image_encoder.trainable = False`) run in inference mode.
        text_encoder: A `TextEncoder`; its result must be as wide as the composer wants (for most `dim`).
        composer: A `Composer`, or a name in `COMPOSERS`.
        tokenizer: The `WordTokenizer` whose ids the text encoder takes. Travels with the model, so that exports take sentences.
        dim: Width of the embeddings.
        projection: "linear" (one dense layer, as the originals), or "mlp" (dense, gelu, dropout, dense, plus a linear shortcut).
        feature_norm: Whether a batch normalisation comes before the projection. Features of several taps and descriptors have
            very different sizes and need it.
        feature_dropout: Share of the image features dropped in training before the projection.
        initial_scale: Start value of the learned length of the embeddings in the loss (TIRG: 4; logits are scale^2 * cosine).
        trainable_scale: Whether that length is learned.
        caption_style: How the sentences of a pair are joined into one text (see `inputs.text.join_captions`); the default for
            evaluation and serving.

    Call arguments:
        inputs: Dictionary with `text`, int `(batch, steps)` word ids, and for the reference and (optionally) the target either
            `reference_image`, `target_image`: float `(batch, size, size, 3)` in 0..255, or
            `reference_features`, `target_features`: what `image_encoder.encode` gives (from a feature cache).
        training: As in every Keras layer.

    Returns:
        `{"query": (batch, dim)}`, with `"target"` where one was given; float32, of length one.
    """

    def __init__(
        self,
        image_encoder: ImageEncoder | SavedModelEncoder,
        text_encoder: TextEncoder,
        composer: Composer | str = "tirg",
        tokenizer: WordTokenizer | None = None,
        dim: int = 512,
        projection: str = "linear",
        feature_norm: bool = False,
        feature_dropout: float = 0.0,
        initial_scale: float = 4.0,
        trainable_scale: bool = True,
        caption_style: str = "fiq2020",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if projection not in PROJECTIONS:
            raise UsageError(f"ComposedRetriever(projection=...): expected one of {', '.join(PROJECTIONS)}; found {projection!r}.")
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.composer = COMPOSERS.get(composer)(name="composer") if isinstance(composer, str) else composer
        self.tokenizer = tokenizer
        self.dim = dim
        self.projection = projection
        self.feature_norm = feature_norm
        self.feature_dropout = feature_dropout
        self.initial_scale = initial_scale
        self.trainable_scale = trainable_scale
        self.caption_style = caption_style
        if self.composer.spatial and image_encoder.pooling is not None:
            raise UsageError(f"The composer {self.composer.name!r} works on feature maps: give the image encoder pooling=None.")
        self._build_layers()
        self.built = True

    def _build_layers(self) -> None:
        width = self.image_encoder.feature_shape[-1]
        self.norm = batch_norm("feature_norm", dtype="float32") if self.feature_norm else None
        self.drop = keras.layers.Dropout(self.feature_dropout, name="feature_dropout")
        self.project = keras.layers.Dense(self.dim, name="projection")
        if self.norm is not None:
            self.norm.build((None, width))
        self.project.build((None, width))
        if self.projection == "mlp":
            self.hidden = keras.layers.Dense(2 * self.dim, activation="gelu", name="projection_hidden")
            self.hidden_drop = keras.layers.Dropout(self.feature_dropout, name="projection_dropout")
            self.hidden_out = keras.layers.Dense(self.dim, name="projection_out")
            self.hidden.build((None, width))
            self.hidden_out.build((None, 2 * self.dim))
        self.scaled = ScaledL2Norm(self.initial_scale, trainable=self.trainable_scale, name="scaled_norm")
        self.scaled.build((None, self.dim))
        if not self.text_encoder.built:
            self.text_encoder.build((None, None))
        text_width = self.text_encoder.compute_output_shape((None, None))[-1]
        if not self.composer.built:
            image_shape = (None, *self.image_encoder.feature_shape) if self.composer.spatial else (None, self.dim)
            self.composer.build(image_shape, (None, text_width))

    def build(self, input_shape: Any = None) -> None:
        self.built = True

    # The parts, from left to right.

    def encode_image(self, images: Any, training: bool | None = None) -> Any:
        """Features of photos `(batch, size, size, 3)` in 0..255: what a feature cache stores."""
        return self.image_encoder.encode(images, training=bool(training) and self.image_encoder.trainable)

    def project_features(self, features: Any, training: bool | None = None) -> Any:
        """Features to image vectors `(batch, dim)`, not normalised. Maps are averaged first."""
        x = ops.cast(features, "float32")
        if len(x.shape) == 4:
            x = ops.mean(x, axis=(1, 2))
        if self.norm is not None:
            x = self.norm(x, training=training)
        x = self.drop(x, training=training)
        y = self.project(x)
        if self.projection == "mlp":
            y = y + self.hidden_out(self.hidden_drop(self.hidden(x), training=training))
        return y

    def compose(self, features: Any, token_ids: Any, training: bool | None = None) -> Any:
        """Reference features and word ids to the query `(batch, dim)`, not normalised."""
        text = self.text_encoder(token_ids, training=training) if self.composer.uses_text else self._no_text(token_ids)
        if self.composer.spatial:
            return self.project_features(self.composer(ops.cast(features, "float32"), text, training=training), training)
        if self.composer.uses_image:
            image = self.project_features(features, training)
        else:
            image = ops.zeros((ops.shape(token_ids)[0], self.dim), dtype=text.dtype)
        return self.composer(image, text, training=training)

    def _no_text(self, token_ids: Any) -> Any:
        return ops.zeros((ops.shape(token_ids)[0], self.text_encoder.compute_output_shape((None, None))[-1]))

    def embed_features(self, features: Any) -> Any:
        """Gallery embeddings `(batch, dim)` of cached features: float32, length one."""
        return l2_normalize(ops.cast(self.project_features(features, training=False), "float32"))

    def embed_image(self, images: Any) -> Any:
        """Gallery embeddings `(batch, dim)` of photos in 0..255: float32, length one."""
        return self.embed_features(self.encode_image(images, training=False))

    def embed_query(self, features: Any, token_ids: Any) -> Any:
        """Query embeddings `(batch, dim)` of reference features and word ids: float32, length one."""
        return l2_normalize(ops.cast(self.compose(features, token_ids, training=False), "float32"))

    def _features(self, inputs: Mapping[str, Any], role: str, training: bool | None) -> Any:
        if f"{role}_features" in inputs:
            return inputs[f"{role}_features"]
        if f"{role}_image" in inputs:
            return self.encode_image(inputs[f"{role}_image"], training)
        return None

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> dict[str, Any]:
        reference = self._features(inputs, "reference", training) if self.composer.uses_image else inputs["text"]
        if reference is None:
            raise UsageError(f"Expected 'reference_image' or 'reference_features' among the inputs; found {sorted(inputs)}.")
        query = self.compose(reference, inputs["text"], training)
        outputs = {"query": l2_normalize(ops.cast(query, "float32"))}
        target = self._features(inputs, "target", training)
        if target is not None:
            outputs["target"] = l2_normalize(ops.cast(self.project_features(target, training), "float32"))
        return outputs

    # Training.

    def compile(self, optimizer: Any = "adam", loss: Any = "batch_classification", jit_compile: Any = False, **kwargs: Any) -> None:
        """As `keras.Model.compile`; `loss` is a `MatchingLoss` or a name in `LOSSES`."""
        if isinstance(loss, str):
            loss = LOSSES.get(loss)()
        super().compile(optimizer=optimizer, loss=loss, jit_compile=jit_compile, **kwargs)
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)

    def get_compile_config(self) -> dict[str, Any] | None:
        if not self.compiled:
            return None
        serialize = keras.saving.serialize_keras_object
        return {"optimizer": serialize(self.optimizer), "loss": serialize(self.loss)}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**{part: keras.saving.deserialize_keras_object(value) for part, value in config.items()})

    def _maybe_symbolic_build(self, *args: Any, **kwargs: Any) -> None:
        # Everything is built already. Keras' own way takes a batch from the iterator, so that training would start with the
        # second one, and averages it over the replicas, which integers do not survive.
        return

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True) -> Any:
        """The matching loss over the global batch; `y` are integer identities of the targets `(batch,)`."""
        if "target" not in y_pred:
            raise UsageError("The loss needs targets: give 'target_image' or 'target_features' among the inputs.")
        scaled = {role: self.scaled(y_pred[role]) for role in ("query", "target")}
        loss = self.loss(y, scaled, sample_weight=sample_weight)
        for extra in self.losses:
            loss = loss + self._aggregate_additional_loss(extra)
        return loss

    # Configuration.

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "image_encoder": serialize(self.image_encoder),
            "text_encoder": serialize(self.text_encoder),
            "composer": serialize(self.composer),
            "tokenizer": None if self.tokenizer is None else serialize(self.tokenizer),
            "dim": self.dim,
            "projection": self.projection,
            "feature_norm": self.feature_norm,
            "feature_dropout": self.feature_dropout,
            "initial_scale": self.initial_scale,
            "trainable_scale": self.trainable_scale,
            "caption_style": self.caption_style,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> ComposedRetriever:
        config = dict(config)
        for part in ("image_encoder", "text_encoder", "composer", "tokenizer"):
            if isinstance(config.get(part), dict):
                config[part] = keras.saving.deserialize_keras_object(config[part], custom_objects=custom_objects)
        return cls(**config)

    def token_ids(self, texts: Any) -> tf.Tensor:
        """Word ids int32 `(batch, steps)` of sentences, by the model's own tokeniser.

        Raises:
            UsageError: the model was built without one.
        """
        if self.tokenizer is None:
            raise UsageError("This model has no tokenizer: build it with ComposedRetriever(tokenizer=...).")
        return self.tokenizer(np.asarray(texts, dtype=object) if isinstance(texts, list) else texts)
