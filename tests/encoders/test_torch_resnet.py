"""torchvision's networks: sizes, padding, groups, taps, saving. The parity checks compare their numbers with the originals'."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_fashion.core.errors import UsageError
from tf_fashion.encoders.image import BACKBONES, Backbone, ImageEncoder
from tf_fashion.encoders.torch_resnet import (
    TORCH_RESNET_TAPS,
    TORCH_RESNETS,
    ResNetKind,
    SymmetricConv2D,
    SymmetricMaxPooling2D,
    torch_resnet,
)
from tf_fashion.inputs.images import scale_pixels, unscale_pixels

TINY = ResNetKind((1, 2, 1, 1), groups=8, width=4)
BACKBONES.register("torch_resnext_tiny")(
    Backbone(lambda side, weights: torch_resnet(TINY, side, side), "torch", 64, taps=TORCH_RESNET_TAPS)
)


def pictures(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, shape).astype("float32")


# With torchvision's classifier of 1000 classes.
@pytest.mark.parametrize(
    ("kind", "weights"), [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032), ("resnext50_32x4d", 25_028_904)]
)
def test_the_networks_have_as_many_weights_as_published(kind: str, weights: int) -> None:
    network = torch_resnet(kind, None, None)
    assert sum(int(np.prod(v.shape)) for v in network.trainable_variables) + 1000 * (network.output.shape[-1] + 1) == weights
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            assert (layer.momentum, layer.epsilon) == (0.9, 1e-5)
    # The stride of a bottleneck is in its 3x3 convolution.
    strides = {part: network.get_layer(f"layer2_0_conv{part}").strides for part in (1, 2)}
    assert strides == ({1: (2, 2), 2: (1, 1)} if kind in ("resnet18", "resnet34") else {1: (1, 1), 2: (2, 2)})


def test_every_kind_is_a_backbone() -> None:
    assert {f"torch_{kind}" for kind in TORCH_RESNETS} <= set(BACKBONES)
    with pytest.raises(UsageError, match=r"resnet19.*Known: resnet18"):
        torch_resnet("resnet19", 32, 32)


def test_taps_end_where_stages_end() -> None:
    encoder = ImageEncoder("torch_resnext_tiny", 75, ("stage1", "stage2", "low", "mid", "high"), pooling=None)
    sides = encoder.map_shapes
    assert sides == {"stage1": (38, 38, 64), "stage2": (19, 19, 256), "low": (10, 10, 512), "mid": (5, 5, 1024), "high": (3, 3, 2048)}
    for tap, value in encoder(pictures(1, 75, 75, 3)).items():
        assert value.shape[1:] == sides[tap]
        assert float(tf.reduce_min(value)) == 0.0


def naive(x: np.ndarray, kernel: np.ndarray, stride: int, groups: int) -> np.ndarray:
    """The convolution by its definition, padded by half the kernel on every side."""
    pad, filters = kernel.shape[0] // 2, kernel.shape[-1]
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = (range(0, n, stride) for n in x.shape[1:3])
    out = np.zeros((len(x), len(rows), len(columns), filters))
    ours, theirs = x.shape[-1] // groups, filters // groups
    for group in range(groups):
        part, of = padded[..., group * ours : (group + 1) * ours], slice(group * theirs, (group + 1) * theirs)
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                window = part[:, row : row + kernel.shape[0], column : column + kernel.shape[1]]
                out[:, i, j, of] = np.tensordot(window, kernel[..., of], 3)
    return out


@pytest.mark.parametrize(("width", "filters", "groups"), [(6, 4, 1), (8, 16, 8), (24, 12, 6), (32, 32, 4), (6, 6, 3)])
@pytest.mark.parametrize(("side", "stride"), [(3, 1), (3, 2), (1, 2), (7, 2)])
def test_convolutions_of_any_number_of_groups(width: int, filters: int, groups: int, side: int, stride: int) -> None:
    random = np.random.default_rng(1)
    layer = SymmetricConv2D(filters, side, stride, groups)
    for shape in ((2, 6, 7, width), (1, 5, 4, width)):
        x = random.normal(size=shape).astype("float32")
        out = layer(x)
        assert out.shape == layer.compute_output_shape(x.shape)
        np.testing.assert_allclose(out, naive(x, layer.kernel.numpy(), stride, groups), rtol=1e-4, atol=1e-5)
    assert layer.kernel.shape == (side, side, width // groups, filters)
    # The kernel's gradient against a difference quotient along one direction.
    direction = random.normal(size=layer.kernel.shape).astype("float32")
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(tf.sin(layer(x)))
    slope = float(tf.reduce_sum(tape.gradient(total, layer.kernel.value) * direction))
    start, ends = layer.kernel.numpy().astype("float64"), []
    for step in (1e-4, -1e-4):
        ends.append(np.sin(naive(x.astype("float64"), start + step * direction, stride, groups)).sum())
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-4, rtol=1e-3, atol=1e-3)


def test_pooling_sees_minus_infinity_outside() -> None:
    x = -1.0 - np.random.default_rng(2).uniform(size=(1, 5, 6, 2)).astype("float32")
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    naive = np.array([[padded[0, i : i + 3, j : j + 3].max(axis=(0, 1)) for j in (0, 2, 4)] for i in (0, 2, 4)])
    np.testing.assert_array_equal(SymmetricMaxPooling2D()(x)[0], naive)


def test_layers_say_what_they_are() -> None:
    layer = SymmetricConv2D(8, 3, 2, groups=2, name="c")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert again.get_config() == layer.get_config()
    for wrong in (2, (3, 5)):
        with pytest.raises(UsageError, match="one odd number"):
            SymmetricConv2D(8, wrong)


def test_moving_variances_as_pytorch_has_them() -> None:
    images = pictures(3, 40, 40, 3)
    moved = {}
    for unbiased in (False, True):
        keras.utils.set_random_seed(4)
        encoder = ImageEncoder("torch_resnext_tiny", 40, batch_norm_unbiased=unbiased)
        encoder.encode(images, training=True)
        moved[unbiased] = {name: encoder.network.get_layer(name) for name in ("bn1", "layer4_0_bn2")}
        again = ImageEncoder.from_config(encoder.get_config())
        assert again.batch_norm_unbiased is unbiased
        assert all(layer.unbiased_variance is unbiased for layer in again.network.layers if layer.name.endswith("bn1"))
    for name, count in (("bn1", 3 * 20 * 20), ("layer4_0_bn2", 3 * 2 * 2)):
        biased, ours = (moved[kind][name].moving_variance.numpy() - 0.9 for kind in (False, True))
        np.testing.assert_allclose(ours, biased * count / (count - 1), rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(moved[True][name].moving_mean, moved[False][name].moving_mean, rtol=1e-3, atol=1e-6)
    with pytest.raises(UsageError, match="batch_norm_unbiased.*mobilenet_v2 has Keras' own"):
        ImageEncoder("mobilenet_v2", 32, batch_norm_unbiased=True)


def test_the_scaling_can_be_that_of_imaterialist() -> None:
    images = pictures(2, 40, 40, 3)
    keras.utils.set_random_seed(4)
    own = ImageEncoder("torch_resnext_tiny", 40)
    other = ImageEncoder("torch_resnext_tiny", 40, scaling="imaterialist")
    for ours, theirs in zip(other.variables, own.variables, strict=True):
        ours.assign(theirs)
    scaled = scale_pixels(images, "imaterialist")
    np.testing.assert_allclose(other.encode(images), own.encode(unscale_pixels(scaled, "torch")), rtol=1e-4, atol=1e-5)
    assert own.fingerprint() != other.fingerprint()
    assert ImageEncoder.from_config(other.get_config()).scaling == "imaterialist"
    older = {key: value for key, value in own.get_config().items() if key not in ("scaling", "batch_norm_unbiased")}
    assert ImageEncoder.from_config(older).scaling == "torch"
    with pytest.raises(UsageError, match="scaling"):
        ImageEncoder("torch_resnext_tiny", 40, scaling="caffe2")


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_an_encoder_learns_and_a_saved_one_gives_equal_features(tmp_path: Path, policy: str) -> None:
    keras.config.set_dtype_policy(policy)
    try:
        encoder = ImageEncoder("torch_resnext_tiny", 40, batch_norm_momentum=0.5)
        images = pictures(2, 40, 40, 3)
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(tf.square(encoder.encode(images, training=True)))
        gradients = tape.gradient(total, [v.value for v in encoder.trainable_variables])
        assert all(g is not None and np.isfinite(g).all() for g in gradients)
        inputs = keras.Input((40, 40, 3))
        keras.Model(inputs, encoder(inputs)).save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(loaded(images)["features"], encoder.encode(images), rtol=1e-5)
        assert encoder.encode(images).dtype == tf.float32
    finally:
        keras.config.set_dtype_policy("float32")
