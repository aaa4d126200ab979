"""`AttributeClassifier` keeps what every model promises."""

from __future__ import annotations

import io
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.labels import LabelMap
from tf_fashion.encoders.image import ImageEncoder
from tf_fashion.losses.multilabel import GroupedLoss
from tf_fashion.models import AttributeClassifier, load_attributes, load_dual
from tf_fashion.serving.export import ExportedAttributeClassifier, export_attributes

LABELS = LabelMap.of_tasks({"color": ["red", "blue", "green"], "style": ["wide", "long"], "gender": ["women", "men"]})


def model_of(**options: object) -> AttributeClassifier:
    encoder = ImageEncoder("small_cnn", image_size=32)
    return AttributeClassifier(encoder, LABELS, **{"hidden": (12,), "exclusive": ("color", "gender"), **options})


def photos(count: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 255, (count, 32, 32, 3)).astype("float32")


def targets(count: int = 5, seed: int = 0) -> np.ndarray:
    return LABELS.encode_all([[1 + n % 3, 4 + n % 2, 6 + n % 2] for n in range(count)])


@pytest.mark.parametrize(
    "options",
    [{}, {"hidden": (), "feature_norm": True, "exclusive": ()}, {"correlation": {"rank": 2}, "feature_dropout": 0.3}],
    ids=["hidden", "linear", "correlation"],
)
def test_save_and_load_keep_results_and_configuration(tmp_path: Path, options: dict) -> None:
    model = model_of(**options)
    model.compile("adam", GroupedLoss(model.groups, rest="focal") if model.groups else "bce")
    model.fit({"image": photos()}, targets(), epochs=1, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = load_attributes(tmp_path / "model.keras")
    assert loaded.label_map == LABELS and loaded.exclusive == model.exclusive
    np.testing.assert_allclose(loaded({"image": photos()}), model({"image": photos()}), atol=1e-6)
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again.loss) is type(model.loss)
    with pytest.raises(DataError, match="expected a DualEncoder, found a AttributeClassifier"):
        load_dual(tmp_path / "model.keras")


def test_features_and_photos_give_the_same() -> None:
    model = model_of()
    features = model.encode_image(photos(), training=False)
    np.testing.assert_allclose(model({"features": features}), model({"image": photos()}), atol=1e-6)
    np.testing.assert_allclose(model.embed_features(features), model.embed_image(photos()), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(model.embed_image(photos()), axis=1), 1.0, atol=1e-5)


def test_probabilities_are_a_softmax_in_exclusive_groups_and_sigmoids_elsewhere() -> None:
    logits = np.random.default_rng(1).normal(size=(4, len(LABELS))).astype("float32")
    found = np.asarray(model_of().probabilities(logits))
    for task in ("color", "gender"):
        places = LABELS.groups[task]
        raised = np.exp(logits[:, places])
        np.testing.assert_allclose(found[:, places], raised / raised.sum(1, keepdims=True), atol=1e-6)
    places = LABELS.groups["style"]
    np.testing.assert_allclose(found[:, places], 1 / (1 + np.exp(-logits[:, places])), atol=1e-6)


def test_training_learns_colours() -> None:
    keras.utils.set_random_seed(0)
    colours = np.eye(3, dtype="float32")[np.arange(24) % 3] * 200 + 20
    images = np.broadcast_to(colours[:, None, None, :], (24, 32, 32, 3)).astype("float32")
    wanted = LABELS.encode_all([[1 + n % 3] for n in range(24)])
    encoder = ImageEncoder("small_cnn", image_size=32, batch_norm_momentum=0.5)
    model = AttributeClassifier(encoder, LABELS, exclusive=("color", "gender"))
    model.compile(keras.optimizers.Adam(0.01), GroupedLoss(model.groups, rest="bce"))
    model.fit({"image": images}, wanted, epochs=15, batch_size=12, verbose=0)
    probabilities = np.asarray(model.probabilities(model({"image": images})))
    places = LABELS.groups["color"]
    assert (probabilities[:, places].argmax(1) == wanted[:, places].argmax(1)).all()


def test_the_start_at_frequencies_predicts_them() -> None:
    model = model_of(hidden=())
    model.head.kernel.assign(tf.zeros_like(model.head.kernel))
    shares = np.array([0.5, 0.3, 0.2, 0.1, 0.9, 0.25, 0.75])
    model.set_label_frequencies(shares)
    np.testing.assert_allclose(np.asarray(model.probabilities(model({"image": photos(1)})))[0], shares, atol=1e-5)


def test_the_linear_head_starts_as_torch_has_it() -> None:
    model = model_of(hidden=(), exclusive=())
    width = model.image_encoder.feature_dim
    kernel, bias = (np.asarray(x) for x in (model.head.kernel, model.head.bias))
    assert np.abs(kernel).max() <= width**-0.5 and np.abs(bias).max() <= width**-0.5
    assert kernel.std() == pytest.approx((1 / (3 * width)) ** 0.5, rel=0.15)


def test_the_export_labels_photos_and_survives_a_broken_one(tmp_path: Path) -> None:
    model = model_of()
    folder = export_attributes(model, tmp_path / "1", {"note": "x"})
    buffer = io.BytesIO()
    Image.fromarray(photos(1)[0].astype("uint8")).save(buffer, format="PNG")
    exported = ExportedAttributeClassifier(folder)
    found = exported.predict([buffer.getvalue(), b"no picture"])
    assert found["valid"].tolist() == [True, False]
    own = np.asarray(model.probabilities(model({"image": np.floor(photos(1))})))
    np.testing.assert_allclose(found["probabilities"][:1], own, atol=1e-4)
    assert LabelMap.from_config(exported.record["label_map"]) == LABELS
    embeddings, valid = exported.embed_image([buffer.getvalue()])
    np.testing.assert_allclose(embeddings, found["embedding"][:1], atol=1e-5)
    assert valid.all()


@pytest.mark.slow
def test_logits_are_float32_under_mixed_precision() -> None:
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = model_of(correlation={})
        assert model({"image": photos(2)}).dtype == tf.float32
        assert model.embed_image(photos(2)).dtype == tf.float32
        model.compile("adam", GroupedLoss(model.groups, rest="asymmetric"))
        assert np.isfinite(model.fit({"image": photos()}, targets(), verbose=0).history["loss"][0])
    finally:
        keras.mixed_precision.set_global_policy("float32")


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(UsageError, match="no group 'colour'"):
        model_of(exclusive=("colour",))
    with pytest.raises(UsageError, match="give the image encoder a pooling"):
        AttributeClassifier(ImageEncoder("small_cnn", image_size=32, pooling=None), LABELS)
    with pytest.raises(UsageError, match="'image' or 'features'"):
        model_of()({"photo": photos()})
