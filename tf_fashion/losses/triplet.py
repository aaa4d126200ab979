"""Triplet losses: the positive must be nearer than the negative by a margin."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tf_fashion.core.errors import UsageError
from tf_fashion.losses.base import (
    DISTANCES,
    HUGE,
    LOSSES,
    GlobalBatch,
    MatchingLoss,
    all_gather,
    masked_max,
    masked_min,
    pairwise_distances,
)


def _check_distance(loss: object, distance: str) -> None:
    if distance not in DISTANCES:
        raise UsageError(f"{type(loss).__name__}: unknown distance {distance!r}. Known: {', '.join(DISTANCES)}.")


def _per_input_row(values: Any, copies: int) -> Any:
    """Mean of the values that belong to one input row (a query and its target are two members of the set)."""
    return tf.reduce_mean(tf.reshape(values, [copies, -1]), axis=0)


def _global_sum(values: Any) -> Any:
    return tf.reduce_sum(all_gather(values))


class _SetLoss(MatchingLoss):
    """Base of the losses over a labelled set; see `MatchingLoss` for the inputs."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        labels, members, copies = self._set(y_true, y_pred)
        return _per_input_row(self._members(GlobalBatch.of(labels), members, all_gather(members)), copies)

    def _members(self, batch: GlobalBatch, members: Any, everyone: Any) -> Any:
        raise NotImplementedError


@LOSSES.register("batch_hard_triplet")
@keras.saving.register_keras_serializable("tf_fashion")
class BatchHardTriplet(_SetLoss):
    """For every query and target, the farthest positive against the nearest negative among all queries and targets.

    `mean max(0, D_positive - D_negative + margin)`, the loss of the FashionIQ 2020 entry (there margin 1, squared distances of
    vectors of length 5). A row without any negative, or without any positive, contributes 0.

    Args:
        margin: Margin.
        p: Norm of the difference, 2 or 1.
        squared: Whether the 2-norm is squared.
        soft: Whether the hinge is replaced by softplus of the same argument.
        legacy_log: With `soft`: the original's `log(D_p - D_n + margin)`, which is NaN where the argument is not positive.

    Raises:
        UsageError: p is neither 1 nor 2, or `legacy_log` without `soft`.
    """

    def __init__(
        self,
        margin: float = 1.0,
        p: int = 2,
        squared: bool = True,
        soft: bool = False,
        legacy_log: bool = False,
        name: str | None = "batch_hard_triplet",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        if p not in (1, 2):
            raise UsageError(f"BatchHardTriplet: p must be 1 or 2, found {p!r}.")
        if legacy_log and not soft:
            raise UsageError("BatchHardTriplet: legacy_log is a form of the soft loss; set soft=True with it.")
        self.margin = margin
        self.p = p
        self.squared = squared
        self.soft = soft
        self.legacy_log = legacy_log

    @property
    def distance(self) -> str:
        if self.p == 1:
            return "l1"
        return "squared_l2" if self.squared else "l2"

    def _members(self, batch: GlobalBatch, members: Any, everyone: Any) -> Any:
        distances = pairwise_distances(members, everyone, self.distance, batch.own)
        positive = tf.logical_and(batch.same, tf.logical_not(batch.own))
        negative = tf.logical_not(batch.same)
        farthest, nearest = masked_max(distances, positive), masked_min(distances, negative)
        usable = tf.logical_and(farthest > -HUGE, nearest < HUGE)
        gap = farthest - nearest + self.margin
        # `where` before the function as well: its slope at HUGE would turn the zero gradient into NaN.
        gap = tf.where(usable, gap, tf.ones_like(gap))
        if self.legacy_log:
            losses = tf.math.log(gap)
        elif self.soft:
            losses = tf.math.softplus(gap)
        else:
            losses = tf.nn.relu(gap)
        return tf.where(usable, losses, tf.zeros_like(losses))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "margin": self.margin,
            "p": self.p,
            "squared": self.squared,
            "soft": self.soft,
            "legacy_log": self.legacy_log,
        }


