"""Embeddings with ids in files: FashionKLIP's JSON lines, `.npz`, and the folder of an index (no TensorFlow needed for the first two).

JSON lines: `{"image_id": "15", "feature": [..]}` for pictures and `{"query_id": 15, "feature": [..]}` for texts, one a line. Numbers
are written with all digits that a float32 has, so that reading gives the same float32.

`.npz`: the arrays `ids` (N,), of integers or strings, and `embeddings` (N, D), float16 or float32.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from tqdm import tqdm

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import atomic_write
from tf_fashion.datasets.json_lines import read_lines
from tf_fashion.inputs.arrays import read_npz

Key = Literal["image_id", "query_id"]
KEYS: tuple[Key, ...] = ("image_id", "query_id")
_BLOCK = 4096


@dataclass(frozen=True)
class FeatureFile:
    """Embeddings with their ids, in file order.

    Attributes:
        ids: N different ids, all strings or all integers.
        values: float32 (N, D), finite.
        key: What the ids belong to, as the file says; None where it does not (`.npz`, index).
        path: Where they come from, for messages.
    """

    ids: list[str] | list[int]
    values: np.ndarray = field(repr=False)
    key: Key | None = None
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return int(self.values.shape[1])

    @property
    def names(self) -> list[str]:
        """The ids as strings."""
        return [str(entry) for entry in self.ids]


def read_feature_file(path: str | Path, key: Key | None = None, progress: bool = False) -> FeatureFile:
    """Reads embeddings from a `.jsonl` or `.npz` file, or from the folder of an index.

    JSON lines are read one by one into one array, so that memory stays near that of the result.

    Args:
        path: The file or folder.
        key: "image_id" or "query_id" where only that is right; None takes either.
        progress: Whether to show a progress bar.

    Raises:
        UsageError: no such file, or one with another ending.
        DataError: damaged lines, other keys, ids of other types or repeated ones, rows of different widths, NaN or infinity, no rows;
            the message names the line (or row).
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path}: no such file. Expected features: a .jsonl or .npz file, or the folder of an index.")
    if path.is_dir():
        return _read_index(path)
    if path.suffix == ".npz":
        return _read_npz_features(path)
    if path.suffix in (".jsonl", ".json", ".txt"):
        return _read_jsonl(path, key, progress)
    raise UsageError(f"{path}: features are read from .jsonl and .npz files and from folders of an index, not from {path.suffix!r}.")


class FeatureWriter:
    """Writes JSON lines of embeddings piece by piece; the file takes its place when the `with` block ends well.

    Args:
        path: A `.jsonl` file; an older one is replaced.
        key: "image_id" (ids are written as strings) or "query_id" (integers, which FashionKLIP's own programs insist on, or strings).
    """

    def __init__(self, path: str | Path, key: Key) -> None:
        if key not in KEYS:
            raise UsageError(f"Features belong to image_id or query_id, not to {key!r}.")
        self.path = Path(path)
        self.key = key
        self._manager: Any = None
        self._file: IO[str] | None = None

    def __enter__(self) -> FeatureWriter:
        self._manager = atomic_write(self.path)
        self._file = self._manager.__enter__()
        return self

    def __exit__(self, *details: Any) -> bool | None:
        return self._manager.__exit__(*details)

    def append(self, ids: Iterable[Any], values: np.ndarray) -> None:
        """Adds rows.

        Raises:
            DataError: an id that the key does not allow, or NaN or infinity.
        """
        rows = np.asarray(values, np.float32)
        for entry, row in zip(ids, rows, strict=True):
            if not np.isfinite(row).all():
                raise DataError(f"The features of {self.key} {entry!r} are not finite numbers; {self.path} was not written.")
            line = {self.key: _written_id(entry, self.key), "feature": row.tolist()}
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")  # type: ignore[union-attr]


def write_feature_file(
    path: str | Path,
    ids: Sequence[Any],
    values: np.ndarray,
    key: Key,
    dtype: Literal["float16", "float32"] = "float32",
    progress: bool = False,
) -> Path:
    """Writes embeddings as `.jsonl` or `.npz`, by the ending of `path`; an older file is replaced.

    Args:
        path: The file.
        ids: N ids.
        values: (N, D) floats.
        key: "image_id" or "query_id".
        dtype: Of the `.npz`; float16 halves the file and keeps about three digits.
        progress: Whether to show a progress bar (JSON lines).

    Raises:
        UsageError: another ending, dtype or shape.
        DataError: ids that the key does not allow or that repeat, NaN or infinity.
    """
    path = Path(path)
    rows = np.asarray(values)
    if rows.ndim != 2 or len(rows) != len(ids):
        raise UsageError(f"Features must be ({len(ids)}, width), one row per id; got shape {rows.shape}.")
    if dtype not in ("float16", "float32"):
        raise UsageError(f"Features are kept as float16 or float32, not {dtype!r}.")
    names = [_written_id(entry, key) for entry in ids]
    if len({type(entry) for entry in names}) > 1:
        names = [str(entry) for entry in names]
    _refuse_repeats(names, str(path))
    if path.suffix == ".jsonl":
        with FeatureWriter(path, key) as writer, tqdm(total=len(names), desc=f"writing {path.name}", disable=not progress) as bar:
            for start in range(0, len(names), _BLOCK):
                writer.append(names[start : start + _BLOCK], rows[start : start + _BLOCK])
                bar.update(len(names[start : start + _BLOCK]))
        return path
    if path.suffix != ".npz":
        raise UsageError(f"{path}: features are written as .jsonl or .npz, not as {path.suffix!r}.")
    with np.errstate(over="ignore"):
        kept = rows.astype(dtype)
    if not np.isfinite(kept).all():
        raise DataError(f"Some features are not finite in {dtype}; {path} was not written.")
    with atomic_write(path, "wb") as file:
        np.savez(file, ids=np.array(names), embeddings=kept)
    return path


