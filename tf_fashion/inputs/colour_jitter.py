"""Changes of brightness, contrast, saturation and hue as torchvision makes them on Pillow's pictures, as graph code.

Every operation takes and gives whole grey levels, as Pillow's do: blends drop fractions, and hue goes through Pillow's HSV of 8 bits
each. So the results are those of the original programs to the grey level, where TensorFlow's own operations are of another kind
(its saturation works in HSV) or do not round.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_fashion.core.errors import UsageError

OPERATIONS = ("brightness", "contrast", "saturation", "hue")
"""In the order in which torchvision's factors are given, which is how orders number them."""


def luma(image: tf.Tensor) -> tf.Tensor:
    """Pillow's grey picture (mode L): int32 `(..., 1)` in 0..255 of uint8 `(..., 3)`.

    ITU-R 601-2 in 16 bits of fraction, rounded: (19595 R + 38470 G + 7471 B + 2^15) >> 16.
    """
    weighted = tf.cast(image, tf.int32) * tf.constant([19595, 38470, 7471])
    return tf.bitwise.right_shift(tf.reduce_sum(weighted, axis=-1, keepdims=True) + 32768, 16)


def _blend(base: tf.Tensor, image: tf.Tensor, factor: Any) -> tf.Tensor:
    """`base + factor (image - base)`, clipped, without its fraction; `base` int32."""
    levels = tf.cast(image, tf.int32)
    mixed = tf.cast(base, tf.float32) + tf.cast(factor, tf.float32) * tf.cast(levels - base, tf.float32)
    return tf.cast(tf.clip_by_value(mixed, 0.0, 255.0), tf.uint8)


def adjust_brightness(image: tf.Tensor, factor: Any) -> tf.Tensor:
    """Blends with black: 0 gives black, 1 the picture. uint8 `(height, width, 3)` to the same; `factor` at least 0."""
    return _blend(tf.zeros((), tf.int32), image, factor)


def adjust_contrast(image: tf.Tensor, factor: Any) -> tf.Tensor:
    """Blends with the picture's mean grey, rounded. uint8 `(height, width, 3)` to the same; `factor` at least 0."""
    grey = luma(image)
    total, count = tf.reduce_sum(tf.cast(grey, tf.int64)), tf.size(grey, tf.int64)
    mean = tf.math.floordiv(2 * total + count, 2 * tf.maximum(count, 1))
    return _blend(tf.cast(mean, tf.int32), image, factor)


def adjust_saturation(image: tf.Tensor, factor: Any) -> tf.Tensor:
    """Blends every pixel with its own grey. uint8 `(height, width, 3)` to the same; `factor` at least 0."""
    return _blend(luma(image), image, factor)


def to_hsv(image: tf.Tensor) -> tf.Tensor:
    """Pillow's mode HSV: hue, saturation and value of 8 bits each, uint8 `(..., 3)` of uint8 `(..., 3)` RGB."""
    red, green, blue = tf.unstack(tf.cast(image, tf.float32), axis=-1)
    value = tf.maximum(red, tf.maximum(green, blue))
    spread = value - tf.minimum(red, tf.minimum(green, blue))
    divisor = tf.maximum(spread, 1.0)
    # Differences of two quotients, as rounding makes other numbers of the quotient of their difference.
    r, g, b = (tf.cast((value - x) / divisor, tf.float32) for x in (red, green, blue))
    sixths = tf.where(red == value, b - g, tf.where(green == value, _single(2.0, r, b), _single(4.0, g, r)))
    turns = tf.cast(sixths, tf.float64) / 6.0 + 1.0
    hue = tf.cast(tf.cast(turns - tf.floor(turns), tf.float32), tf.float64) * 255.0
    saturation = tf.cast(spread / tf.maximum(value, 1.0), tf.float64) * 255.0
    grey = spread == 0.0
    parts = [tf.where(grey, tf.zeros_like(part), part) for part in (hue, saturation)]
    return tf.stack([tf.cast(part, tf.uint8) for part in (*parts, value)], axis=-1)


