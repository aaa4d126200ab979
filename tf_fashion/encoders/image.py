"""Image encoders: pixels -> named feature maps of a backbone, or one vector pooled from them.

Every model of this library takes its pictures through `ImageEncoder`: one place knows the backbones, their weights, the scaling
of pixels that the weights expect, and the names of the maps (`stage1` at half the picture's side, ... `stage5` at 1/32).
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tf_fashion.core.errors import UsageError, WeightsError
from tf_fashion.core.files import hash_file, hash_json
from tf_fashion.core.registry import Registry
from tf_fashion.encoders.slim import MOBILENET_TAPS, RESNET_TAPS, mobilenet_v1, resnet_v2_50
from tf_fashion.encoders.torch_resnet import TORCH_RESNET_TAPS, TORCH_RESNETS, torch_resnet
from tf_fashion.inputs.images import SCALINGS, ImageSpec, scale_pixels
from tf_fashion.layers import GeM
from tf_fashion.layers.descriptors import DESCRIPTORS
from tf_fashion.layers.normalization import FusedBatchNormalization, batch_norm

POOLINGS = ("avg", "max", "gem", "avg_max")
BATCH_NORM_MODES = ("auto", "frozen", "train")


@dataclass(frozen=True)
class Backbone:
    """A convolutional network that can be cut at its stages.

    Attributes:
        build: Function of the input side that returns a functional model without a classifier and without weights loaded.
        scaling: What the network expects of its pixels (see `ImageSpec.scaling`).
        size: Side of the pictures that its ImageNet weights were trained with.
        published: Name of the function in `keras.applications` that knows where its ImageNet weights are, or None.
        taps: Names of feature taps -> layer. Stages that are not named end at the last layer of their size (see `stage_layers`), and
            VAL's `low`, `mid` and `high` are stages 3, 4 and 5 where nothing else is said.
    """

    build: Callable[[int, str | None], keras.Model]
    scaling: str
    size: int
    published: str | None = None
    taps: Mapping[str, str] = field(default_factory=dict)


BACKBONES: Registry[Backbone] = Registry("image backbone")


def _application(name: str, scaling: str, function: str, size: int = 224) -> None:
    def build(side: int, weights: str | None) -> keras.Model:
        return getattr(keras.applications, function)(include_top=False, weights=weights, input_shape=(side, side, 3))

    BACKBONES.register(name)(Backbone(build, scaling, size, function))


_application("mobilenet_v2", "tf", "MobileNetV2")
_application("resnet50", "caffe", "ResNet50")
_application("resnet101", "caffe", "ResNet101")
_application("resnet152", "caffe", "ResNet152")
_application("resnet50_v2", "tf", "ResNet50V2")
# These two families carry their own rescaling.
for _variant, _size in (("B0", 224), ("B1", 240), ("B2", 260), ("B3", 300), ("S", 384)):
    _application(f"efficientnet_v2_{_variant.lower()}", "raw", f"EfficientNetV2{_variant}", _size)
for _variant in ("Tiny", "Small", "Base"):
    _application(f"convnext_{_variant.lower()}", "raw", f"ConvNeXt{_variant}")


def _small_cnn(side: int, weights: str | None) -> keras.Model:
    """Five stages of two 3x3 convolutions: learns from a few thousand pictures, without pretrained weights, on a CPU."""
    x = inputs = keras.Input((side, side, 3))
    for stage, width in enumerate((16, 32, 64, 128, 192), start=1):
        for part in ("a", "b"):
            stride = 2 if part == "a" else 1
            if stage == 1 and part == "b":
                continue
            x = keras.layers.Conv2D(width, 3, stride, padding="same", use_bias=False, name=f"stage{stage}{part}_conv")(x)
            x = batch_norm(f"stage{stage}{part}_norm")(x)
            x = keras.layers.ReLU(name=f"stage{stage}{part}_relu")(x)
    return keras.Model(inputs, x, name="small_cnn")


BACKBONES.register("small_cnn")(Backbone(_small_cnn, "tf", 64))
BACKBONES.register("slim_mobilenet_v1")(Backbone(lambda side, weights: mobilenet_v1(side, side), "tf", 224, taps=MOBILENET_TAPS))
BACKBONES.register("slim_resnet_v2_50")(Backbone(lambda side, weights: resnet_v2_50(side, side), "tf", 224, taps=RESNET_TAPS))


def _torch_resnet(kind: str) -> None:
    def build(side: int, weights: str | None) -> keras.Model:
        return torch_resnet(kind, side, side)

    BACKBONES.register(f"torch_{kind}")(Backbone(build, "torch", 224, taps=TORCH_RESNET_TAPS))


for _kind in TORCH_RESNETS:
    _torch_resnet(_kind)


def stage_layers(network: keras.Model) -> dict[str, str]:
    """Names of the stages of a functional network: `stageK` -> the last layer whose map has 1/2^K of the input's side."""
    side = network.input_shape[1]
    found: dict[str, str] = {}
    for layer in network.layers:
        try:
            shape = layer.output.shape
        except AttributeError:
            continue
        if len(shape) != 4:
            continue
        for stage in range(1, 6):
            if shape[1] == shape[2] == -(-side // 2**stage):
                found[f"stage{stage}"] = layer.name
    return dict(sorted(found.items()))


def _load_weights(network: keras.Model, weights: str | os.PathLike[str], name: str) -> None:
    path = Path(weights)
    if not path.is_file():
        raise WeightsError(
            f"{path}: no weights file there. Give a Keras weights file (.weights.h5 or .h5) for {name}, 'imagenet', or nothing."
        )
    before = [np.asarray(variable) for variable in network.variables]
    try:
        with warnings.catch_warnings():
            # Keras looks for the same layers a second time under another name and says so once per layer.
            warnings.filterwarnings("ignore", message="Skipping nested container")
            network.load_weights(path)
    except Exception as error:
        told = str(error).split(" Example error message")[0].strip().splitlines()
        raise WeightsError(
            f"{path}: these are not weights of the architecture {name}. Keras says: {told[0] if told else type(error).__name__} "
            f"Give the file that belongs to --backbone {name}, or name the backbone that the file belongs to."
        ) from None
    if before and all(np.array_equal(old, np.asarray(new)) for old, new in zip(before, network.variables, strict=True)):
        raise WeightsError(f"{path}: the file changed no weight of {name}; it belongs to another architecture.")


def _imagenet(backbone: Backbone, name: str, side: int) -> keras.Model:
    if backbone.published is None:
        raise UsageError(f"The backbone {name!r} has no ImageNet weights. Leave out the weights, or give a file.")
    try:
        return backbone.build(side, "imagenet")
    except Exception as error:
        raise WeightsError(
            f"The ImageNet weights of {name} could not be fetched ({type(error).__name__}). On a machine with access run "
            f'`python -c "import keras; keras.applications.{backbone.published}(include_top=False)"`, copy the .h5 file from '
            "~/.keras/models to this machine, and give its path as the weights."
        ) from error


@keras.saving.register_keras_serializable("tf_fashion")
class ImageEncoder(keras.layers.Layer):
    """A backbone with named feature taps, pooled to one vector or kept as maps.

    Args:
        backbone: Name in `BACKBONES`.
        image_size: Side of the pictures; default the one of the backbone's ImageNet weights.
        taps: `stage1` ... `stage5`, or names of layers of the backbone. Default: the last stage only.
        pooling: "avg", "max", "gem" or "avg_max" (both, concatenated): one vector per tap, concatenated. None: maps.
        descriptors: Names in `layers.descriptors.DESCRIPTORS` ("colour", "shape"): values computed from the pixels without
            weights, appended to the vector. What ImageNet features see badly.
        resize, interpolation: How a photo becomes a square (see `ImageSpec`).
        weights: None, "imagenet", or the path of a Keras weights file of the whole backbone (with or without classifier).
        batch_norm: "frozen" keeps the statistics of batch normalisation as they are; "train" updates them (over all replicas);
            "auto" is "frozen" when weights are given and "train" when not.
        batch_norm_momentum: Momentum of trained batch normalisations; None for the backbone's own.
        scaling: What is made of the pixels (see `ImageSpec.scaling`); None for what the backbone's ImageNet weights expect. The
            published attribute predictor of iMaterialist is a `torch_resnet50` with "imaterialist".
        batch_norm_unbiased: Moving variances of trained batch normalisations as PyTorch has them, with n - 1 in the denominator; for
            backbones of this library (`torch_...`, `slim_...`, `small_cnn`).

    Call arguments:
        images: float `(batch, size, size, 3)`, RGB in 0..255; the scaling for the backbone happens inside.

    Returns:
        `{"features": (batch, feature_dim)}` float32, or without pooling `{tap: (batch, height, width, channels)}`.

    Raises:
        UsageError: unknown names.
        WeightsError: the weights are missing or belong to another architecture.
    """

    def __init__(
        self,
        backbone: str = "mobilenet_v2",
        image_size: int | None = None,
        taps: Sequence[str] = ("stage5",),
        pooling: str | None = "avg",
        descriptors: Sequence[str] = (),
        resize: str = "squash",
        weights: str | os.PathLike[str] | None = None,
        batch_norm: str = "auto",
        interpolation: str = "bilinear",
        batch_norm_momentum: float | None = None,
        scaling: str | None = None,
        batch_norm_unbiased: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        entry = BACKBONES.get(backbone)
        self.backbone_name = backbone
        self.image_size = int(image_size or entry.size)
        self.taps = [taps] if isinstance(taps, str) else list(taps)
        self.pooling = pooling
        self.descriptors = list(descriptors)
        self.resize = resize
        self.interpolation = interpolation
        self.batch_norm_momentum = batch_norm_momentum
        self.batch_norm_unbiased = batch_norm_unbiased
        if pooling is not None and pooling not in POOLINGS:
            raise UsageError(f"ImageEncoder(pooling=...): expected None or one of {', '.join(POOLINGS)}; found {pooling!r}.")
        if batch_norm not in BATCH_NORM_MODES:
            raise UsageError(f"ImageEncoder(batch_norm=...): expected one of {', '.join(BATCH_NORM_MODES)}; found {batch_norm!r}.")
        self.batch_norm = ("frozen" if weights else "train") if batch_norm == "auto" else batch_norm
        if pooling is None and self.descriptors:
            raise UsageError("ImageEncoder: descriptors are vectors and need a pooling; without pooling there are only maps.")
        if not self.taps and not self.descriptors:
            raise UsageError("ImageEncoder: at least one tap or descriptor is needed.")
        if self.image_size < 32:
            raise UsageError(f"ImageEncoder(image_size=...): expected at least 32 pixels, found {self.image_size}.")
        if scaling is not None and scaling not in SCALINGS:
            raise UsageError(f"ImageEncoder(scaling=...): expected None or one of {', '.join(SCALINGS)}; found {scaling!r}.")
        self.scaling = scaling or entry.scaling
        if weights == "imagenet":
            network = _imagenet(entry, backbone, self.image_size)
        else:
            network = entry.build(self.image_size, None)
            if weights is not None:
                _load_weights(network, weights, backbone)
        self.network = self._cut(network)
        self._descriptors = [DESCRIPTORS.get(name)(name=name, dtype="float32") for name in self.descriptors]
        self._gems = [GeM(name=f"gem_{i}") for i in range(len(self.taps))] if pooling == "gem" else []
        self.build(None)

    def _cut(self, network: keras.Model) -> keras.Model:
        outputs = {tap: self._map(network, tap) for tap in self.taps}
        if not outputs:
            outputs = {"stage1": self._map(network, "stage1")}
        cut = keras.Model(network.input, outputs, name="backbone")
        for layer in cut.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                # Statistics of one replica only would be saved otherwise, and replicas would drift apart.
                layer.synchronized = True
                if self.batch_norm_momentum is not None:
                    layer.momentum = self.batch_norm_momentum
                if self.batch_norm_unbiased:
                    if not isinstance(layer, FusedBatchNormalization):
                        raise UsageError(
                            f"ImageEncoder(batch_norm_unbiased=True): {self.backbone_name} has Keras' own batch normalisation, which "
                            "cannot do this. Take a backbone of this library (torch_..., slim_..., small_cnn)."
                        )
                    layer.unbiased_variance = True
                if self.batch_norm == "frozen":
                    layer.trainable = False
        return cut

    def _map(self, network: keras.Model, tap: str) -> Any:
        """The symbolic map of a tap."""
        names = {layer.name for layer in network.layers}
        named = {stage: layer for stage, layer in BACKBONES.get(self.backbone_name).taps.items() if layer in names}
        stages = {**stage_layers(network), **named}
        for alias, stage in {"low": "stage3", "mid": "stage4", "high": "stage5"}.items():
            if stage in stages:
                stages.setdefault(alias, stages[stage])
        layer = stages.get(tap, tap)
        if layer not in names:
            raise UsageError(
                f"{self.backbone_name} has no feature tap {tap!r}. Known: {', '.join(stages)}, and the names of its layers."
            )
        output = network.get_layer(layer).output
        if len(output.shape) != 4:
            raise UsageError(f"{self.backbone_name}: the layer {tap!r} gives no feature map.")
        return output

    def tapped_network(self, tap: str) -> keras.Model:
        """The backbone, from scaled pixels to the maps of all taps and of a further one that lies before or among them.

        Raises:
            UsageError: there is no such map.
        """
        if tap in self.taps:
            return self.network
        return keras.Model(self.network.input, {**self.network.output, tap: self._map(self.network, tap)})

    def build(self, input_shape: Any) -> None:
        for gem, channels in zip(self._gems, self.channels.values(), strict=False):
            gem.build((None, None, None, channels))
        for layer in self._descriptors:
            layer.build((None, self.image_size, self.image_size, 3))
        self.built = True

    @property
    def image_spec(self) -> ImageSpec:
        """How photos have to be decoded and resized for this encoder (pixels stay in 0..255)."""
        return ImageSpec(size=self.image_size, resize=self.resize, interpolation=self.interpolation, scaling="raw")

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each tap."""
        return {tap: int(self.network.output[tap].shape[-1]) for tap in self.taps}

    @property
    def map_shapes(self) -> dict[str, tuple[int, int, int]]:
        """Height, width and channels of each tap."""
        shapes = {tap: self.network.output[tap].shape for tap in self.taps}
        return {tap: (int(shape[1]), int(shape[2]), int(shape[3])) for tap, shape in shapes.items()}

    @property
    def feature_dim(self) -> int:
        """Width of the pooled vector."""
        pooled = sum(self.channels.values()) * (2 if self.pooling == "avg_max" else 1)
        return pooled + sum(layer.width for layer in self._descriptors)

    @property
    def block_widths(self) -> dict[str, int]:
        """Widths of the parts of the pooled vector, in their order: taps, then descriptors.

        Raises:
            UsageError: there is no pooling, and so no vector.
        """
        if self.pooling is None:
            raise UsageError("ImageEncoder.block_widths: without pooling there are only maps, see map_shapes.")
        copies = 2 if self.pooling == "avg_max" else 1
        return {
            **{tap: copies * channels for tap, channels in self.channels.items()},
            **{name: layer.width for name, layer in zip(self.descriptors, self._descriptors, strict=True)},
        }

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one picture's features: `(feature_dim,)`; without pooling that of the map, or `(n,)` for several maps in a row."""
        if self.pooling:
            return (self.feature_dim,)
        shapes = list(self.map_shapes.values())
        return shapes[0] if len(shapes) == 1 else (sum(math.prod(shape) for shape in shapes),)

    @property
    def gems(self) -> list[GeM]:
        """The poolings of all taps, with pooling "gem"."""
        return list(self._gems)

    def _pool(self, maps: dict[str, Any]) -> list[Any]:
        parts = []
        for number, tap in enumerate(self.taps):
            x = ops.cast(maps[tap], "float32")
            if self.pooling == "gem":
                parts.append(self._gems[number](x))
            if self.pooling in ("avg", "avg_max"):
                parts.append(ops.mean(x, axis=(1, 2)))
            if self.pooling in ("max", "avg_max"):
                parts.append(ops.max(x, axis=(1, 2)))
        return parts

    def call(self, images: Any, training: bool | None = None) -> dict[str, Any]:
        maps = {}
        if self.taps:
            scaled = ops.cast(scale_pixels(images, self.scaling), self.compute_dtype)
            maps = self.network(scaled, training=bool(training) and self.trainable)
        if self.pooling is None:
            return {tap: maps[tap] for tap in self.taps}
        return {"features": self.join_maps(maps, images)}

    def join_maps(self, maps: dict[str, Any], images: Any) -> Any:
        """What `encode` makes of the maps of all taps, and for the descriptors of the pixels in 0..255 (see `feature_shape`)."""
        if self.pooling:
            parts = self._pool(maps) + [layer(tf.cast(images, tf.float32)) for layer in self._descriptors]
            return ops.concatenate([ops.cast(x, "float32") for x in parts], axis=-1)
        rows = [maps[tap] for tap in self.taps]
        return rows[0] if len(rows) == 1 else ops.concatenate([ops.reshape(x, (ops.shape(x)[0], -1)) for x in rows], axis=-1)

    def encode(self, images: Any, training: bool | None = None) -> Any:
        """The one tensor that models take and caches store (see `feature_shape`): the pooled vector, the map, or all maps in a row."""
        found = self(images, training=training)
        return found["features"] if self.pooling else self.join_maps(found, images)

    def split_maps(self, features: Any) -> list[Any]:
        """The maps `(batch, height, width, channels)` of all taps, from what `encode` gives without pooling."""
        if len(features.shape) == 4:
            return [features]
        maps, at = [], 0
        for shape in self.map_shapes.values():
            size = math.prod(shape)
            maps.append(ops.reshape(features[:, at : at + size], (-1, *shape)))
            at += size
        return maps

    def compute_output_shape(self, input_shape: tuple) -> dict[str, tuple]:
        if self.pooling:
            return {"features": (input_shape[0], self.feature_dim)}
        return {tap: (input_shape[0], *shape) for tap, shape in self.map_shapes.items()}

    def weights_hash(self) -> str:
        """SHA-256 of all weights, to key cached features."""
        return hash_json([[v.path, _digest(np.asarray(v))] for v in self.variables])

    def fingerprint(self) -> str:
        """Hash of everything that decides the features of a photo: weights, taps, pooling, descriptors, image spec."""
        # The spec speaks for the interpolation; how batch normalisation is trained has no part in the features.
        ignored = ("name", "trainable", "batch_norm", "batch_norm_momentum", "batch_norm_unbiased", "interpolation")
        config = {key: value for key, value in self.get_config().items() if key not in ignored}
        if self.scaling == BACKBONES.get(self.backbone_name).scaling:
            # The backbone's name says it.
            del config["scaling"]
        return hash_json({"config": config, "weights": self.weights_hash(), "spec": self.image_spec.fingerprint()})

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "backbone": self.backbone_name,
            "image_size": self.image_size,
            "taps": self.taps,
            "pooling": self.pooling,
            "descriptors": self.descriptors,
            "resize": self.resize,
            # Saved models hold their weights themselves.
            "weights": None,
            "batch_norm": self.batch_norm,
            "interpolation": self.interpolation,
            "batch_norm_momentum": self.batch_norm_momentum,
            "scaling": self.scaling,
            "batch_norm_unbiased": self.batch_norm_unbiased,
        }


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def weights_record(weights: str | os.PathLike[str] | None) -> dict[str, str] | None:
    """Name and SHA-256 of a weights file, for the record of a run; None without weights."""
    if weights is None:
        return None
    if str(weights) == "imagenet":
        return {"name": "imagenet (keras.applications)"}
    return {"name": Path(weights).name, "sha256": hash_file(Path(weights))}
