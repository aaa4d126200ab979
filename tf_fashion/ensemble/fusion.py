"""Fusing score matrices: `fused = sum_i w_i * normalise(scores_i)`, in blocks of queries."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.machine import cpu_count
from tf_fashion.ensemble.scores import ScoreFile, check_together
from tf_fashion.retrieval.protocol import Answers, CategoryResult, Protocol, result_of_counts
from tf_fashion.retrieval.ranks import RankCounts
from tf_fashion.retrieval.search import top_k_of_scores

NORMALISATIONS = ("zscore", "cosine", "raw", "rank")
# Scores of one member in one block of queries.
_BLOCK_VALUES = 1_000_000
# Undecided entries that are weighed at a time: results stay in the processor's cache.
_PART = 65_536


def normalise(scores: np.ndarray, how: str, scale: float | None = None) -> np.ndarray:
    """Makes the scores of different models comparable, query by query.

    Args:
        scores: Floating (Q, N), a row per query.
        how: "zscore": mean 0 and standard deviation 1 in each row (0 where all are equal). "cosine": cosines as they are stored.
            "raw": cosines times the model's own scale, which makes a model's learned norm a hidden weight (what the FashionIQ 2020
            entry fuses). "rank": 1 for the best of a row, 0 for the last, equal scores sharing their mean.
        scale: The model's scale, for "raw"; None leaves the scores as they are.

    Returns:
        float32 (Q, N).

    Raises:
        UsageError: unknown `how`.
    """
    scores = np.asarray(scores, np.float32)
    if how == "cosine":
        return scores
    if how == "raw":
        return scores if scale is None else scores * np.float32(scale)
    if how == "zscore":
        centred = scores - scores.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
        spread = np.sqrt(np.einsum("qn,qn->q", centred, centred, dtype=np.float64) / max(scores.shape[1], 1)).astype(np.float32)
        centred *= np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 1e-12)[:, None]
        return centred
    if how == "rank":
        return _ranks(scores)
    raise UsageError(f"--normalise: expected one of {', '.join(NORMALISATIONS)}; found {how!r}.")


def _ranks(scores: np.ndarray) -> np.ndarray:
    count = scores.shape[1]
    if count < 2:
        return np.ones_like(scores)
    order = np.argsort(scores, axis=1)
    ordered = np.take_along_axis(scores, order, axis=1)
    new = np.ones(scores.shape, bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    places = np.arange(count, dtype=np.int32)
    first = np.maximum.accumulate(np.where(new, places, 0), axis=1)
    ends = np.ones(scores.shape, bool)
    ends[:, :-1] = new[:, 1:]
    last = np.minimum.accumulate(np.where(ends, places, count)[:, ::-1], axis=1)[:, ::-1]
    ranks = np.empty(scores.shape, np.float32)
    np.put_along_axis(ranks, order, ((first + last) * (0.5 / (count - 1))).astype(np.float32), axis=1)
    return ranks


@dataclass(frozen=True)
class OtherAnswers:
    """The right answers of a query beside the first in the gallery, which entries must beat as well.

    Attributes:
        thresholds: float32 (members, Q, m), these answers minus the first.
        places: int64 (Q, 1 + m), gallery positions of the first and of the others.
        columns: int32 (entries,), gallery positions of a contest's entries.
    """

    thresholds: np.ndarray
    places: np.ndarray
    columns: np.ndarray


@dataclass(frozen=True)
class Contest:
    """What decides, for every weighting with non-negative weights, who ranks above the target, in a compact form.

    An entry that no member puts above the target never gets there, and one that all put above always does; only the others are
    kept, as differences of normalised scores. Queries whose target can never reach the cut-offs keep no entries at all.

    Attributes:
        always: int32 (Q,), entries that beat the target under every weighting.
        queries: int64 (S,), the queries that have undecided entries.
        starts: int64 (S,), where the entries of each begin.
        differences: float32 (members, entries), entry minus target.
        before: bool (entries,), whether an entry wins a tie with the first right answer.
        others: None where every query has one right answer, else what decides between entries and the others.
    """

    always: np.ndarray
    queries: np.ndarray
    starts: np.ndarray
    differences: np.ndarray
    before: np.ndarray
    others: OtherAnswers | None

    def ranks(self, weights: np.ndarray) -> np.ndarray:
        """Rank (from 1) of each query's best right answer under non-negative weights (members,): int64 (Q,).

        Ranks beyond the largest cut-off may be understated; near-ties are decided in float32.
        """
        weights = np.asarray(weights, np.float32)
        ranks = self.always.astype(np.int64) + 1
        _each(lambda chunks: self._add(ranks, weights, chunks), self._jobs)
        return ranks

    def _add(self, ranks: np.ndarray, weights: np.ndarray, chunks: list[slice]) -> None:
        for chunk in chunks:
            starts, queries = self.starts[chunk], self.queries[chunk]
            end = self.starts[chunk.stop] if chunk.stop < len(self.starts) else self.differences.shape[1]
            rows = slice(starts[0], end)
            if self.others is None:
                fused = weights @ self.differences[:, rows]
                beats = fused > 0
                beats |= (fused == 0) & self.before[rows]
            else:
                # Summed in one order on both sides: a picture that is in the gallery twice has one score.
                fused = _sum_of(weights, self.differences[:, rows])
                answers = np.pad(_sum_of(weights, self.others.thresholds[:, queries]), ((0, 0), (1, 0)))
                best = answers.argmax(axis=1)
                sizes = np.diff(np.append(starts, end))
                bar = np.repeat(np.take_along_axis(answers, best[:, None], axis=1)[:, 0], sizes)
                place = np.repeat(self.others.places[queries, best], sizes)
                beats = fused > bar
                beats |= (fused == bar) & (self.others.columns[rows] < place)
            # Sums of bytes are much quicker than sums of truth values.
            ranks[queries] += np.add.reduceat(beats.view(np.uint8), starts - rows.start, dtype=np.uint32)

    @functools.cached_property
    def _jobs(self) -> list[list[slice]]:
        """Ranges of `queries`, small enough for the processor's cache, shared out among the CPUs."""
        count = len(self.queries)
        if not count:
            return []
        cuts = np.searchsorted(self.starts, np.arange(_PART, self.differences.shape[1], _PART))
        edges = np.unique(np.concatenate([[0], cuts, [count]]))
        chunks = [slice(int(start), int(stop)) for start, stop in zip(edges[:-1], edges[1:], strict=True)]
        return [chunks[first :: cpu_count()] for first in range(min(cpu_count(), len(chunks)))]


