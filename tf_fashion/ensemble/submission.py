"""The files that the FashionIQ challenge's server takes: `CATEGORY.test.pred.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import make_out_folder, write_json
from tf_fashion.ensemble.scores import CategoryScores
from tf_fashion.retrieval.protocol import Protocol


def refuse_unsubmittable(protocol: Protocol, where: str) -> None:
    """The challenge takes one ranking per pair; raises `UsageError` where each caption was a query of its own."""
    if protocol.captions == "single":
        raise UsageError(
            f"{where}: a submission has one ranking per pair, and under the protocol {protocol.name!r} every caption is a query. "
            "Export the scores under another protocol, such as original."
        )


def submission_of(part: CategoryScores, rankings: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """The objects of a category's caption file in their order, each with its `ranking`: gallery ids, best first.

    Raises:
        DataError: not one ranking per query.
    """
    if len(rankings) != len(part.queries):
        raise DataError(f"{part.category}: expected {len(part.queries)} rankings, found {len(rankings)}.")
    objects = []
    for query, ranking in zip(part.queries, rankings, strict=True):
        known: dict[str, Any] = {"candidate": query.reference}
        if query.target is not None:
            known["target"] = query.target
        objects.append({**known, "captions": list(query.captions), "ranking": list(ranking)})
    return objects


def write_submission(folder: str | Path, split: str, parts: dict[str, list[dict[str, Any]]]) -> list[Path]:
    """Writes `CATEGORY.SPLIT.pred.json` for every category; returns the paths."""
    folder = make_out_folder(folder)
    paths = []
    for category, objects in parts.items():
        paths.append(folder / f"{category}.{split}.pred.json")
        write_json(paths[-1], objects)
    return paths
