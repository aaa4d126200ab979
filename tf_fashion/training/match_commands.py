"""What `tf-fashion match` does: photos of a catalogue that are near given ones by attributes, by embedding, or by both."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import make_out_folder, write_json
from tf_fashion.datasets.catalogue import Catalogue
from tf_fashion.inputs.feature_cache import photo_digests
from tf_fashion.reports.matches import match_sheet, write_matches
from tf_fashion.reports.tables import format_table
from tf_fashion.reports.tags import SEPARATOR
from tf_fashion.retrieval.filters import AttributeTable, Filter
from tf_fashion.retrieval.matching import Matcher, Matches, MatchMetric, agreement
from tf_fashion.retrieval.score_store import ScoreStore
from tf_fashion.tagging.decisions import probabilities_of
from tf_fashion.tagging.thresholds import Thresholds
from tf_fashion.training.attribute_commands import SCORES_FILE, decision_rule
from tf_fashion.training.attribute_scores import PhotoScorer, augmentation_of, find_photos, read_notes

BY = ("attributes", "embedding", "mix")
_BLOCK = 4096
# Queries that the terminal and the sheet show; files have all.
SHOWN = 20


def match_photos(
    photos: Sequence[str] = (),
    model: str | None = None,
    gallery: str | None = None,
    store: str | None = None,
    ids: Sequence[str] | None = None,
    by: str = "attributes",
    metric: str | None = None,
    weight: float | None = None,
    group_weights: Mapping[str, Any] | None = None,
    only: Sequence[str] | None = None,
    without: Sequence[str] | None = None,
    catalogue: str | None = None,
    separator: str = SEPARATOR,
    top: int = 4,
    include_self: bool = False,
    thresholds: str | None = None,
    threshold: float | None = None,
    images: str | None = None,
    sheet: str | None = None,
    csv: str | None = None,
    json: str | None = None,
    tta: str | None = None,
    batch_size: int = 32,
    skip_bad_images: bool = False,
    progress: bool = True,
) -> str:
    """Finds near photos; see `tf-fashion match --help`.

    Returns:
        A table for the terminal.

    Raises:
        UsageError: options that do not fit each other, no such file, an unknown group, label or metric.
        DataError: pictures that cannot be used, scores of another model, a filter that leaves nothing.
    """
    wanted = match_metric(by, metric, weight, group_weights or {})
    if top < 1:
        raise UsageError(f"--top: expected at least 1, found {top}.")
    if bool(photos) == bool(ids):
        raise UsageError("Give either photos to look for, or --ids of pictures of the catalogue.")
    if gallery is None and store is None:
        raise UsageError("Where shall be looked? Give --gallery FOLDER of photos, or --store FILE of scores (`predict attributes`).")
    if model is None and (photos or gallery is not None):
        raise UsageError("--model is missing: it gives the photos their scores.")
    bad_list = _beside(sheet or csv or json, "bad_images.csv")
    for path in filter(None, (sheet, csv, json)):
        make_out_folder(Path(path).parent)
    store = store_file(store)
    if gallery is None:
        reference = ScoreStore.read(str(store))
        if model is not None:
            tta = _same_model(str(store), reference, model, tta)
        noted = read_notes(str(store)).get("pictures")
        root = Path(images or (noted if isinstance(noted, str) else "."))
        scorer = PhotoScorer(model, tta or "none", batch_size, progress) if model is not None and photos else None
    else:
        scorer = PhotoScorer(str(model), tta or "none", batch_size, progress)
        shelf = find_photos([gallery], images)
        root = shelf.root
        if store is None:
            reference, _ = scorer.scores(shelf, bad_list, skip_bad_images)
        else:
            reference, _ = scorer.store(shelf, store, bad_list, skip_bad_images)
    rule = decision_rule(model, reference.label_map, reference.exclusive, thresholds, threshold)
    decided = decisions_of(reference, rule)
    mask, told = _filtered(reference, decided, only or (), without or (), catalogue, separator)
    if ids:
        queries = reference.take(reference.rows(ids))
        query_paths = {entry: _picture(reference, root, entry) for entry in ids}
        names = list(ids)
    elif scorer is not None:
        found = find_photos(photos)
        queries, _ = scorer.scores(found, bad_list, skip_bad_images)
        query_paths = {entry: found.paths[entry] for entry in queries.image_ids}
        names = list(queries.image_ids)
        # Another photo of a catalogue's name is not the catalogue's picture: only the same bytes are.
        queries = dataclasses.replace(queries, image_ids=tuple(f"query:{entry}" for entry in names))
        reference = _with_digests(reference, root)
    matches = Matcher(reference, wanted).match(queries, top, exclude_self=not include_self, mask=mask)
    matches = dataclasses.replace(matches, query_ids=tuple(names))
    query_labels = decisions_of(queries, rule)
    found_paths = {entry: _picture(reference, root, entry) for number in range(len(matches)) for entry in matches.ids(number)}
    if csv:
        write_matches(csv, matches, _columns(matches, decided, found_paths))
    if json:
        write_json(json, _as_json(matches, query_labels, decided, found_paths, told))
    if sheet:
        _draw(sheet, matches, query_paths, found_paths, query_labels, decided, told)
    return _table(matches, query_labels, decided, told)


def match_metric(by: str, metric: str | None, weight: float | None, group_weights: Mapping[str, Any]) -> MatchMetric:
    """What "near" means, from the options of the command line.

    Raises:
        UsageError: an unknown name, a number out of range, or an option that has no effect with the others.
    """
    if by not in BY:
        raise UsageError(f"--by: expected {', '.join(BY)}; found {by!r}.")
    weights: dict[str, float] = {}
    for name, value in group_weights.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UsageError(f"--group-weight {name}={value}: expected a number.")
        weights[name] = float(value)
    if by == "embedding" and (metric or weights):
        raise UsageError("--metric and --group-weight are about attributes: they have no effect with --by embedding.")
    if by != "mix" and weight is not None:
        raise UsageError("--weight is the attributes' share of --by mix, and has no effect otherwise.")
    if by == "embedding":
        return MatchMetric("embedding")
    if by == "attributes":
        return MatchMetric(_attribute_metric(metric or "euclidean_logits"), group_weights=weights)
    share = 0.5 if weight is None else weight
    return MatchMetric("mix", share, _attribute_metric(metric or "cosine"), weights)


def store_file(path: str | None) -> str | None:
    """A file of scores; of a folder that `predict attributes` wrote, the file in it."""
    return str(Path(path) / SCORES_FILE) if path is not None and Path(path).is_dir() else path


def decisions_of(store: ScoreStore, rule: Thresholds) -> np.ndarray:
    """Decided labels, bool (n, L)."""
    decided = np.zeros(store.scores.shape, bool)
    for start in range(0, len(store), _BLOCK):
        rows = slice(start, start + _BLOCK)
        decided[rows] = rule.decide(probabilities_of(store.scores[rows], store.label_map, store.exclusive), store.label_map)
    return decided


def _attribute_metric(name: str) -> str:
    if name in ("embedding", "mix"):
        raise UsageError(f"--metric {name}: say --by {name}.")
    return name


def _same_model(path: str, reference: ScoreStore, model: str, tta: str | None) -> str | None:
    """The test-time augmentation of scores that must be this model's."""
    if not reference.fingerprint:
        return tta
    own = augmentation_of(reference.fingerprint, model)
    if own is None:
        raise DataError(
            f"{path}: scores of another model ({reference.fingerprint[:12]}) than {model}. Name the model that made them, or compute "
            f"them anew with --gallery FOLDER and another --store."
        )
    if tta is not None and tta != own:
        raise UsageError(f"--tta {tta}: the scores in {path} were made with {own}, and queries have to be scored alike.")
    return own


