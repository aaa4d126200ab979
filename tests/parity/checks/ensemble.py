"""Score fusion of the FashionIQ 2020 entry."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.parity.harness import Fixture, checks
from tf_fashion.ensemble.fusion import Fusion
from tf_fashion.ensemble.scores import CategoryScores, ScoredQuery, ScoreFile
from tf_fashion.retrieval.protocol import get_protocol

CATEGORIES = ("dress", "toptee", "shirt")


def _members(fixture: Fixture, split: str, count: int) -> list[ScoreFile]:
    members = []
    for number in range(count):
        parts = {}
        for category in CATEGORIES:
            gallery = [str(entry) for entry in fixture.input(f"{category}.index_ids")]
            names = [str(entry) for entry in fixture.input(f"{category}.query_ids")]
            targets, references = (fixture.input(f"{category}.{key}") for key in ("target", "ref"))
            queries = [
                ScoredQuery(name, gallery[reference], gallery[target])
                for name, reference, target in zip(names, references, targets, strict=True)
            ]
            parts[category] = CategoryScores(category, queries, gallery, fixture.input(f"{split}.{category}.score{number}"))
        members.append(ScoreFile(Path(f"score{number}"), f"score{number}", get_protocol("fiq2020", split=split), None, parts))
    return members


def _overall(fusion: Fusion, weights: np.ndarray) -> float:
    """The entry's objective: minus the mean over categories of (R@10 + R@50) / 2."""
    (results,) = fusion.evaluate(weights)
    return -float(np.mean([np.mean(list(result.recall.values())) for result in results.values()]))


@checks(r"ensemble\.npz")
def ensemble(fixture: Fixture) -> None:
    weights = fixture.input("weights")
    count = weights.shape[1]
    val, test = (Fusion(_members(fixture, split, count), "raw") for split in ("val", "test"))
    fixture.compare("objective", np.array([_overall(val, row / row.sum()) for row in weights]), rtol=0, atol=1e-9)
    fixture.compare("single_model_objective", np.array([_overall(val, row) for row in np.eye(count)]), rtol=0, atol=1e-9)
    for category in CATEGORIES:
        everything = slice(0, val.queries(category))
        gallery = np.array(val.members[0].categories[category].gallery)
        fixture.compare(f"{category}.fused_val", val.fused(category, everything, weights[0]), rtol=1e-6)
        for fusion, key in ((val, "fused_top50"), (test, "test_top50")):
            scores, places = fusion.top(category, weights[0], 50)
            fixture.exact(f"{category}.{key}_ids", gallery[places])
            if fusion is val:
                fixture.compare(f"{category}.{key}_score", scores, rtol=1e-6)
        recall = val.evaluate(weights[0])[0][category].recall
        fixture.compare(f"{category}.recall10_50_w0", np.array([recall[10], recall[50]]), rtol=0, atol=1e-9)
        # The compact form that the search works on ranks as the full matrices do.
        for row in (*weights, *np.eye(count)):
            exact = val.counts(category, [row])[0].ranks("stable")
            quick = val.contests(category)[0].ranks(row)
            reached = np.minimum(exact, 51) == np.minimum(quick, 51)
            fixture.equal(f"{category}.contest", bool(reached.all()), True)
