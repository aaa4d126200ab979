"""Fusion weights that are found on some queries and measured on others."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import hash_json, make_out_folder
from tf_fashion.ensemble.fusion import Fusion
from tf_fashion.ensemble.scores import CategoryScores

# One of so many trials is among the best.
BEST_SHARE = 20


@dataclass(frozen=True)
class FittedWeights:
    """The result of a search.

    Attributes:
        weights: float64 (members,), at least 0, sum 1: found on all queries.
        objective: Mean over categories and cut-offs of the recall that they reach on those same queries, in percent: optimistic.
        folds: float64 (folds, members): found without each fold's queries.
        per_query: Category -> float64 (queries, members): for each query the weights that were found without it.
        trials: Trials of each search.
    """

    weights: np.ndarray
    objective: float
    folds: np.ndarray
    per_query: dict[str, np.ndarray]
    trials: int


def assign_folds(part: CategoryScores, folds: int, seed: int) -> np.ndarray:
    """int64 (Q,): a fold for each query, drawn at random; queries that share a reference or a target share the fold.

    Where chains of pictures tie more queries together than a fold may have, only queries with one target share it. A category with
    fewer groups of queries than `folds` leaves some folds empty.
    """
    # Connected components: two queries are linked by a common picture.
    parent: dict[str, str] = {}

    def root(entry: str) -> str:
        while parent.setdefault(entry, entry) != entry:
            parent[entry] = parent[parent[entry]]
            entry = parent[entry]
        return entry

    for query in part.queries:
        parent[root(query.reference)] = root(str(query.target))
    keys = [root(query.reference) for query in part.queries]
    if max(np.unique(keys, return_counts=True)[1]) > len(keys) / folds:
        # Chains of pictures tie too many queries together: then only the answers are kept apart.
        keys = [str(query.target) for query in part.queries]
    names = list(dict.fromkeys(keys))
    random = np.random.default_rng([seed, int(hash_json(part.category)[:8], 16)])
    # The largest groups first, each to the fold with the fewest queries so far.
    sizes = dict(zip(*np.unique(keys, return_counts=True), strict=True))
    order = sorted(random.permutation(names).tolist(), key=lambda name: -sizes[name])
    load, fold_of = np.zeros(folds, np.int64), {}
    for name in order:
        fold_of[name] = int(np.argmin(load))
        load[fold_of[name]] += sizes[name]
    return np.array([fold_of[key] for key in keys])


class _Objective:
    """Mean recall of weightings on the queries of some folds; what several searches try is ranked once."""

    def __init__(self, fusion: Fusion, assigned: Mapping[str, np.ndarray]) -> None:
        self.ks = fusion.protocol.ks
        self.contests = {category: fusion.contests(category, fold_of) for category, fold_of in assigned.items()}
        self.names = [f"w{number}" for number in range(len(fusion.members))]
        self._hits: dict[tuple[bytes, str, int], float] = {}

    @property
    def checksum(self) -> int:
        """Of everything that the search can see."""
        total = 0
        for contest in (contest for contests in self.contests.values() for contest in contests.values()):
            arrays = [contest.always, contest.queries, contest.starts, contest.differences, contest.before]
            if contest.others is not None:
                arrays += [contest.others.thresholds, contest.others.places, contest.others.columns]
            for array in arrays:
                total = zlib.crc32(np.ascontiguousarray(array).data, total)
        return total

    def weights(self, values: Mapping[str, Any]) -> np.ndarray:
        found = np.array([float(values[name]) for name in self.names])
        return found / found.sum() if found.sum() > 0 else np.full(len(found), 1.0 / len(found))

    def _fold_hits(self, weights: np.ndarray, category: str, fold: int) -> float:
        """Sum over a fold's queries of the share of cut-offs within which the target is found."""
        key = (weights.tobytes(), category, fold)
        if key not in self._hits:
            ranks = self.contests[category][fold].ranks(weights)
            self._hits[key] = sum(int((ranks <= k).sum()) for k in self.ks) / len(self.ks)
        return self._hits[key]

    def towards_equal(self, weights: np.ndarray, folds: Collection[int]) -> np.ndarray:
        """The weights, moved towards equal ones as far as the mean recall falls by at most one standard error of that fall."""
        before = self._query_hits(weights, folds)
        for share in _SHARES:
            moved = (1 - share) * weights + share / len(weights)
            falls = [old - new for old, new in zip(before, self._query_hits(moved, folds), strict=True)]
            fall = np.mean([np.mean(values) for values in falls])
            error = np.sqrt(sum(np.var(values) / len(values) for values in falls)) / len(falls)
            if fall <= error:
                return moved
        return weights

    def _query_hits(self, weights: np.ndarray, folds: Collection[int]) -> list[np.ndarray]:
        """Per category float64 (queries,): the share of cut-offs within which the target is found."""
        found = []
        for contests in self.contests.values():
            mine = [contests[fold].ranks(weights) for fold in folds if fold in contests]
            if mine:
                ranks = np.concatenate(mine)
                found.append(np.mean([ranks <= k for k in self.ks], axis=0))
        return found

    def mean_recall(self, weights: np.ndarray, folds: Collection[int]) -> float:
        """Mean over categories (and cut-offs) of the recall on the queries of some folds."""
        means = []
        for category, contests in self.contests.items():
            mine = [fold for fold in folds if fold in contests]
            queries = sum(len(contests[fold].always) for fold in mine)
            means.append(sum(self._fold_hits(weights, category, fold) for fold in mine) / max(queries, 1))
        return sum(means) / len(means)


