"""What a classifier says about photos, for people and for other programs: CSV, JSON, and tables for a terminal.

`attributes.csv` has a row for each photo, to be opened in a spreadsheet and joined with a catalogue:

    id,file,color,color_probability,pattern,pattern_probability
    a1,a1.jpg,Black|White,0.9731|0.6120,Striped,0.8842

Several labels of a group stand behind each other with `|`, likeliest first, and so do their probabilities; both cells are empty where
the group has none. `attribute_catalogue` datasets read the same file.

`attributes_long.csv` has a row for each label, for filters and pivot tables, with labels that were not decided where more were asked
for. `attributes.json` has all of it as one object.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tf_fashion.core.errors import UsageError
from tf_fashion.core.files import atomic_write
from tf_fashion.reports.attributes_html import TaggedPhoto
from tf_fashion.reports.tables import format_table
from tf_fashion.retrieval.score_store import ScoreStore
from tf_fashion.tagging.decisions import Tag, probabilities_of, tags_of
from tf_fashion.tagging.thresholds import Thresholds

FORMATS = ("csv", "json", "html")
SEPARATOR = "|"
DIGITS = 4
_BLOCK = 512


def tagged(
    store: ScoreStore,
    thresholds: Thresholds,
    root: str | Path,
    *,
    groups: Sequence[str] | None = None,
    top: int = 0,
    most: int | None = None,
) -> Iterator[TaggedPhoto]:
    """The photos of a store with their labels, a block at a time.

    Args:
        store: Scores; `paths` are relative to `root`.
        thresholds: Which labels are decided.
        root: Folder of the pictures.
        groups: Which groups are told about; default all.
        top: How many of a group's best labels are told about even if they are not decided.
        most: Stop after so many photos.

    Raises:
        UsageError: an unknown group, or thresholds of other labels.
    """
    root = Path(root)
    count = len(store) if most is None else min(most, len(store))
    for start in range(0, count, _BLOCK):
        rows = slice(start, min(start + _BLOCK, count))
        probabilities = probabilities_of(store.scores[rows], store.label_map, store.exclusive)
        decisions = thresholds.decide(probabilities, store.label_map)
        tags = tags_of(probabilities, decisions, store.label_map, top, groups)
        for row, said in enumerate(tags, start):
            path = store.paths[row] if store.paths else ""
            yield TaggedPhoto(store.image_ids[row], root / path if path else None, said)


class TagCounts:
    """How often each label was given.

    Args:
        groups: The groups that are counted.

    Attributes:
        photos: Number of photos.
        labels: Group -> label -> photos.
        without: Group -> photos without a label of it.
    """

    def __init__(self, groups: Iterable[str]) -> None:
        self.photos = 0
        self.labels: dict[str, Counter[str]] = {group: Counter() for group in groups}
        self.without: Counter[str] = Counter()

    def add(self, photo: TaggedPhoto) -> None:
        """Counts a photo."""
        self.photos += 1
        for group, counter in self.labels.items():
            names = [tag.label.name for tag in photo.tags[group] if tag.decided]
            counter.update(names)
            if not names:
                self.without[group] += 1


def write_tables(
    folder: Path,
    photos: Iterable[TaggedPhoto],
    root: str | Path,
    groups: Sequence[str],
    formats: Sequence[str],
    facts: Mapping[str, Any],
) -> TagCounts:
    """Writes `attributes.csv` and `attributes_long.csv` ("csv"), `attributes.json` ("json"), all in one pass.

    Args:
        folder: Where they go; older ones are replaced as a whole.
        photos: The photos, which are looked at once.
        root: Folder that the column `file` is relative to.
        groups: The groups that the photos have tags of.
        formats: Of `FORMATS`; "html" is not written here.
        facts: What `attributes.json` says about the model and its thresholds.

    Returns:
        How often each label was given.

    Raises:
        UsageError: an unknown format.
    """
    check_formats(formats)
    counts = TagCounts(groups)
    with ExitStack() as files:
        wide = long = listed = None
        if "csv" in formats:
            wide = csv.writer(files.enter_context(atomic_write(folder / "attributes.csv")), lineterminator="\n")
            wide.writerow(["id", "file", *(name for group in groups for name in (group, f"{group}_probability"))])
            long = csv.writer(files.enter_context(atomic_write(folder / "attributes_long.csv")), lineterminator="\n")
            long.writerow(["id", "file", "group", "rank", "label", "label_id", "probability", "decided"])
        if "json" in formats:
            listed = files.enter_context(atomic_write(folder / "attributes.json"))
            head = json.dumps({**facts, "groups": list(groups)}, ensure_ascii=False, allow_nan=False, indent=2)
            listed.write(head[: head.rindex("}")].rstrip() + ',\n  "photos": [')
        for photo in photos:
            counts.add(photo)
            where = "" if photo.path is None else photo.path.relative_to(root).as_posix()
            if wide is not None and long is not None:
                wide.writerow([photo.image_id, where, *(cell for group in groups for cell in _cells(photo.tags[group]))])
                long.writerows(
                    [photo.image_id, where, group, rank, tag.label.name, tag.label.id, _number(tag.probability), int(tag.decided)]
                    for group in groups
                    for rank, tag in enumerate(photo.tags[group], 1)
                )
            if listed is not None:
                line = {"id": photo.image_id, "file": where, "attributes": {group: _said(photo.tags[group]) for group in groups}}
                comma = "," if counts.photos > 1 else ""
                listed.write(f"{comma}\n    {json.dumps(line, ensure_ascii=False, allow_nan=False)}")
        if listed is not None:
            listed.write("\n  ]\n}\n")
    return counts


def check_formats(formats: Sequence[str]) -> None:
    """Raises `UsageError` for a format that is not known."""
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise UsageError(f"--format: expected some of {', '.join(FORMATS)}; found {', '.join(unknown) or 'nothing'}.")


def photos_table(photos: Sequence[TaggedPhoto]) -> str:
    """The labels of a few photos for a terminal, a line for each photo and group; labels that were not decided in brackets."""
    rows = []
    for photo in photos:
        name = photo.image_id
        for group, tags in photo.tags.items():
            rows.append([name, group, ", ".join(map(_worded, tags)) or "–"])
            name = ""
    return format_table(["photo", "group", "labels with probabilities"], rows)


def counts_table(counts: TagCounts, shown: int = 5) -> str:
    """How often the most frequent labels of each group were given, for a terminal."""
    rows = []
    for group, labels in counts.labels.items():
        most = [f"{name} {count}" for name, count in labels.most_common(shown)]
        more = [f"{len(labels) - shown} more"] if len(labels) > shown else []
        rows.append([group, ", ".join([*most, *more]) or "–", counts.without[group]])
    return format_table(["group", "photos with the most frequent labels", "without any"], rows)


def _cells(tags: Sequence[Tag]) -> tuple[str, str]:
    decided = [tag for tag in tags if tag.decided]
    return SEPARATOR.join(tag.label.name for tag in decided), SEPARATOR.join(_number(tag.probability) for tag in decided)


def _said(tags: Sequence[Tag]) -> list[dict[str, Any]]:
    return [
        {"label": tag.label.name, "id": tag.label.id, "probability": round(tag.probability, DIGITS), "decided": tag.decided}
        for tag in tags
    ]


def _number(value: float) -> str:
    return f"{value:.{DIGITS}f}"


def _worded(tag: Tag) -> str:
    text = f"{tag.label.name} {tag.probability:.2f}"
    return text if tag.decided else f"({text})"
