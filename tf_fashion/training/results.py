"""The files that an evaluation leaves for people: picture sheet and report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tf_fashion.core.errors import DataError
from tf_fashion.datasets import ComposedDataset
from tf_fashion.reports.curves import read_history
from tf_fashion.reports.html import write_report
from tf_fashion.reports.sheets import SheetRow, retrieval_sheet
from tf_fashion.retrieval.protocol import Protocol
from tf_fashion.retrieval.search import top_k
from tf_fashion.training.evaluation import CategoryEvaluation

SHOWN = 8


def picture_of(dataset: ComposedDataset, image_id: str) -> Path | None:
    """Path of a picture, None where there is no file."""
    try:
        return dataset.image_path(image_id)
    except DataError:
        return None


def sheet_rows(
    results: Mapping[str, CategoryEvaluation], dataset: ComposedDataset, protocol: Protocol, per_category: int = 3, seed: int = 0
) -> list[SheetRow]:
    """A random choice of queries of every category with the best `SHOWN` pictures: not the best ones, an honest sample."""
    rows = []
    for number, (category, evaluation) in enumerate(results.items()):
        random = np.random.default_rng([seed, number])
        chosen = np.sort(random.permutation(len(evaluation.queries))[:per_category])
        place = {image_id: position for position, image_id in enumerate(evaluation.gallery_ids)}
        exclude = None
        if protocol.reference == "removed":
            exclude = np.array([place.get(evaluation.queries[q].reference, -1) for q in chosen], np.int64)
        scores, found = top_k(evaluation.query_embeddings[chosen], evaluation.gallery_embeddings, SHOWN, exclude=exclude)
        for q, query_scores, positions in zip(chosen, scores, found, strict=True):
            query = evaluation.queries[q]
            keep = positions >= 0
            ids = [evaluation.gallery_ids[position] for position in positions[keep]]
            rows.append(
                SheetRow(
                    reference=picture_of(dataset, query.reference),
                    sentence=query.text,
                    results=[picture_of(dataset, image_id) for image_id in ids],
                    result_ids=ids,
                    scores=[float(score) for score in query_scores[keep]],
                    target=ids.index(query.target) if query.target in ids else None,
                    target_rank=int(np.ceil(evaluation.result.ranks[q])),
                    reference_id=query.reference,
                    note=category,
                )
            )
    return rows


def write_results(
    out: Path,
    metrics: dict[str, Any],
    results: Mapping[str, CategoryEvaluation],
    dataset: ComposedDataset,
    protocol: Protocol,
    title: str,
    summary: str,
    seed: int = 0,
) -> None:
    """Writes `sheet.png` and `report.html` (with the curves of `history.csv` where there is one) into `out`."""
    rows = sheet_rows(results, dataset, protocol, seed=seed)
    retrieval_sheet(out / "sheet.png", rows, title=title, protocol=protocol.describe(), columns=SHOWN)
    history = read_history(out / "history.csv") if (out / "history.csv").exists() else None
    write_report(out / "report.html", metrics, title=title, summary=summary, history=history, rows=rows, columns=SHOWN)
