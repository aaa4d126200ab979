"""How good attributes are: F1 of decisions, average precision of rankings, cross-entropy of probabilities. Fractions, in float64.

Everywhere a target below 0 (-1) means unknown: the entry counts nowhere. A quotient without a denominator is 0 ("zero_division=0").
Decisions are made by `tagging.decisions` or `tagging.thresholds`, with a strict `>`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.labels import LabelMap
from tf_fashion.tagging.decisions import check_probabilities, check_scores, check_targets


class Quality(NamedTuple):
    """Precision, recall and F1."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Confusion:
    """Counts for each label over all records.

    Attributes:
        hits: int64 `(labels,)`: decided and true.
        false: Decided, but not true.
        missed: True, but not decided.
    """

    hits: np.ndarray
    false: np.ndarray
    missed: np.ndarray

    @classmethod
    def of(cls, decisions: Any, targets: Any) -> Confusion:
        """Counts decisions, boolean `(n, labels)`, against targets of that shape."""
        chosen, truth = _pair(decisions, targets)
        return cls(
            (chosen & (truth > 0)).sum(axis=0),
            (chosen & (truth == 0)).sum(axis=0),
            (~chosen & (truth > 0)).sum(axis=0),
        )

    @property
    def support(self) -> np.ndarray:
        """int64 `(labels,)`: records that have the label."""
        return self.hits + self.missed

    @property
    def decided(self) -> np.ndarray:
        """int64 `(labels,)`: records that were given the label."""
        return self.hits + self.false

    @property
    def precision(self) -> np.ndarray:
        """float64 `(labels,)`."""
        return _ratio(self.hits, self.decided)

    @property
    def recall(self) -> np.ndarray:
        """float64 `(labels,)`."""
        return _ratio(self.hits, self.support)

    @property
    def f1(self) -> np.ndarray:
        """float64 `(labels,)`."""
        return _ratio(2 * self.hits, self.decided + self.support)

    def of_labels(self, positions: Any) -> Confusion:
        """The counts of some labels."""
        return Confusion(self.hits[positions], self.false[positions], self.missed[positions])

    def micro(self) -> Quality:
        """Of all counts together."""
        hits, decided, support = (int(x.sum()) for x in (self.hits, self.decided, self.support))
        return Quality(
            float(_ratio(hits, decided)),
            float(_ratio(hits, support)),
            float(_ratio(2 * hits, decided + support)),
        )

    def macro_f1(self, only_present: bool = False) -> float:
        """Mean of the labels' F1; a label that neither occurs nor is decided counts 0.

        Args:
            only_present: Leave out labels that no record has.
        """
        f1 = self.f1[self.support > 0] if only_present else self.f1
        return float(f1.mean()) if f1.size else 0.0

    def weighted_f1(self) -> float:
        """Mean of the labels' F1, weighted by the records that have them."""
        return float(_ratio(float(self.f1 @ self.support), float(self.support.sum())))


def samples_f1(decisions: Any, targets: Any) -> float:
    """Mean of the records' F1; a record without labels that is given none counts 0. 0 for no records."""
    chosen, truth = _pair(decisions, targets)
    hits = (chosen & (truth > 0)).sum(axis=1)
    both = (chosen & (truth >= 0)).sum(axis=1) + (truth > 0).sum(axis=1)
    return float(_ratio(2 * hits, both).mean()) if len(truth) else 0.0


def average_precisions(scores: Any, targets: Any) -> np.ndarray:
    """Average precision of each label's ranking: the sum of `(R_k - R_(k-1)) P_k` over its distinct scores, from high to low.

    Records with equal scores enter together, so their order does not matter.

    Args:
        scores: `(n, labels)`, probabilities or logits.
        targets: `(n, labels)`.

    Returns:
        float64 `(labels,)`, NaN for labels that no record has.

    Raises:
        UsageError: shapes that do not fit.
        DataError: scores that are not finite.
    """
    values = np.asarray(scores)
    if values.ndim != 2:
        raise UsageError(f"Expected scores (n, labels), found an array {values.shape}.")
    truth = check_targets(targets, values.shape)
    if not np.isfinite(values).all():
        raise DataError("Average precision needs finite scores, found NaN or infinity.")
    labels, records = truth.T.shape
    if not records:
        return np.full(labels, np.nan)
    # Unknown records come last, below all positives.
    keys = np.where(truth.T < 0, np.inf, -values.T)
    order = np.argsort(keys, axis=1, kind="stable")
    keys, positive = np.take_along_axis(keys, order, 1), np.take_along_axis(truth.T > 0, order, 1)
    hits = np.cumsum(positive, axis=1)
    precision = hits / np.arange(1, records + 1)
    # A record has the precision of the last one with its score.
    last = np.ones(keys.shape, bool)
    last[:, :-1] = keys[:, 1:] != keys[:, :-1]
    ends = np.minimum.accumulate(np.where(last, np.arange(records), records)[:, ::-1], axis=1)[:, ::-1]
    total = hits[:, -1]
    found = (np.take_along_axis(precision, ends, 1) * positive).sum(axis=1)
    return np.where(total > 0, found / np.maximum(total, 1), np.nan)


