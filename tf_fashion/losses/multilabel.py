"""Losses for several labels per picture: yes-or-no questions per label, and choices within groups that exclude each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf

from tf_fashion.core.errors import UsageError
from tf_fashion.core.registry import Registry
from tf_fashion.layers.label_correlation import checked_groups
from tf_fashion.losses.base import HUGE, sum_over_replicas

MULTILABEL_LOSSES: Registry[type[MultilabelLoss]] = Registry("multi-label loss")

Weights = Sequence[float] | np.ndarray | None


class MultilabelLoss(keras.losses.Loss):
    """Base of the losses on logits of labels.

    A subclass defines `questions(y_true, logits)`: the loss of every question (a label, or a group of labels), and which questions
    count. The result is the sum over the local rows divided by the number of questions that count in the global batch, so that
    the sum over replicas is the single-process loss, also if some rows know fewer labels than others.

    Args:
        name: Name in logs.
        reduction: `"sum_over_batch_size"`: the mean over all questions that count (no questions: 0); `"sum"`: their sum; `"none"`:
            a sum for each row.
        dtype: Precision inside the loss; float32 whatever the global policy is.

    Call arguments:
        y_true: Floating or integer `(batch, labels)`: 1 for a label that applies, 0 for one that does not, fractions between them
            for soft targets; below 0 (-1) for unknown, which has no loss.
        logits: Floating `(batch, labels)`.
        sample_weight: Optional `(batch,)` factors of the rows' losses.

    Returns:
        float32 scalar >= 0 (or `(batch,)` for `"none"`).

    Raises:
        UsageError: unknown reduction; shapes that do not fit each other or the loss' options.
    """

    def __init__(self, name: str | None = None, reduction: str = "sum_over_batch_size", dtype: Any = "float32") -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if self.reduction not in ("sum_over_batch_size", "sum", "none", None):
            raise UsageError(
                f"{type(self).__name__}: unknown reduction {reduction!r}. Known: 'sum_over_batch_size' (mean), 'sum', 'none'."
            )

    def __call__(self, y_true: Any, logits: Any, sample_weight: Any = None) -> Any:
        with tf.name_scope(self.name):
            y_true, logits = (tf.cast(tf.convert_to_tensor(x), self.dtype) for x in (y_true, logits))
            if len(logits.shape) != 2 or not logits.shape.is_compatible_with(y_true.shape):
                raise UsageError(
                    f"{type(self).__name__}: expected targets and logits of one shape (batch, labels), "
                    f"found {tuple(y_true.shape)} and {tuple(logits.shape)}."
                )
            losses, counts = self.questions(y_true, logits)
            losses = tf.where(counts, losses, tf.zeros_like(losses))
            if sample_weight is not None:
                losses = losses * tf.reshape(tf.cast(sample_weight, losses.dtype), (-1, 1))
            if self.reduction in ("none", None):
                return tf.reduce_sum(losses, axis=1)
            total = tf.reduce_sum(losses)
            if self.reduction == "sum":
                return total
            return total / tf.maximum(sum_over_replicas(tf.reduce_sum(tf.cast(counts, total.dtype))), 1.0)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        losses, counts = self.questions(y_true, y_pred)
        return tf.reduce_sum(tf.where(counts, losses, tf.zeros_like(losses)), axis=1)

    def questions(self, y_true: Any, logits: Any) -> tuple[Any, Any]:
        """Losses and whether they count.

        Args:
            y_true, logits: float32 `(batch, labels)`.

        Returns:
            float32 and boolean `(batch, questions)`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define questions(y_true, logits)")

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "reduction": self.reduction, "dtype": self._dtype_policy.name}


