"""One process against two replicas: same loss, same weights."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_fashion.composers import COMPOSERS
from tf_fashion.encoders.image import ImageEncoder
from tf_fashion.encoders.text import TEXT_ENCODERS
from tf_fashion.inputs.feature_cache import FeatureTable
from tf_fashion.inputs.pipelines import FeatureSource, TripletTable, training_batches
from tf_fashion.inputs.text import WordTokenizer
from tf_fashion.losses import LOSSES
from tf_fashion.models import ComposedRetriever
from tf_fashion.training.graph import GraphStream, build_graph, triplet_features
from tf_fashion.training.optimizers import GroupedAdamW

STEPS = 5


def _table() -> TripletTable:
    random = np.random.default_rng(0)
    names = [f"p{i}" for i in range(30)]
    words = ["is red", "is blue", "longer sleeves", "no stripes", "more casual"]
    return TripletTable(
        references=[names[i % 30] for i in range(64)],
        targets=[names[(i * 7 + 3) % 30] for i in range(64)],
        captions=[(words[random.integers(5)], words[random.integers(5)]) for _ in range(64)],
        categories=["dress"] * 64,
        labels=np.array([(i * 7 + 3) % 30 for i in range(64)]),
    )


def _model(composer: str) -> ComposedRetriever:
    keras.utils.set_random_seed(11)
    tokenizer = WordTokenizer(["is", "red", "blue", "longer", "sleeves", "no", "stripes", "more", "casual", "and"])
    text = TEXT_ENCODERS.get("gru")(vocabulary_size=len(tokenizer.vocabulary), dim=12, embedding_dim=8, dropout=0.0, head_bias=False)
    if composer == "val":
        encoder = ImageEncoder("small_cnn", image_size=32, taps=("stage3", "stage4"), pooling=None)
        # Dropout masks are drawn per replica.
        composer = COMPOSERS.get("val")({"attention_dropout": 0.0, "initial_weights": [1.0, 0.5]})
    else:
        encoder = ImageEncoder("small_cnn", image_size=32)
    encoder.trainable = False
    return ComposedRetriever(encoder, text, composer, tokenizer, dim=12, feature_norm=True, caption_style="and")


def _train(strategy: tf.distribute.Strategy | None, composer: str, loss: str) -> tuple[list[float], list[np.ndarray]]:
    scope = strategy.scope() if strategy is not None else tf.name_scope("")
    random = np.random.default_rng(1)
    with scope:
        model = _model(composer)
        (width,) = model.image_encoder.feature_shape
        features = FeatureTable([f"p{i}" for i in range(30)], random.normal(size=(30, width)).astype(np.float32))
        if composer == "rtic":
            graph = build_graph(**triplet_features(model, features, _table()), ratio=0.3)
            stream = GraphStream(COMPOSERS.get("rtic")(name="composer"), graph, 8)
            stream.build((None, 12), (None,))
            model.attach(stream, 0.7)
        # With a larger epsilon the rounding noise of gradients near zero is not blown up into steps.
        model.compile(GroupedAdamW(1e-2, epsilon=1e-3), LOSSES.get(loss)())
    data, steps = training_batches(_table(), FeatureSource(features), model.tokenizer, 12, 1, seed=5, with_rows=bool(model.attached))
    assert steps == STEPS
    losses: list[float] = []
    keep = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: losses.append(float(logs["loss"])))
    model.fit(data, steps_per_epoch=steps, epochs=1, verbose=0, shuffle=False, callbacks=[keep])
    return losses, [np.asarray(v) for v in model.variables]


@pytest.mark.parametrize(
    ("composer", "loss"),
    [
        ("tirg", "batch_classification"),
        ("sum", "batch_hard_triplet"),
        pytest.param("val", "bidirectional_matching", marks=pytest.mark.slow),
        pytest.param("rtic", "batch_classification", marks=pytest.mark.slow),  # with a graph
    ],
)
def test_two_replicas_equal_one_process(mirrored: tf.distribute.Strategy, composer: str, loss: str) -> None:
    single_losses, single = _train(None, composer, loss)
    double_losses, double = _train(mirrored, composer, loss)
    np.testing.assert_allclose(double_losses, single_losses, rtol=1e-5, atol=1e-5)
    for one, two in zip(single, double, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-5)


def test_mixed_precision_keeps_embeddings_and_loss_in_float32() -> None:
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = _model("tirg")
        model.compile(GroupedAdamW(1e-3))
        features = np.random.default_rng(0).normal(size=(6, model.image_encoder.feature_dim)).astype("float32")
        inputs = {"reference_features": features, "target_features": features, "text": model.token_ids(["is red"] * 6)}
        outputs = model(inputs, training=True)
        assert {value.dtype for value in outputs.values()} == {tf.float32}
        assert model.compute_loss(y=tf.range(6), y_pred=outputs).dtype == tf.float32
    finally:
        keras.mixed_precision.set_global_policy("float32")
