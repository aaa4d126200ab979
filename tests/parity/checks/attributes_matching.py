"""Product matching of the iMaterialist program: distances of a query's logits to a catalogue's, and the orders they give."""

from __future__ import annotations

import numpy as np

from tests.parity.harness import Fixture, checks
from tf_fashion.datasets.labels import Label, LabelMap
from tf_fashion.retrieval.matching import Matcher
from tf_fashion.retrieval.score_store import ScoreStore


@checks(r"matching\.npz")
def matching(fixture: Fixture) -> None:
    query, reference = fixture.input("query"), fixture.input("reference")
    labels = LabelMap([Label(number, f"label {number}", 1, "all") for number in range(1, reference.shape[1] + 1)])
    catalogue = ScoreStore(reference, tuple(f"picture {row}" for row in range(len(reference))), labels)
    asked = ScoreStore(query[None], ("query",), labels)

    def found(metric: str, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows in the order of their distances, and the distances in the order of rows."""
        matches = Matcher(catalogue, metric).match(asked, k)
        return matches.positions[0], matches.distances[0][np.argsort(matches.positions[0])]

    order, distances = found("euclidean_logits", len(reference))
    fixture.compare("distances", distances, rtol=1e-5, atol=0)
    fixture.exact("order", order)
    shown = len(fixture.data["closest_4"])
    fixture.exact("closest_4", found("euclidean_logits", shown)[0])
    fixture.exact("order_prob_l2", found("euclidean_prob", len(reference))[0])
    order, distances = found("cosine", len(reference))
    fixture.compare("cosine", 1 - distances, rtol=1e-5, atol=1e-6)
    fixture.exact("order_cosine", order)
