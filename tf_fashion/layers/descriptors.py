"""Descriptors computed from pixels without learned weights: what ImageNet features see badly, colour above all.

All work on a small copy of the picture (64 x 64 by averaging), so they cost little next to a backbone.
"""

from __future__ import annotations

import functools
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
    xyz = tf.tensordot(linear, tf.constant(_XYZ_FROM_RGB.T), 1) / tf.constant(_WHITE_D65)
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


def _compressed(lab: Any) -> Any:
    """Lab whose chroma C became log(1 + 0.045 C) / 0.045: steps in it are about CIE94's (CIE 116-1995), whose unit of chroma grows
    with 1 + 0.045 C, so that an even grid is fine where navy, charcoal and black part, and coarse among vivid colours."""
    chroma = tf.sqrt(tf.reduce_sum(lab[..., 1:] ** 2, axis=-1, keepdims=True) + 1e-4)
    # ONNX has no log1p.
    factor = tf.math.log(1.0 + 0.045 * chroma) / (0.045 * chroma)
    return tf.concat([lab[..., :1], lab[..., 1:] * factor], axis=-1)


# An even grid in compressed Lab: 11 lightnesses, and 9 steps of 8 on each of the two chroma axes.
_LIGHTNESSES = np.linspace(0.0, 100.0, 11, dtype="float32")
_CHROMAS = np.linspace(-32.0, 32.0, 9, dtype="float32")


def _shares(values: Any, nodes: np.ndarray) -> Any:
    """Linear shares of values among the two nearest of evenly spaced nodes: `(..., len(nodes))`, sum 1."""
    step = float(nodes[1] - nodes[0])
    inside = tf.clip_by_value(values, float(nodes[0]), float(nodes[-1]))
    return tf.maximum(1.0 - tf.abs(inside[..., None] - tf.constant(nodes)) / step, 0.0)


@functools.cache
def _grid_in_gamut() -> np.ndarray:
    """Places in the grid that sRGB's colours reach, as flat numbers."""
    # In float64 and NumPy, so that the choice is the same on every machine.
    axis = np.linspace(0.0, 1.0, 18)
    rgb = np.stack(np.meshgrid(axis, axis, axis), -1).reshape(-1, 3)
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = linear @ _XYZ_FROM_RGB.astype("float64").T / _WHITE_D65.astype("float64")
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16.0 / 116.0).T
    lab = np.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)])
    chroma = np.sqrt(lab[1] ** 2 + lab[2] ** 2 + 1e-4)
    lab[1:] *= np.log1p(0.045 * chroma) / (0.045 * chroma)

    def shares(values: np.ndarray, nodes: np.ndarray) -> np.ndarray:
        inside = np.clip(values, nodes[0], nodes[-1])[:, None]
        return np.maximum(1.0 - np.abs(inside - nodes) / (nodes[1] - nodes[0]), 0.0)

    axes = [shares(values, nodes.astype("float64")) for values, nodes in zip(lab, (_LIGHTNESSES, _CHROMAS, _CHROMAS), strict=True)]
    total = np.einsum("pl,pa,pb->lab", *axes).ravel()
    return np.nonzero(total > 2.502)[0]


