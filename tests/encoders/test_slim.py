"""TF-slim's networks: shapes, padding, taps, saving. The parity checks compare their numbers with the originals'."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from tf_fashion.encoders.image import BACKBONES, Backbone, ImageEncoder
from tf_fashion.encoders.slim import MOBILENET_TAPS, RESNET_TAPS, mobilenet_v1, resnet_v2_50

BACKBONES.register("slim_mobilenet_quarter")(
    Backbone(lambda side, weights: mobilenet_v1(side, side, 0.25), "tf", 64, taps=MOBILENET_TAPS)
)


def pictures(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, shape).astype("float32")


def tap_shapes(network: keras.Model, taps: dict[str, str]) -> dict[str, tuple]:
    return {tap: network.get_layer(layer).output.shape[1:] for tap, layer in taps.items()}


def test_mobilenet_has_the_published_maps_at_any_size() -> None:
    wide = mobilenet_v1(224, 224)
    assert tap_shapes(wide, MOBILENET_TAPS) == {"low": (14, 14, 512), "mid": (14, 14, 512), "high": (7, 7, 1024)}
    assert sum(int(np.prod(v.shape)) for v in wide.trainable_variables) == 3_206_976
    odd = mobilenet_v1(75, 83, 0.25)
    assert tap_shapes(odd, MOBILENET_TAPS) == {"low": (5, 6, 128), "mid": (5, 6, 128), "high": (3, 3, 256)}
    narrow = mobilenet_v1(None, None, 0.125)
    assert narrow(pictures(1, 33, 70, 3)).shape == (1, 2, 3, 128)
    # Depths do not fall below 8.
    assert narrow.get_layer("Conv2d_0").output.shape[-1] == 8


@pytest.fixture(scope="module")
def resnet() -> keras.Model:
    return resnet_v2_50(None, None)


def test_resnet_has_the_published_maps(resnet: keras.Model) -> None:
    assert sum(int(np.prod(v.shape)) for v in resnet.trainable_variables) == 23_522_432
    cut = keras.Model(resnet.input, {tap: resnet.get_layer(layer).output for tap, layer in RESNET_TAPS.items()})
    for height, width, sides in ((64, 96, ((4, 6), (2, 3), (2, 3))), (75, 83, ((5, 6), (3, 3), (3, 3)))):
        found = {tap: tuple(value.shape) for tap, value in cut(pictures(1, height, width, 3)).items()}
        assert found == {
            tap: (1, *side, n) for (tap, n), side in zip({"low": 512, "mid": 1024, "high": 2048}.items(), sides, strict=True)
        }


@pytest.mark.parametrize("side", [8, 9])
def test_same_padding_at_stride_two_puts_the_odd_pixel_below_and_right(side: int) -> None:
    """For even sides nothing is put above and left, for odd ones one pixel all around."""
    network = mobilenet_v1(side, side, 0.25)
    layer = network.get_layer("Conv2d_0_conv")
    kernel = np.random.default_rng(1).normal(size=layer.kernel.shape).astype("float32")
    layer.kernel.assign(kernel)
    x = pictures(1, side, side, 3) / 127.5 - 1
    ours = np.asarray(keras.Model(network.input, layer.output)(x))[0]
    before = 0 if side % 2 == 0 else 1
    padded = np.pad(x[0], ((before, 1), (before, 1), (0, 0)))
    rows = range(0, 2 * ours.shape[0], 2)
    naive = np.array([[np.tensordot(padded[i : i + 3, j : j + 3], kernel, 3) for j in rows] for i in rows])
    np.testing.assert_allclose(ours, naive, rtol=1e-4, atol=1e-5)


def test_resnet_pads_its_strided_convolutions_on_both_sides_and_pools_at_the_end(resnet: keras.Model) -> None:
    conv1, pool = resnet.get_layer("conv1_pad"), resnet.get_layer("pool1")
    assert conv1.padding == ((3, 3), (3, 3))
    x = -np.ones((1, 4, 4, 64), "float32") - np.arange(16, dtype="float32").reshape(1, 4, 4, 1)
    # The windows begin at pixels 0 and 2, and what is outside is never the maximum.
    np.testing.assert_array_equal(np.asarray(pool(x))[0, ..., 0], x[0, ::2, ::2, 0])
    for block, unit, stride in ((1, 3, 2), (2, 4, 2), (3, 6, 2), (4, 3, 1)):
        assert resnet.get_layer(f"block{block}_unit_{unit}_conv2_conv").strides == (stride, stride)
        assert resnet.get_layer(f"block{block}_unit_1_conv2_conv").strides == (1, 1)


def test_a_saved_encoder_gives_equal_features(tmp_path: Path) -> None:
    encoder = ImageEncoder("slim_mobilenet_quarter", 40, ("low", "mid", "high"), pooling=None)
    assert {tap: shape[-1] for tap, shape in encoder.map_shapes.items()} == {"low": 128, "mid": 128, "high": 256}
    images = pictures(2, 40, 40, 3)
    encoder(images, training=True)
    inputs = keras.Input((40, 40, 3))
    keras.Model(inputs, encoder(inputs)).save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    expected = encoder(images)
    for tap, value in loaded(images).items():
        np.testing.assert_array_equal(value, expected[tap])
    again = ImageEncoder.from_config(encoder.get_config())
    assert again.map_shapes == encoder.map_shapes