@LOSSES.register("soft_triplet")
@keras.saving.register_keras_serializable("tf_fashion")
class SoftTriplet(_SetLoss):
    """`mean softplus(D(anchor, counterpart) - D(anchor, negative))` with squared distances (Vo et al., CVPR 2019).

    Every query and target is an anchor, its counterpart is the other one of its row, negatives are all rows of other labels.
    By default all negatives of an anchor enter, which is the expectation of the original's random choice; an anchor without
    negatives contributes 0.

    Args:
        triplets_per_anchor: None for all negatives, or how many are drawn (the original: 3). The draw is a function of `seed` and
            the batch's content, so that a resumed run repeats it.
        seed: Seed of the draw.
        legacy_half_gradient: Whether gradients are halved, as the original's hand-written backward pass does.
    """

    def __init__(
        self,
        triplets_per_anchor: int | None = None,
        seed: int = 0,
        legacy_half_gradient: bool = False,
        name: str | None = "soft_triplet",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        if triplets_per_anchor is not None and triplets_per_anchor < 1:
            raise UsageError(f"SoftTriplet: triplets_per_anchor must be at least 1 or None, found {triplets_per_anchor!r}.")
        self.triplets_per_anchor = triplets_per_anchor
        self.seed = seed
        self.legacy_half_gradient = legacy_half_gradient

    def _scaled(self, values: Any) -> Any:
        return 0.5 * values + 0.5 * tf.stop_gradient(values) if self.legacy_half_gradient else values

    def from_triplets(self, embeddings: Any, triplets: Any) -> Any:
        """The loss of given triplets.

        Args:
            embeddings: float32 `(rows, dim)`.
            triplets: Integer `(count, 3)`: rows of anchor, positive, negative.

        Returns:
            float32 scalar.
        """
        anchor, positive, negative = (tf.gather(embeddings, triplets[:, k]) for k in range(3))
        gap = tf.reduce_sum(tf.square(anchor - positive), -1) - tf.reduce_sum(tf.square(anchor - negative), -1)
        return tf.reduce_mean(self._scaled(tf.math.softplus(gap)))

    def _members(self, batch: GlobalBatch, members: Any, everyone: Any) -> Any:
        distances = pairwise_distances(members, everyone, "squared_l2", batch.own)
        negative = tf.logical_not(batch.same)
        half = tf.shape(members)[0] // 2
        counterpart = tf.reduce_sum(tf.square(members[:half] - members[half:]), -1)
        chosen = negative if self.triplets_per_anchor is None else self._draw(negative, members)
        weights = tf.cast(chosen, distances.dtype)
        losses = tf.math.softplus(tf.concat([counterpart, counterpart], 0)[:, None] - distances)
        return self._scaled(tf.math.divide_no_nan(tf.reduce_sum(losses * weights, 1), tf.reduce_sum(weights, 1)))

    def _draw(self, negative: Any, members: Any) -> Any:
        content = tf.bitcast(tf.stop_gradient(tf.reduce_sum(members)), tf.int32)
        noise = tf.random.stateless_uniform(tf.shape(negative), seed=tf.stack([self.seed, content]))
        noise = tf.where(negative, noise, -tf.ones_like(noise))
        count = tf.minimum(self.triplets_per_anchor, tf.shape(negative)[1])
        least = tf.math.top_k(noise, count).values[:, -1:]
        return tf.logical_and(negative, noise >= least)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        self._pair(y_pred)
        return super().call(y_true, y_pred)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "triplets_per_anchor": self.triplets_per_anchor,
            "seed": self.seed,
            "legacy_half_gradient": self.legacy_half_gradient,
        }


@LOSSES.register("triplet_semihard")
@keras.saving.register_keras_serializable("tf_fashion")
class TripletSemiHard(_SetLoss):
    """Mean over all positive pairs of `max(0, D(a, p) - D(a, n) + margin)` with the semi-hard negative n.

    n is the nearest negative that is farther from the anchor than the positive, or the farthest negative if none is (FaceNet,
    Schroff et al., CVPR 2015; as tensorflow-addons' TripletSemiHardLoss). Anchors without negatives contribute 0; without any
    positive pair the loss is 0.

    Args:
        margin: Margin.
        distance: `"l2"`, `"squared_l2"`, `"l1"` or `"angular"`.
    """

    def __init__(self, margin: float = 1.0, distance: str = "l2", name: str | None = "triplet_semihard", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        _check_distance(self, distance)
        self.margin = margin
        self.distance = distance

    def _members(self, batch: GlobalBatch, members: Any, everyone: Any) -> Any:
        distances = pairwise_distances(members, everyone, self.distance, batch.own)
        positive = tf.logical_and(batch.same, tf.logical_not(batch.own))
        negative = tf.logical_not(batch.same)
        # Sorted negatives and a binary search need n^2 numbers where comparing all triplets needs n^3.
        ordered = tf.sort(tf.where(negative, distances, tf.cast(HUGE, distances.dtype)), axis=1)
        index = tf.searchsorted(tf.stop_gradient(ordered), tf.stop_gradient(distances), side="right")
        last = tf.shape(ordered)[1] - 1
        outside = tf.gather(ordered, tf.minimum(index, last), axis=1, batch_dims=1)
        found = tf.logical_and(index <= last, outside < HUGE)
        inside = masked_max(distances, negative)[:, None]
        chosen = tf.where(found, outside, inside)
        counted = tf.logical_and(positive, inside > -HUGE)
        gap = tf.where(counted, self.margin + distances - chosen, tf.zeros_like(distances))
        pairs = tf.reduce_sum(tf.cast(positive, distances.dtype), axis=1)
        members_in_all = tf.cast(tf.shape(everyone)[0], distances.dtype)
        return tf.math.divide_no_nan(tf.reduce_sum(tf.nn.relu(gap), axis=1) * members_in_all, _global_sum(pairs))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "margin": self.margin, "distance": self.distance}


@LOSSES.register("triplet_hard")
@keras.saving.register_keras_serializable("tf_fashion")
class TripletHard(_SetLoss):
    """Mean over anchors of `max(0, D_farthest_positive - D_nearest_negative + margin)` (Hermans et al., 2017).

    As tensorflow-addons' TripletHardLoss: an anchor without positives counts with positive distance 0. An anchor without
    negatives contributes 0.

    Args:
        margin: Margin of the hinge; not used if `soft`.
        soft: Whether the hinge is replaced by `softplus(D_p - D_n)`.
        distance: `"l2"`, `"squared_l2"`, `"l1"` or `"angular"`.
    """

    def __init__(
        self,
        margin: float = 1.0,
        soft: bool = False,
        distance: str = "l2",
        name: str | None = "triplet_hard",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        _check_distance(self, distance)
        self.margin = margin
        self.soft = soft
        self.distance = distance

    def _members(self, batch: GlobalBatch, members: Any, everyone: Any) -> Any:
        distances = pairwise_distances(members, everyone, self.distance, batch.own)
        negative = tf.logical_not(batch.same)
        nearest = masked_min(distances, negative)
        usable = nearest < HUGE
        gap = masked_max(distances, batch.same) - nearest
        gap = tf.where(usable, gap, tf.zeros_like(gap))
        losses = tf.math.softplus(gap) if self.soft else tf.nn.relu(gap + self.margin)
        return tf.where(usable, losses, tf.zeros_like(losses))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "margin": self.margin, "soft": self.soft, "distance": self.distance}
