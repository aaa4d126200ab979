"""Quality of matching: mean average precision and precision at 1 when every picture queries all others (no TensorFlow needed)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.labels import LabelMap
from tf_fashion.retrieval.class_protocol import ClassProtocol

_BLOCK_VALUES = 2**22


@dataclass(frozen=True, eq=False)
class ClassRetrieval:
    """How well neighbours share labels.

    Attributes:
        average_precision: float64 (q,), one per query.
        first_right: bool (q,), whether the nearest picture is right.
        queries: Rows that were queries, int64 (q,).
        gallery: Pictures searched, the query among them.
        unlabelled: Pictures without a label of the task.
        alone: Labelled pictures that no other picture is right for; they are no queries.
        protocol: The protocol.
    """

    average_precision: np.ndarray = field(repr=False)
    first_right: np.ndarray = field(repr=False)
    queries: np.ndarray = field(repr=False)
    gallery: int
    unlabelled: int
    alone: int
    protocol: ClassProtocol

    @property
    def mean_average_precision(self) -> float:
        """Mean over queries, a fraction."""
        return float(self.average_precision.mean())

    @property
    def precision_at_1(self) -> float:
        """Fraction of queries whose nearest picture is right."""
        return float(self.first_right.mean())

    def by_label(self, targets: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """mAP and P@1 in percent and the number of queries for the queries of each label that has some.

        Args:
            targets: bool or 0/1 (n, labels of the task), as given to `class_retrieval`.
            names: The labels' names.
        """
        carried = np.asarray(targets)[self.queries] > 0
        return {
            name: {
                "mAP": 100 * float(self.average_precision[rows].mean()),
                "P@1": 100 * float(self.first_right[rows].mean()),
                "queries": int(rows.sum()),
            }
            for name, rows in zip(names, carried.T, strict=True)
            if rows.any()
        }

    def summary(self, run: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Content of a `metrics.json`, in percent: protocol, mean, counts, and the run's facts (`run["name"]` names it in tables)."""
        protocol = {**self.protocol.to_config(), "fingerprint": self.protocol.fingerprint, "description": self.protocol.describe()}
        return {
            "protocol": protocol,
            "mean": {"mAP": 100 * self.mean_average_precision, "P@1": 100 * self.precision_at_1},
            "counts": {
                "queries": len(self.queries),
                "gallery": self.gallery,
                "unlabelled": self.unlabelled,
                "without_other_right_picture": self.alone,
            },
            "run": dict(run or {}),
        }


def task_targets(targets: np.ndarray, label_map: LabelMap, task: str) -> np.ndarray:
    """The columns of one task as bool (n, labels of the task), from targets (n, L) whose positive values mean "has this label".

    Raises:
        UsageError: another width, or no such task.
    """
    targets = np.asarray(targets)
    if targets.ndim != 2 or targets.shape[1] != len(label_map):
        raise UsageError(f"targets must be (n, {len(label_map)}), got shape {targets.shape}.")
    if task not in label_map.tasks:
        raise UsageError(f"There is no task {task!r}; the tasks are {', '.join(label_map.tasks)}.")
    return targets[:, label_map.groups[task]] > 0


def class_retrieval(
    vectors: np.ndarray, targets: np.ndarray, protocol: ClassProtocol, digests: Sequence[str] | None = None
) -> ClassRetrieval:
    """Ranks, for every picture, all others by distance and averages the precision at those that share a label with it.

    AP is the mean, over the right pictures, of (right pictures so far / rank), without a cut-off. Distances are computed in double
    precision and compared as float32, so that rounding does not part equal pictures.

    Args:
        vectors: (n, width) floats; a smaller Euclidean distance is nearer (`Matcher.vectors`, or unit rows for a cosine).
        targets: (n, labels of the task); values above 0 mean that the picture has the label (`task_targets`).
        protocol: Decides on unlabelled pictures and copies.
        digests: Hashes of the pictures' bytes ("" for unknown); needed where copies are removed.

    Raises:
        UsageError: shapes that do not fit, or no hashes where they are needed.
        DataError: NaN or infinity, or no query with a right picture.
    """
    vectors, targets = np.asarray(vectors), np.asarray(targets)
    if vectors.ndim != 2 or targets.ndim != 2 or len(vectors) != len(targets):
        raise UsageError(f"Expected vectors (n, width) and targets (n, labels), got {vectors.shape} and {targets.shape}.")
    if not np.isfinite(vectors).all():
        raise DataError(f"vectors: row {np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0]} has NaN or infinity.")
    if protocol.copies == "removed" and (digests is None or len(digests) != len(vectors)):
        raise UsageError("To remove copies, give one hash per picture.")
    labelled = np.any(targets > 0, axis=1)
    members = np.flatnonzero(labelled) if protocol.unlabelled == "left_out" else np.arange(len(vectors))
    places = np.flatnonzero(labelled[members])
    points = vectors[members].astype(np.float64)
    if len(points):
        points -= points.mean(axis=0)
    lengths = np.square(points).sum(axis=1)
    labels = (targets[members] > 0).astype(np.float32)
    same_picture = _picture_numbers(digests, members) if protocol.copies == "removed" else np.arange(len(members))
    ranks = np.arange(1, len(members) + 1)
    precisions, firsts, queries = [], [], []
    step = max(1, _BLOCK_VALUES // max(len(members), 1))
    for start in range(0, len(places), step):
        here = places[start : start + step]
        hidden = same_picture[here][:, None] == same_picture
        right = (labels[here] @ labels.T > 0) & ~hidden
        count = right.sum(axis=1)
        here, hidden, right, count = (values[count > 0] for values in (here, hidden, right, count))
        # The squared distances less the query's own square, which changes no order.
        keys = (lengths - 2 * (points[here] @ points.T)).astype(np.float32)
        keys[hidden] = np.inf
        order = np.argsort(keys, axis=1, kind="stable")
        hits = np.take_along_axis(right, order, axis=1)
        precisions.append((np.cumsum(hits, axis=1) / ranks * hits).sum(axis=1) / count)
        firsts.append(hits[:, 0])
        queries.append(members[here])
    if not sum(map(len, queries)):
        raise DataError(f"No two pictures share a label of {protocol.task!r}: there is nothing to find.")
    found = np.concatenate(queries)
    return ClassRetrieval(
        np.concatenate(precisions),
        np.concatenate(firsts),
        found,
        len(members),
        int((~labelled).sum()),
        len(places) - len(found),
        protocol,
    )


def _picture_numbers(digests: Sequence[str] | None, members: np.ndarray) -> np.ndarray:
    """A number per member, equal for equal hashes; an unknown hash equals no other."""
    first: dict[str, int] = {}
    names = [(digests or ())[row] for row in members]
    return np.array([first.setdefault(name, place) if name else place for place, name in enumerate(names)], np.int64)
