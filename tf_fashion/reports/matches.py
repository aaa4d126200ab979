"""Picture sheets of product matches: what was found for a query, how far away, and which attributes agree."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tf_fashion.core.errors import UsageError
from tf_fashion.core.files import atomic_write
from tf_fashion.datasets.labels import LabelMap
from tf_fashion.reports.sheets import SheetRow, retrieval_sheet
from tf_fashion.retrieval.matching import Matches, TaskAgreement, agreement

MATCH_COLUMNS = ("query", "rank", "image_id", "distance")


def match_sheet(
    path: str | Path,
    matches: Matches,
    query_paths: Mapping[str, str | Path],
    found_paths: Mapping[str, str | Path],
    *,
    query_labels: np.ndarray | None = None,
    found_labels: np.ndarray | None = None,
    tasks: Sequence[str] | None = None,
    title: str = "Product matches",
    note: str = "",
    columns: int | None = None,
    tile: int = 132,
) -> Path:
    """Draws every query with its matches; ids, distances and, where labels are given, the tasks that agree (green) and differ (grey).

    Args:
        path: Ends in .png, .jpg, .jpeg or .webp; written whole or not at all.
        matches: What was found.
        query_paths, found_paths: Image id -> picture. Missing ones become a grey box with the id.
        query_labels: Decided labels of the queries, bool (Q, L).
        found_labels: Decided labels of the catalogue, bool (n, L).
        tasks: The tasks to compare; default all.
        title: Header line.
        note: A line under it, such as the filter; the metric is named before it.
        columns: Matches per query; default as many as were asked for, at most 8.
        tile: Side of a picture's square in pixels.

    Raises:
        UsageError: no queries, another ending, labels of another shape, unknown tasks, or labels of one side only.
    """
    label_map = matches.reference.label_map
    unknown = [task for task in tasks or () if task not in label_map.tasks]
    if unknown:
        raise UsageError(f"There is no task {', '.join(unknown)}; the tasks are {', '.join(label_map.tasks)}.")
    if (query_labels is None) != (found_labels is None):
        raise UsageError("To show which attributes agree, give the labels of queries and catalogue.")
    for name, values, count in (("query_labels", query_labels, len(matches)), ("found_labels", found_labels, len(matches.reference))):
        if values is not None and (np.shape(values) != (count, len(label_map)) or np.asarray(values).dtype != bool):
            raise UsageError(f"{name} must be bool ({count}, {len(label_map)}), got {np.asarray(values).dtype} {np.shape(values)}.")
    rows = []
    for number, query in enumerate(matches.query_ids):
        found = matches.positions[number][matches.positions[number] >= 0]
        ids = matches.ids(number)
        details: list[list[tuple[str, bool]]] = []
        words = ""
        if query_labels is not None and found_labels is not None:
            words = _words(query_labels[number], label_map, tasks)
            details = [_lines(agreement(query_labels[number], found_labels[row], label_map), tasks) for row in found]
        rows.append(
            SheetRow(
                query_paths.get(query) or "",
                words or query,
                [found_paths.get(entry) for entry in ids],
                ids,
                matches.distances[number][: len(ids)].tolist(),
                reference_id=query,
                note=query if words else "",
                details=details,
            )
        )
    shown = min(max(1, matches.positions.shape[1]), 8) if columns is None else columns
    header = f"distance: {matches.metric.describe()}" + (f" · {note}" if note else "")
    return retrieval_sheet(path, rows, title=title, protocol=header, columns=shown, tile=tile, show_ids=True)


def write_matches(path: str | Path, matches: Matches, more: Mapping[str, Mapping[str, Any]] | None = None) -> Path:
    """Writes one CSV line per match: query, rank, image_id, distance, and columns of the catalogue.

    Args:
        path: The file; an older one is replaced.
        matches: What was found.
        more: Image id -> column -> value, further columns for found pictures.
    """
    path = Path(path)
    columns = list(dict.fromkeys(column for values in (more or {}).values() for column in values))
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*MATCH_COLUMNS, *columns])
        for row in matches.rows():
            values = (more or {}).get(row["image_id"], {})
            cells = [row["query"], row["rank"], row["image_id"], f"{row['distance']:.6g}"]
            writer.writerow([*cells, *(values.get(column, "") for column in columns)])
    return path


def _words(labels: np.ndarray, label_map: LabelMap, tasks: Sequence[str] | None) -> str:
    """The labels of a picture, task by task."""
    chosen = []
    for task, group in label_map.groups.items():
        names = [label_map.names[place] for place in group[labels[group]]]
        if names and (tasks is None or task in tasks):
            chosen.append(f"{task}: {', '.join(names)}")
    return " · ".join(chosen)


def _lines(compared: Sequence[TaskAgreement], tasks: Sequence[str] | None) -> list[tuple[str, bool]]:
    """One line per task: what is shared, or what the match has instead."""
    lines = []
    for entry in compared:
        if tasks is not None and entry.task not in tasks:
            continue
        if entry.agrees:
            lines.append((f"= {entry.task}: {', '.join(entry.shared)}", True))
        else:
            lines.append((f"≠ {entry.task}: {', '.join((*entry.shared, *entry.found_only)) or '–'}", False))
    return lines
