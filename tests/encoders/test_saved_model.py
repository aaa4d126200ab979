"""A SavedModel as image encoder."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_fashion.core.errors import WeightsError
from tf_fashion.encoders.saved_model import SavedModelEncoder
from tf_fashion.encoders.text import TEXT_ENCODERS
from tf_fashion.models import ComposedRetriever


class _Mean(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((None, 32, 32, 3), tf.float32)])
    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        return tf.reshape(tf.reduce_mean(images, axis=(1,)), (-1, 96))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tf.saved_model.save(_Mean(), str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_features_and_a_model_around_them_survive_saving(folder: Path, tmp_path: Path) -> None:
    encoder = SavedModelEncoder(folder, image_size=32)
    images = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
    np.testing.assert_allclose(encoder.encode(images), (images / 255).mean(1).reshape(4, 96), atol=1e-5)
    assert encoder.block_widths == {"features": 96}
    text = TEXT_ENCODERS.get("swem")(vocabulary_size=9, dim=8, embedding_dim=4)
    model = ComposedRetriever(encoder, text, "tirg", dim=8)
    inputs = {"reference_image": images, "target_image": images, "text": np.ones((4, 3), "int32")}
    expected = model(inputs)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")(inputs)
    np.testing.assert_allclose(again["query"], expected["query"], atol=1e-6)


def test_what_is_not_there_or_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no SavedModel there"):
        SavedModelEncoder(tmp_path / "none")
    with pytest.raises(WeightsError, match="hash differs"):
        SavedModelEncoder(folder, image_size=32, sha256="0" * 64)
