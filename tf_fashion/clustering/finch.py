"""FINCH: clusters from first neighbours, without a number of clusters or a threshold to choose.

Sarfraz, Sharma, Stiefelhagen, "Efficient Parameter-free Clustering Using First Neighbor Relations", CVPR 2019. Rows are linked
(equation 1) if one is the first neighbour of the other or if both have the same first neighbour; the connected components are the
first partition. Every further partition comes from the means of the clusters before, until one cluster would be left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from tf_fashion.clustering.neighbours import Neighbours, Rows, checked_features, chunks, first_neighbours, rows_of
from tf_fashion.core.errors import UsageError

Pruning = Literal["none", "udma", "binary"]
PRUNINGS: tuple[Pruning, ...] = ("none", "udma", "binary")
# What the copy of 2020 puts on the diagonal of its distances.
_ORIGINAL_DIAGONAL = 1000.0

__all__ = [
    "PRUNINGS",
    "FinchResult",
    "cluster_means",
    "cluster_sums",
    "finch",
    "first_neighbours",
    "linked_pairs",
    "pruning_limit",
]


@dataclass(frozen=True)
class FinchResult:
    """A hierarchy of partitions, from the finest to the coarsest.

    Attributes:
        labels: int32 (n, P): cluster of every row in each of the P partitions, numbered from 0 by first appearance.
        counts: Number of clusters of each partition.
        required_labels: int32 (n,), the partition with as many clusters as were required, or None.
    """

    labels: np.ndarray
    counts: list[int]
    required_labels: np.ndarray | None = None

    def partition(self, level: int) -> np.ndarray:
        """Labels of one partition, int32 (n,); raises `UsageError` if the hierarchy has no such level."""
        if not 0 <= level < len(self.counts):
            found = ", ".join(map(str, self.counts))
            raise UsageError(f"There is no partition {level}: FINCH found {len(self.counts)}, with {found} clusters, counted from 0.")
        return self.labels[:, level]


def finch(
    features: Any,
    metric: str = "cosine",
    *,
    pruning: Pruning = "none",
    required: int | None = None,
    initial_neighbours: Any = None,
    neighbours: Neighbours = "exact",
    original_diagonal: bool = False,
    progress: bool = False,
) -> FinchResult:
    """Clusters the rows of `features`.

    Args:
        features: (n, d) finite numbers, converted to float32.
        metric: As in `first_neighbours`.
        pruning: Which links between cluster means are cut, once the first partition is there. "none": none, as the paper has it and
            as the package finch-clust behaves from 0.2.2 on. "binary": links longer than the longest of the first partition, as the
            authors' MATLAB program does. "udma": the same with every length counted twice between mutual first neighbours, as
            UDMA's program and finch-clust 0.2.1 do.
        required: Also return a partition with this number of clusters: that of the hierarchy if there is one, else the last one with
            more of them, whose closest two clusters (by their means) are merged until the number is reached.
        initial_neighbours: int (n,), first neighbours to use for the first partition instead of searching them; a row's own index
            means "none". Nothing is pruned then, since no lengths are known.
        neighbours: As in `first_neighbours`.
        original_diagonal: Rows further than 1000 from all others stay alone, as in UDMA's program, which writes that number where a
            row meets itself.
        progress: Whether a progress bar is shown for every search.

    Returns:
        The hierarchy. It has at least one partition, and no partition of one cluster unless that is the first.

    Raises:
        UsageError: arguments that cannot be used, as a required number that is not between 1 and the first partition's.
        DataError: as `first_neighbours`.
    """
    values = checked_features(features)
    if pruning not in PRUNINGS:
        raise UsageError(f"Unknown pruning {pruning!r}. Known: {', '.join(PRUNINGS)}.")
    if required is not None and (isinstance(required, bool) or not isinstance(required, (int, np.integer)) or required < 1):
        raise UsageError(f"required must be a whole number of at least 1, got {required!r}.")
    rows = rows_of(values, metric)
    limit: float | None = None
    if initial_neighbours is not None:
        nearest = _checked_neighbours(initial_neighbours, len(values))
    else:
        nearest = _search(rows, neighbours, original_diagonal, progress)
        if pruning != "none":
            limit = pruning_limit(rows, nearest, pruning)

    labels = _components(nearest)
    sums = cluster_sums(values, labels)
    columns, counts = [labels], [len(sums)]
    while counts[-1] > 1:
        means = rows_of(sums / np.bincount(labels)[:, None], metric)
        nearest = _search(means, neighbours, original_diagonal, progress)
        merged = _components(nearest) if limit is None else _components_within(means, nearest, pruning, limit)
        count = int(merged.max()) + 1
        if count in (1, counts[-1]):
            break
        labels, sums = merged[labels], cluster_sums(sums, merged)
        columns.append(labels)
        counts.append(count)
        if counts[-2] - count == 1:
            break
    hierarchy = np.stack(columns, axis=1)
    chosen = None if required is None else _with_count(values, metric, hierarchy, counts, int(required))
    return FinchResult(hierarchy, counts, chosen)


def cluster_sums(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Sums of the rows of each cluster in row order: float64 (clusters, d), of `values` (n, d) and labels 0.. (n,)."""
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    ends = np.cumsum(sizes)
    sums = np.zeros((len(sizes), values.shape[1]))
    for part in chunks(np.arange(len(order)), values.shape[1]):
        # The clusters that this part of the ordered rows meets; a cluster on the border gets its sum in two pieces.
        first, last = np.searchsorted(ends, [part[0], part[-1]], side="right")
        borders = np.concatenate([[part[0]], ends[first:last], [part[-1] + 1]]) - part[0]
        gather = csr_matrix((np.ones(len(part)), np.arange(len(part)), borders), shape=(last - first + 1, len(part)))
        sums[first : last + 1] += gather @ values[order[part]].astype(np.float64)
    return sums


