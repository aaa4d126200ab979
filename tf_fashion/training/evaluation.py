"""Embedding a dataset with a `ComposedRetriever` and measuring it under a named protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tf_fashion.core.errors import DataError
from tf_fashion.datasets import CategorySplit, ComposedDataset
from tf_fashion.datasets.val_files import ground_truth
from tf_fashion.inputs.feature_cache import FeatureTable
from tf_fashion.inputs.pipelines import query_text
from tf_fashion.models import ComposedRetriever
from tf_fashion.retrieval.protocol import CategoryResult, Protocol, evaluate_category, gallery_for
from tf_fashion.retrieval.search import unit_rows
from tf_fashion.training.embedding import PictureEmbedder

QUERY_BATCH = 256


class Embedder(PictureEmbedder):
    """Runs a retriever's parts in batches, each traced once.

    Args:
        model: The retriever.
        batch_size: Photos at a time.
    """

    def __init__(self, model: ComposedRetriever, batch_size: int = 32) -> None:
        super().__init__(model, batch_size)
        signature = [tf.TensorSpec((None, *model.image_encoder.feature_shape), tf.float32), tf.TensorSpec((None, None), tf.int32)]
        if model.needs_lengths:
            signature.append(tf.TensorSpec((None,), tf.int32))
        self._query = tf.function(model.embed_query, input_signature=signature)

    def queries(self, table: FeatureTable, references: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """Query embeddings `(len(texts), dim)` float32."""
        rows = table.rows(references)
        parts = []
        for at in range(0, len(rows), QUERY_BATCH):
            features = np.asarray(table.values[rows[at : at + QUERY_BATCH]], np.float32)
            parts.append(self._query(features, *self.model.text_inputs(list(texts[at : at + QUERY_BATCH]))).numpy())
        return np.concatenate(parts) if parts else np.empty((0, self.model.dim), np.float32)


@dataclass(frozen=True)
class Query:
    """One query as it was evaluated."""

    reference: str
    target: str
    text: str


@dataclass(frozen=True)
class CategoryEvaluation:
    """Everything about one evaluated category that reports need."""

    result: CategoryResult
    queries: list[Query]
    gallery_ids: list[str]
    gallery_missing: int
    query_embeddings: np.ndarray
    gallery_embeddings: np.ndarray
    labels: Mapping[str, str] | None = None

    def right(self, query: Query, image_id: str) -> bool:
        """Whether a picture answers a query under the protocol."""
        if self.labels is None:
            return image_id == query.target
        return self.labels[image_id] == self.labels[query.target]

    def ground_truth(self) -> np.ndarray:
        """bool (queries, gallery): `right` for every query and gallery entry."""
        targets = [query.target for query in self.queries]
        if self.labels is None:
            return ground_truth(targets, self.gallery_ids)
        return ground_truth([self.labels[i] for i in targets], [self.labels[i] for i in self.gallery_ids])


def queries_of(part: CategorySplit, protocol: Protocol) -> list[Query]:
    """The queries of a category under a protocol: one per pair, or one per caption.

    Raises:
        DataError: some pairs have no target.
    """
    if not part.has_targets:
        raise DataError(
            f"{part.category}/{part.split}: the pairs have no targets, so nothing can be measured. Choose a split with targets "
            "(--split val)."
        )
    queries = []
    for triplet in part.triplets:
        if protocol.captions == "single":
            texts = [caption.strip() for caption in triplet.captions if caption.strip()]
        else:
            texts = [query_text(triplet.captions, protocol.join)]
        queries += [Query(triplet.reference, str(triplet.target), text) for text in texts]
    return queries


def embed_queries(
    embedder: Embedder,
    table: FeatureTable,
    protocol: Protocol,
    references: Sequence[str],
    texts: Sequence[str],
    captions: Sequence[Sequence[str]],
) -> np.ndarray:
    """Query embeddings `(queries, dim)` under a protocol; `captions` are read where both orders of a pair are averaged."""
    embeddings = embedder.queries(table, references, texts)
    if protocol.captions == "both_orders":
        embeddings = embeddings + embedder.queries(table, references, [query_text(pair[::-1], protocol.join) for pair in captions])
        embeddings = unit_rows(embeddings)
    return embeddings


def evaluate_part(embedder: Embedder, table: FeatureTable, part: CategorySplit, protocol: Protocol) -> CategoryEvaluation:
    """Evaluates one category."""
    queries = queries_of(part, protocol)
    gallery_ids = gallery_for(protocol, list(part.gallery), part.triplets)
    references = [query.reference for query in queries]
    captions = [triplet.captions for triplet in part.triplets]
    embeddings = embed_queries(embedder, table, protocol, references, [query.text for query in queries], captions)
    gallery = embedder.gallery(table, gallery_ids)
    targets = [query.target for query in queries]
    labels = part.labels if protocol.hit == "any" else None
    result = evaluate_category(embeddings, gallery, gallery_ids, targets, references, protocol, labels=labels)
    return CategoryEvaluation(result, queries, gallery_ids, len(part.missing), embeddings, gallery, labels)


def needed_images(dataset: ComposedDataset, split: str, categories: Iterable[str] | None = None) -> list[str]:
    """Ids of all pictures that the evaluation of a split looks at."""
    ids: dict[str, None] = {}
    for category in categories or dataset.categories:
        ids.update(dict.fromkeys(sorted(dataset.get(category, split).image_ids)))
    return list(ids)


def evaluate_composed(
    embedder: Embedder, dataset: ComposedDataset, table: FeatureTable, protocol: Protocol, categories: Iterable[str] | None = None
) -> dict[str, CategoryEvaluation]:
    """Evaluates all categories of the protocol's split; `table` holds the features of `needed_images`."""
    names = [c for c in (categories or dataset.categories) if protocol.split in dataset.splits(c)]
    return {category: evaluate_part(embedder, table, dataset.get(category, protocol.split), protocol) for category in names}
