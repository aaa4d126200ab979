"""`DualEncoder` with towers of every kind keeps what every model promises."""

from __future__ import annotations

import io
import math
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tf_fashion.core.errors import UsageError
from tf_fashion.encoders.clip import CLIPConfig, CLIPImageEncoder, CLIPTextEncoder
from tf_fashion.encoders.image import ImageEncoder
from tf_fashion.encoders.text import TEXT_ENCODERS
from tf_fashion.inputs.bpe import CLIPTokenizer, learn_merges
from tf_fashion.inputs.text import WordTokenizer
from tf_fashion.losses import LOSSES
from tf_fashion.losses.concept import ConceptLoss
from tf_fashion.models import DualEncoder, load_dual
from tf_fashion.retrieval.prototypes import ConceptPrototypes
from tf_fashion.serving.export import ExportedDualEncoder, export_dual
from tf_fashion.training.optimizers import GroupedAdamW

TEXTS = ["a red dress", "blue jeans, slim", "white shirt with stripes", "green coat", "a red coat"]


def words_model(**options: object) -> DualEncoder:
    tokenizer = WordTokenizer(["a", "red", "dress", "blue", "jeans", "coat", "green"])
    text = TEXT_ENCODERS.get("swem")(vocabulary_size=len(tokenizer.vocabulary), dim=16, embedding_dim=8)
    encoder = ImageEncoder("small_cnn", image_size=32)
    return DualEncoder(encoder, text, tokenizer, dim=16, **{"projection": "mlp", **options})


def clip_model(**options: object) -> DualEncoder:
    tokenizer = CLIPTokenizer(learn_merges(TEXTS * 3, 560), context_length=16)
    config = CLIPConfig(24, 32, 2, 64, 16, 16, tokenizer.vocabulary_size, 64, 1, 1)
    return DualEncoder(CLIPImageEncoder(config), CLIPTextEncoder(config), tokenizer, **options)


def batch_for(model: DualEncoder, seed: int = 0) -> dict[str, np.ndarray]:
    size = model.image_encoder.image_size
    images = np.random.default_rng(seed).uniform(0, 255, (len(TEXTS), size, size, 3)).astype("float32")
    return {"image": images, "text": np.asarray(model.token_ids(TEXTS))}


def with_concepts(model: DualEncoder) -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    prototypes = ConceptPrototypes(np.arange(3), model.dim, 6)
    vectors = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (random.normal(size=(n, model.dim)) for n in (3, 9))]
    prototypes.update(*vectors, candidates=8)
    model.attach_prototypes(prototypes.gather)
    ids = np.array([[0, 1], [1, -1], [2, 0], [1, 2], [0, -1]], np.int32)
    prompts = np.asarray(model.token_ids(["a photo of red", "a photo of coat", "a photo of jeans", "a photo of "]))
    return {**batch_for(model), "concept_ids": ids, "concept_text": prompts[ids]}


@pytest.mark.parametrize("make", [words_model, clip_model])
def test_embeddings_training_and_files(make: object, tmp_path: Path) -> None:
    model = make()
    inputs = batch_for(model)
    outputs = model(inputs)
    for side in ("image", "text"):
        assert outputs[side].shape == (5, model.dim) and outputs[side].dtype == tf.float32
        np.testing.assert_allclose(np.linalg.norm(outputs[side], axis=1), 1.0, atol=1e-5)
    features = model.encode_image(inputs["image"])
    np.testing.assert_allclose(model({"features": features})["image"], outputs["image"], atol=1e-5)
    model.compile(GroupedAdamW(1e-3))
    data = tf.data.Dataset.from_tensors((inputs, tf.range(5))).repeat(3)
    history = model.fit(data, verbose=0, shuffle=False).history
    assert np.isfinite(history["loss"][0]) and set(history) == {"loss", "contrastive_loss", "scale"}
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(inputs)["text"], model(inputs)["text"], atol=1e-6)
    np.testing.assert_allclose(loaded(inputs)["image"], model(inputs)["image"], atol=1e-6)
    assert float(loaded.logit_scale) == float(model.logit_scale) and type(loaded.loss) is type(model.loss)
    assert load_dual(tmp_path / "model.keras").token_ids(TEXTS).shape == model.token_ids(TEXTS).shape


@pytest.mark.parametrize("make", [words_model, clip_model])
def test_the_export_embeds_bytes_and_strings_as_the_model_does(make: object, tmp_path: Path) -> None:
    model = make()
    photos = []
    for size in ((40, 60), (32, 32)):
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(size[0]).integers(0, 255, (*size, 3), dtype=np.uint8)).save(buffer, "PNG")
        photos.append(buffer.getvalue())
    export = ExportedDualEncoder(export_dual(model, tmp_path / "export" / "1"))
    texts = [*TEXTS, "", "ÜBER “curly” 👗 &amp; 12"]
    np.testing.assert_allclose(export.embed_text(texts), model.embed_text(model.token_ids(texts)), atol=1e-5)
    images, valid = export.embed_image([*photos, b"garbage"])
    assert valid.tolist() == [True, True, False] and images.shape == (3, model.dim)
    assert export.record["kind"] == "dual"


