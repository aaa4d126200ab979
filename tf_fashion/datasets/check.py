"""`check_tree`: reads a whole tree, decodes every picture, and lists everything that is wrong instead of stopping at the first.

report = check_tree("data/fashion_iq", images="photos")
print(report.format())
sys.exit(0 if report.ok else 1)
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import struct
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from tf_fashion.core import files
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.records import DATASETS, Inspection, Problem, existing_folder

MAX_PIXELS = 50_000_000
MAX_BYTES = 20_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


@dataclass
class CheckReport:
    """What `check_tree` found.

    Attributes:
        kind: Name of the dataset that the tree was read as.
        root, images_root: Folders.
        problems: Everything found, errors first.
        counts: One dict per category and split: category, split, pairs, gallery, references, missing, unreadable (the last two
            None where there is no folder of pictures).
        images_checked: Number of pictures that were opened.
        seconds: Time taken.
    """

    kind: str
    root: Path
    images_root: Path | None
    problems: list[Problem] = field(default_factory=list)
    counts: list[dict[str, Any]] = field(default_factory=list)
    images_checked: int = 0
    seconds: float = 0.0

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "error"]

    @property
    def warnings(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity != "error"]

    @property
    def ok(self) -> bool:
        """True if there is no error; warnings do not count."""
        return not self.errors

    def format(self, limit: int | None = 10) -> str:
        """The report as text: table of counts, problems grouped by kind, verdict.

        Args:
            limit: Problems shown of each kind; None shows all.
        """
        lines = [f"{self.root}: {self.kind}" + (f", pictures in {self.images_root}" if self.images_root else "")]
        if self.counts:
            lines += ["", *_format_table(self.counts)]
        for severity, problems in (("error", self.errors), ("warning", self.warnings)):
            groups: dict[str, list[Problem]] = defaultdict(list)
            for problem in problems:
                groups[problem.kind].append(problem)
            for kind, group in groups.items():
                lines += ["", f"{severity}: {kind} ({len(group)})"]
                lines += [f"  {problem}" for problem in group[:limit]]
                if limit is not None and len(group) > limit:
                    lines.append(f"  ... and {len(group) - limit} more")
        errors, notes = len(self.errors), len(self.warnings)
        verdict = "No errors" if not errors else f"{errors} error{'s' * (errors != 1)}"
        notes_text = f", {notes} warning{'s' * (notes != 1)}" if notes else ""
        lines += ["", f"{verdict}{notes_text}; {self.images_checked} pictures looked at in {self.seconds:.1f} s."]
        return "\n".join(lines)

    def write(self, path: str | Path) -> None:
        """Writes the full list of problems as CSV (`severity,kind,where,what,fix`)."""
        with files.atomic_write(path) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["severity", "kind", "where", "what", "fix"])
            writer.writerows([p.severity, p.kind, p.where, p.what, p.fix] for p in self.problems)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-able values."""
        return {
            "kind": self.kind,
            "root": str(self.root),
            "images_root": None if self.images_root is None else str(self.images_root),
            "ok": self.ok,
            "counts": self.counts,
            "problems": [vars(problem) for problem in self.problems],
        }


