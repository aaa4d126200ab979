"""Scores of the photos that a command names: found, computed in parts that survive a killed run, and kept in a file."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import hash_file, hash_json, make_out_folder, read_json, write_json
from tf_fashion.datasets.catalogue import Catalogue, id_from_path, walk_images
from tf_fashion.inputs.arrays import read_arrays
from tf_fashion.inputs.audit import BadImage
from tf_fashion.inputs.feature_cache import photo_digests
from tf_fashion.inputs.images import ImageSpec, explain_bytes, explain_path, load
from tf_fashion.models.attributes import load_attributes
from tf_fashion.models.base import load_path
from tf_fashion.retrieval.score_store import ScoreStore, ScoreWriter
from tf_fashion.training.attribute_evaluation import AttributeEmbedder
from tf_fashion.training.attributes_config import TTA
from tf_fashion.training.bad_images import refuse_or_report

TABLES = (".csv", ".tsv")
# Photos whose bytes are read for their hashes at a time.
_HASHED = 256
# So few photos need no progress bar.
_FEW = 10
PART_ROWS = 256


@dataclass(frozen=True)
class PhotoList:
    """Photos that a command names.

    Attributes:
        root: Folder that holds all of them, absolute.
        paths: Image id -> file.
        missing: Items of a catalogue whose picture is not there.
    """

    root: Path
    paths: dict[str, Path]
    missing: list[BadImage] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.paths)

    @classmethod
    def of(cls, paths: Mapping[str, Path], missing: Sequence[BadImage] = ()) -> PhotoList:
        """A list of given files (at least one); `root` is the deepest folder that holds all."""
        absolute = {image_id: Path(os.path.abspath(path)) for image_id, path in paths.items()}
        return cls(Path(os.path.commonpath([path.parent for path in absolute.values()])), absolute, list(missing))

    def relative(self, image_id: str) -> str:
        """Path of a photo below `root`, with "/"."""
        return Path(os.path.relpath(self.paths[image_id], self.root)).as_posix()


def find_photos(sources: Sequence[str], images: str | None = None) -> PhotoList:
    """All photos of files, folders (with everything below them) and CSV files of catalogues.

    Ids of a catalogue are its own; others are made from the path below the folder that holds all sources. Two files whose ids would be
    equal (a.jpg and a.png) are told apart by a hash of the path. A file that is named twice counts once.

    Args:
        sources: Paths.
        images: Folder of the pictures of CSV files, where they are not beside them.

    Raises:
        UsageError: nothing named, no such file or folder, or `images` without a CSV file.
        DataError: a folder without pictures, or what `Catalogue` raises; two catalogues with one id.
    """
    if not sources:
        raise UsageError("Name the photos: files, folders, or the CSV file of a catalogue.")
    places: list[Path] = []
    found: list[Path] = []
    given: dict[str, Path] = {}
    missing: list[BadImage] = []
    tables = 0
    for source in sources:
        path = Path(os.path.abspath(source))
        if path.is_dir():
            inside = [path / relative for relative in walk_images(path)]
            if not inside:
                raise DataError(f"{source}: there are no pictures in this folder.")
            places.append(path)
            found += inside
        elif not path.is_file():
            raise UsageError(f"{source}: no such file or folder.")
        elif path.suffix.lower() in TABLES:
            tables += 1
            catalogue = Catalogue(path.parent, path, images)
            folder = Path(os.path.abspath(images)) if images else path.parent
            places.append(folder)
            for item in catalogue.items:
                if item.id in given:
                    raise DataError(f"{source}: the id {item.id!r} is in another catalogue too. Give one of them at a time.")
                if item.path is None:
                    missing.append(BadImage(item.id, folder / item.id, "missing"))
                else:
                    given[item.id] = Path(os.path.abspath(item.path))
        else:
            places.append(path.parent)
            found.append(path)
    if images is not None and not tables:
        raise UsageError("--images belongs to the CSV file of a catalogue, and none is given. Name the folder itself.")
    root = Path(os.path.commonpath(places))
    named = set(given.values())
    paths = dict(given)
    for path in dict.fromkeys(found):
        if path in named:
            continue
        relative = path.relative_to(root).as_posix()
        image_id = id_from_path(relative)
        if image_id in paths:
            image_id = f"{image_id[:110]}-{hash_json(relative)[:8]}"
        paths[image_id] = path
    return PhotoList(root, paths, missing)


def check_scoring(batch_size: int, tta: str) -> None:
    """Raises `UsageError` for options that no scoring can have."""
    if batch_size < 1:
        raise UsageError(f"--batch-size: expected at least 1, found {batch_size}.")
    if tta not in TTA:
        raise UsageError(f"--tta: expected {' or '.join(TTA)}, found {tta!r}.")


def scores_fingerprint(model_hash: str, tta: str = "none") -> str:
    """What scores are stored under: hash of the model's file, and of the test-time augmentation where there is one."""
    return model_hash if tta == "none" else hash_json([model_hash, tta])


