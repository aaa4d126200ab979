"""Score files: how well every gallery entry answers every query, with ids and protocol, read through a memory map.

DIR/scores.json       protocol, model, scale, and per category the queries and gallery ids in the order of rows and columns
DIR/CATEGORY.npy      float16 or float32 (queries, gallery), C order
"""

from __future__ import annotations

import math
import os
import shutil
import tokenize
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import check_id, make_out_folder, read_json, write_json
from tf_fashion.retrieval.protocol import Answers, Protocol, answers_of, excluded_positions

MANIFEST = "scores.json"
FORMAT = "tf_fashion scores"
VERSION = 1
DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class ScoredQuery:
    """One row of a score matrix.

    Attributes:
        id: Unique within the file; `SPLIT_CATEGORY_REFERENCE_ROW` as the FashionIQ 2020 entry names its queries.
        reference: Image id.
        target: Image id, None where the split keeps it secret.
        captions: The captions as they stand in the dataset.
    """

    id: str
    reference: str
    target: str | None
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class CategoryScores:
    """The scores of one category.

    Attributes:
        category: Its name.
        queries: One per row.
        gallery: Image id of each column.
        scores: float16 or float32 (queries, gallery), usually a read-only memory map.
        labels: Image id -> label where several entries can be right, else None.
    """

    category: str
    queries: list[ScoredQuery]
    gallery: list[str]
    scores: np.ndarray = field(repr=False)
    labels: Mapping[str, str] | None = None

    @property
    def has_targets(self) -> bool:
        """Whether every query has a target."""
        return all(query.target is not None for query in self.queries)

    def read(self, rows: slice) -> np.ndarray:
        """float32 (rows, gallery), read from the file: pages of a memory map would count as this process' memory."""
        scores, name = self.scores, getattr(self.scores, "filename", None)
        if not isinstance(scores, np.memmap) or name is None or scores.mode != "r":
            return np.array(scores[rows], np.float32)
        count, width = len(range(*rows.indices(len(scores)))), scores.shape[1]
        offset = scores.offset + rows.start * width * scores.itemsize
        return np.fromfile(name, scores.dtype, count * width, offset=offset).reshape(count, width).astype(np.float32, copy=False)

    def answers(self, protocol: Protocol) -> Answers:
        """Right answers and excluded entries; see `retrieval.protocol.answers_of`."""
        references = [query.reference for query in self.queries]
        labels = self.labels if protocol.hit == "any" else None
        return answers_of(self.gallery, [str(query.target) for query in self.queries], references, protocol, labels)

    def excluded(self, protocol: Protocol) -> np.ndarray | None:
        """Gallery positions that queries must not find, int64 (Q, m) with -1 for "none"; None if nothing is removed."""
        if protocol.reference != "removed":
            return None
        places: dict[str, list[int]] = {}
        for position, entry in enumerate(self.gallery):
            places.setdefault(entry, []).append(position)
        return excluded_positions(places, [query.reference for query in self.queries])


@dataclass(frozen=True)
class ScoreFile:
    """A folder of scores, opened.

    Attributes:
        folder: Where it is.
        name: Name of the model.
        protocol: What the scores are for.
        scale: Factor of the scores in the model's own loss (the square of its learned norm); stored scores are cosines if it is
            not None, and plain scores of unknown scale if it is.
        categories: Name -> scores.
        run: What is known about the model.
    """

    folder: Path
    name: str
    protocol: Protocol
    scale: float | None
    categories: dict[str, CategoryScores]
    run: dict[str, Any] = field(default_factory=dict)

    @property
    def has_targets(self) -> bool:
        """Whether every query has a target."""
        return all(part.has_targets for part in self.categories.values())


