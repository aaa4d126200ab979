"""Batch-based classification (InfoNCE): every query picks its target among all targets of the global batch."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tf_fashion.core.errors import UsageError
from tf_fashion.losses.base import HUGE, LOSSES, GlobalBatch, MatchingLoss, all_gather

DIRECTIONS = ("query_to_target", "target_to_query", "both")


def cross_entropy_rows(logits: Any, right: Any, excluded: Any = None, smoothing: float = 0.0) -> Any:
    """Cross-entropy of every row against its right columns.

    Args:
        logits: Floating `(n, m)`.
        right: Boolean `(n, m)` with one true entry per row at least; several share the target's probability evenly.
        excluded: Optional boolean `(n, m)` of the columns that do not compete.
        smoothing: Share of the target's probability that is spread evenly over the competing columns.

    Returns:
        Tensor `(n,)`, values >= 0.
    """
    picked = tf.reduce_sum(tf.where(right, logits, tf.zeros_like(logits)), axis=1)
    picked /= tf.reduce_sum(tf.cast(right, logits.dtype), axis=1)
    competing = logits if excluded is None else tf.where(excluded, tf.cast(-HUGE, logits.dtype), logits)
    losses = tf.reduce_logsumexp(competing, axis=1) - (1.0 - smoothing) * picked
    if smoothing:
        valid = tf.ones_like(right) if excluded is None else tf.logical_not(excluded)
        total = tf.reduce_sum(tf.where(valid, logits, tf.zeros_like(logits)), axis=1)
        losses -= smoothing * total / tf.reduce_sum(tf.cast(valid, logits.dtype), axis=1)
    return losses


def _log_add_exp(a: Any, b: Any) -> Any:
    return tf.maximum(a, b) + tf.math.log1p(tf.exp(-tf.abs(a - b)))


def chunked_cross_entropy(
    rows: Any,
    columns: Any,
    row_keys: Any,
    column_keys: Any,
    row_labels: Any,
    column_labels: Any,
    chunk_size: int,
    mask_same_label: bool = True,
    smoothing: float = 0.0,
    both: bool = False,
    share_targets: bool = False,
) -> tuple[Any, Any]:
    """Cross-entropy of all dot products without ever holding the whole matrix; exact in value and gradient.

    The products are formed for `chunk_size` rows at a time and formed again for the gradient, so memory grows with
    `chunk_size * m` in place of several `n * m`, for one more matrix product.

    Args:
        rows: Floating `(n, dim)`.
        columns: Floating `(m, dim)`.
        row_keys, column_keys: int32; a row's own column has the row's key. Rows and columns with negative keys compete with
            nothing, and their own losses mean nothing; their keys must differ.
        row_labels, column_labels: Integers; with `mask_same_label` other columns of the row's label do not compete (unless they
            are right).
        chunk_size: Rows per chunk.
        smoothing: As for `cross_entropy_rows`.
        both: Whether the columns' losses (against all rows) are wanted as well; needs n = m.
        share_targets: Whether all columns of the row's label are right, with equal shares of the target's probability.

    Returns:
        Losses of the rows `(n,)` and of the columns `(m,)`; the latter are zeros without `both`.
    """
    row_keys, column_keys = tf.cast(row_keys, tf.int32), tf.cast(column_keys, tf.int32)

    @tf.custom_gradient
    def losses_of(rows: Any, columns: Any) -> tuple[tuple[Any, Any], Any]:
        n, m, dim = tf.shape(rows)[0], tf.shape(columns)[0], rows.shape[-1]
        chunks = (n + chunk_size - 1) // chunk_size
        missing = chunks * chunk_size - n
        padded = tf.pad(rows, [[0, missing], [0, 0]])
        keys = tf.pad(row_keys, [[0, missing]], constant_values=-1)
        labels = tf.pad(row_labels, [[0, missing]])
        masks = mask_same_label and not share_targets
        kind = rows.dtype
        huge = tf.cast(HUGE, kind)

        def part(x: Any, index: Any) -> Any:
            return x[index * chunk_size : (index + 1) * chunk_size]

        def logits_of(index: Any) -> tuple[Any, Any, Any, Any]:
            logits = tf.matmul(part(padded, index), columns, transpose_b=True)
            right = part(keys, index)[:, None] == column_keys[None, :]
            valid = tf.logical_and((part(keys, index) >= 0)[:, None], (column_keys >= 0)[None, :])
            if masks or share_targets:
                same = tf.logical_or(part(labels, index)[:, None] == column_labels[None, :], right)
                if share_targets:
                    right = tf.logical_and(same, valid)
                else:
                    valid = tf.logical_and(valid, tf.logical_or(tf.logical_not(same), right))
            return logits, tf.where(valid, logits, -huge), right, valid

        def zero_out(mask: Any, x: Any) -> Any:
            return tf.where(mask, x, tf.zeros_like(x))

        def counts(mask: Any, axis: int) -> Any:
            return tf.reduce_sum(tf.cast(mask, kind), axis=axis)

        def forward(index: Any, row_loss: Any, row_lse: Any, row_count: Any, row_right: Any, columns_so_far: Any) -> tuple[Any, ...]:
            logits, competing, right, valid = logits_of(index)
            lse = tf.reduce_logsumexp(competing, axis=1)
            picked = zero_out(right, logits)
            right_count = tf.maximum(counts(right, 1), 1.0) if share_targets else tf.ones_like(lse)
            loss = lse - (1.0 - smoothing) * tf.reduce_sum(picked, axis=1) / right_count
            count = tf.zeros_like(lse)
            if smoothing:
                count = tf.maximum(counts(valid, 1), 1.0)
                loss -= smoothing * tf.reduce_sum(zero_out(valid, logits), axis=1) / count
            if both:
                column_lse, column_picked, column_total, column_count, column_right = columns_so_far
                column_lse = _log_add_exp(column_lse, tf.reduce_logsumexp(competing, axis=0))
                column_picked += tf.reduce_sum(picked, axis=0)
                if share_targets:
                    column_right += counts(right, 0)
                if smoothing:
                    column_total += tf.reduce_sum(zero_out(valid, logits), axis=0)
                    column_count += counts(valid, 0)
                columns_so_far = (column_lse, column_picked, column_total, column_count, column_right)
            values = (loss, lse, count, right_count)
            writes = [array.write(index, x) for array, x in zip((row_loss, row_lse, row_count, row_right), values, strict=True)]
            return (index + 1, *writes, columns_so_far)

        def array() -> tf.TensorArray:
            return tf.TensorArray(kind, size=chunks, element_shape=(chunk_size,))

        start = (tf.fill([m], -huge), *(tf.zeros([m], kind) for _ in range(4)))
        _, *row_values, (column_lse, column_picked, column_total, column_count, column_right) = tf.while_loop(
            lambda index, *_: index < chunks, forward, (0, array(), array(), array(), array(), start), parallel_iterations=1
        )
        row_losses, row_lse, row_count, row_right = (values.concat() for values in row_values)
        column_count, column_right = tf.maximum(column_count, 1.0), tf.maximum(column_right, 1.0)
        row_losses = row_losses[:n]
        column_losses = tf.zeros([m], kind)
        if both:
            column_losses = column_lse - (1.0 - smoothing) * column_picked / column_right
            column_losses -= smoothing * column_total / column_count

        def gradient(row_upstream: Any, column_upstream: Any) -> tuple[Any, Any]:
            row_upstream = tf.pad(row_upstream, [[0, missing]])

            def backward(index: Any, row_gradient: Any, column_gradient: Any) -> tuple[Any, Any, Any]:
                _, competing, right, valid = logits_of(index)
                upstream = part(row_upstream, index)[:, None]
                weights = tf.exp(competing - part(row_lse, index)[:, None]) * upstream
                pull = upstream / part(row_right, index)[:, None]
                if both:
                    weights += tf.exp(competing - column_lse[None, :]) * column_upstream[None, :]
                    pull += (column_upstream / column_right)[None, :]
                weights -= zero_out(right, (1.0 - smoothing) * pull + tf.zeros_like(weights))
                if smoothing:
                    even = upstream / part(row_count, index)[:, None]
                    if both:
                        even = even + (column_upstream / column_count)[None, :]
                    weights -= zero_out(valid, smoothing * even + tf.zeros_like(weights))
                row_gradient = row_gradient.write(index, tf.matmul(weights, columns))
                column_gradient += tf.matmul(weights, part(padded, index), transpose_a=True)
                return index + 1, row_gradient, column_gradient

            _, row_gradient, column_gradient = tf.while_loop(
                lambda index, *_: index < chunks,
                backward,
                (0, tf.TensorArray(kind, size=chunks, element_shape=(chunk_size, dim)), tf.zeros_like(columns)),
                parallel_iterations=1,
            )
            return row_gradient.concat()[:n], column_gradient

        return (row_losses, column_losses), gradient

    return losses_of(rows, columns)


@LOSSES.register("batch_classification")
@keras.saving.register_keras_serializable("tf_fashion")
class BatchClassification(MatchingLoss):
    """Cross-entropy of each row's dot products with all rows of the other side, the own one being right.

    "Batch-based classification" of TIRG (Vo et al., CVPR 2019; query to target), InfoNCE of CLIP (both directions; Radford et al.,
    ICML 2021), with `share_targets` the contrast of UniCL (Yang et al., CVPR 2022). The embeddings bring their scale along (see
    `ScaledL2Norm`).

    Args:
        directions: `"query_to_target"`, `"target_to_query"` or `"both"` (the mean of the two).
        mask_same_label: Whether other rows of the same label are left out of the sum. The originals count them as negatives.
        label_smoothing: Share of the target's probability spread evenly over the competing rows, in [0, 1).
        scale: Fixed factor of the dot products, 1/temperature (CLIP4Cir's Combiner: 100 on unit vectors).
        share_targets: Whether all rows of the own label are right, each with the same share of the target's probability; none of
            them is masked then.
        chunk_size: None, or the number of rows compared at a time: the same values and gradients with memory for
            `chunk_size * batch` products in place of `batch * batch`.
    """

    def __init__(
        self,
        directions: str = "query_to_target",
        mask_same_label: bool = True,
        label_smoothing: float = 0.0,
        scale: float = 1.0,
        chunk_size: int | None = None,
        share_targets: bool = False,
        name: str | None = "batch_classification",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        if directions not in DIRECTIONS:
            raise UsageError(f"{type(self).__name__}: unknown directions {directions!r}. Known: {', '.join(DIRECTIONS)}.")
        if not 0.0 <= label_smoothing < 1.0:
            raise UsageError(f"{type(self).__name__}: label_smoothing must be in [0, 1), found {label_smoothing!r}.")
        if chunk_size is not None and chunk_size < 1:
            raise UsageError(f"{type(self).__name__}: chunk_size must be at least 1, found {chunk_size!r}.")
        self.directions = directions
        self.mask_same_label = mask_same_label
        self.label_smoothing = label_smoothing
        self.scale = scale
        self.chunk_size = chunk_size
        self.share_targets = share_targets

    def call(self, y_true: Any, y_pred: Any) -> Any:
        query, target = self._pair(y_pred)
        query = query * self.scale
        batch = GlobalBatch.of(y_true)
        alone = tf.distribute.get_strategy().num_replicas_in_sync == 1
        if self.directions == "both" and self.chunk_size is not None and alone:
            rows, columns = self._chunked(query, target, batch, both=True)
            return (rows + columns) / 2.0
        losses = []
        if self.directions != "target_to_query":
            losses.append(self._one_way(query, all_gather(target), batch))
        if self.directions != "query_to_target":
            losses.append(self._one_way(target, all_gather(query), batch))
        return sum(losses) / len(losses)

    def _one_way(self, rows: Any, columns: Any, batch: GlobalBatch) -> Any:
        if self.chunk_size is not None:
            return self._chunked(rows, columns, batch, both=False)[0]
        logits = tf.matmul(rows, columns, transpose_b=True)
        if self.share_targets:
            return cross_entropy_rows(logits, batch.same, None, self.label_smoothing)
        own = batch.own
        excluded = tf.logical_and(batch.same, tf.logical_not(own)) if self.mask_same_label else None
        return cross_entropy_rows(logits, own, excluded, self.label_smoothing)

    def _chunked(self, rows: Any, columns: Any, batch: GlobalBatch, both: bool) -> tuple[Any, Any]:
        return chunked_cross_entropy(
            rows,
            columns,
            batch.keys,
            batch.all_keys,
            batch.labels,
            batch.all_labels,
            self.chunk_size or 1024,
            self.mask_same_label,
            self.label_smoothing,
            both,
            self.share_targets,
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "directions": self.directions,
            "mask_same_label": self.mask_same_label,
            "label_smoothing": self.label_smoothing,
            "scale": self.scale,
            "chunk_size": self.chunk_size,
            "share_targets": self.share_targets,
        }


@LOSSES.register("chunked_infonce")
@keras.saving.register_keras_serializable("tf_fashion")
class ChunkedInfoNCE(BatchClassification):
    """`BatchClassification` in both directions and in chunks: exact InfoNCE for very large batches.

    Arguments as `BatchClassification`.
    """

    def __init__(
        self,
        directions: str = "both",
        mask_same_label: bool = True,
        label_smoothing: float = 0.0,
        scale: float = 1.0,
        chunk_size: int | None = 1024,
        share_targets: bool = False,
        name: str | None = "chunked_infonce",
        **kwargs: Any,
    ) -> None:
        super().__init__(directions, mask_same_label, label_smoothing, scale, chunk_size, share_targets, name=name, **kwargs)