def _filtered(
    reference: ScoreStore,
    decided: np.ndarray,
    only: Sequence[str],
    without: Sequence[str],
    catalogue: str | None,
    separator: str,
) -> tuple[np.ndarray | None, list[str]]:
    """Which rows can be found, and a line about each condition."""
    if not only and not without:
        if catalogue is not None:
            raise UsageError("--catalogue gives columns to --only and --not, and neither is given.")
        return None, []
    table = AttributeTable.of_labels(decided, reference.label_map)
    if catalogue is not None:
        path = Path(catalogue)
        if not path.is_file():
            raise UsageError(f"--catalogue {catalogue}: expected a CSV file, found {'a folder' if path.is_dir() else 'no such file'}.")
        columns = {item.id: item.attributes for item in Catalogue(path.parent, path).items}
        if not any(entry in columns for entry in reference.image_ids):
            first = next(iter(columns))
            raise DataError(f"{catalogue}: none of its ids ({first!r}, ...) has scores ({reference.image_ids[0]!r}, ...).")
        # What the shop says counts before what the model thinks.
        table = AttributeTable.of_columns(reference.image_ids, columns, separator).or_else(table)
    chosen = Filter.parse(only, without, table)
    mask = chosen.mask(table)
    told = chosen.report(table)
    if not mask.any():
        raise DataError("No picture passes the filter:\n" + "\n".join(f"  {line}" for line in told))
    return mask, told


