"""Which labels a picture gets: thresholds, the one best of a group, the K best of each group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.labels import Label, LabelMap


@dataclass(frozen=True)
class Tag:
    """What is said about one label of one picture.

    Attributes:
        label: The label.
        probability: Its probability.
        decided: Whether the picture gets the label.
    """

    label: Label
    probability: float
    decided: bool


def exclusive_positions(label_map: LabelMap, exclusive: Iterable[str]) -> list[np.ndarray]:
    """Positions of the labels of each exclusive task, ascending.

    Raises:
        UsageError: no such task, or a task named twice.
    """
    names, groups = list(exclusive), label_map.groups
    for name in names:
        if name not in groups:
            raise UsageError(f"There is no task {name!r} to be exclusive. Tasks: {', '.join(groups)}.")
        if names.count(name) > 1:
            raise UsageError(f"The exclusive task {name!r} is named twice.")
    return [groups[name] for name in names]


def probabilities_of(logits: Any, label_map: LabelMap, exclusive: Iterable[str] = ()) -> np.ndarray:
    """Sigmoid of each logit; softmax within each exclusive task.

    Args:
        logits: `(n, labels)`.
        label_map: The labels.
        exclusive: Tasks whose labels exclude each other.

    Returns:
        float64 `(n, labels)`, values in [0, 1].

    Raises:
        UsageError: another number of labels, or an unknown task.
        DataError: logits that are not finite.
    """
    z = check_scores(logits, label_map, "logits")
    # Of |z|, so that nothing overflows.
    small = np.exp(-np.abs(z))
    result = np.where(z >= 0.0, 1.0, small) / (1.0 + small)
    for group in exclusive_positions(label_map, exclusive):
        raised = np.exp(z[:, group] - z[:, group].max(axis=1, keepdims=True))
        result[:, group] = raised / raised.sum(axis=1, keepdims=True)
    return result


def eligible(scores: np.ndarray, label_map: LabelMap, exclusive: Iterable[str]) -> np.ndarray:
    """Boolean `(n, labels)`: false for the labels of exclusive tasks that are not their task's best; of equal ones the first is."""
    result = np.ones(scores.shape, bool)
    for group in exclusive_positions(label_map, exclusive):
        result[:, group] = False
        result[np.arange(len(scores)), group[scores[:, group].argmax(axis=1)]] = True
    return result


def decide(scores: Any, thresholds: Any, label_map: LabelMap, exclusive: Iterable[str] = ()) -> np.ndarray:
    """Labels whose score is above (and not at) the threshold; in exclusive tasks only the best one, and that whatever its score is.

    `Thresholds.decide` is the same with fitted thresholds, which can have a lower bound for the best one too.

    Args:
        scores: `(n, labels)`: probabilities, or logits with thresholds for logits.
        thresholds: A number, or one for each label.
        label_map: The labels.
        exclusive: Tasks whose labels exclude each other.

    Returns:
        Boolean `(n, labels)`.

    Raises:
        UsageError: shapes do not fit, or an unknown task.
        DataError: scores that are not finite.
    """
    exclusive = list(exclusive)
    values = check_scores(scores, label_map, "scores")
    limits = np.asarray(thresholds, dtype=np.float64)
    if limits.shape not in ((), (len(label_map),)):
        raise UsageError(f"Expected a threshold, or one for each of the {len(label_map)} labels; found an array {limits.shape}.")
    limits = np.broadcast_to(limits, (len(label_map),)).copy()
    for group in exclusive_positions(label_map, exclusive):
        limits[group] = -np.inf
    return (values > limits) & eligible(values, label_map, exclusive)


