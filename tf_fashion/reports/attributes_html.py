"""The HTML report of an attribute classifier: numbers, curves, and photos with their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tf_fashion.core.errors import UsageError
from tf_fashion.reports.attributes import label_rows, overall_rows, task_rows
from tf_fashion.reports.curves import curves_svg
from tf_fashion.reports.html import flat_details, picture_uri, render_page, svg_uri
from tf_fashion.tagging.decisions import Tag


@dataclass(frozen=True)
class TaggedPhoto:
    """A photo with what was said about it.

    Attributes:
        image_id: Its id.
        path: Its file; None for no picture.
        tags: Group -> labels with probabilities, best first.
        true: Group -> names of the true labels; None where they are not known.
    """

    image_id: str
    path: Path | None
    tags: Mapping[str, Sequence[Tag]]
    true: Mapping[str, Sequence[str]] | None = None


def write_attribute_report(
    path: str | Path,
    metrics: Mapping[str, Any],
    *,
    title: str = "Attributes",
    summary: str = "",
    history: Mapping[str, Sequence[float]] | None = None,
    reliability: str = "",
    photos: Sequence[TaggedPhoto] = (),
    tile: int = 160,
) -> Path:
    """Writes the report of one evaluated classifier.

    Args:
        path: The .html file; replaced as a whole.
        metrics: What `summarise_attributes` makes.
        title: Headline.
        summary: A sentence or two under it.
        history: Training curves, see `read_history`.
        reliability: The reliability curve as SVG, see `draw_reliability`.
        photos: Photos to show; pictures are embedded as small JPEG.
        tile: Largest side of an embedded picture in pixels.

    Raises:
        UsageError: another ending than .html.
        DataError: metrics of another kind.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"A report is written as .html, not as {path.name!r}.")
    rules = metrics["rules"]
    last = list(rules)[-1]
    matching = metrics.get("matching") or {}
    render_page(
        path,
        "attributes.html",
        title=title,
        summary=summary,
        protocol=metrics["protocol"]["description"],
        fingerprint=metrics["protocol"]["fingerprint"],
        columns=6,
        overall=_table(overall_rows(rules)),
        tasks=_table(task_rows(rules[last])),
        labels=_table(label_rows(rules[last], only_present=True)),
        rule=last,
        matching=[[entry["run"]["name"], f"{entry['mean']['mAP']:.1f}", f"{entry['mean']['P@1']:.1f}"] for entry in matching.values()],
        matched_task=next(iter(matching.values()))["protocol"]["task"] if matching else "",
        reliability=svg_uri(reliability) if reliability else "",
        curves=svg_uri(curves_svg(history)) if history else "",
        photos=[_photo(photo, tile) for photo in photos],
        details=flat_details(metrics.get("run", {})),
    )
    return path


def _table(rows: tuple[Sequence[str], Sequence[Sequence[Any]]]) -> dict[str, Any]:
    headers, body = rows
    return {"headers": headers, "rows": [[_cell(value) for value in row] for row in body]}


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _photo(photo: TaggedPhoto, tile: int) -> dict[str, Any]:
    groups = []
    for task, tags in photo.tags.items():
        true = None if photo.true is None else set(photo.true.get(task, ()))
        said = [
            {
                "name": tag.label.name,
                "percent": f"{100 * tag.probability:.0f}",
                "decided": tag.decided,
                "right": None if true is None or not tag.decided else tag.label.name in true,
            }
            for tag in tags
        ]
        missed = sorted((true or set()) - {tag.label.name for tag in tags if tag.decided})
        if said or missed:
            groups.append({"task": task, "said": said, "missed": missed})
    return {"id": photo.image_id, "picture": picture_uri(photo.path, tile), "groups": groups}
