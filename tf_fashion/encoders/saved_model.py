"""Image encoders that come as SavedModels: TF-Hub feature vectors, or anybody's export."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tf_fashion.core.errors import UsageError, WeightsError
from tf_fashion.core.files import hash_file, hash_json
from tf_fashion.inputs.images import SCALINGS, ImageSpec, scale_pixels


def saved_model_hash(folder: Path) -> str:
    """SHA-256 over the graph and the variables of a SavedModel."""
    files = sorted(path for path in [folder / "saved_model.pb", *folder.glob("variables/*")] if path.is_file())
    return hash_json([[str(path.relative_to(folder)), hash_file(path)] for path in files])


@keras.saving.register_keras_serializable("tf_fashion")
class SavedModelEncoder(keras.layers.Layer):
    """A frozen SavedModel that maps pictures to vectors, such as a TF-Hub "image feature vector".

    Use it wherever an `ImageEncoder` is taken; it cannot be trained. A SavedModel is a program: load only what you trust. A
    `.keras` file that uses one holds the folder's path and hash, not its content; loading it needs the same SavedModel there.

    Args:
        path: Unpacked SavedModel folder (with `saved_model.pb`). Download and unpack TF-Hub models first.
        image_size: Side of the pictures that it takes.
        scaling: What it expects of its pixels; TF-Hub's convention is "unit" (0..1).
        resize: How a photo becomes a square (see `ImageSpec.resize`).
        sha256: None, or the hash that the SavedModel must have.

    Raises:
        WeightsError: no SavedModel at `path`, another one than `sha256` names, or one that gives no `(batch, width)` floats.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        image_size: int = 224,
        scaling: str = "unit",
        resize: str = "squash",
        sha256: str | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("dtype", "float32")
        kwargs["trainable"] = False
        super().__init__(**kwargs)
        if scaling not in SCALINGS:
            raise UsageError(f"SavedModelEncoder(scaling=...): expected one of {', '.join(SCALINGS)}; found {scaling!r}.")
        self.folder = str(path)
        self.image_size = int(image_size)
        self.scaling = scaling
        self.resize = resize
        self.pooling: str | None = "saved_model"
        folder = Path(path)
        if not (folder / "saved_model.pb").is_file():
            raise WeightsError(
                f"{folder}: no SavedModel there (a folder with saved_model.pb). Download the model on a machine with access, unpack "
                "it, and give the folder."
            )
        self.sha256 = saved_model_hash(folder)
        if sha256 is not None and sha256 != self.sha256:
            raise WeightsError(
                f"{folder}: another SavedModel than the one this model was trained with (its hash differs). Put that one there."
            )
        loaded = tf.saved_model.load(str(folder))
        call = loaded if callable(loaded) else loaded.signatures.get("serving_default")
        if call is None:
            raise WeightsError(f"{folder}: the SavedModel can neither be called nor has it a signature 'serving_default'.")
        self._loaded, self._apply = loaded, call
        probe = self._run(tf.zeros((1, self.image_size, self.image_size, 3)))
        if probe.shape.rank != 2 or not probe.dtype.is_floating:
            raise WeightsError(f"{folder}: expected vectors (batch, width), found {probe.dtype.name} of shape {tuple(probe.shape)}.")
        self.feature_dim = int(probe.shape[-1])
        self.built = True

    def _run(self, images: Any) -> tf.Tensor:
        result = self._apply(images)
        return next(iter(result.values())) if isinstance(result, dict) else result

    @property
    def image_spec(self) -> ImageSpec:
        """How photos have to be decoded and resized (pixels stay in 0..255)."""
        return ImageSpec(size=self.image_size, resize=self.resize, scaling="raw")

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """`(feature_dim,)`."""
        return (self.feature_dim,)

    @property
    def block_widths(self) -> dict[str, int]:
        """Widths of the parts of the vector; it has one."""
        return {"features": self.feature_dim}

    def call(self, images: Any, training: bool | None = None) -> dict[str, Any]:
        vectors = self._run(scale_pixels(images, self.scaling))
        return {"features": ops.cast(tf.ensure_shape(vectors, (None, self.feature_dim)), "float32")}

    def encode(self, images: Any, training: bool | None = None) -> Any:
        """Vectors `(batch, feature_dim)` float32 of pictures `(batch, size, size, 3)` in 0..255."""
        return self(images)["features"]

    def compute_output_shape(self, input_shape: tuple) -> dict[str, tuple]:
        return {"features": (input_shape[0], self.feature_dim)}

    def fingerprint(self) -> str:
        """Hash of everything that decides the features of a photo."""
        return hash_json({"saved_model": self.sha256, "scaling": self.scaling, "spec": self.image_spec.fingerprint()})

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "path": self.folder,
            "image_size": self.image_size,
            "scaling": self.scaling,
            "resize": self.resize,
            "sha256": self.sha256,
        }
