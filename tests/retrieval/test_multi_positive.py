"""Consumer-to-shop evaluation: ranks by counting against sorting, ties, categories, protocols."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.reports.udma import original_lines, street_comparison, street_table
from tf_fashion.retrieval import metrics
from tf_fashion.retrieval.multi_positive import (
    STREET_PROTOCOLS,
    StreetProtocol,
    average_precisions,
    evaluate,
    evaluate_scores,
    get_street_protocol,
    group_numbers,
    multi_positive_ranks,
    ranking_metrics,
    ranks_of_scores,
    same_product,
    tied_ranks,
)
from tf_fashion.retrieval.search import ranks_of_positives


def sorted_ranks(scores, positives):
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(1, scores.shape[1] + 1)[None], axis=1)
    return [np.sort(ranks[row, entry]) for row, entry in enumerate(positives)]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_counting_equals_sorting(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    queries, gallery = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 90))
    scores = rng.integers(0, data.draw(st.integers(1, 200)), (queries, gallery)).astype(np.float32)
    positives = [np.flatnonzero(rng.random(gallery) < data.draw(st.sampled_from([0.0, 0.05, 0.9]))) for _ in range(queries)]
    splits = np.concatenate([[0], np.cumsum([len(entry) for entry in positives])])
    ranks = ranks_of_scores(scores, splits, np.concatenate(positives).astype(int))
    for row, expected in enumerate(sorted_ranks(scores, positives)):
        assert ranks.of(row).ranks("stable").tolist() == expected.tolist()
        equal = [(scores[row] == scores[row, place]).sum() - 1 for place in positives[row]]
        assert sorted(ranks.of(row).tied.tolist()) == sorted(equal)
    for tie in ("stable", "optimistic", "pessimistic"):
        for ap, interpolation in (("standard", "step"), ("trapezoid", "trapezoid")):
            ours = average_precisions(ranks, ap, tie)
            mean = metrics.average_precision(ranks, tie=tie, on_empty="skip", interpolation=interpolation)
            assert np.isnan(ours).sum() == mean.empty
            if mean.queries:
                assert np.nanmean(ours) == pytest.approx(mean.value, abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_copies_of_a_picture_keep_their_tie(dtype, metric):
    rng = np.random.default_rng(3)
    base = rng.standard_normal((211, 37)).astype(dtype)
    which = rng.integers(0, len(base), 700)
    gallery, queries = base[which], rng.standard_normal((70, 37)).astype(dtype)
    positives = [np.flatnonzero(which == rng.integers(len(base))) for _ in range(70)]
    splits = np.concatenate([[0], np.cumsum([len(entry) for entry in positives])])
    flat = np.concatenate(positives)
    for precision in ("float32", "float64"):
        ranks = multi_positive_ranks(queries, gallery, splits, flat, metric=metric, precision=precision, score_bytes=200_000)
        for row, entry in enumerate(positives):
            assert (ranks.of(row).tied == max(len(entry) - 1, 0)).all() and len(set(ranks.of(row).above.tolist())) <= 1
        other = ranks_of_positives(queries, gallery, (splits, flat), metric=metric, precision="float64")
        if precision == "float64":
            assert (ranks.counts.above == other.counts.above).all()


def test_blocks_do_not_matter():
    rng = np.random.default_rng(0)
    queries, gallery = rng.standard_normal((130, 16)).astype(np.float32), rng.standard_normal((257, 16)).astype(np.float32)
    splits, flat = np.arange(131) * 2, rng.integers(0, 128, (130, 2)).cumsum(axis=1).ravel()
    whole = multi_positive_ranks(queries, gallery, splits, flat)
    parts = multi_positive_ranks(queries, gallery, splits, flat, score_bytes=1)
    assert (whole.counts.ranks() == parts.counts.ranks()).mean() > 0.99, "only roundings may differ"


def test_one_right_picture_in_both_definitions():
    scores = np.linspace(1, 0, 10)[None]
    for rank, trapezoid in ((1, 1.0), (2, 0.25), (4, 0.125)):
        ranks = ranks_of_scores(scores, np.array([0, 1]), np.array([rank - 1]))
        assert average_precisions(ranks, "trapezoid")[0] == pytest.approx(trapezoid)
        assert average_precisions(ranks, "standard")[0] == pytest.approx(1 / rank)
    assert ranking_metrics([3, 1, 2], [2, 7])[0] == pytest.approx((0.0 + 1 / 3) / 2 / 2), "an item that is not ranked is never found"
    ap, curve = ranking_metrics([5, 3, 1], [1], junk=[5])
    assert ap == 0.25 and curve.tolist() == [0.0, 1.0, 1.0]
    assert np.isnan(ranking_metrics([1, 2], [])[0])


def test_products_are_text_and_lists_rise():
    splits, flat = same_product(["id_2", "7", "x"], ["7", "id_2", "7", "id_2"])
    assert splits.tolist() == [0, 2, 4, 4] and flat.tolist() == [1, 3, 0, 2]
    assert same_product(np.array([7]), ["7"])[1].tolist() == [0] and same_product(["007"], ["7"])[1].tolist() == []
    assert group_numbers(["b", "a", "b"]).tolist() == [2, 1, 2]
    assert same_product(["b", "c"], ["a", "b"], original=True)[1].tolist() == [0, 1]
    with pytest.raises(UsageError, match="must be strings or whole numbers"):
        same_product([1.5], ["a"])


def test_categories_are_ranked_apart_and_lost_queries_are_counted():
    gallery = np.eye(4, dtype=np.float32)
    queries = gallery[[0, 1, 2, 3, 3]]
    products, categories = ["1", "1", "2", "2", "9"], np.array([0, 0, 0, 1, 1])
    result = evaluate(
        queries, gallery, products, ["1", "2", "2", "1"], "street2shop", categories, [0, 1, 0, 0], names=("belts", "tops")
    )
    assert result.names == ("belts", "tops") and result.gallery_sizes.tolist() == [3, 1]
    # Ties at score 0 keep the gallery's order: query 1 sees nothing of its own, its product stands first and last.
    assert result.first_rank.tolist() == [1, 1, 1, 1, 0] and np.isnan(result.average_precision[4])
    assert result.by_category["tops"] == {"mAP": 1.0, "R@1": 1.0, "R@5": 1.0, "R@10": 1.0, "R@20": 1.0, "R@50": 1.0}
    assert result.overall["mAP"] == pytest.approx(np.mean([result.by_category[name]["mAP"] for name in ("belts", "tops")]))
    with pytest.raises(DataError, match="needs the categories dresses, leggings"):
        assert result.selected
    summary = result.summary({"name": "m"})
    assert summary["counts"] == {"queries": 4, "queries_without_right_picture": 1, "gallery": 4} and summary["selected"] is None
    text = street_table(summary)
    assert "belts" in text and "1 queries without a right picture left out" in text and "trapezoid AP" in text
    chosen = get_street_protocol("street2shop", selected=("tops",))
    again = evaluate(queries, gallery, products, ["1", "2", "2", "1"], chosen, categories, [0, 1, 0, 0], names={0: "belts", 1: "tops"})
    assert again.selected == again.by_category["tops"] and len(original_lines(again)) == 3
    assert "selected" in street_table(again.summary(), "markdown")
    optimistic = evaluate(queries, gallery, products, ["1", "2", "2", "1"], chosen.replace(tie="pessimistic"), categories, [0, 1, 0, 0])
    assert optimistic.names == ("0", "1") and optimistic.first_rank.tolist() == [1, 2, 1, 1, 0]


def test_tables_refuse_other_protocols():
    scores = np.array([[0.9, 0.1, 0.3], [0.2, 0.8, 0.1]])
    results = {
        ap: evaluate_scores(scores, ["a", "b"], ["a", "a", "b"], StreetProtocol(ap=ap, ks=(1, 2))) for ap in ("trapezoid", "standard")
    }
    assert results["standard"].cmc().tolist() == [0.5, 0.5, 1.0] and results["standard"].cmc(1).tolist() == [0.5]
    summaries = {name: result.summary() for name, result in results.items()}
    with pytest.raises(UsageError, match="different protocols"):
        street_comparison(summaries)
    table = street_comparison({"one": summaries["standard"], "two": [summaries["standard"]] * 2})
    assert "±" in table.splitlines()[3] and "standard AP" in table
    with pytest.raises(UsageError, match="has no 'selected'"):
        street_comparison({"one": summaries["standard"]}, "selected")
    with pytest.raises(UsageError, match="prints R@1, 5, 10, 20 and 50"):
        original_lines(results["standard"])
    with pytest.raises(DataError, match="names no protocol"):
        street_table({})


def test_protocols():
    for name, protocol in STREET_PROTOCOLS.items():
        assert StreetProtocol.from_config({**protocol.to_config(), "fingerprint": "x"}) == protocol and protocol.describe().startswith(
            name
        )
    first, second = (get_street_protocol(name) for name in ("deepfashion-c2s", "deepfashion-c2s-original"))
    assert first.fingerprint != second.fingerprint and first.fingerprint == first.replace(name="other", ks=(1,)).fingerprint
    for changes, message in (
        ({"scope": "both"}, "scope must be one of"),
        ({"ap": "mean"}, "ap must be one of"),
        ({"ks": (0,)}, "ks must be whole numbers"),
        ({"split": ""}, "split must be a non-empty string"),
        ({"selected": ("a",)}, "selected categories need"),
        ({"original_ids": True, "scope": "category"}, "original_ids is how"),
        ({"colour": 1}, "no field colour"),
    ):
        with pytest.raises(UsageError, match=message):
            first.replace(**changes)
    with pytest.raises(UsageError, match="Unknown protocol 'x'"):
        get_street_protocol("x")
    with pytest.raises(UsageError, match="A protocol has the keys"):
        StreetProtocol.from_config({"kind": "class", "name": "a"})


def test_what_cannot_be_evaluated():
    rows = np.eye(3, dtype=np.float32)
    with pytest.raises(DataError, match=r"gallery: expected finite numbers, found NaN or infinity in 1 row\(s\) \(2\)"):
        evaluate(rows, np.where(rows[::-1] > 0, rows, np.array([[1], [1], [np.inf]])), list("abc"), list("abc"))
    with pytest.raises(DataError, match=r"queries: expected finite numbers, .* \(1\)"):
        evaluate(rows * np.array([[1], [np.nan], [1]]), rows, list("abc"), list("abc"))
    with pytest.raises(DataError, match="No query has a picture of its product"):
        evaluate(rows, rows, list("abc"), list("xyz"))
    with pytest.raises(UsageError, match="Expected 3 gallery products"):
        evaluate(rows, rows, list("abc"), list("ab"))
    with pytest.raises(UsageError, match="must have the same width"):
        evaluate(rows, np.ones((2, 2)), list("abc"), list("ab"))
    with pytest.raises(UsageError, match="give the categories"):
        evaluate(rows, rows, list("abc"), list("abc"), "street2shop")
    with pytest.raises(UsageError, match="both be numbers"):
        evaluate(rows, rows, list("abc"), list("abc"), "street2shop", [0, 0, 0], list("ttt"))
    with pytest.raises(UsageError, match="position 5 is outside"):
        ranks_of_scores(rows, np.array([0, 1, 1, 1]), np.array([5]))
    with pytest.raises(DataError, match="may overflow float32"):
        multi_positive_ranks(rows * np.float32(1e30), rows * np.float32(1e30), np.arange(4), np.arange(3), metric="dot")
    with pytest.raises(UsageError, match="Unknown tie rule"):
        tied_ranks(ranks_of_scores(rows, np.arange(4), np.arange(3)), "random")
