"""Features of frozen encoders, computed once and kept on disk.

A cache is a folder of shards `00000.npy, 00001.npy, ...` (float16 rows) with a `manifest.json` that names the encoder's
fingerprint and, for every row, the hash of the photo's bytes. So another photo under an old name is never mistaken for it, and
equal photos share a row. A shard is written to a temporary name and renamed, and the manifest is renewed after each, so that an
interrupted run continues with the next shard. Several processes may fill one cache: they append in turns.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tf_fashion.core.errors import DataError
from tf_fashion.core.files import atomic_write, locked, make_out_folder, read_json, write_json
from tf_fashion.inputs.audit import BadImage, audit_images
from tf_fashion.inputs.images import ImageSpec, load

SHARD_ROWS = 1024
_FORMAT = 2


class FeatureTable:
    """Rows of features with their image ids.

    Attributes:
        ids: Image ids in row order.
        values: Array `(len(ids), *feature_shape)`, float16 or float32.
    """

    def __init__(self, ids: Sequence[str], values: np.ndarray) -> None:
        self.ids = list(ids)
        self.values = values
        self._row = {image_id: row for row, image_id in enumerate(self.ids)}

    def rows(self, ids: Iterable[str]) -> np.ndarray:
        """Row numbers of image ids, int64.

        Raises:
            DataError: an id has no features.
        """
        wanted = list(ids)
        missing = [image_id for image_id in wanted if image_id not in self._row]
        if missing:
            raise DataError(f"No features for {len(missing)} images, the first: {', '.join(missing[:5])}.")
        return np.array([self._row[image_id] for image_id in wanted], dtype=np.int64)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._row

    def __len__(self) -> int:
        return len(self.ids)


def image_batches(paths: Sequence[Path], spec: ImageSpec, batch_size: int) -> tf.data.Dataset:
    """Pictures `(batch, size, size, 3)` float32 in the order of `paths`; the last batch may be smaller."""
    names = tf.data.Dataset.from_tensor_slices([str(path) for path in paths])
    images = names.map(lambda name: load(tf.io.read_file(name), spec), num_parallel_calls=tf.data.AUTOTUNE)
    return images.batch(batch_size).prefetch(2)


def _digest(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=12)).hexdigest()
    except OSError:
        return ""


def photo_digests(paths: Mapping[str, Path]) -> dict[str, str]:
    """Image id -> hash of the file's bytes; "" where it cannot be read."""
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(paths, pool.map(_digest, paths.values()), strict=True))


