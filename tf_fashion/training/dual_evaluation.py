"""Embedding a dataset with a `DualEncoder` and measuring it under a named protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from tf_fashion.datasets.image_text import ImageTextDataset
from tf_fashion.models.dual import DualEncoder
from tf_fashion.retrieval.dual import DualResult, evaluate_dual
from tf_fashion.retrieval.dual_protocol import DualProtocol
from tf_fashion.training.embedding import PictureEmbedder


class DualEmbedder(PictureEmbedder):
    """Runs a dual encoder's sides in batches, each traced once.

    Args:
        model: The model.
        batch_size: Photos at a time.
    """

    def __init__(self, model: DualEncoder, batch_size: int = 32) -> None:
        super().__init__(model, batch_size)
        self._features = self.on_features(model.embed_features)
        self._tokens = tf.function(model.embed_text, input_signature=[tf.TensorSpec((None, None), tf.int32)])

    def features(self, features: np.ndarray) -> np.ndarray:
        """Embeddings float32 `(n, dim)` of image features `(n, ...)`."""
        return self.in_blocks(self._features, features, self.model.dim)

    def images(self, paths: Sequence[Path], progress: bool = True) -> np.ndarray:
        """Embeddings float32 `(n, dim)` of photos."""
        return self.photos(
            paths, lambda images: self._features(self.encode(images)).numpy(), (self.model.dim,), "embedding images", progress
        )

    def tokens(self, rows: np.ndarray) -> np.ndarray:
        """Embeddings float32 `(n, dim)` of token ids `(n, steps)`."""
        return self.in_blocks(self._tokens, rows, self.model.dim, np.int32)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings float32 `(n, dim)` of texts."""
        return self.tokens(np.asarray(self.model.token_ids(list(texts)))) if texts else self.tokens(np.empty((0, 1), np.int32))


@dataclass(frozen=True)
class DualEvaluation:
    """Everything about an evaluated split that reports need."""

    result: DualResult
    image_ids: list[str]
    texts: list[str]
    answers: list[tuple[str, ...]]
    image_embeddings: np.ndarray
    text_embeddings: np.ndarray


def evaluate_split(
    dataset: ImageTextDataset, split: str, protocol: DualProtocol, image_embeddings: np.ndarray, text_embeddings: np.ndarray
) -> DualEvaluation:
    """Measures embeddings of a split's pictures (in the order of `image_truth`) and texts (in the order of `queries`)."""
    queries, truth = dataset.queries(split), dataset.image_truth(split)
    ids = list(truth)
    groups = None
    if protocol.candidates == "sample" and protocol.group is not None:
        groups = {image_id: str(group) for image_id in ids if (group := dataset.group(image_id)) is not None}
    result = evaluate_dual(
        image_embeddings,
        ids,
        text_embeddings,
        [query.query_id for query in queries],
        text_truth={query.query_id: query.item_ids for query in queries},
        image_truth=truth,
        protocol=protocol,
        groups=groups,
    )
    answers = [query.item_ids for query in queries]
    return DualEvaluation(result, ids, [query.text for query in queries], answers, image_embeddings, text_embeddings)
