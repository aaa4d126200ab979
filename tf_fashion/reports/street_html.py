"""The report of a street-to-shop model: one HTML file with tables, pictures of clusters and weights, curves and retrieved items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tf_fashion.core.errors import UsageError
from tf_fashion.reports.curves import curves_svg
from tf_fashion.reports.html import flat_details, picture_uri, render_page, sheet_values, svg_uri
from tf_fashion.reports.sheets import SheetRow
from tf_fashion.reports.udma import comparison_rows, street_rows


def write_street_report(
    path: str | Path,
    metrics: Mapping[str, Any],
    *,
    title: str = "Street to shop",
    summary: str = "",
    name: str = "this model",
    history: Mapping[str, Sequence[float]] | None = None,
    rows: Sequence[SheetRow] = (),
    pictures: Sequence[tuple[str, Path]] = (),
    columns: int = 8,
    tile: int = 160,
) -> Path:
    """Writes the report of one evaluated model.

    Args:
        path: The .html file; replaced as a whole.
        metrics: What a run of street-to-shop retrieval writes: `tests` (source -> result) and `compared`.
        title: Headline.
        summary: A sentence or two under it.
        name: The model's name in the comparison.
        history: Training curves, see `read_history`.
        rows: Queries with what was found for them.
        pictures: A line about each of further pictures (.png or .svg), and its file.
        columns: Results shown per query.
        tile: Largest side of an embedded photo in pixels.

    Raises:
        UsageError: another ending than .html.
        DataError: another dictionary.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"A report is written as .html, not as {path.name!r}.")
    tests = []
    for source, result in metrics["tests"].items():
        others = {label: entry[source] for label, entry in metrics["compared"].items() if source in entry}
        headers, body = street_rows(result)
        tests.append(
            {
                "source": source,
                "protocol": result["protocol"]["description"],
                "headers": headers,
                "rows": [[_cell(value) for value in row] for row in body],
                "compared": None if not others else _compared({**others, name: result}),
            }
        )
    render_page(
        path,
        "street.html",
        title=title,
        summary=summary,
        protocol="",
        fingerprint="",
        columns=columns,
        tests=tests,
        curves=svg_uri(curves_svg(history)) if history else "",
        pictures=[{"line": line, "uri": _picture(file), "alt": file.stem} for line, file in pictures],
        rows=[sheet_values(row, columns, tile) for row in rows],
        details=flat_details(metrics.get("run", {})),
    )
    return path


def _compared(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    headers, body = comparison_rows(results)
    return {"headers": headers, "rows": body}


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _picture(path: Path) -> Any:
    if path.suffix == ".svg":
        return svg_uri(path.read_text(encoding="utf-8"))
    return picture_uri(path, 1200)
