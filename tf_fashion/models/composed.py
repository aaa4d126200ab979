"""`ComposedRetriever`: a photo and a sentence -> the photo that is meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
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
from tf_fashion.layers import PROJECTIONS, ProjectionHead, ScaledL2Norm, l2_normalize
from tf_fashion.losses import LOSSES
from tf_fashion.models.base import RetrievalModel, load_as


@keras.saving.register_keras_serializable("tf_fashion")
class ComposedRetriever(RetrievalModel):
    """Composed image retrieval: reference photo + modification text -> embedding close to the target photo's.

    Photos go through the image encoder, a projection to `dim`, and (references) the composer, together with the encoded
    sentence. Everything is built in the constructor, so a new model can be saved, summarised or put under a strategy at once.

    With a multi-level composer (VAL) every tap of the image encoder is a level with its own module, projection, loss and slice of the
    embedding; the slices are equally long vectors, so that a cosine of embeddings is the mean of the levels' cosines.

    Args:
        image_encoder: An `ImageEncoder` or `SavedModelEncoder`. Frozen ones (`image_encoder.trainable = False`) run in inference mode.
        text_encoder: A `TextEncoder`; its result must be as wide as the composer wants (for most `dim`).
        composer: A `Composer`, or a name in `COMPOSERS`.
        tokenizer: The `WordTokenizer` whose ids the text encoder takes. Travels with the model, so that exports take sentences.
        dim: Width of the embeddings, shared out among the levels. With `projection="none"` it follows from the image encoder.
        projection: "linear", "mlp" or "none" (see `layers.ProjectionHead`).
        feature_norm: Whether a batch normalisation comes before the projection.
        feature_dropout: Share of the image features dropped in training before the projection.
        initial_scale: Start value of the learned length of the embeddings in the loss (TIRG: 4; logits are scale^2 * cosine).
        trainable_scale: Whether that length is learned.
        caption_style: How the sentences of a pair are joined into one text (see `inputs.text.join_captions`); the default for
            evaluation and serving.
        level_weights: Factors of the levels' losses; default 1 for each.
        semantic: Whether descriptions of targets are projected into the image space as well, for a visual-semantic loss (see
            `compile`).
        legacy_triple_pass: In training, reference photos go through the image encoder a second time, whose result is thrown away, as
            in the FashionIQ 2020 entry: its batch normalisation counts reference photos twice. No effect on cached features.
        l2_penalty: w in the penalty w/2 * sum of squares of all trained convolution and dense kernels (neither depthwise,
            recurrent nor attention maps), part of the loss as in TF-slim.

    Call arguments:
        inputs: Dictionary with `text`, int `(batch, steps)` word ids, and for the reference and (optionally) the target either
            `reference_image`, `target_image`: float `(batch, size, size, 3)` in 0..255, or
            `reference_features`, `target_features`: what `image_encoder.encode` gives (from a feature cache).
            Optional: `text_lengths`, int `(batch,)`, where id 0 is also a word; `target_text`, word ids of a description of the
            target, and `target_text_label`, int `(batch,)`, equal for equal descriptions; `row`, int `(batch,)`, the example's
            number among all training examples, for an attached loss (see `attach`).
        training: As in every Keras layer.

    Returns:
        `{"query": (batch, dim)}`, with `"target"` (and `"semantic"`) where one was given; float32, of length one. In training with
        an attached loss also `"composed"`, the query before it is scaled to length one.
    """

    parts = ("image_encoder", "text_encoder", "composer", "tokenizer")
    compiled_values = ("matching_weight", "semantic_weight", "semantic_with")

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
        level_weights: Sequence[float] | None = None,
        semantic: bool = False,
        l2_penalty: float = 0.0,
        legacy_triple_pass: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if projection not in PROJECTIONS:
            raise UsageError(f"ComposedRetriever(projection=...): expected one of {', '.join(PROJECTIONS)}; found {projection!r}.")
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.composer = COMPOSERS.get(composer)(name="composer") if isinstance(composer, str) else composer
        self.tokenizer = tokenizer
        self.projection = projection
        self.feature_norm = feature_norm
        self.feature_dropout = feature_dropout
        self.initial_scale = initial_scale
        self.trainable_scale = trainable_scale
        self.caption_style = caption_style
        self.semantic = semantic
        self.l2_penalty = l2_penalty
        self.legacy_triple_pass = legacy_triple_pass
        self.matching_weight, self.semantic_weight, self.semantic_with = 1.0, 0.0, "target"
        # A list, since Keras forgets a layer of the model only when it is taken out of one.
        self.attached: list[keras.layers.Layer] = []
        self.attached_weight = 0.0
        if self.composer.spatial and image_encoder.pooling is not None:
            raise UsageError(f"The composer {self.composer.name!r} works on feature maps: give the image encoder pooling=None.")
        shape = image_encoder.feature_shape
        self._map_shapes = [shape]
        if self.composer.multilevel:
            self._map_shapes = list(image_encoder.map_shapes.values())
        elif self.composer.spatial and len(shape) != 3:
            raise UsageError(f"The composer {self.composer.name!r} works on one feature map: give the image encoder one tap.")
        widths, levels = [s[-1] for s in self._map_shapes], len(self._map_shapes)
        self.level_dims = widths if projection == "none" else [(dim + level) // levels for level in range(levels)]
        self.dim = sum(self.level_dims)
        self.level_weights = [1.0] * levels if level_weights is None else [float(w) for w in level_weights]
        if len(self.level_weights) != levels:
            raise UsageError(f"ComposedRetriever(level_weights=...): expected {levels} numbers, found {level_weights!r}.")
        self._build_layers()
        self.built = True

    def _build_layers(self) -> None:
        self.heads = []
        for number, (dim, shape) in enumerate(zip(self.level_dims, self._map_shapes, strict=True)):
            name = f"projection_{number}" if number else "projection"
            self.heads.append(ProjectionHead(dim, self.projection, self.feature_norm, self.feature_dropout, name=name))
            self.heads[-1].build((None, *shape))
        self.scaled = ScaledL2Norm(self.initial_scale, trainable=self.trainable_scale, name="scaled_norm")
        self.scaled.build((None, self.dim))
        if not self.text_encoder.built:
            self.text_encoder.build((None, None))
        text_width = self.text_encoder.compute_output_shape((None, None))[-1]
        self.semantic_heads = []
        for number, dim in enumerate(self.level_dims if self.semantic else []):
            self.semantic_heads.append(keras.layers.Dense(dim, name=f"semantic_{number}"))
            self.semantic_heads[-1].build((None, text_width))
        if not self.composer.built:
            image_shape: Any = (None, self.dim)
            if self.composer.spatial:
                shapes = [(None, *shape) for shape in self._map_shapes]
                image_shape = shapes if self.composer.multilevel else shapes[0]
            self.composer.build(image_shape, (None, text_width))

    # The parts, from left to right.

    def encode_image(self, images: Any, training: bool | None = None) -> Any:
        """Features of photos `(batch, size, size, 3)` in 0..255: what a feature cache stores."""
        return self.image_encoder.encode(images, training=bool(training) and self.image_encoder.trainable)

    def _maps(self, features: Any) -> list[Any]:
        if self.composer.multilevel:
            return self.image_encoder.split_maps(ops.cast(features, "float32"))
        return [features]

    def project_levels(self, features: Any, training: bool | None = None) -> list[Any]:
        """Features to one image vector `(batch, level_dim)` per level, not normalised."""
        return [head(x, training=training) for head, x in zip(self.heads, self._maps(features), strict=True)]

    def encode_text(self, token_ids: Any, training: bool | None = None, lengths: Any = None) -> Any:
        """Word ids to the text features `(batch, text_dim)` that the composer takes; zeros for one that uses no text."""
        encode = self.text_encoder if self.composer.uses_text else self._no_text
        return encode(token_ids, lengths, training=training)

    def compose_levels(self, features: Any, token_ids: Any, training: bool | None = None, lengths: Any = None) -> list[Any]:
        """Reference features and word ids to one query vector `(batch, level_dim)` per level, not normalised."""
        text = self.encode_text(token_ids, training, lengths)
        if self.composer.spatial:
            composed = self._compose_maps(self._normalized_maps(features, training), text, training)
            return [head.project(x, training) for head, x in zip(self.heads, composed, strict=True)]
        if self.composer.uses_image:
            image = self.heads[0](features, training=training)
        else:
            image = ops.zeros((ops.shape(token_ids)[0], self.dim), dtype=text.dtype)
        return [self.composer(image, text, training=training)]

    def _normalized_maps(self, features: Any, training: bool | None = None) -> list[Any]:
        maps = self._maps(ops.cast(features, "float32"))
        return [head.normalize(x, training) for head, x in zip(self.heads, maps, strict=True)]

    def _compose_maps(self, maps: list[Any], text: Any, training: bool | None = None) -> list[Any]:
        if self.composer.multilevel:
            return self.composer(maps, text, training=training)
        return [self.composer(maps[0], text, training=training)]

    def _embedding(self, levels: list[Any]) -> Any:
        """The levels' vectors, each of equal length, in a row: float32 `(batch, dim)`, length one."""
        parts = [l2_normalize(ops.cast(x, "float32")) for x in levels]
        return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=-1) / len(parts) ** 0.5

    def _levels(self, embedding: Any) -> list[Any]:
        """The inverse of `_embedding`: the vectors of length one."""
        if len(self.level_dims) == 1:
            return [embedding]
        return tf.split(embedding * len(self.level_dims) ** 0.5, self.level_dims, axis=1)

    def _no_text(self, token_ids: Any, lengths: Any = None, training: bool | None = None) -> Any:
        return ops.zeros((ops.shape(token_ids)[0], self.text_encoder.compute_output_shape((None, None))[-1]))

    def embed_features(self, features: Any) -> Any:
        """Gallery embeddings `(batch, dim)` of cached features: float32, length one."""
        return self._embedding(self.project_levels(features, training=False))

    def embed_image(self, images: Any) -> Any:
        """Gallery embeddings `(batch, dim)` of photos in 0..255: float32, length one."""
        return self.embed_features(self.encode_image(images, training=False))

    def embed_query(self, features: Any, token_ids: Any, lengths: Any = None) -> Any:
        """Query embeddings `(batch, dim)` of reference features and word ids: float32, length one."""
        return self._embedding(self.compose_levels(features, token_ids, training=False, lengths=lengths))

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
        composed = self.compose_levels(reference, inputs["text"], training, inputs.get("text_lengths"))
        outputs = {"query": self._embedding(composed)}
        if self.attached and training:
            outputs["composed"] = composed[0]
        if self.legacy_triple_pass and training and "reference_image" in inputs:
            self.encode_image(inputs["reference_image"], training)
        target = self._features(inputs, "target", training)
        if target is not None:
            outputs["target"] = self._embedding(self.project_levels(target, training))
        if self.semantic and "target_text" in inputs:
            text = self.text_encoder(inputs["target_text"], training=training)
            outputs["semantic"] = self._embedding([head(text) for head in self.semantic_heads])
        return outputs

    def word_maps(self, features: Any, text: str) -> tuple[list[str], Any]:
        """Where each word of a sentence acts on the reference, for composers that work on maps.

        A word's value at a place is the length of the change of the composed map there when the word is left out, relative to
        the mean length of the whole composed map; several maps are brought to the size of the finest and averaged.

        Args:
            features: Features of one photo `(1, ...)`.
            text: The sentence.

        Returns:
            The words, and float32 `(words, height, width)`.

        Raises:
            UsageError: the composer does not work on maps, or the model has no tokenizer.
        """
        if not self.composer.spatial:
            raise UsageError(f"The composer {self.composer.name!r} does not work on maps, so there is nothing to draw.")
        ids = [int(i) for i in self.token_ids([text])[0]]
        words = self.tokenizer.tokenize(text)[: len(ids)]  # type: ignore[union-attr]
        ids = ids[: len(words)]
        rows = [ids, *([i for place, i in enumerate(ids) if place != out] + [0] for out in range(len(ids)))]
        text_features = self.text_encoder(tf.constant(rows, tf.int32), tf.constant([len(ids), *[len(ids) - 1] * len(ids)]))
        maps = [ops.repeat(x, len(rows), axis=0) for x in self._normalized_maps(features)]
        composed = self._compose_maps(maps, text_features)
        size = max((int(x.shape[1]), int(x.shape[2])) for x in composed)
        total: Any = 0.0
        for x in composed:
            change = tf.norm(x[1:] - x[:1], axis=-1, keepdims=True) / (tf.reduce_mean(tf.norm(x[:1], axis=-1)) + 1e-12)
            total = total + tf.image.resize(change, size)[..., 0] / len(composed)
        return words, total

    # Training.

    def attach(self, layer: keras.layers.Layer, weight: float = 1.0) -> None:
        """Adds `weight * layer(query, row, training=True)`, and the losses that the layer adds itself, to the loss in training.

        The query is the composer's result `(batch, dim)`, not normalised; `row` comes with the inputs. The layer's variables are the
        model's own, trained and kept by `save_weights`, until `detach`; its configuration is never the model's. Call `compile`
        after either, for the optimizer to know the variables.

        Args:
            layer: A built layer that returns a scalar, such as `training.graph.GraphStream`.
            weight: Its factor. The layer rests where `compile` has `matching_weight=0`.

        Raises:
            UsageError: the model has several levels, or a loss is attached already.
        """
        if len(self.level_dims) > 1:
            raise UsageError(
                f"attach: expected a model with one query vector per example, found one with {len(self.level_dims)} levels. "
                "Choose a composer that is not multi-level."
            )
        if self.attached:
            raise UsageError(f"attach: {self.attached[0].name!r} is attached already. Call detach() first.")
        self.attached.append(layer)
        self.attached_weight = float(weight)

    def detach(self) -> None:
        """Takes out what `attach` has added; nothing happens if there is nothing."""
        self.attached.clear()
        self.attached_weight = 0.0

    def compile(
        self,
        optimizer: Any = "adam",
        loss: Any = "batch_classification",
        jit_compile: Any = False,
        matching_weight: float = 1.0,
        semantic_weight: float = 0.0,
        semantic_with: str = "target",
        **kwargs: Any,
    ) -> None:
        """As `keras.Model.compile`, with two parts of the objective.

        Args:
            optimizer, jit_compile: As in Keras.
            loss: A `MatchingLoss` or a name in `LOSSES`, for both parts.
            matching_weight: Factor of the visual part: queries against targets.
            semantic_weight: Factor of the visual-semantic part: descriptions of targets against images.
            semantic_with: What descriptions are matched with: "target" photos, or "query" (VAL's paper: composed features).
                VAL's released models were first trained with the semantic part alone, on targets.

        Raises:
            UsageError: a semantic weight without `semantic=True` in the model, or an unknown `semantic_with`.
        """
        if isinstance(loss, str):
            loss = LOSSES.get(loss)()
        if semantic_weight and not self.semantic:
            raise UsageError("compile(semantic_weight=...) needs a model built with semantic=True.")
        if semantic_with not in ("target", "query"):
            raise UsageError(f"compile(semantic_with=...): expected target or query, found {semantic_with!r}.")
        self.matching_weight, self.semantic_weight, self.semantic_with = matching_weight, semantic_weight, semantic_with
        super().compile(optimizer=optimizer, loss=loss, jit_compile=jit_compile, **kwargs)

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True) -> Any:
        """The matching loss over the global batch; `y` are integer identities of the targets `(batch,)`."""
        if "target" not in y_pred:
            raise UsageError("The loss needs targets: give 'target_image' or 'target_features' among the inputs.")
        embeddings = {role: x for role, x in y_pred.items() if role != "composed"}
        levels = {role: [self.scaled(x) for x in self._levels(embedding)] for role, embedding in embeddings.items()}

        def matched(labels: Any, left: str, right: str, weights: Any) -> Any:
            return ops.sum(
                ops.stack(
                    [
                        factor * self.loss(labels, {"query": query, "target": target}, sample_weight=weights)
                        for factor, query, target in zip(self.level_weights, levels[left], levels[right], strict=True)
                    ]
                )
            )

        loss = ops.zeros(())
        if self.matching_weight:
            loss = loss + self.matching_weight * matched(y, "query", "target", sample_weight)
        if self.semantic_weight:
            if "semantic" not in y_pred:
                raise UsageError("The semantic loss needs 'target_text' and 'target_text_label' among the inputs.")
            # A target without a description (label -1) takes no part.
            described = ops.cast(x["target_text_label"] >= 0, "float32")
            loss = loss + self.semantic_weight * matched(x["target_text_label"], self.semantic_with, "semantic", described)
        extras = [*self.losses, *([self._penalty()] if self.l2_penalty else [])]
        if "composed" in y_pred and self.matching_weight:
            extras.append(self._attached_loss(x, y_pred["composed"], training))
        for extra in extras:
            loss = loss + self._aggregate_additional_loss(extra)
        return loss

    def _attached_loss(self, x: Any, composed: Any, training: bool) -> Any:
        if "row" not in x:
            raise UsageError("The attached loss needs 'row' among the inputs: call training_batches(..., with_rows=True).")
        (layer,) = self.attached
        own = layer(composed, x["row"], training=training)
        return self.attached_weight * ops.sum(ops.stack([own, *(ops.cast(added, own.dtype) for added in layer.losses)]))

    def penalised_kernels(self) -> list[Any]:
        """The trained kernels that `l2_penalty` acts on."""
        layers = [layer for layer in self._flatten_layers() if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense))]
        return [layer.kernel for layer in layers if layer.trainable and layer.kernel.trainable]

    def _penalty(self) -> Any:
        squares = [ops.sum(ops.square(ops.cast(kernel, "float32"))) for kernel in self.penalised_kernels()]
        return 0.5 * self.l2_penalty * ops.sum(ops.stack(squares))

    # Configuration.

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            **self.part_configs(),
            "dim": self.dim,
            "projection": self.projection,
            "feature_norm": self.feature_norm,
            "feature_dropout": self.feature_dropout,
            "initial_scale": self.initial_scale,
            "trainable_scale": self.trainable_scale,
            "caption_style": self.caption_style,
            "level_weights": self.level_weights,
            "semantic": self.semantic,
            "l2_penalty": self.l2_penalty,
            "legacy_triple_pass": self.legacy_triple_pass,
        }

    @property
    def needs_lengths(self) -> bool:
        """Whether word id 0 is not only padding, so that sentences need their lengths beside them (legacy markers)."""
        return self.tokenizer is not None and self.tokenizer.legacy_markers

    def text_inputs(self, texts: Any) -> tuple[Any, ...]:
        """What `embed_query` takes beside features: word ids `(batch, steps)`, and lengths `(batch,)` if the model `needs_lengths`."""
        if self.tokenizer is None or not self.needs_lengths:
            return (self.token_ids(texts),)
        return self.tokenizer(np.asarray(texts, dtype=object) if isinstance(texts, list) else texts, return_lengths=True)

    def token_ids(self, texts: Any) -> tf.Tensor:
        """Word ids int32 `(batch, steps)` of sentences, by the model's own tokeniser.

        Raises:
            UsageError: the model was built without one.
        """
        if self.tokenizer is None:
            raise UsageError("This model has no tokenizer: build it with ComposedRetriever(tokenizer=...).")
        return self.tokenizer(np.asarray(texts, dtype=object) if isinstance(texts, list) else texts)


def load_composed(path: str | Path) -> ComposedRetriever:
    """Loads a `.keras` file of a composed retriever; raises as `load_as`."""
    return load_as(path, ComposedRetriever)