def default_cache() -> Path:
    """Where features are kept between runs: `$XDG_CACHE_HOME/tf-fashion/features` (usually `~/.cache/...`)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tf-fashion" / "features"


class FeatureCache:
    """A folder of cached features for one encoder.

    Args:
        folder: Created if missing.
        fingerprint: Hash of everything that decides the features (`ImageEncoder.fingerprint`). A cache of another encoder is
            never mixed in: each fingerprint has its own sub-folder.
        feature_shape: Shape of one picture's features.
    """

    def __init__(self, folder: str | Path, fingerprint: str, feature_shape: Sequence[int]) -> None:
        self.folder = make_out_folder(self.folder_of(folder, fingerprint))
        self.fingerprint = fingerprint
        self.feature_shape = tuple(int(n) for n in feature_shape)
        self._manifest_path = self.folder / "manifest.json"
        self.shards: list[list[str]] = self._read_manifest()

    @classmethod
    def of(cls, encoder: Any, folder: str | Path | None = None) -> FeatureCache:
        """The cache of an image encoder in `folder` (default: `default_cache()`)."""
        return cls(folder or default_cache(), encoder.fingerprint(), encoder.feature_shape)

    @classmethod
    def existing(cls, encoder: Any) -> FeatureCache | None:
        """The cache of an image encoder in `default_cache()`, None where no run has made one."""
        where, fingerprint = default_cache(), encoder.fingerprint()
        return cls(where, fingerprint, encoder.feature_shape) if cls.folder_of(where, fingerprint).is_dir() else None

    @staticmethod
    def folder_of(folder: str | Path, fingerprint: str) -> Path:
        """Where the cache of an encoder is, or would be."""
        return Path(folder) / f"v{_FORMAT}-{fingerprint[:16]}"

    def _read_manifest(self) -> list[list[str]]:
        if not self._manifest_path.exists():
            return []
        manifest = read_json(self._manifest_path)
        expected = {"format": _FORMAT, "fingerprint": self.fingerprint, "feature_shape": list(self.feature_shape)}
        if not isinstance(manifest, dict) or any(manifest.get(key) != value for key, value in expected.items()):
            raise DataError(f"{self._manifest_path}: not the manifest of this cache. Delete the folder {self.folder}; it is rebuilt.")
        shards = [list(ids) for ids in manifest.get("shards", [])]
        for number, ids in enumerate(shards):
            if self._shard_shape(number) != (len(ids), *self.feature_shape):
                raise DataError(
                    f"{self._shard_path(number)}: missing, or not the {len(ids)} rows that the manifest promises. Delete the folder "
                    f"{self.folder}; it is rebuilt."
                )
        return shards

    def _shard_path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.npy"

    def _shard_shape(self, number: int) -> tuple[int, ...] | None:
        try:
            return np.load(self._shard_path(number), mmap_mode="r", allow_pickle=False).shape
        except (OSError, ValueError):
            return None

    def _append(self, keys: list[str], rows: np.ndarray) -> None:
        if not np.isfinite(rows).all():
            raise DataError("The encoder gave values that are not finite in float16; such features cannot be cached.")
        with locked(self.folder / ".lock"):
            # Another process may have appended meanwhile.
            shards = self._read_manifest()
            with atomic_write(self._shard_path(len(shards)), "wb") as file:
                np.save(file, rows, allow_pickle=False)
            self.shards = [*shards, keys]
            write_json(
                self._manifest_path,
                {
                    "format": _FORMAT,
                    "fingerprint": self.fingerprint,
                    "feature_shape": list(self.feature_shape),
                    "shards": self.shards,
                },
            )

    def missing(self, paths: Mapping[str, Path]) -> list[str]:
        """Ids of the photos that have no features yet, in the order of `paths`."""
        known = {key for shard in self.shards for key in shard}
        digests = photo_digests(paths)
        return [image_id for image_id in paths if digests[image_id] not in known]

    def fill(
        self,
        paths: Mapping[str, Path],
        spec: ImageSpec,
        encode: Callable[[tf.Tensor], tf.Tensor],
        batch_size: int = 32,
        progress: bool = True,
    ) -> list[BadImage]:
        """Computes and stores the features of all pictures that are not in the cache.

        Args:
            paths: Image id -> file.
            spec: How pictures are decoded (`ImageEncoder.image_spec`).
            encode: Function from pictures `(batch, size, size, 3)` float32 to features `(batch, *feature_shape)`.
            batch_size: Pictures at a time.
            progress: Whether to show a progress bar.

        Returns:
            The pictures that cannot be used, with the reason; they get no row.

        Raises:
            DataError: the disk is full (what was finished is kept), or features are not finite.
        """
        new = self.missing(paths)
        if not new:
            return []
        bad = audit_images({image_id: paths[image_id] for image_id in new}, spec, progress=progress)
        unusable = {image.id for image in bad}
        new = [image_id for image_id in new if image_id not in unusable]
        digests = photo_digests({image_id: Path(paths[image_id]) for image_id in new})
        new = list({digests[image_id]: image_id for image_id in reversed(new)}.values())[::-1]
        with tqdm(total=len(new), desc="encoding images", unit="image", disable=not progress) as bar:
            for start in range(0, len(new), SHARD_ROWS):
                ids = new[start : start + SHARD_ROWS]
                rows = np.empty((len(ids), *self.feature_shape), np.float16)
                at = 0
                for images in image_batches([Path(paths[image_id]) for image_id in ids], spec, batch_size):
                    features = np.asarray(encode(images))
                    rows[at : at + len(features)] = features
                    at += len(features)
                    bar.update(len(features))
                self._append([digests[image_id] for image_id in ids], rows)
        return bad

    def table(self, paths: Mapping[str, Path]) -> FeatureTable:
        """Features of the given photos, in memory.

        Raises:
            DataError: photos without features.
        """
        where = {key: (number, row) for number, shard in enumerate(self.shards) for row, key in enumerate(shard)}
        digests = photo_digests(paths)
        absent = [image_id for image_id in paths if digests[image_id] not in where]
        if absent:
            raise DataError(f"No cached features for {len(absent)} images, the first: {', '.join(absent[:5])}.")
        values = np.empty((len(digests), *self.feature_shape), np.float16)
        places = np.array([where[key] for key in digests.values()], dtype=np.int64).reshape(-1, 2)
        for number in np.unique(places[:, 0]):
            shard = np.load(self._shard_path(int(number)), mmap_mode="r", allow_pickle=False)
            here = np.nonzero(places[:, 0] == number)[0]
            values[here] = shard[places[here, 1]]
        return FeatureTable(list(digests), values)
