"""Product matching: the catalogue's rows that are nearest to a query by attribute scores, by embedding, or by both.

Every metric here is a Euclidean distance between vectors made from the rows, or falls with one:

| metric | vector | distance |
|---|---|---|
| `euclidean_logits` | logits (what the original program does) | length of the difference |
| `euclidean_prob` | probabilities | length of the difference |
| `cosine` | logits, scaled to length one | 1 - cosine = half the squared difference |
| `embedding` | embedding, scaled to length one | 1 - cosine |
| `mix` | both of the above kinds beside each other | see `MatchMetric` |

So one search serves all. A matrix product in float32 finds candidates, their distances are computed in double precision from the
stored rows, and a bound on the product's rounding errors proves that no other row can come before them; where it cannot prove that,
more candidates are taken, in the end all. The result is exact, its order is (distance, row), and equal rows have equal distances.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.labels import LabelMap
from tf_fashion.retrieval.class_protocol import ClassProtocol
from tf_fashion.retrieval.class_retrieval import class_retrieval, task_targets
from tf_fashion.retrieval.score_store import ScoreStore
from tf_fashion.retrieval.search import GALLERY_BLOCK, top_k, unit_rows

ATTRIBUTE_METRICS = ("euclidean_logits", "euclidean_prob", "cosine")
METRICS = (*ATTRIBUTE_METRICS, "embedding", "mix")
# Candidates beyond k, tried in turn before all rows are compared.
_EXTRA = (32, 512)
_BLOCK_VALUES = 2**22
_CENTRE_ROWS = 4096
# Rounding unit of float32, doubled: factors are rounded before they are multiplied.
_ROUNDING = 2.0**-23


@dataclass(frozen=True)
class MatchMetric:
    """What "near" means.

    Labels of one task can count more than others: their coordinates are multiplied by the square root of the task's weight, so that
    weight 2 is as if each of these labels were there twice.

    In exclusive tasks probabilities come from a softmax. It does not change when all logits of the task move together, so metrics on
    logits take each such task's mean off first.

    `mix` is `sqrt(weight * (a / A)^2 + (1 - weight) * (e / E)^2)`: a is the length of the difference of the vectors of `attributes`, e
    that of the unit embeddings, A and E are the root mean squares of a and e over all pairs of different catalogue rows. So both parts
    have mean square 1 on any catalogue, and the weight is the attributes' share. Weights 1 and 0 order like the parts alone.

    Attributes:
        name: One of `METRICS`.
        weight: Share of the attributes in `mix`, 0 to 1.
        attributes: The attributes' part of `mix`, one of `ATTRIBUTE_METRICS`.
        group_weights: Task name -> weight; 1 where not named, 0 leaves a task out.

    Raises:
        UsageError: unknown names, or weights outside their range.
    """

    name: str = "euclidean_logits"
    weight: float = 0.5
    attributes: str = "euclidean_prob"
    group_weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in METRICS:
            raise UsageError(f"Unknown metric {self.name!r}. Known: {', '.join(METRICS)}.")
        if self.attributes not in ATTRIBUTE_METRICS:
            raise UsageError(f"The attributes' part of a mix is one of {', '.join(ATTRIBUTE_METRICS)}; got {self.attributes!r}.")
        if not _is_number(self.weight) or not 0 <= self.weight <= 1:
            raise UsageError(f"The share of the attributes in a mix is a number from 0 to 1, got {self.weight!r}.")
        object.__setattr__(self, "group_weights", dict(self.group_weights))
        for task, value in self.group_weights.items():
            if not _is_number(value) or value < 0:
                raise UsageError(f"The weight of {task!r} must be a number of at least 0, got {value!r}.")

    @property
    def parts(self) -> dict[str, float]:
        """The vectors it is made of, with their shares."""
        if self.name != "mix":
            return {self.name: 1.0}
        return {name: share for name, share in ((self.attributes, self.weight), ("embedding", 1.0 - self.weight)) if share}

    def describe(self) -> str:
        """A few words for tables."""
        text = self.name
        if self.name == "mix":
            text = f"mix {self.weight:g} {self.attributes} + {1 - self.weight:g} embedding"
        if self.group_weights and set(self.parts) != {"embedding"}:
            text += f" ({', '.join(f'{task} x{value:g}' for task, value in self.group_weights.items())})"
        return text

    def to_config(self) -> dict[str, Any]:
        """Plain dictionary for JSON; `MatchMetric(**config)` reads it back."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Matches:
    """What was found for each query.

    Attributes:
        query_ids: Q ids.
        reference: The catalogue.
        positions: Rows of the catalogue, int64 (Q, k), nearest first; -1 where there are fewer than k.
        distances: float64 (Q, k); infinite where there are fewer than k.
        metric: How they were measured.
    """

    query_ids: tuple[str, ...]
    reference: ScoreStore
    positions: np.ndarray
    distances: np.ndarray
    metric: MatchMetric

    def __len__(self) -> int:
        return len(self.query_ids)

    def ids(self, query: int) -> list[str]:
        """Ids found for the query with this number, nearest first."""
        return [self.reference.image_ids[row] for row in self.positions[query] if row >= 0]

    def rows(self) -> Iterator[dict[str, Any]]:
        """`{"query": .., "rank": 1, "image_id": .., "distance": ..}` for every match, query by query (for CSV and JSON)."""
        for number, query in enumerate(self.query_ids):
            for rank, (image_id, distance) in enumerate(zip(self.ids(number), self.distances[number], strict=False), start=1):
                yield {"query": query, "rank": rank, "image_id": image_id, "distance": float(distance)}


