"""FINCH as UDMA's program and three versions of the authors' package compute it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from tests.parity.harness import Fixture, checks
from tf_fashion.clustering.finch import FinchResult, cluster_means, finch, first_neighbours, linked_pairs, pruning_limit
from tf_fashion.clustering.neighbours import rows_of

_VERSIONS: dict[str, dict[str, Any]] = {
    "udma": {"pruning": "udma", "original_diagonal": True},
    "repo021": {"pruning": "udma"},
    "pypi023": {"pruning": "none"},
    "nopruning": {"pruning": "none"},
}


@checks(r"finch\.npz")
def partitions(fixture: Fixture) -> None:
    cases = sorted({key.split("/")[0] for key in fixture.data if "/" in key})
    listed = set(fixture.input("case_names").tolist())
    fixture.equal("case_names (cases)", listed <= set(cases), True)
    for case in cases:
        features, metric = fixture.input(f"{case}/X"), str(fixture.input(f"{case}/distance"))
        given = fixture.input(f"{case}/initial_rank") if f"{case}/initial_rank" in fixture else None
        if f"{case}/generator_label" in fixture:
            # What the rows were drawn from has no other counterpart than the number of rows.
            fixture.equal(f"{case}/rows", len(fixture.input(f"{case}/generator_label")), len(features))
        if f"{case}/first_neighbour" in fixture:
            _first_level(fixture, case, features, metric)
        for version, options in _VERSIONS.items():
            if f"{case}/{version}/labels" not in fixture:
                continue
            found = finch(features, metric, initial_neighbours=given, **options)
            fixture.exact(f"{case}/{version}/labels", found.labels)
            fixture.exact(f"{case}/{version}/num_clust", found.counts)
            for key in fixture.data:
                if match := re.fullmatch(rf"{re.escape(case)}/{version}/req(\d+)", key):
                    result: FinchResult = finch(features, metric, initial_neighbours=given, required=int(match[1]), **options)
                    fixture.exact(key, result.required_labels)


def _first_level(fixture: Fixture, case: str, features: np.ndarray, metric: str) -> None:
    """First neighbours, links, the limit of pruning and the means, all with the diagonal of UDMA's program."""
    recorded = fixture.input(f"{case}/first_neighbour").astype(np.int64)
    own = np.arange(len(features))
    rows = rows_of(features, metric)
    nearest = first_neighbours(features, metric)
    alone = rows.between(own, nearest) > 1000.0
    nearest = np.where(alone, own, nearest)
    # Which of several copies is met first is left to rounding there; the features are what both must agree in.
    copied = bool((rows.first_copy != own).any())
    if copied:
        fixture.data[f"{case}/first_neighbour"] = features[recorded]
        fixture.exact(f"{case}/first_neighbour", features[nearest], note="features of the neighbours")
        nearest = recorded
    else:
        fixture.exact(f"{case}/first_neighbour", nearest)
    links = np.zeros((len(own), len(own)), np.int8)
    for left, right, times in linked_pairs(nearest):
        links[left, right] = links[right, left] = times
    fixture.exact(f"{case}/adjacency_level0", links)
    fixture.compare(f"{case}/min_sim", pruning_limit(rows, nearest, "udma"), rtol=1e-5, atol=1e-6)
    labels = finch(features, metric, initial_neighbours=nearest).partition(0)
    fixture.compare(f"{case}/cluster_means_level0", cluster_means(features, labels))
