"""Retrieval evaluation of the 2020 challenge code: rankings and recalls under several protocols and tie rules."""

from __future__ import annotations

import numpy as np

from tests.parity.harness import Fixture, checks
from tf_fashion.retrieval.metrics import recall_at_k
from tf_fashion.retrieval.protocol import evaluate_category, gallery_for, get_protocol
from tf_fashion.retrieval.search import rank_counts_of_scores, top_k, top_k_of_scores

KS = (1, 5, 10, 50)


@checks(r"retrieval_eval\.npz")
def retrieval_eval(fixture: Fixture) -> None:
    index, query = fixture.input("index"), fixture.input("query")
    ids = [str(entry) for entry in fixture.input("index_ids")]
    reference, target = fixture.input("ref"), fixture.input("target")
    references, targets = [ids[row] for row in reference], [ids[row] for row in target]
    triplets = list(zip(references, targets, strict=True))
    fixture.input("query_ids")

    fixture.exact("top50", top_k(query, index, fixture.data["top50"].shape[1], precision="float64")[1])
    for key, name in (("original_recall", "original"), ("excluded_recall", "original-noref")):
        result = evaluate_category(query, index, ids, targets, references, get_protocol(name), KS)
        fixture.compare(key, list(result.recall.values()), rtol=1e-12, atol=1e-12)

    # The recorded union gallery keeps the reference, unlike VAL's own protocol.
    union = get_protocol("val-split", reference="kept")
    members = gallery_for(union, ids, triplets)
    rows = np.array([ids.index(entry) for entry in members])
    fixture.exact("val_gallery", rows)
    result = evaluate_category(query, index[rows], members, targets, references, union, KS)
    fixture.compare("val_gallery_recall", list(result.recall.values()), rtol=1e-12, atol=1e-12)

    scores = fixture.input("ties.score")
    counts = rank_counts_of_scores(scores, target)
    for tie in ("stable", "optimistic", "pessimistic", "expected"):
        fixture.compare(f"ties.{tie}_recall", list(recall_at_k(counts, KS, tie).values()), rtol=1e-12, atol=1e-12)
    fixture.exact("ties.stable_top50", top_k_of_scores(scores, fixture.data["ties.stable_top50"].shape[1])[1])
    fixture.not_covered(
        "ties.numpy_default_recall_this_machine", "information only: an unstable sort, not reproducible across machines"
    )
    small = fixture.input("small.score")
    fixture.exact("small.order_stable", top_k_of_scores(small, small.shape[1])[1])
