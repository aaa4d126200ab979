"""Maps over a photo: where each word of a sentence acts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tf_fashion.core.errors import UsageError
from tf_fashion.reports.sheets import open_picture

# From nothing to much: transparent, yellow, red.
_FAINT = np.array([255.0, 221.0, 80.0])
_STRONG = np.array([205.0, 20.0, 30.0])
_OPACITY = 0.75


@dataclass(frozen=True)
class WordMaps:
    """One query with a map for each of its words.

    Attributes:
        reference: The photo.
        words: The words.
        maps: Floats `(words, height, width)`, at least 0; comparable among the words of this query.
        note: A few words, such as the category.
    """

    reference: str | Path
    words: Sequence[str]
    maps: np.ndarray
    note: str = ""

    def __post_init__(self) -> None:
        if np.ndim(self.maps) != 3 or len(self.maps) != len(self.words):
            raise UsageError(f"Expected one map for each of {len(self.words)} words, found an array of shape {np.shape(self.maps)}.")

    def strengths(self) -> list[float]:
        """Each word's mean over the map, relative to the strongest word."""
        means = self.maps.reshape(len(self.words), -1).mean(axis=1)
        return [float(mean / max(means.max(), 1e-12)) for mean in means]


def square_picture(photo: str | Path | np.ndarray, side: int) -> Image.Image | None:
    """A photo squeezed to a square, or pixels `(height, width, 3)` in 0..255; None where there is no such photo."""
    if isinstance(photo, np.ndarray):
        picture: Image.Image | None = Image.fromarray(np.clip(np.rint(photo), 0, 255).astype(np.uint8))
    else:
        picture = open_picture(photo, 2 * side)
    return None if picture is None else picture.resize((side, side), Image.Resampling.LANCZOS)


def overlay(photo: str | Path | np.ndarray, values: np.ndarray, largest: float, side: int) -> Image.Image | None:
    """A photo with a map laid over it, bilinearly enlarged; None where the photo cannot be shown.

    Args:
        photo: The photo, which is squeezed to a square as the map's network saw it; or pixels (see `square_picture`).
        values: Map `(height, width)`.
        largest: The value that is drawn opaque red.
        side: Side in pixels.
    """
    picture = square_picture(photo, side)
    if picture is None:
        return None
    base = np.asarray(picture, np.float64)
    scaled = Image.fromarray(np.clip(values / max(largest, 1e-12), 0, 1).astype(np.float32)).resize(
        (side, side), Image.Resampling.BILINEAR
    )
    strength = np.asarray(scaled, np.float64)[..., None]
    colour = _FAINT * (1 - strength) + _STRONG * strength
    opacity = _OPACITY * strength
    grey = base.mean(axis=2, keepdims=True)
    return Image.fromarray((grey * (1 - opacity) + colour * opacity).round().clip(0, 255).astype(np.uint8))
