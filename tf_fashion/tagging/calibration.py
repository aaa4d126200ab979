"""Whether probabilities can be taken at their word, and logits rescaled such that they can.

Of all entries with probability 0.7, seven in ten should apply. Modern networks are surer than they are right (Guo et al., "On
calibration of modern neural networks", ICML 2017); one factor for the logits repairs most of it and changes no ranking.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import read_json, write_json
from tf_fashion.datasets.labels import LabelMap
from tf_fashion.tagging.decisions import check_scores, check_targets, exclusive_positions, probabilities_of
from tf_fashion.tagging.thresholds import assign_folds

BINNINGS = ("width", "mass")
KINDS = ("temperature", "platt")
SCOPES = ("global", "group")

# Slopes stay positive, so that calibration never reverses a ranking.
_SLOPES = (1e-3, 1e3)


@dataclass(frozen=True)
class Reliability:
    """A reliability curve: bins of entries with like probabilities. Empty bins are left out.

    Attributes:
        probability: float64 `(bins,)`: mean probability of the bin's entries.
        frequency: float64 `(bins,)`: share of them that apply.
        counts: int64 `(bins,)`: entries.
        brier: Mean squared difference of probability and truth over all entries.
    """

    probability: np.ndarray
    frequency: np.ndarray
    counts: np.ndarray
    brier: float

    @property
    def ece(self) -> float:
        """Expected calibration error: mean over entries of their bin's |probability - frequency| (Naeini et al., AAAI 2015)."""
        if not self.counts.sum():
            return 0.0
        return float(self.counts @ np.abs(self.probability - self.frequency) / self.counts.sum())

    @property
    def largest(self) -> float:
        """The largest |probability - frequency| of a bin."""
        return float(np.abs(self.probability - self.frequency).max()) if len(self.counts) else 0.0

    def to_config(self) -> dict[str, Any]:
        """JSON-able: the arrays as lists, `ece` and `brier`."""
        return {
            "probability": self.probability.tolist(),
            "frequency": self.frequency.tolist(),
            "counts": self.counts.tolist(),
            "ece": self.ece,
            "brier": self.brier,
        }


