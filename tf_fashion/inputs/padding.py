"""Batches of pictures of different sizes."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tf_fashion.core.errors import UsageError


def pad_batch(images: Sequence[tf.Tensor], value: float = 0.0) -> tf.Tensor:
    """Lays pictures on the middle of a common area, as large as the highest and the widest of them need.

    Where a margin cannot be halved, the smaller half is at the top and at the left. Scaled pixels are padded (`scale_pixels` comes
    first), so that 0 is the mean colour.

    Args:
        images: Pictures (height, width, channels), all of one type and number of channels.
        value: What the margins are filled with.

    Returns:
        (number of pictures, largest height, largest width, channels), of the pictures' type.

    Raises:
        UsageError: no pictures, or something else than pictures of one number of channels.
    """
    pictures = [tf.convert_to_tensor(image) for image in images]
    shapes = [picture.shape for picture in pictures]
    if not pictures or any(shape.rank != 3 for shape in shapes) or len({shape[2] for shape in shapes}) > 1:
        found = ", ".join(map(str, shapes[:3])) or "nothing"
        raise UsageError(f"pad_batch: expected pictures (height, width, channels) with the same channels, found {found}.")
    sizes = tf.stack([tf.shape(picture)[:2] for picture in pictures])
    largest = tf.reduce_max(sizes, axis=0)
    before = (largest - sizes) // 2
    margins = tf.stack([before, largest - sizes - before], axis=-1)
    fill = tf.cast(value, pictures[0].dtype)
    return tf.stack([tf.pad(p, tf.concat([margins[i], [[0, 0]]], axis=0), constant_values=fill) for i, p in enumerate(pictures)])