def mean_average_precision(precisions: np.ndarray) -> float:
    """Mean over the labels that occur; NaN if none does.

    Args:
        precisions: What `average_precisions` gives.
    """
    present = precisions[~np.isnan(precisions)]
    return float(present.mean()) if present.size else float("nan")


def binary_cross_entropy(logits: Any, targets: Any) -> float:
    """Mean of `max(z, 0) - z y + log(1 + exp(-|z|))` over all known entries, in float64; 0 without any.

    Args:
        logits: `(n, labels)`.
        targets: `(n, labels)`.

    Raises:
        UsageError: shapes that do not fit.
    """
    z = np.asarray(logits, dtype=np.float64)
    truth = check_targets(targets, z.shape)
    losses = np.maximum(z, 0.0) - z * (truth > 0) + np.log1p(np.exp(-np.abs(z)))
    known = truth >= 0
    return float(losses[known].mean()) if known.any() else 0.0


def probability_cross_entropy(probabilities: Any, targets: Any, epsilon: float = 1e-7) -> float:
    """The same of probabilities, which are kept `epsilon` away from 0 and 1: finite where single precision has rounded to them."""
    p = np.clip(np.asarray(probabilities, dtype=np.float64), epsilon, 1.0 - epsilon)
    truth = check_targets(targets, p.shape)
    known = truth >= 0
    return float(-np.log(np.where(truth > 0, p, 1.0 - p)[known]).mean()) if known.any() else 0.0


def task_accuracy(scores: Any, targets: Any, label_map: LabelMap) -> dict[str, tuple[float, int]]:
    """How often the best label of a task is right, among the records that have exactly one label of it ("colour right in %").

    Args:
        scores: `(n, labels)`; of equal scores the first is the best.
        targets: `(n, labels)`; records that do not know a label of a task are left out of it.
        label_map: The labels.

    Returns:
        Task -> (fraction, number of records); 0 where there are none.

    Raises:
        UsageError: shapes that do not fit.
        DataError: scores that are not finite.
    """
    values = check_scores(scores, label_map, "scores")
    truth = check_targets(targets, values.shape)
    result = {}
    for task, group in label_map.groups.items():
        own = truth[:, group]
        one = ((own > 0).sum(axis=1) == 1) & (own >= 0).all(axis=1)
        right = values[one][:, group].argmax(axis=1) == own[one].argmax(axis=1)
        result[task] = (float(right.mean()) if len(right) else 0.0, len(right))
    return result


@dataclass(frozen=True)
class PerBatch:
    """A number of each batch, as the iMaterialist original logs it.

    Attributes:
        values: float64 `(batches,)`.
        sizes: int64 `(batches,)`.
    """

    values: np.ndarray
    sizes: np.ndarray

    @property
    def mean(self) -> float:
        """Mean weighted by the batches' sizes: what the original reports for an epoch."""
        return float(_ratio(float(self.values @ self.sizes), float(self.sizes.sum())))


def original_f1(decisions: Any, targets: Any, batch_sizes: int | Sequence[int]) -> PerBatch:
    """Micro-F1 of each batch, as the original has it (`avg_f1_score` is the mean). It is not the micro-F1 of the whole set.

    Args:
        decisions, targets: `(n, labels)`.
        batch_sizes: The size of all batches but the last, or the size of each one.

    Raises:
        UsageError: shapes or sizes that do not fit.
    """
    chosen, truth = _pair(decisions, targets)
    parts = _batches(len(truth), batch_sizes)
    values = [Confusion.of(chosen[part], truth[part]).micro().f1 for part in parts]
    return PerBatch(np.array(values), np.array([part.stop - part.start for part in parts]))


def legacy_val_loss(decisions: Any, targets: Any, batch_sizes: int | Sequence[int]) -> PerBatch:
    """The original's validation loss of each batch: the cross-entropy of the decisions (0 or 1), taken for logits by mistake.

    It is 0.6931, 0.3133 or 1.3133 for an entry that was not decided, rightly decided or wrongly decided; the mean over entries says
    little about the model. `binary_cross_entropy` of the logits is the right one.

    Args:
        decisions, targets: `(n, labels)`.
        batch_sizes: As in `original_f1`.

    Raises:
        UsageError: shapes or sizes that do not fit.
    """
    chosen, truth = _pair(decisions, targets)
    parts = _batches(len(truth), batch_sizes)
    values = [binary_cross_entropy(chosen[part], truth[part]) for part in parts]
    return PerBatch(np.array(values), np.array([part.stop - part.start for part in parts]))


