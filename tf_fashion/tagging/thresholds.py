"""Thresholds that are found on some records and measured on others.

A probability of one half is the right place to cut for the fewest wrong decisions, but not for F1, and rare labels seldom reach it.
One threshold for all labels, for each task or for each label is chosen here such that F1 on given records is as high as it can be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import read_json, write_json
from tf_fashion.datasets.labels import LabelMap
from tf_fashion.tagging.decisions import check_probabilities, check_targets, eligible, exclusive_positions

Kind = Literal["constant", "global", "group", "label"]
Objective = Literal["micro", "macro"]
Solver = Literal["exact", "ascent"]

KINDS = ("global", "group", "label")
OBJECTIVES = ("micro", "macro")
SOLVERS = ("exact", "ascent")

# Differences of F1 below this are rounding: the higher threshold wins.
_TIE = 1e-10


@dataclass(frozen=True)
class Thresholds:
    """When a label is decided: if its probability is above (not at) its threshold, and, in an exclusive task, the task's highest.

    Attributes:
        kind: "constant" (given), or fitted: "global" (one for all), "group" (one for each task), "label".
        values: One for each label in the order of the label map. In exclusive tasks it is a lower bound for the best label, and
            -inf where the best one is taken whatever it is.
        label_ids: The labels' ids.
        exclusive: The tasks of which a record gets one label (at most).
        objective: What was maximised: "micro", "macro", or "" if nothing was.
        fitted: How: records, the F1 reached on them (`score`, optimistic), and the options of `fit_thresholds`.
    """

    kind: Kind
    values: tuple[float, ...]
    label_ids: tuple[int, ...]
    exclusive: tuple[str, ...] = ()
    objective: str = ""
    fitted: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def constant(cls, label_map: LabelMap, value: float = 0.5, exclusive: Iterable[str] = ()) -> Thresholds:
        """One given threshold; the best label of each exclusive task is always taken.

        Raises:
            UsageError: a value outside [0, 1], or an unknown task.
        """
        _check_fraction("threshold", value)
        values = np.full(len(label_map), float(value))
        names = tuple(exclusive)
        for group in exclusive_positions(label_map, names):
            values[group] = -np.inf
        return cls("constant", tuple(values.tolist()), label_map.ids, names)

    def decide(self, probabilities: Any, label_map: LabelMap) -> np.ndarray:
        """Decisions, boolean `(n, labels)`, for probabilities of that shape.

        Raises:
            UsageError: thresholds of other labels, another shape, or values outside [0, 1].
            DataError: probabilities that are not finite.
        """
        if self.label_ids != label_map.ids:
            raise UsageError(
                f"The thresholds are for {len(self.label_ids)} labels with other ids than the {len(label_map)} of the label map. "
                "Fit them anew for this map."
            )
        p = check_probabilities(probabilities, label_map)
        return (p > np.array(self.values)) & eligible(p, label_map, self.exclusive)

    def describe(self) -> str:
        """One line for tables: "p > 0.5", "per label, fitted for micro-F1; arg-max of color"."""
        finite = sorted({value for value in self.values if np.isfinite(value)})
        if self.kind in ("constant", "global"):
            line = f"p > {finite[0]:.4g}" if finite else ""
        else:
            line = {"group": "per task", "label": "per label"}[self.kind] + f", {finite[0]:.3g} to {finite[-1]:.3g}" * bool(finite)
        if self.objective:
            line += f", fitted for {self.objective}-F1"
        if self.exclusive:
            line += f"{'; ' if line else ''}arg-max of {', '.join(self.exclusive)}"
        return line

    def to_config(self) -> dict[str, Any]:
        """JSON-able: `thresholds` maps the id of each label to its value, None for "always"."""
        return {
            "kind": self.kind,
            "objective": self.objective,
            "exclusive": list(self.exclusive),
            "thresholds": {
                str(number): value if np.isfinite(value) else None for number, value in zip(self.label_ids, self.values, strict=True)
            },
            "fitted": dict(self.fitted),
        }

    @classmethod
    def from_config(cls, config: Any, label_map: LabelMap) -> Thresholds:
        """The inverse of `to_config`.

        Raises:
            DataError: something else than `to_config` makes, or thresholds of other labels.
        """
        values = config.get("thresholds") if isinstance(config, Mapping) else None
        if not isinstance(values, Mapping) or config.get("kind") not in ("constant", *KINDS):
            raise DataError("Expected thresholds with 'kind' and 'thresholds' (label id to number), as `Thresholds.write` makes them.")
        wanted = [str(number) for number in label_map.ids]
        if set(values) != set(wanted):
            odd = sorted(set(values) ^ set(wanted))
            raise DataError(
                f"The thresholds are for {len(values)} labels, the label map has {len(wanted)}; "
                f"only one of them has {', '.join(odd[:5])}."
            )
        exclusive = config.get("exclusive") or []
        if not isinstance(exclusive, list) or not set(map(str, exclusive)) <= set(label_map.tasks):
            raise DataError(f"Thresholds: expected 'exclusive' to name tasks of {', '.join(label_map.tasks)}; found {exclusive!r}.")
        always = {position for group in exclusive_positions(label_map, exclusive) for position in group.tolist()}
        numbers = []
        for position, key in enumerate(wanted):
            value = values[key]
            if value is None and position in always:
                numbers.append(-np.inf)
            elif isinstance(value, (int, float)) and not isinstance(value, bool) and 0.0 <= value <= 1.0:
                numbers.append(float(value))
            else:
                raise DataError(f"Thresholds: expected a number in [0, 1] for the label {key}, found {value!r}.")
        fitted = config.get("fitted")
        return cls(
            config["kind"],
            tuple(numbers),
            label_map.ids,
            tuple(exclusive),
            str(config.get("objective") or ""),
            dict(fitted) if isinstance(fitted, Mapping) else {},
        )

    def write(self, path: str | Path) -> None:
        """Writes the configuration as JSON, atomically."""
        write_json(path, self.to_config())

    @classmethod
    def read(cls, path: str | Path, label_map: LabelMap) -> Thresholds:
        """Reads what `write` has written.

        Raises:
            DataError: the file is missing or broken, or for other labels.
        """
        try:
            return cls.from_config(read_json(path), label_map)
        except DataError as error:
            raise error if str(path) in str(error) else DataError(f"{path}: {error}") from None


@dataclass(frozen=True)
class CrossFit:
    """Thresholds with an honest measurement.

    Attributes:
        thresholds: Fitted on all records; for use on new ones.
        decisions: Boolean `(n, labels)`: each record decided with the thresholds of its fold.
        fold_of: int64 `(n,)`.
        folds: For each fold the thresholds that were fitted without it.
    """

    thresholds: Thresholds
    decisions: np.ndarray
    fold_of: np.ndarray
    folds: tuple[Thresholds, ...]


def fit_thresholds(
    probabilities: Any,
    targets: Any,
    label_map: LabelMap,
    kind: str = "label",
    objective: str = "micro",
    *,
    default: float | None = None,
    min_support: int = 10,
    exclusive: Iterable[str] = (),
    floors: bool = False,
    solver: str = "exact",
) -> Thresholds:
    """The thresholds with the highest F1 on given records.

    Candidates are the midpoints between neighbouring probabilities; where several give the same F1 the highest is taken. Macro-F1
    falls apart into sums over labels, each of which is maximised by itself. Micro-F1 is a quotient of sums; it is maximised over all
    thresholds together by Dinkelbach's method ("On nonlinear fractional programming", Management Science 13, 1967), which finds the
    global optimum, or by coordinate ascent, threshold by threshold until a whole pass gains nothing.

    Args:
        probabilities: `(n, labels)` in [0, 1].
        targets: `(n, labels)`: 1, 0, or -1 for unknown.
        label_map: The labels.
        kind: "global", "group" (a threshold for each task) or "label".
        objective: "micro" or "macro" (over all labels).
        default: What labels (tasks) with fewer than `min_support` positives get, and where the ascent starts. None: the best global
            threshold, with which F1 is never below that at 0.5.
        min_support: See `default`; few positives make thresholds that fit nothing else.
        exclusive: Tasks whose labels exclude each other: the best label is decided.
        floors: Whether the best label of an exclusive task must also exceed a fitted threshold, so that a record can have none.
        solver: "exact" or "ascent", for micro-F1.

    Returns:
        The thresholds; without any positive they are `default` or 0.5.

    Raises:
        UsageError: shapes do not fit, probabilities outside [0, 1], or an unknown option.
        DataError: probabilities that are not finite.
    """
    for what, value, known in (("kind", kind, KINDS), ("objective", objective, OBJECTIVES), ("solver", solver, SOLVERS)):
        if value not in known:
            raise UsageError(f"fit_thresholds: unknown {what} {value!r}. Known: {', '.join(known)}.")
    if default is not None:
        _check_fraction("default", default)
    names = tuple(exclusive)
    p = check_probabilities(probabilities, label_map)
    truth = check_targets(targets, p.shape)
    # Labels that cannot be decided have a score that no threshold is below.
    scores = np.where(eligible(p, label_map, names), p, -np.inf)
    support = (truth > 0).sum(axis=0)
    always = np.zeros(len(label_map), bool)
    if not floors:
        for group in exclusive_positions(label_map, names):
            always[group] = True
    fixed = _Fixed(scores, truth, always)
    open_positions = np.flatnonzero(~always)
    values = np.where(always, -np.inf, 0.5 if default is None else default)

    def search(parts: Sequence[np.ndarray], constant: _Fixed) -> float:
        """Fits one threshold for each part, beside what is fixed, and puts it into `values`; returns what is maximised."""
        blocks = [_Block(scores, truth, part, objective == "macro") for part in parts]
        starts = [block.cut_at(values[part[0]]) for block, part in zip(blocks, parts, strict=True)]
        if objective == "macro":
            cuts = [_first_best(block.f1_sums) for block in blocks]
        else:
            cuts = (_exact if solver == "exact" else _ascent)(blocks, starts, constant, int(support.sum()))
        for block, part, cut in zip(blocks, parts, cuts, strict=True):
            values[part] = block.thresholds[cut]
        return _score(blocks, cuts, constant, objective, support)

    score = _score([], [], fixed, objective, support)
    if support.sum() and len(open_positions):
        if kind == "global" or default is None:
            score = search([open_positions], fixed)
        if kind != "global":
            groups = np.split(open_positions, len(open_positions)) if kind == "label" else label_map.groups.values()
            parts = [np.intersect1d(group, open_positions) for group in groups]
            parts = [part for part in parts if len(part) and support[part].sum() >= max(min_support, 1)]
            rest = np.setdiff1d(open_positions, np.concatenate([*parts, np.zeros(0, np.int64)]))
            stay = np.where(scores > values, scores, -np.inf)
            chosen_rest = np.zeros(len(label_map), bool)
            chosen_rest[rest] = True
            score = search(parts, fixed + _Fixed(stay, truth, chosen_rest))
    return Thresholds(
        kind,  # type: ignore[arg-type]
        tuple(values.tolist()),
        label_map.ids,
        names,
        objective,
        {
            "records": len(p),
            "score": score,
            "default": default,
            "min_support": min_support,
            "floors": floors,
            "solver": solver if objective == "micro" else "exact",
        },
    )


def cross_fit(
    probabilities: Any,
    targets: Any,
    label_map: LabelMap,
    folds: int = 5,
    seed: int = 0,
    keys: Sequence[str] | None = None,
    **options: Any,
) -> CrossFit:
    """Decides every record with thresholds that were fitted without it.

    Numbers of these decisions, counted over all records together, are honest; those of thresholds on the records that they were
    fitted on are not.

    Args:
        probabilities, targets, label_map: As in `fit_thresholds`.
        folds: Number of parts, at least 2 and at most the number of records.
        seed: Another seed gives other parts.
        keys: One for each record: records with equal keys (photos of one product, say) share the fold. By default each is alone.
        **options: Of `fit_thresholds`.

    Raises:
        UsageError: as `fit_thresholds`, or folds or keys that do not fit.
        DataError: probabilities that are not finite.
    """
    p = check_probabilities(probabilities, label_map)
    truth = check_targets(targets, p.shape)
    fold_of = assign_folds(len(p), folds, seed, keys)
    decisions = np.zeros(p.shape, bool)
    fitted = []
    for fold in range(folds):
        own = fold_of == fold
        fitted.append(fit_thresholds(p[~own], truth[~own], label_map, **options))
        decisions[own] = fitted[-1].decide(p[own], label_map)
    return CrossFit(fit_thresholds(p, truth, label_map, **options), decisions, fold_of, tuple(fitted))


def assign_folds(records: int, folds: int, seed: int = 0, keys: Sequence[str] | None = None) -> np.ndarray:
    """A fold for each record, by a hash of seed and key (or position): equal on every machine, and of nearly equal sizes.

    Args:
        records: How many.
        folds: Number of folds, at least 2.
        seed: Another seed gives other folds.
        keys: One for each record; equal keys share the fold.

    Returns:
        int64 `(records,)`, values in [0, folds).

    Raises:
        UsageError: fewer than 2 folds, fewer records (or different keys) than folds, or a wrong number of keys.
    """
    names = [str(position) for position in range(records)] if keys is None else [str(key) for key in keys]
    if len(names) != records:
        raise UsageError(f"Expected a key for each of {records} records, found {len(names)}.")
    different = set(names)
    if folds < 2 or folds > len(different):
        what = "records" if keys is None else "different keys"
        raise UsageError(f"Folds must be from 2 to the number of {what} ({len(different)}), found {folds!r}.")
    order = sorted(different, key=lambda name: hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest())
    fold_of = {name: place % folds for place, name in enumerate(order)}
    return np.array([fold_of[name] for name in names], dtype=np.int64)


class _Fixed:
    """Counts of labels whose decisions do not change: those whose score is not -inf.

    `hits` and `decided` are sums over the labels, `f1` the sum of their F1.
    """

    def __init__(self, scores: np.ndarray, truth: np.ndarray, labels: np.ndarray) -> None:
        chosen, truth = (scores[:, labels] > -np.inf) & (truth[:, labels] >= 0), truth[:, labels] > 0
        hits, decided, support = (x.sum(axis=0) for x in (chosen & truth, chosen, truth))
        self.hits, self.decided = int(hits.sum()), int(decided.sum())
        self.f1 = float((2.0 * hits / np.maximum(decided + support, 1)).sum())

    def __add__(self, other: _Fixed) -> _Fixed:
        total = object.__new__(_Fixed)
        total.hits, total.decided, total.f1 = self.hits + other.hits, self.decided + other.decided, self.f1 + other.f1
        return total


class _Block:
    """All that one threshold for some labels can do.

    Attributes:
        thresholds: float64 `(cuts,)`, falling: above all scores, between each two that differ, below all.
        hits, decided: int64 `(cuts,)`: right decisions and all decisions at each threshold.
        f1_sums: float64 `(cuts,)`: sum of the labels' F1, if asked for.
    """

    def __init__(self, scores: np.ndarray, truth: np.ndarray, positions: np.ndarray, with_f1: bool) -> None:
        part, true = scores[:, positions], truth[:, positions]
        counts = (true >= 0) & (part > -np.inf)
        label = np.nonzero(counts)[1] if with_f1 else None
        part, positive = part[counts], true[counts] > 0
        order = np.argsort(-part, kind="stable")
        part, positive = part[order], positive[order]
        ends = np.flatnonzero(np.append(part[1:] != part[:-1], True)) if len(part) else np.zeros(0, np.int64)
        if len(part) and part[-1] <= 0.0:
            ends = ends[:-1]  # Nothing in [0, 1] is below 0.
        above, below = part[ends], np.append(part[1:], 0.0)[ends] if len(part) else part
        middle = (above + below) / 2.0
        # Between neighbouring floats there is no middle, but the lower one is not above itself.
        middle = np.where(middle < above, middle, below)
        highest = part[0] if len(part) else 1.0
        self._scores = above
        self.thresholds = np.concatenate([[max((highest + 1.0) / 2.0, highest)], middle])
        self.hits = np.append(0, np.cumsum(positive)[ends])
        self.decided = np.append(0, ends + 1)
        if label is not None:
            self.f1_sums = self._f1_sums(label[order], positive, ends, (true > 0).sum(axis=0))

    def _f1_sums(self, label: np.ndarray, positive: np.ndarray, ends: np.ndarray, support: np.ndarray) -> np.ndarray:
        if len(support) == 1:
            return 2.0 * self.hits / np.maximum(self.decided + support[0], 1)
        # Each entry changes the F1 of its own label only: the sums are running sums of the changes.
        order = np.argsort(label, kind="stable")
        sizes = np.bincount(label, minlength=len(support))
        starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
        decided = np.arange(len(label)) - starts + 1
        running = np.append(0, np.cumsum(positive[order]))
        hits = running[1:] - running[starts]
        f1 = 2.0 * hits / (decided + support[label[order]])
        before = np.where(decided > 1, np.append(0.0, f1[:-1])[: len(f1)], 0.0)
        changes = np.empty(len(f1))
        changes[order] = f1 - before
        return np.append(0.0, np.cumsum(changes)[ends])

    def cut_at(self, threshold: float) -> int:
        """The cut that decides what `threshold` does."""
        return int(np.searchsorted(-self._scores, -threshold))


def _first_best(gains: np.ndarray) -> int:
    return int(np.argmax(gains >= gains.max() - _TIE))


def _score(blocks: Sequence[_Block], cuts: Sequence[int], fixed: _Fixed, objective: str, support: np.ndarray) -> float:
    picked = list(zip(blocks, cuts, strict=True))
    if objective == "macro":
        return float((fixed.f1 + sum(block.f1_sums[cut] for block, cut in picked)) / max(len(support), 1))
    hits = fixed.hits + sum(int(block.hits[cut]) for block, cut in picked)
    decided = fixed.decided + sum(int(block.decided[cut]) for block, cut in picked)
    return 2.0 * hits / max(decided + int(support.sum()), 1)


def _exact(blocks: Sequence[_Block], starts: Sequence[int], fixed: _Fixed, positives: int) -> list[int]:
    """The cuts with the highest micro-F1 `2 hits / (decided + positives)` (Dinkelbach).

    F is the highest F1 exactly if the best of `2 hits - F (decided + positives)` is 0, and that is a sum over blocks.
    """
    cuts, score = list(starts), -1.0
    while True:
        hits = fixed.hits + sum(int(block.hits[cut]) for block, cut in zip(blocks, cuts, strict=True))
        decided = fixed.decided + sum(int(block.decided[cut]) for block, cut in zip(blocks, cuts, strict=True))
        reached = 2.0 * hits / (decided + positives)
        if reached <= score:
            return cuts
        score = reached
        cuts = [_first_best(2.0 * block.hits - score * block.decided) for block in blocks]


def _ascent(blocks: Sequence[_Block], starts: Sequence[int], fixed: _Fixed, positives: int) -> list[int]:
    cuts = list(starts)
    hits = fixed.hits + sum(int(block.hits[cut]) for block, cut in zip(blocks, cuts, strict=True))
    decided = fixed.decided + sum(int(block.decided[cut]) for block, cut in zip(blocks, cuts, strict=True))
    score = -1.0
    while True:
        for number, block in enumerate(blocks):
            hits, decided = hits - int(block.hits[cuts[number]]), decided - int(block.decided[cuts[number]])
            cuts[number] = _first_best(2.0 * (hits + block.hits) / (decided + block.decided + positives))
            hits, decided = hits + int(block.hits[cuts[number]]), decided + int(block.decided[cuts[number]])
        reached = 2.0 * hits / (decided + positives)
        if reached <= score + _TIE:
            return cuts
        score = reached


def _check_fraction(what: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise UsageError(f"A {what} must lie in [0, 1], found {value!r}.")
