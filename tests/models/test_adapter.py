"""`DomainAdapter` keeps what every model promises."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.encoders.image import ImageEncoder
from tf_fashion.losses.mined_triplet import MinedTriplet
from tf_fashion.models import DomainAdapter, load_adapter, load_attributes
from tf_fashion.testing.contracts import _policy


def photos(count: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 255, (count, 32, 32, 3)).astype("float32")


def with_encoder(**options: object) -> DomainAdapter:
    return DomainAdapter(ImageEncoder("small_cnn", image_size=32, pooling="gem"), dim=8, **options)


def test_save_and_load_keep_results_and_loss(tmp_path: Path) -> None:
    model = with_encoder(norm_features=True, dropout=0.3)
    model.compile("adam", MinedTriplet(margin=0.2))
    pairs = {"anchor_image": photos(4), "positive_image": photos(4, 1)}
    before = model.train_on_batch(pairs, np.arange(4))
    assert np.isfinite(before)
    model.save(tmp_path / "model.keras")
    loaded = load_adapter(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded({"image": photos()}), model({"image": photos()}), atol=1e-6)
    assert keras.models.load_model(tmp_path / "model.keras").loss.margin == 0.2
    with pytest.raises(DataError, match="expected a AttributeClassifier, found a DomainAdapter"):
        load_attributes(tmp_path / "model.keras")


def test_vectors_alone(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(6, 12)).astype(np.float32)
    model = DomainAdapter(feature_dim=12, start="identity")
    np.testing.assert_allclose(model({"features": x}), x / np.linalg.norm(x, axis=1, keepdims=True), atol=1e-6)
    model.save(tmp_path / "model.keras")
    np.testing.assert_allclose(load_adapter(tmp_path / "model.keras")({"features": x}), model({"features": x}), atol=1e-6)
    np.testing.assert_allclose(model({"features": x[None]})[0], model({"features": x}), atol=1e-6)
    np.testing.assert_array_equal(model({"features": np.zeros((1, 12), np.float32)}), 0)
    single = model({"features": x[:1]})
    assert single.shape == (1, 12)
    assert not DomainAdapter(feature_dim=3, linear=False).trainable_variables


def test_pairs_go_through_the_encoder_together() -> None:
    model = with_encoder()
    both = model({"anchor_image": photos(3), "positive_image": photos(3, 1)}, training=True)
    joined = model({"image": np.concatenate([photos(3), photos(3, 1)])}, training=True)
    np.testing.assert_allclose(np.concatenate([both["query"], both["target"]]), joined, atol=1e-5)


def test_the_layer_moves_between_adapters() -> None:
    model = with_encoder(norm_features=True)
    features = model.encode_image(photos(), training=False)
    bare = model.on_features()
    assert bare.image_encoder is None and bare.norm_features
    np.testing.assert_allclose(bare.embed_features(features), model.embed_image(photos()), atol=1e-6)
    weight = np.random.default_rng(0).normal(size=(8, model.width))
    bare.set_linear(weight, np.arange(8))
    np.testing.assert_allclose(bare.project(np.zeros((1, model.width), np.float32))[0], np.arange(8), atol=1e-6)


def test_training_on_categories_learns_and_repeats() -> None:
    random = np.random.default_rng(0)
    centres = random.normal(size=(2, 6, 10))
    x = np.repeat(centres, 4, axis=1) + 0.8 * random.normal(size=(2, 24, 10))
    labels = np.repeat(np.arange(12).reshape(2, 6), 4, axis=1)
    labels[1, -4:] = -1
    data = tf.data.Dataset.from_tensors(({"features": x.astype(np.float32)}, labels, np.ones((2, 24), np.float32))).repeat()
    losses = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        model = DomainAdapter(feature_dim=10)
        model.compile(keras.optimizers.Adam(0.01))
        losses.append(model.fit(data, epochs=4, steps_per_epoch=10, shuffle=False, verbose=0).history["loss"])
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0]
    model.compile(keras.optimizers.Adam(0.01), "supervised_contrastive")
    contrastive = model.fit(data, epochs=4, steps_per_epoch=10, shuffle=False, verbose=0).history["loss"]
    assert contrastive[-1] < contrastive[0]
    model.compile("adam", "triplet_hard")
    with pytest.raises(UsageError, match="'mined_triplet' or 'supervised_contrastive', not with 'triplet_hard'"):
        model.fit(data, epochs=1, steps_per_epoch=1, shuffle=False, verbose=0)


def test_mixed_precision_gives_float32_embeddings() -> None:
    with _policy("mixed_float16"):
        found = with_encoder()({"image": photos(2)})
    assert found.dtype == tf.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)


def blocks(rows: int = 60, seed: int = 0) -> np.ndarray:
    """Vectors of two parts of different sizes, with a value that never changes."""
    random = np.random.default_rng(seed)
    x = np.concatenate([100 + 20 * random.normal(size=(rows, 6)), 0.01 * random.normal(size=(rows, 3))], 1).astype(np.float32)
    x[:, 2] = 7
    return x


def test_standardised_vectors_travel(tmp_path: Path) -> None:
    x = blocks()
    model = DomainAdapter(feature_dim=9, dim=5, standardize=True, dropout=0.1)
    model.adapt_input(x, [6, 3], [1.0, 2.0])
    model.start_from_components(x)
    wanted = model({"features": x}).numpy()
    assert not any("standardize" in weight.path for weight in model.trainable_variables)
    model.save(tmp_path / "model.keras")
    plain = DomainAdapter(feature_dim=9, dim=5)
    plain.start_from(model)
    plain.save(tmp_path / "plain.keras")
    others = [load_adapter(tmp_path / "model.keras"), load_adapter(tmp_path / "plain.keras"), model.on_features(), plain]
    for other in others:
        assert other.standardize
        np.testing.assert_allclose(other({"features": x}), wanted, atol=1e-6)
    loaded = others[0]
    loaded.start_from(plain)
    bare = DomainAdapter(feature_dim=9, standardize=True, linear=False)
    bare.adapt_input(x)
    np.testing.assert_allclose(bare.on_features()({"features": x}), bare({"features": x}), atol=1e-6)
    with pytest.raises(UsageError, match="the other does not"):
        plain.start_from(DomainAdapter(feature_dim=9, dim=5))


@pytest.mark.parametrize("options", [{"standardize": True}, {"norm_features": True}, {}], ids=str)
def test_the_layer_starts_as_the_principal_components(options: dict) -> None:
    x = blocks()
    model = DomainAdapter(feature_dim=9, dim=12, **options)
    if model.standardize:
        model.adapt_input(x, [6, 3])
        seen = model.standardizer(x).numpy().astype(np.float64)
    else:
        seen = x.astype(np.float64) / (np.linalg.norm(x, axis=1, keepdims=True) if options else 1)
    model.start_from_components(x)
    weight, bias = model.fc.get_weights()[0].T, model.fc.get_weights()[1]
    rank = 8 if model.standardize or not options else 9
    np.testing.assert_allclose(weight[:rank] @ weight[:rank].T, np.eye(rank), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(weight[rank:], axis=1), 0.01, rtol=1e-4)
    variance = np.linalg.eigvalsh(np.cov(seen.T, bias=True))[::-1]
    projected = (seen - seen.mean(0)) @ weight[:rank].T
    np.testing.assert_allclose(projected.var(0), variance[:rank], rtol=1e-3)
    np.testing.assert_allclose(model.project(x).numpy().mean(0), 0, atol=1e-3)
    assert (bias == 0).all() == bool(model.standardize)
    again = DomainAdapter(feature_dim=9, dim=12, **options)
    if model.standardize:
        again.start_from(model)
    again.start_from_components(x)
    np.testing.assert_array_equal(again.fc.get_weights()[0].T, weight)


def test_the_principal_components_keep_the_distances() -> None:
    x = blocks(30)
    model = DomainAdapter(feature_dim=9, dim=8, standardize=True)
    model.adapt_input(x)
    model.start_from_components(x)
    seen, found = model.standardizer(x).numpy(), model.project(x).numpy()
    np.testing.assert_allclose(found @ found.T, seen @ seen.T, atol=1e-3)


def test_messages_of_standardisation() -> None:
    with pytest.raises(UsageError, match="one of norm_features and standardize"):
        DomainAdapter(feature_dim=3, norm_features=True, standardize=True)
    with pytest.raises(UsageError, match="standardize=True"):
        DomainAdapter(feature_dim=3).adapt_input(np.zeros((2, 3)))
    with pytest.raises(UsageError, match="no linear layer"):
        DomainAdapter(feature_dim=3, linear=False).start_from_components(np.eye(3))
    for wrong in (np.zeros((3, 4)), np.zeros((1, 3)), np.zeros(3)):
        with pytest.raises(UsageError, match=r"at least 2 rows of features \(rows, 3\)"):
            DomainAdapter(feature_dim=3).start_from_components(wrong)
    for same in (np.zeros((4, 3)), np.full((7, 3), 0.1, np.float32)):
        with pytest.raises(DataError, match="all the same"):
            DomainAdapter(feature_dim=3).start_from_components(same)
    with pytest.raises(DataError, match="Row 1 of the features"):
        DomainAdapter(feature_dim=2).start_from_components(np.array([[0.0, 1.0], [np.nan, 1.0]]))


def test_messages() -> None:
    with pytest.raises(UsageError, match="one of the two"):
        DomainAdapter()
    with pytest.raises(UsageError, match="give the image encoder a pooling"):
        DomainAdapter(ImageEncoder("small_cnn", image_size=32, pooling=None))
    with pytest.raises(UsageError, match="torch, identity"):
        DomainAdapter(feature_dim=4, start="zeros")
    with pytest.raises(UsageError, match="no image encoder"):
        DomainAdapter(feature_dim=4)({"image": photos(1)})
    with pytest.raises(UsageError, match=r"found \['anchor_image'\]"):
        with_encoder()({"anchor_image": photos(1)})
    with pytest.raises(UsageError, match="4 to 4 here, 5 to 5 there"):
        DomainAdapter(feature_dim=4).start_from(DomainAdapter(feature_dim=5))
    with pytest.raises(UsageError, match=r"a weight \(4, 4\)"):
        DomainAdapter(feature_dim=4).set_linear(np.zeros((4, 5)), np.zeros(4))
    with pytest.raises(UsageError, match="finite"):
        DomainAdapter(feature_dim=2).set_linear(np.full((2, 2), np.nan), np.zeros(2))