def evaluate_attributes(
    probabilities: Any,
    targets: Any,
    decisions: Any,
    label_map: LabelMap,
    logits: Any = None,
    thresholds: Sequence[float] | np.ndarray | None = None,
) -> dict[str, Any]:
    """All numbers of one set of predictions, ready for JSON.

    Args:
        probabilities: `(n, labels)` in [0, 1].
        targets: `(n, labels)`: 1, 0, or -1 for unknown.
        decisions: Boolean `(n, labels)`.
        label_map: The labels.
        logits: `(n, labels)` for the exact cross-entropy; by default it is that of the probabilities.
        thresholds: One for each label, to stand beside its numbers.

    Returns:
        `records`, `labels`, `labels_present` (that occur); `micro_f1`, `micro_precision`, `micro_recall`, `macro_f1` (over all
        labels), `macro_f1_present`, `weighted_f1`, `samples_f1`, `mAP` (over labels that occur; None if none does), `bce`; `tasks`
        (task -> `labels`, `support`, `micro_f1`, `micro_precision`, `micro_recall`, `macro_f1`, `mAP`, `accuracy` of the best label,
        `accuracy_records`); `per_label`, a list of `id`, `name`, `task`, `support`, `decided`, `precision`, `recall`, `f1`,
        `average_precision` and `threshold` (None where there is none). Fractions.

    Raises:
        UsageError: shapes or values that do not fit.
        DataError: probabilities that are not finite.
    """
    p = check_probabilities(probabilities, label_map)
    chosen, truth = _pair(decisions, check_targets(targets, p.shape))
    if thresholds is not None and len(thresholds) != len(label_map):
        raise UsageError(f"Expected a threshold for each of the {len(label_map)} labels, found {len(thresholds)}.")
    counts, precisions = Confusion.of(chosen, truth), average_precisions(p, truth)
    micro, accuracy = counts.micro(), task_accuracy(p, truth, label_map)
    result: dict[str, Any] = {
        "records": len(p),
        "labels": len(label_map),
        "labels_present": int((counts.support > 0).sum()),
        "micro_f1": micro.f1,
        "micro_precision": micro.precision,
        "micro_recall": micro.recall,
        "macro_f1": counts.macro_f1(),
        "macro_f1_present": counts.macro_f1(only_present=True),
        "weighted_f1": counts.weighted_f1(),
        "samples_f1": samples_f1(chosen, truth),
        "mAP": _or_none(mean_average_precision(precisions)),
        "bce": probability_cross_entropy(p, truth) if logits is None else binary_cross_entropy(logits, truth),
    }
    tasks = {}
    for task, group in label_map.groups.items():
        own = counts.of_labels(group)
        quality = own.micro()
        tasks[task] = {
            "labels": len(group),
            "support": int(own.support.sum()),
            "micro_f1": quality.f1,
            "micro_precision": quality.precision,
            "micro_recall": quality.recall,
            "macro_f1": own.macro_f1(),
            "mAP": _or_none(mean_average_precision(precisions[group])),
            "accuracy": accuracy[task][0],
            "accuracy_records": accuracy[task][1],
        }
    limits: Iterable[float] = [float("nan")] * len(label_map) if thresholds is None else map(float, thresholds)
    columns = (counts.support, counts.decided, counts.precision, counts.recall, counts.f1, precisions, limits)
    per_label = [
        {
            "id": label.id,
            "name": label.name,
            "task": label.task,
            "support": int(support),
            "decided": int(decided),
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "average_precision": _or_none(float(average)),
            "threshold": _or_none(limit),
        }
        for label, support, decided, precision, recall, f1, average, limit in zip(label_map.labels, *columns, strict=True)
    ]
    return {**result, "tasks": tasks, "per_label": per_label}


def _pair(decisions: Any, targets: Any) -> tuple[np.ndarray, np.ndarray]:
    chosen = np.asarray(decisions)
    if chosen.ndim != 2 or chosen.dtype != bool:
        raise UsageError(f"Expected boolean decisions (n, labels), found {chosen.dtype} {chosen.shape}.")
    return chosen, check_targets(targets, chosen.shape)


def _batches(records: int, sizes: int | Sequence[int]) -> list[slice]:
    if isinstance(sizes, int):
        if sizes < 1:
            raise UsageError(f"A batch must have at least 1 record, found {sizes}.")
        sizes = [min(sizes, records - start) for start in range(0, records, sizes)]
    ends = np.cumsum([0, *sizes])
    if ends[-1] != records or (np.diff(ends) < 1).any():
        raise UsageError(f"The batches {list(sizes)} do not make up {records} records.")
    return [slice(int(start), int(stop)) for start, stop in zip(ends[:-1], ends[1:], strict=True)]


def _ratio(above: Any, below: Any) -> Any:
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    return np.where(below > 0, above / np.where(below > 0, below, 1.0), 0.0)


def _or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None
