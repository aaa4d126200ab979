"""Protocols, their evaluation, and the refusal to mix them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.retrieval.protocol import (
    PROTOCOLS,
    Protocol,
    compare_results,
    evaluate_category,
    gallery_for,
    get_protocol,
    summarise,
)


def problem(seed=0, queries=40, gallery=80, dim=6):
    rng = np.random.default_rng(seed)
    ids = [f"B{n:03}" for n in range(gallery)]
    pairs = [rng.choice(gallery, 2, replace=False) for _ in range(queries)]
    return (
        rng.standard_normal((queries, dim)).astype(np.float32),
        rng.standard_normal((gallery, dim)).astype(np.float32),
        ids,
        [ids[t] for _, t in pairs],
        [ids[r] for r, _ in pairs],
    )


def naive_recall(q, g, ids, targets, references, remove, k):
    hits = 0
    for row, target, reference in zip(q, targets, references, strict=True):
        ranking = [ids[n] for n in np.argsort(-(g.astype(float) @ row.astype(float)), kind="stable")]
        ranking = [entry for entry in ranking if not remove or entry != reference]
        hits += target in ranking[:k]
    return hits / len(q)


@pytest.mark.parametrize("reference", ["kept", "removed"])
def test_evaluation_against_a_naive_twin(reference):
    q, g, ids, targets, references = problem()
    protocol = get_protocol("original", reference=reference)
    result = evaluate_category(q, g, ids, targets, references, protocol, ks=(1, 10))
    for k in (1, 10):
        assert result.recall[k] == naive_recall(q, g, ids, targets, references, reference == "removed", k)
    assert (result.queries, result.gallery) == (40, 80)
    assert result.recall == result.optimistic == result.pessimistic


def test_ties_are_reported_as_an_interval():
    ids = ["a", "b", "c"]
    result = evaluate_category(np.ones((2, 1)), np.ones((3, 1)), ids, ["a", "c"], ["b", "b"], get_protocol("original"), ks=(1,))
    assert (result.pessimistic[1], result.recall[1], result.optimistic[1]) == (0.0, 0.5, 1.0)


def test_reference_missing_from_the_gallery_is_fine_but_a_missing_target_is_not():
    q, g, ids, targets, references = problem(queries=3)
    protocol = get_protocol("original-noref")
    evaluate_category(q, g, ids, targets, ["elsewhere"] * 3, protocol)
    with pytest.raises(DataError, match="1 target.*'gone'"):
        evaluate_category(q, g, ids, [*targets[:2], "gone"], references, protocol)
    with pytest.raises(DataError, match="same id"):
        evaluate_category(q, g, ids, targets, targets, protocol)
    with pytest.raises(UsageError, match="reference ids"):
        evaluate_category(q, g, ids, targets, None, protocol)
    with pytest.raises(UsageError, match="query_embeddings"):
        evaluate_category(q[:2], g, ids, targets, references, protocol)
    with pytest.raises(DataError, match="no queries"):
        evaluate_category(q[:0], g, ids, [], [], protocol)
    with pytest.raises(DataError, match="more than once: 'B000'"):
        evaluate_category(q, g, ["B000", *ids[:-1]], targets, references, protocol)


def test_hit_any_counts_the_best_entry_with_the_label():
    gallery = np.array([[3.0], [2.0], [2.0], [1.0], [2.0]])
    labels = ["red", "blue", "green", "blue", "blue"]
    result = evaluate_category(
        np.ones((2, 1)), gallery, labels, ["blue", "green"], None, get_protocol("original", hit="any"), ks=(1, 2, 4)
    )
    assert result.ranks.tolist() == [2, 3]
    assert result.counts.ranks("pessimistic").tolist() == [3, 4]
    removed = get_protocol("original", hit="any", reference="removed")
    assert evaluate_category(np.ones((1, 1)), gallery, labels, ["green"], ["blue"], removed).ranks.tolist() == [2]


def test_union_gallery():
    ids = ["a", "b", "c", "d", "e"]
    triplets = [("d", "b"), ("x", "a")]
    assert gallery_for(get_protocol("original"), ids, triplets) == ids
    union = get_protocol("val-split")
    assert gallery_for(union, ids, triplets) == ["a", "b", "d", "x"]
    assert gallery_for(union, ids, [{"candidate": "e", "target": "c"}]) == ["c", "e"]
    with pytest.raises(DataError, match="empty"):
        gallery_for(union, ids, [])
    with pytest.raises(DataError, match="more than once"):
        gallery_for(get_protocol("original"), ["a", "a"], [])


def test_captions():
    pair = [" is red. ", "Has Sleeves?"]
    assert get_protocol("original").texts(pair) == ["Is red and Has Sleeves"]
    assert get_protocol("rtic").texts(pair) == ["is red. [SEP] Has Sleeves?"]
    assert get_protocol("fiq2020").texts(pair) == ["[CLS] is red. [SEP] Has Sleeves?"]
    assert get_protocol("starter-kit").texts(pair) == ["is red. <and> Has Sleeves?"]
    assert get_protocol("val-split").texts(["a", " "]) == ["a"]
    assert get_protocol("val-split-both-orders").texts(["a", "b"]) == ["a and b", "b and a"]
    assert get_protocol("covr").texts(["only"]) == ["only"]
    for wrong in ("a string", [], ["a", "b", "c"]):
        with pytest.raises(DataError):
            get_protocol("original").texts(wrong)


def test_every_named_protocol_round_trips_and_speaks():
    for name in PROTOCOLS:
        protocol = PROTOCOLS.get(name)
        assert protocol.name == name and "\n" not in protocol.describe()
        assert Protocol.from_config(json.loads(json.dumps(protocol.to_config()))) == protocol
    assert get_protocol("covr").fingerprint == get_protocol("original-noref").fingerprint
    assert get_protocol("original").fingerprint != get_protocol("original", split="test").fingerprint
    with pytest.raises(UsageError, match="Known: .*original"):
        get_protocol("orginal")
    with pytest.raises(UsageError, match="gallery must be one of split, union"):
        get_protocol("original", gallery="all")
    with pytest.raises(UsageError, match="no field"):
        get_protocol("original", galery="all")
    with pytest.raises(UsageError, match="keys|has"):
        Protocol.from_config({"split": "val"})
    with pytest.raises(UsageError, match="expected"):
        get_protocol("original", hit="any", tie="expected")


def test_summary_and_comparison():
    protocol = get_protocol("original")
    results = {}
    for seed, name in enumerate(("dress", "shirt")):
        q, g, ids, targets, references = problem(seed)
        results[name] = evaluate_category(q, g, ids, targets, references, protocol)
    metrics = json.loads(json.dumps(summarise(results, protocol, {"name": "tirg", "seed": 1})))
    assert set(metrics) == {"protocol", "categories", "mean", "run"}
    dress, shirt = metrics["categories"]["dress"], metrics["categories"]["shirt"]
    assert dress["R@10"] == pytest.approx(100 * results["dress"].recall[10])
    assert metrics["mean"]["R@50"] == pytest.approx((dress["R@50"] + shirt["R@50"]) / 2)
    assert metrics["mean"]["mean"] == pytest.approx((metrics["mean"]["R@10"] + metrics["mean"]["R@50"]) / 2)
    other = summarise({"dress": evaluate_category(*problem(), get_protocol("original-noref"))}, get_protocol("original-noref"))
    assert [row["name"] for row in compare_results([metrics, metrics], ["a", "b"])] == ["a", "b"]
    with pytest.raises(UsageError, match="different protocols"):
        compare_results([metrics, other])
    with pytest.raises(UsageError, match="was evaluated as"):
        summarise(results, get_protocol("original-noref"))
    with pytest.raises(UsageError, match="no category"):
        summarise({}, protocol)
    with pytest.raises(DataError):
        compare_results([{"mean": {}}])


def test_any_picture_with_the_label_is_right_but_only_the_reference_is_removed():
    ids = ["a", "b", "c", "d"]
    labels = {"a": "red", "b": "red", "c": "blue", "d": "blue"}
    gallery = np.diag([1.0, 0.9, 0.8, 0.7])
    protocol = get_protocol("fashion200k")
    # The query is nearest to c, which is its reference, then to a; a and b are right.
    query = np.array([[0.5, 0.4, 1.0, 0.1]])
    result = evaluate_category(query, gallery, ids, ["b"], ["c"], protocol, labels=labels)
    assert list(result.recall) == [1, 10, 50] and result.ranks.tolist() == [1]
    # The reference may carry the label itself: it is not found, and not missed.
    result = evaluate_category(query, gallery, ids, ["d"], ["c"], protocol, labels=labels)
    assert result.ranks.tolist() == [3]
    with pytest.raises(DataError, match="no label"):
        evaluate_category(query, gallery, ids, ["b"], ["c"], protocol, labels={"a": "red"})
    with pytest.raises(UsageError, match="ks"):
        get_protocol("fashion200k", ks=(0,))


def test_cut_offs_do_not_change_a_fingerprint():
    assert get_protocol("original", ks=(1, 5)).fingerprint == get_protocol("original").fingerprint
    assert Protocol.from_config(json.loads(json.dumps(get_protocol("shoes").to_config()))) == get_protocol("shoes")