def top_per_task(scores: Any, label_map: LabelMap, k: int) -> dict[str, np.ndarray]:
    """The K best labels of each task, best first.

    Args:
        scores: `(n, labels)`.
        label_map: The labels.
        k: How many, at least 1; tasks with fewer labels give all they have.

    Returns:
        Task -> int64 `(n, min(k, labels of the task))` positions; among equal scores the lower position comes first.

    Raises:
        UsageError: k below 1, or another number of labels.
        DataError: scores that are not finite.
    """
    if k < 1:
        raise UsageError(f"The number of labels for each task must be at least 1, found {k!r}.")
    values = check_scores(scores, label_map, "scores")
    return {
        task: group[np.argsort(-values[:, group], axis=1, kind="stable")[:, :k]].astype(np.int64)
        for task, group in label_map.groups.items()
    }


def tags_of(
    probabilities: Any,
    decisions: Any,
    label_map: LabelMap,
    top: int = 0,
    tasks: Sequence[str] | None = None,
) -> list[dict[str, list[Tag]]]:
    """For each picture and task the labels that it gets, best first, and the best others up to `top`.

    Args:
        probabilities: `(n, labels)`.
        decisions: Boolean `(n, labels)`.
        label_map: The labels.
        top: How many of a task's best labels to tell even if they were not decided.
        tasks: The tasks to tell about; all by default.

    Returns:
        One dictionary for each picture, task -> tags. Tasks without any tag have an empty list.

    Raises:
        UsageError: shapes do not fit, or an unknown task.
        DataError: probabilities that are not finite.
    """
    values = check_scores(probabilities, label_map, "probabilities")
    chosen = np.asarray(decisions, bool)
    if chosen.shape != values.shape:
        raise UsageError(f"Decisions {chosen.shape} do not belong to probabilities {values.shape}.")
    groups, labels = label_map.groups, label_map.labels
    unknown = [task for task in tasks or () if task not in groups]
    if unknown:
        raise UsageError(f"There is no task {unknown[0]!r}. Tasks: {', '.join(groups)}.")
    wanted = {task: groups[task] for task in (groups if tasks is None else tasks)}
    result: list[dict[str, list[Tag]]] = [{} for _ in values]
    for task, group in wanted.items():
        orders = group[np.argsort(-values[:, group], axis=1, kind="stable")]
        for tags, order, row, decided in zip(result, orders, values, chosen, strict=True):
            told = [place for rank, place in enumerate(order) if decided[place] or rank < top]
            tags[task] = [Tag(labels[place], float(row[place]), bool(decided[place])) for place in told]
    return result


def check_scores(scores: Any, label_map: LabelMap, what: str) -> np.ndarray:
    """The scores as float64 `(n, labels)`.

    Raises:
        UsageError: another shape.
        DataError: values that are not finite.
    """
    values = np.asarray(scores)
    if values.ndim != 2 or values.shape[1] != len(label_map):
        raise UsageError(f"Expected {what} of shape (n, {len(label_map)}), one column for each label; found {values.shape}.")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise DataError(
            f"The {what} must be finite numbers, found {values[row, column]} in row {row} for {label_map.labels[column].name!r}."
        )
    return values


def check_probabilities(probabilities: Any, label_map: LabelMap) -> np.ndarray:
    """The probabilities as float64 `(n, labels)`.

    Raises:
        UsageError: another shape, or values outside [0, 1].
        DataError: values that are not finite.
    """
    values = check_scores(probabilities, label_map, "probabilities")
    if values.size and (values.min() < 0.0 or values.max() > 1.0):
        raise UsageError(
            f"Expected probabilities in [0, 1], found values from {values.min():g} to {values.max():g}. "
            "For logits use `probabilities_of` first."
        )
    return values


def check_targets(targets: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The targets as int8: 1 for a label that applies (any value above 0), 0, and -1 for unknown (any value below 0).

    Raises:
        UsageError: another shape than that of the scores.
    """
    values = np.asarray(targets)
    if values.shape != shape:
        raise UsageError(f"Targets {values.shape} do not belong to scores or decisions {shape}.")
    return np.sign(values).astype(np.int8)
