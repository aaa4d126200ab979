"""An exact index in a folder: ids, memory-mapped embeddings and a manifest."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import atomic_write, check_id, hash_file, make_out_folder, read_json, write_json
from tf_fashion.retrieval.search import GALLERY_BLOCK, Precision, top_k

MANIFEST = "index.json"
FORMAT = "tf_fashion.exact_index"
VERSION = 1
_FILE = re.compile(r"^(embeddings\.[0-9a-f]{16}\.npy|ids\.[0-9a-f]{16}\.json)$")


class ExactIndex:
    """Finds the nearest of up to a few million embeddings by exact search.

    Rows are never moved: deleting leaves a tombstone, adding appends. `compact()` drops the tombstones.

    A saved index is a folder with `index.json` (the manifest), one `ids.<hash>.json` and one `embeddings.<hash>.npy`. Saving
    writes the data files under new names first and replaces the manifest last, so a reader sees the old index or the new one.

    Args:
        ids: One id per row, unique among rows that are not deleted.
        embeddings: (N, D) float16 or float32.
        deleted: bool (N,) or None.
        metric: "dot" (embeddings are expected as scored) or "cosine".
        notes: JSON-able facts to keep with the index (model hash, image spec).
    """

    def __init__(
        self,
        ids: Sequence[str],
        embeddings: np.ndarray,
        deleted: np.ndarray | None = None,
        metric: Literal["dot", "cosine"] = "dot",
        notes: dict[str, Any] | None = None,
    ) -> None:
        self.ids = list(ids)
        self.embeddings = embeddings
        self.deleted = np.zeros(len(self.ids), bool) if deleted is None else deleted
        self.metric = metric
        self.notes = dict(notes or {})
        self._row = {entry: row for row, entry in enumerate(self.ids) if not self.deleted[row]}

    @classmethod
    def build(
        cls,
        ids: Sequence[str],
        embeddings: Any,
        *,
        dtype: Literal["float16", "float32"] = "float32",
        metric: Literal["dot", "cosine"] = "dot",
        notes: dict[str, Any] | None = None,
    ) -> ExactIndex:
        """Makes an index.

        Args:
            ids: N unique ids (letters, digits, `_`, `.`, `-`).
            embeddings: (N, D) finite floats.
            dtype: How to keep them; float16 halves the file and rounds scores to about three digits.
            metric: "dot" or "cosine".
            notes: JSON-able facts to keep with the index.

        Raises:
            UsageError: shapes that do not fit, unknown dtype or metric.
            DataError: unusable or repeated ids, NaN or infinity.
        """
        if dtype not in ("float16", "float32"):
            raise UsageError(f"An index keeps float16 or float32, not {dtype!r}.")
        if metric not in ("dot", "cosine"):
            raise UsageError(f"Unknown metric {metric!r}. Known: dot, cosine.")
        names, rows = _checked(ids, embeddings, dtype, None)
        return cls(names, rows, metric=metric, notes=notes)

    def __len__(self) -> int:
        """Number of rows that can be found."""
        return len(self._row)

    def __contains__(self, entry: object) -> bool:
        return entry in self._row

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return int(self.embeddings.shape[1])

    def search(
        self,
        queries: Any,
        k: int,
        *,
        exclude_ids: Sequence[Sequence[str]] | None = None,
        chunk: int = GALLERY_BLOCK,
        precision: Precision = "float32",
    ) -> tuple[list[list[str]], np.ndarray]:
        """The k best ids of every query, best first; among equal scores the row added first.

        Args:
            queries: (Q, D) floats.
            k: How many; fewer come back if fewer are there.
            exclude_ids: Per query, ids not to return; unknown ids are allowed.
            chunk, precision: As in `top_k`.

        Returns:
            ids as Q lists of at most k names, and scores float32 (Q, w), w the longest list; shorter lists have -inf behind them.

        Raises:
            UsageError, DataError: as `top_k`.
        """
        exclude = None
        if exclude_ids is not None:
            rows = [[self._row[entry] for entry in entries if entry in self._row] for entries in exclude_ids]
            width = max([1, *map(len, rows)])
            exclude = np.array([row + [-1] * (width - len(row)) for row in rows], np.int64).reshape(len(rows), width)
        mask = ~self.deleted if self.deleted.any() else None
        scores, positions = top_k(
            queries, self.embeddings, k, chunk=chunk, exclude=exclude, mask=mask, metric=self.metric, precision=precision
        )
        names = [[self.ids[position] for position in row if position >= 0] for row in positions]
        return names, scores[:, : max(map(len, names), default=0)]

    def get(self, entry: str) -> np.ndarray:
        """The embedding float32 (D,) of an id.

        Raises:
            UsageError: no such id.
        """
        if entry not in self._row:
            raise UsageError(f"The index has no id {entry!r}.")
        return np.asarray(self.embeddings[self._row[entry]], np.float32)

    def add(self, ids: Sequence[str], embeddings: Any) -> None:
        """Appends rows; raises as `build`, also for an id that is already there (delete it first)."""
        names, rows = _checked(ids, embeddings, str(self.embeddings.dtype), self.dim)
        present = [entry for entry in names if entry in self._row]
        if present:
            raise DataError(f"{len(present)} id(s) are already in the index, for example {present[0]!r}. Delete them first.")
        start = len(self.ids)
        self.embeddings = np.concatenate([self.embeddings, rows])
        self.deleted = np.concatenate([self.deleted, np.zeros(len(names), bool)])
        self.ids += names
        self._row.update({entry: start + row for row, entry in enumerate(names)})

    def delete(self, ids: Sequence[str]) -> None:
        """Hides rows from every later search.

        Raises:
            UsageError: ids that are not in the index; then nothing is deleted.
        """
        names = [ids] if isinstance(ids, str) else list(dict.fromkeys(ids))
        unknown = [entry for entry in names if entry not in self._row]
        if unknown:
            raise UsageError(f"{len(unknown)} id(s) are not in the index, for example {unknown[0]!r}. Nothing was deleted.")
        self.deleted = self.deleted.copy()
        for entry in names:
            self.deleted[self._row.pop(entry)] = True

    def compact(self) -> None:
        """Drops deleted rows; the order of the others stays."""
        live = np.flatnonzero(~self.deleted)
        self.embeddings = np.asarray(self.embeddings)[live]
        self.ids = [self.ids[row] for row in live]
        self.deleted = np.zeros(len(live), bool)
        self._row = {entry: row for row, entry in enumerate(self.ids)}

    def save(self, folder: str | Path) -> Path:
        """Writes the index; an index that is already there is replaced as a whole.

        Raises:
            UsageError: the folder cannot be written.
            DataError: the disk is full.
        """
        folder = make_out_folder(folder)
        files: dict[str, dict[str, Any]] = {}
        for kind, suffix in (("ids", "json"), ("embeddings", "npy")):
            draft = folder / f"{kind}.draft.{suffix}"
            try:
                if kind == "ids":
                    write_json(draft, self.ids)
                else:
                    with atomic_write(draft, "wb") as file:
                        np.lib.format.write_array(file, np.ascontiguousarray(self.embeddings), allow_pickle=False)
                digest = hash_file(draft)
                name = f"{kind}.{digest[:16]}.{suffix}"
                draft.replace(folder / name)
            finally:
                draft.unlink(missing_ok=True)
            files[kind] = {"name": name, "sha256": digest, "bytes": (folder / name).stat().st_size}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "rows": len(self.ids),
            "dim": self.dim,
            "dtype": str(self.embeddings.dtype),
            "metric": self.metric,
            "deleted": np.flatnonzero(self.deleted).tolist(),
            "files": files,
            "notes": self.notes,
        }
        write_json(folder / MANIFEST, manifest)
        current = {entry["name"] for entry in files.values()}
        for path in folder.iterdir():
            if _FILE.match(path.name) and path.name not in current:
                with contextlib.suppress(OSError):
                    path.unlink()
        return folder

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool = False) -> ExactIndex:
        """Opens a saved index; embeddings stay on disk and are mapped into memory.

        Args:
            folder: As given to `save`.
            verify: Also compare the SHA-256 of both data files, which reads them whole.

        Raises:
            DataError: no index there, or manifest and files do not fit each other.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        manifest = read_json(path)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise DataError(f"{path}: expected the manifest of an exact index (format {FORMAT!r}). Build the index again.")
        if manifest.get("version") != VERSION:
            raise DataError(f"{path}: version {manifest.get('version')!r} of the format is not known here (expected {VERSION}).")
        rows, dim, dtype = (manifest.get(key) for key in ("rows", "dim", "dtype"))
        sizes_ok = all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in (rows, dim))
        if not sizes_ok or dtype not in ("float16", "float32") or manifest.get("metric") not in ("dot", "cosine"):
            raise DataError(f"{path}: rows, dim, dtype or metric are missing or not usable. Build the index again.")
        ids = read_json(_data_file(folder, manifest, "ids", verify))
        embeddings_path = _data_file(folder, manifest, "embeddings", verify)
        try:
            embeddings = np.load(embeddings_path, mmap_mode="r" if rows and dim else None, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{embeddings_path}: not a readable .npy file ({error}). Build the index again.") from None
        if not isinstance(embeddings, np.ndarray) or embeddings.shape != (rows, dim) or str(embeddings.dtype) != dtype:
            found = f"{getattr(embeddings, 'dtype', type(embeddings).__name__)} {getattr(embeddings, 'shape', '')}"
            raise DataError(f"{embeddings_path}: expected {dtype} ({rows}, {dim}) as {path} says, found {found}.")
        if not isinstance(ids, list) or len(ids) != rows:
            raise DataError(f"{path}: expected {rows} ids, found {len(ids) if isinstance(ids, list) else type(ids).__name__}.")
        for entry in ids:
            check_id(entry, str(path))
        tombstones = manifest.get("deleted")
        if not isinstance(tombstones, list) or not all(type(row) is int and 0 <= row < rows for row in tombstones):
            raise DataError(f"{path}: 'deleted' must list rows below {rows}.")
        deleted = np.zeros(rows, bool)
        deleted[tombstones] = True
        notes = manifest.get("notes")
        index = cls(ids, embeddings, deleted, manifest["metric"], notes if isinstance(notes, dict) else None)
        if len(index) != int((~deleted).sum()):
            raise DataError(f"{path}: the same id is listed for several rows.")
        return index


def _data_file(folder: Path, manifest: dict[str, Any], kind: str, verify: bool) -> Path:
    files = manifest.get("files")
    entry = files.get(kind) if isinstance(files, dict) else None
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(name, str) or not _FILE.match(name) or not name.startswith(kind):
        raise DataError(f"{folder / MANIFEST}: no usable entry for the {kind} file. Build the index again.")
    path = folder / name
    if not path.is_file():
        raise DataError(f"{path}: the manifest names this file, but it is missing. Copy the whole folder or build it again.")
    if path.stat().st_size != entry.get("bytes"):
        raise DataError(f"{path}: expected {entry.get('bytes')} bytes, found {path.stat().st_size}. The file is damaged or cut off.")
    if verify and hash_file(path) != entry.get("sha256"):
        raise DataError(f"{path}: the content does not match the manifest's SHA-256. The file is damaged.")
    return path


def _checked(ids: Sequence[str], embeddings: Any, dtype: str, dim: int | None) -> tuple[list[str], np.ndarray]:
    names = [check_id(entry, f"index row {row}") for row, entry in enumerate(ids)]
    rows = np.asarray(embeddings)
    if rows.ndim != 2 or len(rows) != len(names) or (dim is not None and rows.shape[1] != dim):
        expected = f"({len(names)}, {dim if dim is not None else 'width'})"
        raise UsageError(f"embeddings must be {expected}, one row per id; got shape {rows.shape}.")
    if len(set(names)) != len(names):
        seen: set[str] = set()
        repeated = next(entry for entry in names if entry in seen or seen.add(entry))  # type: ignore[func-returns-value]
        raise DataError(f"The id {repeated!r} is given more than once.")
    if rows.dtype.kind not in "fiu":
        raise UsageError(f"embeddings must hold numbers, got dtype {rows.dtype}.")
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(rows, dtype=dtype)
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise DataError(f"{len(bad)} embedding(s) are NaN, infinite or too large for {dtype}, the first for id {names[bad[0]]!r}.")
    return names, rows
