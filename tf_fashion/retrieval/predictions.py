"""Prediction files and score files of image-text retrieval, as FashionKLIP's evaluation programs read and write them.

A prediction file has a line per query: `{"query_id": 5, "item_ids": ["11", "7"]}` (the pictures found for a text, best first) or
`{"image_id": "11", "item_ids": [5, 9]}`. A truth file has the same keys, or `text` with a single answer in place of `item_ids`.
A score file is one JSON object with R@1, R@5, R@10 and their mean, in percent, or with the reason why there is none.

A query counts as answered at K if any of its right answers is among the first K (the hit rate, which the literature calls recall).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tf_fashion.core.errors import DataError, TfFashionError, UsageError
from tf_fashion.core.files import atomic_write
from tf_fashion.datasets.json_lines import read_lines
from tf_fashion.retrieval.feature_files import KEYS, FeatureFile, Key, checked_id
from tf_fashion.retrieval.search import GALLERY_BLOCK, QUERY_BLOCK, Precision, top_k

CUTS = (1, 5, 10)


@dataclass(frozen=True)
class Truth:
    """Right answers by query id, in file order.

    Attributes:
        answers: Query id -> ids of its right answers, with the types that the file has.
        repeated: Query ids that the file lists more than once; the last line counts.
        path: The file, for messages.
    """

    answers: dict[Any, list[Any]]
    repeated: list[Any] = field(default_factory=list)
    path: Path | None = None

    @property
    def as_strings(self) -> dict[str, list[str]]:
        """The same with all ids as strings."""
        return {str(entry): [str(answer) for answer in answers] for entry, answers in self.answers.items()}


def predict(
    queries: FeatureFile,
    gallery: FeatureFile,
    k: int = 10,
    *,
    block: int = GALLERY_BLOCK,
    precision: Precision = "float64",
    progress: bool = False,
) -> Iterator[tuple[Any, list[Any]]]:
    """For every query its id and the ids of the k nearest gallery entries, by dot product; equal scores in file order.

    Args:
        queries: M embeddings.
        gallery: N embeddings of the same width.
        k: How many; all N where there are fewer.
        block: Gallery rows at a time; the result does not depend on it.
        precision: As in `retrieval.search.top_k`. Double precision gives the same result on every machine.
        progress: Whether to show a progress bar.

    Raises:
        UsageError: k below 1, or embeddings of different widths.
    """
    if queries.dim != gallery.dim:
        raise UsageError(
            f"{queries.path or 'queries'} has features of width {queries.dim}, {gallery.path or 'gallery'} of width {gallery.dim}. "
            "Embed both with one model."
        )
    step = 16 * QUERY_BLOCK
    with tqdm(total=len(queries), desc="searching", unit="query", disable=not progress) as bar:
        for start in range(0, len(queries), step):
            ids = queries.ids[start : start + step]
            _, places = top_k(queries.values[start : start + step], gallery.values, k, chunk=block, precision=precision)
            for entry, row in zip(ids, places, strict=True):
                yield entry, [gallery.ids[place] for place in row if place >= 0]
            bar.update(len(ids))


def write_predictions(
    path: str | Path, key: Key, queries: FeatureFile, gallery: FeatureFile, k: int = 10, **options: Any
) -> dict[Any, list[Any]]:
    """Writes what `predict` finds, a line per query, and returns it; `options` as there.

    Raises:
        UsageError: as `predict`; also queries that the file says to be of the other kind.
    """
    _key_of(key)
    if queries.key not in (None, key):
        raise UsageError(f"{queries.path}: expected features with {key}, found {queries.key}. Are the two feature files exchanged?")
    found = {}
    with atomic_write(path) as file:
        for entry, ids in predict(queries, gallery, k, **options):
            file.write(json.dumps({key: entry, "item_ids": ids}, ensure_ascii=False) + "\n")
            found[entry] = ids
    return found


def read_predictions(path: str | Path, key: Key) -> dict[Any, list[Any]]:
    """Reads a prediction file: query id -> found ids, best first.

    Raises:
        DataError: no such file, damaged lines, missing keys, a query that is listed twice.
    """
    found: dict[Any, list[Any]] = {}
    for number, entry in read_lines(Path(path)):
        where = f"{path}, line {number}"
        if key not in entry or not isinstance(entry.get("item_ids"), list):
            raise DataError(f"{where}: expected the keys {key} and item_ids (a list), found {', '.join(entry) or 'none'}.")
        query = checked_id(entry[key], where)
        if query in found:
            raise DataError(f"{where}: {key} {query!r} is listed more than once.")
        found[query] = [checked_id(answer, where) for answer in entry["item_ids"]]
    return found


def read_truth(path: str | Path, key: Key) -> Truth:
    """Reads the right answers of queries.

    Args:
        path: JSON lines with `key` and `item_ids` (a list), or `text` (one answer) in its place; other keys are not read.
        key: "query_id" for texts, "image_id" for pictures.

    Raises:
        DataError: no such file, damaged lines, missing keys, queries without an answer, or no line at all.
    """
    answers: dict[Any, list[Any]] = {}
    repeated = []
    for number, entry in read_lines(Path(path)):
        where = f"{path}, line {number}"
        if key not in entry:
            raise DataError(f"{where}: expected the key {key}, found {', '.join(entry) or 'none'}.")
        query = checked_id(entry[key], where)
        if "item_ids" not in entry and "text" not in entry:
            raise DataError(f"{where}: the right answers are missing: expected item_ids, a list (or text, a single id).")
        right = entry.get("item_ids", [entry.get("text")])
        if not isinstance(right, list) or not right:
            raise DataError(f"{where}: item_ids must be a list with at least one id, found {str(right)[:40]!r}.")
        if query in answers:
            repeated.append(query)
        answers[query] = [checked_id(answer, where) for answer in right]
    if not answers:
        raise DataError(f"{path}: there are no queries in this file.")
    return Truth(answers, repeated, Path(path))


def score_predictions(
    truth: Truth, predictions: Mapping[Any, Sequence[Any]], *, original_ids: bool = False, ks: Sequence[int] = CUTS
) -> tuple[dict[str, Any], list[str]]:
    """The content of a score file, in percent, and remarks on it.

    `{"success": true, "score": M, "scoreJson": {"score": M, "mean_recall": M, "r1": .., "r5": .., "r10": ..}}`, M the mean of the
    three. Every query of the truth counts, those that were predicted beside it do not.

    Args:
        truth: Right answers.
        predictions: Query id -> found ids, best first.
        original_ids: Ids are only equal if their types are, as in FashionKLIP's program; by default 15 and "15" are the same.
        ks: Cut-offs.

    Raises:
        DataError: queries of the truth without a prediction.
    """
    answers: Mapping[Any, Sequence[Any]] = truth.answers if original_ids else truth.as_strings
    found: Mapping[Any, Sequence[Any]] = predictions
    if not original_ids:
        found = {str(query): [str(entry) for entry in ids] for query, ids in predictions.items()}
    absent = [query for query in answers if query not in found]
    if absent:
        shown = ", ".join(map(repr, absent[:5])) + (", ..." if len(absent) > 5 else "")
        raise DataError(
            f"{truth.path or 'truth'}: {len(absent)} of {len(answers)} queries have no prediction: {shown}. "
            "Were the features made from the same list of queries?"
        )
    recalls = []
    for k in ks:
        hits = sum(1 for query, right in answers.items() if not set(right).isdisjoint(found[query][:k]))
        recalls.append(hits / len(answers))
    return _success(recalls, ks), _remarks(truth, answers, found, ks, original_ids)


def score_files(
    truth_path: str | Path, predictions: Mapping[Any, Sequence[Any]] | str | Path, key: Key, *, original_ids: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Scores predictions against a truth file; what goes wrong becomes the content of a score file instead of an exception.

    Args:
        truth_path: See `read_truth`.
        predictions: A prediction file, or what it holds.
        key: "query_id" for texts, "image_id" for pictures.
        original_ids: As in `score_predictions`.

    Returns:
        The content of the score file (`{"errorDetail": .., "errorMsg": .., "score": 0, "scoreJson": {}, "success": false}` on failure)
        and remarks for people.
    """
    try:
        truth = read_truth(truth_path, key)
        if isinstance(predictions, (str, Path)):
            predictions = read_predictions(predictions, key)
        return score_predictions(truth, predictions, original_ids=original_ids)
    except TfFashionError as error:
        return _failure(str(error)), []


