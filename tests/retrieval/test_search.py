"""Exact search against a plain stable sort of the same scores."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.retrieval import search


def integers(rng, *shape):
    """Small whole numbers: products are exact in any order, and ties are plenty."""
    return rng.integers(-2, 3, shape).astype(np.float32)


def naive_order(scores, hidden):
    return [
        sorted((n for n in range(scores.shape[1]) if not hidden[q, n]), key=lambda n: (-scores[q, n], n)) for q in range(len(scores))
    ]


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**16),
    q=st.integers(1, 9),
    n=st.integers(1, 150),
    d=st.integers(1, 4),
    k=st.integers(1, 160),
    chunk=st.sampled_from([1, 7, 64, 65, 1000]),
    columns=st.integers(0, 3),
    masked=st.booleans(),
)
def test_top_k_and_ranks_agree_with_a_stable_sort(seed, q, n, d, k, chunk, columns, masked):
    rng = np.random.default_rng(seed)
    queries, gallery = integers(rng, q, d), integers(rng, n, d)
    exclude = rng.integers(-1, n, (q, columns)) if columns else None
    mask = rng.random(n) < 0.7 if masked else None
    hidden = np.zeros((q, n), bool)
    if mask is not None:
        hidden |= ~mask
    if exclude is not None:
        for row, entries in enumerate(exclude):
            hidden[row, entries[entries >= 0]] = True
    truth = queries @ gallery.T
    order = naive_order(truth, hidden)

    scores, positions = search.top_k(queries, gallery, k, chunk=chunk, exclude=exclude, mask=mask)
    assert scores.shape == positions.shape == (q, k) and scores.dtype == np.float32 and positions.dtype == np.int64
    for row in range(q):
        found = order[row][:k]
        assert positions[row].tolist() == found + [-1] * (k - len(found))
        assert scores[row].tolist() == truth[row, found].tolist() + [-np.inf] * (k - len(found))

    rows = [row for row in range(q) if order[row]]
    if rows:
        targets = np.array([rng.choice(order[row]) for row in rows])
        some = None if exclude is None else exclude[rows]
        counts = search.rank_counts(queries[rows], gallery, targets, exclude=some, mask=mask, chunk=chunk)
        for i, (row, target) in enumerate(zip(rows, targets, strict=True)):
            values = truth[row, order[row]]
            better, level = int((values > truth[row, target]).sum()), int((values == truth[row, target]).sum()) - 1
            assert counts.ranks("stable")[i] == order[row].index(target) + 1
            assert counts.ranks("optimistic")[i] == better + 1
            assert counts.ranks("pessimistic")[i] == better + level + 1
            assert counts.ranks("expected")[i] == better + level / 2 + 1


@pytest.mark.parametrize("keep_bytes", [2**28, 0], ids=["kept blocks", "two passes"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_ranks_of_real_numbers_equal_positions_in_top_k(monkeypatch, keep_bytes, precision):
    monkeypatch.setattr(search, "_KEEP_BYTES", keep_bytes)
    rng = np.random.default_rng(3)
    gallery = rng.standard_normal((333, 77)).astype(np.float32)
    gallery[rng.permutation(333)[:111]] = gallery[5]
    queries = rng.standard_normal((300, 77)).astype(np.float32)
    targets = rng.integers(0, 333, 300)
    matrix = search.score_matrix(queries, gallery, chunk=100, precision=precision)
    order = np.argsort(-matrix, axis=1, kind="stable")
    _, positions = search.top_k(queries, gallery, 333, chunk=100, precision=precision)
    np.testing.assert_array_equal(positions, order)
    ranks = search.rank_of_target(queries, gallery, targets, chunk=100, precision=precision)
    np.testing.assert_array_equal(ranks, np.argmax(order == targets[:, None], axis=1) + 1)


@pytest.mark.parametrize("d", [12, 100, 777])
@pytest.mark.parametrize("n", [17, 333, 2999])
def test_identical_pictures_tie_wherever_they_stand(n, d):
    rng = np.random.default_rng(d)
    gallery = rng.standard_normal((n, d)).astype(np.float32)
    twins = np.union1d(rng.permutation(n)[: n // 3], [0, n - 1])
    gallery[twins] = gallery[1]
    queries = rng.standard_normal((5, d)).astype(np.float32)
    others = len(np.union1d(twins, [1])) - 1
    counts = search.rank_counts(queries, gallery, np.full(5, n - 1), chunk=1000)
    assert counts.tied.tolist() == [others] * 5
    assert counts.tied_after.tolist() == [0] * 5


def test_scores_in_double_precision_do_not_depend_on_blocks():
    rng = np.random.default_rng(0)
    queries, gallery = rng.standard_normal((3, 500)).astype(np.float32), rng.standard_normal((300, 500)).astype(np.float32)
    one = search.score_matrix(queries, gallery, precision="float64")
    for chunk in (1, 50, 128):
        np.testing.assert_array_equal(one, search.score_matrix(queries, gallery, chunk=chunk, precision="float64"))
    np.testing.assert_array_equal(one, (queries.astype(np.float64) @ gallery.astype(np.float64).T).astype(np.float32))


def test_tensorflow_top_k_prefers_the_lower_index():
    scores = np.random.default_rng(1).integers(0, 4, (20, 3000)).astype(np.float32)
    for k in (1, 50, 3000):
        np.testing.assert_array_equal(tf.math.top_k(scores, k)[1], np.argsort(-scores, axis=1, kind="stable")[:, :k])


def test_memory_mapped_half_precision_gallery(tmp_path):
    rng = np.random.default_rng(2)
    np.save(tmp_path / "g.npy", rng.standard_normal((130, 8)).astype(np.float16))
    gallery = np.load(tmp_path / "g.npy", mmap_mode="r")
    queries = rng.standard_normal((4, 8)).astype(np.float32)
    scores, positions = search.top_k(queries, gallery, 5, chunk=50)
    wanted = queries @ gallery.astype(np.float32).T
    np.testing.assert_array_equal(positions, np.argsort(-wanted, axis=1, kind="stable")[:, :5])
    np.testing.assert_allclose(scores, np.sort(wanted, axis=1)[:, ::-1][:, :5], rtol=1e-5)


def test_cosine_and_tensors_and_zero_rows():
    gallery = tf.constant([[2.0, 0.0], [0.0, 0.0], [3.0, 3.0]])
    scores, positions = search.top_k([[5.0, 0.0]], gallery, 3, metric="cosine")
    assert positions.tolist() == [[0, 2, 1]]
    np.testing.assert_allclose(scores, [[1.0, 0.5**0.5, 0.0]], rtol=1e-6)


def test_empty_sides():
    scores, positions = search.top_k(np.zeros((2, 3)), np.zeros((0, 3)), 2)
    assert positions.tolist() == [[-1, -1]] * 2 and np.isneginf(scores).all()
    assert search.top_k(np.zeros((0, 3)), np.zeros((4, 3)), 2)[0].shape == (0, 2)
    assert len(search.rank_of_target(np.zeros((0, 3)), np.zeros((4, 3)), [])) == 0


@pytest.mark.parametrize("form", ["lists", "matrix", "splits"])
def test_ranks_of_positives(form):
    rng = np.random.default_rng(4)
    queries, gallery = integers(rng, 6, 3), integers(rng, 90, 3)
    relevant = rng.random((6, 90)) < 0.1
    relevant[2] = False
    lists = [np.flatnonzero(row) for row in relevant]
    splits = np.cumsum([0, *map(len, lists)])
    given_as = {"lists": lists, "matrix": relevant, "splits": (splits, np.concatenate(lists))}[form]
    found = search.ranks_of_positives(queries, gallery, given_as, chunk=32)
    order = np.argsort(-(queries @ gallery.T), axis=1, kind="stable")
    assert found.empty.tolist() == [False, False, True, False, False, False]
    for row in range(6):
        assert found.of(row).ranks().tolist() == (np.flatnonzero(relevant[row][order[row]]) + 1).tolist()


def test_score_matrices_follow_the_same_rules():
    rng = np.random.default_rng(5)
    queries, gallery = integers(rng, 7, 2), integers(rng, 40, 2)
    targets, exclude = rng.integers(0, 20, 7), rng.integers(20, 40, 7)
    matrix = queries @ gallery.T
    for ours, theirs in zip(
        search.top_k_of_scores(matrix, 45, exclude), search.top_k(queries, gallery, 45, exclude=exclude), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    ours, theirs = (
        search.rank_counts_of_scores(matrix, targets, exclude),
        search.rank_counts(queries, gallery, targets, exclude=exclude),
    )
    for tie in search.TIES:
        np.testing.assert_array_equal(ours.ranks(tie), theirs.ranks(tie))


def test_bad_numbers_are_named():
    good, bad = np.zeros((5, 2), np.float32), np.zeros((5, 2), np.float32)
    bad[3, 1] = np.nan
    with pytest.raises(DataError, match=r"gallery: .*rows 3"):
        search.top_k(good, bad, 1)
    bad[3, 1] = np.inf
    with pytest.raises(DataError, match=r"queries: .*rows 3"):
        search.rank_of_target(bad, good, [0] * 5)
    with pytest.raises(DataError, match="rows 3"):
        search.top_k_of_scores(bad, 1)


def test_a_target_cannot_be_excluded():
    with pytest.raises(DataError, match=r"query row\(s\) \(1\)"):
        search.rank_of_target(np.ones((2, 1)), np.ones((4, 1)), [0, 1], exclude=[3, 1])


@pytest.mark.parametrize(
    "call",
    [
        lambda: search.top_k(np.ones((2, 3)), np.ones((2, 4)), 1),
        lambda: search.top_k(np.ones(3), np.ones((2, 3)), 1),
        lambda: search.top_k(np.ones((2, 3)), np.ones((2, 3)), 0),
        lambda: search.top_k(np.ones((2, 3)), np.ones((2, 3)), 1, metric="l3"),
        lambda: search.top_k(np.ones((2, 3)), np.ones((2, 3)), 1, precision="half"),
        lambda: search.top_k(np.ones((2, 3)), np.ones((2, 3)), 1, chunk=0),
        lambda: search.top_k(np.ones((2, 3)), np.ones((2, 3)), 1, exclude=[0]),
        lambda: search.top_k(np.ones((2, 3)), np.ones((2, 3)), 1, exclude=[0, 2]),
        lambda: search.top_k(np.ones((2, 3)), np.ones((2, 3)), 1, mask=[True]),
        lambda: search.rank_of_target(np.ones((2, 3)), np.ones((2, 3)), [0, 2]),
        lambda: search.rank_of_target(np.ones((2, 3)), np.ones((2, 3)), [0]),
        lambda: search.rank_of_target(np.ones((2, 3)), np.ones((2, 3)), [0, 1], tie="lucky"),
        lambda: search.ranks_of_positives(np.ones((2, 3)), np.ones((2, 3)), [[0]]),
        lambda: search.ranks_of_positives(np.ones((2, 3)), np.ones((2, 3)), ([0, 2], [0, 1])),
    ],
)
def test_wrong_arguments(call):
    with pytest.raises(UsageError):
        call()
