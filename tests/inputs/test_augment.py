import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.inputs.pictures import photo
from tf_fashion.core.errors import UsageError
from tf_fashion.inputs.augment import Augmentation, affine, affine_matrix
from tf_fashion.inputs.images import ImageSpec, preprocess, resize_and_crop
from tf_fashion.inputs.pillow import clip_pixels

IMAGE = np.asarray(photo(40, 40))


def test_nearest_affine_equals_pillow():
    rng = np.random.default_rng(0)
    for _ in range(12):
        array = rng.integers(0, 256, (33, 47, 3), dtype=np.uint8)
        angle, x, y, scale = rng.uniform(-45, 45), *rng.integers(-6, 7, 2), rng.uniform(0.8, 1.2)
        matrix = affine_matrix(33, 47, angle, (x, y), scale, 0.5).numpy()
        expected = Image.fromarray(array).transform((47, 33), Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)
        np.testing.assert_array_equal(affine(array, angle, (x, y), scale, "nearest", 0.5), np.asarray(expected))


def test_bilinear_affine_is_smooth_and_identity():
    image = IMAGE.astype(np.float32)
    np.testing.assert_allclose(affine(image), image, atol=1e-3)
    moved = affine(image, translate=(3, -2)).numpy()
    np.testing.assert_allclose(moved[:-2, 3:], image[2:, :-3], atol=1e-3)
    assert not moved[-2:].any() and not moved[:, :3].any()
    quarter = affine(image, angle=90.0).numpy()
    np.testing.assert_allclose(quarter, np.rot90(image, -1), atol=0.05)
    with pytest.raises(UsageError):
        affine(image, interpolation="bicubic")


def test_same_seed_same_picture_inside_tf_data():
    augment = Augmentation(0.5, 30, 0.1, (0.9, 1.1), crop_area=(0.5, 1.0), brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05)
    spec = ImageSpec(24, scaling="raw")

    def run(count: int) -> np.ndarray:
        data = tf.data.Dataset.range(count).map(lambda i: preprocess(IMAGE, spec, augment, tf.stack([7, tf.cast(i, tf.int32)])))
        return np.stack(list(data.as_numpy_iterator()))

    first, again = run(6), run(6)
    np.testing.assert_array_equal(first, again)
    assert len({image.tobytes() for image in first}) == 6
    assert first.shape == (6, 24, 24, 3) and first.min() >= 0 and first.max() <= 255


def test_flip_frequency_and_default():
    run = tf.function(lambda seed: Augmentation()(IMAGE, seed))
    flipped = [np.array_equal(run(tf.constant([0, i])), IMAGE[:, ::-1]) for i in range(60)]
    assert 15 < sum(flipped) < 45
    np.testing.assert_array_equal(Augmentation(flip=0.0)(IMAGE, [1, 2]), IMAGE)
    assert Augmentation(crop_area=(0.3, 0.4))(IMAGE, tf.constant([1, 2])).shape == (40, 40, 3)


def test_config():
    augment = Augmentation.fashion_iq_2020(legacy=True)
    assert augment.interpolation == "nearest" and augment.center_offset == 0.5
    assert Augmentation.from_config(json.loads(json.dumps(augment.to_config()))) == augment
    assert hash(augment) == hash(Augmentation.fashion_iq_2020(legacy=True))
    for bad in ({"flip": 2}, {"scale": (0, 1)}, {"crop_area": (0.5, 2)}, {"interpolation": "x"}, {"hue": 0.7}):
        with pytest.raises(UsageError):
            Augmentation(**bad)
    with pytest.raises(UsageError, match="blur"):
        Augmentation.from_config({"blur": 1})
    with pytest.raises(UsageError, match="seed"):
        preprocess(IMAGE, ImageSpec(8), augment)