def _format_table(rows: list[dict[str, Any]]) -> list[str]:
    table = [list(rows[0]), *(["-" if value is None else str(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return ["  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))) for row in table]


def picture_header(data: bytes) -> tuple[str, int, int] | None:
    """Format name, width and height from the first bytes of a JPEG, PNG, WebP, GIF or BMP file; None for anything else.

    Nothing is decoded, so a picture that would fill the memory is recognised before it does. Width and height are 0 where the
    header is cut short.
    """
    try:
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            return ("PNG", *struct.unpack(">II", data[16:24]))
        if data[:3] == b"\xff\xd8\xff":
            return ("JPEG", *_jpeg_size(data))
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return ("WEBP", *_webp_size(data))
        if data[:6] in (b"GIF87a", b"GIF89a"):
            return ("GIF", *struct.unpack("<HH", data[6:10]))
        if data[:2] == b"BM":
            width, height = struct.unpack("<ii", data[18:26])
            return ("BMP", abs(width), abs(height))
    except (struct.error, IndexError):
        name = "PNG" if data[:1] == b"\x89" else "JPEG" if data[:1] == b"\xff" else "WEBP" if data[:1] == b"R" else "GIF"
        return (name if data[:2] != b"BM" else "BMP", 0, 0)
    return None


def _jpeg_size(data: bytes) -> tuple[int, int]:
    position = 2
    while True:
        while data[position] != 0xFF:
            position += 1
        while data[position] == 0xFF:
            position += 1
        marker = data[position]
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            position += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[position + 4 : position + 8])
            return width, height
        (length,) = struct.unpack(">H", data[position + 1 : position + 3])
        position += 1 + length


def _webp_size(data: bytes) -> tuple[int, int]:
    chunk = data[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L":
        (bits,) = struct.unpack("<I", data[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", data[26:30])
    return width & 0x3FFF, height & 0x3FFF


def _what_else(data: bytes) -> str:
    """Says what a file that is no picture seems to be."""
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page, not a picture (a failed download?)"
    if start.startswith((b"<?xml", b"<svg")):
        return "XML or SVG, not a picture in pixels"
    if data[4:12] in (b"ftypavif", b"ftypheic", b"ftypheix", b"ftypmif1"):
        return "a HEIC or AVIF picture; convert it to JPEG"
    if data[:4] in (b"II*\0", b"MM\0*"):
        return "a TIFF picture; convert it to JPEG"
    return f"not a picture: it starts with the bytes {data[:8].hex(' ')}"


def picture_problem(
    path: Path, decode: bool = True, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES
) -> tuple[str | None, str]:
    """Why a picture cannot be used, or None; and a digest of its content ("" where it was not read)."""
    try:
        if not path.is_file():
            return ("a folder or special file" if path.exists() else "no such file"), ""
        size = path.stat().st_size
        if size == 0:
            return "an empty file", ""
        if size > max_bytes:
            return f"{size / 1e6:.1f} MB; at most {max_bytes / 1e6:.0f} MB are allowed", ""
        data = path.read_bytes()
    except OSError as error:
        return f"cannot be read ({error.strerror})", ""
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    header = picture_header(data)
    if header is None:
        return _what_else(data), digest
    name, width, height = header
    if width == 0 or height == 0:
        return f"a {name} file whose header is broken or cut short", digest
    if width * height > max_pixels:
        return f"{width} x {height} pixels; at most {max_pixels / 1e6:.0f} million are allowed", digest
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if decode:
                # A reduced size reads the same bytes, so damage shows just as well, for less arithmetic.
                image.draft(None, (max(1, width // 8), max(1, height // 8)))
                image.load()
    except UnidentifiedImageError:
        return f"a {name} file whose header is broken or cut short", digest
    except Exception as error:  # decoders raise many types for damaged data
        return f"a {name} file that cannot be decoded ({str(error).rstrip('.') or type(error).__name__})", digest
    return None, digest


def check_pictures(
    paths: dict[str, Path], decode: bool = True, workers: int | None = None, progress: bool = True
) -> tuple[dict[str, str], dict[str, str]]:
    """Looks at many pictures in parallel.

    Args:
        paths: Image id -> path.
        decode: Decode them fully (finds truncated files); else only the header is read.
        workers: Threads; default the number of processors, at most 8.
        progress: Show a progress bar.

    Returns:
        id -> reason for those that cannot be used; id -> digest of the content of those that were read.
    """
    workers = workers or min(8, os.cpu_count() or 1)
    Image.preinit()
    reasons: dict[str, str] = {}
    digests: dict[str, str] = {}
    pool = ThreadPoolExecutor(workers)
    # Set here, once: the filters of `warnings` belong to the process, not to a thread.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            results = pool.map(lambda path: picture_problem(path, decode), paths.values())
            bar = tqdm(
                zip(paths, results, strict=True),
                "pictures",
                len(paths),
                disable=not (progress and paths),
                unit="pic",
                mininterval=0.5,
            )
            for image_id, (reason, digest) in bar:
                if reason is not None:
                    reasons[image_id] = reason
                if digest:
                    digests[image_id] = digest
        finally:
            pool.shutdown(cancel_futures=True)
    return reasons, digests


def check_arrays(arrays: Mapping[str, Callable[[str], Any]], workers: int | None = None, progress: bool = True) -> dict[str, str]:
    """Reads pictures that are no files (see `Inspection.arrays`): id -> message about those that cannot be used."""

    def problem(image_id: str) -> str | None:
        try:
            arrays[image_id](image_id)
        except DataError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(problem, arrays)
        bar = tqdm(zip(arrays, results, strict=True), "arrays", len(arrays), disable=not (progress and arrays), mininterval=0.5)
        return {image_id: message for image_id, message in bar if message is not None}


def find_dataset(root: Path, kind: str = "auto", base: type = object) -> Any:
    """The registered dataset class called `kind`, or for "auto" the most specific one that matches the tree.

    Raises:
        UsageError: unknown kind.
        DataError: none matches; the message says what was looked for.
    """
    if kind != "auto":
        return DATASETS.get(kind)
    candidates = [DATASETS.get(name) for name in DATASETS if issubclass(DATASETS.get(name), base)]
    matching = [cls for cls in candidates if cls.matches(root)]
    if not matching:
        looked_for = "; ".join(cls.looked_for for cls in candidates)
        layouts = [cls for cls in candidates if cls.specificity > 10]
        folders = [path for path in sorted(root.iterdir()) if path.is_dir()]
        below = [str(path) for path in folders if any(cls.matches(path) for cls in layouts)]
        hint = f" Did you mean {' or '.join(below[:3])}?" if below else ""
        raise DataError(f"{root}: no dataset recognised. Looked for: {looked_for}.{hint}")
    return max(matching, key=lambda cls: cls.specificity)


def check_tree(
    root: str | Path,
    images: str | Path | None = None,
    kind: str = "auto",
    decode: bool = True,
    progress: bool = True,
    workers: int | None = None,
) -> CheckReport:
    """Checks a dataset on disk: structure, ids, captions, galleries, and every picture that is referred to.

    Args:
        root: Folder of the dataset.
        images: Folder of the pictures, where they are not in the dataset's own place.
        kind: Name of a registered dataset, or "auto".
        decode: Decode every picture (finds truncated ones); else look at headers only.
        progress: Show a progress bar.
        workers: Threads for the pictures.

    Returns:
        The report; `report.ok` is False if there is any error.

    Raises:
        UsageError: a folder that does not exist, or an unknown `kind`.
    """
    started = time.perf_counter()
    root = existing_folder(root, "the folder of a dataset")
    images = None if images is None else existing_folder(images, "the folder of the pictures")
    problems: list[Problem] = []
    try:
        inspection: Inspection = find_dataset(root, kind).inspect(root, images, problems.append)
    except UsageError:
        raise
    except DataError as error:
        problems.append(Problem("error", str(root), str(error).removeprefix(f"{root}: "), "", "unknown tree"))
        return CheckReport("unknown", root, images, problems, seconds=time.perf_counter() - started)
    present = {id: path for id, path in inspection.paths.items() if path is not None}
    reasons, digests = check_pictures(present, decode, workers, progress)
    problems += [
        Problem("error", str(present[id]), f"unreadable picture: {reason}.", "", "unreadable image") for id, reason in reasons.items()
    ]
    if decode:
        for image_id, reason in check_arrays(inspection.arrays, workers, progress).items():
            reasons[image_id] = reason
            where, _, what = reason.partition(": ")
            problems.append(Problem("error", where, what, "", "unreadable image"))
    problems += _leaks(inspection)
    problems += _duplicates(inspection, digests, reasons)
    looked = inspection.images_root is not None
    counts = [
        {
            "category": summary.category,
            "split": summary.split,
            "pairs": summary.pairs,
            "gallery": summary.gallery,
            "references": summary.references,
            "missing": sum(inspection.paths.get(id) is None and id not in inspection.arrays for id in summary.image_ids)
            if looked
            else None,
            "unreadable": len(summary.image_ids & reasons.keys()) if looked else None,
        }
        for summary in inspection.splits
    ]
    problems.sort(key=lambda problem: problem.severity != "error")
    seconds = time.perf_counter() - started
    looked_at = len(present) + (len(inspection.arrays) if decode else 0)
    return CheckReport(inspection.kind, root, inspection.images_root, problems, counts, looked_at, seconds)


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _splits_of_ids(inspection: Inspection) -> dict[str, set[str]]:
    splits: dict[str, set[str]] = defaultdict(set)
    for summary in inspection.splits:
        for image_id in summary.image_ids:
            splits[image_id].add(summary.split)
    return splits


def _leaks(inspection: Inspection) -> list[Problem]:
    """Warnings about pictures that occur in more than one split."""
    shared: dict[tuple[str, str], list[str]] = defaultdict(list)
    for image_id, splits in _splits_of_ids(inspection).items():
        ordered = sorted(splits)
        for i, first in enumerate(ordered):
            for second in ordered[i + 1 :]:
                shared[first, second].append(image_id)
    return [
        Problem(
            "warning",
            f"splits {first} and {second}",
            f"{len(ids)} pictures occur in both ({_some(ids)}).",
            "A model trained on one has seen part of the other.",
            "splits overlap",
        )
        for (first, second), ids in sorted(shared.items())
    ]


def _duplicates(inspection: Inspection, digests: dict[str, str], reasons: dict[str, str]) -> list[Problem]:
    """One warning about groups of ids with byte-identical pictures."""
    copies = Counter(digest for id, digest in digests.items() if id not in reasons)
    groups: dict[str, list[str]] = defaultdict(list)
    for image_id, digest in digests.items():
        if copies[digest] > 1:
            groups[digest].append(image_id)
    if not groups:
        return []
    splits = _splits_of_ids(inspection)
    across = sum(len(set().union(*(splits[id] for id in ids))) > 1 for ids in groups.values())
    example = " = ".join(sorted(next(iter(groups.values())))[:3])
    what = f"{len(groups)} groups of ids ({sum(map(len, groups.values()))} ids) have byte-identical pictures, for instance {example}"
    what += f"; {across} of the groups span several splits." if across else "."
    fix = "A search that finds the other copy counts as a miss."
    return [Problem("warning", str(inspection.images_root), what, fix, "identical pictures")]
