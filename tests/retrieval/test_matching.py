"""Product matching: exactness, orders, mixes, the query itself, agreement of labels, and class retrieval."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.labels import LabelMap
from tf_fashion.reports.tables import comparison_table
from tf_fashion.retrieval import matching
from tf_fashion.retrieval.class_protocol import ClassProtocol
from tf_fashion.retrieval.class_retrieval import class_retrieval, task_targets
from tf_fashion.retrieval.matching import METRICS, Matcher, MatchMetric, agreement, evaluate_matching, probabilities_of
from tf_fashion.retrieval.metrics import average_precision, hit_at_k
from tf_fashion.retrieval.protocol import compare_results, read_protocol
from tf_fashion.retrieval.score_store import ScoreStore
from tf_fashion.retrieval.search import ranks_of_positives

LABELS = LabelMap.of_tasks({"color": ["black", "blue", "red"], "gender": ["men", "women"], "sleeve": ["long", "short"]})
RELAXED = settings(max_examples=25, deadline=None)


def make(count: int, seed: int = 0, prefix: str = "p", width: int = 5, exclusive: tuple[str, ...] = (), **options) -> ScoreStore:
    random = np.random.default_rng(seed)
    scores = (3 * random.standard_normal((count, len(LABELS))) - 4).astype(np.float32)
    embeddings = random.standard_normal((count, width)).astype(np.float32)
    ids = tuple(f"{prefix}{row}" for row in range(count))
    return ScoreStore(scores, ids, LABELS, "model", embeddings, exclusive=exclusive, **options)


def naive(queries: ScoreStore, reference: ScoreStore, metric: MatchMetric) -> np.ndarray:
    """All distances, from the definitions."""

    def cosine(x, y):
        lengths = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(y, axis=1)
        return 1 - np.divide(x @ y.T, lengths, out=np.zeros_like(lengths), where=lengths > 0)

    def euclidean(x, y):
        return np.sqrt(np.square(x[:, None] - y).sum(axis=2))

    def attributes(kind, left, right):
        weights = np.ones(len(LABELS))
        for task, value in metric.group_weights.items():
            weights[LABELS.groups[task]] = np.sqrt(value)
        x, y = (np.array(store.scores, np.float64) for store in (left, right))
        for task in reference.exclusive:
            group = LABELS.groups[task]
            for z in (x, y):
                if kind != "euclidean_prob":
                    z[:, group] -= z[:, group].mean(axis=1, keepdims=True)
        if kind == "euclidean_prob":
            groups = [LABELS.groups[task] for task in reference.exclusive]
            x, y = probabilities_of(x, groups), probabilities_of(y, groups)
        x, y = x * weights, y * weights
        return cosine(x, y) if kind == "cosine" else euclidean(x, y)

    def embeddings(left, right):
        return cosine(*(np.asarray(store.embeddings, np.float64) for store in (left, right)))

    if metric.name == "embedding":
        return embeddings(queries, reference)
    if metric.name != "mix":
        return attributes(metric.name, queries, reference)
    others = ~np.eye(len(reference), dtype=bool)
    total = 0.0
    for share, kind in ((metric.weight, metric.attributes), (1 - metric.weight, "embedding")):
        # Half the squared length of the difference of unit vectors is 1 - cosine.
        power = 1 if kind in ("cosine", "embedding") else 2
        measure = embeddings if kind == "embedding" else functools.partial(attributes, kind)
        total = total + share * measure(queries, reference) ** power / (measure(reference, reference) ** power)[others].mean()
    return np.sqrt(total)


@pytest.mark.parametrize("exclusive", [(), ("color", "gender")])
@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("weights", [{}, {"color": 2.0, "sleeve": 0.0}])
def test_matches_are_those_of_the_definition(name, weights, exclusive):
    reference, queries = make(300, 0, exclusive=exclusive), make(9, 1, "q", exclusive=exclusive)
    for attributes in matching.ATTRIBUTE_METRICS:
        metric = MatchMetric(name, 0.3, attributes, weights)
        found = Matcher(reference, metric).match(queries, 12)
        expected = naive(queries, reference, metric)
        order = np.argsort(expected, axis=1, kind="stable")[:, :12]
        np.testing.assert_allclose(found.distances, np.take_along_axis(expected, order, axis=1), rtol=1e-9, atol=1e-9)
        np.testing.assert_array_equal(found.positions, order)


@pytest.mark.parametrize("metric", METRICS)
@RELAXED
@given(data=st.data(), count=st.integers(1, 40), k=st.integers(1, 50))
def test_shuffling_the_catalogue_changes_nothing_but_ties(metric, data, count, k):
    random = np.random.default_rng(data.draw(st.integers(0, 9)))
    # Few values, so that there are many ties.
    values = random.integers(-1, 2, (count, len(LABELS))).astype(np.float32)
    vectors = random.integers(0, 2, (count, 3)).astype(np.float32)
    ids = tuple(f"p{row}" for row in range(count))
    reference = ScoreStore(values, ids, LABELS, embeddings=vectors)
    shuffled = reference.take(np.array(data.draw(st.permutations(range(count)))))
    queries = reference.take(np.arange(min(count, 4)))
    first, second = (Matcher(store, metric).match(queries, k) for store in (reference, shuffled))
    np.testing.assert_allclose(first.distances, second.distances, rtol=1e-9, atol=1e-9)
    assert (np.diff(np.where(np.isinf(first.distances), 1e9, first.distances), axis=1) >= 0).all()
    for number in range(len(queries)):
        assert queries.image_ids[number] not in first.ids(number)
        assert len(first.ids(number)) == min(k, count - 1)
        last = first.distances[number][len(first.ids(number)) - 1] if count > 1 else 0
        for distance, entry in zip(first.distances[number], first.ids(number), strict=False):
            if distance < last - 1e-6:
                assert entry in second.ids(number)


@pytest.mark.parametrize("attributes", matching.ATTRIBUTE_METRICS)
def test_a_mix_of_weight_one_or_zero_orders_like_its_part(attributes):
    reference, queries = make(200), make(6, 1, "q")
    for weight, part in ((1.0, attributes), (0, "embedding")):
        mixed = Matcher(reference, MatchMetric("mix", weight, attributes)).match(queries, 200)
        pure = Matcher(reference, part).match(queries, 200)
        np.testing.assert_array_equal(mixed.positions, pure.positions)
    # A mix without embeddings is fine if they have no share.
    bare = ScoreStore(reference.scores, reference.image_ids, LABELS)
    Matcher(bare, MatchMetric("mix", 1.0)).match(bare.take([0]))


def test_a_mix_does_not_change_with_the_scale_of_its_parts():
    reference, queries = make(100), make(4, 1, "q")
    metric = MatchMetric("mix", 0.5, "euclidean_logits")
    before = Matcher(reference, metric).match(queries, 20)
    grown = [ScoreStore(1000 * s.scores, s.image_ids, LABELS, "model", 0.01 * s.embeddings) for s in (reference, queries)]
    after = Matcher(grown[0], metric).match(grown[1], 20)
    np.testing.assert_array_equal(before.positions, after.positions)
    np.testing.assert_allclose(before.distances, after.distances, rtol=1e-5)


@pytest.mark.parametrize("count", [3, 2000])
@pytest.mark.parametrize("metric", METRICS)
def test_ties_are_in_the_order_of_rows_however_many_there_are(metric, count):
    one = make(1)
    copies = one.take(np.zeros(1, int))
    store = ScoreStore(
        np.repeat(copies.scores, count, axis=0),
        tuple(f"c{row}" for row in range(count)),
        LABELS,
        "model",
        np.repeat(copies.embeddings, count, axis=0),
    )
    found = Matcher(store, metric).match(one, 3)
    np.testing.assert_array_equal(found.positions, [[0, 1, 2]])
    np.testing.assert_array_equal(found.distances, [[0, 0, 0]])
    mask = np.arange(count) != 1
    found = Matcher(store, metric).match(store.take([0]), 3, mask=mask)
    np.testing.assert_array_equal(found.positions, [[2, 3, 4] if count > 3 else [2, -1, -1]])


def test_what_the_product_cannot_tell_apart_is_compared_exactly(monkeypatch):
    # Far from the others, so that float32 products lose the small differences.
    random = np.random.default_rng(0)
    scores = (1e4 + 1e-2 * random.standard_normal((3000, len(LABELS)))).astype(np.float32)
    scores[0] = 0
    reference = ScoreStore(scores, tuple(map(str, range(3000))), LABELS)
    calls = []
    original = Matcher._among_all
    monkeypatch.setattr(Matcher, "_among_all", lambda self, *args: calls.append(len(args[0])) or original(self, *args))
    found = Matcher(reference, "euclidean_logits").match(reference.take([5, 6]), 5)
    wide = scores.astype(np.float64)
    for number, row in enumerate((5, 6)):
        expected = np.square(wide - wide[row]).sum(axis=1)
        expected[row] = np.inf
        np.testing.assert_array_equal(found.positions[number], np.argsort(expected, kind="stable")[:5])
    assert calls == [2]


def test_the_query_itself_is_left_out_by_id_and_by_picture():
    reference = make(6, digests=("a", "b", "a", "", "", "c"))
    found = Matcher(reference).match(reference, 6)
    for number, gone in enumerate([{0, 2}, {1}, {0, 2}, {3}, {4}, {5}]):
        assert set(found.positions[number].tolist()) - {-1} == set(range(6)) - gone
    assert [entry["image_id"] for entry in Matcher(reference).match(reference.take([2]), 1, exclude_self=False).rows()] == ["p2"]
    renamed = ScoreStore(reference.scores[[1]], ("other",), LABELS, digests=("b",))
    assert 1 not in Matcher(reference).match(renamed, 6).positions


def test_rows_for_files_and_empty_results():
    reference = make(3)
    found = Matcher(reference).match(reference.take([1]), 4, mask=np.array([True, True, False]))
    assert list(found.rows()) == [{"query": "p1", "rank": 1, "image_id": "p0", "distance": found.distances[0, 0]}]
    assert found.ids(0) == ["p0"]
    assert np.isinf(found.distances[0, 1:]).all()
    nothing = Matcher(reference).match(reference, 2, mask=np.zeros(3, bool))
    assert list(nothing.rows()) == []
    assert Matcher(reference).match(reference.take([]), 2).positions.shape == (0, 2)


def test_a_zero_vector_is_as_far_from_all_as_a_right_angle():
    scores = np.zeros((3, len(LABELS)), np.float32)
    scores[1] = 1
    store = ScoreStore(scores, ("zero", "ones", "zero too"), LABELS)
    found = Matcher(store, "cosine").match(store.take([0]), 2)
    assert found.ids(0) == ["zero too", "ones"]
    np.testing.assert_allclose(found.distances[0], [0, 1])


def test_refusals():
    reference = make(4)
    with pytest.raises(UsageError, match="Unknown metric 'cosin'.*euclidean_logits"):
        Matcher(reference, "cosin")
    with pytest.raises(UsageError, match="0 to 1"):
        MatchMetric("mix", 1.5)
    with pytest.raises(UsageError, match="attributes' part"):
        MatchMetric("mix", 0.5, "embedding")
    with pytest.raises(UsageError, match="at least 0"):
        MatchMetric(group_weights={"color": -1})
    with pytest.raises(UsageError, match=r"'colour'; the tasks are color, gender, sleeve"):
        Matcher(reference, MatchMetric(group_weights={"colour": 2}))
    with pytest.raises(UsageError, match="nothing left"):
        Matcher(reference, MatchMetric(group_weights=dict.fromkeys(LABELS.tasks, 0)))
    bare = ScoreStore(reference.scores, reference.image_ids, LABELS)
    with pytest.raises(UsageError, match="needs embeddings"):
        Matcher(bare, "embedding")
    with pytest.raises(UsageError, match="the queries have none"):
        Matcher(reference, "mix").match(bare)
    with pytest.raises(UsageError, match="k must be"):
        Matcher(reference).match(reference, 0)
    with pytest.raises(UsageError, match=r"bool \(4,\)"):
        Matcher(reference).match(reference, mask=np.ones(3, bool))
    with pytest.raises(DataError, match="empty"):
        Matcher(reference.take([]))
    with pytest.raises(DataError, match="two models"):
        Matcher(reference).match(ScoreStore(reference.scores, reference.image_ids, LABELS, "another"))
    other = LabelMap.of_tasks({"color": ["black", "blue", "red"], "gender": ["men", "women"], "sleeve": ["long", "wide"]})
    with pytest.raises(DataError, match="'wide'.*expected 'short'"):
        Matcher(reference).match(ScoreStore(reference.scores, reference.image_ids, other))
    with pytest.raises(DataError, match="exclusive tasks are none"):
        Matcher(reference).match(make(2, exclusive=("color",)))
    with pytest.raises(DataError, match="have 5 numbers.*8"):
        Matcher(reference).match(make(2, width=8))


def test_metric_is_described_and_reads_back():
    metric = MatchMetric("mix", 0.25, "euclidean_prob", {"color": 2})
    assert metric.describe() == "mix 0.25 euclidean_prob + 0.75 embedding (color x2)"
    assert MatchMetric(**metric.to_config()) == metric


def test_probabilities_of_huge_logits():
    values = probabilities_of(np.array([[1e4, -1e4, 0.0]]))
    np.testing.assert_array_equal(values, [[1, 0, 0.5]])
    values = probabilities_of(np.array([[1e4, 0.0, -1e4, 3.0]]), [np.array([0, 1, 2])])
    np.testing.assert_allclose(values, [[1, 0, 0, 1 / (1 + np.exp(-3))]], atol=1e-12)


def test_agreement_names_what_both_have():
    query, found = (
        LABELS.encode([LABELS.find(name).id for name in names]) > 0 for names in (("black", "men"), ("black", "red", "women"))
    )
    first, second = agreement(query, found, LABELS)
    assert (first.task, first.shared, first.query_only, first.found_only, first.agrees) == ("color", ("black",), (), ("red",), False)
    assert (second.task, second.shared, second.query_only, second.found_only) == ("gender", (), ("men",), ("women",))
    assert all(entry.agrees for entry in agreement(query, query, LABELS))
    with pytest.raises(UsageError, match="bool"):
        agreement(query.astype(int), found, LABELS)


@pytest.mark.parametrize("block", [1, 50, 2**22])
def test_class_retrieval_equals_ranking_each_query(monkeypatch, block):
    monkeypatch.setattr("tf_fashion.retrieval.class_retrieval._BLOCK_VALUES", block)
    random = np.random.default_rng(0)
    vectors = random.standard_normal((60, 4))
    targets = random.random((60, 3)) < 0.2
    result = class_retrieval(vectors, targets, ClassProtocol(unlabelled="wrong"))
    right = (targets.astype(int) @ targets.T > 0) & ~np.eye(60, dtype=bool)
    wide = np.concatenate([2 * vectors, np.ones((60, 1))], axis=1)
    gallery = np.concatenate([vectors, -np.square(vectors).sum(axis=1, keepdims=True)], axis=1)
    ranks = ranks_of_positives(wide, gallery, right, exclude=np.arange(60), precision="float64")
    assert result.mean_average_precision == pytest.approx(average_precision(ranks, on_empty="skip").value, abs=1e-12)
    assert result.precision_at_1 == pytest.approx(hit_at_k(ranks, 1, on_empty="skip").value, abs=1e-12)
    assert len(result.queries) == right.any(axis=1).sum()
    assert result.unlabelled == (~targets.any(axis=1)).sum()
    assert len(result.queries) + result.alone + result.unlabelled == 60


def test_class_retrieval_leaves_out_what_it_cannot_judge():
    vectors = np.array([[0.0], [1.0], [2.0], [3.0], [10.0]])
    targets = np.array([[1, 0], [0, 0], [1, 0], [1, 0], [0, 1]])
    left_out = class_retrieval(vectors, targets, ClassProtocol())
    assert (left_out.gallery, left_out.unlabelled, left_out.alone) == (4, 1, 1)
    assert left_out.queries.tolist() == [0, 2, 3]
    assert left_out.mean_average_precision == 1
    wrong = class_retrieval(vectors, targets, ClassProtocol(unlabelled="wrong"))
    # From 0: 1 wrong, 2, 3 right. From 2: 1 and 3 tie, 1 first; then 0. From 3: 2, 1 wrong, 0.
    np.testing.assert_allclose(wrong.average_precision, [(1 / 2 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 2, (1 + 2 / 3) / 2])
    np.testing.assert_array_equal(wrong.first_right, [False, False, True])
    copies = class_retrieval(vectors, targets, ClassProtocol(copies="removed"), ["x", "", "x", "", ""])
    assert copies.queries.tolist() == [0, 2, 3]
    labels = wrong.by_label(targets, ["a", "b"])
    assert labels == {"a": {"mAP": pytest.approx(100 * wrong.mean_average_precision), "P@1": pytest.approx(100 / 3), "queries": 3}}
    with pytest.raises(DataError, match="No two pictures"):
        class_retrieval(vectors[[0, 4]], targets[[0, 4]], ClassProtocol())
    with pytest.raises(UsageError, match="hash"):
        class_retrieval(vectors, targets, ClassProtocol(copies="removed"))
    with pytest.raises(DataError, match="row 2 has NaN"):
        class_retrieval(np.array([[0.0], [1.0], [np.nan]]), targets[:3], ClassProtocol())


def test_results_of_class_retrieval_stand_in_one_table_only_under_one_protocol():
    store = make(40)
    targets = np.random.default_rng(3).random((40, len(LABELS))) < 0.4
    protocol = ClassProtocol(dataset="made_up", split="all", task="color")
    results = evaluate_matching(store, targets, ["cosine", "embedding", MatchMetric("mix", 0.5)], protocol)
    rows = compare_results(results)
    assert [row["name"] for row in rows] == ["cosine", "embedding", "mix 0.5 euclidean_prob + 0.5 embedding"]
    assert all(set(row) == {"name", "mAP", "P@1"} for row in rows)
    assert "right = same color" in comparison_table(results)
    assert set(results[0]["labels"]) == {"black", "blue", "red"}
    assert read_protocol(results[0]["protocol"]) == protocol
    other = evaluate_matching(store, targets, ["cosine"], ClassProtocol(dataset="made_up", split="all", task="gender"))
    with pytest.raises(UsageError, match="different protocols"):
        compare_results([*results, *other])
    with pytest.raises(UsageError, match="no task 'shape'"):
        task_targets(targets, LABELS, "shape")
    with pytest.raises(UsageError, match="unlabelled must be one of"):
        ClassProtocol(unlabelled="maybe")
