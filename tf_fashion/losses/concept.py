"""Concepts against the pictures that stand for them (FashionKLIP), and how this loss is weighed against the contrastive one."""

from __future__ import annotations

from typing import Any, Self

import keras
import tensorflow as tf

from tf_fashion.core.errors import UsageError
from tf_fashion.losses.base import HUGE, GlobalBatch, all_gather, sum_over_replicas
from tf_fashion.losses.infonce import chunked_cross_entropy

WEIGHTINGS = ("adaptive", "original", "fixed")


def weigh_losses(contrastive: Any, concept: Any, weighting: str = "adaptive", weight: float = 1.0) -> tuple[Any, Any]:
    """The whole loss from the contrastive and the concept loss (FashionKLIP, ACL 2023); weights carry no gradient.

    Args:
        contrastive, concept: Floating scalars; on several replicas each one's share, whose sum is the loss.
        weighting: `"adaptive"`: `(1 - w) contrastive + w concept` with `w = contrastive / (5 concept)` within [0, 1], which makes the
            concepts' term worth a fifth of the contrastive loss; `"original"`: the same without bounds, as in the released
            program, where the contrastive loss is maximised beyond 1; `"fixed"`: `contrastive + weight concept`.
        weight: The concept loss' factor for `"fixed"`, >= 0.

    Returns:
        The whole loss (this replica's share of it) and the concept loss' factor, float32 scalars. The factor is 0 where the concept
        loss is 0.

    Raises:
        UsageError: unknown weighting, or a negative weight.
    """
    if weighting not in WEIGHTINGS:
        raise UsageError(f"Unknown weighting {weighting!r} of the concept loss. Known: {', '.join(WEIGHTINGS)}.")
    if not weight >= 0.0:
        raise UsageError(f"weigh_losses: weight must not be negative, found {weight!r}.")
    contrastive, concept = (tf.cast(tf.convert_to_tensor(loss), tf.float32) for loss in (contrastive, concept))
    if weighting == "fixed":
        return contrastive + weight * concept, tf.constant(weight, tf.float32)
    whole = [sum_over_replicas(tf.stop_gradient(loss)) for loss in (contrastive, concept)]
    factor = tf.math.divide_no_nan(whole[0], 5.0 * whole[1])
    if weighting == "adaptive":
        factor = tf.clip_by_value(factor, 0.0, 1.0)
    return (1.0 - factor) * contrastive + factor * concept, factor


