"""RTIC-GCN: a graph of alike training examples, and a second stream that teaches the composer with it (Shin et al., 2021).

    features of all N training triplets --build_graph--> TripletGraph --GraphStream(query, rows)--> a loss beside the matching loss

The stream is training only: nothing of it is part of the model that is evaluated or exported.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_fashion.composers import Composer
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import atomic_write
from tf_fashion.inputs.feature_cache import FeatureTable
from tf_fashion.inputs.pipelines import TripletTable, query_text
from tf_fashion.layers import Adjacency, GraphConvolution
from tf_fashion.models import ComposedRetriever
from tf_fashion.retrieval.search import unit_rows
from tf_fashion.training.evaluation import QUERY_BATCH

# Candidates for the threshold of similarity: 0.01, 0.02, ..., 1.00.
THRESHOLDS = (np.arange(1, 101) / 100).astype(np.float32)


@dataclass(frozen=True)
class TripletGraph:
    """The training triplets as nodes.

    Attributes:
        image: float32 `(N, dim)`, features of the reference images.
        text: float32 `(N, text_dim)`, features of the texts.
        adjacency: Who neighbours whom.
        threshold: Similarity in [0, 1] from which on two nodes are neighbours.
        ratio: The share of neighbours that was asked for.
    """

    image: np.ndarray
    text: np.ndarray
    adjacency: Adjacency
    threshold: float
    ratio: float

    def save(self, path: str | Path) -> None:
        """Writes the graph as `.npz`, whole or not at all."""
        numbers = np.array([self.adjacency.tau, self.threshold, self.ratio])
        with atomic_write(path, "wb") as file:
            np.savez(file, image=self.image, text=self.text, bits=self.adjacency.bits, numbers=numbers)

    @classmethod
    def load(cls, path: str | Path, layout: str = "auto") -> TripletGraph:
        """Reads what `save` has written.

        Raises:
            DataError: the file holds something else.
        """
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                image, text, bits = file["image"], file["text"], file["bits"]
                tau, threshold, ratio = (float(x) for x in file["numbers"])
            return cls(image, text, Adjacency(bits, tau, layout), threshold, ratio)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: not a readable graph ({error}). Delete the file, and the graph is built anew.") from None


def graph_features(target: np.ndarray, composed: np.ndarray) -> np.ndarray:
    """What similarity is measured on: the unit vector of [unit target feature; unit composed feature].

    Args:
        target: Floating `(N, dim)`, features of the wanted images.
        composed: Floating `(N, dim)`, queries of a trained composer.

    Returns:
        float32 `(N, 2 * dim)`.
    """
    parts = [unit_rows(np.asarray(x, dtype=np.float32)) for x in (target, composed)]
    return unit_rows(np.concatenate(parts, axis=1))


def _similarities(features: np.ndarray, block: int) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of rows of `(F F^T + 1) / 2` in [0, 1], each with the number of its first row."""
    columns = tf.constant(features)
    for start in range(0, len(features), block):
        cosines = tf.matmul(columns[start : start + block], columns, transpose_b=True).numpy()
        similar = np.clip((cosines + np.float32(1.0)) / np.float32(2.0), 0.0, 1.0)
        rows = np.arange(len(similar))
        similar[rows, rows + start] = 1.0  # and not 1 up to rounding
        yield start, similar


def similarity_threshold(features: np.ndarray, ratio: float, block: int = 1024) -> float:
    """The largest of 1.00, 0.99, ..., 0.01 that at least a share `ratio` of all N^2 pairs (a node with itself among them) reaches.

    Args:
        features: float32 `(N, width)`, unit vectors.
        ratio: Share of pairs, in (0, 1].
        block: Rows compared with all at a time.

    Returns:
        The threshold.

    Raises:
        DataError: fewer pairs than that reach 0.01.
    """
    counts = np.zeros(len(THRESHOLDS) + 1, dtype=np.int64)
    for _, similar in _similarities(features, block):
        reached = np.searchsorted(THRESHOLDS, similar.ravel(), side="right")
        counts += np.bincount(reached, minlength=len(counts))
    shares = counts[::-1].cumsum()[::-1][1:] / len(features) ** 2
    enough = np.flatnonzero(shares >= ratio)
    if not enough.size:
        raise DataError(
            f"Expected a similarity that a share of {ratio} of all pairs of training triplets reaches; found that only {shares[0]:.3f} "
            "reach 0.01, so the features point into opposite directions. Give a smaller ratio or the features of a trained model."
        )
    return round(float(THRESHOLDS[enough[-1]]), 2)


