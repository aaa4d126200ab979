"""What every composed retriever promises, and what its export promises."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tf_fashion.core.errors import TfFashionError
from tf_fashion.inputs.images import load_image
from tf_fashion.models import ComposedRetriever


def _require(condition: object, message: str) -> None:
    if not condition:
        raise TfFashionError(message)


def run_model_test(model: ComposedRetriever, folder: str | Path, batch: int = 5, steps: int = 3) -> None:
    """Checks a composed retriever: unit embeddings, training, saving, loading.

    Args:
        model: With a tokenizer; it is compiled and trained for a few steps.
        folder: Where the saved model is written.
        batch: Rows of made-up input.
        steps: Training steps.

    Raises:
        TfFashionError: a promise is not kept.
    """
    random = np.random.default_rng(0)
    size = model.image_encoder.image_size
    _require(model.tokenizer is not None, "The model needs a tokenizer.")
    words = model.tokenizer.words if model.tokenizer is not None else []
    texts = [" ".join(random.choice(words, 4)) if i else "" for i in range(batch)]
    inputs = {
        "reference_image": random.uniform(0, 255, (batch, size, size, 3)).astype("float32"),
        "target_image": random.uniform(0, 255, (batch, size, size, 3)).astype("float32"),
        "text": model.token_ids(texts),
    }
    outputs = model(inputs)
    for role in ("query", "target"):
        values = np.asarray(outputs[role])
        _require(values.shape == (batch, model.dim) and values.dtype == np.float32, f"{role}: expected float32 ({batch}, {model.dim}).")
        _require(np.allclose(np.linalg.norm(values, axis=1), 1.0, atol=1e-4), f"{role}: expected rows of length one.")
    features = model.encode_image(inputs["reference_image"])
    cached = model({"reference_features": features, "target_image": inputs["target_image"], "text": inputs["text"]})
    _require(np.allclose(cached["query"], outputs["query"], atol=1e-5), "Cached features give another query than the photos.")
    model.compile("adam")
    data = tf.data.Dataset.from_tensors((inputs, tf.range(batch))).repeat(steps)
    history = model.fit(data, epochs=1, verbose=0, shuffle=False).history
    _require(np.isfinite(history["loss"][0]), "The loss is not finite.")
    outputs = model(inputs)
    path = Path(folder) / "model.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
    _require(np.allclose(loaded(inputs)["query"], outputs["query"], atol=1e-6), "The loaded model gives another query.")
    # JSON makes lists of tuples.
    configurations = [json.dumps(each.get_config(), sort_keys=True) for each in (loaded, model)]
    _require(configurations[0] == configurations[1], "The loaded model has another configuration.")
    _require(type(loaded.loss) is type(model.loss), "The loaded model lost its loss.")


def run_export_test(model: ComposedRetriever, folder: str | Path, photos: Sequence[bytes], texts: Sequence[str]) -> None:
    """Checks that an export embeds photos and sentences as the model does, and that garbage spoils no other row.

    Args:
        model: With a tokenizer.
        folder: Where the export is written.
        photos: Encoded pictures.
        texts: One sentence per photo.

    Raises:
        TfFashionError: a promise is not kept.
    """
    from tf_fashion.serving.export import ExportedRetriever, export_composed

    export = ExportedRetriever(export_composed(model, Path(folder) / "export" / "1"))
    queries, valid = export.embed_query([*photos, b"garbage"], [*texts, "x"])
    _require(valid.tolist() == [True] * len(photos) + [False], f"valid: expected only the last to be false, found {valid.tolist()}.")
    images = tf.stack([load_image(photo, model.image_encoder.image_spec) for photo in photos])
    own = model.embed_query(model.encode_image(images), model.token_ids(list(texts))).numpy()
    _require(np.allclose(queries[:-1], own, atol=1e-5), "The export gives other queries than the model.")
    gallery, _ = export.embed_image(list(photos))
    _require(np.allclose(gallery, model.embed_image(images), atol=1e-5), "The export gives other gallery embeddings than the model.")
