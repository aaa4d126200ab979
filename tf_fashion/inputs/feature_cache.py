"""Features of frozen encoders, computed once and kept on disk.

A cache is a folder of shards `00000.npy, 00001.npy, ...` (float16 rows) with a `manifest.json` that names the encoder's
fingerprint and the image ids of every shard. A shard is written to a temporary name and renamed, and the manifest is renewed
after each, so that an interrupted run continues with the next shard. New images are appended; images that are there already
are not computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tf_fashion.core.errors import DataError
from tf_fashion.core.files import atomic_write, make_out_folder, read_json, write_json
from tf_fashion.inputs.audit import BadImage, audit_images
from tf_fashion.inputs.images import ImageSpec, load

SHARD_ROWS = 1024
_FORMAT = 1


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

    def __len__(self) -> int:
        return len(self.ids)


def image_batches(paths: Sequence[Path], spec: ImageSpec, batch_size: int) -> tf.data.Dataset:
    """Pictures `(batch, size, size, 3)` float32 in the order of `paths`; the last batch may be smaller."""
    names = tf.data.Dataset.from_tensor_slices([str(path) for path in paths])
    images = names.map(lambda name: load(tf.io.read_file(name), spec), num_parallel_calls=tf.data.AUTOTUNE)
    return images.batch(batch_size).prefetch(2)


class FeatureCache:
    """A folder of cached features for one encoder.

    Args:
        folder: Created if missing.
        fingerprint: Hash of everything that decides the features (`ImageEncoder.fingerprint`). A cache of another encoder is
            never mixed in: each fingerprint has its own sub-folder.
        feature_shape: Shape of one picture's features.
    """

    def __init__(self, folder: str | Path, fingerprint: str, feature_shape: Sequence[int]) -> None:
        self.folder = make_out_folder(Path(folder) / fingerprint[:16])
        self.fingerprint = fingerprint
        self.feature_shape = tuple(int(n) for n in feature_shape)
        self._manifest_path = self.folder / "manifest.json"
        self.shards: list[list[str]] = self._read_manifest()

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

    def _append(self, ids: list[str], rows: np.ndarray) -> None:
        if not np.isfinite(rows).all():
            bad = [ids[i] for i in np.unique(np.nonzero(~np.isfinite(rows))[0])[:5]]
            raise DataError(f"The encoder gave values that are not finite in float16 for the images {', '.join(bad)}.")
        with atomic_write(self._shard_path(len(self.shards)), "wb") as file:
            np.save(file, rows, allow_pickle=False)
        self.shards.append(ids)
        write_json(
            self._manifest_path,
            {
                "format": _FORMAT,
                "fingerprint": self.fingerprint,
                "feature_shape": list(self.feature_shape),
                "shards": self.shards,
            },
        )

    @property
    def ids(self) -> list[str]:
        """Image ids in row order."""
        return [image_id for shard in self.shards for image_id in shard]

    def missing(self, ids: Iterable[str]) -> list[str]:
        """Those of `ids` that have no features yet, in their order."""
        known = set(self.ids)
        return [image_id for image_id in dict.fromkeys(ids) if image_id not in known]

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
                self._append(ids, rows)
        return bad

    def table(self, ids: Iterable[str] | None = None) -> FeatureTable:
        """Features of the given images (default: all) as one array in memory, or memory-mapped if there is a single shard."""
        if ids is None and len(self.shards) == 1:
            return FeatureTable(self.ids, np.load(self._shard_path(0), mmap_mode="r", allow_pickle=False))
        wanted = self.ids if ids is None else list(dict.fromkeys(ids))
        where = {image_id: (n, row) for n, shard in enumerate(self.shards) for row, image_id in enumerate(shard)}
        absent = [image_id for image_id in wanted if image_id not in where]
        if absent:
            raise DataError(f"No cached features for {len(absent)} images, the first: {', '.join(absent[:5])}.")
        values = np.empty((len(wanted), *self.feature_shape), np.float16)
        shard_of = np.array([where[image_id][0] for image_id in wanted], dtype=np.int64)
        row_of = np.array([where[image_id][1] for image_id in wanted], dtype=np.int64)
        for number in np.unique(shard_of):
            shard = np.load(self._shard_path(int(number)), mmap_mode="r", allow_pickle=False)
            here = np.nonzero(shard_of == number)[0]
            values[here] = shard[row_of[here]]
        return FeatureTable(wanted, values)
