"""Where in a photo an attribute was seen: Grad-CAM (Selvaraju et al., ICCV 2017), and sheets of its maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw

from tf_fashion.core.errors import UsageError
from tf_fashion.core.files import atomic_write
from tf_fashion.encoders.image import ImageEncoder
from tf_fashion.inputs.images import scale_pixels
from tf_fashion.reports.attention import overlay, square_picture
from tf_fashion.reports.sheets import load_font, wrap

_PAPER, _INK, _FAINT, _LINE, _GREEN = (255, 255, 255), (31, 41, 55), (107, 114, 128), (229, 231, 235), (22, 163, 74)
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def grad_cam(
    encoder: Any,
    head: Callable[[Any], Any],
    images: Any,
    label_positions: Any,
    tap: str | None = None,
    batch_size: int = 16,
) -> np.ndarray:
    """Maps of where a label's logit comes from.

    With the logit y of a label and the channels A_k of a map, a channel's weight is the mean of dy/dA_k over the map, and the result
    is relu(sum_k weight_k A_k) (equations 1 and 2 of the paper), bilinearly enlarged and divided by its largest value: maps say
    where, and nothing about how sure the network is. What descriptors of the encoder contribute has no place and is left out.

    Args:
        encoder: `ImageEncoder`.
        head: Function from features, as `encoder.encode` gives them, to logits `(n, labels)`.
        images: Pixels `(n, S, S, 3)`, RGB in 0..255.
        label_positions: Position of the label among the logits: one for all photos, one for each `(n,)`, or several for each
            `(n, k)`.
        tap: Which map (see `ImageEncoder.taps`); default the encoder's last one. Earlier maps are finer and mean less: padding
            makes their corners bright.
        batch_size: Photos that go through the network at a time.

    Returns:
        float32 `(n, S, S)`, for several labels `(n, k, S, S)`, in 0..1; all zero where nothing speaks for the label.

    Raises:
        UsageError: the encoder has no maps, an unknown `tap`, positions of another shape or beyond the logits.
    """
    if not isinstance(encoder, ImageEncoder) or not encoder.taps:
        raise UsageError(f"grad_cam needs an ImageEncoder with feature maps, found {type(encoder).__name__}.")
    tap = encoder.taps[-1] if tap is None else tap
    network = encoder.tapped_network(tap)
    pixels = np.asarray(images, np.float32)
    side = encoder.image_size
    if pixels.ndim != 4 or pixels.shape[1:] != (side, side, 3):
        raise UsageError(f"grad_cam(images=...): expected pixels of shape (n, {side}, {side}, 3), found {pixels.shape}.")
    positions = np.asarray(label_positions)
    if positions.ndim == 0:
        positions = np.full(len(pixels), positions)
    if positions.ndim > 2 or len(positions) != len(pixels) or not np.issubdtype(positions.dtype, np.integer):
        wanted = f"a whole number, or such of shape ({len(pixels)},) or ({len(pixels)}, k)"
        raise UsageError(f"grad_cam(label_positions=...): expected {wanted}; found {positions.dtype} of shape {positions.shape}.")
    table = positions if positions.ndim == 2 else positions[:, np.newaxis]
    maps = [np.zeros((0, table.shape[1], side, side), np.float32)]
    for at in range(0, len(pixels), batch_size):
        part = slice(at, at + batch_size)
        maps.append(_maps(encoder, network, head, tf.constant(pixels[part]), table[part], tap))
    found = np.concatenate(maps)
    return found if positions.ndim == 2 else found[:, 0]


def _maps(encoder: ImageEncoder, network: Any, head: Callable, images: tf.Tensor, positions: np.ndarray, tap: str) -> np.ndarray:
    scaled = tf.cast(scale_pixels(images, encoder.scaling), encoder.compute_dtype)
    with tf.GradientTape(persistent=True) as tape:
        # Even where all weights are frozen everything has to be recorded.
        tape.watch(scaled)
        found = dict(network(scaled, training=False))
        seen = found[tap]
        logits = tf.cast(head(encoder.join_maps(found, images)), tf.float32)
        if positions.size and not 0 <= positions.min() <= positions.max() < logits.shape[-1]:
            raise UsageError(
                f"grad_cam(label_positions=...): expected 0 to {logits.shape[-1] - 1}, found {positions.min()} to {positions.max()}."
            )
        chosen = [tf.gather(logits, column, batch_dims=1) for column in positions.T]
    channels = tf.cast(seen, tf.float32)
    result = []
    for logit in chosen:
        gradient = tape.gradient(logit, seen)
        if gradient is None:
            raise UsageError(f"grad_cam: the logits do not depend on the map {tap!r}.")
        weights = tf.reduce_mean(tf.cast(gradient, tf.float32), axis=(1, 2), keepdims=True)
        coarse = tf.nn.relu(tf.reduce_sum(weights * channels, axis=-1, keepdims=True))
        fine = tf.image.resize(coarse, images.shape[1:3], "bilinear")[..., 0]
        result.append(tf.math.divide_no_nan(fine, tf.reduce_max(fine, axis=(1, 2), keepdims=True)))
    return np.stack([np.asarray(x) for x in result], axis=1) if result else np.zeros((len(images), 0, *images.shape[1:3]), np.float32)


@dataclass(frozen=True)
class SaliencyRow:
    """One photo with a map for each of some labels.

    Attributes:
        photo: Pixels `(height, width, 3)` in 0..255 as the network saw them, or a file, which is squeezed to a square.
        labels: Names of the labels.
        maps: Floats `(labels, height, width)` in 0..1.
        probabilities: Of the labels, or None.
        right: Whether each label is true, or None where that is not known.
        name: A few words, such as the photo's id.
    """

    photo: str | Path | np.ndarray
    labels: Sequence[str]
    maps: np.ndarray
    probabilities: Sequence[float] | None = None
    right: Sequence[bool] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        count = len(self.labels)
        if np.ndim(self.maps) != 3 or len(self.maps) != count:
            raise UsageError(f"Expected one map for each of {count} labels, found an array of shape {np.shape(self.maps)}.")
        for what in ("probabilities", "right"):
            value = getattr(self, what)
            if value is not None and len(value) != count:
                raise UsageError(f"A row of {count} labels has {len(value)} entries in `{what}`.")


def _captions(row: SaliencyRow) -> list[str]:
    if row.probabilities is None:
        return list(row.labels)
    return [f"{label} {probability:.2f}" for label, probability in zip(row.labels, row.probabilities, strict=True)]


def saliency_sheet(
    path: str | Path, rows: Sequence[SaliencyRow], *, title: str = "Where attributes were seen", note: str = "", tile: int = 150
) -> Path:
    """Draws photos, and beside each its maps, laid over it in yellow to red.

    Args:
        path: Ends in .png, .jpg, .jpeg or .webp; written whole or not at all.
        rows: One photo each. Rows may have different labels; names of right ones are green. A photo that cannot be read
            becomes a grey box.
        title, note: Header lines; `note` is wrapped if long.
        tile: Side of a picture in pixels.

    Raises:
        UsageError: no rows, another ending, or tiles smaller than 48.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise UsageError(f"A sheet is written as .png, .jpg or .webp, not as {path.name!r}.")
    if not rows:
        raise UsageError("A sheet needs at least one photo.")
    if tile < 48:
        raise UsageError(f"A sheet needs tiles of at least 48 pixels, found {tile}.")
    big, small = load_font(20), load_font(12)
    margin, gap, line = 24, 12, 16
    columns = 1 + max(len(row.labels) for row in rows)
    width = max(2 * margin + columns * (tile + gap) - gap, 420)
    header = wrap(note, small, width - 2 * margin) if note else []
    captions = [[wrap(caption, small, tile)[:2] for caption in (row.name, *_captions(row))] for row in rows]
    heights = [tile + 6 + line * max(map(len, texts)) + 14 for texts in captions]
    y = margin + 34 + line * len(header)
    sheet = Image.new("RGB", (width, y + sum(heights) + margin - 14), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, margin - 4), title, font=big, fill=_INK)
    for number, text in enumerate(header):
        draw.text((margin, margin + 26 + line * number), text, font=small, fill=_FAINT)
    for row, texts, height in zip(rows, captions, heights, strict=True):
        pictures = [square_picture(row.photo, tile), *(overlay(row.photo, values, 1.0, tile) for values in row.maps)]
        for column, (picture, caption) in enumerate(zip(pictures, texts, strict=True)):
            x = margin + column * (tile + gap)
            if picture is None:
                draw.rectangle((x, y, x + tile - 1, y + tile - 1), fill=_LINE)
            else:
                sheet.paste(picture, (x, y))
            right = column > 0 and row.right is not None and row.right[column - 1]
            for number, text in enumerate(caption):
                draw.text((x, y + tile + 4 + line * number), text, font=small, fill=_GREEN if right else _INK if column else _FAINT)
        y += height
    with atomic_write(path, "wb") as file:
        sheet.save(file, format=_FORMATS[path.suffix.lower()], quality=90)
    return path
