"""Retrieval metrics from ranks, as fractions in float64; percentages are for tables.

Ranks start at 1. Functions for a single target take ranks (Q,) or `RankCounts`; functions for several positives take
`PositiveRanks`. With counts, `tie` decides among equal scores: "stable" (gallery order, the default), "optimistic" and
"pessimistic" bound every other order, "expected" is the mean over all orders of the tied rows, in closed form (McSherry & Najork,
"Computing information retrieval performance measures efficiently in the presence of tied scores", ECIR 2008).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.retrieval.ranks import TIES, PositiveRanks, RankCounts, Tie

OnEmpty = Literal["error", "skip", "zero"]


@dataclass(frozen=True)
class Score:
    """The mean of a metric over queries.

    Attributes:
        value: float64 fraction; NaN if every query was skipped.
        queries: Number of queries in the mean.
        empty: Number of queries without positives (skipped or counted as zero, as `on_empty` says).
    """

    value: float
    queries: int
    empty: int

    def __float__(self) -> float:
        return self.value


def recall_at_k(ranks: Any, ks: Iterable[int], tie: Tie = "stable") -> dict[int, float]:
    """Fraction of queries whose one target is among the first K, for every K.

    Args:
        ranks: (Q,) ranks from 1, or `RankCounts`.
        ks: The cut-offs, each at least 1.
        tie: Only with `RankCounts`. "expected" gives the mean over random orders of tied rows.

    Raises:
        UsageError: no queries, ranks below 1, K below 1, or a tie rule with plain ranks.
    """
    cuts = _cuts(ks)
    if isinstance(ranks, RankCounts) and tie == "expected":
        _some(ranks)
        return {k: float(np.clip((k - ranks.above) / (ranks.tied + 1.0), 0.0, 1.0).mean()) for k in cuts}
    plain = _plain(ranks, tie)
    return {k: float((plain <= k).mean(dtype=np.float64)) for k in cuts}


def mean_reciprocal_rank(ranks: Any, tie: Tie = "stable") -> float:
    """Mean of 1 / rank over queries with one target each; arguments and errors as `recall_at_k`."""
    if isinstance(ranks, RankCounts) and tie == "expected":
        _some(ranks)
        terms = [_mean_inverse(int(above), int(tied) + 1) for above, tied in zip(ranks.above, ranks.tied, strict=True)]
        return float(np.mean(terms))
    return float((1.0 / _plain(ranks, tie)).mean(dtype=np.float64))


def median_rank(ranks: Any, tie: Tie = "stable") -> float:
    """Median rank over queries with one target each; arguments and errors as `recall_at_k`."""
    counts = ranks.ranks(tie) if isinstance(ranks, RankCounts) else _plain(ranks, tie)
    if not len(counts):
        raise UsageError("The median rank needs at least one query.")
    return float(np.median(counts))


def average_precision(
    positives: PositiveRanks,
    k: int | None = None,
    *,
    tie: Tie = "stable",
    on_empty: OnEmpty = "error",
    interpolation: Literal["step", "trapezoid"] = "step",
) -> Score:
    """Mean average precision (mAP), or mAP@K.

    AP = sum over positives within the first K of (positives so far / rank), divided by min(R, K) with R the number of positives.
    `interpolation="trapezoid"` is the area under the precision-recall polygon as the Oxford and Market-1501 evaluations compute
    it: every positive adds the mean of the precisions before and after it, divided by R; it has no K and no expected value.

    Raises:
        UsageError: no queries, unknown option, K below 1, or "trapezoid" with K or with `tie="expected"`.
        DataError: a query without positives under `on_empty="error"`.
    """
    if interpolation not in ("step", "trapezoid"):
        raise UsageError(f"Unknown interpolation {interpolation!r}. Known: step, trapezoid.")
    if interpolation == "trapezoid" and (k is not None or tie == "expected"):
        raise UsageError("The trapezoid average precision has neither a cut-off K nor an expected value over ties.")
    limit = None if k is None else _cuts([k])[0]

    def of_ranks(ranks: np.ndarray) -> float:
        hits = np.arange(1, len(ranks) + 1)
        precision = hits / ranks
        if interpolation == "trapezoid":
            former = np.where(ranks > 1, (hits - 1) / np.maximum(ranks - 1, 1), 1.0)
            return float(((former + precision) / 2).mean())
        inside = ranks <= limit if limit is not None else np.ones(len(ranks), bool)
        return float(precision[inside].sum() / (len(ranks) if limit is None else min(len(ranks), limit)))

    def of_groups(groups: np.ndarray) -> float:
        total, found = 0.0, 0
        for above, size, members in groups:
            place = np.arange(1, size + 1)
            inside = place if limit is None else place[above + place <= limit]
            rivals = (inside - 1) * (members - 1) / max(size - 1, 1)
            total += float((members / size * (found + 1 + rivals) / (above + inside)).sum())
            found += int(members)
        return total / (found if limit is None else min(found, limit))

    return _mean_over_queries(positives, tie, on_empty, of_ranks, of_groups)


def ndcg(positives: PositiveRanks, k: int | None = None, *, tie: Tie = "stable", on_empty: OnEmpty = "error") -> Score:
    """Normalised discounted cumulative gain with binary gains: sum of 1 / log2(rank + 1), divided by the best possible sum.

    Raises:
        UsageError: no queries, unknown option or K below 1.
        DataError: a query without positives under `on_empty="error"`.
    """
    limit = None if k is None else _cuts([k])[0]

    def ideal(count: int) -> float:
        return float((1 / np.log2(np.arange(1, (count if limit is None else min(count, limit)) + 1) + 1)).sum())

    def of_ranks(ranks: np.ndarray) -> float:
        inside = ranks if limit is None else ranks[ranks <= limit]
        return float((1 / np.log2(inside + 1.0)).sum()) / ideal(len(ranks))

    def of_groups(groups: np.ndarray) -> float:
        total = 0.0
        for above, size, members in groups:
            places = np.arange(above + 1, above + size + 1)
            inside = places if limit is None else places[places <= limit]
            total += float(members / size * (1 / np.log2(inside + 1.0)).sum())
        return total / ideal(int(groups[:, 2].sum()))

    return _mean_over_queries(positives, tie, on_empty, of_ranks, of_groups)


def hit_at_k(positives: PositiveRanks, k: int, *, tie: Tie = "stable", on_empty: OnEmpty = "error") -> Score:
    """Fraction of queries with at least one positive among the first K; raises as `ndcg`."""
    limit = _cuts([k])[0]

    def of_groups(groups: np.ndarray) -> float:
        above, size, members = (int(value) for value in groups[0])
        return 1.0 - _none_within(size, members, limit - above)

    return _mean_over_queries(positives, tie, on_empty, lambda ranks: float(ranks[0] <= limit), of_groups)


def recall_of_positives(positives: PositiveRanks, k: int, *, tie: Tie = "stable", on_empty: OnEmpty = "error") -> Score:
    """Mean fraction of a query's positives that are among the first K; raises as `ndcg`.

    Papers with several positives per query often call `hit_at_k` recall; this is the recall of information retrieval.
    """
    limit = _cuts([k])[0]

    def of_groups(groups: np.ndarray) -> float:
        above, size, members = groups.T
        return float((members * np.clip((limit - above) / size, 0.0, 1.0)).sum() / members.sum())

    return _mean_over_queries(positives, tie, on_empty, lambda ranks: float((ranks <= limit).mean()), of_groups)


def reciprocal_rank_of_positives(positives: PositiveRanks, *, tie: Tie = "stable", on_empty: OnEmpty = "error") -> Score:
    """Mean of 1 / rank of the best positive; raises as `ndcg`."""

    def of_groups(groups: np.ndarray) -> float:
        above, size, members = (int(value) for value in groups[0])
        missed = np.array([_none_within(size, members, place) for place in range(size - members + 2)])
        return float(((missed[:-1] - missed[1:]) / (above + np.arange(1, len(missed)))).sum())

    return _mean_over_queries(positives, tie, on_empty, lambda ranks: 1.0 / float(ranks[0]), of_groups)


def _mean_over_queries(
    positives: PositiveRanks,
    tie: Tie,
    on_empty: OnEmpty,
    of_ranks: Callable[[np.ndarray], float],
    of_groups: Callable[[np.ndarray], float],
) -> Score:
    if on_empty not in ("error", "skip", "zero"):
        raise UsageError(f"Unknown on_empty {on_empty!r}. Known: error, skip, zero.")
    if tie not in TIES:
        raise UsageError(f"Unknown tie rule {tie!r}. Known: {', '.join(TIES)}.")
    if not len(positives):
        raise UsageError("A metric needs at least one query.")
    empty = np.flatnonzero(positives.empty)
    if len(empty) and on_empty == "error":
        shown = ", ".join(map(str, empty[:10])) + (", ..." if len(empty) > 10 else "")
        raise DataError(
            f"{len(empty)} of {len(positives)} queries have no positive in the gallery (queries {shown}). "
            'Remove them, or choose on_empty="skip" or on_empty="zero".'
        )
    values = []
    for query in np.flatnonzero(~positives.empty):
        counts = positives.of(int(query))
        values.append(of_groups(_groups(counts)) if tie == "expected" else of_ranks(_ranks_with_ties(counts, tie)))
    if on_empty == "zero":
        values += [0.0] * len(empty)
    return Score(float(np.mean(values)) if values else float("nan"), len(values), len(empty))


def _groups(counts: RankCounts) -> np.ndarray:
    """int64 (G, 3): for each score that has positives, best first: rows above, rows with that score, positives among them."""
    above, first, members = np.unique(counts.above, return_index=True, return_counts=True)
    return np.stack([above, counts.tied[first] + 1, members], axis=1)


def _ranks_with_ties(counts: RankCounts, tie: Tie) -> np.ndarray:
    """Rising ranks of one query's positives; in the bounds, all positives of a score stand first or last among its rows."""
    if tie == "stable":
        return np.sort(counts.ranks("stable"))
    parts = []
    for above, size, members in _groups(counts):
        offset = above if tie == "optimistic" else above + size - members
        parts.append(offset + np.arange(1, members + 1))
    return np.concatenate(parts)


