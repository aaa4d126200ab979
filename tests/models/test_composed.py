"""`ComposedRetriever` with every composer keeps what every model promises."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tf_fashion.composers import COMPOSERS
from tf_fashion.core.errors import UsageError
from tf_fashion.encoders.image import ImageEncoder
from tf_fashion.encoders.text import TEXT_ENCODERS
from tf_fashion.inputs.text import WordTokenizer
from tf_fashion.models import ComposedRetriever
from tf_fashion.testing.models import run_export_test, run_model_test

WORDS = ["is", "red", "and", "longer", "with", "stripes"]


def make(composer: str, **options: object) -> ComposedRetriever:
    tokenizer = WordTokenizer(WORDS)
    text = TEXT_ENCODERS.get("swem")(vocabulary_size=len(tokenizer.vocabulary), dim=16, embedding_dim=8)
    cls = COMPOSERS.get(composer)
    taps = ("stage3", "stage4", "stage5") if cls.multilevel else ("stage5",)
    encoder = ImageEncoder("small_cnn", image_size=32, taps=taps, pooling=None if cls.spatial else "avg")
    return ComposedRetriever(encoder, text, composer, tokenizer, dim=16, caption_style="and", **options)


@pytest.mark.parametrize("composer", ["tirg", "tirg_lastconv", "text_only", "val"])
def test_every_kind_of_composer_makes_a_model(composer: str, tmp_path: Path) -> None:
    run_model_test(make(composer), tmp_path)


def test_options_travel_with_the_model(tmp_path: Path) -> None:
    run_model_test(make("tirg", projection="mlp", feature_norm=True, feature_dropout=0.3, trainable_scale=False), tmp_path)


def test_levels_share_the_embedding() -> None:
    model = make("val", projection="none")
    assert model.level_dims == [64, 128, 192] and model.dim == 384
    images = np.random.default_rng(0).uniform(0, 255, (3, 32, 32, 3)).astype("float32")
    outputs = model({"reference_image": images, "target_image": images, "text": model.token_ids(["is red", "longer", ""])})
    np.testing.assert_allclose(np.linalg.norm(outputs["query"], axis=1), 1.0, atol=1e-5)
    for level in model._levels(outputs["target"]):
        np.testing.assert_allclose(np.linalg.norm(level, axis=1), 1.0, atol=1e-5)
    # Nothing is mixed between the levels: without projection, a level's slice is the mean of its map.
    maps = model.image_encoder(images)["stage4"].numpy().mean(axis=(1, 2))
    np.testing.assert_allclose(model._levels(outputs["target"])[1], maps / np.linalg.norm(maps, axis=1, keepdims=True), atol=1e-5)


def test_descriptions_and_penalty_take_part_in_the_objective() -> None:
    model = make("val", semantic=True, l2_penalty=1e-2)
    images = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
    ids = model.token_ids(["is red", "longer", "stripes", "and"])
    inputs = {"reference_image": images, "target_image": images[::-1], "text": ids, "target_text": ids}
    inputs["target_text_label"] = np.array([0, 1, -1, 2])
    labels, values = np.arange(4), {}
    for name, weights in {"both": (1.0, 0.5), "matching": (1.0, 0.0), "semantic": (0.0, 1.0)}.items():
        model.compile(loss="bidirectional_matching", matching_weight=weights[0], semantic_weight=weights[1])
        values[name] = float(model.compute_loss(inputs, labels, model(inputs)))
    penalty = sum(float(np.sum(np.square(kernel))) for kernel in model.penalised_kernels()) * 0.5e-2
    assert len(model.penalised_kernels()) == 9 + 3 * 4 + 3 + 3 + 1
    assert values["both"] - penalty == pytest.approx(values["matching"] - penalty + 0.5 * (values["semantic"] - penalty), rel=1e-4)
    with pytest.raises(UsageError, match="target_text"):
        model.compile(semantic_weight=1.0)
        model.compute_loss(inputs, labels, model({k: v for k, v in inputs.items() if k != "target_text"}))
    with pytest.raises(UsageError, match="semantic=True"):
        make("val").compile(semantic_weight=1.0)


@pytest.mark.slow
def test_the_export_embeds_bytes_and_strings_as_the_model_does(tmp_path: Path) -> None:
    photos = []
    for size, mode in (((40, 60), "RGB"), ((32, 32), "L"), ((90, 20), "RGBA")):
        buffer = io.BytesIO()
        array = np.random.default_rng(size[0]).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(array).convert(mode).save(buffer, "PNG")
        photos.append(buffer.getvalue())
    for composer in ("tirg", "val"):
        run_export_test(make(composer), tmp_path / composer, photos, ["is red and longer", "", "STRIPES, ombré!"])


def test_misuse_is_explained() -> None:
    with pytest.raises(UsageError, match="projection"):
        make("tirg", projection="cubic")
    model = make("tirg")
    with pytest.raises(UsageError, match="reference_image"):
        model({"text": model.token_ids(["is red"])})
    with pytest.raises(UsageError, match="target"):
        model.compute_loss(y=np.arange(1), y_pred={"query": np.ones((1, 16), "float32")})
    with pytest.raises(UsageError, match="pooling=None"):
        ComposedRetriever(ImageEncoder("small_cnn", image_size=32), model.text_encoder, "tirg_lastconv", dim=16)
