"""Metrics against naive twins; expected values against the mean over every order of the tied rows."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.retrieval import metrics
from tf_fashion.retrieval.ranks import PositiveRanks
from tf_fashion.retrieval.search import rank_counts_of_scores, ranks_of_positives

TIE_RULES = ["stable", "optimistic", "pessimistic"]


def orders(scores):
    """Every ranking of a row that its ties allow."""
    levels = sorted(set(scores), reverse=True)
    groups = [[i for i, s in enumerate(scores) if s == level] for level in levels]
    for choice in itertools.product(*(itertools.permutations(group) for group in groups)):
        yield [i for group in choice for i in group]


def naive_ap(order, relevant, k=None):
    hits, total = 0, 0.0
    for rank, item in enumerate(order[:k], start=1):
        if item in relevant:
            hits += 1
            total += hits / rank
    return total / (len(relevant) if k is None else min(k, len(relevant)))


def naive_trapezoid(order, relevant):
    hits, area, former_recall, former_precision = 0, 0.0, 0.0, 1.0
    for rank, item in enumerate(order, start=1):
        hits += item in relevant
        recall, precision = hits / len(relevant), hits / rank
        area += (recall - former_recall) * (former_precision + precision) / 2
        former_recall, former_precision = recall, precision
    return area


def naive_ndcg(order, relevant, k=None):
    k = len(order) if k is None else k
    gain = sum(1 / math.log2(r + 1) for r, item in enumerate(order[:k], start=1) if item in relevant)
    return gain / sum(1 / math.log2(r + 1) for r in range(1, min(k, len(relevant)) + 1))


def naive_first(order, relevant):
    return next(rank for rank, item in enumerate(order, start=1) if item in relevant)


CASES = {
    "ap": (lambda p, **o: metrics.average_precision(p, **o), naive_ap),
    "ap@3": (lambda p, **o: metrics.average_precision(p, 3, **o), lambda o, r: naive_ap(o, r, 3)),
    "ndcg": (lambda p, **o: metrics.ndcg(p, **o), naive_ndcg),
    "ndcg@3": (lambda p, **o: metrics.ndcg(p, 3, **o), lambda o, r: naive_ndcg(o, r, 3)),
    "hit@2": (lambda p, **o: metrics.hit_at_k(p, 2, **o), lambda o, r: float(naive_first(o, r) <= 2)),
    "recall@3": (lambda p, **o: metrics.recall_of_positives(p, 3, **o), lambda o, r: len(set(o[:3]) & set(r)) / len(r)),
    "mrr": (lambda p, **o: metrics.reciprocal_rank_of_positives(p, **o), lambda o, r: 1 / naive_first(o, r)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(4))
def test_several_positives_against_every_order_of_the_ties(name, seed):
    ours, naive = CASES[name]
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (5, 7)).astype(np.float32)
    relevant = [sorted(rng.choice(7, rng.integers(1, 5), replace=False).tolist()) for _ in range(5)]
    positives = ranks_of_positives(scores, np.eye(7, dtype=np.float32), relevant)
    values = [[naive(order, rel) for order in orders(row)] for row, rel in zip(scores.tolist(), relevant, strict=True)]
    stable = [naive(np.argsort(-row, kind="stable").tolist(), rel) for row, rel in zip(scores, relevant, strict=True)]
    wanted = {
        "stable": np.mean(stable),
        "optimistic": np.mean([max(v) for v in values]),
        "pessimistic": np.mean([min(v) for v in values]),
        "expected": np.mean([np.mean(v) for v in values]),
    }
    for tie, value in wanted.items():
        score = ours(positives, tie=tie)
        assert score.value == pytest.approx(value, abs=1e-12), tie
        assert (score.queries, score.empty) == (5, 0)


def test_trapezoid_average_precision():
    rng = np.random.default_rng(7)
    scores = rng.standard_normal((6, 30)).astype(np.float32)
    relevant = [sorted(rng.choice(30, 4, replace=False).tolist()) for _ in range(6)]
    positives = ranks_of_positives(scores, np.eye(30, dtype=np.float32), relevant)
    wanted = np.mean([naive_trapezoid(np.argsort(-s).tolist(), r) for s, r in zip(scores, relevant, strict=True)])
    assert float(metrics.average_precision(positives, interpolation="trapezoid")) == pytest.approx(wanted, abs=1e-12)
    with pytest.raises(UsageError, match="trapezoid"):
        metrics.average_precision(positives, 3, interpolation="trapezoid")


@pytest.mark.parametrize("seed", range(4))
def test_one_target(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (6, 7)).astype(np.float32)
    targets = rng.integers(0, 7, 6)
    counts = rank_counts_of_scores(scores, targets)
    ranks = [[order.index(t) + 1 for order in orders(row)] for row, t in zip(scores.tolist(), targets, strict=True)]
    for k in (1, 2, 5, 9):
        expected = np.mean([np.mean([r <= k for r in row]) for row in ranks])
        assert metrics.recall_at_k(counts, [k], "expected")[k] == pytest.approx(expected, abs=1e-12)
        assert metrics.recall_at_k(counts, [k], "optimistic")[k] == np.mean([min(row) <= k for row in ranks])
        assert metrics.recall_at_k(counts, [k], "pessimistic")[k] == np.mean([max(row) <= k for row in ranks])
    expected = np.mean([np.mean([1 / r for r in row]) for row in ranks])
    assert metrics.mean_reciprocal_rank(counts, "expected") == pytest.approx(expected, abs=1e-12)
    assert metrics.median_rank(counts, "pessimistic") == np.median([max(row) for row in ranks])


def test_plain_ranks():
    assert metrics.recall_at_k([1, 3, 10, 11], (1, 10)) == {1: 0.25, 10: 0.75}
    assert metrics.mean_reciprocal_rank(np.array([1, 2, 4])) == pytest.approx((1 + 0.5 + 0.25) / 3)


def test_queries_without_positives():
    positives = ranks_of_positives(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32), [[0], [], [0]])
    with pytest.raises(DataError, match=r"1 of 3 queries .* \(queries 1\)"):
        metrics.average_precision(positives)
    skip = metrics.hit_at_k(positives, 1, on_empty="skip")
    zero = metrics.hit_at_k(positives, 1, on_empty="zero")
    assert (skip.value, skip.queries, skip.empty) == (0.5, 2, 1)
    assert (zero.value, zero.queries, zero.empty) == (pytest.approx(1 / 3), 3, 1)
    none = ranks_of_positives(np.eye(1, dtype=np.float32), np.eye(1, dtype=np.float32), [[]])
    assert math.isnan(float(metrics.ndcg(none, on_empty="skip")))


def test_a_positive_listed_twice_counts_once():
    once, twice = (ranks_of_positives(np.eye(4, dtype=np.float32)[:1], np.eye(4, dtype=np.float32), [p]) for p in ([0, 2], [2, 0, 2]))
    assert float(metrics.average_precision(once)) == float(metrics.average_precision(twice))


@pytest.mark.parametrize(
    "call",
    [
        lambda p: metrics.recall_at_k([], [1]),
        lambda p: metrics.recall_at_k([0, 1], [1]),
        lambda p: metrics.recall_at_k([1], [0]),
        lambda p: metrics.recall_at_k([1], []),
        lambda p: metrics.recall_at_k([1], [1.5]),
        lambda p: metrics.recall_at_k([1], [1], tie="optimistic"),
        lambda p: metrics.ndcg(p, on_empty="ignore"),
        lambda p: metrics.ndcg(p, tie="lucky"),
        lambda p: metrics.ndcg(p, 0),
        lambda p: metrics.ndcg(PositiveRanks(np.array([0]), p.counts)),
    ],
)
def test_wrong_arguments(call):
    positives = ranks_of_positives(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), [[0], [1]])
    with pytest.raises(UsageError):
        call(positives)
