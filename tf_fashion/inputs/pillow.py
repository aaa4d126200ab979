"""CLIP's own transforms, computed by Pillow to the grey level, outside of any graph.

Models take what `images.ImageSpec.clip` describes, which is within one grey level of this. Here is the reference for it, and for
files that other programs shall read.
"""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from tf_fashion.core.errors import DataError, UsageError


def short_side_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height of a picture whose shorter side becomes `size`; the longer one is truncated to whole pixels."""
    shorter = min(width, height)
    return size * width // shorter, size * height // shorter


def _opened(picture: Any) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
            raise UsageError(f"Expected a picture as uint8 (height, width, 3), found {picture.dtype} of shape {picture.shape}.")
        return Image.fromarray(picture)
    where = "the given bytes" if isinstance(picture, bytes) else os.fspath(picture)
    try:
        opened = Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture)
        opened.load()
    except FileNotFoundError:
        raise DataError(f"{where}: missing.") from None
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: not a picture that Pillow reads ({error}).") from None
    return opened


def clip_pixels(picture: Any, size: int = 224, box: tuple[int, int, int, int] | None = None, original_mode: bool = False) -> np.ndarray:
    """A picture as CLIP sees it, before scaling: bicubic to `size` on the shorter side, then the square in the middle.

    Args:
        picture: Path, encoded bytes, array uint8 `(height, width, 3)` or `PIL.Image.Image`.
        size: Side of the result.
        box: None, or (top, left, height, width) of a part that is brought to the square instead, as in CLIP's training transform.
        original_mode: Resizes in the picture's own mode and makes it RGB afterwards, as the original does: palettes then go by nearest
            neighbour, and colours of transparent pixels appear.

    Returns:
        uint8 `(size, size, 3)`, RGB.

    Raises:
        DataError: the file is missing or no picture.
        UsageError: an array of another kind; `size` below 1.
    """
    if size < 1:
        raise UsageError(f"clip_pixels(size=...): expected at least 1, found {size}.")
    image = _opened(picture)
    if not original_mode:
        image = image.convert("RGB")
    if box is not None:
        top, left, height, width = (int(number) for number in box)
        image = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(image.convert("RGB"))
    full = short_side_size(*image.size, size)
    if image.size != full:
        image = image.resize(full, Image.Resampling.BICUBIC)
    # round() goes to the even neighbour at halves.
    left, top = (round((length - size) / 2) for length in full)
    return np.asarray(image.crop((left, top, left + size, top + size)).convert("RGB"))
