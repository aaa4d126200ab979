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
    pooling = None if COMPOSERS.get(composer).spatial else "avg"
    encoder = ImageEncoder("small_cnn", image_size=32, pooling=pooling)
    return ComposedRetriever(encoder, text, composer, tokenizer, dim=16, caption_style="and", **options)


@pytest.mark.parametrize("composer", ["tirg", "tirg_lastconv", "text_only"])
def test_every_kind_of_composer_makes_a_model(composer: str, tmp_path: Path) -> None:
    run_model_test(make(composer), tmp_path)


def test_options_travel_with_the_model(tmp_path: Path) -> None:
    run_model_test(make("tirg", projection="mlp", feature_norm=True, feature_dropout=0.3, trainable_scale=False), tmp_path)


def test_the_export_embeds_bytes_and_strings_as_the_model_does(tmp_path: Path) -> None:
    photos = []
    for size, mode in (((40, 60), "RGB"), ((32, 32), "L"), ((90, 20), "RGBA")):
        buffer = io.BytesIO()
        array = np.random.default_rng(size[0]).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(array).convert(mode).save(buffer, "PNG")
        photos.append(buffer.getvalue())
    run_export_test(make("tirg"), tmp_path, photos, ["is red and longer", "", "STRIPES, ombré!"])


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