class _LabelwiseLoss(MultilabelLoss):
    """`w_j (y v_j P(z) + (1 - y) N(z))` for each label j; a subclass gives P and N, the losses of a yes and of a no.

    Args:
        label_weights: w, `(labels,)` factors of both sides of a label, or None; `class_balanced_weights` makes some.
        pos_weight: v, a number or `(labels,)`: factors of the side where the label applies, or None; `positive_weights` makes some.
        label_smoothing: s in [0, 1): targets y become `y (1 - s) + s / 2`.

    Raises:
        UsageError: weights that are negative or not finite, label smoothing out of range.
    """

    def __init__(
        self,
        label_weights: Weights = None,
        pos_weight: float | Weights = None,
        label_smoothing: float = 0.0,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.label_weights = _checked_weights(self, "label_weights", label_weights)
        self.pos_weight = _checked_weights(self, "pos_weight", pos_weight)
        self.label_smoothing = _checked_smoothing(self, label_smoothing)

    def sides(self, logits: Any) -> tuple[Any, Any]:
        """Losses of logits whose label applies, and of logits whose label does not; both `(batch, labels)`."""
        raise NotImplementedError(f"{type(self).__name__} must define sides(logits)")

    def questions(self, y_true: Any, logits: Any) -> tuple[Any, Any]:
        known = y_true >= 0.0
        y = tf.where(known, y_true, tf.zeros_like(y_true))
        if self.label_smoothing:
            y = y * (1.0 - self.label_smoothing) + self.label_smoothing / 2.0
        positive, negative = self.sides(logits)
        if self.pos_weight is not None:
            positive = positive * _per_label(self, "pos_weight", self.pos_weight, logits)
        losses = y * positive + (1.0 - y) * negative
        if self.label_weights is not None:
            losses = losses * _per_label(self, "label_weights", self.label_weights, logits)
        return losses, known

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "label_weights": self.label_weights,
            "pos_weight": self.pos_weight,
            "label_smoothing": self.label_smoothing,
        }


@MULTILABEL_LOSSES.register("bce")
@keras.saving.register_keras_serializable("tf_fashion")
class BinaryCrossEntropy(_LabelwiseLoss):
    """`-y log sigmoid(z) - (1 - y) log(1 - sigmoid(z))`, the mean over all known entries, finite for every finite logit.

    Without options it is the loss of the iMaterialist original.

    Args:
        label_weights, pos_weight, label_smoothing: Factors of labels `(labels,)`, of the side where a label applies (a number or
            `(labels,)`), and the smoothing of targets in [0, 1).
        name: Name in logs.
    """

    def __init__(
        self,
        label_weights: Weights = None,
        pos_weight: float | Weights = None,
        label_smoothing: float = 0.0,
        name: str | None = "bce",
        **kwargs: Any,
    ) -> None:
        super().__init__(label_weights, pos_weight, label_smoothing, name=name, **kwargs)

    def sides(self, logits: Any) -> tuple[Any, Any]:
        return tf.nn.softplus(-logits), tf.nn.softplus(logits)


@MULTILABEL_LOSSES.register("focal")
@keras.saving.register_keras_serializable("tf_fashion")
class FocalLoss(_LabelwiseLoss):
    """`-alpha_t (1 - p_t)^gamma log p_t`, eq. 5 of Lin et al., "Focal loss for dense object detection" (ICCV 2017).

    p_t is the probability given to the truth, alpha_t is alpha where the label applies and 1 - alpha where it does not. With
    gamma = 0 and no alpha it is the binary cross-entropy.

    Args:
        gamma: How much sure answers lose weight, >= 0.
        alpha: Weight of the labels that apply, in [0, 1]; None: both sides have weight 1.
        label_weights, pos_weight, label_smoothing: As in `BinaryCrossEntropy`.
        name: Name in logs.

    Raises:
        UsageError: an argument out of range.
    """

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: float | None = None,
        label_weights: Weights = None,
        pos_weight: float | Weights = None,
        label_smoothing: float = 0.0,
        name: str | None = "focal",
        **kwargs: Any,
    ) -> None:
        super().__init__(label_weights, pos_weight, label_smoothing, name=name, **kwargs)
        self.gamma = _checked_exponent(self, "gamma", gamma)
        if alpha is not None and not 0.0 <= alpha <= 1.0:
            raise UsageError(f"FocalLoss: alpha must lie in [0, 1] or be None, found {alpha!r}.")
        self.alpha = alpha

    def sides(self, logits: Any) -> tuple[Any, Any]:
        yes, no = tf.nn.softplus(-logits), tf.nn.softplus(logits)
        # (1 - p)^gamma as exp(gamma log(1 - p)): a power's slope is infinite at 0 for exponents below 1.
        positive, negative = tf.exp(-self.gamma * no) * yes, tf.exp(-self.gamma * yes) * no
        if self.alpha is None:
            return positive, negative
        return self.alpha * positive, (1.0 - self.alpha) * negative

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "gamma": self.gamma, "alpha": self.alpha}


