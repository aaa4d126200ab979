"""ONNX files: equal values in any batch, and no file where that is not so."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

pytest.importorskip("onnx")
pytest.importorskip("tf2onnx")
pytest.importorskip("onnxruntime")

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.encoders.image import ImageEncoder
from tf_fashion.inputs.images import scale_pixels
from tf_fashion.serving.onnx import OnnxModel, _area_weights, export_onnx

SIDE = 48


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 255, (count, SIDE, SIDE, 3)).astype("float32")


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    keras.utils.set_random_seed(2)
    return ImageEncoder("small_cnn", SIDE, descriptors=("colour", "shape"), scaling="imaterialist")


def test_an_encoder_with_descriptors_and_probabilities(tmp_path: Path, encoder: ImageEncoder) -> None:
    head = keras.layers.Dense(5)

    def run(images: tf.Tensor) -> dict[str, tf.Tensor]:
        features = encoder.encode(images, training=False)
        logits = head(features)
        return {"probabilities": tf.sigmoid(logits), "features": features, "logits": logits}

    report = export_onnx(
        run,
        tmp_path / "deep" / "model.onnx",
        SIDE,
        outputs=["logits", "probabilities"],
        pictures=pixels(3),
        record={"labels": ["a", "ä"]},
    )
    assert report.inputs == {"images": [None, SIDE, SIDE, 3]} and report.pictures == 9
    assert report.outputs == {"logits": [None, 5], "probabilities": [None, 5]}
    assert max(report.differences.values()) < 1e-3 and report.path.stat().st_size == report.bytes
    assert "input images: batch x 48 x 48 x 3" in report.format() and "compared on 9 pictures" in report.format()
    model = OnnxModel(report.path)
    assert model.record["labels"] == ["a", "ä"] and model.record["image_size"] == SIDE and model.record == report.record
    for count in (1, 4):
        found = model(pixels(count))
        assert model.outputs == ["logits", "probabilities"]
        np.testing.assert_allclose(found["logits"], run(pixels(count))["logits"], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found["probabilities"], 1 / (1 + np.exp(-found["logits"])), atol=1e-6)
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["model.onnx"]


def test_the_original_layout(tmp_path: Path) -> None:
    inputs = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.Conv2D(4, 3, 2)(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))
    report = export_onnx(model, tmp_path / "m.onnx", SIDE, layout="original")
    assert report.inputs == {"input": [None, 3, SIDE, SIDE]} and report.outputs == {"output": [None, 3]}
    scaled = scale_pixels(pixels(2), "imaterialist").numpy().transpose(0, 3, 1, 2)
    np.testing.assert_allclose(OnnxModel(report.path)(scaled)["output"], model(pixels(2)), rtol=1e-3, atol=1e-4)
    assert json.loads(json.dumps(report.record))["scaling"] == "imaterialist"


def test_area_resizing_is_tensorflows() -> None:
    for side, wanted in ((96, 64), (100, 64), (32, 64), (64, 64), (7, 3)):
        x = np.random.default_rng(0).uniform(0, 255, (1, side, side, 1)).astype("float32")
        theirs = tf.image.resize(x, (wanted, wanted), method="area")[0, ..., 0]
        weights = _area_weights(side, wanted)
        np.testing.assert_allclose(weights @ x[0, ..., 0] @ weights.T, theirs, atol=1e-3)


def test_what_cannot_be_exported_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"

    def mean(images: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(images, axis=(1, 2))

    def unknown(images: tf.Tensor) -> tf.Tensor:
        return tf.math.betainc(mean(images), 1.0, 0.5)

    with pytest.raises(DataError, match="no operation like TensorFlow's Betainc"):
        export_onnx(unknown, path, SIDE)
    with pytest.raises(DataError, match=r"something else than the model: sine differs .* Nothing was written"):
        export_onnx(lambda x: {"sine": tf.sin(mean(x) * 1e6)}, path, SIDE, tolerance=1e-9)
    wrong = [
        (lambda: export_onnx(mean, tmp_path / "m.pb", SIDE), "ends in .onnx"),
        (lambda: export_onnx(mean, path, SIDE, layout="nchw"), "layout"),
        (lambda: export_onnx(mean, path, SIDE, layout="original", scaling="x"), "scaling"),
        (lambda: export_onnx(mean, path, SIDE, outputs=["a", "b"]), "one output"),
        (lambda: export_onnx(lambda x: {"a": mean(x)}, path, SIDE, outputs=["b"]), "no output 'b'. The function gives a"),
        (lambda: export_onnx(lambda x: {"a": x, "b": x}, path, SIDE, layout="original"), "name one of a, b"),
        (lambda: export_onnx(mean, path, SIDE, layout="original", outputs=["a", "b"]), "has one output"),
        (lambda: export_onnx(mean, path, SIDE, pictures=np.zeros((1, 8, 8, 3))), r"found \(1, 8, 8, 3\)"),
        (lambda: OnnxModel(path), "nothing there"),
    ]
    for call, message in wrong:
        with pytest.raises(UsageError, match=message):
            call()
    assert not list(tmp_path.iterdir())
    path.write_bytes(b"no network")
    with pytest.raises(DataError, match="damaged or no ONNX"):
        OnnxModel(path)


def test_mixed_precision_is_refused(tmp_path: Path) -> None:
    dense = keras.layers.Dense(2, dtype="mixed_bfloat16")
    with pytest.raises(DataError, match="would not run .* Models of mixed precision"):
        export_onnx(lambda x: dense(tf.reduce_mean(x, axis=(1, 2))), tmp_path / "m.onnx", SIDE)
    assert not list(tmp_path.iterdir())