def _none_within(size: int, members: int, places: int) -> float:
    """Probability that a random order of `size` rows has none of the `members` positives in the first `places`."""
    if places <= 0:
        return 1.0
    if places > size - members:
        return 0.0
    drawn = np.arange(places)
    return float(np.prod((size - members - drawn) / (size - drawn)))


def _mean_inverse(above: int, size: int) -> float:
    return float((1.0 / np.arange(above + 1, above + size + 1)).mean())


def _some(counts: RankCounts) -> None:
    if not len(counts):
        raise UsageError("A metric needs at least one query.")


def _plain(ranks: Any, tie: Tie) -> np.ndarray:
    if isinstance(ranks, RankCounts):
        values = ranks.ranks(tie)
    else:
        if tie != "stable":
            raise UsageError(f"tie={tie!r} needs RankCounts (see rank_counts): plain ranks do not know about ties.")
        values = np.asarray(ranks)
    if values.ndim != 1 or not len(values):
        raise UsageError(f"ranks must be (queries,) with at least one query, got shape {values.shape}.")
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all() or (values < 1).any():
        raise UsageError("ranks must be numbers from 1 (1 is the best).")
    return values


def _cuts(ks: Iterable[int]) -> list[int]:
    cuts = list(ks)
    for k in cuts:
        if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or k < 1:
            raise UsageError(f"A cut-off K must be a whole number of at least 1, got {k!r}.")
    if not cuts:
        raise UsageError("At least one cut-off K is needed, for example ks=(10, 50).")
    return [int(k) for k in cuts]
