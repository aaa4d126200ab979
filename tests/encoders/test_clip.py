"""CLIP's towers: keras_hub's numbers, no work for padding, their start, and every place where an encoder is taken."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_fashion.core.errors import UsageError
from tf_fashion.encoders.clip import CLIP_CONFIGS, CLIPConfig, CLIPImageEncoder, CLIPTextEncoder
from tf_fashion.encoders.text import TEXT_ENCODERS
from tf_fashion.inputs.images import scale_pixels
from tf_fashion.inputs.text import WordTokenizer
from tf_fashion.models import ComposedRetriever
from tf_fashion.testing.contracts import run_layer_test
from tf_fashion.testing.models import run_model_test

SMALL = CLIPConfig(24, 32, 2, 128, 8, 12, 50, 32, 4, 2)
FLAT = CLIPConfig(24, 32, 1, 64, 8, 12, 50, 32, 4, 1)
# A full caption, an empty one, a short one, one without an end token, whose largest id comes first.
TOKENS = np.array([[48, *range(1, 11), 49], [48, 49, *[0] * 10], [48, 7, 3, 49, *[0] * 8], [48, *range(10, 21)]], np.int32)


def photos(number: int = 3, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (number, size, size, 3)).astype("float32")


def weighted(values: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.square(values) * np.random.default_rng(1).normal(size=values.shape).astype("float32"))


def same_gradients(variables: list, ours: list, wanted: list) -> None:
    for variable, one, other in zip(variables, ours, wanted, strict=True):
        one, other = (np.asarray(tf.convert_to_tensor(gradient)) for gradient in (one, other))
        np.testing.assert_allclose(one, other, atol=1e-5 * max(1.0, float(np.abs(other).max())), err_msg=variable.path)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_features_and_gradients_are_those_of_keras_hubs_towers(activation: str) -> None:
    config = CLIPConfig.of({**SMALL.to_config(), "activation": activation})
    image, text, pixels = CLIPImageEncoder(config), CLIPTextEncoder(config), photos()
    with tf.GradientTape(persistent=True) as tape:
        ours = image.encode(pixels), text(TOKENS)
        rows = image.tower({"images": scale_pixels(pixels, "clip")})[:, 0], text.tower({"token_ids": TOKENS})
        end = tf.gather(rows[1], TOKENS.argmax(1), batch_dims=1)
        wanted = rows[0] @ image.projection.value, end @ text.projection.value
        sums = [(weighted(a), weighted(b)) for a, b in zip(ours, wanted, strict=True)]
    for encoder, found, reference, (first, second) in zip((image, text), ours, wanted, sums, strict=True):
        assert found.dtype == tf.float32
        np.testing.assert_allclose(found, reference, atol=1e-5)
        values = [variable.value for variable in encoder.trainable_variables]
        same_gradients(encoder.trainable_variables, tape.gradient(first, values), tape.gradient(second, values))


def test_padding_and_fewer_columns_change_nothing() -> None:
    text = CLIPTextEncoder(SMALL)
    whole = CLIPTextEncoder(SMALL, trim_padding=False)
    whole.set_weights(text.get_weights())
    short = TOKENS[1:]
    variables = [variable.value for variable in text.trainable_variables], [variable.value for variable in whole.trainable_variables]
    with tf.GradientTape(persistent=True) as tape:
        trimmed, padded = text(short), whole(short)
        sums = weighted(trimmed), weighted(padded)
    np.testing.assert_allclose(trimmed, padded, atol=1e-6)
    np.testing.assert_allclose(text(short[:, :4]), padded, atol=1e-6)
    same_gradients(text.trainable_variables, *(tape.gradient(a, b) for a, b in zip(sums, variables, strict=True)))
    assert text.hidden_states(short)["block0"].shape == (3, 4, 32)
    assert whole.hidden_states(short)["ln_final"].shape == (3, 12, 32)
    # Without an end token only the first position counts: the original's over-long captions are all the same.
    same = text(np.array([[48, 1, 2], [48, 5, 6]]))
    np.testing.assert_allclose(same[0], same[1], atol=1e-5)
    assert text(np.zeros((0, 12), np.int32)).shape == (0, 24)
    assert not text.supports_jit and whole.supports_jit
    with pytest.raises(UsageError, match="at most 12 tokens, found 13"):
        text(np.zeros((2, 13), np.int32))


def test_the_text_encoder_keeps_a_layers_promises() -> None:
    run_layer_test(CLIPTextEncoder, {"config": SMALL.to_config()}, (TOKENS,), (4, 24), "float32")


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_the_image_encoder_is_saved_with_its_weights_and_close_under_every_policy(policy: str, tmp_path: Path) -> None:
    exact, encoder = CLIPImageEncoder(SMALL), CLIPImageEncoder(SMALL, dtype=policy)
    encoder.set_weights(exact.get_weights())
    pixels = photos()
    found, wanted = encoder.encode(pixels), np.asarray(exact.encode(pixels))
    assert found.dtype == tf.float32 and encoder.compute_output_shape((3, 32, 32, 3)) == {"features": (3, 24)}
    cosine = np.sum(found * wanted, 1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
    assert cosine.min() > 0.999
    port = keras.Input((32, 32, 3))
    keras.Model(port, encoder(port)).save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(pixels)["features"], found, atol=1e-6)
    again = next(layer for layer in loaded.layers if isinstance(layer, CLIPImageEncoder))
    assert again.fingerprint() == encoder.fingerprint()
    assert (encoder.fingerprint() == exact.fingerprint()) == (policy == "float32")
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(encoder.encode(pixels))
    gradients = tape.gradient(total, [variable.value for variable in encoder.trainable_variables])
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_what_a_reload_would_lose_is_set_again() -> None:
    text = CLIPTextEncoder.from_config(CLIPTextEncoder(SMALL).get_config())
    assert text.tower.layer_norm.epsilon == 1e-5
    image = CLIPImageEncoder(SMALL)
    np.testing.assert_array_equal(image.tower.embedding.position_ids, np.arange(17)[None])
    turned = photos()[:, ::-1]
    assert np.abs(image.encode(turned) - image.encode(photos())).max() > 1e-3


def test_weights_start_as_clips_and_follow_the_seed() -> None:
    config = CLIPConfig(96, 64, 2, 192, 16, 30, 500, 128, 2, 2)

    def build() -> tuple[CLIPImageEncoder, CLIPTextEncoder]:
        keras.utils.set_random_seed(3)
        return CLIPImageEncoder(config), CLIPTextEncoder(config)

    image, text = build()
    vision, words = image.tower.encoder_layers[1], text.tower.encoder_layers[1]
    for variable, deviation in (
        (text.tower.embedding.token_embedding.embeddings, 0.02),
        (text.tower.embedding.position_embedding.position_embeddings, 0.01),
        (image.tower.embedding.position_embedding.embeddings, 192**-0.5),
        (image.projection, 192**-0.5),
        (text.projection, 128**-0.5),
        (words.attention.value_dense.kernel, 128**-0.5),
        (words.attention.output_dense.kernel, 128**-0.5 / 2),
        (words.dense_1.kernel, 256**-0.5),
        (words.dense_2.kernel, 128**-0.5 / 2),
        (vision.attention.query_dense.kernel, (6 / (4 * 192)) ** 0.5 / 3**0.5),
        (vision.attention.output_dense.kernel, (3 * 192) ** -0.5),
        (vision.dense_2.kernel, (3 * 4 * 192) ** -0.5),
        (vision.dense_2.bias, (3 * 4 * 192) ** -0.5),
        (image.tower.embedding.patch_embedding.kernel, (3 * 3 * 16**2) ** -0.5),
    ):
        assert np.std(variable) == pytest.approx(deviation, rel=0.15), variable.path
    assert not np.any(words.attention.query_dense.bias) and not np.any(vision.attention.output_dense.bias)
    for first, second in zip((image, text), build(), strict=True):
        for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_composed_retriever_takes_the_image_encoder(tmp_path: Path) -> None:
    tokenizer = WordTokenizer(["red", "blue", "dress", "shirt"])
    words = TEXT_ENCODERS.get("swem")(vocabulary_size=len(tokenizer.vocabulary), dim=16, embedding_dim=8)
    model = ComposedRetriever(CLIPImageEncoder(FLAT), words, "tirg", dim=16, tokenizer=tokenizer)
    run_model_test(model, tmp_path, steps=2)


def test_both_towers_go_into_a_saved_model(tmp_path: Path) -> None:
    class Towers(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.text = CLIPImageEncoder(FLAT), CLIPTextEncoder(FLAT)
            self.weights = [variable.value for part in (self.image, self.text) for variable in part.variables]

        @tf.function(input_signature=[tf.TensorSpec((None, 32, 32, 3), tf.float32), tf.TensorSpec((None, None), tf.int32)])
        def embed(self, images: tf.Tensor, token_ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return self.image.encode(images), self.text(token_ids)

    towers = Towers()
    tf.saved_model.save(towers, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    for found, wanted in zip(loaded.embed(photos(), TOKENS), (towers.image.encode(photos()), towers.text(TOKENS)), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_configurations() -> None:
    assert CLIPConfig.of("ViT-B/32") == CLIPConfig() and CLIPConfig.of(SMALL) is SMALL
    large = CLIP_CONFIGS["ViT-L/14"]
    assert (large.vision_heads, large.transformer_heads, large.grid, large.embed_dim) == (16, 12, 16, 768)
    for bad, message in (
        ("ViT-X", "Known: ViT-B/32"),
        ({"width": 3}, "unknown fields width"),
        ({"vision_width": 100}, "multiple of 64"),
        ({"image_resolution": 225}, "multiple of 32"),
        ({"transformer_heads": 7}, "multiple of 7"),
        ({"vision_layers": [3, 4, 6, 3]}, "ResNets"),
        ({"vision_layers": 0}, "positive whole number"),
        ({"activation": "relu"}, "quick_gelu"),
        (3, "its fields"),
    ):
        with pytest.raises(UsageError, match=message):
            CLIPConfig.of(bad)  # type: ignore[arg-type]


def test_the_names_of_published_sizes_have_their_number_of_weights() -> None:
    def parameters(c: CLIPConfig) -> int:
        vision = 3 * c.vision_patch_size**2 * c.vision_width + (c.grid**2 + 2 + c.embed_dim + 4) * c.vision_width
        text = (c.vocab_size + c.context_length + c.embed_dim + 2) * c.transformer_width
        blocks = ((c.vision_width, c.vision_layers), (c.transformer_width, c.transformer_layers))
        return vision + text + sum(layers * (12 * width**2 + 13 * width) for width, layers in blocks) + 1

    assert parameters(CLIP_CONFIGS["ViT-B/32"]) == 151_277_313
    assert parameters(CLIP_CONFIGS["ViT-L/14"]) == 427_616_513
    encoders = CLIPImageEncoder(SMALL), CLIPTextEncoder(SMALL)
    assert sum(int(np.prod(v.shape)) for e in encoders for v in e.trainable_variables) + 1 == parameters(SMALL)
