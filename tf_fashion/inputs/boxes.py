"""Parts of photos by bounding boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from tf_fashion.core.errors import DataError


def pixel_box(box: Sequence[float], margin: float = 0.0) -> tuple[int, int, int, int]:
    """The pixels of a box, as UDMA crops Street2Shop's queries: corners lose their fractions.

    Args:
        box: Left, top, width, height in pixels.
        margin: Share of width and height that is added on every side.

    Returns:
        Left, top, right, bottom; right and bottom are the first pixels outside.

    Raises:
        DataError: no four finite numbers, or no pixel within.
    """
    if len(box) != 4 or not all(math.isfinite(value) for value in box):
        raise DataError(f"Expected a box of left, top, width and height, found {list(box)}.")
    left, top, width, height = (float(value) for value in box)
    edges = (left - margin * width, top - margin * height, left + (1 + margin) * width, top + (1 + margin) * height)
    found = (int(edges[0]), int(edges[1]), int(edges[2]), int(edges[3]))
    if found[2] <= found[0] or found[3] <= found[1]:
        raise DataError(f"Expected a box with at least one pixel, found left, top, width, height = {list(box)}.")
    return found


def crop_box(image: tf.Tensor, box: tf.Tensor | Sequence[int]) -> tf.Tensor:
    """Cuts a box out of a photo; what lies outside of the photo is black.

    Args:
        image: (height, width, channels), of any type.
        box: int32 (4,): left, top, right, bottom, as `pixel_box` gives them.

    Returns:
        (bottom - top, right - left, channels), of the photo's type.
    """
    image = tf.convert_to_tensor(image)
    left, top, right, bottom = tf.unstack(tf.cast(tf.convert_to_tensor(box), tf.int32))
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    y0, y1 = (tf.clip_by_value(y, 0, height) for y in (top, bottom))
    x0, x1 = (tf.clip_by_value(x, 0, width) for x in (left, right))
    part = image[y0:y1, x0:x1]
    # A box beside the photo has nothing of it: all its pixels come before or after.
    above, before = tf.clip_by_value(-top, 0, bottom - top), tf.clip_by_value(-left, 0, right - left)
    below, behind = (bottom - top) - above - tf.shape(part)[0], (right - left) - before - tf.shape(part)[1]
    return tf.pad(part, tf.stack([tf.stack([above, below]), tf.stack([before, behind]), tf.zeros((2,), tf.int32)]))