def open_scores(folder: str | Path) -> ScoreFile:
    """Opens a folder that `ScoreWriter` wrote; scores are mapped, not read.

    Raises:
        UsageError: no such folder, or no score file in it.
        DataError: the manifest is damaged or of another version; a category without queries or gallery, or with ids that repeat; a
            matrix is missing, cut short, or has another shape than its ids.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        found = "no such folder" if not folder.is_dir() else f"there is no {MANIFEST}"
        raise UsageError(f"{folder}: {found}. Score files are folders made by: tf-fashion scores --model FILE --data DIR --out DIR")
    manifest = read_json(path)
    try:
        if manifest["format"] != FORMAT or manifest["version"] != VERSION:
            raise DataError(f"{path}: expected '{FORMAT}' version {VERSION}, found {manifest['format']!r} {manifest['version']!r}.")
        protocol = Protocol.from_config(manifest["protocol"])
        scale = None if manifest["scale"] is None else float(_of(manifest["scale"], (int, float), "scale"))
        if scale is not None and not 0 < scale < math.inf:
            raise ValueError(f"scale: expected a positive number, found {scale}")
        name, run = _of(manifest["name"], str, "name"), _of(manifest["run"], dict, "run")
        categories = {
            category: _read_category(path, category, part, protocol)
            for category, part in _of(manifest["categories"], dict, "categories").items()
        }
    except DataError:
        raise
    except KeyError as error:
        raise DataError(f"{path}: not a score file (the key {error} is missing). Export the scores again.") from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{path}: not a score file ({error}). Export the scores again.") from None
    if not categories:
        raise DataError(f"{path}: there is no category in it. Export the scores again.")
    return ScoreFile(folder, name, protocol, scale, categories, run)


def _read_category(path: Path, category: str, part: dict[str, Any], protocol: Protocol) -> CategoryScores:
    check_id(category, f"{path}, name of a category")
    queries = []
    for row, query in enumerate(_of(part["queries"], list, f"{category}, queries")):
        where = f"{category}, query {row}"
        name, reference = (_of(query[key], str, f"{where}, {key}") for key in ("id", "reference"))
        target = _of(query["target"], (str, type(None)), f"{where}, target")
        queries.append(ScoredQuery(name, reference, target, tuple(_strings(query["captions"], f"{where}, captions"))))
    gallery = _strings(part["gallery"], f"{category}, gallery")
    for what, ids in (("queries", [query.id for query in queries]), ("gallery", gallery)):
        if not ids:
            raise DataError(f"{path}: the category {category!r} has no {what}. Export the scores again, or without that category.")
        if len(set(ids)) < len(ids) and (what == "queries" or protocol.hit == "id"):
            twice = Counter(ids).most_common(1)[0][0]
            raise ValueError(f"{category}, {what}: the id {twice!r} stands there more than once")
    labels = part.get("labels")
    if labels is not None:
        _strings(list(_of(labels, dict, f"{category}, labels").values()), f"{category}, labels")
        without = [entry for entry in [*gallery, *_targets(queries)] if entry not in labels]
        if without:
            raise ValueError(f"{category}, labels: none for {without[0]!r}")
    matrix = _map_matrix(path.with_name(f"{category}.npy"), (len(queries), len(gallery)))
    return CategoryScores(category, queries, gallery, matrix, labels)


def _of(value: Any, kind: type | tuple[type, ...], where: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise TypeError(f"{where}: expected {wanted}, found {type(value).__name__}")
    return value


def _strings(value: Any, where: str) -> list[str]:
    for entry in _of(value, list, where):
        _of(entry, str, where)
    return value


def _map_matrix(path: Path, shape: tuple[int, int]) -> np.ndarray:
    again = "Export the scores again."
    if not path.is_file():
        raise DataError(f"{path}: missing, although {MANIFEST} lists the category. {again}")
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            found, fortran, dtype = read(file)
            start = file.tell()
    except (ValueError, OSError, EOFError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError) as error:
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise DataError(f"{path}: not a NumPy file of scores ({reason}). {again}") from None
    if found != shape or fortran or dtype.name not in DTYPES:
        kind = f"{dtype} {found}{' in Fortran order' if fortran else ''}"
        raise DataError(f"{path}: expected {' or '.join(DTYPES)} {shape} as its ids say, found {kind}. {again}")
    wanted, there = start + shape[0] * shape[1] * dtype.itemsize, path.stat().st_size
    if there != wanted:
        problem = "cut short" if there < wanted else "too long"
        raise DataError(f"{path}: {problem}: expected {wanted} bytes for {shape[0]} x {shape[1]} {dtype}, found {there}. {again}")
    return np.load(path, mmap_mode="r", allow_pickle=False)


class ScoreWriter:
    """Writes a score file category by category, into a temporary folder that takes its name when the block ends well.

        with ScoreWriter(folder, name, protocol, scale) as writer:
            matrix = writer.category("dress", queries, gallery)
            matrix[rows] = scores

    Args:
        folder: The folder; must not exist, unless it is an older score file and `overwrite` is on.
        name: Name of the model.
        protocol: What the scores are for.
        scale: See `ScoreFile`.
        run: What is known about the model.
        dtype: "float32" or "float16". Half precision keeps about three digits: among thousands of entries neighbours may tie.
        overwrite: Whether an older score file is replaced.

    Raises:
        UsageError: the folder holds something, or an unknown dtype.
        DataError: the disk is full, a category's name cannot be a file's, or a category has no queries or no gallery.
    """

    def __init__(
        self,
        folder: str | Path,
        name: str,
        protocol: Protocol,
        scale: float | None,
        run: Mapping[str, Any] | None = None,
        dtype: str = "float32",
        overwrite: bool = False,
    ) -> None:
        self.folder = Path(folder)
        refuse_unknown_dtype(dtype)
        refuse_existing(self.folder, overwrite)
        self._dtype = dtype
        self._manifest: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "name": name,
            "protocol": {**protocol.to_config(), "fingerprint": protocol.fingerprint, "description": protocol.describe()},
            "scale": scale,
            "run": dict(run or {}),
            "categories": {},
        }
        self._temporary = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.tmp")

    def __enter__(self) -> ScoreWriter:
        make_out_folder(self.folder.parent)
        shutil.rmtree(self._temporary, ignore_errors=True)
        make_out_folder(self._temporary)
        return self

    def category(
        self, name: str, queries: Sequence[ScoredQuery], gallery: Sequence[str], labels: Mapping[str, str] | None = None
    ) -> np.ndarray:
        """Adds a category; returns the matrix (queries, gallery) to fill."""
        check_id(name, "the category of a score file")
        if not queries or not gallery:
            raise DataError(f"{self.folder}: the category {name!r} has {len(queries)} queries and {len(gallery)} gallery entries.")
        self._manifest["categories"][name] = {
            "queries": [asdict(query) for query in queries],
            "gallery": list(gallery),
            "labels": None if labels is None else {entry: labels[entry] for entry in dict.fromkeys([*gallery, *_targets(queries)])},
        }
        path, shape = self._temporary / f"{name}.npy", (len(queries), len(gallery))
        needed = shape[0] * shape[1] * np.dtype(self._dtype).itemsize
        if shutil.disk_usage(self._temporary).free < needed:
            raise DataError(f"{self.folder}: the scores of {name!r} need {needed / 1e6:.0f} MB, the disk has less. Free some space.")
        return np.lib.format.open_memmap(path, "w+", self._dtype, shape)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            return
        try:
            write_json(self._temporary / MANIFEST, self._manifest)
            former = self._temporary.with_suffix(".old")
            if self.folder.is_dir():
                os.replace(self.folder, former)
            os.replace(self._temporary, self.folder)
            shutil.rmtree(former, ignore_errors=True)
        except BaseException:
            shutil.rmtree(self._temporary, ignore_errors=True)
            raise


def refuse_unknown_dtype(dtype: str) -> None:
    """Raises `UsageError` for a dtype that scores are not stored in."""
    if dtype not in DTYPES:
        raise UsageError(f"--dtype: expected {' or '.join(DTYPES)}, found {dtype!r}.")


def refuse_existing(folder: Path, overwrite: bool) -> None:
    """Makes sure that a score file can be written to `folder`.

    Raises:
        UsageError: it holds an older one and `overwrite` is off, or it holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: expected a folder for the scores, found a file.")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MANIFEST).is_file():
            raise UsageError(f"{folder}: expected a new folder for the scores, found one with other files in it. Choose another name.")
        if not overwrite:
            raise UsageError(f"{folder}: there are scores already. Pass --overwrite to replace them, or choose another folder.")


