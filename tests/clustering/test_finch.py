"""FINCH: first neighbours against all distances, partitions, and what holds of every hierarchy."""

import sys
import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from tf_fashion.clustering import neighbours as search
from tf_fashion.clustering.finch import cluster_means, finch, first_neighbours, linked_pairs
from tf_fashion.core.errors import DataError, MissingExtraError, UsageError


def drawn(rows, width, seed=0, clusters=None):
    """Unit rows, around `clusters` centres if given."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(rows, width))
    if clusters:
        features = 0.3 * features + random.normal(size=(clusters, width))[random.integers(0, clusters, rows)]
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def dense_neighbours(features, metric):
    rows = features.astype(np.float64)
    if metric == "cosine":
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
        distances = 1.0 - rows @ rows.T
    else:
        distances = cdist(rows, rows, metric)
    np.fill_diagonal(distances, np.inf)
    return distances.argmin(axis=1)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "sqeuclidean"])
@pytest.mark.parametrize("kind", ["spread", "clustered", "offset", "tight", "outlier", "zeros"])
def test_exact_neighbours_in_tiles(metric, kind, monkeypatch):
    monkeypatch.setattr(search, "_SMALL", 100)
    monkeypatch.setattr(search, "_TILE", 64)
    features = drawn(999, 12, clusters=40 if kind == "clustered" else None)
    if kind == "offset":
        features += 100.0
    elif kind == "tight":
        # Differences far below single precision's resolution of the products.
        features = np.float32(3.0) * features[np.arange(999) % 3] + np.float32(1e-4) * features
    elif kind == "outlier":
        features[500] *= 1e30
    elif kind == "zeros":
        features[::9] = 0.0
    found = first_neighbours(features, metric)
    expected = dense_neighbours(features, metric)
    if kind == "zeros" and metric == "cosine":
        zeros = np.arange(0, 999, 9)
        assert found[zeros].tolist() == [1] + [0] * (len(zeros) - 1)
        found[zeros] = expected[zeros]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("metric", [metric for metric in search.METRICS if metric not in ("cosine", "euclidean", "sqeuclidean")])
def test_other_metrics(metric):
    features = np.abs(drawn(120, 7))
    if metric == "hamming":
        features = np.round(features * 4)
    expected = dense_neighbours(features, metric)
    np.testing.assert_array_equal(first_neighbours(features, metric), expected)
    result = finch(features, metric, pruning="udma", required=3)
    assert len(np.unique(result.required_labels)) == 3


def test_other_names_of_metrics():
    features = drawn(50, 3)
    np.testing.assert_array_equal(first_neighbours(features, "l1"), first_neighbours(features, "cityblock"))
    np.testing.assert_array_equal(finch(features, "manhattan").labels, finch(features, "cityblock").labels)
    np.testing.assert_array_equal(finch(features, "l2").labels, finch(features, "euclidean").labels)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "cityblock"])
@pytest.mark.parametrize("rows", [40, 300])
def test_equal_distances_go_to_the_first(metric, rows, monkeypatch):
    monkeypatch.setattr(search, "_SMALL", 100)
    monkeypatch.setattr(search, "_TILE", 64)
    grid = np.random.default_rng(rows).integers(-2, 3, (rows, 3)).astype(np.float32)
    found = first_neighbours(grid, metric)
    # Integers are exact, so here equal is equal.
    if metric == "cosine":
        lengths = np.square(grid).sum(axis=1)
        products = (grid @ grid.T).astype(np.float64)
        scores = np.sign(products) * products**2 / np.maximum(np.outer(lengths, lengths), 1)
        scores = np.round(scores, 12)
    else:
        scores = -cdist(grid, grid, "sqeuclidean" if metric == "euclidean" else metric)
    np.fill_diagonal(scores, -np.inf)
    np.testing.assert_array_equal(found, scores.argmax(axis=1))


def test_copies_and_multiples():
    features = drawn(30, 6)
    features[[4, 9, 21]] = features[2]
    found = first_neighbours(features, "euclidean")
    assert found[[2, 4, 9, 21]].tolist() == [4, 2, 2, 2]
    # Exact multiples, whose directions in double precision differ in the last digits.
    features[[2, 4, 9, 21]] = np.outer([1, 3, 7, 1001], [1, 2, -3, 5, 0, 7])
    found = first_neighbours(features, "cosine")
    assert found[[2, 4, 9, 21]].tolist() == [4, 2, 2, 2]


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "cityblock"])
@pytest.mark.parametrize("value", [0.0, 1.5, -1e30])
@pytest.mark.parametrize("rows", [1, 2, 3, 5000])
def test_constant_rows(metric, value, rows):
    if metric == "cityblock" and rows > 3:
        rows = 300
    features = np.full((rows, 4), value, np.float32)
    for pruning in ("none", "udma", "binary"):
        result = finch(features, metric, pruning=pruning, required=1)
        assert result.counts == [1]
        assert result.labels.shape == (rows, 1) and result.labels.dtype == np.int32
        assert not result.labels.any() and not result.required_labels.any()


def test_few_rows():
    assert first_neighbours([[1.0, 2.0]]).tolist() == [0]
    assert first_neighbours([[1, 2], [5, 3]], "euclidean").tolist() == [1, 0]
    assert finch([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]).counts == [1]
    assert finch(np.eye(2)).labels.tolist() == [[0], [0]]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("pruning", ["none", "udma", "binary"])
def test_against_all_distances(metric, pruning):
    for seed in range(6):
        features = drawn(80 + 20 * seed, 3 + seed, seed, clusters=5 + seed)
        result = finch(features, metric, pruning=pruning)
        expected = dense_finch(features, metric, pruning)
        np.testing.assert_array_equal(result.labels, np.stack(expected, axis=1))
        assert result.counts == [int(labels.max()) + 1 for labels in expected]


def dense_finch(features, metric, pruning):
    """FINCH as it is written down: with dense matrices."""

    def graph(points):
        distances = cdist(points, points, metric)
        near = distances + np.diag(np.full(len(points), np.inf))
        steps = np.eye(len(points))[near.argmin(axis=1)] + np.eye(len(points))
        links = steps @ steps.T
        np.fill_diagonal(links, 0)
        return distances, np.minimum(links, 1) if pruning == "binary" else links

    def components(links):
        labels = np.full(len(links), -1)
        for start in range(len(links)):
            waiting = [start] if labels[start] < 0 else []
            number = labels.max() + 1
            while waiting:
                row = waiting.pop()
                labels[row] = number
                waiting.extend(np.flatnonzero((links[row] > 0) & (labels < 0)))
        return labels

    values = features.astype(np.float64)
    distances, links = graph(values)
    limit = np.inf if pruning == "none" else (distances * links).max()
    partitions = [components(links)]
    while (count := partitions[-1].max() + 1) > 1:
        means = np.stack([values[partitions[-1] == label].mean(axis=0) for label in range(count)])
        distances, links = graph(means)
        links[distances * links > limit * (1 + 1e-12)] = 0
        merged = components(links)
        if merged.max() == 0 or merged.max() + 1 == count:
            break
        partitions.append(merged[partitions[-1]])
        if count - partitions[-1].max() - 1 == 1:
            break
    return partitions


def test_required_number():
    features = drawn(200, 5, clusters=12)
    result = finch(features, required=7)
    assert 7 not in result.counts
    level = max(level for level, count in enumerate(result.counts) if count >= 7)
    labels = result.partition(level)
    while labels.max() + 1 > 7:
        means = cluster_means(features, labels)
        distances = cdist(means, means, "cosine") + np.diag(np.full(len(means), np.inf))
        first, second = sorted(np.unravel_index(distances.argmin(), distances.shape))
        labels = np.where(labels == second, first, labels)
        labels -= labels > second
    np.testing.assert_array_equal(result.required_labels, labels)
    for level, count in enumerate(result.counts):
        np.testing.assert_array_equal(finch(features, required=count).required_labels, result.partition(level))
    with pytest.raises(UsageError, match=f"at most {result.counts[0]}"):
        finch(features, required=result.counts[0] + 1)
    for wrong in (0, -1, 2.5, True, "3"):
        with pytest.raises(UsageError, match="required must be a whole number"):
            finch(features, required=wrong)


def test_required_number_passes_through_a_mean_of_zero():
    opposite = np.array([[1, 0, 0], [1, 0.01, 0], [-1, 0, 0], [-1, -0.01, 0], [0, 0, 1], [0, 0.01, 1]], np.float32)
    result = finch(opposite, required=2)
    assert len(np.unique(result.required_labels)) == 2


def test_given_neighbours():
    features = drawn(6, 3)
    result = finch(features, initial_neighbours=[1, 0, 1, 4, 3, 5])
    assert result.partition(0).tolist() == [0, 0, 0, 1, 1, 2]
    nearest = first_neighbours(features)
    np.testing.assert_array_equal(finch(features, initial_neighbours=nearest).labels, finch(features).labels)
    with pytest.raises(UsageError, match="row 2 has neighbour 6"):
        finch(features, initial_neighbours=[1, 0, 6, 4, 3, 5])
    for wrong in ([0, 1], np.zeros((6, 1), int), np.zeros(6)):
        with pytest.raises(UsageError, match=r"shape \(6,\)"):
            finch(features, initial_neighbours=wrong)


def test_far_rows():
    features = np.array([[0.0], [3.0], [5000.0], [5001.0], [90000.0]])
    assert finch(features, "euclidean").partition(0).tolist() == [0, 0, 1, 1, 1]
    original = finch(features, "euclidean", original_diagonal=True)
    assert original.partition(0).tolist() == [0, 0, 1, 1, 2]
    assert original.counts == [3]


def test_links_of_equation_1():
    random = np.random.default_rng(3)
    nearest = random.integers(0, 30, 40)
    steps = np.eye(40)[nearest] + np.eye(40)
    expected = steps @ steps.T
    np.fill_diagonal(expected, 0)
    links = np.zeros((40, 40))
    for left, right, times in linked_pairs(nearest):
        assert (left != right).all()
        links[left, right] = links[right, left] = times
    np.testing.assert_array_equal(links, expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(1, 6), st.integers(0, 10**6), st.sampled_from(["cosine", "euclidean", "cityblock"]))
def test_order_of_rows_does_not_matter(rows, width, seed, metric):
    assume(width > 1 or metric != "cosine")
    features = drawn(rows, width, seed) * np.random.default_rng(seed).uniform(0.5, 2.0, (rows, 1)).astype(np.float32)
    order = np.random.default_rng(seed + 1).permutation(rows)
    first, second = finch(features, metric), finch(features[order], metric)
    assert first.counts == second.counts
    for level in range(len(first.counts)):
        pairs = set(zip(first.partition(level)[order].tolist(), second.partition(level).tolist(), strict=True))
        assert len(pairs) == first.counts[level]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 5),
    st.integers(0, 10**6),
    st.sampled_from(["none", "udma", "binary"]),
    st.sampled_from(["cosine", "euclidean"]),
    st.booleans(),
)
def test_every_partition_coarsens_the_one_before(rows, width, seed, pruning, metric, grid):
    features = np.random.default_rng(seed).normal(size=(rows, width))
    result = finch(np.round(features) if grid else features, metric, pruning=pruning)
    assert result.labels.shape == (rows, len(result.counts)) and len(result.counts) >= 1
    for level, count in enumerate(result.counts):
        labels = result.partition(level)
        values, firsts = np.unique(labels, return_index=True)
        np.testing.assert_array_equal(values, np.arange(count))
        assert (np.diff(firsts) > 0).all()
        assert level == 0 or count < result.counts[level - 1]
        assert level == 0 or len(set(zip(result.partition(level - 1), labels, strict=True))) == result.counts[level - 1]
    assert rows == 1 or np.bincount(result.partition(0)).min() >= 2


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.integers(1, 5), st.integers(0, 10**6), st.sampled_from(["cosine", "euclidean", "cityblock"]))
def test_a_copy_stays_with_its_row(rows, width, seed, metric):
    random = np.random.default_rng(seed)
    features = random.normal(size=(rows, width)).astype(np.float32)
    row = int(random.integers(rows))
    result = finch(np.concatenate([features, features[row : row + 1]]), metric)
    np.testing.assert_array_equal(result.labels[row], result.labels[-1])


def test_levels_of_a_result():
    result = finch(drawn(50, 4))
    np.testing.assert_array_equal(result.partition(0), result.labels[:, 0])
    for level in (-1, len(result.counts)):
        with pytest.raises(UsageError, match=f"no partition {level}"):
            result.partition(level)
    assert result.required_labels is None


def test_bad_arguments():
    features = drawn(20, 4)
    for wrong in (np.zeros(3), np.zeros((2, 2, 2)), [["a"]], [[1j]]):
        with pytest.raises(UsageError, match="matrix of numbers"):
            finch(wrong)
    for wrong in (np.zeros((0, 4)), np.zeros((4, 0))):
        with pytest.raises(DataError, match="at least one row"):
            finch(wrong)
    for value in (np.nan, np.inf, 1e300):
        broken = features.astype(np.float64)
        broken[[3, 7], 1] = value
        with pytest.raises(DataError, match=r"2 row\(s\) \(rows 3, 7\)"):
            finch(broken)
    with pytest.raises(UsageError, match="Unknown metric 'mahalanobis'. Known: cosine"):
        finch(features, "mahalanobis")
    with pytest.raises(UsageError, match="Unknown pruning 'some'"):
        finch(features, pruning="some")
    with pytest.raises(UsageError, match="Unknown way to find neighbours 'annoy'"):
        finch(features, neighbours="annoy")
    with pytest.raises(UsageError, match="no index for the metric 'cityblock'"):
        finch(features, "cityblock", neighbours="faiss")
    with pytest.raises(DataError, match="'correlation' is not defined between rows"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        finch(np.ones((5, 3)), "correlation")


def test_approximate_neighbours(monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(search, "_EXACT_UP_TO", 500)
    features = drawn(3000, 16, clusters=100)
    features[10:20] = features[5]
    features[0] = 0.0
    for metric in ("cosine", "euclidean"):
        exact = first_neighbours(features, metric)
        found = first_neighbours(features, metric, neighbours="faiss")
        assert (found != np.arange(len(found))).all()
        assert (found == exact).mean() > 0.95
    result = finch(features, neighbours="faiss", progress=True)
    assert len(result.counts) > 1


def test_rows_that_a_graph_does_not_reach(monkeypatch):
    faiss = pytest.importorskip("faiss")
    monkeypatch.setattr(search, "_EXACT_UP_TO", 500)

    class Index(faiss.IndexHNSWFlat):
        def search(self, rows, count):
            distances, places = super().search(rows, count)
            places[::3, 0] = np.arange(len(rows))[::3]
            places[::3, 1] = -1
            return distances, places

    monkeypatch.setattr(faiss, "IndexHNSWFlat", Index)
    features = drawn(600, 8)
    found = first_neighbours(features, "euclidean", neighbours="faiss")
    np.testing.assert_array_equal(found[::3], first_neighbours(features, "euclidean")[::3])


def test_approximate_neighbours_without_faiss(monkeypatch):
    monkeypatch.setattr(search, "_EXACT_UP_TO", 10)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match="faiss"):
        finch(drawn(20, 4), neighbours="faiss")


def test_progress_bar(capfd, monkeypatch):
    monkeypatch.setattr(search, "_SMALL", 100)
    features = drawn(700, 4)
    quiet = finch(features)
    assert capfd.readouterr().err == ""
    np.testing.assert_array_equal(finch(features, progress=True).labels, quiet.labels)
    assert "first neighbours" in capfd.readouterr().err
