"""The attribute predictor's pictures: resizing, normalising and back, colour jitter as Pillow computes it, mirroring."""

from __future__ import annotations

import re

import numpy as np
import tensorflow as tf

from tests.parity.harness import Fixture, checks
from tf_fashion.inputs.augment import Augmentation
from tf_fashion.inputs.colour_jitter import (
    OPERATIONS,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    colour_jitter,
)
from tf_fashion.inputs.images import ImageSpec, decode_image, display_pixels, preprocess, resize_to, scale_pixels

SIDE = 512
ONE_LEVEL = 0.012
ADJUST = {"brightness": adjust_brightness, "contrast": adjust_contrast, "saturation": adjust_saturation, "hue": adjust_hue}


def _nchw(images: tf.Tensor) -> np.ndarray:
    return np.asarray(images).transpose(2, 0, 1)


@checks(r"preprocess\.npz")
def preprocess_npz(fixture: Fixture) -> None:
    # VAL's recording has this name, too.
    if "std_full" not in fixture.data:
        return
    _statistics(fixture)
    pictures = {key[4:]: fixture.input(key) for key in fixture.data if re.fullmatch(r"rgb_\d+", key)}
    for number, picture in pictures.items():
        _decoded(fixture, number, picture)
        for key in [key for key in fixture.data if re.fullmatch(rf"resized_{number}_\d+x\d+", key)]:
            _resized(fixture, number, key.rsplit("_", 1)[1], picture)
    _large(fixture, pictures["0"])
    _jitter(fixture, pictures["1"])


def _statistics(fixture: Fixture) -> None:
    for name, scaling in (("full", "imaterialist"), ("rounded", "imaterialist_rounded")):
        # Black and white tell both numbers.
        black, white = (scale_pixels(tf.fill((1, 1, 3), level), scaling).numpy().ravel().astype(np.float64) for level in (0.0, 255.0))
        deviation = 1 / (white - black)
        fixture.compare(f"std_{name}", deviation, rtol=1e-6, atol=0)
        fixture.compare(f"mean_{name}", -black * deviation, rtol=1e-6, atol=0)


def _decoded(fixture: Fixture, number: str, picture: np.ndarray) -> None:
    decoded = decode_image(fixture.input(f"jpeg_{number}").tobytes(), ImageSpec()).numpy()
    apart = np.abs(decoded.astype(int) - picture).mean() if decoded.shape == picture.shape else np.inf
    fixture.close(f"jpeg_{number}", apart, 0.0, rtol=0, atol=8, note="mean grey levels apart: decoders differ at sharp edges")


def _resized(fixture: Fixture, number: str, size: str, picture: np.ndarray) -> None:
    height, width = (int(side) for side in size.split("x"))
    spec = ImageSpec(scaling="raw")
    ours = tf.floor(resize_to(picture, height, width, spec) + 0.5)
    fixture.within(f"resized_{number}_{size}", ours, 1)
    normalised = scale_pixels(ours, "imaterialist")
    fixture.compare(f"norm_{number}_{size}", _nchw(normalised), rtol=0, atol=ONE_LEVEL)
    recorded = fixture.data[f"resized_{number}_{size}"]
    exactly = scale_pixels(tf.constant(recorded), "imaterialist")
    fixture.compare(f"norm_{number}_{size}", _nchw(exactly), rtol=0, atol=1e-6, note="from the recorded picture")
    theirs = tf.constant(fixture.data[f"norm_{number}_{size}"].transpose(1, 2, 0))
    fixture.exact(f"denorm_{number}_{size}", display_pixels(theirs, "imaterialist", legacy_truncate=True))
    fixture.exact(f"resized_{number}_{size}", display_pixels(theirs, "imaterialist"), note="rounded on the way back")
    if height == width:
        square = preprocess(tf.constant(picture), ImageSpec(height, scaling="imaterialist"))
        fixture.compare(f"norm_{number}_{size}", _nchw(square), rtol=0, atol=1.01 * ONE_LEVEL, note="in one go, not rounded")


def _large(fixture: Fixture, picture: np.ndarray) -> None:
    def rows(pixels: np.ndarray, key: str) -> None:
        recorded = fixture.data[key]
        fixture.within(key, np.floor(pixels[:: SIDE // len(recorded)] + 0.5), 1)

    pixels = preprocess(tf.constant(picture), ImageSpec(SIDE, scaling="raw")).numpy()
    rows(pixels, "resized512_0_rows")
    fixture.compare("resized512_0_channel_mean", pixels.mean(axis=(0, 1), dtype=np.float64), rtol=0, atol=0.1)
    normalised = preprocess(tf.constant(picture), ImageSpec(SIDE, scaling="imaterialist")).numpy().astype(np.float64)
    fixture.compare("norm512_0_channel_mean", normalised.mean(axis=(0, 1)), rtol=0, atol=2e-3)
    fixture.compare("norm512_0_channel_std", normalised.std(axis=(0, 1)), rtol=0, atol=2e-3)
    # The notebooks' path: bicubic, and statistics of four digits.
    bicubic = ImageSpec(SIDE, interpolation="bicubic", scaling="raw")
    pixels = preprocess(tf.constant(picture), bicubic).numpy()
    rows(pixels, "notebook_bicubic512_0_rows")
    mean = scale_pixels(pixels, "imaterialist_rounded").numpy().mean(axis=(0, 1), dtype=np.float64)
    fixture.compare("notebook_norm512_0_channel_mean", mean, rtol=0, atol=2e-3)


def _jitter(fixture: Fixture, picture: np.ndarray) -> None:
    for name, adjust in ADJUST.items():
        fixture.exact(f"single_{name}_out", adjust(tf.constant(picture), fixture.input(f"single_{name}_factor")))
    for key in [key for key in fixture.data if re.fullmatch(r"jit\d+_out", key)]:
        number = key.removesuffix("_out")
        factors, order = fixture.input(f"{number}_factors_bcsh"), fixture.input(f"{number}_order")
        fixture.exact(key, colour_jitter(tf.constant(picture), factors, order))
    fixture.equal("operations", tuple(ADJUST), OPERATIONS)
    mirrored = Augmentation(flip=1.0)(tf.constant(picture), tf.constant([0, 0]))
    fixture.exact("hflip_out", mirrored)
