"""`DualEncoder`: photos and texts in one space, so that either finds the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tf_fashion.core.errors import UsageError
from tf_fashion.inputs.bpe import CLIPTokenizer
from tf_fashion.layers import PROJECTIONS, ProjectionHead, l2_normalize
from tf_fashion.losses import LOSSES
from tf_fashion.losses.base import sum_over_replicas
from tf_fashion.losses.concept import WEIGHTINGS, ConceptLoss, weigh_losses
from tf_fashion.models.base import RetrievalModel, load_as
from tf_fashion.models.gradient_cache import cached_gradients

# CLIP's: exp(s) starts at 1/0.07, and s never exceeds ln 100 (which it writes as 4.6052).
INITIAL_SCALE = 1 / 0.07
MAX_SCALE = math.exp(4.6052)


_CONCEPT_METRICS = ("concept_loss", "concept_weight")


@keras.saving.register_keras_serializable("tf_fashion")
class Between(keras.constraints.Constraint):
    """Keeps a variable within [low, high] after every optimizer step."""

    def __init__(self, low: float, high: float) -> None:
        self.low = low
        self.high = high

    def __call__(self, value: Any) -> Any:
        return ops.clip(value, self.low, self.high)

    def get_config(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high}


@keras.saving.register_keras_serializable("tf_fashion")
class DualEncoder(RetrievalModel):
    """Two towers: a photo and a text that belong together get embeddings that are close (CLIP, Radford et al., ICML 2021).

    The towers are any image encoder and any text encoder of this library: CLIP's own (`encoders.clip`), with `projection="none"`, or
    for instance a frozen backbone with cached features and a recurrent text tower.

    Args:
        image_encoder: `ImageEncoder`, `CLIPImageEncoder` or `SavedModelEncoder`, giving vectors. Frozen ones run in inference mode.
        text_encoder: `CLIPTextEncoder` or a `TextEncoder`; its result must be `dim` wide.
        tokenizer: `CLIPTokenizer` or `WordTokenizer` whose ids the text encoder takes. Travels with the model.
        dim: Width of the embeddings; with `projection="none"` it follows from the image encoder.
        projection: From image features to embeddings: "linear", "mlp" or "none" (see `layers.ProjectionHead`).
        feature_norm: Whether a batch normalisation comes before the projection.
        feature_dropout: Share of the image features dropped in training before the projection.
        initial_scale: Start of exp(s), the factor of the cosines in the loss (CLIP: 1/0.07; SigLIP: 10).
        max_scale: exp(s) is clipped to [1, max_scale] after each step; None for no bounds.
        trainable_scale: Whether s is learned.
        initial_bias: Start of the learned bias that the sigmoid loss adds to the logits (SigLIP: -10); None for none.

    Call arguments:
        inputs: Dictionary with `image`, float `(batch, size, size, 3)` in 0..255, or `features`, what `encode_image` gives; `text`, int
            `(batch, steps)` token ids; in training with a concept loss also `concept_text`, int `(batch, slots, steps)`, the token ids
            of the concepts' prompts, and `concept_ids`, int `(batch, slots)`, rows of the prototypes, -1 for none;
            `concept_prompts`, int `(batch, slots)`, equal for equal prompts, saves embedding each of them more than once.
        training: As in every Keras layer.

    Returns:
        `{"image": (batch, dim), "text": (batch, dim)}` of what was given, and `"concept": (batch, slots, dim)`; float32, length one.

    Raises:
        UsageError: widths do not fit, unknown names.
    """

    parts = ("image_encoder", "text_encoder", "tokenizer")
    compiled_parts = ("optimizer", "loss", "concept_loss")
    compiled_values = ("concept_weighting", "concept_weight", "concept_start", "micro_batch")

    def __init__(
        self,
        image_encoder: Any,
        text_encoder: Any,
        tokenizer: Any = None,
        dim: int | None = None,
        projection: str = "none",
        feature_norm: bool = False,
        feature_dropout: float = 0.0,
        initial_scale: float = INITIAL_SCALE,
        max_scale: float | None = MAX_SCALE,
        trainable_scale: bool = True,
        initial_bias: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if projection not in PROJECTIONS:
            raise UsageError(f"DualEncoder(projection=...): expected one of {', '.join(PROJECTIONS)}; found {projection!r}.")
        if image_encoder.pooling is None:
            raise UsageError("DualEncoder compares vectors: give the image encoder a pooling.")
        if initial_scale <= 0 or (max_scale is not None and not 1 <= initial_scale <= max_scale):
            raise UsageError(f"DualEncoder(initial_scale=...): expected a number from 1 to max_scale, found {initial_scale}.")
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.projection = projection
        self.feature_norm = feature_norm
        self.feature_dropout = feature_dropout
        self.initial_scale = initial_scale
        self.max_scale = max_scale
        self.trainable_scale = trainable_scale
        self.initial_bias = initial_bias
        if not text_encoder.built:
            text_encoder.build((None, None))
        text_width = int(text_encoder.compute_output_shape((None, None))[-1])
        shape = image_encoder.feature_shape
        self.dim = int(shape[-1]) if projection == "none" else int(dim or text_width)
        if self.dim != text_width:
            raise UsageError(
                f"DualEncoder: the image side gives embeddings of width {self.dim}, the text encoder of {text_width}. Make them equal "
                "(with projection='linear' the image side takes any `dim`)."
            )
        self.head = ProjectionHead(self.dim, projection, feature_norm, feature_dropout, name="projection")
        self.head.build((None, *shape))
        bounds = None if max_scale is None else Between(0.0, math.log(max_scale))
        self.logit_scale = self.add_weight(
            name="logit_scale",
            shape=(),
            dtype="float32",
            initializer=keras.initializers.Constant(math.log(initial_scale)),
            trainable=trainable_scale,
            constraint=bounds,
        )
        self.logit_bias = None
        if initial_bias is not None:
            self.logit_bias = self.add_weight(
                name="logit_bias", shape=(), dtype="float32", initializer=keras.initializers.Constant(initial_bias)
            )
        self.concept_loss: ConceptLoss | None = None
        self.concept_weighting, self.concept_weight = "adaptive", 1.0
        self.concept_start = 0
        self.micro_batch: int | None = None
        self._part_metrics = [keras.metrics.Mean(name=name) for name in ("contrastive_loss", *_CONCEPT_METRICS, "scale")]
        self._gather_prototypes: Callable[[Any], Any] | None = None
        self.built = True

    # The parts, from left to right.

    def encode_image(self, images: Any, training: bool | None = None) -> Any:
        """Features of photos `(batch, size, size, 3)` in 0..255: what a feature cache stores."""
        return self.image_encoder.encode(images, training=bool(training) and self.image_encoder.trainable)

    def embed_features(self, features: Any, training: bool | None = False) -> Any:
        """Embeddings `(batch, dim)` of image features: float32, length one."""
        return l2_normalize(ops.cast(self.head(features, training=training), "float32"))

    def embed_image(self, images: Any, training: bool | None = False) -> Any:
        """Embeddings `(batch, dim)` of photos in 0..255: float32, length one."""
        return self.embed_features(self.encode_image(images, training), training)

    def embed_text(self, token_ids: Any, training: bool | None = False) -> Any:
        """Embeddings of token ids `(..., steps)`: float32 `(..., dim)`, length one."""
        token_ids = tf.convert_to_tensor(token_ids)
        shape = tf.shape(token_ids)
        rows = tf.reshape(token_ids, (-1, shape[-1])) if token_ids.shape.rank != 2 else token_ids
        embeddings = l2_normalize(ops.cast(self.text_encoder(rows, training=training), "float32"))
        if token_ids.shape.rank == 2:
            return embeddings
        return tf.reshape(embeddings, tf.concat([shape[:-1], [self.dim]], 0))

    def embed_concepts(self, token_ids: Any, prompts: Any = None, training: bool | None = False) -> Any:
        """Embeddings float32 `(batch, slots, dim)` of prompts' token ids `(batch, slots, steps)`.

        With `prompts`, int `(batch, slots)`, equal for equal prompts, each of them is embedded once.
        """
        if prompts is None:
            return self.embed_text(token_ids, training)
        numbers, place = tf.unique(tf.reshape(prompts, (-1,)))
        count = tf.size(numbers)
        first = tf.math.unsorted_segment_min(tf.range(tf.size(place)), place, count)
        rows = tf.gather(tf.reshape(token_ids, (-1, tf.shape(token_ids)[-1])), first)
        embeddings = tf.gather(self.embed_text(rows, training), place)
        return tf.reshape(embeddings, (-1, prompts.shape[1], self.dim))

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> dict[str, Any]:
        outputs = {}
        if "features" in inputs:
            outputs["image"] = self.embed_features(inputs["features"], training)
        elif "image" in inputs:
            outputs["image"] = self.embed_image(inputs["image"], training)
        if "text" in inputs:
            outputs["text"] = self.embed_text(inputs["text"], training)
        if "concept_text" in inputs:
            outputs["concept"] = self.embed_concepts(inputs["concept_text"], inputs.get("concept_prompts"), training)
        if not outputs:
            raise UsageError(f"Expected 'image', 'features' or 'text' among the inputs; found {sorted(inputs)}.")
        return outputs

    # Training.

    def attach_prototypes(self, gather: Callable[[Any], Any] | None) -> None:
        """Gives the concept loss its prototypes; they are no part of the saved model.

        Args:
            gather: Function from concept ids `(batch, slots)`, -1 for none, to unit image vectors `(batch, slots, prototypes, dim)`,
                such as `ConceptPrototypes.gather`; None takes them away.
        """
        # Behind a function, so that neither Keras nor TensorFlow takes what it belongs to for a part of the model.
        self._gather_prototypes = None if gather is None else (lambda ids: gather(ids))

    def compile(
        self,
        optimizer: Any = "adam",
        loss: Any = "chunked_infonce",
        jit_compile: Any = False,
        concept_loss: ConceptLoss | None = None,
        concept_weighting: str = "adaptive",
        concept_weight: float = 1.0,
        concept_start: int = 0,
        micro_batch: int | None = None,
        **kwargs: Any,
    ) -> None:
        """As `keras.Model.compile`.

        Args:
            optimizer, jit_compile: As in Keras.
            loss: A `MatchingLoss` or a name in `LOSSES`; it is given `{"query": exp(s) * image, "target": text}`.
            concept_loss: FashionKLIP's concept-visual alignment; None for none. Needs `attach_prototypes` and concepts in the inputs.
            concept_weighting, concept_weight: How the two are added (see `losses.concept.weigh_losses`).
            concept_start: Steps at the beginning with the contrastive loss alone.
            micro_batch: None, or the number of examples that go through the towers at a time: the gradient is that of the whole batch,
                the memory that of a few examples (gradient caching, Gao et al., 2021).

        Raises:
            UsageError: unknown weighting, or a micro-batch below 1.
        """
        if isinstance(loss, str):
            loss = LOSSES.get(loss)()
        if concept_weighting not in WEIGHTINGS:
            raise UsageError(f"compile(concept_weighting=...): expected one of {', '.join(WEIGHTINGS)}; found {concept_weighting!r}.")
        if micro_batch is not None and micro_batch < 1:
            raise UsageError(f"compile(micro_batch=...): expected at least 1, found {micro_batch}.")
        self.concept_loss, self.concept_weighting, self.concept_weight = concept_loss, concept_weighting, float(concept_weight)
        self.concept_start, self.micro_batch = int(concept_start), micro_batch
        super().compile(optimizer=optimizer, loss=loss, jit_compile=jit_compile, **kwargs)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        hidden = () if self.concept_loss is not None else _CONCEPT_METRICS
        return [metric for metric in super().metrics if metric.name not in hidden]

    def scale(self) -> Any:
        """exp(s), the factor of the cosines; float32 scalar."""
        return ops.exp(ops.convert_to_tensor(self.logit_scale))

    def objective(self, labels: Any, outputs: Mapping[str, Any], concept_ids: Any = None, sample_weight: Any = None) -> Any:
        """The loss of embeddings: this replica's part, whose sum over the replicas is the loss of the global batch.

        Args:
            labels: Integer `(batch,)`: pairs with equal labels belong together too.
            outputs: What the call returns, with both sides.
            concept_ids: Rows of the prototypes `(batch, slots)`, -1 for none; None: no concept loss.
            sample_weight: Optional `(batch,)` factors of the pairs in the contrastive part.

        Returns:
            float32 scalar.
        """
        scale = self.scale()
        pair = {"query": outputs["image"] * scale, "target": outputs["text"]}
        if self.logit_bias is not None:
            pair["bias"] = ops.convert_to_tensor(self.logit_bias)
        contrastive = self.loss(labels, pair, sample_weight=sample_weight)
        self._log("contrastive_loss", sum_over_replicas(ops.stop_gradient(contrastive)))
        self._log("scale", scale)
        if self.concept_loss is None or concept_ids is None:
            return contrastive
        if self._gather_prototypes is None:
            raise UsageError("The concept loss needs prototypes: call attach_prototypes first.")
        gather, concept_loss = self._gather_prototypes, self.concept_loss

        def with_concepts() -> tuple[Any, Any, Any]:
            prototypes = tf.stop_gradient(gather(concept_ids))
            concept = concept_loss(outputs["image"], outputs["concept"], prototypes, concept_ids >= 0, scale, concept_ids)
            total, weight = weigh_losses(contrastive, concept, self.concept_weighting, self.concept_weight)
            return total, sum_over_replicas(ops.stop_gradient(concept)), weight

        if self.concept_start:
            begun = self.optimizer.iterations >= self.concept_start
            total, concept, weight = tf.cond(begun, with_concepts, lambda: (contrastive, tf.zeros(()), tf.zeros(())))
        else:
            total, concept, weight = with_concepts()
        self._log("concept_loss", concept)
        self._log("concept_weight", weight)
        return total

    def _log(self, name: str, value: Any) -> None:
        next(metric for metric in self._part_metrics if metric.name == name).update_state(value)

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True) -> Any:
        """The objective over the global batch; `y` are integer labels `(batch,)` of the pairs."""
        if not {"image", "text"} <= set(y_pred):
            raise UsageError("The loss needs both sides: give 'text' and 'image' (or 'features') among the inputs.")
        loss = self.objective(y, y_pred, x.get("concept_ids"), sample_weight)
        for extra in self.losses:
            loss = loss + self._aggregate_additional_loss(extra)
        return loss

    def train_step(self, data: Any) -> dict[str, Any]:
        """Keras' step, or with `micro_batch` one whose towers see a few examples at a time."""
        if self.micro_batch is None:
            return super().train_step(data)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if not ({"image", "features"} & set(x) and "text" in x):
            raise UsageError("The loss needs both sides: give 'text' and 'image' (or 'features') among the inputs.")
        encoders: dict[str, tuple[Callable[[Any], Any], Any]] = {"text": (lambda rows: self.embed_text(rows, True), x["text"])}
        if "features" in x:
            encoders["image"] = (lambda rows: self.embed_features(rows, True), x["features"])
        else:
            encoders["image"] = (lambda rows: self.embed_image(rows, True), x["image"])
        if "concept_text" in x:
            rows = {name: x[name] for name in ("concept_text", "concept_prompts") if name in x}
            encoders["concept"] = (lambda rows: self.embed_concepts(rows["concept_text"], rows.get("concept_prompts"), True), rows)

        def loss_of(*embeddings: Any) -> tuple[Any, Any]:
            outputs = dict(zip(encoders, embeddings, strict=True))
            loss = self.compute_loss(x, y, outputs, sample_weight)
            return self.optimizer.scale_loss(loss), loss

        variables = self.trainable_variables
        (_, loss), gradients = cached_gradients(
            [encode for encode, _ in encoders.values()],
            [rows for _, rows in encoders.values()],
            loss_of,
            variables,
            self.micro_batch,
            [self],
        )
        self.optimizer.apply(gradients, variables)
        self._loss_tracker.update_state(sum_over_replicas(loss), sample_weight=tf.shape(y)[0])
        return self.get_metrics_result()

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
            "max_scale": self.max_scale,
            "trainable_scale": self.trainable_scale,
            "initial_bias": self.initial_bias,
        }

    def token_ids(self, texts: Any) -> tf.Tensor:
        """Token ids int32 `(batch, steps)` of texts (a list, an array or a string tensor), by the model's own tokeniser.

        Raises:
            UsageError: the model was built without one.
        """
        if self.tokenizer is None:
            raise UsageError("This model has no tokenizer: build it with DualEncoder(tokenizer=...).")
        return token_ids(self.tokenizer, texts)


def token_ids(tokenizer: Any, texts: Any) -> tf.Tensor:
    """Token ids int32 `(n, steps)` by either kind of tokeniser; eagerly where `texts` are given as Python or NumPy strings."""
    if isinstance(tokenizer, CLIPTokenizer):
        if isinstance(texts, tf.Tensor):
            return tokenizer.encode_graph(texts)
        return tf.constant(tokenizer.encode([str(text) for text in texts]))
    return tokenizer(np.asarray(texts, dtype=object) if isinstance(texts, list) else texts)


def load_dual(path: str | Path) -> DualEncoder:
    """Loads a `.keras` file of a dual encoder; raises as `load_as`."""
    return load_as(path, DualEncoder)
