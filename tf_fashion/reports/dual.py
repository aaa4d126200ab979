"""Tables of image-text retrieval and of the leaderboard's tasks, as text, Markdown, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import atomic_write
from tf_fashion.reports.tables import Style, format_table, protocol_line
from tf_fashion.retrieval.dual import IMAGE_TO_TEXT, TEXT_TO_IMAGE
from tf_fashion.retrieval.protocol import compare_results

_SHORT = {IMAGE_TO_TEXT: "I2T", TEXT_TO_IMAGE: "T2I"}
Row = list[Any]


def directions_table(metrics: Mapping[str, Any], style: Style = "text", digits: int = 2) -> str:
    """Both directions of one result, with the deviation over its draws where there are several, and what the draws were like.

    Args:
        metrics: What `summarise_dual` makes.
        style, digits: As in `format_table`.

    Raises:
        DataError: a result of another kind.
    """
    line = protocol_line(metrics)
    sides = _sides(metrics)
    cuts = _cuts(metrics)
    rows: list[Row] = []
    for name, values in sides.items():
        std = values.get("std", {})
        cells = [_with_spread(values[key], std.get(key), digits) for key in (*cuts, "mean")]
        mrr = _with_spread(values["MRR"], std.get("MRR"), digits + 1)
        rows.append(
            [name, *cells, mrr, _with_spread(values["median_rank"], std.get("median_rank"), 1), values["queries"], values["gallery"]]
        )
    rows.append(["mean", *(metrics["mean"][key] for key in (*cuts, "mean")), None, None, None, None])
    table = format_table(["direction", *cuts, "mean", "MRR", "median rank", "queries", "candidates"], rows, style, digits)
    under = [f"R@K in percent. Protocol {line}"]
    for name, values in sides.items():
        if values.get("filled_queries"):
            count = f"{values['filled_queries']:.0f} of {values['queries']}"
            under.append(
                f"{name}: in {count} queries the group had too few wrong candidates; others filled it up "
                f"({values['filled_candidates']:.1f} per query on average)."
            )
        elif values.get("fewest_candidates", values["gallery"]) < values["gallery"]:
            under.append(f"{name}: some queries were ranked among {values['fewest_candidates']} candidates only.")
    gap = "\n\n" if style == "markdown" else "\n"
    return table + gap + gap.join(under)


def dual_comparison(
    metrics: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None, digits: int = 2
) -> tuple[list[str], list[Row]]:
    """Headers and rows of a table of several results: model, R@K image to text, R@K text to image, mean; percent.

    Args:
        metrics: What `summarise_dual` makes.
        names: One per result; by default its `run["name"]`.
        digits: Decimals of cells with a deviation, which are strings.

    Raises:
        UsageError: different protocols or cut-offs.
        DataError: no result, or one of another kind.
    """
    if not metrics:
        raise DataError("There are no results to compare.")
    called = [str(row["name"]) for row in compare_results(metrics, names)]
    cuts = _cuts(metrics[0])
    rows = []
    for name, entry in zip(called, metrics, strict=True):
        sides = _sides(entry)
        cells = [_with_spread(values[key], values.get("std", {}).get(key), digits) for values in sides.values() for key in cuts]
        rows.append([name, *cells, float(entry["mean"]["mean"])])
    return ["model", *(f"{_SHORT[side]} {key}" for side in _SHORT for key in cuts), "mean"], rows


def dual_comparison_table(
    metrics: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None, style: Style = "text", digits: int = 2
) -> str:
    """`dual_comparison` as text or Markdown with the protocol under it."""
    headers, rows = dual_comparison(metrics, names, digits)
    line = f"Percent. Protocol {protocol_line(metrics[0])}"
    return format_table(headers, rows, style, digits) + ("\n\n" if style == "markdown" else "\n") + line


def leaderboard(results: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], task: str) -> tuple[list[str], list[Row], list[str]]:
    """Headers, rows and datasets of one task: each model's numbers, averaged over the datasets that have the task; fractions.

    Args:
        results: Model name -> dataset name -> results of `evaluate_task`.
        task: The task's name.

    Raises:
        UsageError: models that were measured on different datasets, with different settings, queries or documents.
        DataError: nobody has the task.
    """
    found: dict[str, dict[str, Mapping[str, Any]]] = {
        model: {dataset: entry for dataset, entries in parts.items() for entry in entries if entry["task"] == task}
        for model, parts in results.items()
    }
    first = next(iter(found.values()), {})
    if not first:
        raise DataError(f"No result of the task {task!r}.")
    for model, parts in found.items():
        if list(parts) != list(first):
            raise UsageError(f"Task {task!r}: {model!r} was measured on {', '.join(parts) or 'nothing'}, others on {', '.join(first)}.")
        for dataset, entry in parts.items():
            if any(entry[key] != first[dataset][key] for key in ("fingerprint", "queries", "documents")):
                raise UsageError(f"Task {task!r} on {dataset!r}: {model!r} has other settings, queries or documents than the others.")
    measures = [key for key in next(iter(first.values())) if key not in ("task", "queries", "documents", "fingerprint")]
    rows: list[Row] = [
        [model, *(float(np.mean([entry[key] for entry in parts.values()])) for key in measures)] for model, parts in found.items()
    ]
    return ["model", *measures], rows, list(first)


def leaderboard_table(results: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], style: Style = "markdown") -> str:
    """All tasks, one table each, with the best number of a column in bold (Markdown); raises as `leaderboard`."""
    tasks = dict.fromkeys(entry["task"] for parts in results.values() for entries in parts.values() for entry in entries)
    if not tasks:
        raise DataError("There are no results for a table.")
    parts = []
    for task in tasks:
        headers, rows, datasets = leaderboard(results, task)
        if style == "markdown" and len(rows) > 1:
            best = [max(f"{row[n]:.3f}" for row in rows) for n in range(1, len(headers))]
            rows = [[row[0], *(f"**{v:.3f}**" if f"{v:.3f}" == b else v for v, b in zip(row[1:], best, strict=True))] for row in rows]
        over = f"averaged over {len(datasets)} datasets: {', '.join(datasets)}" if len(datasets) > 1 else datasets[0]
        title = f"### {task} ({over})" if style == "markdown" else f"{task} ({over})"
        parts.append(f"{title}\n{format_table(headers, rows, style, digits=3)}")
    return "\n\n".join(parts)


def write_table(path: str | Path, headers: Sequence[str], rows: Sequence[Row], digits: int = 2, note: str = "") -> Path:
    """Writes a table; the ending of `path` says how: .md, .txt, .csv (all digits) or .json (a list of objects, all digits).

    Args:
        path: The file; an older one is replaced.
        headers, rows: As in `format_table`.
        digits: Decimals in .md and .txt.
        note: A line under the table (.md, .txt), the protocol for example.

    Raises:
        UsageError: another ending.
    """
    path = Path(path)
    if path.suffix == ".csv":
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(headers)
        writer.writerows([["" if cell is None else cell for cell in row] for row in rows])
        text = buffer.getvalue()
    elif path.suffix == ".json":
        records = [dict(zip(headers, row, strict=True)) for row in rows]
        text = json.dumps(records, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    elif path.suffix in (".md", ".txt"):
        style: Style = "markdown" if path.suffix == ".md" else "text"
        text = format_table(headers, rows, style, digits) + "\n" + (f"\n{note}\n" if note else "")
    else:
        raise UsageError(f"{path}: tables are written as .md, .txt, .csv or .json.")
    with atomic_write(path) as file:
        file.write(text)
    return path


def _sides(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    categories = metrics.get("categories")
    if not isinstance(categories, Mapping) or list(categories) != list(_SHORT):
        raise DataError(f"Expected a result of image-text retrieval with {' and '.join(map(repr, _SHORT))}.")
    return {name: categories[name] for name in _SHORT}


def _cuts(metrics: Mapping[str, Any]) -> list[str]:
    return [key for key in metrics["mean"] if key.startswith("R@")]


def _with_spread(value: float, std: float | None, digits: int) -> Any:
    return f"{value:.{digits}f}" if std is None else f"{value:.{digits}f} ± {std:.{digits}f}"
