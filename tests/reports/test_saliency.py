"""Grad-CAM maps against their definition, and the sheets."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.reports.made_up import picture
from tf_fashion.core.errors import UsageError
from tf_fashion.encoders.image import ImageEncoder
from tf_fashion.inputs.images import scale_pixels
from tf_fashion.reports.saliency import SaliencyRow, grad_cam, saliency_sheet

SIDE, LABELS = 64, 4


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(5).uniform(0, 255, (count, SIDE, SIDE, 3)).astype("float32")


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    keras.utils.set_random_seed(1)
    return ImageEncoder("small_cnn", SIDE, descriptors=["colour"])


@pytest.fixture(scope="module")
def head(encoder: ImageEncoder) -> keras.layers.Dense:
    layer = keras.layers.Dense(LABELS, kernel_initializer=keras.initializers.RandomNormal(seed=3))
    layer.build((None, encoder.feature_dim))
    return layer


def test_of_a_linear_head_on_mean_pooling_the_map_is_its_weighted_channels(encoder: ImageEncoder, head: keras.layers.Dense) -> None:
    images = pixels(5)
    found = grad_cam(encoder, head, images, [0, 1, 2, 3, 0], batch_size=2)
    assert found.shape == (5, SIDE, SIDE) and found.dtype == np.float32
    channels = encoder.network(scale_pixels(images, encoder.scaling))["stage5"].numpy()
    for number, label in enumerate([0, 1, 2, 3, 0]):
        kernel = head.kernel.numpy()[: channels.shape[-1], label]
        coarse = np.maximum((channels[number] * kernel).sum(axis=-1), 0)
        fine = tf.image.resize(coarse[..., np.newaxis], (SIDE, SIDE))[..., 0].numpy()
        np.testing.assert_allclose(found[number], fine / fine.max(), rtol=1e-3, atol=1e-4)
    several = grad_cam(encoder, head, images, np.tile([3, 1], (5, 1)))
    assert several.shape == (5, 2, SIDE, SIDE)
    np.testing.assert_allclose(several[1, 1], found[1], atol=1e-5)
    np.testing.assert_allclose(grad_cam(encoder, head, images, 3), several[:, 0], atol=1e-5)
    assert grad_cam(encoder, head, images[:0], np.zeros(0, int)).shape == (0, SIDE, SIDE)


def test_the_map_is_where_the_evidence_is() -> None:
    # The middle of the grey levels is 0 to this network, which has no biases: only the blot does anything.
    encoder = ImageEncoder("small_cnn", 192)
    images = np.full((2, 192, 192, 3), 127.5, np.float32)
    images[0, :48, :48] = images[1, 144:, 144:] = [20, 90, 160]
    direction = encoder.encode(images[:1])
    first, second = grad_cam(encoder, lambda features: tf.linalg.matmul(features, direction, transpose_b=True), images, 0)
    for found in (first, second[::-1, ::-1]):
        assert found[:64, :64].max() == 1.0 and found[:64, :64].mean() > 0.3
        assert found[144:, 144:].max() < 0.01


@pytest.mark.parametrize("options", [{"pooling": "gem"}, {"pooling": "avg_max", "taps": ["stage3", "stage5"]}, {"pooling": None}])
@pytest.mark.parametrize("policy", ["float32", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)])
def test_any_pooling_and_frozen_weights(options: dict, policy: str) -> None:
    keras.config.set_dtype_policy(policy)
    try:
        encoder = ImageEncoder("torch_resnet18", SIDE, batch_norm="frozen", **options)
        encoder.trainable = False
        before = [v.numpy() for v in encoder.variables]
        flat = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(LABELS)])
        for tap in (None, "stage2", "layer3"):
            found = grad_cam(encoder, flat, pixels(2), [[0, 1], [2, 3]], tap)
            assert found.shape == (2, 2, SIDE, SIDE) and np.isfinite(found).all()
            assert found.min() >= 0 and found.max() == 1.0
        for old, variable in zip(before, encoder.variables, strict=True):
            np.testing.assert_array_equal(old, variable)
    finally:
        keras.config.set_dtype_policy("float32")


def test_nothing_speaks_for_a_label_and_refusals(encoder: ImageEncoder, head: keras.layers.Dense) -> None:
    assert not grad_cam(encoder, lambda x: -tf.reduce_sum(x, -1, keepdims=True), pixels(1), 0).any()
    wrong = [
        (lambda: grad_cam(encoder, head, pixels(1), LABELS), "expected 0 to 3, found 4"),
        (lambda: grad_cam(encoder, head, pixels(1), -1), "found -1"),
        (lambda: grad_cam(encoder, head, pixels(2), [0, 1, 2]), r"\(2,\) or \(2, k\)"),
        (lambda: grad_cam(encoder, head, pixels(1), [0.5]), "whole number"),
        (lambda: grad_cam(encoder, head, pixels(1)[:, :32], 0), "expected pixels"),
        (lambda: grad_cam(encoder, head, pixels(1), 0, "stage9"), "no feature tap 'stage9'. Known: stage1"),
        (lambda: grad_cam(head, head, pixels(1), 0), "needs an ImageEncoder"),
        (lambda: grad_cam(encoder, lambda x: tf.zeros((1, 2)), pixels(1), 0), "do not depend"),
    ]
    for call, message in wrong:
        with pytest.raises(UsageError, match=message):
            call()


def test_sheets(tmp_path: Path) -> None:
    corner = np.zeros((2, 8, 8))
    corner[0, :4, :4] = 1
    white = np.full((20, 20, 3), 255.0)
    rows = [
        SaliencyRow(white, ["Red", "a label with a long name that is broken"], corner, [0.93, 0.1], [True, False], "p1"),
        SaliencyRow(picture(tmp_path / "a.jpg", "blue", (90, 60)), ["Blue"], corner[:1]),
        SaliencyRow(tmp_path / "gone.jpg", [], corner[:0], name="gone"),
    ]
    for name in ("s.png", "s.jpg", "s.webp"):
        path = saliency_sheet(tmp_path / name, rows, note="A note. " * 40, tile=64)
        sheet = np.asarray(Image.open(path).convert("RGB")).astype(int)
        red = (np.abs(sheet - [205, 20, 30]).sum(axis=-1) < 180).sum()
        assert 2 * 700 < red < 2 * 1400, "a quarter of two tiles"
        assert ((sheet[..., 1] - sheet[..., 0] > 60) & (sheet[..., 1] - sheet[..., 2] > 30)).any(), "green words"
    assert not list(tmp_path.glob(".s*"))
    wrong = [
        (lambda: saliency_sheet(tmp_path / "s.pdf", rows), "s.pdf"),
        (lambda: saliency_sheet(tmp_path / "s.png", []), "at least one photo"),
        (lambda: saliency_sheet(tmp_path / "s.png", rows, tile=20), "48 pixels"),
        (lambda: SaliencyRow(white, ["a"], corner), "one map for each of 1 labels"),
        (lambda: SaliencyRow(white, ["a", "b"], corner, [0.5]), "`probabilities`"),
        (lambda: SaliencyRow(white, ["a", "b"], corner, right=[True]), "`right`"),
    ]
    for call, message in wrong:
        with pytest.raises(UsageError, match=message):
            call()