class Matcher:
    """Finds catalogue rows near queries.

    Args:
        reference: The catalogue.
        metric: A `MatchMetric`, or the name of one.

    Raises:
        UsageError: a task with a weight that the label map does not have, no coordinate left by the weights, or embeddings asked for
            where there are none.
        DataError: no rows.
    """

    def __init__(self, reference: ScoreStore, metric: MatchMetric | str = "euclidean_logits") -> None:
        self.reference = reference
        self.metric = MatchMetric(metric) if isinstance(metric, str) else metric
        if not len(reference):
            raise DataError("The catalogue is empty: there is nothing to match with.")
        if "embedding" in self.metric.parts and reference.embeddings is None:
            raise UsageError(
                f"The metric {self.metric.name!r} needs embeddings, and these scores have none. Compute them with a model that has an "
                f"embedding, or choose one of {', '.join(ATTRIBUTE_METRICS)}."
            )
        self._weights = _label_weights(self.metric, reference.label_map)
        self._parts = [_Part(name, share, self) for name, share in self.metric.parts.items()]
        self._coarse = np.concatenate([part.coarse(reference) for part in self._parts], axis=1)
        squares = np.square(self._coarse.astype(np.float64)).sum(axis=1)
        self._longest = float(np.sqrt(squares.max()))
        self._gallery = np.concatenate([self._coarse, -squares[:, None].astype(np.float32)], axis=1)

    def match(
        self,
        queries: ScoreStore,
        k: int = 4,
        *,
        exclude_self: bool = True,
        mask: np.ndarray | None = None,
    ) -> Matches:
        """The k nearest catalogue rows of every query.

        Args:
            queries: Scores by the same model; may be the catalogue itself.
            k: How many, at least 1.
            exclude_self: Leaves out the row with the query's id and, where both hashes are known, rows of the same picture.
            mask: None, or bool (n,): only catalogue rows with True can be found.

        Raises:
            UsageError: k below 1, a mask of another length, or queries without embeddings where they are needed.
            DataError: queries of another model or with other labels.
        """
        self.reference.require_like(queries)
        if "embedding" in self.metric.parts and queries.embeddings is None:
            raise UsageError(f"The metric {self.metric.name!r} needs embeddings, and the queries have none.")
        if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or k < 1:
            raise UsageError(f"k must be a whole number of at least 1, got {k!r}.")
        if mask is not None and (np.asarray(mask).dtype != bool or np.shape(mask) != (len(self.reference),)):
            raise UsageError(f"mask must be bool ({len(self.reference)},), one per catalogue row.")
        exclude = self_positions(queries, self.reference) if exclude_self else np.full((len(queries), 1), -1, np.int64)
        positions = np.full((len(queries), int(k)), -1, np.int64)
        distances = np.full((len(queries), int(k)), np.inf)
        left = np.arange(len(queries))
        for extra in _EXTRA:
            if len(left):
                proved, positions[left], distances[left] = self._among_candidates(
                    queries.take(left), exclude[left], int(k), extra, mask
                )
                left = left[~proved]
        if len(left):
            positions[left], distances[left] = self._among_all(queries.take(left), exclude[left], int(k), mask)
        return Matches(queries.image_ids, self.reference, positions, self._told(distances), self.metric)

    def vectors(self, store: ScoreStore) -> np.ndarray:
        """Vectors float64 (n, width) whose squared Euclidean distances order as the metric's distances do."""
        self.reference.require_like(store)
        parts = [part.factor**0.5 * part.rows(part.source(store)) for part in self._parts]
        return np.concatenate(parts, axis=1)

    def _told(self, squares: np.ndarray) -> np.ndarray:
        """The metric's distance from the squared distance of the vectors."""
        return squares / 2 if self.metric.name in ("cosine", "embedding") else np.sqrt(squares)

    def _squares(self, queries: ScoreStore, rows: np.ndarray) -> np.ndarray:
        """Squared distances (Q, c) of every query to the catalogue rows `rows` (Q, c), or (c,) for all queries alike."""
        total = np.zeros((len(queries), rows.shape[-1]))
        for part in self._parts:
            here = part.rows(part.source(queries))
            there = part.rows(part.source(self.reference)[rows])
            if rows.ndim == 1:
                for number, row in enumerate(here):
                    total[number] += part.factor * np.square(there - row).sum(axis=-1)
            else:
                total += part.factor * np.square(there - here[:, None]).sum(axis=-1)
        return total

    def _among_candidates(
        self, queries: ScoreStore, exclude: np.ndarray, k: int, extra: int, mask: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each query: whether the result is proved to be exact, the rows (Q, k) and their squared distances (Q, k)."""
        coarse = np.concatenate([part.coarse(queries) for part in self._parts], axis=1)
        wide = np.concatenate([2 * coarse, np.ones((len(coarse), 1), np.float32)], axis=1)
        wanted = min(k + extra, len(self.reference))
        scores, rows = top_k(wide, self._gallery, wanted, chunk=GALLERY_BLOCK, exclude=exclude, mask=mask)
        positions = np.full((len(queries), k), -1, np.int64)
        squares = np.full((len(queries), k), np.inf)
        step = max(1, _BLOCK_VALUES // (wanted * self._gallery.shape[1]))
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            # Rising rows, so that a stable sort breaks ties by row.
            found = np.sort(rows[part], axis=1)
            exact = np.where(found < 0, np.inf, self._squares(queries.take(np.arange(len(queries))[part]), np.maximum(found, 0)))
            order = np.argsort(exact, axis=1, kind="stable")[:, :k]
            width = order.shape[1]
            squares[part, :width] = np.take_along_axis(exact, order, axis=1)
            positions[part, :width] = np.where(np.isinf(squares[part, :width]), -1, np.take_along_axis(found, order, axis=1))
        # No other row's product is above the last candidate's, and both are off by at most `error`.
        lengths = np.sqrt(np.square(coarse.astype(np.float64)).sum(axis=1))
        error = (self._gallery.shape[1] + 4) * _ROUNDING * np.square(lengths + self._longest)
        least_elsewhere = np.square(lengths) - scores[:, -1].astype(np.float64) - error
        proved = (rows[:, -1] < 0) | (wanted == len(self.reference)) | (squares[:, -1] < least_elsewhere)
        return proved, positions, squares

    def _among_all(self, queries: ScoreStore, exclude: np.ndarray, k: int, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Rows (Q, k) and squared distances (Q, k) from all distances, a few queries at a time."""
        positions = np.full((len(queries), k), -1, np.int64)
        squares = np.full((len(queries), k), np.inf)
        count = len(self.reference)
        step = max(1, _BLOCK_VALUES // count)
        width = max(1, _BLOCK_VALUES // self._gallery.shape[1])
        for start in range(0, len(queries), step):
            numbers = np.arange(len(queries))[start : start + step]
            some = queries.take(numbers)
            every = np.concatenate([self._squares(some, np.arange(a, min(a + width, count))) for a in range(0, count, width)], axis=1)
            if mask is not None:
                every[:, ~mask] = np.inf
            row, place = np.nonzero(exclude[numbers] >= 0)
            every[row, exclude[numbers][row, place]] = np.inf
            order = np.argsort(every, axis=1, kind="stable")[:, :k]
            found = np.take_along_axis(every, order, axis=1)
            squares[numbers, : order.shape[1]] = found
            positions[numbers, : order.shape[1]] = np.where(np.isinf(found), -1, order)
        return positions, squares


class _Part:
    """One kind of vector: how it is made from rows, and its factor in the squared distance."""

    def __init__(self, name: str, share: float, matcher: Matcher) -> None:
        self.name = name
        self._weights = matcher._weights
        groups = matcher.reference.label_map.groups
        self._exclusive = [groups[task] for task in matcher.reference.exclusive]
        # Near the middle, squares are small and lose little in float32; it need not be the exact mean.
        source = self.source(matcher.reference)
        self._centre = self.rows(source[:: max(1, len(source) // _CENTRE_ROWS)]).mean(axis=0)
        self.factor = share / self._spread(source) if matcher.metric.name == "mix" else 1.0

    def source(self, store: ScoreStore) -> np.ndarray:
        if self.name != "embedding":
            return store.scores
        if store.embeddings is None:
            raise UsageError(f"The metric {self.name!r} needs embeddings, and these scores have none.")
        return store.embeddings

    def rows(self, values: np.ndarray) -> np.ndarray:
        """Vectors float64 (..., width) of scores or embeddings (..., columns)."""
        values = values.astype(np.float64)
        if self.name == "embedding":
            return _directions(values)
        if self.name == "euclidean_prob":
            values = probabilities_of(values, self._exclusive)
        else:
            for group in self._exclusive:
                values[..., group] -= values[..., group].mean(axis=-1, keepdims=True)
        if self._weights is not None:
            values *= self._weights
        return _directions(values) if self.name == "cosine" else values

    def coarse(self, store: ScoreStore) -> np.ndarray:
        """The vectors in float32, around the catalogue's mean and times the factor's root."""
        source = self.source(store)
        return np.concatenate([(self.factor**0.5 * (self.rows(b) - self._centre)).astype(np.float32) for b in _blocks(source)], axis=0)

    def _spread(self, source: np.ndarray) -> float:
        """The mean squared distance of two different rows; 1 where all are equal."""
        total, squares = np.zeros(len(self._centre)), 0.0
        for block in _blocks(source):
            away = self.rows(block) - self._centre
            total += away.sum(axis=0)
            squares += float(np.square(away).sum())
        spread = 2 * (squares - float(np.square(total).sum()) / len(source)) / max(len(source) - 1, 1)
        return spread if spread > 1e-24 else 1.0


def evaluate_matching(
    store: ScoreStore, targets: np.ndarray, metrics: Sequence[MatchMetric | str], protocol: ClassProtocol
) -> list[dict[str, Any]]:
    """Class retrieval under several metrics: how often near pictures have the same label of one task.

    Args:
        store: Scores of the pictures.
        targets: Their true labels (n, L); values above 0 mean "has this label".
        metrics: What to measure with.
        protocol: Names the task.

    Returns:
        One `ClassRetrieval.summary` per metric, with figures for each label of the task; `retrieval.protocol.compare_results` and
        `reports.tables.comparison_table` put them side by side.

    Raises:
        UsageError, DataError: as `Matcher`, `task_targets` and `class_retrieval`.
    """
    wanted = task_targets(targets, store.label_map, protocol.task)
    names = [store.label_map.names[place] for place in store.label_map.groups[protocol.task]]
    results = []
    for entry in metrics:
        matcher = Matcher(store, entry)
        result = class_retrieval(matcher.vectors(store), wanted, protocol, store.digests)
        run = {"name": matcher.metric.describe(), "metric": matcher.metric.to_config(), "model": store.fingerprint}
        results.append(result.summary(run) | {"labels": result.by_label(wanted, names)})
    return results


@dataclass(frozen=True)
class TaskAgreement:
    """What two pictures' labels of one task have in common.

    Attributes:
        task: The task's name.
        shared: Names of the labels that both have.
        query_only, found_only: Names of the labels that only one has.
    """

    task: str
    shared: tuple[str, ...]
    query_only: tuple[str, ...]
    found_only: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether both have the same labels."""
        return not self.query_only and not self.found_only


def agreement(query: np.ndarray, found: np.ndarray, label_map: LabelMap) -> list[TaskAgreement]:
    """Compares decided labels, bool (L,) each, task by task; tasks without a label on either side are left out.

    Raises:
        UsageError: vectors of another length or type.
    """
    for vector in (query, found):
        if np.shape(vector) != (len(label_map),) or np.asarray(vector).dtype != bool:
            raise UsageError(f"Decided labels are bool ({len(label_map)},), got {np.asarray(vector).dtype} {np.shape(vector)}.")
    compared = []
    for task, group in label_map.groups.items():
        names = [
            tuple(label_map.names[place] for place in group[chosen[group]])
            for chosen in (query & found, query & ~found, found & ~query)
        ]
        if any(names):
            compared.append(TaskAgreement(task, *names))
    return compared


def probabilities_of(scores: np.ndarray, exclusive: Collection[np.ndarray] = ()) -> np.ndarray:
    """Sigmoid of logits (..., L), and softmax within the groups of positions in `exclusive`."""
    # exp of the negative magnitude never overflows.
    small = np.exp(-np.abs(scores))
    values = np.where(scores >= 0, 1.0, small) / (1.0 + small)
    for group in exclusive:
        logits = scores[..., group]
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        values[..., group] = powers / powers.sum(axis=-1, keepdims=True)
    return values


def self_positions(queries: ScoreStore, reference: ScoreStore) -> np.ndarray:
    """The catalogue rows that are the query itself, int64 (Q, w), -1 behind them: those with its id or with its picture's hash."""
    by_id = {entry: row for row, entry in enumerate(reference.image_ids)}
    by_digest: dict[str, list[int]] = {}
    for row, digest in enumerate(reference.digests or ()):
        if digest:
            by_digest.setdefault(digest, []).append(row)
    digests: Sequence[str] = queries.digests or [""] * len(queries)
    found = []
    for entry, digest in zip(queries.image_ids, digests, strict=True):
        rows = set(by_digest.get(digest, ()))
        if entry in by_id:
            rows.add(by_id[entry])
        found.append(sorted(rows))
    width = max(1, max(map(len, found), default=1))
    return np.array([rows + [-1] * (width - len(rows)) for rows in found], np.int64).reshape(len(found), width)


def _label_weights(metric: MatchMetric, label_map: LabelMap) -> np.ndarray | None:
    """Factors (L,) of the labels' coordinates; None where all are 1."""
    groups = label_map.groups
    unknown = [task for task in metric.group_weights if task not in groups]
    if unknown:
        raise UsageError(f"Weights are given to {', '.join(map(repr, unknown))}; the tasks are {', '.join(groups)}.")
    if not metric.group_weights:
        return None
    weights = np.ones(len(label_map))
    for task, value in metric.group_weights.items():
        weights[groups[task]] = math.sqrt(value)
    if not weights.any():
        raise UsageError("All tasks have weight 0: there is nothing left to compare.")
    return weights


def _directions(values: np.ndarray) -> np.ndarray:
    """Rows scaled to length one. A zero row gets a direction of its own, so that its cosine with all others is 0."""
    zero = ~values.any(axis=-1, keepdims=True)
    return np.concatenate([unit_rows(values), zero], axis=-1)


def _blocks(values: np.ndarray) -> Iterator[np.ndarray]:
    step = max(1, _BLOCK_VALUES // max(values.shape[1], 1))
    for start in range(0, max(len(values), 1), step):
        yield values[start : start + step]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
