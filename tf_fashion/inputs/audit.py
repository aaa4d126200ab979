"""Finds the pictures that cannot be used, before a training run does."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf
from tqdm import tqdm

from tf_fashion.core.files import atomic_write
from tf_fashion.inputs.images import ImageSpec, decode_image, explain_bytes, explain_path


class BadImage(NamedTuple):
    """A picture that cannot be used, and why, in words for a person."""

    id: str
    path: Path
    reason: str


def audit_images(
    paths: Mapping[str, str | os.PathLike[str]], spec: ImageSpec | None = None, workers: int | None = None, progress: bool = True
) -> list[BadImage]:
    """Checks headers and decodes every picture once, with the decoder that training and serving use.

    Args:
        paths: Image id -> file.
        spec: Limits; the default `ImageSpec` if None.
        workers: Pictures decoded at a time; as many as TensorFlow sees fit if None.
        progress: Whether to show a progress bar.

    Returns:
        The bad ones, in the order of `paths`. What is not among them does not fail in `decode_image`.
    """
    spec = spec or ImageSpec()
    ids = list(paths)
    files = [Path(paths[image_id]) for image_id in ids]
    reasons = {row: reason for row, path in enumerate(files) if (reason := explain_path(path, spec))}
    rows = [row for row in range(len(files)) if row not in reasons]
    if rows:
        decoded: set[int] = set()

        def check(row: tf.Tensor, name: tf.Tensor) -> tf.Tensor:
            # The number of pixels makes the row depend on the decoding, which would be pruned otherwise.
            return row + 0 * tf.size(decode_image(tf.io.read_file(name), spec), out_type=tf.int64)

        names = tf.data.Dataset.from_tensor_slices((tf.constant(rows, tf.int64), [os.fspath(files[row]) for row in rows]))
        checked = names.map(check, num_parallel_calls=workers or tf.data.AUTOTUNE, deterministic=True).ignore_errors()
        with tqdm(total=len(rows), desc="checking images", unit="image", disable=not progress) as bar:
            for batch in checked.batch(64).as_numpy_iterator():
                decoded.update(int(row) for row in batch)
                bar.update(len(batch))
            bar.update(len(rows) - len(decoded))
        for row in rows:
            if row not in decoded:
                try:
                    reasons[row] = explain_bytes(files[row].read_bytes(), spec)
                except OSError as error:
                    reasons[row] = f"cannot be read ({error.strerror})"
    return [BadImage(ids[row], files[row], reasons[row]) for row in sorted(reasons)]


def write_bad_images(csv_path: str | os.PathLike[str], bad: Iterable[BadImage]) -> None:
    """Writes `id,path,reason` rows, atomically; an empty list gives a file with the header only."""
    with atomic_write(Path(csv_path)) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "path", "reason"])
        writer.writerows((image.id, str(image.path), image.reason) for image in bad)
