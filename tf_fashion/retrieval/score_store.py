"""Label scores of a catalogue in a file: logits, embeddings, ids, and which model and labels they belong to (no TensorFlow needed).

An `.npz` with the arrays

| name | content |
|---|---|
| `scores` | logits float32 (n, L) |
| `image_ids` | n different strings |
| `label_ids` | int64 (L,), ids of the labels in the order of the columns |
| `labels` | the label map as JSON |
| `fingerprint` | the model's fingerprint, a string |
| `exclusive` | names of the tasks whose labels exclude each other |
| `embeddings` | float32 (n, D), if the model has them |
| `paths` | n paths of the pictures, relative to a folder that the reader knows, if given |
| `digests` | n hashes of the pictures' bytes, if given |

The original program keeps a bare matrix without ids; `ScoreStore.read` takes such a matrix together with a list of ids.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import atomic_write, make_out_folder, path_inside
from tf_fashion.datasets.labels import LabelMap
from tf_fashion.inputs.arrays import read_arrays

PART_ROWS = 512
_NEEDED = ("scores", "image_ids", "label_ids", "labels", "fingerprint")
_OPTIONAL = ("exclusive", "embeddings", "paths", "digests")
_BLOCK = 4096


@dataclass(frozen=True, eq=False)
class ScoreStore:
    """Scores of pictures, a row each.

    Attributes:
        scores: Logits float32 (n, L), finite.
        image_ids: n different names.
        label_map: The labels of the columns.
        fingerprint: Which model made them; "" if that is not known.
        embeddings: float32 (n, D), finite; None if there are none.
        paths: Paths of the pictures with "/", relative to a folder that the reader knows, "" where there is none; None for no paths.
        digests: Hashes of the pictures' bytes, "" where not known (`inputs.feature_cache.photo_digests`); None for no hashes.
        exclusive: Tasks whose logits go through a softmax.

    Raises:
        UsageError: shapes that do not fit, tasks that the label map does not have.
        DataError: repeated or empty ids, NaN or infinity, paths that lead elsewhere.
    """

    scores: np.ndarray = field(repr=False)
    image_ids: tuple[str, ...] = field(repr=False)
    label_map: LabelMap = field(repr=False)
    fingerprint: str = ""
    embeddings: np.ndarray | None = field(default=None, repr=False)
    paths: tuple[str, ...] | None = field(default=None, repr=False)
    digests: tuple[str, ...] | None = field(default=None, repr=False)
    exclusive: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_ids", tuple(self.image_ids))
        object.__setattr__(self, "exclusive", tuple(self.exclusive))
        count = len(self.image_ids)
        matrices = {"scores": (self.scores, len(self.label_map)), "embeddings": (self.embeddings, None)}
        for name, (value, width) in matrices.items():
            if value is None:
                continue
            object.__setattr__(self, name, _matrix(value, name, count, width))
        for name in ("paths", "digests"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(value))
                if len(value) != count:
                    raise UsageError(f"{name} must have one entry per row ({count}), got {len(value)}.")
        _check_ids(self.image_ids)
        unknown = [task for task in self.exclusive if task not in self.label_map.tasks]
        if unknown:
            raise UsageError(f"exclusive: the label map has no task {', '.join(unknown)}; it has {', '.join(self.label_map.tasks)}.")
        for path in self.paths or ():
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise DataError(f"The path {path!r} leads outside the folder of the pictures; paths are relative to it.")
        for name in ("scores", "embeddings"):
            _check_finite(getattr(self, name), name, self.image_ids)
        object.__setattr__(self, "_rows", {entry: row for row, entry in enumerate(self.image_ids)})

    def __len__(self) -> int:
        return len(self.image_ids)

    def rows(self, image_ids: Iterable[str]) -> np.ndarray:
        """Row numbers of ids, int64.

        Raises:
            DataError: ids that are not there.
        """
        wanted = list(image_ids)
        known: dict[str, int] = self._rows  # type: ignore[attr-defined]
        absent = [entry for entry in wanted if entry not in known]
        if absent:
            shown = ", ".join(map(repr, absent[:5])) + (", ..." if len(absent) > 5 else "")
            raise DataError(f"{len(absent)} of {len(wanted)} ids have no scores: {shown}.")
        return np.array([known[entry] for entry in wanted], np.int64)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._rows  # type: ignore[attr-defined]

    def take(self, rows: Any) -> ScoreStore:
        """A store of some rows (positions or a mask), in their order."""
        wanted = np.asarray(rows)
        rows = np.arange(len(self))[wanted if wanted.size else wanted.astype(np.int64)].reshape(-1)

        def some(values: tuple[str, ...] | None) -> tuple[str, ...] | None:
            return None if values is None else tuple(values[row] for row in rows)

        return replace(
            self,
            scores=self.scores[rows],
            image_ids=some(self.image_ids) or (),
            embeddings=None if self.embeddings is None else self.embeddings[rows],
            paths=some(self.paths),
            digests=some(self.digests),
        )

    def picture_paths(self, root: str | Path) -> dict[str, Path]:
        """Image id -> file below `root`, for the rows that have a path."""
        root = Path(root)
        pairs = zip(self.image_ids, self.paths or (), strict=bool(self.paths))
        return {entry: path_inside(root, path, f"picture {entry!r}") for entry, path in pairs if path}

    def require_like(self, other: ScoreStore, what: str = "the queries") -> None:
        """Refuses to compare scores of other labels or of another model.

        Raises:
            DataError: other labels, another model (where both are known), other exclusive tasks, or embeddings of another width.
        """
        _same_labels(self.label_map, other.label_map, what)
        if self.fingerprint and other.fingerprint and self.fingerprint != other.fingerprint:
            raise DataError(
                f"Scores of two models cannot be compared: the catalogue's come from the model {self.fingerprint[:12]}, those of "
                f"{what} from {other.fingerprint[:12]}. Compute both with one model."
            )
        if set(self.exclusive) != set(other.exclusive):
            raise DataError(
                f"The catalogue's exclusive tasks are {', '.join(self.exclusive) or 'none'}, those of {what} "
                f"{', '.join(other.exclusive) or 'none'}. Compute both with one model."
            )
        widths = [None if store.embeddings is None else store.embeddings.shape[1] for store in (self, other)]
        if None not in widths and widths[0] != widths[1]:
            raise DataError(f"The catalogue's embeddings have {widths[0]} numbers, those of {what} {widths[1]}.")

    def write(self, path: str | Path) -> Path:
        """Writes the `.npz`; an older file is replaced.

        Raises:
            UsageError: another ending.
            DataError: the disk is full.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise UsageError(f"{path}: scores are written as .npz, not as {path.suffix!r}.")
        arrays = {
            "scores": self.scores,
            "image_ids": np.array(self.image_ids, np.str_),
            "label_ids": np.array(self.label_map.ids, np.int64),
            "labels": np.array(json.dumps(self.label_map.to_config(), ensure_ascii=False)),
            "fingerprint": np.array(self.fingerprint),
            "exclusive": np.array(self.exclusive, np.str_),
        }
        for name in ("paths", "digests"):
            if getattr(self, name) is not None:
                arrays[name] = np.array(getattr(self, name), np.str_)
        if self.embeddings is not None:
            arrays["embeddings"] = self.embeddings
        with atomic_write(path, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        return path

    @classmethod
    def read(
        cls,
        path: str | Path,
        *,
        label_map: LabelMap | None = None,
        fingerprint: str | None = None,
        image_ids: Sequence[str] | None = None,
    ) -> ScoreStore:
        """Reads scores and checks them; nothing is unpickled.

        Args:
            path: An `.npz` of this module; or a bare matrix (n, L) as `.npy`, or as the array `scores` of an `.npz`.
            label_map: The labels that the scores must belong to; needed for a bare matrix.
            fingerprint: The model that they must come from; None takes any. A bare matrix is taken to be that model's.
            image_ids: The ids of the rows of a bare matrix.

        Raises:
            UsageError: no such file, another ending, or a bare matrix without ids or labels.
            DataError: a damaged or pickled file, missing arrays, scores of other labels or of another model, NaN or infinity, ids that
                repeat or do not fit.
        """
        path = Path(path)
        if not path.is_file():
            raise UsageError(f"{path}: no such file. Expected scores: an .npz with {', '.join(_NEEDED)}.")
        if path.suffix not in (".npz", ".npy"):
            raise UsageError(f"{path}: scores are read from .npz and .npy files, not from {path.suffix!r}.")
        arrays = {"scores": _read_npy(path)} if path.suffix == ".npy" else read_arrays(path, ("scores",), (*_NEEDED, *_OPTIONAL))
        if "image_ids" not in arrays:
            if image_ids is None or label_map is None:
                raise UsageError(f"{path} holds scores without ids: give the list of ids, in the order of the rows, and the label map.")
            with _told_as_of(path):
                return cls(arrays["scores"], tuple(image_ids), label_map, fingerprint or "")
        if image_ids is not None:
            raise UsageError(f"{path} names the ids of its rows itself: give no list of ids.")
        absent = [name for name in _NEEDED if name not in arrays]
        if absent:
            raise DataError(f"{path}: expected the arrays {', '.join(_NEEDED)}; {', '.join(absent)} are missing.")
        with _told_as_of(path):
            own = _label_map(arrays)
            if label_map is not None:
                _same_labels(label_map, own, "this file")
            made_by = _text(arrays, "fingerprint")
            if fingerprint and made_by and made_by != fingerprint:
                raise DataError(
                    f"scores of another model ({made_by[:12]}, expected {fingerprint[:12]}). Compute them again with this model."
                )
            return cls(
                arrays["scores"],
                _texts(arrays, "image_ids"),
                own,
                made_by,
                arrays.get("embeddings"),
                _texts(arrays, "paths") if "paths" in arrays else None,
                _texts(arrays, "digests") if "digests" in arrays else None,
                _texts(arrays, "exclusive") if "exclusive" in arrays else (),
            )


class ScoreWriter:
    """Makes a store of many pictures in parts, so that a run that was killed goes on where it stopped.

    Finished rows lie in a hidden folder beside the file, named by the model, until `finish` puts them together. A row belongs to the
    hash of its picture's bytes: equal pictures share a row, and a replaced picture is computed anew. Rows of a finished file by the
    same model are used again too, so a growing catalogue costs only its new pictures.

    Args:
        path: The `.npz`. An older one is replaced by `finish`, not before.
        digests: Image id -> hash of its bytes ("" if it cannot be read), all pictures in the order of the rows.
        label_map: The labels of the columns.
        fingerprint: The model; must not be empty.
        embedding_dim: Width of the embeddings; None for no embeddings.
        exclusive: Tasks whose logits go through a softmax.
        part_rows: Rows per part.

    Raises:
        UsageError: another ending, no fingerprint, or a folder that cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        digests: Mapping[str, str],
        label_map: LabelMap,
        fingerprint: str,
        *,
        embedding_dim: int | None = None,
        exclusive: Sequence[str] = (),
        part_rows: int = PART_ROWS,
    ) -> None:
        self.path = Path(path)
        if self.path.suffix != ".npz":
            raise UsageError(f"{self.path}: scores are written as .npz, not as {self.path.suffix!r}.")
        if not fingerprint:
            raise UsageError("ScoreWriter needs the model's fingerprint, to know which finished rows are its own.")
        if part_rows < 1:
            raise UsageError(f"A part has at least 1 row, got {part_rows}.")
        make_out_folder(self.path.parent)
        self.digests = dict(digests)
        self.label_map = label_map
        self.fingerprint = fingerprint
        self.embedding_dim = embedding_dim
        self.exclusive = tuple(exclusive)
        self.part_rows = part_rows
        self.folder = self.path.with_name(f".{self.path.stem}.{fingerprint[:16]}.parts")
        self._known: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
        self._fresh: list[str] = []
        for part in [self.path, *self._parts()]:
            self._use(part)

    def __enter__(self) -> ScoreWriter:
        return self

    def __exit__(self, *details: Any) -> None:
        self.flush()

    def missing(self) -> list[str]:
        """Ids of the pictures to compute, in order; of equal pictures the first."""
        first: dict[str, str] = {}
        for image_id, digest in self.digests.items():
            if digest and digest not in self._known:
                first.setdefault(digest, image_id)
        unreadable = {image_id for image_id, digest in self.digests.items() if not digest}
        wanted = set(first.values()) | unreadable
        return [image_id for image_id in self.digests if image_id in wanted]

    def append(self, image_ids: Sequence[str], scores: Any, embeddings: Any = None) -> None:
        """Adds rows; full parts are written at once.

        Args:
            image_ids: Ids among the writer's.
            scores: Logits (batch, L).
            embeddings: (batch, D) if the writer has an `embedding_dim`.

        Raises:
            UsageError: unknown ids, ids of unreadable pictures, shapes that do not fit.
            DataError: NaN or infinity (the message names the ids).
        """
        names = list(image_ids)
        unknown = [entry for entry in names if not self.digests.get(entry)]
        if unknown:
            raise UsageError(f"{unknown[0]!r} is not among the readable pictures of {self.path}.")
        rows = _matrix(scores, "scores", len(names), len(self.label_map))
        vectors = None if embeddings is None else _matrix(embeddings, "embeddings", len(names), self.embedding_dim)
        if (vectors is None) != (self.embedding_dim is None):
            raise UsageError(f"embeddings: expected {'none' if self.embedding_dim is None else f'width {self.embedding_dim}'}.")
        _check_finite(rows, "scores", names)
        _check_finite(vectors, "embeddings", names)
        for number, entry in enumerate(names):
            digest = self.digests[entry]
            if digest not in self._known:
                self._fresh.append(digest)
            self._known[digest] = (rows[number].copy(), None if vectors is None else vectors[number].copy())
        while len(self._fresh) >= self.part_rows:
            self._write_part(self.part_rows)

    def flush(self) -> None:
        """Writes the rows that fill no part yet."""
        if self._fresh:
            self._write_part(len(self._fresh))

    def finish(self, skip: Collection[str] = (), paths: Mapping[str, str] | None = None) -> ScoreStore:
        """Writes the file and removes the parts.

        Args:
            skip: Ids that get no row (pictures that cannot be used).
            paths: Image id -> path relative to the folder of the pictures.

        Raises:
            UsageError: pictures that were not computed and are not skipped.
            DataError: the disk is full (the parts stay).
        """
        self.flush()
        left_out = set(skip)
        kept = [entry for entry in self.digests if entry not in left_out]
        absent = [entry for entry in kept if self.digests[entry] not in self._known]
        if absent:
            raise UsageError(f"{len(absent)} of {len(kept)} pictures have no scores yet, the first: {', '.join(absent[:5])}.")
        values = [self._known[self.digests[entry]] for entry in kept]
        store = ScoreStore(
            np.array([row for row, _ in values], np.float32).reshape(len(kept), len(self.label_map)),
            tuple(kept),
            self.label_map,
            self.fingerprint,
            None
            if self.embedding_dim is None
            else np.array([vector for _, vector in values], np.float32).reshape(len(kept), self.embedding_dim),
            None if paths is None else tuple(paths.get(entry, "") for entry in kept),
            tuple(self.digests[entry] for entry in kept),
            self.exclusive,
        )
        store.write(self.path)
        for part in self._parts():
            part.unlink()
        with contextlib.suppress(OSError):
            self.folder.rmdir()
        return store

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.npz"))

    def _use(self, part: Path) -> None:
        """Takes over a file's rows; what cannot be read, or is another model's, is computed again."""
        try:
            store = ScoreStore.read(part, label_map=self.label_map, fingerprint=self.fingerprint)
        except (DataError, UsageError):
            return
        width = None if store.embeddings is None else store.embeddings.shape[1]
        if not store.digests or not store.fingerprint or width != self.embedding_dim or set(store.exclusive) != set(self.exclusive):
            return
        for row, digest in enumerate(store.digests):
            if digest:
                self._known[digest] = (store.scores[row], None if store.embeddings is None else store.embeddings[row])

    def _write_part(self, count: int) -> None:
        now, self._fresh = self._fresh[:count], self._fresh[count:]
        values = [self._known[digest] for digest in now]
        embeddings = None if self.embedding_dim is None else np.array([vector for _, vector in values], np.float32)
        make_out_folder(self.folder)
        former = self._parts()
        number = int(former[-1].stem) + 1 if former else 0
        store = ScoreStore(
            np.array([row for row, _ in values], np.float32),
            tuple(now),
            self.label_map,
            self.fingerprint,
            embeddings,
            None,
            tuple(now),
            self.exclusive,
        )
        store.write(self.folder / f"{number:06d}.npz")


def _matrix(value: Any, name: str, count: int, width: int | None) -> np.ndarray:
    matrix = np.asarray(value)
    if matrix.ndim != 2 or len(matrix) != count or matrix.shape[1] != (width or matrix.shape[1]) or matrix.shape[1] == 0:
        raise UsageError(f"{name} must be ({count}, {width or 'width'}), one row per id; got shape {matrix.shape}.")
    if matrix.dtype.kind not in "fiu":
        raise UsageError(f"{name} must hold numbers, got dtype {matrix.dtype}.")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(matrix, np.float32)


def _check_finite(matrix: np.ndarray | None, name: str, ids: Sequence[str]) -> None:
    if matrix is None:
        return
    for start in range(0, len(matrix), _BLOCK):
        bad = start + np.flatnonzero(~np.isfinite(matrix[start : start + _BLOCK]).all(axis=1))
        if len(bad):
            raise DataError(f"{name}: row {bad[0]} (id {ids[bad[0]]!r}) has NaN, infinite or too large numbers.")


def _check_ids(ids: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for row, entry in enumerate(ids):
        if not isinstance(entry, str) or not entry:
            raise DataError(f"image_ids: row {row} has no usable id ({entry!r}); ids are strings that are not empty.")
        if first.setdefault(entry, row) != row:
            raise DataError(f"image_ids: the id {entry!r} is there more than once (rows {first[entry]} and {row}).")


def _same_labels(expected: LabelMap, found: LabelMap, what: str) -> None:
    if expected.fingerprint == found.fingerprint:
        return
    pairs = list(zip(expected.labels, found.labels, strict=False))
    place = next((n for n, (left, right) in enumerate(pairs) if left != right), len(pairs))
    difference = f"{len(found)} labels, expected {len(expected)}"
    if place < len(pairs):
        left, right = pairs[place]
        difference += (
            f"; label {place} is {right.name!r} (id {right.id}, {right.task}), expected {left.name!r} (id {left.id}, {left.task})"
        )
    raise DataError(f"The labels of {what} are those of another label map: {difference}. Compute the scores with one model.")


def _label_map(arrays: Mapping[str, np.ndarray]) -> LabelMap:
    text = _text(arrays, "labels")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        raise DataError("'labels' is not the JSON of a label map.") from None
    label_map = LabelMap.from_config(config)
    if arrays["label_ids"].tolist() != list(label_map.ids):
        raise DataError("'label_ids' and the label map in 'labels' do not fit each other.")
    return label_map


def _text(arrays: Mapping[str, np.ndarray], name: str) -> str:
    value = arrays[name]
    if value.shape != () or value.dtype.kind != "U":
        raise DataError(f"'{name}' must be a single string, found {value.dtype} {value.shape}.")
    return str(value)


def _texts(arrays: Mapping[str, np.ndarray], name: str) -> tuple[str, ...]:
    value = arrays[name]
    if value.ndim != 1 or (value.dtype.kind != "U" and value.size):
        raise DataError(f"'{name}' must be a row of strings, found {value.dtype} {value.shape}.")
    return tuple(value.tolist())


def _read_npy(path: Path) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            array = np.load(file, allow_pickle=False)
    except Exception as error:
        raise DataError(f"{path}: not a readable .npy file ({error}).") from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: expected one array, found {type(array).__name__}.")
    return array


@contextlib.contextmanager
def _told_as_of(path: Path) -> Iterator[None]:
    """Errors about content become errors about the file."""
    try:
        yield
    except (DataError, UsageError) as error:
        raise DataError(f"{path}: {error}") from None