@MULTILABEL_LOSSES.register("asymmetric")
@keras.saving.register_keras_serializable("tf_fashion")
class AsymmetricLoss(_LabelwiseLoss):
    """`-(1 - p)^gamma_pos log p` where a label applies, `-q^gamma_neg log(1 - q)` with `q = max(p - clip, 0)` where it does not.

    Ridnik et al., "Asymmetric loss for multi-label classification" (ICCV 2021), eqs. 4 to 7. Negatives that the model is sure of
    count nothing at all (the shift by `clip`), others little, so that the many labels that do not apply leave the few that do
    their say. The paper takes the sum over labels; the mean here differs by a factor.

    Args:
        gamma_pos, gamma_neg: Exponents, >= 0.
        clip: Probability margin, in [0, 1).
        label_weights, pos_weight, label_smoothing: As in `BinaryCrossEntropy`.
        name: Name in logs.

    Raises:
        UsageError: an argument out of range.
    """

    def __init__(
        self,
        gamma_pos: float = 0.0,
        gamma_neg: float = 4.0,
        clip: float = 0.05,
        label_weights: Weights = None,
        pos_weight: float | Weights = None,
        label_smoothing: float = 0.0,
        name: str | None = "asymmetric",
        **kwargs: Any,
    ) -> None:
        super().__init__(label_weights, pos_weight, label_smoothing, name=name, **kwargs)
        self.gamma_pos = _checked_exponent(self, "gamma_pos", gamma_pos)
        self.gamma_neg = _checked_exponent(self, "gamma_neg", gamma_neg)
        if not 0.0 <= clip < 1.0:
            raise UsageError(f"AsymmetricLoss: clip must lie in [0, 1), found {clip!r}.")
        self.clip = clip

    def sides(self, logits: Any) -> tuple[Any, Any]:
        yes, no = tf.nn.softplus(-logits), tf.nn.softplus(logits)
        positive = tf.exp(-self.gamma_pos * no) * yes
        if not self.clip:
            return positive, tf.exp(-self.gamma_neg * yes) * no
        shifted = tf.sigmoid(logits) - self.clip
        counts = shifted > 0.0
        # 1 - p + clip from sigmoid(-z), which keeps its digits for large z; the inner `where`s keep infinite slopes out.
        kept = tf.where(counts, shifted, tf.ones_like(shifted))
        miss = tf.where(counts, tf.minimum(tf.sigmoid(-logits) + self.clip, 1.0), tf.ones_like(shifted))
        return positive, tf.where(counts, -tf.pow(kept, self.gamma_neg) * tf.math.log(miss), tf.zeros_like(shifted))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "gamma_pos": self.gamma_pos, "gamma_neg": self.gamma_neg, "clip": self.clip}


