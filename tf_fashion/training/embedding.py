"""Running the picture side of any model over photos, in batches that are traced once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tf_fashion.inputs.audit import BadImage, audit_images
from tf_fashion.inputs.feature_cache import FeatureCache, FeatureTable, image_batches

BLOCK = 256


def usable(paths: Mapping[str, Path], bad: Iterable[BadImage]) -> dict[str, Path]:
    """The photos without the bad ones."""
    unusable = {image.id for image in bad}
    return {image_id: Path(path) for image_id, path in paths.items() if image_id not in unusable}


class PictureEmbedder:
    """Base of what runs a model over photos.

    Args:
        model: A model with an `image_encoder` and `encode_image`.
        batch_size: Photos at a time.

    Attributes:
        encode: Graph from photos `(batch, size, size, 3)` in 0..255 to features, float32.
    """

    def __init__(self, model: Any, batch_size: int = 32) -> None:
        self.model = model
        self.batch_size = batch_size
        size = model.image_encoder.image_size
        self.encode = tf.function(
            lambda images: tf.cast(model.encode_image(images, training=False), tf.float32),
            input_signature=[tf.TensorSpec((None, size, size, 3), tf.float32)],
        )
        self._embed_features = self.on_features(model.embed_features)

    def on_features(self, function: Any) -> Any:
        """A graph from features `(batch, ...)` float32."""
        shape = self.model.image_encoder.feature_shape
        return tf.function(function, input_signature=[tf.TensorSpec((None, *shape), tf.float32)])

    def photos(
        self, paths: Sequence[Path], function: Callable[[Any], np.ndarray], shape: Sequence[int], what: str, progress: bool = True
    ) -> np.ndarray:
        """Rows float32 `(n, *shape)` that `function` makes of batches of pictures; `what` stands before the progress bar."""
        values = np.empty((len(paths), *shape), np.float32)
        at = 0
        with tqdm(total=len(paths), desc=what, unit="image", disable=not progress) as bar:
            for images in image_batches(list(paths), self.model.image_encoder.image_spec, self.batch_size):
                rows = function(images)
                values[at : at + len(rows)] = rows
                at += len(rows)
                bar.update(len(rows))
        return values

    def encode_photos(self, paths: Mapping[str, Path], progress: bool = True) -> FeatureTable:
        """Features of photos, in memory, in the order of `paths`."""
        shape = self.model.image_encoder.feature_shape
        files = [Path(path) for path in paths.values()]
        values = self.photos(files, lambda images: self.encode(images).numpy(), shape, "encoding images", progress)
        return FeatureTable(list(paths), values)

    def features_or_problems(self, paths: Mapping[str, Path], progress: bool = True) -> tuple[FeatureTable, list[BadImage]]:
        """Features of all photos that can be used, and the others with the reason.

        Photos that a training run with this (frozen) encoder has encoded are taken from its cache, and new ones are added to it.
        """
        encoder = self.model.image_encoder
        cache = FeatureCache.existing(encoder)
        if cache is None:
            bad = audit_images(paths, encoder.image_spec, progress=progress)
            return self.encode_photos(usable(paths, bad), progress), bad
        bad = cache.fill(paths, encoder.image_spec, self.encode, progress=progress)
        return cache.table(usable(paths, bad)), bad

    def gallery(self, table: FeatureTable, ids: Sequence[str]) -> np.ndarray:
        """Embeddings of photos `(len(ids), dim)` float32, from their features."""

        def embed(rows: np.ndarray) -> Any:
            return self._embed_features(np.asarray(table.values[rows], np.float32))

        return self.in_blocks(embed, table.rows(ids), self.model.dim, np.int64)

    @staticmethod
    def in_blocks(function: Callable[..., Any], rows: np.ndarray, width: int, kind: Any = np.float32) -> np.ndarray:
        """`function` of rows, a block at a time: float32 `(n, width)`."""
        parts = [function(np.asarray(rows[at : at + BLOCK], kind)).numpy() for at in range(0, len(rows), BLOCK)]
        return np.concatenate(parts) if parts else np.empty((0, width), np.float32)
