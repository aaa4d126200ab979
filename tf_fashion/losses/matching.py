"""The bidirectional matching loss of VAL."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tf_fashion.core.errors import UsageError
from tf_fashion.layers.normalization import l2_normalize
from tf_fashion.losses.base import LOSSES, GlobalBatch, MatchingLoss, all_gather, masked_min, pairwise_distances

MININGS = ("row", "column", None)


@LOSSES.register("bidirectional_matching")
@keras.saving.register_keras_serializable("tf_fashion")
class BidirectionalMatching(MatchingLoss):
    """Every query against the nearest wrong target, and every target against the nearest wrong query (VAL, CVPR 2020).

    With D the squared distances of the normalised vectors (0..4) and p its diagonal:
    `mean_i max(p_i - min_j D_ij + margin, 0)` over the admissible j != i, plus the same with D transposed.

    Args:
        margin: Margin.
        semi_hard: Which wrong entries are admissible: "row": those farther than the row's own pair, `D_ij >= p_i` (as meant by
            the paper); "column": `D_ij >= p_j`, what the released program computes; None: all, so the hardest one counts. A row
            without an admissible entry contributes 0.
        legacy_duplicate_negatives: Rows with equal identities count as each other's negatives, as in the original.
        legacy_self_mask: The row's own pair is found by its value and not by its place, which hides every entry of equal
            distance too: what the original does when the batch size is not known in advance.

    See `MatchingLoss` for the inputs; vectors are normalised here, so their length has no effect.

    Raises:
        UsageError: unknown `semi_hard`.
    """

    def __init__(
        self,
        margin: float = 0.2,
        semi_hard: str | None = "row",
        legacy_duplicate_negatives: bool = False,
        legacy_self_mask: bool = False,
        name: str | None = "bidirectional_matching",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        if semi_hard not in MININGS:
            raise UsageError(f"BidirectionalMatching(semi_hard=...): expected 'row', 'column' or None, found {semi_hard!r}.")
        self.margin = margin
        self.semi_hard = semi_hard
        self.legacy_duplicate_negatives = legacy_duplicate_negatives
        self.legacy_self_mask = legacy_self_mask

    def call(self, y_true: Any, y_pred: Any) -> Any:
        query, target = (l2_normalize(x, 1e-10) for x in self._pair(y_pred))
        batch = GlobalBatch.of(y_true)
        towards_targets = self._direction(query, all_gather(target), batch, own_by_column=True)
        return towards_targets + self._direction(target, all_gather(query), batch, own_by_column=False)

    def _direction(self, rows: Any, columns: Any, batch: GlobalBatch, own_by_column: bool) -> Any:
        distances = pairwise_distances(rows, columns, "squared_l2")
        # Taken from the matrix, so that equal rows tie exactly.
        positive = tf.reduce_sum(tf.where(batch.own, distances, tf.zeros_like(distances)), axis=1)
        admissible = tf.ones_like(batch.own)
        if self.semi_hard is not None:
            least = positive[:, None] if self.semi_hard == "row" else all_gather(positive)[None, :]
            admissible = distances >= tf.stop_gradient(least)
        if self.legacy_self_mask:
            # The original compares with the targets' own distances in both directions.
            own = all_gather(positive)[None, :] if own_by_column else positive[:, None]
            admissible = tf.logical_and(admissible, tf.not_equal(distances, own))
        else:
            same = batch.own if self.legacy_duplicate_negatives else batch.same
            admissible = tf.logical_and(admissible, tf.logical_not(same))
        return tf.nn.relu(positive - masked_min(distances, admissible) + self.margin)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "margin": self.margin,
            "semi_hard": self.semi_hard,
            "legacy_duplicate_negatives": self.legacy_duplicate_negatives,
            "legacy_self_mask": self.legacy_self_mask,
        }