@MULTILABEL_LOSSES.register("grouped")
@keras.saving.register_keras_serializable("tf_fashion")
class GroupedLoss(MultilabelLoss):
    """Softmax cross-entropy within groups of labels that exclude each other, an element-wise loss for all other labels.

    The labels of such a group (the colours, say, where every picture has one) are one question with several answers, and every
    other label a question of its own. Questions have equal weight, as in the likelihood of independent questions. A row without
    a label of the group has no loss there; one with several shares the target among them. Labels that are unknown (-1) do not
    compete.

    Args:
        groups: The positions of each exclusive group's labels; groups have no label in common.
        rest: The loss of all other labels: a name in `MULTILABEL_LOSSES`, or an instance made with options of its own.
        label_smoothing: s in [0, 1): targets y of a group with k known labels become `y (1 - s) + s / k`.
        group_weight: Factor of the groups' cross-entropies, >= 0.
        label_weights: `(labels,)` factors of the answers' shares in the groups, or None. Those of the other labels belong to `rest`.
        name: Name in logs.

    Raises:
        UsageError: groups that overlap, have fewer than two labels or negative positions; a `rest` that is no element-wise loss;
            numbers out of range.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        rest: str | Mapping[str, Any] | MultilabelLoss = "bce",
        label_smoothing: float = 0.0,
        group_weight: float = 1.0,
        label_weights: Weights = None,
        name: str | None = "grouped",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.groups = checked_groups(groups, "GroupedLoss")
        if isinstance(rest, str):
            rest_class = MULTILABEL_LOSSES.get(rest)
            if not issubclass(rest_class, _LabelwiseLoss):
                raise UsageError(f"GroupedLoss: rest={rest!r} is no element-wise loss. Known: {', '.join(_labelwise())}.")
            rest = rest_class()
        elif isinstance(rest, Mapping):
            rest = keras.saving.deserialize_keras_object(dict(rest))
        if not isinstance(rest, _LabelwiseLoss):
            raise UsageError(
                f"GroupedLoss: rest must be an element-wise loss ({', '.join(_labelwise())}) or its name, found {type(rest).__name__}."
            )
        if not 0.0 <= group_weight < np.inf:
            raise UsageError(f"GroupedLoss: group_weight must be a number of at least 0, found {group_weight!r}.")
        self.rest = rest
        self.label_smoothing = _checked_smoothing(self, label_smoothing)
        self.group_weight = group_weight
        self.label_weights = _checked_weights(self, "label_weights", label_weights)

    def questions(self, y_true: Any, logits: Any) -> tuple[Any, Any]:
        labels = logits.shape[-1]
        if labels is None or any(position >= labels for group in self.groups for position in group):
            highest = max((position for group in self.groups for position in group), default=-1)
            raise UsageError(f"GroupedLoss: the groups name position {highest}, but there are {labels} labels.")
        weights = None if self.label_weights is None else _per_label(self, "label_weights", self.label_weights, logits)
        losses, counts = [], []
        for group in self.groups:
            y, z = (tf.gather(x, group, axis=1) for x in (y_true, logits))
            loss, there = self._choice(y, z, None if weights is None else tf.gather(weights, group))
            losses.append(self.group_weight * loss[:, None])
            counts.append(there[:, None])
        inside = {position for group in self.groups for position in group}
        if others := [position for position in range(labels) if position not in inside]:
            rest, known = self.rest.questions(y_true, logits)
            losses.append(tf.gather(rest, others, axis=1))
            counts.append(tf.gather(known, others, axis=1))
        return tf.concat(losses, axis=1), tf.concat(counts, axis=1)

    def _choice(self, y: Any, z: Any, weights: Any) -> tuple[Any, Any]:
        """Cross-entropy of one group, `(batch,)`, and whether the row has a label there."""
        known = tf.cast(y >= 0.0, z.dtype)
        y = tf.maximum(y, 0.0)
        total = tf.reduce_sum(y, axis=1, keepdims=True)
        target = y / tf.where(total > 0.0, total, tf.ones_like(total))
        if self.label_smoothing:
            even = tf.math.divide_no_nan(known, tf.reduce_sum(known, axis=1, keepdims=True))
            target = target * (1.0 - self.label_smoothing) + self.label_smoothing * even
        if weights is not None:
            target = target * weights
        log_probabilities = tf.nn.log_softmax(tf.where(known > 0.0, z, tf.cast(-HUGE, z.dtype)), axis=1)
        # Unknown labels have target 0, but 0 times a huge number need not be 0 in the gradient.
        log_probabilities = tf.where(known > 0.0, log_probabilities, tf.zeros_like(z))
        return -tf.reduce_sum(target * log_probabilities, axis=1), total[:, 0] > 0.0

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "groups": self.groups,
            "rest": keras.saving.serialize_keras_object(self.rest),
            "label_smoothing": self.label_smoothing,
            "group_weight": self.group_weight,
            "label_weights": self.label_weights,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**config)


def class_balanced_weights(counts: Sequence[int] | np.ndarray, beta: float = 0.999) -> list[float]:
    """`(1 - beta) / (1 - beta^n)`, one over the effective number of examples (Cui et al., CVPR 2019, eq. 2), with mean 1.

    Args:
        counts: `(labels,)` examples n of each label, >= 0.
        beta: In [0, 1): 0 gives equal weights, near 1 they are inverse to the counts.

    Returns:
        `(labels,)` floats > 0. The mean is over labels that have examples; those without any get 1.

    Raises:
        UsageError: beta out of range, or counts that are negative or no vector.
    """
    if not 0.0 <= beta < 1.0:
        raise UsageError(f"class_balanced_weights: beta must lie in [0, 1), found {beta!r}.")
    examples = _counts("class_balanced_weights", counts)
    seen = examples > 0
    weights = np.ones(len(examples))
    if seen.any():
        # 1 - beta^n in a form that keeps its digits for beta near 1.
        effective = -np.expm1(examples[seen] * np.log(beta)) if beta > 0.0 else np.ones(int(seen.sum()))
        weights[seen] = 1.0 / effective
        weights[seen] /= weights[seen].mean()
    return weights.tolist()


def positive_weights(counts: Sequence[int] | np.ndarray, records: int, power: float = 1.0, limit: float = 100.0) -> list[float]:
    """`((records - n) / n)^power`, at most `limit`: factors that make a label's yes as weighty as all its noes (at power 1).

    Args:
        counts: `(labels,)` examples n of each label, 0 <= n <= records.
        records: Number of records that the counts are from.
        power: 0 gives weights 1, 0.5 a middle way.
        limit: Upper bound, > 0, which is also the weight of labels without examples.

    Returns:
        `(labels,)` floats >= 0.

    Raises:
        UsageError: numbers out of range.
    """
    examples = _counts("positive_weights", counts)
    if len(examples) and examples.max() > records:
        raise UsageError(f"positive_weights: a label has {examples.max():.0f} examples, but there are {records} records.")
    if not limit > 0.0:
        raise UsageError(f"positive_weights: limit must be above 0, found {limit!r}.")
    with np.errstate(divide="ignore"):
        ratio = np.where(examples > 0, (records - examples) / np.maximum(examples, 1), np.inf)
        return np.minimum(ratio**power, limit).tolist()


def _labelwise() -> list[str]:
    return [name for name in MULTILABEL_LOSSES if issubclass(MULTILABEL_LOSSES.get(name), _LabelwiseLoss)]


def _counts(owner: str, counts: Any) -> np.ndarray:
    examples = np.asarray(counts, dtype=np.float64)
    if examples.ndim != 1 or not np.isfinite(examples).all() or (examples < 0).any():
        raise UsageError(f"{owner}: expected one count of at least 0 for each label, found an array {examples.shape}.")
    return examples


def _checked_weights(loss: MultilabelLoss, what: str, weights: Any) -> float | list[float] | None:
    if weights is None:
        return None
    values = np.asarray(weights, dtype=np.float64)
    if values.ndim > 1 or not np.isfinite(values).all() or (values < 0).any():
        raise UsageError(f"{type(loss).__name__}: {what} must be finite numbers of at least 0, one for each label.")
    return values.tolist()


def _per_label(loss: MultilabelLoss, what: str, weights: Any, logits: Any) -> Any:
    if isinstance(weights, list) and len(weights) != logits.shape[-1]:
        raise UsageError(f"{type(loss).__name__}: {len(weights)} {what} for {logits.shape[-1]} labels.")
    return tf.constant(weights, logits.dtype)


def _checked_smoothing(loss: MultilabelLoss, smoothing: float) -> float:
    if not 0.0 <= smoothing < 1.0:
        raise UsageError(f"{type(loss).__name__}: label_smoothing must lie in [0, 1), found {smoothing!r}.")
    return smoothing


def _checked_exponent(loss: MultilabelLoss, what: str, value: float) -> float:
    if not 0.0 <= value < np.inf:
        raise UsageError(f"{type(loss).__name__}: {what} must be a number of at least 0, found {value!r}.")
    return value
