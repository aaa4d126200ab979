"""The tasks of Marqo's fashion leaderboard on any embeddings: text to image, category to product, sub-category to product.

As its evaluation program has them (github.com/marqo-ai/marqo-FashionCLIP): the queries of a task are the different values of one
column, at most 2,000 of them drawn at random; every document with that value is right. Recall@K is the share of a query's right
documents among the first K (for several right ones this is not the hit rate of image-text retrieval), P@K the share of right ones among
the first K, MRR looks at the first 10 documents only. AvgRecall is the mean of Recall@1 and Recall@10, AvgP of P@1 and P@10. A product
is 0.9 times its picture plus 0.1 times its text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import hash_json
from tf_fashion.retrieval.search import top_k, unit_rows
from tf_fashion.retrieval.zero_shot import Embed

Kind = Literal["recall", "precision"]
CUTS = (1, 10)


@dataclass(frozen=True)
class LeaderboardTask:
    """One task.

    Attributes:
        name: As in the leaderboard.
        column: Column whose values are the queries.
        kind: "recall" reports AvgRecall, Recall@1, Recall@10, MRR; "precision" AvgP, P@1, P@10, MRR.
        text_weight: Share of the text in a document's embedding; the rest is its picture.
        max_queries: Queries drawn at most.
        seed: Of the drawing. The leaderboard's own draws are fixed files, so numbers on its data differ from it by the draw.
    """

    name: str
    column: str
    kind: Kind
    text_weight: float = 0.0
    max_queries: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("recall", "precision"):
            raise UsageError(f"Task {self.name!r}: kind must be recall or precision; got {self.kind!r}.")
        if not 0 <= self.text_weight <= 1 or self.max_queries < 1:
            raise UsageError(f"Task {self.name!r}: text_weight must be from 0 to 1 and max_queries at least 1.")

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits of everything but the names: equal ones mean comparable numbers on the same data."""
        meaning = {key: value for key, value in dataclasses.asdict(self).items() if key not in ("name", "column")}
        return hash_json(meaning)[:12]


def leaderboard_tasks(text: str = "text", category: str = "category", sub_category: str | None = None) -> list[LeaderboardTask]:
    """The leaderboard's three tasks for columns of these names (the third only with `sub_category`)."""
    tasks = [
        LeaderboardTask("text-to-image", text, "recall"),
        LeaderboardTask("category-to-product", category, "precision", text_weight=0.1),
    ]
    if sub_category is not None:
        tasks.append(LeaderboardTask("sub-category-to-product", sub_category, "precision", text_weight=0.1))
    return tasks


def evaluate_task(
    task: LeaderboardTask,
    records: Sequence[Mapping[str, str]],
    image_embeddings: Any,
    embed: Embed,
    text_embeddings: Any = None,
) -> dict[str, Any]:
    """Measures one task.

    Args:
        task: The task.
        records: N documents: column -> value. Blank values are no queries, but such documents may be found.
        image_embeddings: (N, D) floats.
        embed: Function from a list of sentences to embeddings `(sentences, D)`.
        text_embeddings: (N, D) floats of the documents' texts, for a task that mixes them in.

    Returns:
        `{"task": .., "AvgRecall": .., "Recall@1": .., "Recall@10": .., "MRR": .., "queries": .., "documents": .., "fingerprint": ..}`
        as fractions, or AvgP, P@1, P@10 in their place.

    Raises:
        UsageError: shapes that do not fit, texts that are needed and missing.
        DataError: a column that is missing, or no query.
    """
    images = np.asarray(image_embeddings, np.float64)
    if images.ndim != 2 or len(images) != len(records):
        raise UsageError(f"image_embeddings must have one row per record ({len(records)}), got shape {images.shape}.")
    absent = [row for row, record in enumerate(records) if task.column not in record]
    if absent:
        raise DataError(f"{len(absent)} records have no column {task.column!r}, the first is number {absent[0]}.")
    places: dict[str, list[int]] = {}
    for row, record in enumerate(records):
        if str(record[task.column]).strip():
            places.setdefault(str(record[task.column]).strip(), []).append(row)
    if not places:
        raise DataError(f"The column {task.column!r} is blank everywhere: there is no query.")
    queries = list(places)
    if len(queries) > task.max_queries:
        drawn = np.sort(np.random.default_rng(task.seed).permutation(len(queries))[: task.max_queries])
        queries = [queries[n] for n in drawn]
    documents = unit_rows(images)
    if task.text_weight:
        if text_embeddings is None or np.shape(text_embeddings) != images.shape:
            raise UsageError(f"Task {task.name!r} mixes texts into products: give text_embeddings of shape {images.shape}.")
        texts = unit_rows(np.asarray(text_embeddings, np.float64))
        documents = unit_rows((1 - task.text_weight) * documents + task.text_weight * texts)
    _, found = top_k(unit_rows(np.asarray(embed(queries), np.float64)), documents, min(max(CUTS), len(records)), precision="float64")
    right = np.zeros((len(queries), max(CUTS)), bool)
    for row, query in enumerate(queries):
        right[row, : found.shape[1]] = np.isin(found[row], places[query])
    sizes = np.array([len(places[query]) for query in queries])
    hits = {k: right[:, :k].sum(axis=1) for k in CUTS}
    if task.kind == "recall":
        values = {f"Recall@{k}": float((hits[k] / sizes).mean()) for k in CUTS}
        average = "AvgRecall"
    else:
        values = {f"P@{k}": float((hits[k] / k).mean()) for k in CUTS}
        average = "AvgP"
    first = np.where(right.any(axis=1), 1.0 / (right.argmax(axis=1) + 1), 0.0)
    return {
        "task": task.name,
        average: float(np.mean(list(values.values()))),
        **values,
        "MRR": float(first.mean()),
        "queries": len(queries),
        "documents": len(records),
        "fingerprint": task.fingerprint,
    }
