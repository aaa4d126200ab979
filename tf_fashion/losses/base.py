"""What all matching losses share: labels that stay integers, the gathered global batch, distances, masked reductions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_fashion.core.errors import UsageError
from tf_fashion.core.registry import Registry

LOSSES: Registry[type[MatchingLoss]] = Registry("loss")

DISTANCES = ("l2", "squared_l2", "l1", "angular")

# A finite stand-in for infinity: differences of two of them are 0 and not NaN.
HUGE = float(np.finfo(np.float32).max) / 4


def all_gather(x: Any) -> Any:
    """Concatenates `x` of all replicas along axis 0, in replica order; `x` itself where there is one replica.

    Gradients flow back to the replica that each row comes from, summed over all replicas. Replicas may hold different numbers
    of rows.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return x
    return context.all_gather(x, axis=0)


def sum_over_replicas(x: Any) -> Any:
    """The sum of `x` over all replicas, on each of them; `x` itself where there is one replica. Gradients flow."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return x
    return context.all_reduce(tf.distribute.ReduceOp.SUM, x)


@dataclass(frozen=True)
class GlobalBatch:
    """Who is who in a global batch.

    Attributes:
        labels: Identities of this replica's rows `(rows,)`.
        all_labels: Identities of all rows `(total,)`.
        keys, all_keys: int32 numbers that are unique per row of the global batch, local and gathered.
    """

    labels: Any
    all_labels: Any
    keys: Any
    all_keys: Any

    @classmethod
    def of(cls, labels: Any) -> GlobalBatch:
        context = tf.distribute.get_replica_context()
        replica, replicas = 0, 1
        if context is not None and context.num_replicas_in_sync > 1:
            replica, replicas = context.replica_id_in_sync_group, context.num_replicas_in_sync
        keys = tf.range(tf.shape(labels)[0]) * replicas + tf.cast(replica, tf.int32)
        return cls(labels, all_gather(labels), keys, all_gather(keys))

    @property
    def own(self) -> Any:
        """Boolean `(rows, total)`: true where the column is the row itself."""
        return self.keys[:, None] == self.all_keys[None, :]

    @property
    def same(self) -> Any:
        """Boolean `(rows, total)`: true where row and column have one label, the row itself among them."""
        return tf.logical_or(self.labels[:, None] == self.all_labels[None, :], self.own)


class MatchingLoss(keras.losses.Loss):
    """Base of the losses that compare the rows of a batch with each other.

    A subclass defines `call(labels, y_pred)`, which returns one value per local row such that their mean over the global batch is
    the loss; `all_gather` and `GlobalBatch` give it the other replicas' rows. The result of the loss is the local sum divided by
    the global number of rows, so that the sum over replicas is exactly the single-process loss, with uneven batches too (Keras
    multiplies the logged value by the number of replicas).

    Args:
        name: Name in logs.
        reduction: `"sum_over_batch_size"` (the mean over the global batch), `"sum"`, or `"none"` for the values per row.
        dtype: Precision inside the loss; float32 whatever the global policy is.

    Call arguments:
        y_true: Integer `(batch,)` identities of the targets: rows with equal identities are never each other's negatives.
        y_pred: `{"query": (batch, dim), "target": (batch, dim)}`, scaled or normalised already; or one tensor `(batch, dim)` for
            the losses over a labelled set.
        sample_weight: Optional `(batch,)` factors of the rows' values.

    Returns:
        float32 scalar (or `(batch,)` for `"none"`).
    """

    def __init__(self, name: str | None = None, reduction: str = "sum_over_batch_size", dtype: Any = "float32") -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if self.reduction not in ("sum_over_batch_size", "sum", "none", None):
            raise UsageError(
                f"{type(self).__name__}: unknown reduction {reduction!r}. Known: 'sum_over_batch_size' (mean), 'sum', 'none'."
            )

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        with tf.name_scope(self.name):
            y_true = tf.convert_to_tensor(y_true)
            if y_true.dtype.is_floating:
                y_true = tf.cast(y_true, self.dtype)
            y_pred = tf.nest.map_structure(lambda x: tf.cast(tf.convert_to_tensor(x), self.dtype), y_pred)
            values = self.call(y_true, y_pred)
            if sample_weight is not None:
                values = values * tf.reshape(tf.cast(sample_weight, values.dtype), tf.shape(values))
            if self.reduction in ("none", None):
                return values
            total = tf.reduce_sum(values)
            if self.reduction == "sum":
                return total
            return total / tf.cast(tf.maximum(_global_rows(values), 1), total.dtype)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must define call(labels, y_pred)")

    def _pair(self, y_pred: Any) -> tuple[Any, Any]:
        if not isinstance(y_pred, dict) or not {"query", "target"} <= set(y_pred):
            found = f"a dictionary with {sorted(y_pred)}" if isinstance(y_pred, dict) else f"a {type(y_pred).__name__}"
            raise UsageError(f"{type(self).__name__}: expected predictions with 'query' and 'target' rows, found {found}.")
        return y_pred["query"], y_pred["target"]

    def _set(self, labels: Any, y_pred: Any) -> tuple[Any, Any, int]:
        """Rows as one labelled set: labels, embeddings, and how many members each row has in it.

        A query and its target become two members of the set with one label.
        """
        if isinstance(y_pred, dict):
            query, target = self._pair(y_pred)
            return tf.concat([labels, labels], 0), tf.concat([query, target], 0), 2
        return labels, y_pred, 1

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "reduction": self.reduction, "dtype": self._dtype_policy.name}


def _global_rows(values: Any) -> Any:
    return tf.reduce_sum(all_gather(tf.shape(values)[:1]))


def pairwise_distances(rows: Any, columns: Any, metric: str, own: Any = None) -> Any:
    """Distances between all rows and columns.

    Args:
        rows: Floating `(n, dim)`.
        columns: Floating `(m, dim)`.
        metric: `"l2"`, `"squared_l2"`, `"l1"` or `"angular"` (1 - cosine).
        own: Optional boolean `(n, m)` of the pairs that are one and the same row; they get distance 0.

    Returns:
        Tensor `(n, m)`, values >= 0. Distances that are 0 pass no gradient.

    Raises:
        UsageError: unknown metric.
    """
    if metric == "l1":
        distances = tf.reduce_sum(tf.abs(rows[:, None, :] - columns[None, :, :]), axis=-1)
    elif metric == "angular":
        unit = [x * tf.math.rsqrt(tf.maximum(tf.reduce_sum(x * x, -1, keepdims=True), 1e-12)) for x in (rows, columns)]
        distances = tf.maximum(1.0 - tf.matmul(unit[0], unit[1], transpose_b=True), 0.0)
    elif metric in ("l2", "squared_l2"):
        distances = (
            tf.reduce_sum(rows * rows, -1)[:, None]
            - 2.0 * tf.matmul(rows, columns, transpose_b=True)
            + tf.reduce_sum(columns * columns, -1)[None, :]
        )
        positive = distances > 0.0
        if own is not None:
            positive = tf.logical_and(positive, tf.logical_not(own))
        distances = tf.where(positive, distances, tf.zeros_like(distances))
        if metric == "l2":
            # The square root's slope at 0 is infinite: the inner `where` keeps it out of the gradient.
            root = tf.sqrt(tf.where(positive, distances, tf.ones_like(distances)))
            distances = tf.where(positive, root, tf.zeros_like(root))
    else:
        raise UsageError(f"Unknown distance {metric!r}. Known: {', '.join(DISTANCES)}.")
    return distances if own is None else tf.where(own, tf.zeros_like(distances), distances)


def masked_min(values: Any, mask: Any) -> Any:
    """Row minimum of `values` where `mask`; HUGE for rows without any."""
    return tf.reduce_min(tf.where(mask, values, tf.cast(HUGE, values.dtype)), axis=1)


def masked_max(values: Any, mask: Any) -> Any:
    """Row maximum of `values` where `mask`; -HUGE for rows without any."""
    return tf.reduce_max(tf.where(mask, values, tf.cast(-HUGE, values.dtype)), axis=1)
