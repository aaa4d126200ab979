"""Descriptors computed from pixels without learned weights: what ImageNet features see badly, colour above all.

Both work on a small copy of the picture (64 x 64 by averaging), so they cost little next to a backbone.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_fashion.core.registry import Registry
from tf_fashion.layers.normalization import _Float32Layer

DESCRIPTORS: Registry[type[keras.layers.Layer]] = Registry("image descriptor")

_SIDE = 64
_XYZ_FROM_RGB = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]], "float32"
)
_WHITE_D65 = np.array([0.95047, 1.0, 1.08883], "float32")


def rgb_to_lab(images: Any) -> Any:
    """sRGB in 0..255 to CIELab under D65: float32 `(..., 3)`, L in 0..100, a and b about -110..110."""
    unit = tf.clip_by_value(tf.cast(images, tf.float32) / 255.0, 0.0, 1.0)
    linear = tf.where(unit > 0.04045, ((unit + 0.055) / 1.055) ** 2.4, unit / 12.92)
    xyz = tf.einsum("...c,dc->...d", linear, tf.constant(_XYZ_FROM_RGB)) / tf.constant(_WHITE_D65)
    root = tf.where(xyz > 0.008856, tf.maximum(xyz, 1e-6) ** (1.0 / 3.0), 7.787 * xyz + 16.0 / 116.0)
    x, y, z = tf.unstack(root, axis=-1)
    return tf.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)], axis=-1)


def _small(images: Any) -> Any:
    """Mean pooling to 64 x 64 (`area` interpolation): `(batch, 64, 64, 3)` float32 in 0..255."""
    return tf.image.resize(tf.cast(images, tf.float32), (_SIDE, _SIDE), method="area")


class _Descriptor(_Float32Layer):
    """A layer from pictures `(batch, h, w, 3)` in 0..255 to `(batch, width)` float32, without weights."""

    width = 0

    def build(self, input_shape: Any) -> None:
        self.built = True

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (input_shape[0], self.width)


def _centres() -> np.ndarray:
    """Palette in Lab: 7 greys, and 12 hues at 4 lightnesses and 2 chromas."""
    greys = [(lightness, 0.0, 0.0) for lightness in (10, 25, 40, 55, 70, 85, 97)]
    hues = [
        (lightness, chroma * math.cos(hue * math.pi / 6), chroma * math.sin(hue * math.pi / 6))
        for lightness in (20, 40, 60, 80)
        for chroma in (18, 45)
        for hue in range(12)
    ]
    return np.array(greys + hues, "float32")


@DESCRIPTORS.register("colour")
@keras.saving.register_keras_serializable("tf_fashion")
class ColourHistogram(_Descriptor):
    """Which colours the garment has: a soft Lab histogram of the middle of the picture, background played down.

    A pixel counts as foreground the more it differs from the median of the picture's frame. Pixels are shared out softly
    (Gaussian, deviation 9 Lab units) over a palette of 103 colours; the histogram's square roots are followed by the mean Lab
    colour and the share of foreground.
    """

    width = 7 + 96 + 4

    def call(self, images: Any) -> Any:
        lab = rgb_to_lab(_small(images))
        turned = tf.transpose(lab, (0, 2, 1, 3))
        edges = [lab[:, :3], lab[:, -3:], turned[:, :3], turned[:, -3:]]
        frame = tf.concat([tf.reshape(edge, (-1, 3 * _SIDE, 3)) for edge in edges], axis=1)
        count = 12 * _SIDE
        background = tf.sort(frame, axis=1)[:, count // 2][:, None, None, :]
        foreground = tf.sigmoid((tf.sqrt(tf.reduce_sum((lab - background) ** 2, -1) + 1e-6) - 8.0) / 2.0)
        grid = (np.arange(_SIDE) / (_SIDE - 1) - 0.5).astype("float32")
        middle = np.exp(-(grid[:, None] ** 2 + grid[None, :] ** 2) / (2 * 0.25**2))
        weight = (foreground + 0.02) * tf.constant(middle)
        weight = weight / tf.reduce_sum(weight, axis=(1, 2), keepdims=True)
        pixels = tf.reshape(lab, (-1, _SIDE * _SIDE, 3))
        flat = tf.reshape(weight, (-1, 1, _SIDE * _SIDE))
        palette = tf.constant(_centres())
        # ||x - c||^2 without the pixel's own term, which cancels in the softmax.
        logits = (tf.einsum("bpc,kc->bpk", pixels, palette) - 0.5 * tf.reduce_sum(palette**2, -1)) / 81.0
        histogram = tf.matmul(flat, tf.nn.softmax(logits, axis=-1))[:, 0]
        mean = tf.matmul(flat, pixels)[:, 0] / 30.0
        share = tf.reduce_mean(foreground, axis=(1, 2))[:, None]
        return tf.concat([3.0 * tf.sqrt(histogram + 1e-8), mean, share], axis=-1)


@DESCRIPTORS.register("shape")
@keras.saving.register_keras_serializable("tf_fashion")
class GradientHistogram(_Descriptor):
    """Where edges of which direction are, colour-blind: histograms of oriented gradients (Dalal and Triggs, CVPR 2005).

    8 x 8 cells of 8 x 8 pixels with 9 directions; every cell is divided by the norm of each of the up to four 2 x 2 blocks it
    is part of, and the results are averaged.
    """

    width = 8 * 8 * 9

    def call(self, images: Any) -> Any:
        grey = tf.reduce_mean(_small(images), axis=-1)
        across = tf.pad(grey[:, :, 2:] - grey[:, :, :-2], [[0, 0], [0, 0], [1, 1]])
        down = tf.pad(grey[:, 2:] - grey[:, :-2], [[0, 0], [1, 1], [0, 0]])
        strength = tf.sqrt(across**2 + down**2 + 1e-6)
        direction = tf.math.floormod(tf.atan2(down, across), math.pi) / math.pi * 9.0
        # Linear votes for the two nearest directions, on a circle.
        gap = tf.abs(direction[..., None] - tf.range(9, dtype=tf.float32))
        votes = tf.maximum(1.0 - tf.minimum(gap, 9.0 - gap), 0.0) * strength[..., None]
        cells = 64.0 * tf.nn.avg_pool2d(votes, 8, 8, "VALID")
        energy = tf.reduce_sum(cells**2, axis=-1, keepdims=True)
        blocks = tf.sqrt(4.0 * tf.nn.avg_pool2d(energy, 2, 1, "VALID") + 400.0)
        # Mean over the blocks of 1/norm, brought back to the cells.
        inverse = tf.pad(1.0 / blocks, [[0, 0], [1, 1], [1, 1], [0, 0]])
        members = tf.pad(tf.ones_like(blocks), [[0, 0], [1, 1], [1, 1], [0, 0]])
        factor = tf.nn.avg_pool2d(inverse, 2, 1, "VALID") / tf.nn.avg_pool2d(members, 2, 1, "VALID")
        return tf.reshape(4.0 * tf.minimum(cells * factor, 0.4), (-1, self.width))