def _with_digests(reference: ScoreStore, root: Path) -> ScoreStore:
    """The catalogue with hashes of its pictures, where a store from elsewhere has none."""
    if reference.digests is not None or not reference.paths:
        return reference
    known = photo_digests({entry: root / path for entry, path in zip(reference.image_ids, reference.paths, strict=True) if path})
    return dataclasses.replace(reference, digests=tuple(known.get(entry, "") for entry in reference.image_ids))


def _picture(store: ScoreStore, root: Path, image_id: str) -> Path:
    row = int(store.rows([image_id])[0])
    path = store.paths[row] if store.paths else ""
    return root / (path or image_id)


def _beside(file: str | None, name: str) -> Path:
    return (Path(file).parent if file else Path.cwd()) / name


def _columns(matches: Matches, decided: np.ndarray, paths: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """File and labels of everything found, for a CSV file."""
    store = matches.reference
    return {
        entry: {"file": str(path), **{task: SEPARATOR.join(names) for task, names in _labels(decided[row], store).items()}}
        for (entry, path), row in zip(paths.items(), store.rows(paths), strict=True)
    }


def _labels(decided: np.ndarray, store: ScoreStore) -> dict[str, list[str]]:
    names = store.label_map.names
    return {task: [names[place] for place in places if decided[place]] for task, places in store.label_map.groups.items()}


def _as_json(
    matches: Matches, query_labels: np.ndarray, decided: np.ndarray, paths: Mapping[str, Path], told: Sequence[str]
) -> dict[str, Any]:
    store = matches.reference
    queries = []
    for number, query in enumerate(matches.query_ids):
        found = []
        for rank, (entry, distance) in enumerate(zip(matches.ids(number), matches.distances[number], strict=False), 1):
            row = matches.positions[number][rank - 1]
            compared = agreement(query_labels[number], decided[row], store.label_map)
            found.append(
                {
                    "rank": rank,
                    "id": entry,
                    "distance": float(distance),
                    "file": str(paths[entry]),
                    "labels": _labels(decided[row], store),
                    "same": [part.task for part in compared if part.agrees],
                    "different": [part.task for part in compared if not part.agrees],
                }
            )
        queries.append({"query": query, "labels": _labels(query_labels[number], store), "matches": found})
    facts = {"metric": matches.metric.to_config(), "model": store.fingerprint, "filter": list(told), "pictures": len(store)}
    return {**facts, "queries": queries}


def _draw(
    sheet: str,
    matches: Matches,
    query_paths: Mapping[str, Path],
    found_paths: Mapping[str, Path],
    query_labels: np.ndarray,
    decided: np.ndarray,
    told: Sequence[str],
) -> None:
    first = slice(0, SHOWN)
    shown = dataclasses.replace(
        matches, query_ids=matches.query_ids[first], positions=matches.positions[first], distances=matches.distances[first]
    )
    conditions = [line.partition(":")[0] for line in told]
    rest = [f"the first {SHOWN} of {len(matches)} queries"] if len(matches) > SHOWN else []
    match_sheet(
        sheet,
        shown,
        query_paths,
        found_paths,
        query_labels=query_labels[first],
        found_labels=decided,
        note=" · ".join([*conditions, *rest]),
    )


def _table(matches: Matches, query_labels: np.ndarray, decided: np.ndarray, told: Sequence[str]) -> str:
    store = matches.reference
    rows: list[list[Any]] = []
    for number, query in enumerate(matches.query_ids[:SHOWN]):
        if not matches.ids(number):
            rows.append([query, None, "nothing left to find", None, ""])
        for rank, entry in enumerate(matches.ids(number), 1):
            place = matches.positions[number][rank - 1]
            same = [", ".join(part.shared) for part in agreement(query_labels[number], decided[place], store.label_map) if part.agrees]
            distance = float(matches.distances[number][rank - 1])
            rows.append([query if rank == 1 else "", rank, entry, distance, " · ".join(same) or "–"])
    lines = [*told, format_table(["query", "rank", "id", "distance", "in common"], rows, digits=4)]
    if len(matches) > SHOWN:
        lines.append(f"... and {len(matches) - SHOWN} more queries; --csv and --json write all of them.")
    lines.append(f"Distance: {matches.metric.describe()}, among {len(store)} pictures.")
    return "\n".join(lines)