def test_the_objective_is_clips_contrastive_loss() -> None:
    model = clip_model()
    inputs = batch_for(model)
    outputs = model(inputs)
    model.compile(loss=LOSSES.get("batch_classification")(directions="both"))
    logits = float(model.scale()) * np.asarray(outputs["image"]) @ np.asarray(outputs["text"]).T

    def cross_entropy(rows: np.ndarray) -> float:
        return float(np.mean(np.log(np.exp(rows).sum(1)) - np.diag(rows)))

    expected = (cross_entropy(logits) + cross_entropy(logits.T)) / 2
    assert float(model.compute_loss(inputs, np.arange(5), outputs)) == pytest.approx(expected, rel=1e-5)


def test_the_scale_stays_within_its_bounds() -> None:
    model = words_model(initial_scale=99.0)
    model.compile(keras.optimizers.SGD(1e6))
    model.train_on_batch(batch_for(model), np.arange(5))
    assert 0.0 <= float(model.logit_scale) <= 4.6052 + 1e-6
    free = words_model(max_scale=None, initial_scale=200.0)
    assert float(free.logit_scale) == pytest.approx(math.log(200.0))


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["batch_classification", "sigmoid"])
def test_small_parts_give_the_gradient_of_the_whole_batch(loss: str) -> None:
    keras.utils.set_random_seed(3)
    options = {"initial_bias": -5.0} if loss == "sigmoid" else {}
    model = clip_model(**options)
    start = [v.numpy() for v in model.trainable_variables]
    steps = {}
    for micro_batch in (None, 2):
        for variable, value in zip(model.trainable_variables, start, strict=True):
            variable.assign(value)
        matching = LOSSES.get(loss)() if loss == "sigmoid" else LOSSES.get(loss)(directions="both")
        model.compile(keras.optimizers.SGD(1.0), matching, concept_loss=ConceptLoss(top=3), micro_batch=micro_batch)
        inputs = with_concepts(model)
        logs = model.train_on_batch(inputs, np.arange(5), return_dict=True)
        steps[micro_batch] = (logs, [v.numpy() - value for v, value in zip(model.trainable_variables, start, strict=True)])
    (plain_logs, plain), (small_logs, small) = steps.values()
    for name in ("loss", "contrastive_loss", "concept_loss", "concept_weight"):
        assert small_logs[name] == pytest.approx(plain_logs[name], rel=1e-5), name
    largest = max(float(np.abs(x).max()) for x in plain)
    for whole, parts in zip(plain, small, strict=True):
        np.testing.assert_allclose(parts, whole, atol=2e-6 * max(largest, 1.0), rtol=2e-4)


def test_the_concept_loss_begins_when_it_is_told_to() -> None:
    model = words_model()
    model.compile(GroupedAdamW(1e-3), concept_loss=ConceptLoss(top=3), concept_start=1)
    inputs = with_concepts(model)
    first = model.train_on_batch(inputs, np.arange(5), return_dict=True)
    assert first["concept_loss"] == 0 and first["loss"] == pytest.approx(first["contrastive_loss"])
    model.reset_metrics()
    second = model.train_on_batch(inputs, np.arange(5), return_dict=True)
    assert second["concept_loss"] > 0 and 0 < second["concept_weight"] <= 1


def test_prototypes_are_no_part_of_the_saved_model(tmp_path: Path) -> None:
    model = words_model()
    model.compile(GroupedAdamW(1e-3), concept_loss=ConceptLoss(top=3))
    inputs = with_concepts(model)
    model.train_on_batch(inputs, np.arange(5))
    assert not any("prototype" in variable.path for variable in model.variables)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.concept_loss.top == 3
    with pytest.raises(UsageError, match="attach_prototypes"):
        loaded.train_on_batch(inputs, np.arange(5))


def test_bad_use_is_told() -> None:
    tokenizer = WordTokenizer(["a"])
    text = TEXT_ENCODERS.get("swem")(vocabulary_size=len(tokenizer.vocabulary), dim=16, embedding_dim=8)
    with pytest.raises(UsageError, match="width 24, the text encoder of 16"):
        DualEncoder(ImageEncoder("small_cnn", image_size=32), text, dim=24, projection="linear")
    with pytest.raises(UsageError, match="pooling"):
        DualEncoder(ImageEncoder("small_cnn", image_size=32, pooling=None), text, dim=16, projection="linear")
    with pytest.raises(UsageError, match="initial_scale"):
        words_model(initial_scale=0.0)
    model = words_model()
    with pytest.raises(UsageError, match="Expected 'image', 'features' or 'text'"):
        model({"photo": np.zeros((1, 2), "float32")})
    with pytest.raises(UsageError, match="micro_batch"):
        model.compile(micro_batch=0)
    with pytest.raises(UsageError, match="concept_weighting"):
        model.compile(concept_weighting="sum")
    model.tokenizer = None
    with pytest.raises(UsageError, match="no tokenizer"):
        model.token_ids(["a"])