def score_files_original(truth_path: str | Path, predictions: Mapping[Any, Sequence[Any]], key: Key) -> dict[str, Any]:
    """The score file as FashionKLIP's program writes it, with its strict id types and its terse errors.

    On failure, error detail and message are the first argument of whatever exception it runs into: the bare id of a query without
    prediction, the bare name of a missing key, the number 2 for a missing file.
    """
    try:
        answers: dict[Any, list[Any]] = {}
        with open(truth_path, encoding="utf-8") as file:
            for line in file:
                entry = json.loads(line)
                query = entry[key]
                answers[query] = entry["item_ids"] if "item_ids" in entry else [entry["text"]]
        recalls = []
        for k in CUTS:
            hits = 0.0
            for query, right in answers.items():
                first = predictions[query][:k]
                hits += any(answer in first for answer in right)
            recalls.append(hits / len(answers))
        return _success(recalls, CUTS)
    except Exception as error:
        return _failure(error.args[0])


def write_scores(path: str | Path, scores: Mapping[str, Any]) -> None:
    """Writes a score file: one line of JSON, keys in the order that the program has."""
    with atomic_write(path) as file:
        file.write(json.dumps(scores, ensure_ascii=False))


def _success(recalls: Sequence[float], ks: Sequence[int]) -> dict[str, Any]:
    mean = 100 * (sum(recalls) / len(recalls))
    values = {f"r{k}": 100 * value for k, value in zip(ks, recalls, strict=True)}
    return {"success": True, "score": mean, "scoreJson": {"score": mean, "mean_recall": mean, **values}}


def _failure(reason: Any) -> dict[str, Any]:
    return {"errorDetail": reason, "errorMsg": reason, "score": 0, "scoreJson": {}, "success": False}


def _remarks(
    truth: Truth, answers: Mapping[Any, Sequence[Any]], found: Mapping[Any, Sequence[Any]], ks: Sequence[int], original_ids: bool
) -> list[str]:
    where = truth.path or "truth"
    remarks = []
    if truth.repeated:
        remarks.append(
            f"{where}: {len(truth.repeated)} queries are listed more than once (the last line counts): {truth.repeated[:5]}."
        )
    longest = max(len(found[query]) for query in answers)
    if longest < max(ks):
        high = ", ".join(f"R@{k}" for k in ks if k > longest)
        remarks.append(
            f"There are only {longest} predictions per query, so {high} means R@{longest}. Predict more with --top-k {max(ks)}."
        )
    if original_ids:
        kinds = [{type(entry) for ids in lists.values() for entry in ids} for lists in (answers, found)]
        if kinds[0].isdisjoint(kinds[1]):
            remarks.append(f"{where}: the ids of the answers are of another type than those predicted, so nothing can be right.")
    return remarks


def _key_of(key: str) -> None:
    if key not in KEYS:
        raise UsageError(f"Queries are named by image_id or query_id, not by {key!r}.")
