"""Small score files with known content."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tf_fashion.ensemble.scores import ScoredQuery, ScoreFile, ScoreWriter, open_scores
from tf_fashion.retrieval.protocol import Protocol, get_protocol

KEPT = get_protocol("original", dataset="made_up")
REMOVED = get_protocol("rtic", dataset="made_up")
ANY = get_protocol("fashion200k", dataset="made_up", split="val", ks=(1, 3, 10))


def made_queries(category: str, count: int, gallery: int, seed: int = 0, targets: bool = True, split: str = "val") -> list[ScoredQuery]:
    """Queries whose references and targets stand in a gallery of the ids g0, g1, ..."""
    random = np.random.default_rng([seed, count, gallery])
    queries = []
    for row in range(count):
        reference, target = (f"g{place}" for place in random.choice(gallery, 2, replace=False))
        name = f"{split}_{category}_{reference}_{row}"
        queries.append(ScoredQuery(name, reference, target if targets else None, (f"is {row}", "has dots")))
    return queries


def write_member(
    folder: Path,
    matrices: Mapping[str, tuple[list[ScoredQuery], np.ndarray]],
    protocol: Protocol = KEPT,
    labels: Mapping[str, str] | None = None,
    scale: float | None = 25.0,
    **options: Any,
) -> ScoreFile:
    """Writes matrices (queries, gallery) over g0, g1, ... and opens them again."""
    with ScoreWriter(folder, options.pop("name", folder.name), protocol, scale, **options) as writer:
        for category, (queries, scores) in matrices.items():
            matrix = writer.category(category, queries, [f"g{place}" for place in range(scores.shape[1])], labels)
            matrix[...] = scores
    return open_scores(folder)


def write_members(
    root: Path,
    sizes: Mapping[str, tuple[int, int]],
    count: int = 3,
    split: str = "val",
    protocol: Protocol = KEPT,
    targets: bool = True,
    levels: int | None = None,
    labels: Mapping[str, str] | None = None,
    growth: float = 0.5,
) -> list[ScoreFile]:
    """Members of growing quality (by `growth`); with `levels` the scores take only so many values, so that many tie."""
    members = []
    for member in range(count):
        matrices = {}
        for category, (rows, gallery) in sizes.items():
            queries = made_queries(category, rows, gallery, targets=True, split=split)
            random = np.random.default_rng([member, rows, gallery, split == "test"])
            scores = random.normal(size=(rows, gallery)).astype(np.float32)
            for row, query in enumerate(queries):
                scores[row, int(str(query.target)[1:])] += 0.5 + growth * member
            if levels is not None:
                scores = np.round(scores * levels / 4).astype(np.float32)
            if not targets:
                queries = made_queries(category, rows, gallery, targets=False, split=split)
            matrices[category] = (queries, scores)
        run = {"model": {"file": "model.keras", "sha256": f"{member}" * 8}}
        members.append(write_member(root / f"m{member}", matrices, protocol.replace(split=split), labels, 25.0 + member, run=run))
    return members
