"""Colour jitter against Pillow itself, and as part of augmentation."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance

from tests.inputs.pictures import photo
from tf_fashion.core.errors import UsageError
from tf_fashion.inputs.augment import Augmentation
from tf_fashion.inputs.colour_jitter import (
    OPERATIONS,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    colour_jitter,
    from_hsv,
    luma,
    to_hsv,
)
from tf_fashion.inputs.images import ImageSpec, preprocess

IMAGE = np.asarray(photo(40, 30))
ENHANCERS = {
    "Brightness": adjust_brightness,
    "Contrast": adjust_contrast,
    "Color": adjust_saturation,
}


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def as_hsv(image: np.ndarray) -> Image.Image:
    return Image.merge("HSV", [Image.fromarray(np.ascontiguousarray(image[..., channel])) for channel in range(3)])


def test_grey_and_hsv_are_pillows() -> None:
    levels = np.arange(256, dtype=np.uint8)
    flat = np.stack(np.meshgrid(levels, [0, 7, 128, 255], indexing="ij"), -1)
    for image in (noise(0, 120, 130), np.concatenate([flat, flat[..., :1]], -1).astype(np.uint8), IMAGE):
        pillow = Image.fromarray(image)
        np.testing.assert_array_equal(luma(image)[..., 0], np.asarray(pillow.convert("L")))
        np.testing.assert_array_equal(to_hsv(image), np.asarray(pillow.convert("HSV")))
        np.testing.assert_array_equal(from_hsv(image), np.asarray(as_hsv(image).convert("RGB")))


@pytest.mark.parametrize("name", ENHANCERS)
def test_blends_are_pillows(name: str) -> None:
    for seed, factor in enumerate((0.0, 0.2, 0.81234, 1.0, 1.19, 1.7)):
        for image in (noise(seed, 23, 31), IMAGE, np.full((3, 4, 3), 255, np.uint8)):
            theirs = getattr(ImageEnhance, name)(Image.fromarray(image)).enhance(factor)
            np.testing.assert_array_equal(ENHANCERS[name](image, factor), np.asarray(theirs), str(factor))


@pytest.mark.parametrize("shift", [-0.5, -0.1, -0.003, 0.0, 0.003, 0.0999, 0.5])
def test_hue_wraps_at_256_and_truncates_towards_zero(shift: float) -> None:
    image = noise(1, 40, 50)
    hsv = np.array(Image.fromarray(image).convert("HSV"))
    hsv[..., 0] = (hsv[..., 0].astype(int) + int(shift * 255)) % 256
    np.testing.assert_array_equal(adjust_hue(image, shift), np.asarray(as_hsv(hsv).convert("RGB")))


def test_the_order_matters_and_may_be_incomplete() -> None:
    factors = [1.2, 0.8, 1.15, -0.07]
    chained = adjust_contrast(adjust_hue(adjust_brightness(IMAGE, 1.2), -0.07), 0.8)
    run = tf.function(colour_jitter)
    np.testing.assert_array_equal(run(IMAGE, factors, tf.constant([0, 3, 1])), chained)
    results = {run(IMAGE, factors, tf.constant(order)).numpy().tobytes() for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2])}
    assert len(results) == 3
    np.testing.assert_array_equal(colour_jitter(IMAGE, factors, np.zeros((0,), np.int32)), IMAGE)
    assert OPERATIONS == ("brightness", "contrast", "saturation", "hue")
    with pytest.raises(UsageError, match="uint8"):
        colour_jitter(IMAGE.astype("float32"), factors, [0])
    with pytest.raises(UsageError, match="known length"):
        colour_jitter(IMAGE, factors, 1)


def test_augmentation_draws_factors_and_an_order() -> None:
    augment = Augmentation.imaterialist()
    assert augment.on_pixels and Augmentation.from_config(augment.to_config()) == augment
    spec = ImageSpec(24, scaling="raw")
    run = tf.function(lambda seed: preprocess(IMAGE, spec, augment, seed))
    plain = preprocess(IMAGE, spec).numpy()
    pictures = [run(tf.constant([5, n])).numpy() for n in range(12)]
    np.testing.assert_array_equal(pictures[3], run(tf.constant([5, 3])))
    assert len({picture.tobytes() for picture in pictures}) == 12
    for picture in pictures:
        np.testing.assert_array_equal(picture, np.rint(picture))
        assert picture.min() >= 0 and picture.max() <= 255
        apart = min(np.abs(picture - plain).mean(), np.abs(picture - plain[:, ::-1]).mean())
        assert 0 < apart < 60
    # What is not asked for is left out, the quantisation of hue too.
    still = Augmentation(flip=0.0, jitter="pillow")
    np.testing.assert_array_equal(preprocess(IMAGE, spec, still, tf.constant([1, 2])), plain)
    brighter = Augmentation(flip=0.0, brightness=0.3, jitter="pillow")(IMAGE, tf.constant([1, 2])).numpy()
    factor = brighter.sum() / IMAGE.sum()
    np.testing.assert_allclose(brighter, np.clip(IMAGE * factor, 0, 255), atol=2)
    with pytest.raises(UsageError, match="jitter"):
        Augmentation(jitter="opencv")


def test_the_order_is_drawn_evenly() -> None:
    # One bright and one dark half: contrast before or after brightness clips other pixels.
    image = np.concatenate([np.full((4, 4, 3), 230, np.uint8), np.full((4, 4, 3), 20, np.uint8)])
    augment = Augmentation(flip=0.0, brightness=1.0, contrast=1.0, jitter="pillow")
    run = tf.function(lambda seed: augment(image, seed))
    first = 0
    for number in range(40):
        seed = tf.constant([number, 1])
        draws = (2 * tf.random.stateless_uniform((9,), seed) - 1)[5:7].numpy() + 1
        ours = run(seed).numpy()
        orders = [colour_jitter(image, [*draws, 1, 0], order).numpy() for order in ([0, 1], [1, 0])]
        assert any(np.array_equal(ours, picture) for picture in orders)
        first += np.array_equal(ours, orders[0]) and not np.array_equal(*orders)
    assert 5 < first < 35
