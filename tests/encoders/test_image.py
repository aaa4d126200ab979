"""Image encoders: recorded features, weights of the wrong kind, descriptors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.shared import shared
from tf_fashion.core.errors import UsageError, WeightsError
from tf_fashion.encoders.image import ImageEncoder
from tf_fashion.layers.descriptors import ColourHistogram, GradientHistogram


def test_real_weights_give_the_recorded_features_and_belong_to_one_architecture() -> None:
    weights = shared("weights/mobilenet_v2_1.0_224_imagenet.weights.h5")
    with np.load(shared("weights/mobilenet_v2_check.npz")) as check:
        images, expected = check["images_uint8_224"].astype("float32"), check["gap_features"]
    np.testing.assert_allclose(ImageEncoder(weights=weights).encode(images), expected, atol=1e-3)
    with pytest.raises(WeightsError, match="resnet50_v2"):
        ImageEncoder("resnet50_v2", weights=weights)


def test_widths_and_fingerprints_follow_the_options(tmp_path: Path) -> None:
    one = ImageEncoder("small_cnn", image_size=32)
    two = ImageEncoder("small_cnn", image_size=32, taps=("stage5", "stage4"), pooling="avg_max", descriptors=("colour",))
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    assert two.encode(images).shape == (2, two.feature_dim)
    assert two.feature_dim == 2 * (192 + 128) + ColourHistogram.width
    assert list(two.block_widths.items()) == [("stage5", 2 * 192), ("stage4", 2 * 128), ("colour", ColourHistogram.width)]
    with pytest.raises(UsageError, match="block_widths"):
        _ = ImageEncoder("small_cnn", image_size=32, pooling=None).block_widths
    assert one.fingerprint() != two.fingerprint()
    with pytest.raises(UsageError, match="stage9"):
        ImageEncoder("small_cnn", image_size=32, taps=("stage9",))
    with pytest.raises(WeightsError, match="no weights file"):
        ImageEncoder("small_cnn", image_size=32, weights=tmp_path / "none.h5")


def test_descriptors_see_colour_and_edges_and_stay_finite() -> None:
    plain = np.zeros((3, 32, 32, 3), "float32")
    plain[1, 8:24, 8:24] = (220, 20, 20)
    plain[2, 8:24, 8:24] = (20, 20, 220)
    colours, shapes = np.asarray(ColourHistogram()(plain)), np.asarray(GradientHistogram()(plain))
    assert np.isfinite(colours).all() and np.isfinite(shapes).all()
    assert np.abs(colours[1] - colours[2]).max() > 0.5
    np.testing.assert_allclose(shapes[1], shapes[2], atol=1e-4)
    assert np.abs(shapes[1] - shapes[0]).max() > 0.1
