"""Supervised contrastive loss: every row against all others, with all rows of its label as positives."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tf_fashion.core.errors import UsageError
from tf_fashion.layers.normalization import l2_normalize
from tf_fashion.losses.base import LOSSES, GlobalBatch, MatchingLoss, all_gather


@LOSSES.register("supervised_contrastive")
@keras.saving.register_keras_serializable("tf_fashion")
class SupervisedContrastive(MatchingLoss):
    """`-mean_p log(exp(z_i z_p / t) / sum_a exp(z_i z_a / t))` of a row i over its positives p; a runs over all rows but i.

    L_out, equation 2 of Khosla et al., "Supervised Contrastive Learning" (NeurIPS 2020), averaged over the rows that have positives.
    Rows are scaled to length one. A query and its target are two members of the set. `of_categories` is the same over several sets at
    once.

    Args:
        temperature: t.

    Raises:
        UsageError: a temperature that is not above 0.
    """

    def __init__(self, temperature: float = 0.2, name: str | None = "supervised_contrastive", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        if not temperature > 0:
            raise UsageError(f"SupervisedContrastive(temperature=...): expected a number above 0, found {temperature!r}.")
        self.temperature = temperature

    def _anchor_losses(self, rows: Any, columns: Any, positive: Any, negative: Any) -> Any:
        """Losses `(..., n)` of rows against columns, 0 without positives.

        Args:
            rows: float32 `(..., n, dim)`, length one.
            columns: float32 `(..., m, dim)`, length one.
            positive: float32 `(..., n, m)`, weights of the positives; 0 elsewhere.
            negative: Boolean `(..., n, m)`.
        """
        logits = tf.matmul(rows, columns, transpose_b=True) / self.temperature
        counts = tf.where(negative, tf.ones_like(positive), positive)
        rivals = counts > 0
        # No logit is above 1 / t, but all may be so far below that their exponentials vanish.
        top = tf.stop_gradient(tf.reduce_max(tf.where(rivals, logits, -1.0 / self.temperature), axis=-1, keepdims=True))
        logits = tf.where(rivals, logits - top, tf.zeros_like(logits))
        total = tf.reduce_sum(counts * tf.exp(logits), axis=-1)
        total = tf.math.log(tf.where(total > 0, total, tf.ones_like(total)))
        trust = tf.reduce_sum(positive, axis=-1)
        mean = tf.math.divide_no_nan(tf.reduce_sum(positive * logits, axis=-1), trust)
        return tf.where(trust > 0, total - mean, tf.zeros_like(total))

    def call(self, y_true: Any, y_pred: Any) -> Any:
        labels, members, copies = self._set(y_true, y_pred)
        batch = GlobalBatch.of(labels)
        unit = l2_normalize(members)
        positive = batch.same & ~batch.own
        losses = self._anchor_losses(unit, all_gather(unit), tf.cast(positive, unit.dtype), ~batch.same)
        local = tf.reduce_sum(tf.cast(tf.reduce_any(positive, axis=-1), unit.dtype))
        counted = tf.reduce_sum(all_gather(local[tf.newaxis]))
        # The base divides by the number of input rows.
        total = tf.cast(tf.reduce_sum(all_gather(tf.shape(y_true)[:1])), losses.dtype)
        per_input = tf.reduce_sum(tf.reshape(losses, [copies, -1]), axis=0)
        return tf.math.divide_no_nan(per_input * total, counted)

    def of_categories(self, labels: Any, embeddings: Any, weights: Any = None) -> Any:
        """The sum of the losses of several sets; positives and negatives come from the row's own set.

        Args:
            labels: Integer `(sets, rows)`; rows with -1 are padding.
            embeddings: Floating `(sets, rows, dim)`.
            weights: None, or float `(sets, rows)`, at least 0: how much a row is trusted to have its label. It counts with its weight
                among the anchors, and among the positives of others as if it were there that many times; as a negative it counts fully.

        Returns:
            float32 scalar.
        """
        embeddings = tf.cast(tf.convert_to_tensor(embeddings), self.dtype)
        labels = tf.convert_to_tensor(labels)
        unit = l2_normalize(embeddings)
        there = labels >= 0
        pair = there[:, :, tf.newaxis] & there[:, tf.newaxis, :]
        same = labels[:, :, tf.newaxis] == labels[:, tf.newaxis, :]
        own = tf.eye(tf.shape(labels)[1], dtype=tf.bool)[tf.newaxis]
        trust = tf.cast(there, self.dtype) if weights is None else tf.cast(weights, self.dtype) * tf.cast(there, self.dtype)
        positive = tf.where(pair & same & ~own, trust[:, tf.newaxis, :], tf.zeros((), self.dtype))
        losses = self._anchor_losses(unit, unit, positive, pair & ~same)
        factors = tf.where(tf.reduce_any(positive > 0, axis=-1), trust, tf.zeros_like(trust))
        sums, counts = tf.reduce_sum(factors * losses, axis=1), tf.reduce_sum(factors, axis=1)
        return tf.reduce_sum(tf.math.divide_no_nan(sums, counts))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "temperature": self.temperature}