def _background(lab: Any, count: int = 4, rounds: int = 6) -> tuple[Any, Any]:
    """Colours of the picture's frame by k-means (Lloyd, 1982) from the median and the colours farthest from what is chosen already
    (Gonzalez, 1985): centres `(batch, count, 3)` and their shares of the frame `(batch, count)`."""
    turned = tf.transpose(lab, (0, 2, 1, 3))
    edges = [lab[:, :3], lab[:, -3:], turned[:, :3], turned[:, -3:]]
    frame = tf.concat([tf.reshape(edge, (-1, 3 * _SIDE, 3)) for edge in edges], axis=1)
    pixels = 12 * _SIDE
    centres = tf.sort(frame, axis=1)[:, pixels // 2][:, None]
    for _ in range(count - 1):
        gaps = tf.reduce_min(tf.reduce_sum((frame[:, :, None] - centres[:, None]) ** 2, axis=-1), axis=-1)
        farthest = tf.one_hot(tf.argmax(gaps, axis=1), pixels)
        centres = tf.concat([centres, tf.matmul(farthest[:, None], frame)], axis=1)
    sizes = tf.zeros_like(centres[..., 0])
    for _ in range(rounds):
        gaps = tf.reduce_sum((frame[:, :, None] - centres[:, None]) ** 2, axis=-1)
        members = tf.one_hot(tf.argmin(gaps, axis=-1), count, axis=1)
        sizes = tf.reduce_sum(members, axis=-1)
        means = tf.matmul(members, frame) / tf.maximum(sizes, 1.0)[..., None]
        centres = tf.where(sizes[..., None] > 0.0, means, centres)
    return centres, sizes / pixels


def _foreground(lab: Any) -> Any:
    """How much each pixel differs from all colours of the frame, `(batch, 64, 64)` in 0..1. Lightness counts less, for shadows."""
    scaled = lab * tf.constant([0.6, 1.0, 1.0])
    centres, shares = _background(scaled)
    # Colours of a small part of the frame are those of a garment that touches it.
    ignored = tf.where(shares < 0.08, 1000.0, 0.0)[:, None, None]
    gaps = tf.sqrt(tf.reduce_sum((scaled[:, :, :, None] - centres[:, None, None]) ** 2, axis=-1) + 1e-6) + ignored
    nearest = tf.nn.avg_pool2d(tf.reduce_min(gaps, axis=-1)[..., None], 3, 1, "SAME")[..., 0]
    return tf.sigmoid((nearest - 11.0) / 2.0)


def _bell(deviation: float) -> np.ndarray:
    """Gaussian weights around the picture's middle, 64 x 64; the deviation is a share of its side."""
    places = (np.arange(_SIDE) + 0.5) / _SIDE - 0.5
    return np.exp(-(places[:, None] ** 2 + places[None, :] ** 2) / (2 * deviation**2)).astype("float32")


def _tiles(count: int) -> np.ndarray:
    """Overlapping windows `(count * count, 64, 64)` with linear slopes, which add up to 1 everywhere."""
    middles = ((np.arange(count) + 0.5) / count - 0.5).astype("float32")
    places = ((np.arange(_SIDE) + 0.5) / _SIDE - 0.5).astype("float32")
    inside = np.clip(places, middles[0], middles[-1])
    slopes = np.maximum(1.0 - np.abs(inside[None] - middles[:, None]) * count, 0.0)
    return np.einsum("iy,jx->ijyx", slopes, slopes).reshape(-1, _SIDE, _SIDE).astype("float32")


def _weighted(weights: Any) -> Any:
    """Maps of weights `(batch, maps, 64, 64)` flat and with sum 1: `(batch, maps, 4096)`."""
    flat = tf.reshape(weights, (-1, weights.shape[1], _SIDE * _SIDE))
    return flat / (tf.reduce_sum(flat, axis=-1, keepdims=True) + 1e-3)


@DESCRIPTORS.register("colour_layout")
@keras.saving.register_keras_serializable("tf_fashion")
class ColourLayout(_Descriptor):
    """Which colours the garment has, finer than `ColourHistogram`, and where: it parts navy from black, and a shirt from the trousers
    below it.

    Foreground is what differs from all colours of the picture's frame (k-means with four centres), not from its median alone. The
    values are square roots of two histograms, under a wide and a narrow bell around the middle; the mean colours of 4 x 4 overlapping
    windows, in the spirit of MPEG-7's colour layout (Manjunath et al., "Color and texture descriptors", IEEE CSVT 2001); and the
    foreground's share in each of 4 x 4 tiles. Histograms have an even grid in Lab with compressed chroma (see `_compressed`), of which
    the places are kept that sRGB reaches; a pixel is shared out linearly among the eight nearest.
    """

    width = 2 * 434 + 16 * 3 + 16

    def call(self, images: Any) -> Any:
        lab = rgb_to_lab(_small(images))
        foreground = _foreground(lab)
        pixels = tf.reshape(_compressed(lab), (-1, _SIDE * _SIDE, 3))
        bells = tf.constant(np.stack([_bell(0.25), _bell(0.12)]))
        weights = _weighted((foreground + 0.02)[:, None] * bells)
        # A pixel's share of a place is a product over the axes, so that one matrix product makes the histogram.
        lightness = _shares(pixels[..., 0], _LIGHTNESSES)
        plane = _shares(pixels[..., 1], _CHROMAS)[..., :, None] * _shares(pixels[..., 2], _CHROMAS)[..., None, :]
        plane = tf.reshape(plane, (-1, _SIDE * _SIDE, len(_CHROMAS) ** 2))
        rows = weights[:, :, None] * tf.transpose(lightness, (0, 2, 1))[:, None]
        counts = tf.matmul(tf.reshape(rows, (-1, 2 * len(_LIGHTNESSES), _SIDE * _SIDE)), plane)
        counts = tf.reshape(counts, (-1, 2, len(_LIGHTNESSES) * len(_CHROMAS) ** 2))
        histograms = tf.reshape(tf.gather(counts, _grid_in_gamut(), axis=-1), (-1, 2 * len(_grid_in_gamut())))
        tiles = _weighted((foreground + 0.05)[:, None] * tf.constant(_tiles(4)))
        means = tf.reshape(tf.matmul(tiles, pixels), (-1, 48)) / 20.0
        shares = tf.reshape(tf.nn.avg_pool2d(foreground[..., None], 16, 16, "VALID"), (-1, 16))
        return tf.concat([3.0 * tf.sqrt(histograms + 1e-8), means, shares], axis=-1)


@DESCRIPTORS.register("texture")
@keras.saving.register_keras_serializable("tf_fashion")
class SurfaceContrast(_Descriptor):
    """Whether the garment is plain or patterned: contrast inside it, away from its outline.

    The standard deviations of L, a and b in 5 x 5 pixels, averaged over the foreground of `ColourLayout` less a rim of two pixels;
    the shares of pixels whose deviation is above about 6; and the mean Lab colour.
    """

    width = 9

    def call(self, images: Any) -> Any:
        lab = rgb_to_lab(_small(images))
        mean = tf.nn.avg_pool2d(lab, 5, 1, "SAME")
        variance = tf.nn.avg_pool2d(lab**2, 5, 1, "SAME") - mean**2
        deviation = tf.reshape(tf.sqrt(tf.maximum(variance, 0.0) + 1e-3), (-1, _SIDE * _SIDE, 3))
        inner = -tf.nn.max_pool2d(-_foreground(lab)[..., None], 5, 1, "SAME")[..., 0]
        weight = _weighted(((inner + 0.01) * tf.constant(_bell(0.25)))[:, None])
        parts = (deviation / 5.0, tf.sigmoid((deviation - 6.0) / 2.0), tf.reshape(lab, (-1, _SIDE * _SIDE, 3)) / 20.0)
        return tf.concat([tf.matmul(weight, part)[:, 0] for part in parts], axis=-1)
