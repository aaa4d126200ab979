"""SigLIP's loss: every pair of the global batch is a yes-or-no question of its own."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tf_fashion.core.errors import UsageError
from tf_fashion.losses.base import LOSSES, GlobalBatch, MatchingLoss, all_gather

SAME_LABEL = ("ignore", "negative", "positive")


def _signs(own: Any, same: Any, same_label: str, kind: Any) -> Any:
    """1 for pairs that belong together, -1 for others, 0 for those that do not count."""
    positive = same if same_label == "positive" else own
    signs = tf.where(positive, tf.ones((), kind), -tf.ones((), kind))
    if same_label == "ignore":
        signs = tf.where(tf.logical_and(same, tf.logical_not(own)), tf.zeros((), kind), signs)
    return signs


@LOSSES.register("sigmoid")
@keras.saving.register_keras_serializable("tf_fashion")
class PairwiseSigmoid(MatchingLoss):
    """The sum over j of `-log sigmoid(z_ij (q_i t_j + b))`, z = 1 for pairs and -1 for others (SigLIP; Zhai et al., ICCV 2023).

    Queries bring their scale along, exp(s) times a unit vector (s starts at ln 10). The bias b is learned (it starts at -10, so
    that the many negative pairs do not dominate at first) and given with the predictions.

    Args:
        same_label: What other rows of the own label are: `"ignore"`: left out; `"negative"`, as in the original; `"positive"`.
        chunk_size: None, or the rows compared at a time: the same values and gradients with memory for `chunk_size * batch` products
            in place of `batch * batch`.

    Call arguments:
        y_pred: Optionally with a scalar `"bias"`; without it b is 0. The rest as for `MatchingLoss`.

    Raises:
        UsageError: unknown `same_label`, or a chunk size below 1.
    """

    def __init__(self, same_label: str = "ignore", chunk_size: int | None = None, name: str | None = "sigmoid", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        if same_label not in SAME_LABEL:
            raise UsageError(f"PairwiseSigmoid: unknown same_label {same_label!r}. Known: {', '.join(SAME_LABEL)}.")
        if chunk_size is not None and chunk_size < 1:
            raise UsageError(f"PairwiseSigmoid: chunk_size must be at least 1, found {chunk_size!r}.")
        self.same_label = same_label
        self.chunk_size = chunk_size

    def call(self, y_true: Any, y_pred: Any) -> Any:
        query, target = self._pair(y_pred)
        bias = tf.reshape(y_pred.get("bias", tf.zeros((), query.dtype)), ())
        batch, target = GlobalBatch.of(y_true), all_gather(target)
        if self.chunk_size is not None:
            return self._chunked(query, target, bias, batch, self.chunk_size)
        signs = _signs(batch.own, batch.same, self.same_label, query.dtype)
        logits = tf.matmul(query, target, transpose_b=True) + bias
        return tf.reduce_sum(tf.abs(signs) * tf.nn.softplus(-signs * logits), axis=1)

    def _chunked(self, query: Any, target: Any, bias: Any, batch: GlobalBatch, size: int) -> Any:
        @tf.custom_gradient
        def losses_of(query: Any, target: Any, bias: Any) -> tuple[Any, Any]:
            count, dim, kind = tf.shape(query)[0], query.shape[-1], query.dtype
            chunks = (count + size - 1) // size
            missing = chunks * size - count
            # Padding has the key -1 and no say in anything: its signs are 0.
            rows = tf.pad(query, [[0, missing], [0, 0]])
            labels, keys = tf.pad(batch.labels, [[0, missing]]), tf.pad(batch.keys, [[0, missing]], constant_values=-1)

            def chunk(index: Any) -> tuple[Any, Any, Any]:
                here = slice(index * size, (index + 1) * size)
                part = GlobalBatch(labels[here], batch.all_labels, keys[here], batch.all_keys)
                signs = _signs(part.own, part.same, self.same_label, kind)
                signs *= tf.cast(keys[here] >= 0, kind)[:, None]
                return rows[here], signs, tf.matmul(rows[here], target, transpose_b=True) + bias

            def forward(index: Any, losses: Any) -> tuple[Any, Any]:
                _, signs, logits = chunk(index)
                return index + 1, losses.write(index, tf.reduce_sum(tf.abs(signs) * tf.nn.softplus(-signs * logits), axis=1))

            values = tf.TensorArray(kind, size=chunks, element_shape=(size,))
            _, values = tf.while_loop(lambda index, _: index < chunks, forward, (0, values), parallel_iterations=1)

            def gradient(upstream: Any) -> tuple[Any, Any, Any]:
                upstream = tf.pad(upstream, [[0, missing]])

                def backward(index: Any, to_rows: Any, to_target: Any, to_bias: Any) -> tuple[Any, ...]:
                    part, signs, logits = chunk(index)
                    slopes = -signs * tf.sigmoid(-signs * logits) * upstream[index * size : (index + 1) * size, None]
                    to_target += tf.matmul(slopes, part, transpose_a=True)
                    return index + 1, to_rows.write(index, tf.matmul(slopes, target)), to_target, to_bias + tf.reduce_sum(slopes)

                start = tf.TensorArray(kind, size=chunks, element_shape=(size, dim)), tf.zeros_like(target), tf.zeros_like(bias)
                _, to_rows, to_target, to_bias = tf.while_loop(
                    lambda index, *_: index < chunks, backward, (0, *start), parallel_iterations=1
                )
                return to_rows.concat()[:count], to_target, to_bias

            return values.concat()[:count], gradient

        return losses_of(query, target, bias)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "same_label": self.same_label, "chunk_size": self.chunk_size}
