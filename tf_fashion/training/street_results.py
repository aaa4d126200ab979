"""What a street-to-shop evaluation leaves for people: tables, picture sheet and report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tf_fashion.datasets.street_lists import ProductPhoto
from tf_fashion.reports.curves import read_history
from tf_fashion.reports.sheets import SheetRow, retrieval_sheet
from tf_fashion.reports.street_html import write_street_report
from tf_fashion.reports.tables import Style
from tf_fashion.reports.udma import street_comparison, street_table
from tf_fashion.retrieval.search import top_k
from tf_fashion.training.street_evaluation import StreetTest

SHOWN, QUERIES = 8, 12


def tests_table(metrics: Mapping[str, Any], style: Style = "text", name: str = "this model") -> str:
    """The numbers of every test list, and what they are compared with."""
    parts = []
    for source, result in metrics["tests"].items():
        parts.append(f"{source}: consumer photos in the shop\n{street_table(result, style)}")
        others = {label: entry[source] for label, entry in metrics["compared"].items() if source in entry}
        if others:
            parts.append(f"{source}: comparison\n{street_comparison({**others, name: result}, style=style)}")
    return "\n\n".join(parts)


def sheet_rows(
    test: StreetTest, queries: np.ndarray, gallery: np.ndarray, paths: Mapping[str, Path], count: int = QUERIES, seed: int = 0
) -> list[SheetRow]:
    """A random choice of queries with the best `SHOWN` shop photos: not the best ones, an honest sample."""
    within = test.protocol.scope == "category"
    chosen = np.sort(np.random.default_rng(seed).permutation(len(test.queries))[:count])
    rows = []
    for q in chosen:
        query = test.queries[q]
        places = np.array([p for p, photo in enumerate(test.gallery) if not within or photo.category == query.category], np.int64)
        if not len(places):
            continue
        scores, found = top_k(queries[q : q + 1], gallery[places], min(SHOWN, len(places)))
        shown = [test.gallery[place] for place in places[found[0]]]
        right = [place for place, photo in enumerate(shown) if photo.product == query.product]
        similarities = gallery[places] @ queries[q]
        own = [s for s, place in zip(similarities, places, strict=True) if test.gallery[place].product == query.product]
        rows.append(
            SheetRow(
                reference=paths.get(query.image_id),
                sentence=f"product {query.product}",
                results=[paths.get(photo.image_id) for photo in shown],
                result_ids=[photo.image_id for photo in shown],
                scores=[float(score) for score in scores[0]],
                target=right[0] if right else None,
                target_rank=int((similarities > max(own)).sum()) + 1 if own else None,
                also_right=right[1:],
                reference_id=query.image_id,
                note=query.category_name,
            )
        )
    return rows


def write_street_results(
    out: Path,
    metrics: Mapping[str, Any],
    tests: Sequence[StreetTest],
    embed: Callable[[list[ProductPhoto]], np.ndarray],
    paths: Mapping[str, Path],
    name: str,
    summary: str,
    seed: int = 0,
    pictures: Sequence[tuple[str, Path]] = (),
) -> None:
    """Writes `sheet.png` (of the first test lists) and `report.html` (with the curves of `history.csv`) into `out`."""
    rows: list[SheetRow] = []
    for number, test in enumerate(tests):
        found = sheet_rows(test, embed(test.queries), embed(test.gallery), paths, seed=seed)
        if number == 0 and found:
            title = f"Street to shop: {name}"
            retrieval_sheet(out / "sheet.png", found, title=title, protocol=test.protocol.describe(), columns=SHOWN)
        rows += found
    history = read_history(out / "history.csv") if (out / "history.csv").exists() else None
    write_street_report(
        out / "report.html",
        metrics,
        title=f"Street to shop: {name}",
        summary=summary,
        history=history,
        rows=rows,
        pictures=pictures,
        columns=SHOWN,
    )
