"""CLIP's transform by Pillow, and in the graph within a grey level of it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.inputs.pictures import photo
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.inputs.images import ImageSpec, resize_image
from tf_fashion.inputs.pillow import clip_pixels, short_side_size


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize("height, width", [(64, 64), (33, 120), (120, 33), (32, 50), (20, 21), (300, 32)])
def test_the_graph_is_within_a_grey_level(height: int, width: int) -> None:
    image = np.asarray(photo(height, width))
    difference = np.abs(np.asarray(resize_image(image, ImageSpec.clip(32))) - clip_pixels(image, 32))
    # Pillow 13 takes columns first in some tall pictures.
    assert difference.max() <= 2 and np.mean(difference > 1) < 1e-3


def test_sizes_are_truncated_and_halves_go_to_the_even_side() -> None:
    assert short_side_size(180, 120, 56) == (84, 56) and short_side_size(101, 203, 56) == (56, 112)
    assert short_side_size(33, 40, 33) == (33, 40)
    image = picture(8, 11)
    np.testing.assert_array_equal(clip_pixels(image, 8), image[:, 2:10])
    np.testing.assert_array_equal(clip_pixels(picture(13, 8), 8), picture(13, 8)[2:10])


def test_every_source_and_mode(tmp_path: Path) -> None:
    image = picture(20, 30)
    Image.fromarray(image).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), Image.fromarray(image)):
        np.testing.assert_array_equal(clip_pixels(source, 16), clip_pixels(image, 16))
    palette = Image.fromarray(image).convert("P")
    colours = {tuple(colour) for colour in np.asarray(palette.convert("RGB")).reshape(-1, 3)}
    by_nearest = clip_pixels(palette, 16, original_mode=True)
    assert {tuple(colour) for colour in by_nearest.reshape(-1, 3)} <= colours
    np.testing.assert_array_equal(clip_pixels(palette, 16), clip_pixels(palette.convert("RGB"), 16))
    clear = Image.fromarray(picture(20, 30, 4))
    assert np.abs(clip_pixels(clear, 16).astype(int) - clip_pixels(clear, 16, original_mode=True)).max() > 3
    grey = Image.fromarray(image[..., 0])
    np.testing.assert_array_equal(clip_pixels(grey, 16), clip_pixels(grey, 16, original_mode=True))


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture(90, 90)).save(buffer, "PNG")
    for source, message in ((b"no", "the given bytes"), (tmp_path / "none.png", "missing"), (buffer.getvalue()[:200], "not a picture")):
        with pytest.raises(DataError, match=message):
            clip_pixels(source)
    for bad in (picture(4, 4).astype("float32"), np.zeros(3, np.uint8)):
        with pytest.raises(UsageError, match="Expected a picture"):
            clip_pixels(bad)
    with pytest.raises(UsageError, match="at least 1"):
        clip_pixels(picture(4, 4), 0)
