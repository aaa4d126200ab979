"""SavedModels that take encoded photos and sentences, with the very decoding and tokenising of training inside the graph."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_fashion.core.errors import UsageError
from tf_fashion.core.files import write_json
from tf_fashion.inputs.images import safe_decode_batch
from tf_fashion.models import AttributeClassifier, ComposedRetriever, DomainAdapter, DualEncoder
from tf_fashion.models.base import RetrievalModel


def export_composed(model: ComposedRetriever, folder: str | Path, record: dict[str, Any] | None = None) -> Path:
    """Writes a SavedModel of a composed retriever, complete or not at all.

    Signatures (names are those of the REST and gRPC interfaces of TensorFlow Serving):
        `serving_default`: `image_bytes` string `(batch,)` and `text` string `(batch,)` -> `embedding` float32 `(batch, dim)` of
            the query, `valid` bool `(batch,)`.
        `embed_image`: `image_bytes` -> `embedding` of gallery photos, `valid`.

    An undecodable photo does not fail the batch: its row has `valid` false and the embedding of a black picture. Embeddings have
    length one; queries and gallery photos are compared by dot product.

    Args:
        model: With a tokenizer.
        folder: Target; what an earlier export left there is replaced at the end.
        record: JSON-able facts that are written beside the model as `tf_fashion.json`.

    Raises:
        UsageError: the model has no tokenizer.
    """
    spec = model.image_encoder.image_spec

    def query(image_bytes: tf.Tensor, text: tf.Tensor) -> dict[str, tf.Tensor]:
        images, valid = safe_decode_batch(image_bytes, spec)
        features = tf.cast(model.encode_image(images, training=False), tf.float32)
        return {"embedding": model.embed_query(features, *model.text_inputs(text)), "valid": valid}

    notes = {"kind": "composed", "caption_style": model.caption_style}
    return _write(model, folder, query, [_IMAGE_BYTES, _TEXT], {**notes, **(record or {})})


_IMAGE_BYTES = tf.TensorSpec((None,), tf.string, name="image_bytes")
_TEXT = tf.TensorSpec((None,), tf.string, name="text")


def _write(
    model: ComposedRetriever | DualEncoder | AttributeClassifier | DomainAdapter,
    folder: str | Path,
    query: Any,
    signature: list[tf.TensorSpec],
    record: dict[str, Any],
) -> Path:
    """Writes a SavedModel whose default signature is `query`, beside `embed_image`; complete or not at all."""
    if "tokenizer" in model.parts and model.tokenizer is None:
        raise UsageError("Only a model with a tokenizer can be exported: the signature takes sentences.")
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    spec = model.image_encoder.image_spec

    def embed_image(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        images, valid = safe_decode_batch(image_bytes, spec)
        return {"embedding": model.embed_image(images), "valid": valid}

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serving_default", query, input_signature=signature)
    archive.add_endpoint("embed_image", embed_image, input_signature=[_IMAGE_BYTES])
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        archive.write_out(str(temporary / "model"), verbose=False)
        facts = {"dim": model.dim, "image_spec": spec.to_config(), **record}
        write_json(temporary / "model" / "tf_fashion.json", facts)
        old = temporary / "old"
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary / "model", folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def export_dual(model: DualEncoder, folder: str | Path, record: dict[str, Any] | None = None) -> Path:
    """Writes a SavedModel of a dual encoder, complete or not at all.

    Signatures (names are those of the REST and gRPC interfaces of TensorFlow Serving):
        `serving_default`: `text` string `(batch,)` -> `embedding` float32 `(batch, dim)`.
        `embed_image`: `image_bytes` string `(batch,)` -> `embedding` float32 `(batch, dim)`, `valid` bool `(batch,)`.

    An undecodable photo does not fail the batch: its row has `valid` false and the embedding of a black picture. Embeddings have
    length one; texts and photos are compared by dot product.

    Args:
        model: With a tokenizer.
        folder: Target; what an earlier export left there is replaced at the end.
        record: JSON-able facts that are written beside the model as `tf_fashion.json`.

    Raises:
        UsageError: the model has no tokenizer.
    """

    def embed_text(text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"embedding": model.embed_text(model.token_ids(text))}

    notes = {"kind": "dual", "scale": float(model.scale())}
    return _write(model, folder, embed_text, [_TEXT], {**notes, **(record or {})})


def export_attributes(model: AttributeClassifier, folder: str | Path, record: dict[str, Any] | None = None) -> Path:
    """Writes a SavedModel of an attribute classifier, complete or not at all.

    Signatures (names are those of the REST and gRPC interfaces of TensorFlow Serving):
        `serving_default`: `image_bytes` string `(batch,)` -> `probabilities` and `logits` float32 `(batch, labels)`, `embedding`
            float32 `(batch, dim)`, `valid` bool `(batch,)`.
        `embed_image`: `image_bytes` -> `embedding`, `valid`.

    An undecodable photo does not fail the batch: its row has `valid` false and the results of a black picture. `tf_fashion.json` beside
    the model names the labels in their order.

    Args:
        model: The classifier.
        folder: Target; what an earlier export left there is replaced at the end.
        record: JSON-able facts that are added to `tf_fashion.json`.
    """
    spec = model.image_encoder.image_spec

    def predict(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        images, valid = safe_decode_batch(image_bytes, spec)
        features = tf.cast(model.encode_image(images, training=False), tf.float32)
        logits = model.logits_of(features)
        embedding = model.embed_features(features)
        return {"probabilities": model.probabilities(logits), "logits": logits, "embedding": embedding, "valid": valid}

    notes = {"kind": "attributes", "label_map": model.label_map.to_config(), "exclusive": list(model.exclusive)}
    return _write(model, folder, predict, [_IMAGE_BYTES], {**notes, **(record or {})})


def export_adapter(model: DomainAdapter, folder: str | Path, record: dict[str, Any] | None = None) -> Path:
    """Writes a SavedModel of a domain adapter with its encoder, complete or not at all.

    Signatures (names are those of the REST and gRPC interfaces of TensorFlow Serving):
        `serving_default` and `embed_image`: `image_bytes` string `(batch,)` -> `embedding` float32 `(batch, dim)`, `valid` bool
            `(batch,)`.

    An undecodable photo does not fail the batch: its row has `valid` false and the embedding of a black picture. Embeddings have
    length one; photos of both domains are compared by dot product.

    Args:
        model: With an image encoder.
        folder: Target; what an earlier export left there is replaced at the end.
        record: JSON-able facts that are written beside the model as `tf_fashion.json`.

    Raises:
        UsageError: the model has no image encoder.
    """
    model.require_encoder("A SavedModel")
    spec = model.image_encoder.image_spec

    def embed(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        images, valid = safe_decode_batch(image_bytes, spec)
        return {"embedding": model.embed_image(images), "valid": valid}

    return _write(model, folder, embed, [_IMAGE_BYTES], {"kind": "adapter", **(record or {})})


def export(model: RetrievalModel, folder: str | Path, record: dict[str, Any] | None = None) -> Path:
    """Writes the SavedModel of a model of any kind; see `export_composed`, `export_dual`, `export_attributes`, `export_adapter`."""
    kinds: dict[type, Any] = {
        ComposedRetriever: export_composed,
        DualEncoder: export_dual,
        AttributeClassifier: export_attributes,
        DomainAdapter: export_adapter,
    }
    return next(write for kind, write in kinds.items() if isinstance(model, kind))(model, folder, record)


class _Exported:
    """A SavedModel of ours, called in-process.

    Args:
        folder: What an export function wrote.

    Raises:
        UsageError: there is no such export.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "saved_model.pb").is_file():
            raise UsageError(
                f"{self.folder}: no SavedModel there. Make one with: tf-fashion export --model MODEL.keras --out {self.folder}"
            )
        self._loaded = tf.saved_model.load(str(self.folder))
        self._default = self._loaded.signatures["serving_default"]
        self._image = self._loaded.signatures["embed_image"]
        record = self.folder / "tf_fashion.json"
        self.record: dict[str, Any] = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}

    def embed_image(self, photos: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings `(n, dim)` of photos (of a gallery, or of both domains), and whether each was readable."""
        result = self._image(image_bytes=tf.constant(list(photos)))
        return result["embedding"].numpy(), result["valid"].numpy()


class ExportedRetriever(_Exported):
    """An exported composed retriever; arguments and errors as of any export."""

    def embed_query(self, photos: Sequence[bytes], texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings `(n, dim)` of photos with sentences, and whether each photo was readable."""
        result = self._default(image_bytes=tf.constant(list(photos)), text=tf.constant(list(texts)))
        return result["embedding"].numpy(), result["valid"].numpy()


class ExportedDualEncoder(_Exported):
    """An exported dual encoder; arguments and errors as of any export."""

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings `(n, dim)` of texts."""
        return self._default(text=tf.constant(list(texts)))["embedding"].numpy()


class ExportedAttributeClassifier(_Exported):
    """An exported attribute classifier; arguments and errors as of any export."""

    def predict(self, photos: Sequence[bytes]) -> dict[str, np.ndarray]:
        """`probabilities` and `logits` `(n, labels)`, `embedding` `(n, dim)`, and `valid` `(n,)`: whether each photo was readable."""
        return {name: value.numpy() for name, value in self._default(image_bytes=tf.constant(list(photos))).items()}


class ExportedAdapter(_Exported):
    """An exported domain adapter, all of it `embed_image`; arguments and errors as of any export."""
