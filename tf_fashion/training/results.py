"""The files that an evaluation leaves for people: picture sheet and report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tf_fashion.core.errors import DataError
from tf_fashion.core.files import atomic_write
from tf_fashion.datasets import ComposedDataset
from tf_fashion.inputs.images import load_image
from tf_fashion.reports.attention import WordMaps
from tf_fashion.reports.curves import read_history
from tf_fashion.reports.html import write_report
from tf_fashion.reports.sheets import SheetRow, retrieval_sheet
from tf_fashion.reports.tables import val_log
from tf_fashion.retrieval.dual_protocol import DualProtocol
from tf_fashion.retrieval.protocol import Protocol
from tf_fashion.retrieval.search import squared_distances, top_k
from tf_fashion.training.dual_evaluation import DualEvaluation
from tf_fashion.training.evaluation import CategoryEvaluation, Embedder

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
                    target=next((place for place, image_id in enumerate(ids) if evaluation.right(query, image_id)), None),
                    target_rank=int(np.ceil(evaluation.result.ranks[q])),
                    reference_id=query.reference,
                    note=category,
                )
            )
    return rows


def word_maps(
    results: Mapping[str, CategoryEvaluation], dataset: ComposedDataset, embedder: Embedder, per_category: int = 1, seed: int = 0
) -> list[WordMaps]:
    """A random choice of queries with the places where their words act; empty for composers that do not work on maps."""
    if not embedder.model.composer.spatial:
        return []
    found = []
    for number, (category, evaluation) in enumerate(results.items()):
        random = np.random.default_rng([seed, number, 1])
        for q in np.sort(random.permutation(len(evaluation.queries))[: max(per_category, 4 // len(results))]):
            query = evaluation.queries[q]
            photo = dataset.image_path(query.reference)
            features = embedder.encode(load_image(photo, embedder.model.image_encoder.image_spec)[None])
            words, maps = embedder.model.word_maps(features, query.text)
            if words:
                found.append(WordMaps(photo, words, np.asarray(maps), category))
    return found


def result_log(folder: Path, results: Mapping[str, CategoryEvaluation]) -> str:
    """The recalls as the released VAL logs them, R@1, R@10 and R@50 of every category."""
    lines = []
    for category, evaluation in results.items():
        ranks = evaluation.result.ranks
        recalls = {k: 100.0 * float(np.mean(ranks <= k)) for k in (1, 10, 50)}
        lines.append(val_log(str(folder), recalls, category if len(results) > 1 else ""))
    return "".join(lines)


def write_features(folder: Path, results: Mapping[str, CategoryEvaluation], levels: int) -> list[Path]:
    """Embeddings, distances and ground truth as the released VAL stores them.

    Each level's vector has length one there, so that a distance between two pictures is up to 4 per level; ours, of length one as
    a whole, are multiplied accordingly. The files are `query_images.npy`, `test_images.npy` (float32), `mod2img_dist.npy` (squared
    distances) and `groundtruth.npy` (bool), with `_CATEGORY` before the ending where there are several, and the ids as text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for category, evaluation in results.items():
        ending = f"_{category}" if len(results) > 1 else ""
        query, gallery = (x * np.float32(levels**0.5) for x in (evaluation.query_embeddings, evaluation.gallery_embeddings))
        arrays = {
            "query_images": query,
            "test_images": gallery,
            "mod2img_dist": squared_distances(query, gallery),
            "groundtruth": evaluation.ground_truth(),
        }
        for name, array in arrays.items():
            written.append(folder / f"{name}{ending}.npy")
            with atomic_write(written[-1], "wb") as file:
                np.save(file, array)
        lists = {
            "queries": [f"{q.reference}\t{q.target}\t{q.text}" for q in evaluation.queries],
            "gallery": evaluation.gallery_ids,
        }
        for name, lines in lists.items():
            written.append(folder / f"{name}{ending}.txt")
            with atomic_write(written[-1]) as file:
                file.writelines(f"{line}\n" for line in lines)
    return written


def write_results(
    out: Path,
    metrics: dict[str, Any],
    results: Mapping[str, CategoryEvaluation],
    dataset: ComposedDataset,
    protocol: Protocol,
    title: str,
    summary: str,
    seed: int = 0,
    embedder: Embedder | None = None,
) -> None:
    """Writes `sheet.png`, `report.html` (with the curves of `history.csv` where there is one) and `results.log` into `out`.

    With an `embedder` whose model composes on feature maps, the report shows where the words of some queries act.
    """
    with atomic_write(out / "results.log") as file:
        file.write(result_log(out, results))
    rows = sheet_rows(results, dataset, protocol, seed=seed)
    retrieval_sheet(out / "sheet.png", rows, title=title, protocol=protocol.describe(), columns=SHOWN)
    history = read_history(out / "history.csv") if (out / "history.csv").exists() else None
    maps = word_maps(results, dataset, embedder, seed=seed) if embedder is not None else []
    write_report(out / "report.html", metrics, title=title, summary=summary, history=history, rows=rows, columns=SHOWN, words=maps)


def dual_rows(evaluation: DualEvaluation, paths: Mapping[str, Path], count: int = 12, seed: int = 0) -> list[SheetRow]:
    """A random choice of texts with the best `SHOWN` pictures: not the best ones, an honest sample."""
    random = np.random.default_rng(seed)
    chosen = np.sort(random.permutation(len(evaluation.texts))[:count])
    scores, found = top_k(evaluation.text_embeddings[chosen], evaluation.image_embeddings, min(SHOWN, len(evaluation.image_ids)))
    place = {image_id: number for number, image_id in enumerate(evaluation.image_ids)}
    rows = []
    for q, query_scores, positions in zip(chosen, scores, found, strict=True):
        ids = [evaluation.image_ids[position] for position in positions]
        right = [number for number, image_id in enumerate(ids) if image_id in evaluation.answers[q]]
        similarities = evaluation.image_embeddings @ evaluation.text_embeddings[q]
        best = similarities[[place[image_id] for image_id in evaluation.answers[q]]].max()
        rows.append(
            SheetRow(
                reference=None,
                sentence=evaluation.texts[q],
                results=[paths.get(image_id) for image_id in ids],
                result_ids=ids,
                scores=[float(score) for score in query_scores],
                target=right[0] if right else None,
                target_rank=int((similarities > best).sum()) + 1,
                also_right=right[1:],
            )
        )
    return rows


def write_dual_results(
    out: Path,
    metrics: dict[str, Any],
    evaluation: DualEvaluation,
    paths: Mapping[str, Path],
    protocol: DualProtocol,
    title: str,
    summary: str,
    seed: int = 0,
) -> None:
    """Writes `sheet.png` and `report.html` (with the curves of `history.csv` where there is one) into `out`."""
    rows = dual_rows(evaluation, paths, seed=seed)
    retrieval_sheet(out / "sheet.png", rows, title=title, protocol=protocol.describe(), columns=SHOWN)
    history = read_history(out / "history.csv") if (out / "history.csv").exists() else None
    write_report(out / "report.html", metrics, title=title, summary=summary, history=history, rows=rows, columns=SHOWN)