def build_graph(
    image: np.ndarray,
    text: np.ndarray,
    target: np.ndarray,
    composed: np.ndarray,
    ratio: float = 0.198,
    tau: float = 0.445,
    block: int = 1024,
    layout: str = "auto",
) -> TripletGraph:
    """The graph of N training triplets: those with alike targets and alike queries are neighbours.

    Similarities are formed for `block` rows at a time, twice: once to find the threshold, once to apply it. Memory is
    `4 * block * N` bytes and one bit per pair.

    Args:
        image: Floating `(N, dim)`, features of the reference images, as the composer takes them.
        text: Floating `(N, text_dim)`, features of the texts.
        target: Floating `(N, dim)`, features of the wanted images.
        composed: Floating `(N, dim)`, queries of a trained composer.
        ratio: Share of pairs that are to be neighbours, in (0, 1] (RTIC-GCN: 0.198 from scratch, 0.164 for fine-tuning).
        tau: Weight of the neighbours against the node itself (0.445 and 0.326).
        block: Rows compared with all at a time.
        layout: See `Adjacency`.

    Returns:
        The graph.

    Raises:
        UsageError: ratio, tau or layout are out of range.
        DataError: the numbers of rows differ, there are fewer than two, or values are not finite.
    """
    if not 0.0 < ratio <= 1.0:
        raise UsageError(f"build_graph(ratio=...): expected a share in (0, 1], found {ratio!r}.")
    given = {"image": image, "text": text, "target": target, "composed": composed}
    arrays = {name: np.asarray(x, dtype=np.float32) for name, x in given.items()}
    nodes = len(arrays["image"])
    for name, array in arrays.items():
        if array.ndim != 2 or len(array) != nodes or nodes < 2:
            shapes = {other: x.shape for other, x in arrays.items()}
            raise DataError(f"build_graph: expected four arrays (N, width) with one N of at least 2; found the shapes {shapes}.")
        if not np.isfinite(array).all():
            raise DataError(f"build_graph: {name} holds NaN or infinite values. Compute the features again from a sound model.")
    features = graph_features(arrays["target"], arrays["composed"])
    threshold = similarity_threshold(features, ratio, block)
    bits = np.zeros((nodes, (nodes + 7) // 8), dtype=np.uint8)
    for start, similar in _similarities(features, block):
        bits[start : start + len(similar)] = np.packbits(similar >= np.float32(threshold), axis=1)
    return TripletGraph(arrays["image"], arrays["text"], Adjacency(bits, tau, layout), threshold, ratio)


def triplet_features(model: ComposedRetriever, features: FeatureTable, triplets: TripletTable) -> dict[str, np.ndarray]:
    """What `build_graph` takes, from a trained model; the captions of a pair keep their order.

    Args:
        model: A retriever whose composer works on vectors.
        features: What `model.image_encoder` gives for the photos of all triplets.
        triplets: The N triplets.

    Returns:
        `image`, `target`, `composed`: float32 `(N, dim)`, and `text`: float32 `(N, text_dim)`; none of them normalised.

    Raises:
        UsageError: the composer works on maps.
        DataError: a photo has no features.
    """
    if model.composer.spatial:
        raise UsageError(
            f"A graph needs a model whose composer works on vectors; {model.composer.name!r} works on feature maps. Give another model."
        )
    shape = model.image_encoder.feature_shape

    @tf.function(
        input_signature=[tf.TensorSpec((None, *shape), tf.float32)] * 2
        + [tf.TensorSpec((None, None), tf.int32)]
        + [tf.TensorSpec((None,), tf.int32)] * model.needs_lengths
    )
    def embed(references: tf.Tensor, targets: tf.Tensor, *texts: tf.Tensor) -> dict[str, tf.Tensor]:
        text = model.encode_text(texts[0], False, *texts[1:])
        image, target = (model.project_levels(x, training=False)[0] for x in (references, targets))
        composed = model.composer(image, text, training=False)
        found = {"image": image, "text": text, "target": target, "composed": composed}
        return {name: tf.cast(x, tf.float32) for name, x in found.items()}

    rows = [features.rows(ids) for ids in (triplets.references, triplets.targets)]
    sentences = [query_text(captions, model.caption_style) for captions in triplets.captions]
    parts = []
    for at in range(0, len(triplets), QUERY_BATCH):
        photos = [np.asarray(features.values[column[at : at + QUERY_BATCH]], np.float32) for column in rows]
        parts.append(embed(*photos, *model.text_inputs(sentences[at : at + QUERY_BATCH])))
    return {name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]}


class GraphStream(keras.layers.Layer):
    """A composer and two graph convolutions over all training triplets, and the loss of a batch's queries against them.

    With C the composer's results for all nodes (its batch statistics are over all of them), A the normalised adjacency and Z its
    0/1 form: `H = A relu(A C G1 + b1) G2 + b2`, `p = sigmoid(query H^T)`, and the loss is the binary cross-entropy of p against
    the rows of Z that belong to the queries. It is added to a matching loss on the same queries; gradients reach the queries too.

    Every call runs over all N nodes. The stream is no part of a saved model; its weights are those of a plain Keras layer.

    Args:
        composer: A `Composer` on vectors with weights of its own, of the same kind as the trained one.
        graph: The graph.
        hidden: Width between the convolutions.
        class_balanced: Neighbours and the others have one half of the loss each, instead of the mean over all pairs.

    Call arguments:
        query: Floating `(batch, dim)`, the trained composer's results, not normalised.
        rows: Integer `(batch,)`, the queries' nodes, values in [0, N).
        training: Whether the composer uses batch statistics and dropout.

    Returns:
        float32 scalar.

    Raises:
        UsageError: the composer works on maps.
    """

    def __init__(
        self, composer: Composer, graph: TripletGraph, hidden: int = 1024, class_balanced: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if composer.spatial:
            raise UsageError(f"GraphStream needs a composer that works on vectors; {composer.name!r} works on feature maps.")
        self.composer = composer
        self.graph = graph
        self.class_balanced = class_balanced
        self.first = GraphConvolution(hidden, name="first")
        self.second = GraphConvolution(graph.image.shape[1], name="second")
        self._image, self._text = tf.constant(graph.image), tf.constant(graph.text)

    def build(self, query_shape: Any = None, rows_shape: Any = None) -> None:
        if not self.composer.built:
            self.composer.build((None, self._image.shape[1]), (None, self._text.shape[1]))
        self.first.build((None, self._image.shape[1]))
        self.second.build((None, self.first.units))
        self.built = True

    def node_embeddings(self, training: bool | None = None) -> Any:
        """H: float32 `(N, dim)`."""
        nodes = tf.cast(self.composer(self._image, self._text, training=training), tf.float32)
        adjacency = self.graph.adjacency
        hidden = tf.nn.relu(self.first(nodes, adjacency=adjacency))
        return self.second(hidden, adjacency=adjacency)

    def node_logits(self, query: Any, training: bool | None = None) -> Any:
        """The queries' dot products with all nodes, float32 `(batch, N)`: p before its sigmoid."""
        return tf.matmul(tf.cast(query, tf.float32), self.node_embeddings(training), transpose_b=True)

    def call(self, query: Any, rows: Any, training: bool | None = None) -> Any:
        logits = self.node_logits(query, training)
        labels = self.graph.adjacency.neighbours(rows)
        losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
        if not self.class_balanced:
            return tf.reduce_mean(losses)
        halves = [tf.math.divide_no_nan(tf.reduce_sum(mask * losses), tf.reduce_sum(mask)) for mask in (labels, 1.0 - labels)]
        return 0.5 * tf.add_n(halves)

    def compute_output_shape(self, query_shape: Any, rows_shape: Any = None) -> tuple:
        return ()