def _single(start: float, plus: tf.Tensor, minus: tf.Tensor) -> tf.Tensor:
    """`start + plus - minus` in double precision, rounded once."""
    return tf.cast(start + tf.cast(plus, tf.float64) - tf.cast(minus, tf.float64), tf.float32)


def from_hsv(image: tf.Tensor) -> tf.Tensor:
    """The way back from `to_hsv`, as Pillow goes it: uint8 `(..., 3)` RGB of uint8 `(..., 3)`."""
    hue, saturation, value = (tf.cast(x, tf.float64) for x in tf.unstack(image, axis=-1))
    sixths = hue * 6.0 / 255.0
    sector = tf.floor(sixths)
    rest = tf.cast(sixths - sector, tf.float32)
    share = tf.cast(saturation / 255.0, tf.float32)

    def level(less: tf.Tensor) -> tf.Tensor:
        # Halves away from zero; nothing is negative here.
        return tf.floor(value * (1.0 - tf.cast(less, tf.float64)) + 0.5)

    low, falling = level(share), level(share * rest)
    rising = level(share * (1.0 - rest))
    number = tf.cast(sector, tf.int32) % 6
    options = [
        (value, rising, low),
        (falling, value, low),
        (low, value, rising),
        (low, falling, value),
        (rising, low, value),
        (value, low, falling),
    ]
    channels = []
    for channel in range(3):
        chosen = options[0][channel]
        for sixth in range(1, 6):
            chosen = tf.where(number == sixth, options[sixth][channel], chosen)
        channels.append(tf.where(saturation == 0.0, value, chosen))
    return tf.cast(tf.stack(channels, axis=-1), tf.uint8)


def adjust_hue(image: tf.Tensor, shift: Any) -> tf.Tensor:
    """Turns the circle of colours by `shift` (-0.5..0.5) of its length. uint8 `(height, width, 3)` to the same.

    The shift is truncated to 255ths towards zero, and hues wrap at 256, as in torchvision. A shift of 0 changes pictures a little,
    since HSV of 8 bits has fewer colours than RGB.
    """
    hsv = tf.cast(to_hsv(image), tf.int32)
    steps = tf.cast(tf.cast(shift, tf.float64) * 255.0, tf.int32)
    hue = tf.math.floormod(hsv[..., :1] + steps, 256)
    return from_hsv(tf.cast(tf.concat([hue, hsv[..., 1:]], axis=-1), tf.uint8))


_ADJUST = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def colour_jitter(image: tf.Tensor, factors: Any, order: Any) -> tf.Tensor:
    """Several changes after each other.

    Args:
        image: uint8 `(height, width, 3)`.
        factors: Factors of brightness, contrast and saturation, and the shift of hue; float `(4,)`.
        order: Numbers of operations (see `OPERATIONS`), the first to be applied first; int `(n,)` of known length. What is not
            among them is left out.

    Returns:
        uint8 `(height, width, 3)`.

    Raises:
        UsageError: the picture is not uint8, or the number of operations is not known.
    """
    image, order = tf.convert_to_tensor(image), tf.convert_to_tensor(order)
    if image.dtype != tf.uint8:
        raise UsageError(f"colour_jitter: expected a picture of whole grey levels (uint8), found {image.dtype.name}.")
    if order.shape.rank != 1 or order.shape[0] is None:
        raise UsageError(f"colour_jitter(order=...): expected a row of known length, found the shape {order.shape}.")
    factors = tf.cast(factors, tf.float64)
    shape = image.shape
    for place in range(order.shape[0]):
        branches = [lambda adjust=adjust, n=n, x=image: adjust(x, factors[n]) for n, adjust in enumerate(_ADJUST)]
        image = tf.ensure_shape(tf.switch_case(tf.cast(order[place], tf.int32), branches), shape)
    return image