class Fusion:
    """Members that rank the same galleries for the same queries.

    Args:
        members: Opened score files.
        how: See `normalise`.

    Raises:
        UsageError: unknown normalisation, other protocols, or "cosine" for scores of unknown scale.
        DataError: other categories, queries or galleries (see `check_together`).
    """

    def __init__(self, members: Sequence[ScoreFile], how: str = "zscore") -> None:
        if how not in NORMALISATIONS:
            raise UsageError(f"--normalise: expected one of {', '.join(NORMALISATIONS)}; found {how!r}.")
        check_together(members)
        self.members = list(members)
        self.how = how
        unknown = [member for member in self.members if member.scale is None]
        if how == "cosine" and unknown:
            raise UsageError(
                f"{unknown[0].folder}: these scores are not cosines (their scale is unknown). Take --normalise zscore, raw or rank."
            )

    @property
    def protocol(self) -> Protocol:
        """The members' protocol."""
        return self.members[0].protocol

    @property
    def categories(self) -> list[str]:
        """Names of the categories."""
        return list(self.members[0].categories)

    @property
    def has_targets(self) -> bool:
        """Whether the members can be measured."""
        return self.members[0].has_targets

    def queries(self, category: str) -> int:
        """Number of queries of a category."""
        return len(self.members[0].categories[category].queries)

    def blocks(self, category: str) -> Iterator[slice]:
        """Ranges of queries that are worked on at a time."""
        shape = self.members[0].categories[category].scores.shape
        step = max(_BLOCK_VALUES // max(shape[1], 1), 1)
        for start in range(0, shape[0], step):
            yield slice(start, min(start + step, shape[0]))

    def normalised(self, category: str, rows: slice) -> np.ndarray:
        """float32 (members, rows, gallery).

        Raises:
            DataError: NaN or infinity among the scores.
        """
        parts = []
        for member in self.members:
            block = member.categories[category].read(rows)
            finite = np.isfinite(block)
            if not finite.all():
                row, column = np.argwhere(~finite)[0]
                query = member.categories[category].queries[rows.start + row].id
                raise DataError(
                    f"{member.folder}, {category}: expected finite scores, found {block[row, column]} for query {query!r} and gallery "
                    f"entry {member.categories[category].gallery[column]!r} ({int((~finite).sum())} in this part of the file). The "
                    "model has diverged, or the file is damaged; export the scores again."
                )
            parts.append(normalise(block, self.how, member.scale))
        return np.stack(parts)

    def check_finite(self) -> None:
        """Reads everything once; raises `DataError` as `normalised` does."""

        def look(category: str, rows: slice) -> None:
            self.normalised(category, rows)

        for category in self.categories:
            _each(functools.partial(look, category), self.blocks(category))

    def fused(self, category: str, rows: slice, weights: np.ndarray) -> np.ndarray:
        """Fused scores float32 (rows, gallery) under weights (members,), or (queries, members) with one row per query."""
        return _weighted(self.normalised(category, rows), weights, rows)

    def counts(self, category: str, weightings: Sequence[np.ndarray]) -> list[RankCounts]:
        """Rank counts of every query's best right answer under some weightings, exactly, with all tie rules.

        Args:
            category: The category.
            weightings: Each (members,), or (queries, members): a row per query, for cross-fitting. The scores are read once.
        """
        part = self.members[0].categories[category]
        answers = part.answers(self.protocol)
        columns = np.zeros((len(weightings), 3, len(part.queries)), np.int64)

        def count(rows: slice) -> None:
            block = self.normalised(category, rows)
            for place, weights in enumerate(weightings):
                columns[place, :, rows] = _best_counts(_weighted(block, weights, rows), answers, rows)

        _each(count, self.blocks(category))
        return [RankCounts(*rows) for rows in columns]

    def evaluate(self, *weightings: np.ndarray | Mapping[str, np.ndarray]) -> list[dict[str, CategoryResult]]:
        """Results per category, for each weighting: (members,), or a dictionary with (queries, members) for each category."""
        results: list[dict[str, CategoryResult]] = [{} for _ in weightings]
        for category in self.categories:
            chosen = [weights[category] if isinstance(weights, Mapping) else weights for weights in weightings]
            gallery = len(self.members[0].categories[category].gallery)
            for found, counts in zip(results, self.counts(category, chosen), strict=True):
                found[category] = result_of_counts(counts, gallery, self.protocol)
        return results

    def top(self, category: str, weights: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best entries of every query: scores and gallery positions (queries, k), best first, equal ones in gallery order.

        Where fewer are left after removing references, scores are -inf and positions -1.
        """
        exclude = self.members[0].categories[category].excluded(self.protocol)

        def best(rows: slice) -> tuple[np.ndarray, np.ndarray]:
            return top_k_of_scores(self.fused(category, rows, weights), k, None if exclude is None else exclude[rows])

        scores, places = zip(*_each(best, self.blocks(category)), strict=True)
        return np.concatenate(scores), np.concatenate(places)

    def contests(self, category: str, groups: np.ndarray | None = None) -> dict[int, Contest]:
        """The compact form of a category that a search for weights works on.

        Args:
            category: The category.
            groups: None for one group with the number 0, or int (Q,): queries of one number make a contest of their own, in their
                order.

        Returns:
            Number of the group -> its contest.
        """
        part = self.members[0].categories[category]
        answers = part.answers(self.protocol)
        groups = np.zeros(len(part.queries), np.int64) if groups is None else np.asarray(groups)
        several = max(map(len, answers.right)) > 1
        pieces = _each(lambda rows: self._undecided(category, rows, answers, groups[rows]), self.blocks(category))
        contests = {}
        for group in np.unique(groups).tolist():
            # Taken out as they are joined: the entries of all queries need not fit into memory twice.
            mine = [piece.pop(group) for piece in pieces if group in piece]
            sizes = np.concatenate([piece["sizes"] for piece in mine])
            queries = np.flatnonzero(sizes)
            others = None
            if several:
                others = OtherAnswers(
                    thresholds=_padded([piece["thresholds"] for piece in mine], np.float32(-1e30)),
                    places=_padded([piece["places"] for piece in mine], -1),
                    columns=np.concatenate([piece["columns"] for piece in mine]),
                )
            contests[group] = Contest(
                always=np.concatenate([piece["always"] for piece in mine]),
                queries=queries,
                starts=(np.cumsum(sizes) - sizes)[queries],
                differences=np.concatenate([piece["differences"] for piece in mine], axis=1),
                before=np.concatenate([piece["before"] for piece in mine]),
                others=others,
            )
        return contests

    def _undecided(self, category: str, rows: slice, answers: Answers, groups: np.ndarray) -> dict[int, dict[str, np.ndarray]]:
        block = self.normalised(category, rows)
        count = block.shape[1]
        right = answers.right[rows]
        first = np.array([places[0] for places in right])
        own = block[:, np.arange(count), first]
        others = np.full((len(block), count, max(max(map(len, right)) - 1, 1)), -np.inf, np.float32)
        positions = np.full((count, 1 + others.shape[2]), -1, np.int64)
        candidates = np.ones(block.shape[1:], bool)
        for query, places in enumerate(right):
            others[:, query, : len(places) - 1] = block[:, query, places[1:]] - own[:, query, None]
            positions[query, : len(places)] = places
            candidates[query, places] = False
        if answers.exclude is not None:
            gone = answers.exclude[rows]
            where, slots = np.nonzero(gone >= 0)
            candidates[where, gone[where, slots]] = False
        block -= own[:, :, None]
        # To beat all right answers under any weighting, an entry has to beat the best of them with every member.
        bar = np.maximum(others.max(axis=2), 0.0)[:, :, None]
        before = np.arange(block.shape[2])[None, :] < first[:, None]
        # Level with some members: a weighting of those alone makes it a tie, which the position decides.
        wins = np.where(before, (block >= bar).all(axis=0), (block > bar).all(axis=0))
        loses = np.where(before, (block < 0).all(axis=0), (block <= 0).all(axis=0))
        always = (wins & candidates).sum(axis=1).astype(np.int32)
        open_ = candidates & ~wins & ~loses & (always < max(self.protocol.ks))[:, None]
        found = {}
        for group in np.unique(groups):
            chosen = groups == group
            mine = open_ & chosen[:, None]
            found[int(group)] = {
                "always": always[chosen],
                "sizes": mine[chosen].sum(axis=1),
                "differences": block[:, mine],
                "before": before[mine],
                "thresholds": np.where(np.isfinite(others[:, chosen]), others[:, chosen], np.float32(-1e30)),
                "places": positions[chosen],
                "columns": np.nonzero(mine)[1].astype(np.int32),
            }
        return found


def _weighted(block: np.ndarray, weights: np.ndarray, rows: slice) -> np.ndarray:
    """float32 (rows, gallery) from normalised scores (members, rows, gallery)."""
    weights = np.asarray(weights, np.float32)
    return _sum_of(weights if weights.ndim == 1 else weights[rows].T[:, :, None], block)


def _sum_of(weights: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """`sum_m weights[m] * parts[m]`, from the first member to the last and rounded alike everywhere, so that equals stay equal."""
    used = np.flatnonzero(weights.reshape(len(weights), -1).any(axis=1))
    total = weights[used[0]] * parts[used[0]] if len(used) else np.zeros_like(parts[0])
    for member in used[1:]:
        total += weights[member] * parts[member]
    return total


def _best_counts(fused: np.ndarray, answers: Answers, rows: slice) -> np.ndarray:
    """int64 (3, rows): above, tied before and tied after the best right answer; other right answers are no rivals."""
    right = answers.right[rows]
    if answers.exclude is not None:
        gone = answers.exclude[rows]
        where, slots = np.nonzero(gone >= 0)
        fused[where, gone[where, slots]] = -np.inf
    single = all(len(places) == 1 for places in right)
    first = np.array([places[0] if single else places[int(np.argmax(fused[q, places]))] for q, places in enumerate(right)])
    own = fused[np.arange(len(fused)), first][:, None]
    if not single:
        for query, places in enumerate(right):
            fused[query, [place for place in places if place != first[query]]] = -np.inf
    equal = fused == own
    before = (equal & (np.arange(fused.shape[1]) < first[:, None])).sum(axis=1)
    return np.stack([(fused > own).sum(axis=1), before, equal.sum(axis=1) - before - 1])


def _padded(parts: Sequence[np.ndarray], value: Any) -> np.ndarray:
    """Joins arrays (..., Q, m) along the queries; rows are filled up to one width."""
    width = max(part.shape[-1] for part in parts)
    filled = [np.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, width - part.shape[-1])], constant_values=value) for part in parts]
    return np.concatenate(filled, axis=-2)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cpu_count(), thread_name_prefix="fusion")


def _each(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Calls a function on every item, a few at a time: NumPy's loops let other threads run."""
    return list(_pool().map(function, items))