def augmentation_of(fingerprint: str, model: str | Path) -> str | None:
    """The test-time augmentation that scores were made with, None if they are another model's.

    Raises:
        UsageError: there is no such file.
    """
    digest = hash_file(load_path(model))
    return next((tta for tta in TTA if scores_fingerprint(digest, tta) == fingerprint), None)


class PhotoScorer:
    """Scores photos with one model.

    Args:
        model: The `.keras` file.
        tta: "none" or "flip", see `AttributeEmbedder`.
        batch_size: Photos at a time.
        progress: Whether to show progress bars.

    Raises:
        UsageError: there is no such file, or an option out of range.
    """

    def __init__(self, model: str | Path, tta: str = "none", batch_size: int = 32, progress: bool = True) -> None:
        check_scoring(batch_size, tta)
        self.path = load_path(model)
        self.sha256 = hash_file(model)
        self.tta = tta
        self.batch_size = batch_size
        self.progress = progress
        self.fingerprint = scores_fingerprint(self.sha256, tta)
        self.model = load_attributes(model)

    @functools.cached_property
    def embedder(self) -> AttributeEmbedder:
        """The model's graphs."""
        return AttributeEmbedder(self.model, self.batch_size, self.tta)

    def store(self, photos: PhotoList, path: str | Path, bad_list: Path, skip_bad_images: bool = False) -> tuple[ScoreStore, int]:
        """Scores of all photos in a file; what is in it already, and what an interrupted run has left, is not computed again.

        Beside `NAME.npz` stands `NAME.json`, which says where the pictures are.

        Args:
            photos: The photos.
            path: The `.npz` file.
            bad_list: The CSV file that lists pictures that cannot be used.
            skip_bad_images: Whether to leave them out; else the scores of the others are kept in parts, and all are reported.

        Returns:
            The scores in the order of `photos`, and the number of pictures left out.

        Raises:
            UsageError: another ending than .npz, a folder that cannot be written, or a file of another model's scores.
            DataError: pictures that cannot be used, or not one that can; the disk is full.
        """
        path = Path(path)
        make_out_folder(path.parent)
        self._check_owner(path)
        digests = self._digests(photos.paths)
        model = self.model
        writer = ScoreWriter(
            path,
            digests,
            model.label_map,
            self.fingerprint,
            embedding_dim=model.dim,
            exclusive=model.exclusive,
            part_rows=PART_ROWS,
        )
        with writer:
            unusable = self._fill(writer, photos.paths)
        bad = [*photos.missing, *_with_copies(unusable, photos.paths, digests)]
        refuse_or_report(bad, bad_list, skip_bad_images)
        if len(bad) - len(photos.missing) == len(photos):
            raise DataError("Not one of the pictures can be used.")
        if not bad:
            bad_list.unlink(missing_ok=True)
        left_out = {image.id for image in bad}
        store = writer.finish(left_out, {image_id: photos.relative(image_id) for image_id in photos.paths})
        record = {"pictures": str(photos.root), "model": {"file": self.path.name, "sha256": self.sha256}, "tta": self.tta}
        write_json(notes_of(path), {**record, "left_out": len(bad)})
        return store, len(bad)

    def scores(self, photos: PhotoList, bad_list: Path, skip_bad_images: bool = False) -> tuple[ScoreStore, int]:
        """As `store`, without keeping a file."""
        with tempfile.TemporaryDirectory() as folder:
            return self.store(photos, Path(folder) / "scores.npz", bad_list, skip_bad_images)

    def _check_owner(self, path: Path) -> None:
        """Refuses to replace what another model has computed."""
        try:
            owner = str(read_arrays(path, ("fingerprint",))["fingerprint"])
        except DataError:
            # Nothing there, or nothing of use.
            return
        if owner != self.fingerprint:
            raise UsageError(
                f"{path}: holds scores of another model, or with another --tta. Choose another place, or delete it to have it replaced."
            )

    def _digests(self, paths: Mapping[str, Path]) -> dict[str, str]:
        ids = list(paths)
        digests: dict[str, str] = {}
        with tqdm(total=len(ids), desc="reading images", unit="image", disable=not self.progress or len(ids) <= _HASHED) as bar:
            for start in range(0, len(ids), _HASHED):
                some = ids[start : start + _HASHED]
                digests |= photo_digests({image_id: paths[image_id] for image_id in some})
                bar.update(len(some))
        return digests

    def _fill(self, writer: ScoreWriter, paths: Mapping[str, Path]) -> list[BadImage]:
        """Computes what the writer lacks; returns the pictures that cannot be used."""
        wanted = writer.missing()
        if not wanted:
            return []
        spec, labels = self.model.image_encoder.image_spec, len(self.model.label_map)
        files = [paths[image_id] for image_id in wanted]
        reasons = {row: reason for row, path in enumerate(files) if (reason := explain_path(path, spec))}
        left = [row for row in range(len(files)) if row not in reasons]
        total, known = len(writer.digests), len(writer.digests) - len(wanted)
        quiet = not self.progress or len(wanted) <= _FEW
        with tqdm(total=total, initial=known, desc="predicting", unit="image", disable=quiet) as bar:
            done: set[int] = set()
            for rows, images in _readable(files, left, spec, self.batch_size):
                values = self.embedder.batch(images)
                writer.append([wanted[row] for row in rows], values[:, :labels], values[:, labels:])
                done.update(rows)
                bar.update(len(rows))
            bar.update(len(wanted) - len(done))
        for row in left:
            if row not in done:
                reasons[row] = _explain(files[row], spec)
        return [BadImage(wanted[row], files[row], reasons[row]) for row in sorted(reasons)]