@keras.saving.register_keras_serializable("tf_fashion")
class ConceptLoss:
    """Every concept of a caption picks its picture among the batch's, and the picture its concept (FashionKLIP, ACL 2023).

    For slot c the own image ranks the slot's prototypes; the nearest ones, r = 1..`top`, have similarities v and vectors X. With
    f the concepts' text vectors, L = scale X f^T over the global batch, `W_r[b] = v[b, r] / ||v[:, r]||` and
    `a_r = sum_b W_r[b] / sum_{b, r} W_r[b]` the slot's loss is `sum_r a_r (CE_W(L_r) + CE_W(L_r^T)) / 2`, CE_W the cross-entropy
    with weights W and the row's own column right; the loss is the mean of the slots. Prototypes and weights carry no gradient, so
    neither does the image: the loss trains the text side and the scale.

    A padded slot of a sample takes part in nothing: not as a row, a column or a weight; slots with fewer than two samples, or
    without any weight, are left out of the mean. Prototypes that are zero vectors do not compete.

    Args:
        top: How many of the nearest prototypes count.
        keep_negative: Whether negative similarities become negative weights, as in the released program; else they count 0.
        mask_same_concept: Whether two samples with one concept in a slot are left out of each other's sums. The original counts
            them as each other's negatives.
        original_padding: Padded slots compete with their prompt and their zero prototypes, and the mean is over all slots, as
            in the released program: a slot that is padded in the whole batch makes the loss NaN.
        original_transposed: The logits of slot r and rank c are weighed with the weights of slot c and rank r, which the released
            program does by mistake; needs as many slots as ranks.
        chunk_size: None, or the rows compared at a time, slot by slot and rank by rank: the same value and gradients with memory
            for `chunk_size * batch` products in place of `slots * top * batch * batch`.

    Call arguments:
        image: Floating `(batch, dim)`, unit vectors.
        concept_text: Floating `(batch, slots, dim)`, unit vectors of the prompts.
        prototypes: Floating `(batch, slots, n, dim)`, unit vectors, zeros for none; n >= `top`.
        valid: Boolean `(batch, slots)`, false for padding; None: slots with a prototype that is not zero.
        scale: Scalar factor of the dot products, exp of the learned logit scale.
        concept_ids: Integers `(batch, slots)`, -1 for padding; needed for `mask_same_concept` only.

    Returns:
        float32 scalar, >= 0 without `keep_negative`; on several replicas each one's share of the global batch's loss, whose sum
        is what one process has.

    Raises:
        UsageError: an argument is out of range, or shapes do not fit.
    """

    def __init__(
        self,
        top: int = 5,
        keep_negative: bool = False,
        mask_same_concept: bool = False,
        original_padding: bool = False,
        original_transposed: bool = False,
        chunk_size: int | None = None,
    ) -> None:
        if top < 1:
            raise UsageError(f"ConceptLoss: top must be at least 1, found {top!r}.")
        if chunk_size is not None and chunk_size < 1:
            raise UsageError(f"ConceptLoss: chunk_size must be at least 1, found {chunk_size!r}.")
        self.top = top
        self.keep_negative = keep_negative
        self.mask_same_concept = mask_same_concept
        self.original_padding = original_padding
        self.original_transposed = original_transposed
        self.chunk_size = chunk_size

    def __call__(
        self, image: Any, concept_text: Any, prototypes: Any, valid: Any = None, scale: Any = 1.0, concept_ids: Any = None
    ) -> Any:
        with tf.name_scope("concept_loss"):
            image, text, prototypes = (tf.cast(tf.convert_to_tensor(x), tf.float32) for x in (image, concept_text, prototypes))
            self._check(image, text, prototypes, concept_ids)
            prototypes = tf.stop_gradient(prototypes)
            if valid is None:
                valid = tf.reduce_any(prototypes != 0.0, axis=(2, 3))
            # From here on slots and ranks come first: (slots, rows, ...) or (slots, ranks, rows, ...).
            valid = tf.transpose(tf.cast(valid, tf.bool))
            text = tf.transpose(text, (1, 0, 2)) * tf.cast(scale, tf.float32)
            similarities = tf.einsum("be,bcpe->bcp", tf.stop_gradient(image), prototypes)
            values, places = tf.math.top_k(similarities, self.top)
            values = tf.transpose(values, (1, 2, 0))
            nearest = tf.transpose(tf.gather(prototypes, places, batch_dims=2), (1, 2, 0, 3))
            present = tf.logical_and(valid[:, None], tf.reduce_any(nearest != 0.0, axis=-1))
            if self.original_padding:
                valid, present = tf.ones_like(valid), tf.ones_like(present)
            ids = tf.zeros(tf.shape(valid), tf.int64)
            if self.mask_same_concept:
                ids = tf.transpose(tf.cast(concept_ids, tf.int64))
            shares = self._shares(values, valid, present)
            if self.chunk_size is None:
                rows, columns = self._losses(nearest, text, valid, present, ids)
                return tf.reduce_sum(shares * (rows + columns)) / 2.0
            return self._chunked(nearest, text, valid, present, ids, shares / 2.0)

    def _shares(self, values: Any, valid: Any, present: Any) -> Any:
        """What each row's losses `(slots, ranks, rows)` count in the whole loss."""
        ratio = tf.divide if self.original_padding else tf.math.divide_no_nan
        weights = values if self.keep_negative else tf.nn.relu(values)
        weights = tf.where(present, weights, 0.0)
        weights = ratio(weights, tf.sqrt(sum_over_replicas(tf.reduce_sum(weights**2, axis=-1, keepdims=True))))
        ranks = sum_over_replicas(tf.reduce_sum(weights, axis=-1, keepdims=True))
        ranks = ratio(ranks, tf.reduce_sum(ranks, axis=1, keepdims=True))
        if self.original_transposed:
            weights, ranks = (tf.transpose(x, (1, 0, 2)) for x in (weights, ranks))
            weights = tf.where(present, weights, 0.0)
        shares = ranks * ratio(weights, sum_over_replicas(tf.reduce_sum(weights, axis=-1, keepdims=True)))
        if self.original_padding:
            return tf.stop_gradient(shares / tf.cast(tf.shape(shares)[0], shares.dtype))
        samples = sum_over_replicas(tf.reduce_sum(tf.cast(valid, shares.dtype), axis=1))
        weighty = sum_over_replicas(tf.reduce_sum(tf.abs(shares), axis=(1, 2))) > 0.0
        counts = tf.cast(tf.logical_and(samples > 1.0, weighty), shares.dtype)
        return tf.stop_gradient(tf.math.divide_no_nan(shares * counts[:, None, None], tf.reduce_sum(counts)))

    def _losses(self, nearest: Any, text: Any, valid: Any, present: Any, ids: Any) -> tuple[Any, Any]:
        """Cross-entropies of prototypes against texts and of texts against prototypes, both `(slots, ranks, rows)`."""
        others = _Others(valid, present, ids)
        picked = tf.reduce_sum(nearest * text[:, None], axis=-1)
        to_texts = tf.einsum("crbe,cge->crbg", nearest, others.gather(text, 1))
        if others.alone:
            to_prototypes = tf.linalg.matrix_transpose(to_texts)
        else:
            to_prototypes = tf.einsum("cbe,crge->crbg", text, others.gather(nearest, 2))
        rivals = None
        if self.mask_same_concept:
            same = tf.logical_and(ids[:, :, None] == others.ids[:, None, :], ids[:, :, None] >= 0)
            rivals = tf.logical_or(tf.logical_not(same), others.batch.own)[:, None]
        losses = []
        for logits, competing in ((to_texts, others.valid[:, None, None]), (to_prototypes, others.present[:, :, None])):
            competing = competing if rivals is None else tf.logical_and(competing, rivals)
            if not self.original_padding or rivals is not None:
                logits = tf.where(competing, logits, -HUGE)
            losses.append(tf.reduce_logsumexp(logits, axis=-1) - picked)
        return losses[0], losses[1]

    def _chunked(self, nearest: Any, text: Any, valid: Any, present: Any, ids: Any, shares: Any) -> Any:
        """The sum of all losses times their shares, with one slot and rank at a time."""
        others = _Others(valid, present, ids)
        slots, ranks = nearest.shape[:2]
        keys, all_keys = others.batch.keys, others.batch.all_keys
        # Without a concept nothing is like a row: each has a number of its own.
        labels = [tf.where(names >= 0, names, -1 - tf.cast(k, tf.int64)) for names, k in ((ids, keys), (others.ids, all_keys))]
        all_nearest = others.gather(nearest, 2)

        def compare(rows: Any, columns: Any, row_there: Any, column_there: Any, slot: Any) -> tuple[Any, Any]:
            return chunked_cross_entropy(
                rows,
                columns,
                tf.where(row_there, keys, -1),
                tf.where(column_there, all_keys, -2),
                labels[0][slot],
                labels[1][slot],
                self.chunk_size or 1,
                self.mask_same_concept,
                both=others.alone,
            )

        @tf.custom_gradient
        def total(text: Any, all_text: Any) -> tuple[Any, Any]:
            def add(index: Any, value: Any, gradient: Any, all_gradient: Any) -> tuple[Any, ...]:
                slot, rank = index // ranks, index % ranks
                own, everyone = text[slot], all_text[slot]
                with tf.GradientTape() as tape:
                    tape.watch((own, everyone))
                    there = present[slot, rank]
                    rows, columns = compare(nearest[slot, rank], everyone, there, others.valid[slot], slot)
                    if not others.alone:
                        columns, _ = compare(own, all_nearest[slot, rank], valid[slot], others.present[slot, rank], slot)
                    part = tf.reduce_sum(shares[slot, rank] * (rows + columns))
                parts = tape.gradient(part, (own, everyone), unconnected_gradients="zero")
                place = tf.reshape(slot, (1, 1))
                gradient, all_gradient = (
                    tf.tensor_scatter_nd_add(whole, place, new[None])
                    for whole, new in zip((gradient, all_gradient), parts, strict=True)
                )
                return index + 1, value + part, gradient, all_gradient

            start = (0, tf.zeros(()), tf.zeros_like(text), tf.zeros_like(all_text))
            _, value, *gradients = tf.while_loop(lambda index, *_: index < slots * ranks, add, start, parallel_iterations=1)
            return value, lambda upstream: tuple(upstream * gradient for gradient in gradients)

        return total(text, others.gather(text, 1))

    def _check(self, image: Any, text: Any, prototypes: Any, concept_ids: Any) -> None:
        shapes = f"image {image.shape}, concept_text {text.shape}, prototypes {prototypes.shape}"
        if (len(image.shape), len(text.shape), len(prototypes.shape)) != (2, 3, 4):
            raise UsageError(
                "ConceptLoss: expected image (batch, dim), concept_text (batch, slots, dim) and prototypes (batch, slots, n, dim); "
                f"found {shapes}."
            )
        if text.shape[1] is None or not text.shape[1] == prototypes.shape[1]:
            raise UsageError(f"ConceptLoss: concept_text and prototypes must have one known number of slots; found {shapes}.")
        if len({image.shape[-1], text.shape[-1], prototypes.shape[-1]}) != 1:
            raise UsageError(f"ConceptLoss: all vectors must have one width; found {shapes}.")
        if prototypes.shape[2] is None or prototypes.shape[2] < self.top:
            raise UsageError(f"ConceptLoss(top={self.top}) needs at least {self.top} prototypes per concept; found {shapes}.")
        if self.original_transposed and text.shape[1] != self.top:
            raise UsageError(f"ConceptLoss(original_transposed=True) needs as many slots as ranks ({self.top}); found {shapes}.")
        if self.mask_same_concept and concept_ids is None:
            raise UsageError("ConceptLoss(mask_same_concept=True) needs concept_ids (batch, slots).")

    def get_config(self) -> dict[str, Any]:
        return {
            "top": self.top,
            "keep_negative": self.keep_negative,
            "mask_same_concept": self.mask_same_concept,
            "original_padding": self.original_padding,
            "original_transposed": self.original_transposed,
            "chunk_size": self.chunk_size,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**config)


class _Others:
    """The global batch of the arrays above, whose rows are not their first axis."""

    def __init__(self, valid: Any, present: Any, ids: Any) -> None:
        self.alone = tf.distribute.get_strategy().num_replicas_in_sync == 1
        self.batch = GlobalBatch.of(ids[0])
        # Collective operations know no booleans.
        flags = ((valid, 1), (present, 2))
        self.valid, self.present = (tf.cast(self.gather(tf.cast(x, tf.int32), axis), tf.bool) for x, axis in flags)
        self.ids = self.gather(ids, 1)

    def gather(self, x: Any, axis: int) -> Any:
        """All replicas' rows of `x`, which has them on `axis`."""
        if self.alone:
            return x
        order = [axis, *(k for k in range(len(x.shape)) if k != axis)]
        back = [order.index(k) for k in range(len(order))]
        return tf.transpose(all_gather(tf.transpose(x, order)), back)
