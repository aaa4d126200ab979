"""Triplet margin loss on mined triplets: what UDMA trains with, by the definitions of pytorch-metric-learning 0.9.65.

Mining looks at unit rows and passes no gradient; the loss then takes distances of the chosen rows only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_fashion.core.errors import UsageError
from tf_fashion.layers.normalization import l2_normalize
from tf_fashion.losses.base import HUGE, LOSSES, GlobalBatch, MatchingLoss, all_gather

MINERS = ("batch_hard", "multi_similarity")
AVERAGES = ("nonzero", "all")
# Added to every component of a difference, as PyTorch's pairwise distance does.
_SHIFT = 1e-6


class Hardest(NamedTuple):
    """The triplet of every row; all tensors are `(..., rows)`.

    Attributes:
        positive, negative: int32 columns.
        positive_distance, negative_distance: float32; 0 without any positive, infinity without any negative.
        usable: Whether the row has both.
    """

    positive: Any
    negative: Any
    positive_distance: Any
    negative_distance: Any
    usable: Any


def mining_distances(rows: Any, columns: Any, own: Any, column_norms: Any = None) -> Any:
    """Euclidean distances for mining, without gradient.

    Args:
        rows: float32 `(..., n, dim)`.
        columns: float32 `(..., m, dim)`.
        own: Boolean `(..., n, m)`: true where the column is the row itself; once in each row.
        column_norms: None where rows and columns are the same, or squared norms of the columns `(..., m)`.

    Returns:
        float32 `(..., n, m)`; exactly 0 for the row itself, and for copies of it.
    """
    products = tf.stop_gradient(tf.matmul(rows, columns, transpose_b=True))
    # From the product itself, so that copies of a row are at distance 0 and not at the root of a rounding error.
    norms = squared_norms(products, own)
    others = norms if column_norms is None else column_norms
    squared = norms[..., :, tf.newaxis] + others[..., tf.newaxis, :] - 2.0 * products
    return tf.sqrt(tf.where(own, tf.zeros_like(squared), tf.maximum(squared, 0.0)))


def squared_norms(products: Any, own: Any) -> Any:
    """Squared norms `(..., n)` of the rows, from their products `(..., n, m)` with all columns."""
    return tf.reduce_sum(tf.where(own, products, tf.zeros_like(products)), axis=-1)


def hardest(distances: Any, positive: Any, negative: Any, weights: Any = None, original_fallback: bool = False) -> Hardest:
    """The farthest positive and the nearest negative of every row (Hermans et al., 2017); the first of equals.

    Args:
        distances: float32 `(..., n, m)`.
        positive, negative: Boolean `(..., n, m)`.
        weights: None, or float32 `(..., m)` by which the distances of positives are multiplied for the choice.
        original_fallback: What is no positive counts with distance 0. So column 0, whatever it is, is the positive of a row without
            any, and of one whose positives are all copies of it; and it is the negative of a row without any. All rows are usable.
    """
    far = distances if weights is None else distances * weights[..., tf.newaxis, :]
    infinity = tf.constant(float("inf"), distances.dtype)
    far = tf.where(positive, far, tf.zeros_like(far) if original_fallback else -infinity)
    near = tf.where(negative, distances, infinity)
    farthest = tf.argmax(far, axis=-1, output_type=tf.int32)
    nearest = tf.argmin(near, axis=-1, output_type=tf.int32)
    usable = tf.reduce_any(positive, axis=-1) & tf.reduce_any(negative, axis=-1)
    return Hardest(
        farthest,
        nearest,
        tf.reduce_max(tf.where(positive, distances, tf.zeros_like(distances)), axis=-1),
        tf.reduce_min(near, axis=-1),
        tf.ones_like(usable) if original_fallback else usable,
    )


def multi_similarity_pairs(similarity: Any, positive: Any, negative: Any, epsilon: float = 0.1) -> tuple[Any, Any]:
    """The pairs that the multi-similarity miner keeps (Wang et al., CVPR 2019).

    A negative is kept if it is more similar than the least similar positive less epsilon, a positive if it is less similar than the
    most similar negative plus epsilon.

    Args:
        similarity: float32 `(n, m)`, cosines.
        positive, negative: Boolean `(n, m)`.
        epsilon: Margin.

    Returns:
        int32 `(pairs, 2)` of positives and of negatives: row and column, by row and then by rising similarity.
    """
    least = tf.reduce_min(tf.where(positive, similarity, HUGE), axis=1, keepdims=True)
    most = tf.reduce_max(tf.where(negative, similarity, -HUGE), axis=1, keepdims=True)
    kept_positive = positive & (similarity - epsilon < most) & (most > -HUGE)
    kept_negative = negative & (similarity + epsilon > least) & (least < HUGE)
    order = tf.argsort(similarity, axis=1, stable=True)

    def pairs(kept: Any) -> Any:
        places = tf.cast(tf.where(tf.gather(kept, order, batch_dims=1)), tf.int32)
        return tf.stack([places[:, 0], tf.gather_nd(order, places)], axis=1)

    return pairs(kept_positive), pairs(kept_negative)


def triplets_of_pairs(positives: Any, negatives: Any, rows: Any, original_pairing: bool = False) -> Any:
    """Every positive pair of a row with every negative pair of it.

    Args:
        positives, negatives: int32 `(pairs, 2)`: row and column, sorted by row.
        rows: Number of rows.
        original_pairing: A row's shorter list is repeated until it is as long as the longer one, and the two are joined in order.

    Returns:
        int32 `(triplets, 3)`: row, positive column, negative column; sorted by row.
    """
    counts = [tf.math.bincount(part[:, 0], minlength=rows, maxlength=rows) for part in (positives, negatives)]
    starts = [tf.cumsum(count, exclusive=True) for count in counts]
    both = (counts[0] > 0) & (counts[1] > 0)
    size = tf.maximum(*counts) if original_pairing else counts[0] * counts[1]
    size = tf.where(both, size, tf.zeros_like(size))
    row = tf.repeat(tf.range(rows), size)
    place = tf.range(tf.reduce_sum(size)) - tf.gather(tf.cumsum(size, exclusive=True), row)
    of_row = [tf.gather(count, row) for count in counts]
    first = place % of_row[0] if original_pairing else place // of_row[1]
    columns = [
        tf.gather(part[:, 1], tf.gather(start, row) + at)
        for part, start, at in zip((positives, negatives), starts, (first, place % of_row[1]), strict=True)
    ]
    return tf.stack([row, *columns], axis=1)


@LOSSES.register("mined_triplet")
@keras.saving.register_keras_serializable("tf_fashion")
class MinedTriplet(MatchingLoss):
    """Triplet margin loss `max(0, D(a, p) - D(a, n) + margin)` on mined triplets, averaged over those that are not 0.

    UDMA's loss (Sharma et al., WACV 2021), as pytorch-metric-learning 0.9.65 defines it: rows are scaled to length one, D is the
    Euclidean distance with 1e-6 added to every component of the difference.

    A query and its target are two members of the set. `of_categories` is the same over several sets at once.

    Args:
        margin: Margin.
        miner: "batch_hard" (every row with its farthest positive and nearest negative) or "multi_similarity".
        epsilon: Of the multi-similarity miner.
        average: "nonzero" (over the triplets above 0) or "all".
        power: Of the distances.
        swap: Whether the negative's distance is the smaller one of those from anchor and from positive (Balntas et al., BMVC 2016).
        smooth: Whether the hinge is replaced by softplus, without margin.
        normalize: Whether rows are scaled to length one in the loss; in mining they always are.
        original_fallback: See `hardest`. The default leaves out rows without positives or without negatives.
        original_pairing: See `triplets_of_pairs`.

    Raises:
        UsageError: unknown `miner` or `average`.
    """

    def __init__(
        self,
        margin: float = 0.3,
        miner: str = "batch_hard",
        epsilon: float = 0.1,
        average: str = "nonzero",
        power: float = 1.0,
        swap: bool = False,
        smooth: bool = False,
        normalize: bool = True,
        original_fallback: bool = False,
        original_pairing: bool = False,
        name: str | None = "mined_triplet",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        for option, value, known in (("miner", miner, MINERS), ("average", average, AVERAGES)):
            if value not in known:
                raise UsageError(f"MinedTriplet({option}=...): expected one of {', '.join(known)}; found {value!r}.")
        self.margin = margin
        self.miner = miner
        self.epsilon = epsilon
        self.average = average
        self.power = power
        self.swap = swap
        self.smooth = smooth
        self.normalize = normalize
        self.original_fallback = original_fallback
        self.original_pairing = original_pairing

    def triplet_losses(self, anchor: Any, positive: Any, negative: Any) -> Any:
        """The loss `(...,)` of each of the triplets `(..., dim)`, before any average."""
        near, far = _distance(anchor, positive), _distance(anchor, negative)
        if self.swap:
            far = tf.minimum(far, _distance(positive, negative))
        if self.power != 1:
            near, far = tf.pow(near, self.power), tf.pow(far, self.power)
        return tf.math.softplus(near - far) if self.smooth else tf.nn.relu(near - far + self.margin)

    def from_triplets(self, embeddings: Any, triplets: Any) -> Any:
        """The loss of given triplets.

        Args:
            embeddings: float32 `(rows, dim)`.
            triplets: Integer `(count, 3)`: rows of anchor, positive, negative.

        Returns:
            float32 scalar, 0 without triplets.
        """
        rows = l2_normalize(embeddings) if self.normalize else embeddings
        losses = self.triplet_losses(*(_rows_at(rows, triplets[:, k]) for k in range(3)))
        return tf.math.divide_no_nan(tf.reduce_sum(losses), self._counted(losses, tf.ones_like(losses)))

    def _counted(self, losses: Any, weights: Any, axis: int | None = None) -> Any:
        counted = weights if self.average == "all" else tf.where(losses > 0, weights, tf.zeros_like(weights))
        return tf.reduce_sum(counted, axis=axis)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        labels, members, copies = self._set(y_true, y_pred)
        batch = GlobalBatch.of(labels)
        unit = l2_normalize(members)
        rows = unit if self.normalize else members
        everyone = all_gather(rows)
        positive, negative = batch.same & ~batch.own, ~batch.same
        columns = tf.stop_gradient(everyone if self.normalize else l2_normalize(everyone))
        if self.miner == "multi_similarity":
            similarity = tf.stop_gradient(tf.matmul(unit, columns, transpose_b=True))
            pairs = multi_similarity_pairs(similarity, positive, negative, self.epsilon)
            triplets = triplets_of_pairs(*pairs, tf.shape(members)[0], self.original_pairing)
            usable = tf.ones_like(triplets[:, 0], dtype=tf.bool)
        else:
            norms = squared_norms(tf.matmul(unit, columns, transpose_b=True), batch.own)
            distances = mining_distances(unit, columns, batch.own, all_gather(tf.stop_gradient(norms)))
            found = hardest(distances, positive, negative, original_fallback=self.original_fallback)
            triplets = tf.stack([tf.range(tf.shape(members)[0]), found.positive, found.negative], axis=1)
            usable = found.usable
        partners = [_rows_at(everyone, triplets[:, k]) for k in (1, 2)]
        losses = self.triplet_losses(_rows_at(rows, triplets[:, 0]), *partners)
        losses = tf.where(usable, losses, tf.zeros_like(losses))
        local = self._counted(losses, tf.cast(usable, losses.dtype))
        counted = tf.reduce_sum(all_gather(local[tf.newaxis]))
        per_row = tf.math.unsorted_segment_sum(losses, triplets[:, 0], tf.shape(members)[0])
        # The base divides by the number of input rows.
        total = tf.cast(tf.reduce_sum(all_gather(tf.shape(y_true)[:1])), losses.dtype)
        per_input = tf.reduce_sum(tf.reshape(per_row, [copies, -1]), axis=0)
        return tf.math.divide_no_nan(per_input * total, counted)

    def of_categories(self, labels: Any, embeddings: Any, weights: Any = None) -> Any:
        """The sum of the losses of several sets; positives and negatives come from the row's own set.

        Args:
            labels: Integer `(sets, rows)`; rows with -1 are padding.
            embeddings: Floating `(sets, rows, dim)`.
            weights: None, or float `(sets, rows)`, at least 0: how much a row is trusted to have its label. A triplet counts with the
                weights of its anchor and positive, and the farthest positive is chosen by weighted distance.

        Returns:
            float32 scalar.

        Raises:
            UsageError: another miner than "batch_hard".
        """
        if self.miner != "batch_hard":
            raise UsageError(f"MinedTriplet.of_categories takes miner='batch_hard', found {self.miner!r}.")
        embeddings = tf.cast(tf.convert_to_tensor(embeddings), self.dtype)
        labels = tf.convert_to_tensor(labels)
        unit = l2_normalize(embeddings)
        rows = unit if self.normalize else embeddings
        there = labels >= 0
        own = tf.eye(tf.shape(labels)[1], dtype=tf.bool)[tf.newaxis]
        same = labels[:, :, tf.newaxis] == labels[:, tf.newaxis, :]
        positive = same & ~own & there[:, :, tf.newaxis]
        negative = ~same & there[:, :, tf.newaxis] & there[:, tf.newaxis, :]
        trust = tf.cast(there, self.dtype) if weights is None else tf.cast(weights, self.dtype) * tf.cast(there, self.dtype)
        own = tf.broadcast_to(own, tf.shape(same))
        distances = mining_distances(unit, unit, own)
        found = hardest(distances, positive, negative, None if weights is None else trust, self.original_fallback)
        chosen = [tf.gather(rows, columns, batch_dims=1) for columns in (found.positive, found.negative)]
        factors = trust * tf.gather(trust, found.positive, batch_dims=1)
        factors = tf.where(found.usable, factors, tf.zeros_like(factors))
        losses = self.triplet_losses(rows, *chosen)
        sums, counts = tf.reduce_sum(factors * losses, axis=1), self._counted(losses, factors, axis=1)
        return tf.reduce_sum(tf.math.divide_no_nan(sums, counts))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "margin": self.margin,
            "miner": self.miner,
            "epsilon": self.epsilon,
            "average": self.average,
            "power": self.power,
            "swap": self.swap,
            "smooth": self.smooth,
            "normalize": self.normalize,
            "original_fallback": self.original_fallback,
            "original_pairing": self.original_pairing,
        }


def _rows_at(x: Any, places: Any) -> Any:
    """`tf.gather` whose gradient is dense, as the gathering over replicas needs it."""
    return tf.gather(x[tf.newaxis], places[tf.newaxis], batch_dims=1)[0]


def _distance(a: Any, b: Any) -> Any:
    squared = tf.reduce_sum(tf.square(a - b + _SHIFT), axis=-1)
    # The square root's slope at 0 is infinite.
    return tf.sqrt(tf.maximum(squared, 1e-24))