# Shares of equal weights that are tried.
_SHARES = (1.0, 0.75, 0.5, 0.25)


def fit_weights(
    fusion: Fusion,
    folder: Path,
    trials: int = 100,
    folds: int = 5,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> FittedWeights:
    """Searches for the weights of an ensemble with keras-tuner's Bayesian optimisation, once on all queries and once without each fold.

    The first trials are equal weights and each member alone. What is found is the mean of the best twentieth of all trials (unless one
    of those first ones is better: then the best trial), moved towards equal weights as far as the loss stays within one standard
    error, the rule of Breiman et al. (Classification and Regression Trees, 1984) for choosing among what the data cannot tell apart.

    Args:
        fusion: The members; every query needs a target.
        folder: Where the searches keep their state: the same call continues them.
        trials: Trials of each search.
        folds: Into how many parts the queries of every category are cut.
        seed: Of folds and searches.
        overwrite: Whether other searches in the folder are thrown away.
        progress: Whether to show progress bars.

    Raises:
        UsageError: fewer than two folds or more than a category can fill, options that `ensemble.tuner.search` refuses.
        DataError: queries without targets, NaN or infinity among the scores.
    """
    from tf_fashion.ensemble.tuner import alone, best_of, refuse_bad_options, search, space_of

    refuse_bad_options(trials, seed)
    if not fusion.has_targets:
        raise DataError(
            f"{fusion.members[0].folder}: weights are found on queries with targets, and these have none. Give the val scores."
        )
    members = len(fusion.members)
    if folds < 2:
        raise UsageError(f"--folds: expected at least 2, found {folds}.")
    assigned = {c: assign_folds(part, folds, seed) for c, part in fusion.members[0].categories.items()}
    filled = max(len(np.unique(fold_of)) for fold_of in assigned.values())
    if filled < folds:
        raise UsageError(
            f"--folds: found {folds}, but the queries of no category fall into more than {filled} groups without a common picture. "
            "Take at most that many folds (at least 2), or give --weights."
        )
    objective = _Objective(fusion, assigned)
    starts = [dict.fromkeys(objective.names, 1.0)]
    starts += [{name: float(name == one) for name in objective.names} for one in objective.names if members > 1]
    identity = {
        "members": [member.name for member in fusion.members],
        "scores": objective.checksum,
        "normalise": fusion.how,
        "protocol": fusion.protocol.fingerprint,
        "folds": folds,
    }

    def find(name: str, chosen: Collection[int]) -> np.ndarray:
        trials_made = search(
            lambda values, trial: objective.mean_recall(objective.weights(values), chosen),
            space_of(dict.fromkeys(objective.names, (0.0, 1.0))),
            folder / name,
            trials,
            seed,
            starts,
            {**identity, "search": name},
            overwrite,
            label=name,
            progress=progress,
        )
        best = objective.weights(best_of(trials_made).values)
        # Recalls are steps: weights that reach the highest one by a few queries' luck lie scattered around a plateau, whose middle
        # holds better on other queries.
        finished = [(-trial.score, trial.number, trial) for trial in trials_made if trial.score is not None]
        ranked = [trial for _, _, trial in sorted(finished, key=lambda entry: entry[:2])]
        leading = ranked[: max(len(ranked) // BEST_SHARE, min(3, len(ranked)))]
        middle = np.mean([objective.weights(trial.values) for trial in leading], axis=0)
        if objective.mean_recall(middle, chosen) < max(trial.score or 0.0 for trial in trials_made[: len(starts)]):
            middle = best
        return objective.towards_equal(middle, chosen)

    every = range(folds)
    with alone(make_out_folder(folder)):
        each = [find(f"without-fold-{fold}", [other for other in every if other != fold]) for fold in every]
        weights = find("all", every)
    per_query = {category: np.stack(each)[fold_of] for category, fold_of in assigned.items()}
    return FittedWeights(weights, 100.0 * objective.mean_recall(weights, every), np.stack(each), per_query, trials)
