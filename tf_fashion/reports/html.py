"""A self-contained report.html: no scripts, no files beside it, nothing fetched."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from tf_fashion.core.errors import UsageError
from tf_fashion.core.files import atomic_write
from tf_fashion.reports.attention import WordMaps, overlay
from tf_fashion.reports.curves import curves_svg
from tf_fashion.reports.sheets import SheetRow, open_picture
from tf_fashion.reports.tables import protocol_line
from tf_fashion.retrieval.protocol import compare_results

_TEMPLATES = Path(__file__).parent / "templates"


def write_report(
    path: str | Path,
    metrics: Mapping[str, Any],
    *,
    title: str = "Composed retrieval",
    summary: str = "",
    name: str = "this model",
    baselines: Mapping[str, Mapping[str, Any]] | None = None,
    history: Mapping[str, Sequence[float]] | None = None,
    rows: Sequence[SheetRow] = (),
    columns: int = 8,
    tile: int = 160,
    words: Sequence[WordMaps] = (),
) -> Path:
    """Writes the report of one evaluated model.

    Args:
        path: The .html file; replaced as a whole.
        metrics: What `summarise` makes: protocol, categories, mean, run. Everything under "run" is listed as run details.
        title: Headline.
        summary: A sentence or two under it.
        name: The model's name in the comparison.
        baselines: Name to metrics of models to compare with, of the same protocol.
        history: Training curves, see `read_history`.
        rows: Queries with what was found for them; pictures are embedded as small JPEG.
        columns: Results shown per query.
        tile: Largest side of an embedded picture in pixels.
        words: Queries with maps of where their words act.

    Raises:
        UsageError: another ending than .html, or a baseline of another protocol.
        DataError: metrics without protocol, categories or mean.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"A report is written as .html, not as {path.name!r}.")
    if columns < 1 or tile < 16:
        raise UsageError(f"A report needs at least one column and tiles of 16 pixels, got {columns} and {tile}.")
    compared = []
    if baselines:
        compared = compare_results([metrics, *baselines.values()], [name, *baselines])
    own = compare_results([metrics], [name])[0]
    cuts = [key for key in own if key.startswith("R@")]
    render_page(
        path,
        "report.html",
        title=title,
        summary=summary,
        protocol=protocol_line(metrics),
        cuts=cuts,
        categories=[{"name": str(key), **values} for key, values in metrics["categories"].items()],
        mean=metrics["mean"],
        compared=compared,
        best={key: max(row[key] for row in compared) for key in (*cuts, "mean")} if compared else {},
        name=name,
        curves=svg_uri(curves_svg(history)) if history else "",
        rows=[sheet_values(row, columns, tile) for row in rows],
        columns=columns,
        words=[_word_row(query, tile) for query in words],
        details=flat_details(metrics.get("run", {})),
        fingerprint=metrics["protocol"].get("fingerprint", ""),
        intervals=any(_wide(values.get("interval")) for values in metrics["categories"].values()),
    )
    return path


def render_page(path: Path, template: str, **values: Any) -> None:
    """Writes a page from a template of this package; text is escaped, and a name that the template misses is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template(template).render(**values)
    with atomic_write(path) as file:
        file.write(html)


def picture_uri(path: str | Path | None, side: int) -> Markup | None:
    """A picture as a data URI (JPEG), or None if it is missing or not usable."""
    picture = open_picture(path, side)
    if picture is None:
        return None
    return _jpeg_uri(picture)


def _jpeg_uri(picture: Image.Image) -> Markup:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=82)
    return Markup("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode())


def svg_uri(svg: str) -> Markup:
    """A drawing as a data URI."""
    return Markup("data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode())


def sheet_values(row: SheetRow, columns: int, tile: int) -> dict[str, Any]:
    """What a template needs of a row, pictures embedded."""
    results = []
    for place in range(min(columns, len(row.results))):
        results.append(
            {
                "picture": picture_uri(row.results[place], tile),
                "id": row.result_ids[place],
                "score": None if row.scores is None else f"{row.scores[place]:.3f}",
                "rank": place + 1,
                "target": row.is_right(place),
            }
        )
    verdict = row.verdict(columns)
    return {
        "query": row.reference is not None,
        "picture": picture_uri(row.reference, tile),
        "id": row.reference_id or (Path(row.reference).stem if row.reference else ""),
        "sentence": row.sentence,
        "note": row.note,
        "verdict": verdict,
        "found": verdict.startswith("found"),
        "results": results,
    }


def _word_row(query: WordMaps, tile: int) -> dict[str, Any]:
    largest = float(query.maps.max()) if query.maps.size else 0.0
    pictures = [overlay(query.reference, values, largest, tile) for values in query.maps]
    return {
        "picture": picture_uri(query.reference, tile),
        "sentence": " ".join(query.words),
        "note": query.note,
        "words": [
            {"word": word, "picture": None if picture is None else _jpeg_uri(picture), "strength": f"{100 * strength:.0f} %"}
            for word, picture, strength in zip(query.words, pictures, query.strengths(), strict=True)
        ],
    }


def flat_details(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested dictionaries as rows ("config.lr", "0.001")."""
    if isinstance(value, Mapping):
        rows: list[tuple[str, str]] = []
        for key, entry in value.items():
            rows += flat_details(entry, f"{prefix}.{key}" if prefix else str(key))
        return rows
    if isinstance(value, str):
        return [(prefix, value)]
    return [(prefix, json.dumps(value, ensure_ascii=False, default=str))]


def _wide(interval: Any) -> bool:
    return isinstance(interval, Mapping) and any(high - low > 1e-9 for low, high in interval.values())