def test_vals_crop_equals_its_parts():
    spec = ImageSpec(24, scaling="raw", interpolation="bilinear_tf1", antialias=False)
    augment = Augmentation(flip=0.5, flip_first=True, side_below=40)
    image = np.asarray(photo(50, 37))
    flipped = 0
    for number in range(12):
        seed = tf.constant([number, 5])
        side, top, left = (int(value) for value in augment.draw_crop(24, seed))
        assert 24 <= side < 40 and 0 <= top <= side - 24 and 0 <= left <= side - 24
        result = preprocess(image, spec, augment, seed).numpy()
        candidates = [resize_and_crop(photograph, side, top, left, spec).numpy() for photograph in (image, image[:, ::-1])]
        matches = [np.array_equal(result, candidate) for candidate in candidates]
        assert any(matches)
        flipped += matches[1] and not matches[0]
    assert 2 <= flipped <= 10
    assert not augment.on_pixels and Augmentation().on_pixels
    assert Augmentation.from_config(Augmentation.val().to_config()) == Augmentation.val()
    for wrong in (lambda: augment(image, seed), lambda: augment.draw_crop(40, seed), lambda: Augmentation(side_below=0)):
        with pytest.raises(UsageError, match="side_below"):
            wrong()


def test_tf1_sampling_starts_at_the_corner():
    row = np.arange(4, dtype=np.float32).reshape(1, 4, 1).repeat(3, axis=2).repeat(4, axis=0)
    spec = ImageSpec(8, scaling="raw", interpolation="bilinear_tf1")
    np.testing.assert_allclose(preprocess(row, spec)[0, :, 0], [0, 0.5, 1, 1.5, 2, 2.5, 3, 3], atol=1e-6)
    with pytest.raises(UsageError, match="squash"):
        ImageSpec(8, resize="crop", interpolation="bilinear_tf1")


@pytest.mark.parametrize("height, width", [(40, 60), (60, 40), (50, 50), (20, 200), (200, 20), (1, 90)])
def test_clips_crop_is_of_the_right_size_and_shape_or_the_largest_in_the_middle(height: int, width: int) -> None:
    augment = Augmentation.clip()
    boxes = np.array([augment.draw_box(height, width, tf.constant([3, n])) for n in range(40)])
    top, left, high, wide = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + high <= height).all() and (left + wide <= width).all()
    ratios, areas = wide / high, wide * high / (width * height)
    if max(height, width) > 100 or min(height, width) == 1:
        limit = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        np.testing.assert_array_equal(boxes, [[(height - limit[1]) // 2, (width - limit[0]) // 2, limit[1], limit[0]]] * 40)
        return
    middle = (top == (height - high) // 2) & (left == (width - wide) // 2)
    assert ((areas > 0.87) | middle).all() and ratios.min() > 0.72 and ratios.max() < 1.4
    # Hardly any of the crops that are drawn of a photo of 3 : 2 fits.
    assert len({tuple(box) for box in boxes.tolist()}) >= (20 if height == width else 2)


def test_clips_crop_is_squashed_to_the_square_whatever_the_resize_rule() -> None:
    image = np.random.default_rng(0).integers(0, 255, (30, 50, 3), np.uint8)
    seed, augment = tf.constant([1, 2]), Augmentation.clip()
    top, left, height, width = augment.draw_box(30, 50, seed).numpy()
    found = preprocess(image, ImageSpec.clip(16, "raw"), augment, seed)
    wanted = clip_pixels(image, 16, (top, left, height, width))
    np.testing.assert_allclose(found, wanted, atol=1.01)
    again = Augmentation.from_config(augment.to_config())
    assert again == augment and not augment.on_pixels
    for bad in ({"crop_tries": 3}, {"crop_area": (0.5, 1.0), "crop_tries": -1}):
        with pytest.raises(UsageError, match="crop_tries"):
            Augmentation(**bad)
    with pytest.raises(UsageError, match="draw_box needs"):
        Augmentation().draw_box(3, 3, seed)
