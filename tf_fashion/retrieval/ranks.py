"""Ranks as counts, from which every tie rule follows (no TensorFlow needed)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from tf_fashion.core.errors import UsageError

Tie = Literal["stable", "optimistic", "pessimistic", "expected"]
TIES: tuple[Tie, ...] = ("stable", "optimistic", "pessimistic", "expected")


@dataclass(frozen=True)
class RankCounts:
    """How many gallery rows stand above a row of interest, and how many share its score.

    Attributes:
        above: int64 (P,), rows with a greater score.
        tied_before: int64 (P,), other rows with the same score and a smaller gallery position.
        tied_after: int64 (P,), other rows with the same score and a greater gallery position.
    """

    above: np.ndarray
    tied_before: np.ndarray
    tied_after: np.ndarray

    def __len__(self) -> int:
        return len(self.above)

    @property
    def tied(self) -> np.ndarray:
        """int64 (P,): other rows with the same score."""
        return self.tied_before + self.tied_after

    def ranks(self, tie: Tie = "stable") -> np.ndarray:
        """Ranks from 1: int64 (P,), or float64 (P,) for `tie="expected"` (the mean rank over random tie-breaking).

        Raises:
            UsageError: unknown tie rule.
        """
        if tie == "stable":
            return self.above + self.tied_before + 1
        if tie == "optimistic":
            return self.above + 1
        if tie == "pessimistic":
            return self.above + self.tied + 1
        if tie == "expected":
            return self.above + self.tied / 2 + 1.0
        raise UsageError(f"Unknown tie rule {tie!r}. Known: {', '.join(TIES)}.")

    def take(self, rows: np.ndarray) -> RankCounts:
        """The counts of a selection of rows (positions or a mask)."""
        return RankCounts(self.above[rows], self.tied_before[rows], self.tied_after[rows])


@dataclass(frozen=True)
class PositiveRanks:
    """Ranks of all positives of all queries.

    Attributes:
        splits: int64 (Q + 1,); the positives of query i are entries `splits[i]:splits[i + 1]` of `counts`, best first.
        counts: `RankCounts` over all positives.
    """

    splits: np.ndarray
    counts: RankCounts

    def __len__(self) -> int:
        return len(self.splits) - 1

    @property
    def empty(self) -> np.ndarray:
        """bool (Q,): queries without positives."""
        return np.diff(self.splits) == 0

    def of(self, query: int) -> RankCounts:
        """The counts of one query's positives."""
        return self.counts.take(np.arange(self.splits[query], self.splits[query + 1]))