def reliability(probabilities: Any, truth: Any, bins: int = 15, binning: str = "width") -> Reliability:
    """The reliability curve of probabilities.

    Args:
        probabilities: In [0, 1], any shape: all labels together, the columns of one task, ...
        truth: Same shape: above 0 for what applies, 0, below 0 for unknown, which is left out.
        bins: Number of bins, at least 1.
        binning: "width": equal parts of [0, 1]; "mass": bins with equal numbers of entries, as far as equal probabilities, which
            share a bin, allow. Most labels are improbable, so most entries are in the first bin of equal width.

    Raises:
        UsageError: shapes do not fit, values outside [0, 1], no bins, or unknown binning.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    known = check_targets(truth, p.shape).ravel()
    if p.size and not (p.min() >= 0.0 and p.max() <= 1.0):
        raise UsageError(f"Expected probabilities in [0, 1], found values from {p.min():g} to {p.max():g}.")
    if bins < 1 or binning not in BINNINGS:
        raise UsageError(f"Expected at least 1 bin and a binning of {', '.join(BINNINGS)}; found {bins!r} and {binning!r}.")
    p, known = p.ravel()[known >= 0], known[known >= 0]
    if binning == "width":
        place = np.minimum((p * bins).astype(np.int64), bins - 1)
    else:
        order = np.argsort(p, kind="stable")
        p, known = p[order], known[order]
        # Equal probabilities have the place of their first one.
        first = np.append(True, p[1:] != p[:-1])[: len(p)]
        place = np.maximum.accumulate(np.where(first, np.arange(len(p)), 0)) * bins // max(len(p), 1)
    applies = (known > 0).astype(np.float64)
    counts = np.bincount(place, minlength=bins)
    there = counts > 0
    sums = [np.bincount(place, weights=x, minlength=bins)[there] / counts[there] for x in (p, applies)]
    return Reliability(sums[0], sums[1], counts[there], float(np.mean((p - applies) ** 2)) if len(p) else 0.0)


@dataclass(frozen=True)
class Calibration:
    """Logits `a z + b` in place of z, with a > 0: the order of pictures for each label stays.

    Attributes:
        kind: "temperature" (a = 1 / T, b = 0) or "platt" (both).
        scope: "global" (one a and b for all labels) or "group" (for each task).
        slopes, offsets: a and b for each label, in the order of the label map.
        label_ids: The labels' ids.
        exclusive: Tasks with a softmax; their b is 0, since it would change nothing, and their a is their own.
        fitted: How it was fitted.
    """

    kind: Literal["temperature", "platt"]
    scope: Literal["global", "group"]
    slopes: tuple[float, ...]
    offsets: tuple[float, ...]
    label_ids: tuple[int, ...]
    exclusive: tuple[str, ...] = ()
    fitted: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, logits: Any, label_map: LabelMap) -> np.ndarray:
        """Calibrated logits, float64 `(n, labels)`.

        Raises:
            UsageError: other labels, or another shape.
            DataError: logits that are not finite.
        """
        if self.label_ids != label_map.ids:
            raise UsageError("The calibration belongs to a label map with other ids. Fit it anew for this one.")
        return check_scores(logits, label_map, "logits") * np.array(self.slopes) + np.array(self.offsets)

    def probabilities(self, logits: Any, label_map: LabelMap) -> np.ndarray:
        """Calibrated probabilities, float64 `(n, labels)`; raises as `apply`."""
        return probabilities_of(self.apply(logits, label_map), label_map, self.exclusive)

    def to_config(self) -> dict[str, Any]:
        """JSON-able: `labels` maps the id of each label to its [a, b]."""
        pairs = zip(self.slopes, self.offsets, strict=True)
        return {
            "kind": self.kind,
            "scope": self.scope,
            "exclusive": list(self.exclusive),
            "labels": {str(number): list(pair) for number, pair in zip(self.label_ids, pairs, strict=True)},
            "fitted": dict(self.fitted),
        }

    @classmethod
    def from_config(cls, config: Any, label_map: LabelMap) -> Calibration:
        """The inverse of `to_config`.

        Raises:
            DataError: something else than `to_config` makes, or a calibration of other labels.
        """
        labels = config.get("labels") if isinstance(config, Mapping) else None
        if not isinstance(labels, Mapping) or config.get("kind") not in KINDS or config.get("scope") not in SCOPES:
            raise DataError("Expected a calibration with 'kind', 'scope' and 'labels' (label id to [slope, offset]).")
        if set(labels) != {str(number) for number in label_map.ids}:
            raise DataError(f"The calibration is for {len(labels)} labels, other ones than the {len(label_map)} of the label map.")
        exclusive = config.get("exclusive") or []
        if not isinstance(exclusive, list) or not set(map(str, exclusive)) <= set(label_map.tasks):
            raise DataError(f"Calibration: expected 'exclusive' to name tasks of {', '.join(label_map.tasks)}; found {exclusive!r}.")
        pairs = [labels[str(number)] for number in label_map.ids]
        try:
            values = np.array(pairs, dtype=np.float64)
        except (TypeError, ValueError):
            values = np.zeros(0)
        if values.shape != (len(label_map), 2) or not np.isfinite(values).all() or (values[:, 0] <= 0.0).any():
            raise DataError("Calibration: expected two finite numbers for each label, the slope above 0.")
        slopes, offsets = values.T.tolist()
        fitted = config.get("fitted")
        return cls(
            config["kind"],
            config["scope"],
            tuple(slopes),
            tuple(offsets),
            label_map.ids,
            tuple(exclusive),
            dict(fitted) if isinstance(fitted, Mapping) else {},
        )

    def write(self, path: str | Path) -> None:
        """Writes the configuration as JSON, atomically."""
        write_json(path, self.to_config())

    @classmethod
    def read(cls, path: str | Path, label_map: LabelMap) -> Calibration:
        """Reads what `write` has written.

        Raises:
            DataError: the file is missing or broken, or for other labels.
        """
        try:
            return cls.from_config(read_json(path), label_map)
        except DataError as error:
            raise error if str(path) in str(error) else DataError(f"{path}: {error}") from None


def fit_calibration(
    logits: Any, targets: Any, label_map: LabelMap, kind: str = "temperature", scope: str = "group", exclusive: Iterable[str] = ()
) -> Calibration:
    """Slopes and offsets with the lowest cross-entropy on given records, by Newton's method (the problems are convex).

    As in Platt ("Probabilistic outputs for support vector machines", 1999), targets are moved a little towards each other,
    (N+ + 1) / (N+ + 2) and 1 / (N- + 2), which keeps the slopes finite where the labels are separated without error.

    Args:
        logits: `(n, labels)`.
        targets: `(n, labels)`: 1, 0, or -1 for unknown.
        label_map: The labels.
        kind: "temperature": one factor; "platt": factor and offset.
        scope: "global": the same for all labels outside the exclusive tasks; "group": for each task.
        exclusive: Tasks with a softmax, each with a temperature of its own; records without a label of the task, or that do not
            know all of it, are left out there.

    Returns:
        The calibration; slope 1 and offset 0 for tasks without any positive or any negative.

    Raises:
        UsageError: shapes do not fit, or an unknown option.
        DataError: logits that are not finite.
    """
    if kind not in KINDS or scope not in SCOPES:
        raise UsageError(f"Expected a kind of {', '.join(KINDS)} and a scope of {', '.join(SCOPES)}; found {kind!r} and {scope!r}.")
    names = tuple(exclusive)
    z = check_scores(logits, label_map, "logits")
    truth = check_targets(targets, z.shape)
    slopes, offsets = np.ones(len(label_map)), np.zeros(len(label_map))
    choices = exclusive_positions(label_map, names)
    for group in choices:
        own = truth[:, group]
        rows = (own >= 0).all(axis=1) & (own > 0).any(axis=1)
        slopes[group] = _softmax_slope(z[rows][:, group], own[rows] > 0)
    inside = np.concatenate([*choices, np.zeros(0, np.int64)])
    rest = [np.setdiff1d(group, inside) for group in label_map.groups.values()]
    if scope == "global":
        rest = [np.concatenate(rest)]
    for group in rest:
        known = truth[:, group] >= 0
        slopes[group], offsets[group] = _sigmoid_fit(z[:, group][known], truth[:, group][known] > 0, kind == "platt")
    return Calibration(
        kind,  # type: ignore[arg-type]
        scope,  # type: ignore[arg-type]
        tuple(slopes.tolist()),
        tuple(offsets.tolist()),
        label_map.ids,
        names,
        {"records": len(z)},
    )


def cross_calibrate(
    logits: Any,
    targets: Any,
    label_map: LabelMap,
    folds: int = 5,
    seed: int = 0,
    keys: Sequence[str] | None = None,
    **options: Any,
) -> tuple[np.ndarray, Calibration]:
    """Probabilities of every record by a calibration that was fitted without it, and the calibration fitted on all records.

    Args:
        logits, targets, label_map: As in `fit_calibration`.
        folds, seed, keys: As in `tagging.thresholds.cross_fit`; the same values give the same folds.
        **options: Of `fit_calibration`.

    Returns:
        float64 `(n, labels)` for an honest reliability curve; the calibration for new records.

    Raises:
        UsageError, DataError: as `fit_calibration` and `assign_folds`.
    """
    z = check_scores(logits, label_map, "logits")
    truth = check_targets(targets, z.shape)
    fold_of = assign_folds(len(z), folds, seed, keys)
    result = np.zeros(z.shape)
    for fold in range(folds):
        own = fold_of == fold
        result[own] = fit_calibration(z[~own], truth[~own], label_map, **options).probabilities(z[own], label_map)
    return result, fit_calibration(z, truth, label_map, **options)


def _sigmoid_fit(z: np.ndarray, applies: np.ndarray, with_offset: bool) -> tuple[float, float]:
    yes = int(applies.sum())
    no = len(applies) - yes
    if not yes or not no:
        return 1.0, 0.0
    target = np.where(applies, (yes + 1.0) / (yes + 2.0), 1.0 / (no + 2.0))
    ones = np.ones_like(z)
    found = _logistic(np.stack([z, ones] if with_offset else [z]), np.zeros(len(z)), target)
    slope = float(np.clip(found[0], *_SLOPES))
    if not with_offset:
        return slope, 0.0
    if slope != found[0]:
        # The bound holds, and the offset is the best one for it.
        return slope, float(_logistic(ones[None], slope * z, target)[0])
    return slope, float(found[1])


def _logistic(columns: np.ndarray, fixed: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The weights of `columns`, `(inputs, n)`, with the lowest cross-entropy of `fixed + weights @ columns` with the targets."""

    def value(x: np.ndarray) -> float:
        logits = fixed + x @ columns
        return float(np.mean(np.logaddexp(0.0, logits) - target * logits))

    def derivatives(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p = 0.5 * (1.0 + np.tanh(0.5 * (fixed + x @ columns)))
        return columns @ (p - target) / len(target), (columns * (p * (1.0 - p))) @ columns.T / len(target)

    return _newton(value, derivatives, np.zeros(len(columns)))


def _softmax_slope(z: np.ndarray, applies: np.ndarray) -> float:
    if not len(z):
        return 1.0
    target = applies / applies.sum(axis=1, keepdims=True)
    small = 1.0 / (len(z) + 2.0)
    target = target * (1.0 - small) + small / z.shape[1]
    z = z - z.max(axis=1, keepdims=True)

    def value(x: np.ndarray) -> float:
        logits = x[0] * z
        top = logits.max(axis=1, keepdims=True)
        return float(np.mean(top[:, 0] + np.log(np.exp(logits - top).sum(axis=1)) - (target * logits).sum(axis=1)))

    def derivatives(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = x[0] * z
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        mean = (p * z).sum(axis=1)
        variance = (p * z * z).sum(axis=1) - mean**2
        return np.array([np.mean(mean - (target * z).sum(axis=1))]), np.array([[np.mean(variance)]])

    return float(np.clip(_newton(value, derivatives, np.zeros(1))[0], *_SLOPES))


def _newton(value: Any, derivatives: Any, start: np.ndarray, steps: int = 100) -> np.ndarray:
    """Minimum of a convex function: Newton's steps, halved until the value falls.

    Slopes start at 0, where the curvature is largest: far out, where everything is saturated, there is none to follow.
    """
    x, now = start, value(start)
    for _ in range(steps):
        gradient, hessian = derivatives(x)
        # A flat valley (all logits equal) has no unique minimum; the small ridge keeps the step finite.
        step = np.linalg.solve(hessian + (1e-12 * np.trace(hessian) + 1e-300) * np.eye(len(x)), gradient)
        share = 1.0
        while (new := value(x - share * step)) > now and share > 1e-10:
            share /= 2.0
        if not new < now:
            return x
        x, drop, now = x - share * step, now - new, new
        if drop <= 1e-14 * max(abs(now), 1.0):
            return x
    return x
