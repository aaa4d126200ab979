"""Batches of pictures with their labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_fashion.inputs.pipelines import FeatureSource, PhotoSource, planned_batches


def labelled_batches(
    images: Sequence[str],
    targets: np.ndarray,
    source: FeatureSource | PhotoSource,
    batch_size: int,
    epochs: int,
    initial_epoch: int = 0,
    seed: int = 0,
    steps_per_epoch: int | None = None,
) -> tuple[tf.data.Dataset, int]:
    """Batches of all epochs, one after the other, for `model.fit(..., steps_per_epoch=steps)`.

    Args:
        images: Image ids.
        targets: float32 `(n, labels)`: 1, 0, or -1 where nothing is known.
        source: Where pictures or their features come from.
        batch_size, epochs, initial_epoch, seed, steps_per_epoch: As `planned_batches`.

    Returns:
        Dataset of `(inputs, targets)` as `AttributeClassifier` takes them, and the number of steps per epoch.

    Raises:
        DataError, UsageError: as `planned_batches`.
    """
    with tf.device("CPU:0"):
        places, wanted = tf.constant(source.rows(images)), tf.constant(np.asarray(targets, np.float32))
    gather = source.gatherer()

    def batch(rows: tf.Tensor, seeds: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        return {source.key: gather(tf.gather(places, rows), seeds)}, tf.gather(wanted, rows)

    return planned_batches(len(images), "photos", batch_size, epochs, initial_epoch, seed, steps_per_epoch, batch)
