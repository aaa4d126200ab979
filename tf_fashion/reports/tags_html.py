"""Pages of photos with the labels that a classifier gives them, to look through in a browser."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tf_fashion.core.errors import UsageError
from tf_fashion.reports.attributes_html import TaggedPhoto
from tf_fashion.reports.html import flat_details, picture_uri, render_page
from tf_fashion.reports.tags import TagCounts

PER_PAGE = 100
FIRST_PAGE = "report.html"
_COUNTED = 8


def write_tag_pages(
    folder: str | Path,
    photos: Iterable[TaggedPhoto],
    counts: TagCounts,
    shown: int,
    *,
    title: str = "Attributes",
    summary: str = "",
    facts: Mapping[str, Any] | None = None,
    per_page: int = PER_PAGE,
    tile: int = 160,
    progress: bool = False,
) -> list[Path]:
    """Writes `report.html`, and `report-2.html`, ... where one page does not hold all. Pages left from a longer report are removed.

    Args:
        folder: Where they go.
        photos: The photos, at least `shown`.
        counts: How often each label was given to all photos, also those that are not shown.
        shown: How many photos the pages show.
        title: Headline.
        summary: A sentence or two under it.
        facts: Details that stand at the end of the first page.
        per_page: Photos on a page.
        tile: Largest side of a picture in pixels; pictures are embedded as JPEG.
        progress: Whether to show a progress bar where there are several pages.

    Returns:
        The files.

    Raises:
        UsageError: fewer than one photo on a page.
    """
    if per_page < 1:
        raise UsageError(f"A page shows at least 1 photo, got {per_page}.")
    folder = Path(folder)
    pages = max(1, -(-shown // per_page))
    names = [FIRST_PAGE, *(f"report-{number}.html" for number in range(2, pages + 1))]
    source = iter(photos)
    for number, name in enumerate(tqdm(names, desc="writing pages", disable=not progress or pages == 1)):
        first = number * per_page
        count = min(per_page, shown - first)
        cards = [_card(photo, tile) for _, photo in zip(range(count), source, strict=False)]
        render_page(
            folder / name,
            "tags.html",
            title=title,
            summary=summary if number == 0 else "",
            protocol="",
            columns=6,
            details=flat_details(facts or {}) if number == 0 else [],
            counted=_counted(counts) if number == 0 else [],
            total=counts.photos,
            shown=shown,
            first=first + 1,
            last=first + len(cards),
            photos=cards,
            open=any(not tag["decided"] for card in cards for group in card["groups"] for tag in group["tags"]),
            links=_links(names, number),
        )
    for path in folder.glob("report-*.html"):
        if path.stem.removeprefix("report-").isdigit() and path.name not in names:
            path.unlink()
    return [folder / name for name in names]


def _card(photo: TaggedPhoto, tile: int) -> dict[str, Any]:
    return {
        "id": photo.image_id,
        "picture": picture_uri(photo.path, tile),
        "groups": [
            {
                "name": group,
                "tags": [{"name": tag.label.name, "percent": round(100 * tag.probability), "decided": tag.decided} for tag in tags],
            }
            for group, tags in photo.tags.items()
        ],
    }


def _counted(counts: TagCounts) -> list[dict[str, Any]]:
    """The most frequent labels of each group with their shares of the photos."""
    found = []
    for group, labels in counts.labels.items():
        rows = [
            {"name": name, "count": count, "share": f"{100 * count / max(counts.photos, 1):.1f}"}
            for name, count in labels.most_common(_COUNTED)
        ]
        found.append({"name": group, "rows": rows, "more": max(0, len(labels) - _COUNTED), "without": counts.without[group]})
    return found


def _links(names: Sequence[str], here: int) -> list[dict[str, Any]]:
    """Pages to go to: the first, the last, and those around this one; an empty name stands for those between."""
    if len(names) == 1:
        return []
    near = sorted({0, len(names) - 1, *range(max(0, here - 3), min(len(names), here + 4))})
    links: list[dict[str, Any]] = []
    for before, number in zip([-1, *near], near, strict=False):
        if number > before + 1:
            links.append({"name": "", "number": 0, "here": False})
        links.append({"name": names[number], "number": number + 1, "here": number == here})
    return links