def notes_of(store: str | Path) -> Path:
    """The JSON file beside a file of scores."""
    return Path(store).with_suffix(".json")


def read_notes(store: str | Path) -> dict[str, Any]:
    """What is written beside a file of scores; empty where nothing is, as scores can come from elsewhere."""
    path = notes_of(store)
    notes = read_json(path) if path.is_file() else {}
    return notes if isinstance(notes, dict) else {}


@functools.lru_cache(maxsize=8)
def _reader(spec: ImageSpec) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    """Row and picture of a row and a file, traced once."""
    return tf.function(
        lambda row, name: (row, load(tf.io.read_file(name), spec)),
        input_signature=[tf.TensorSpec((), tf.int64), tf.TensorSpec((), tf.string)],
        autograph=False,
    )


def _readable(files: Sequence[Path], rows: Sequence[int], spec: ImageSpec, batch_size: int) -> Iterator[tuple[list[int], Any]]:
    """Batches of row numbers and pictures `(batch, size, size, 3)` of those files that can be decoded, each decoded once."""
    if not rows:
        return

    names = tf.data.Dataset.from_tensor_slices((tf.constant(rows, tf.int64), [os.fspath(files[row]) for row in rows]))
    pictures = names.map(_reader(spec), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).ignore_errors()
    for numbers, images in pictures.batch(batch_size).prefetch(2):
        yield np.asarray(numbers).tolist(), images


def _explain(path: Path, spec: ImageSpec) -> str:
    try:
        return explain_bytes(path.read_bytes(), spec)
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _with_copies(bad: Sequence[BadImage], paths: Mapping[str, Path], digests: Mapping[str, str]) -> list[BadImage]:
    """The bad pictures and their copies, of which only the first was tried."""
    reasons = {digests[image.id]: image.reason for image in bad if digests[image.id]}
    single = {image.id: image.reason for image in bad}
    found = []
    for image_id, path in paths.items():
        reason = single.get(image_id) or reasons.get(digests[image_id])
        if reason:
            found.append(BadImage(image_id, path, reason))
    return found