def checked_id(value: Any, where: str) -> str | int:
    """An id of a JSON line: a string that is not empty, or an integer.

    Raises:
        DataError: anything else.
    """
    if (isinstance(value, str) and value) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise DataError(f"{where}: an id is a string that is not empty or an integer; found {value!r}.")


def _read_jsonl(path: Path, key: Key | None, progress: bool) -> FeatureFile:
    ids: list[Any] = []
    first_place: dict[Any, str] = {}
    with open(path, "rb") as file:
        # The first line tells about how many there will be; the array grows if it was wrong.
        expected = path.stat().st_size // max(len(file.readline()), 1) + 16
    values = np.empty((0, 0), np.float32)
    found = key
    with tqdm(total=expected - 16, desc=f"reading {path.name}", unit="row", disable=not progress) as bar:
        for number, entry in read_lines(path):
            where = f"{path}, line {number}"
            if found is None:
                found = next((name for name in KEYS if name in entry), None)
            if found is None or found not in entry or "feature" not in entry:
                keys = found or "image_id or query_id"
                raise DataError(f"{where}: expected the keys {keys} and feature, found {', '.join(entry) or 'none'}.")
            name = checked_id(entry[found], where)
            if ids and type(name) is not type(ids[0]):
                raise DataError(f"{where}: {found} is {name!r}, but {ids[0]!r} in the first line: use strings or integers, not both.")
            if name in first_place:
                raise DataError(f"{where}: {found} {name!r} is in the file already ({first_place[name]}).")
            row = _row(entry["feature"], where)
            if not ids:
                values = np.empty((expected, len(row)), np.float32)
            elif len(row) != values.shape[1]:
                raise DataError(f"{where}: {len(row)} numbers, but {values.shape[1]} in the first line.")
            if len(ids) == len(values):
                values.resize((len(values) + len(values) // 8 + 16, values.shape[1]), refcheck=False)
            values[len(ids)] = row
            first_place[name] = f"line {number}"
            ids.append(name)
            bar.update()
    if not ids:
        raise DataError(f"{path}: there are no features in this file.")
    values.resize((len(ids), values.shape[1]), refcheck=False)
    return FeatureFile(ids, values, found, path)


def _row(feature: Any, where: str) -> np.ndarray:
    if not isinstance(feature, list) or not feature:
        raise DataError(f"{where}: feature must be a list of numbers, found {str(feature)[:40]!r}.")
    try:
        row = np.array(feature)
    except ValueError:
        row = np.array(None)
    if row.ndim != 1 or row.dtype.kind not in "fiu":
        raise DataError(f"{where}: feature must be a list of numbers; some entries are not.")
    with np.errstate(over="ignore"):
        row = row.astype(np.float32)
    if not np.isfinite(row).all():
        raise DataError(f"{where}: feature has NaN, infinite or too large numbers at {np.flatnonzero(~np.isfinite(row))[:5].tolist()}.")
    return row


def _read_npz_features(path: Path) -> FeatureFile:
    ids, values = read_npz(path, "ids", "embeddings")
    if values.ndim != 2 or ids.shape != values.shape[:1] or values.dtype.kind != "f" or ids.dtype.kind not in "iuU":
        raise DataError(
            f"{path}: expected ids (N,) of strings or integers and floating embeddings (N, D), found {ids.dtype} {ids.shape} and "
            f"{values.dtype} {values.shape}."
        )
    names = ids.tolist()
    _refuse_repeats(names, str(path))
    if not names:
        raise DataError(f"{path}: there are no features in this file.")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32, copy=False)
    for start in range(0, len(values), _BLOCK):
        bad = np.flatnonzero(~np.isfinite(values[start : start + _BLOCK]).all(axis=1))
        if len(bad):
            raise DataError(f"{path}: row {start + bad[0]} (id {names[start + bad[0]]!r}) has NaN, infinite or too large numbers.")
    return FeatureFile(names, values, None, path)


def _read_index(path: Path) -> FeatureFile:
    from tf_fashion.retrieval.index import ExactIndex

    index = ExactIndex.load(path)
    if not len(index):
        raise DataError(f"{path}: the index is empty.")
    index.compact()
    return FeatureFile(index.ids, np.asarray(index.embeddings, np.float32), None, path)


def _written_id(entry: Any, key: str) -> str | int:
    if isinstance(entry, np.generic):
        entry = entry.item()
    if key == "image_id" and isinstance(entry, int) and not isinstance(entry, bool):
        entry = str(entry)
    return checked_id(entry, key)


def _refuse_repeats(ids: Sequence[Any], where: str) -> None:
    if len(set(ids)) < len(ids):
        seen: set[Any] = set()
        repeated = next(entry for entry in ids if entry in seen or seen.add(entry))  # type: ignore[func-returns-value]
        raise DataError(f"{where}: the id {repeated!r} is there more than once.")