def _targets(queries: Iterable[ScoredQuery]) -> list[str]:
    return [query.target for query in queries if query.target is not None]


def check_together(members: Sequence[ScoreFile]) -> None:
    """Makes sure that score files rank the same galleries for the same queries, in one order.

    Raises:
        UsageError: fewer than one member, or other protocols.
        DataError: a category is missing, or queries or galleries differ; the message names file, category and first difference.
    """
    if not members:
        raise UsageError("An ensemble needs score files; make them with: tf-fashion scores")
    first = members[0]
    for other in members[1:]:
        if other.protocol.fingerprint != first.protocol.fingerprint:
            raise UsageError(
                f"Scores of different protocols cannot be fused: {first.folder} is [{first.protocol.describe()}], {other.folder} is "
                f"[{other.protocol.describe()}]. Export both under one protocol."
            )
        for one, two in ((first, other), (other, first)):
            missing = [name for name in one.categories if name not in two.categories]
            if missing:
                raise DataError(f"{two.folder}: the categories {', '.join(missing)} are missing, which {one.folder} has.")
        for name, part in first.categories.items():
            mine = other.categories[name]
            pairs = [("gallery", part.gallery, mine.gallery)]
            for what, key in (("queries", "id"), ("references", "reference"), ("targets", "target")):
                pairs.append((what, *([str(getattr(query, key)) for query in side.queries] for side in (part, mine))))  # type: ignore[arg-type]
            if first.protocol.hit == "any":
                pairs.append(("labels", *([str((side.labels or {}).get(entry)) for entry in part.gallery] for side in (part, mine))))  # type: ignore[arg-type]
            for what, ours, theirs in pairs:
                _refuse_difference(f"{other.folder}, {name}", what, ours, theirs, str(first.folder))


def _refuse_difference(where: str, what: str, ours: Sequence[str], theirs: Sequence[str], reference: str) -> None:
    if list(ours) == list(theirs):
        return
    if sorted(ours) == sorted(theirs):
        how = "the same ids in another order"
    else:
        extra, lacking = (len(set(a) - set(b)) for a, b in ((theirs, ours), (ours, theirs)))
        how = f"{len(theirs)} ids instead of {len(ours)} ({extra} of them unknown there, {lacking} missing)"
    place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    shown = [ids[place] if place < len(ids) else "nothing" for ids in (ours, theirs)]
    raise DataError(
        f"{where}: the {what} differ from those of {reference}: {how}; first at position {place}: expected {shown[0]!r}, found "
        f"{shown[1]!r}. Export the scores of all members from the same data."
    )
