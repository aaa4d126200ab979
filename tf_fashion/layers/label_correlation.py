"""What the labels of a picture say about each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_fashion.core.errors import UsageError
from tf_fashion.layers.normalization import _Float32Layer


def checked_groups(groups: Sequence[Sequence[int]], owner: str) -> list[list[int]]:
    """Groups of label positions that exclude each other, as lists of integers.

    Raises:
        UsageError: a group with fewer than two labels, a negative position, or a position named twice.
    """
    found = [[int(position) for position in group] for group in groups]
    if any(len(group) < 2 for group in found):
        raise UsageError(f"{owner}: an exclusive group needs at least two labels, found {min(found, key=len)}.")
    flat = [position for group in found for position in group]
    if min(flat, default=0) < 0 or len(set(flat)) != len(flat):
        raise UsageError(f"{owner}: groups must name each position (from 0) once, found {found}.")
    return found


def label_probabilities(logits: Any, groups: Sequence[Sequence[int]] = ()) -> Any:
    """Sigmoid of every logit; within each of the exclusive `groups` the softmax instead.

    Args:
        logits: Floating tensor `(..., labels)`.
        groups: Positions of each exclusive group's labels.

    Returns:
        float32 tensor of the same shape, values in [0, 1].
    """
    logits = ops.cast(logits, "float32")
    probabilities = ops.sigmoid(logits)
    if not groups:
        return probabilities
    # All columns side by side, then one gather that puts them in order.
    parts, places = [probabilities], np.arange(logits.shape[-1])
    width = logits.shape[-1]
    for group in groups:
        parts.append(ops.softmax(ops.take(logits, list(group), axis=-1), axis=-1))
        places[list(group)] = width + np.arange(len(group))
        width += len(group)
    return ops.take(ops.concatenate(parts, axis=-1), places, axis=-1)


@keras.saving.register_keras_serializable("tf_fashion")
class LabelCorrelation(_Float32Layer):
    """Refines logits by what the labels say about each other: `z + scale (p - prior) A` with a learned matrix A, diagonal left out.

    A classifier with one output per label decides each label from the picture alone, but labels depend on each other: a bikini
    makes "Female" likely and "Denim" not. Entry (i, j) of A is what the presence of label i adds to the log-odds of label j. The
    idea of learned refinements of labels by labels is that of Chen et al., "Multi-label image recognition with graph convolutional
    networks" (ML-GCN, CVPR 2019), whose conditional probabilities can be the start (`start_from`); here they act on the logits of
    the same picture, and not on the classifiers. With the default start, A = 0, the layer changes nothing at first.

    Args:
        rank: None for a full matrix `(labels, labels)`; else A is a product of `(labels, rank)` and `(rank, labels)`, with fewer
            weights to learn from few pictures.
        initial_scale: Start of the learned scale.
        groups: Positions of exclusive groups, whose p is a softmax (see `label_probabilities`).
        l2: Factor of the penalty on the squares of A's weights, which is added to the model's loss.

    Call arguments:
        logits: `(batch, labels)`.

    Returns:
        float32 `(batch, labels)`.

    Raises:
        UsageError: rank below 1 or above the number of labels, a negative l2, groups that overlap or name labels that are not there.
    """

    def __init__(
        self,
        rank: int | None = None,
        initial_scale: float = 1.0,
        groups: Sequence[Sequence[int]] = (),
        l2: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if rank is not None and rank < 1:
            raise UsageError(f"LabelCorrelation: rank must be at least 1 or None, found {rank!r}.")
        if not 0.0 <= l2 < np.inf:
            raise UsageError(f"LabelCorrelation: l2 must be a number of at least 0, found {l2!r}.")
        self.rank = rank
        self.initial_scale = initial_scale
        self.groups = checked_groups(groups, "LabelCorrelation")
        self.l2 = l2

    def build(self, input_shape: tuple) -> None:
        labels = input_shape[-1]
        highest = max([-1, *(position for group in self.groups for position in group)])
        if highest >= labels or (self.rank or 1) > labels:
            raise UsageError(f"LabelCorrelation: rank {self.rank} or position {highest} of a group is beyond the {labels} labels.")
        penalty = keras.regularizers.L2(self.l2) if self.l2 else None
        if self.rank is None:
            self.matrix = self.add_weight(name="matrix", shape=(labels, labels), initializer="zeros", regularizer=penalty)
        else:
            # One factor is zero and the other not: the product is zero, and both can learn.
            self.left = self.add_weight(
                name="left",
                shape=(labels, self.rank),
                initializer=keras.initializers.RandomNormal(stddev=self.rank**-0.5),
                regularizer=penalty,
            )
            self.right = self.add_weight(name="right", shape=(self.rank, labels), initializer="zeros", regularizer=penalty)
        self.scale = self.add_weight(name="scale", shape=(), initializer=keras.initializers.Constant(self.initial_scale))
        self.prior = self.add_weight(name="prior", shape=(labels,), initializer="zeros", trainable=False)
        self._others = 1.0 - np.eye(labels, dtype=np.float32)
        self.built = True

    def start_from(self, targets: Any, smoothing: float = 1.0) -> None:
        """Sets A to `label_lifts` of training targets and the prior to the labels' frequencies; the layer must be built.

        Args:
            targets: `(records, labels)`: 1, 0, or -1 for unknown.
            smoothing: As in `label_lifts`.

        Raises:
            UsageError: targets of another shape.
        """
        lifts, prior = label_lifts(targets, smoothing)
        if len(prior) != self.prior.shape[0]:
            raise UsageError(f"LabelCorrelation: targets of {len(prior)} labels for a layer of {self.prior.shape[0]}.")
        self.prior.assign(prior)
        if self.rank is None:
            self.matrix.assign(lifts)
            return
        left, values, right = np.linalg.svd(lifts)
        share = np.sqrt(values[: self.rank])
        # Where a factor is zero the other one must not be, or neither could learn.
        self.left.assign(left[:, : self.rank] * np.where(share > 0.0, share, 1.0))
        self.right.assign(share[:, None] * right[: self.rank])

    def call(self, logits: Any) -> Any:
        logits = ops.cast(logits, "float32")
        said = label_probabilities(logits, self.groups) - self.prior
        matrix = self.matrix if self.rank is None else ops.matmul(self.left, self.right)
        return logits + self.scale * ops.matmul(said, matrix * self._others)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "rank": self.rank,
            "initial_scale": self.initial_scale,
            "groups": self.groups,
            "l2": self.l2,
        }


def label_lifts(targets: Any, smoothing: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """`P(j | i) - P(j | not i)` of every pair of labels, and how frequent labels are.

    Args:
        targets: `(records, labels)`: above 0 for a label that applies, 0 for one that does not, below 0 for unknown.
        smoothing: Records of label j's own frequency that are added to both sides, >= 0: what rare labels say shrinks to nothing.

    Returns:
        float64 `(labels, labels)` in [-1, 1] with zeros on the diagonal, rows are the condition i; float64 `(labels,)` in [0, 1].

    Raises:
        UsageError: targets that are no matrix, or a negative smoothing.
    """
    targets = np.asarray(targets)
    if targets.ndim != 2:
        raise UsageError(f"label_lifts: expected targets (records, labels), found an array {targets.shape}.")
    if not smoothing >= 0.0:
        raise UsageError(f"label_lifts: smoothing must not be negative, found {smoothing!r}.")
    yes, no = (targets > 0).astype(np.float64), (targets == 0).astype(np.float64)
    known = yes.sum(axis=0) + no.sum(axis=0)
    prior = yes.sum(axis=0) / np.maximum(known, 1.0)

    def conditional(given: np.ndarray) -> np.ndarray:
        both, records = given.T @ yes, given.T @ (yes + no) + smoothing
        return np.where(records > 0.0, (both + smoothing * prior) / np.where(records > 0.0, records, 1.0), prior)

    lifts = conditional(yes) - conditional(no)
    np.fill_diagonal(lifts, 0.0)
    return lifts, prior
