"""Plain-text and Markdown tables, each with the protocol of its numbers under it."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.retrieval.protocol import compare_results, read_protocol

Style = Literal["text", "markdown"]


def format_table(headers: Sequence[str], rows: Sequence[Sequence[Any]], style: Style = "text", digits: int = 2) -> str:
    """A table with aligned columns.

    Args:
        headers: One per column; the first column is aligned left, columns with only numbers right.
        rows: Cells: strings, integers, floats (printed with `digits` decimals) or None (printed as a dash).
        style: "text", or "markdown" (also aligned, `|` escaped).
        digits: Decimals of floats.

    Returns:
        Lines joined by newlines, without one at the end.

    Raises:
        UsageError: a row of another length than the headers, or an unknown style.
    """
    if style not in ("text", "markdown"):
        raise UsageError(f"Unknown table style {style!r}. Known: text, markdown.")
    for row in rows:
        if len(row) != len(headers):
            raise UsageError(f"The row {list(row)!r} has {len(row)} cells, the table has {len(headers)} columns.")
    cells = [[_one_line(str(header)) for header in headers], *([_cell(value, digits) for value in row] for row in rows)]
    if style == "markdown":
        cells = [[cell.replace("|", r"\|") for cell in line] for line in cells]
    widths = [max(3, *(_width(line[column]) for line in cells)) for column in range(len(headers))]
    right = [
        column > 0 and all(not isinstance(row[column], str) or _numeric(row[column]) for row in rows) for column in range(len(headers))
    ]
    lines = [[_pad(cell, width, side) for cell, width, side in zip(line, widths, right, strict=True)] for line in cells]
    if style == "markdown":
        rule = ["-" * (width - 1) + ":" if side else "-" * width for width, side in zip(widths, right, strict=True)]
        return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])
    rule = ["─" * width for width in widths]
    return "\n".join("  ".join(line).rstrip() for line in [lines[0], rule, *lines[1:]])


def results_table(metrics: Mapping[str, Any], style: Style = "text", digits: int = 2) -> str:
    """The categories of one `metrics.json` and their mean, in percent, with the protocol line under the table.

    Raises:
        DataError: the dictionary is not what `summarise` makes.
    """
    cuts = _cuts(metrics)
    rows: list[list[Any]] = []
    for name, values in metrics["categories"].items():
        mean = values.get("mean", float(np.mean([values[key] for key in cuts])))
        rows.append([name, *(values[key] for key in cuts), mean, values.get("queries"), values.get("gallery")])
    queries = [row[-2] for row in rows]
    total = sum(queries) if all(isinstance(value, int) for value in queries) else None
    rows.append(["mean", *(metrics["mean"].get(key) for key in cuts), metrics["mean"].get("mean"), total, None])
    table = format_table(["category", *cuts, "mean", "queries", "gallery"], rows, style, digits)
    return f"{table}\n{_under(metrics, style)}"


def val_log(folder: str, recalls: Mapping[int, float], category: str = "") -> str:
    """The two lines that the released VAL appends to `results/results_DATASET.log`.

    Args:
        folder: The folder of the features, which it names first.
        recalls: {K: percent}.
        category: Its `subset`; empty for the whole dataset.
    """
    values = ", ".join(f"R@{k} = {value:.2f}" for k, value in recalls.items())
    return f"{folder}\nimage retrieval: {category + ' ' if category else ''}recall: {values} \n"


def comparison_table(
    metrics: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None, style: Style = "text", digits: int = 2
) -> str:
    """Several results side by side, one line each.

    Raises:
        UsageError: results of different protocols or cut-offs (see `compare_results`).
        DataError: an entry is not what `summarise` makes, or there is none.
    """
    if not metrics:
        raise DataError("There are no results to compare.")
    rows = compare_results(metrics, names)
    headers = list(rows[0])
    table = format_table(["model", *headers[1:]], [[row[key] for key in headers] for row in rows], style, digits)
    return f"{table}\n{_under(metrics[0], style)}"


def seeds_table(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], style: Style = "text", digits: int = 2, categories: bool = False
) -> str:
    """Mean ± sample standard deviation over the seeds of each model.

    Args:
        runs: Model name to its results, one per seed. With one seed no deviation is printed.
        style, digits: As in `format_table`.
        categories: Also print each category's mean over the cut-offs.

    Raises:
        UsageError: results of different protocols or cut-offs.
        DataError: a model without results.
    """
    empty = [name for name, results in runs.items() if not results]
    if not runs or empty:
        raise DataError(f"Every model needs at least one result; none for: {', '.join(empty) or '(no model)'}.")
    every = [(name, result) for name, results in runs.items() for result in results]
    compare_results([result for _, result in every], [name for name, _ in every])
    cuts = _cuts(every[0][1])
    extra = list(every[0][1]["categories"]) if categories else []
    rows = []
    for name, results in runs.items():
        columns = [[float(result["mean"][key]) for result in results] for key in (*cuts, "mean")]
        for category in extra:
            if any(category not in result["categories"] for result in results):
                raise UsageError(f"{name!r} has a result without the category {category!r}.")
            columns.append([float(np.mean([result["categories"][category][key] for key in cuts])) for result in results])
        rows.append([name, *(_spread(values, digits) for values in columns), len(results)])
    table = format_table(["model", *cuts, "mean", *extra, "seeds"], rows, style, digits)
    return f"{table}\n{_under(every[0][1], style)}"


def protocol_line(metrics: Mapping[str, Any]) -> str:
    """The one-line description of a result's protocol.

    Raises:
        DataError: the result has none.
    """
    config = metrics.get("protocol")
    if not isinstance(config, Mapping):
        raise DataError("The result names no protocol: numbers without protocol are not printed. Evaluate again.")
    return read_protocol(config).describe()


def _under(metrics: Mapping[str, Any], style: Style) -> str:
    line = f"Percent. Protocol {protocol_line(metrics)}"
    return f"\n{line}" if style == "markdown" else line


def _cuts(metrics: Mapping[str, Any]) -> list[str]:
    protocol_line(metrics)
    categories = metrics.get("categories")
    if not isinstance(categories, Mapping) or not categories or not isinstance(metrics.get("mean"), Mapping):
        raise DataError("Expected a result with 'categories' and 'mean', as in metrics.json.")
    cuts = [key for key in next(iter(categories.values())) if key.startswith("R@")]
    for name, values in categories.items():
        if any(not isinstance(values.get(key), (int, float)) for key in cuts) or not cuts:
            raise DataError(f"Category {name!r}: expected numbers for {', '.join(cuts) or 'R@K'}, found {dict(values)!r}.")
    return cuts


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def _cell(value: Any, digits: int) -> str:
    if value is None:
        return "–"
    if isinstance(value, (float, np.floating)):
        return f"{value:.{digits}f}"
    return _one_line(str(value))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _numeric(text: str) -> bool:
    return bool(text) and text[0] in "-–+.0123456789"


def _width(text: str) -> int:
    """Columns on a terminal: East Asian wide characters take two, combining marks none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _pad(text: str, width: int, right: bool) -> str:
    gap = " " * (width - _width(text))
    return gap + text if right else text + gap
