"""Losses over pairs: lifted structure, n-pairs, contrastive, and regression to a given embedding of the target."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tf_fashion.core.errors import UsageError
from tf_fashion.layers import l2_normalize
from tf_fashion.losses.base import (
    DISTANCES,
    HUGE,
    LOSSES,
    GlobalBatch,
    MatchingLoss,
    all_gather,
    pairwise_distances,
)
from tf_fashion.losses.triplet import _global_sum, _SetLoss


@LOSSES.register("lifted_structure")
@keras.saving.register_keras_serializable("tf_fashion")
class LiftedStructure(_SetLoss):
    """Lifted structured embedding (Oh Song et al., CVPR 2016), as tensorflow-addons' LiftedStructLoss.

    With `J_ij = D_ij + log(sum_{k not like i} exp(m - D_ik) + sum_{k not like j} exp(m - D_jk))` over the P unordered positive
    pairs: `sum_{i,j} max(0, J_ij)^2 / (4 P)`, the sum over ordered pairs. Pairs without any negative contribute 0; without a
    positive pair the loss is 0.

    Args:
        margin: m, the margin.
        distance: `"l2"`, `"squared_l2"`, `"l1"` or `"angular"`.
    """

    def __init__(self, margin: float = 1.0, distance: str = "l2", name: str | None = "lifted_structure", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        if distance not in DISTANCES:
            raise UsageError(f"LiftedStructure: unknown distance {distance!r}. Known: {', '.join(DISTANCES)}.")
        self.margin = margin
        self.distance = distance

    def _members(self, batch: GlobalBatch, members: Any, everyone: Any) -> Any:
        distances = pairwise_distances(members, everyone, self.distance, batch.own)
        positive = tf.logical_and(batch.same, tf.logical_not(batch.own))
        repulsion = tf.where(batch.same, tf.cast(-HUGE, distances.dtype), self.margin - distances)
        row = tf.reduce_logsumexp(repulsion, axis=1)
        column = all_gather(row)
        high, low = tf.maximum(row[:, None], column[None, :]), tf.minimum(row[:, None], column[None, :])
        energy = distances + high + tf.math.log1p(tf.exp(low - high))
        energy = tf.where(positive, tf.nn.relu(energy), tf.zeros_like(energy))
        ordered_pairs = _global_sum(tf.reduce_sum(tf.cast(positive, distances.dtype), axis=1))
        members_in_all = tf.cast(tf.shape(everyone)[0], distances.dtype)
        return tf.math.divide_no_nan(0.5 * tf.reduce_sum(tf.square(energy), axis=1) * members_in_all, ordered_pairs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "margin": self.margin, "distance": self.distance}


def npairs_rows(similarities: Any, same: Any) -> Any:
    """Cross-entropy of every row of similarities against the even distribution over its positives.

    Args:
        similarities: Floating `(n, m)`.
        same: Boolean `(n, m)`, true for positives; at least one per row.

    Returns:
        Tensor `(n,)`.
    """
    truth = tf.cast(same, similarities.dtype)
    truth = tf.math.divide_no_nan(truth, tf.reduce_sum(truth, axis=1, keepdims=True))
    return tf.nn.softmax_cross_entropy_with_logits(truth, similarities)


@LOSSES.register("npairs")
@keras.saving.register_keras_serializable("tf_fashion")
class NPairs(MatchingLoss):
    """N-pairs loss (Sohn, NeurIPS 2016): all targets of the query's label share the probability of being right.

    Differs from `BatchClassification` in what other rows of the same label are: positives here. As tensorflow-addons' NpairsLoss,
    which takes the similarities ready made (`npairs_rows`).
    """

    def __init__(self, name: str | None = "npairs", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        query, target = self._pair(y_pred)
        batch = GlobalBatch.of(y_true)
        return npairs_rows(tf.matmul(query, all_gather(target), transpose_b=True), batch.same)


def contrastive_terms(same: Any, distances: Any, margin: float) -> Any:
    """`same * d^2 + (1 - same) * max(0, margin - d)^2`, element by element (Hadsell et al., CVPR 2006).

    Args:
        same: Boolean tensor or 0/1 numbers.
        distances: Floating tensor of the same shape, values >= 0.
        margin: Distance beyond which negatives cost nothing.

    Returns:
        Tensor of the shape of `distances`.
    """
    same = tf.cast(same, distances.dtype)
    return same * tf.square(distances) + (1.0 - same) * tf.square(tf.nn.relu(margin - distances))


@LOSSES.register("contrastive")
@keras.saving.register_keras_serializable("tf_fashion")
class Contrastive(MatchingLoss):
    """Contrastive loss over all pairs of a query and a target of the global batch, mean over pairs.

    Args:
        margin: Euclidean distance beyond which negatives cost nothing.
    """

    def __init__(self, margin: float = 1.0, name: str | None = "contrastive", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.margin = margin

    def call(self, y_true: Any, y_pred: Any) -> Any:
        query, target = self._pair(y_pred)
        batch = GlobalBatch.of(y_true)
        distances = pairwise_distances(query, all_gather(target), "l2")
        return tf.reduce_mean(contrastive_terms(batch.same, distances, self.margin), axis=1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "margin": self.margin}


@LOSSES.register("match_embedding")
@keras.saving.register_keras_serializable("tf_fashion")
class MatchEmbedding(MatchingLoss):
    """Cosine regression of query and target to a given embedding e: `((1 - cos(q, e)) + (1 - cos(y, e))) / 2`.

    The loss of the `match-*` methods of the FashionIQ 2020 entry. There is no comparison between rows.

    Call arguments:
        y_true: float32 `(batch, dim)` embeddings. Rows of zeros (no embedding known) are left out of the mean.
        y_pred: `{"query": (batch, dim), "target": (batch, dim)}`; zero vectors have cosine 0.
    """

    def __init__(self, name: str | None = "match_embedding", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        query, target = self._pair(y_pred)
        wanted = l2_normalize(tf.cast(y_true, query.dtype), epsilon=1e-16)
        cosines = [tf.reduce_sum(l2_normalize(side, epsilon=1e-16) * wanted, axis=-1) for side in (query, target)]
        known = tf.cast(tf.reduce_max(tf.cast(tf.not_equal(y_true, 0), query.dtype), axis=-1) > 0, query.dtype)
        everyone = all_gather(known)
        share = tf.math.divide_no_nan(tf.cast(tf.size(everyone), query.dtype), tf.reduce_sum(everyone))
        return known * share * (1.0 - 0.5 * (cosines[0] + cosines[1]))