def cluster_means(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Means of the rows of each cluster, float64 (clusters, d)."""
    return cluster_sums(values, labels) / np.bincount(labels)[:, None]


def linked_pairs(nearest: np.ndarray, rows: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The links of equation 1 and how often each pair is linked.

    Args:
        nearest: int (n,), first neighbours.
        rows: None, or bool (n,): of the rows with the same first neighbour, only these are paired with each other.

    Yields:
        `(left, right, times)`, int arrays of one length: pairs of different rows, each at least once and in one order at least, and
        the number 1 or 2 of reasons for the link: one is the first neighbour of the other, the other's is the one, both have the same.
    """

    def times(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        reasons = [nearest[left] == right, nearest[right] == left, nearest[left] == nearest[right]]
        return np.sum(reasons, axis=0)

    left = np.flatnonzero(nearest != np.arange(len(nearest)))
    yield left, nearest[left], times(left, nearest[left])
    order = np.argsort(nearest, kind="stable")
    if rows is not None:
        order = order[rows[order]]
    shared = nearest[order]
    starts = np.arange(max(0, len(order) - 1))
    step = 1
    while len(starts := starts[starts + step < len(order)]) and len(starts := starts[shared[starts] == shared[starts + step]]):
        left, right = order[starts], order[starts + step]
        yield left, right, times(left, right)
        step += 1


def pruning_limit(rows: Rows, nearest: np.ndarray, pruning: Pruning) -> float:
    """Length of the longest link, counted as `pruning` ("udma" or "binary") counts; 0 without links."""
    # Copies are at the same distances from everything.
    kinds = rows.first_copy == np.arange(len(rows))
    return max((float(_lengths(rows, *pairs, pruning).max(initial=0.0)) for pairs in linked_pairs(nearest, kinds)), default=0.0)


def _lengths(rows: Rows, left: np.ndarray, right: np.ndarray, times: np.ndarray, pruning: Pruning) -> np.ndarray:
    distances = rows.between(left, right)
    return distances * times if pruning == "udma" else distances


def _search(rows: Rows, neighbours: Neighbours, original_diagonal: bool, progress: bool) -> np.ndarray:
    nearest = rows.first_neighbours(neighbours, progress)
    if original_diagonal:
        own = np.arange(len(rows))
        distances = rows.between(own, nearest)
        alone = (distances > _ORIGINAL_DIAGONAL) | ((distances == _ORIGINAL_DIAGONAL) & (own < nearest))
        nearest = np.where(alone, own, nearest)
    return nearest


def _components(nearest: np.ndarray) -> np.ndarray:
    """Connected components of the graph from every row to its first neighbour: int32 (n,), numbered by first appearance."""
    return _labelled(np.arange(len(nearest)), nearest, len(nearest))


def _components_within(rows: Rows, nearest: np.ndarray, pruning: Pruning, limit: float) -> np.ndarray:
    kinds = rows.first_copy == np.arange(len(rows))
    lefts, rights = [], []
    for left, right, times in linked_pairs(nearest, kinds):
        kept = _lengths(rows, left, right, times, pruning) <= limit
        lefts.append(left[kept])
        rights.append(right[kept])
    return _labelled(np.concatenate(lefts), np.concatenate(rights), len(rows))


def _labelled(left: np.ndarray, right: np.ndarray, count: int) -> np.ndarray:
    graph = csr_matrix((np.ones(len(left), np.int8), (left, right)), shape=(count, count))
    labels = connected_components(graph, directed=True, connection="weak")[1]
    return _by_first_appearance(labels)


def _by_first_appearance(labels: np.ndarray) -> np.ndarray:
    _, firsts, kinds = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(firsts))[kinds].astype(np.int32)


def _checked_neighbours(given: Any, count: int) -> np.ndarray:
    nearest = np.asarray(given)
    if nearest.shape != (count,) or nearest.dtype.kind not in "iu":
        raise UsageError(
            f"initial_neighbours must be whole numbers of shape ({count},), one per row; got {nearest.dtype} of shape {nearest.shape}."
        )
    if ((nearest < 0) | (nearest >= count)).any():
        row = int(np.flatnonzero((nearest < 0) | (nearest >= count))[0])
        raise UsageError(f"initial_neighbours: row {row} has neighbour {nearest[row]}, expected 0 to {count - 1}.")
    return nearest.astype(np.int64)


def _with_count(values: np.ndarray, metric: str, hierarchy: np.ndarray, counts: list[int], required: int) -> np.ndarray:
    """Labels of `required` clusters, from the coarsest partition that has at least as many."""
    if required > counts[0]:
        raise UsageError(
            f"{required} clusters were required, but FINCH's finest partition has {counts[0]}. Require at most {counts[0]}."
        )
    level = max(level for level, count in enumerate(counts) if count >= required)
    labels = hierarchy[:, level].copy()
    if counts[level] == required:
        return labels
    sums, sizes = cluster_sums(values, labels), np.bincount(labels).astype(np.float64)
    into = np.arange(len(sums))
    means = sums / sizes[:, None]
    rows = rows_of(means, metric)
    nearest = rows.first_neighbours()
    distance = rows.between(into, nearest)
    for _ in range(counts[level] - required):
        one = int(distance.argmin())
        keep, gone = sorted((one, int(nearest[one])))
        sums[keep] += sums[gone]
        sizes[keep] += sizes[gone]
        into[into == gone] = keep
        distance[gone] = np.inf
        rows.replace(keep, sums[keep] / sizes[keep])
        alive = into == np.arange(len(into))
        stale = np.flatnonzero(alive & ((nearest == keep) | (nearest == gone)))
        for cluster in {keep, *stale.tolist()}:
            away = np.where(alive, rows.from_one(cluster), np.inf)
            away[cluster] = np.inf
            nearest[cluster], distance[cluster] = away.argmin(), away.min()
            if cluster == keep:
                closer = alive & ((away < distance) | ((away == distance) & (keep < nearest)))
                closer[keep] = False
                nearest[closer], distance[closer] = keep, away[closer]
    return _by_first_appearance(into[labels])
