"""Checkpoints of dirtorch (deep image retrieval, Naver Labs) and of UDMA, which is built on it, read without PyTorch.

`Resnet101-TL-GeM.pt` holds a ResNet with GeM pooling and a linear layer, the options that it was made with, and analyses of principal
components by name. UDMA's own files (`.t7`) hold the same network, or the linear layer alone, with the state of the optimizer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tf_fashion.checkpoints.base import ConversionReport
from tf_fashion.checkpoints.convert import checked_model_path, write_model
from tf_fashion.checkpoints.torch_files import read_torch
from tf_fashion.checkpoints.torch_weights import Slot, fill, trunk_slots
from tf_fashion.core.errors import DataError, WeightsError
from tf_fashion.encoders.image import ImageEncoder
from tf_fashion.encoders.torch_resnet import TORCH_RESNETS, ResNetKind, torch_resnet
from tf_fashion.layers import GeM, L2Normalize, Whitening
from tf_fashion.models.adapter import DomainAdapter

_PCA = tuple(f"sklearn.decomposition.{module}PCA" for module in ("pca.", "_pca.", ""))
_PREFIX = "module."
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Components:
    """A principal component analysis.

    Attributes:
        mean: float `(width,)`.
        components: float `(K, width)`.
        variance: float `(K,)`, the variance that each component explains.
        whiten: Whether its user divides by the components' deviations.
    """

    mean: np.ndarray = field(repr=False)
    components: np.ndarray = field(repr=False)
    variance: np.ndarray = field(repr=False)
    whiten: bool = True

    def layer(self, power: float = 0.5, dim: int | None = None, multiplier: float = 1.0, **options: Any) -> Whitening:
        """The analysis as a layer (see `layers.Whitening.of`)."""
        options = {"whiten": self.whiten, **options}
        return Whitening.of(self.mean, self.components, self.variance, dim, power=power, multiplier=multiplier, **options)


@dataclass(frozen=True)
class DirtorchCheckpoint:
    """What a file holds.

    Attributes:
        path: The file.
        state: Name -> array, in the file's order, without the prefix `module.`.
        options: How the network was made (`model_options`); empty in UDMA's own files.
        preprocess: `mean`, `std`, `input_size`, as far as the file says.
        pca: Name -> analysis.
        counters: Numbers such as `epoch`, `iter`, `current_iter`.
    """

    path: Path
    state: dict[str, np.ndarray] = field(repr=False)
    options: dict[str, Any] = field(default_factory=dict)
    preprocess: dict[str, Any] = field(default_factory=dict)
    pca: dict[str, Components] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)

    @property
    def has_network(self) -> bool:
        """Whether there is a network, and not a linear layer alone."""
        return "conv1.weight" in self.state

    @property
    def linear(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Weight `(dim, width)` and bias `(dim,)` of the linear layer, or None.

        Raises:
            WeightsError: shapes that do not fit together, or one without the other.
        """
        weight, bias = self.state.get("fc.weight"), self.state.get("fc.bias")
        if weight is None and bias is None:
            return None
        if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
            found = ["none" if x is None else str(x.shape) for x in (weight, bias)]
            raise WeightsError(
                f"{self.path}: expected a linear layer, fc.weight (dim, width) and fc.bias (dim,); found {' and '.join(found)}."
            )
        return weight, bias

    @property
    def kind(self) -> ResNetKind:
        """The sizes of the network, from its arrays.

        Raises:
            WeightsError: there is no ResNet of bottlenecks or of basic units.
        """
        units = [0, 0, 0, 0]
        for name in self.state:
            found = re.match(r"layer([1-4])\.(\d{1,3})\.conv1\.weight$", name)
            if found:
                units[int(found[1]) - 1] = max(units[int(found[1]) - 1], int(found[2]) + 1)
        first = [self.state.get(f"layer{stage}.0.conv2.weight") for stage in range(1, 5)]
        stem = self.state.get("conv1.weight")
        if stem is None or stem.ndim != 4 or any(x is None or x.ndim != 4 for x in first):
            known = ", ".join(list(self.state)[:3])
            raise WeightsError(
                f"{self.path}: expected a ResNet (conv1, layer1 ... layer4), found {len(self.state)} arrays ({known}, ...)."
            )
        planes = tuple(int(x.shape[0]) for x in first if x is not None)
        return ResNetKind(tuple(units), "layer1.0.conv3.weight" in self.state, planes=planes)  # type: ignore[arg-type]

    def backbone(self) -> str:
        """The name of the network among `encoders.image.BACKBONES`.

        Raises:
            WeightsError: as `kind`; or it is none of these.
        """
        kind = self.kind
        for name, known in TORCH_RESNETS.items():
            if known == kind:
                return f"torch_{name}"
        raise WeightsError(
            f"{self.path}: a ResNet of {kind.units} units and widths {kind.planes} is none of {', '.join(TORCH_RESNETS)}."
        )


def read_dirtorch(path: str | Path) -> DirtorchCheckpoint:
    """Reads `.pt` and `.t7` files of dirtorch and UDMA, in both formats of PyTorch.

    Only tensors, NumPy's arrays and numbers, and scikit-learn's PCA are rebuilt, the last as its arrays; nothing in the file is
    executed, and every other name in it is refused.

    Raises:
        WeightsError: there is no such file, it has no weights, or values that are not finite.
        DataError: the file is damaged, of another kind, or asks for anything else.
    """
    path = Path(path)
    value = read_torch(path, objects=_PCA)
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a dictionary with 'state_dict', found a {type(value).__name__}.")
    state = value.get("state_dict", value)
    if not isinstance(state, dict) or not any(isinstance(array, np.ndarray) for array in state.values()):
        raise WeightsError(f"{path}: expected weights under 'state_dict', found {', '.join(map(str, list(value)[:5])) or 'nothing'}.")
    arrays: dict[str, np.ndarray] = {}
    for name, array in state.items():
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            raise DataError(f"{path}: state_dict has {str(name)[:60]!r} that is no tensor. Expected name -> tensor.")
        short = name.removeprefix(_PREFIX)
        if short in arrays:
            raise DataError(f"{path}: state_dict has {short} twice, with and without the prefix {_PREFIX!r}.")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise WeightsError(f"{path}: {short} has values that are not finite. The training that wrote the file had failed.")
        arrays[short] = array
    parts = {}
    for name in ("model_options", "preprocess", "pca"):
        part = value.get(name) if state is not value else None
        if part is not None and not isinstance(part, dict):
            raise DataError(f"{path}: {name} should be a dictionary, found a {type(part).__name__}.")
        parts[name] = part or {}
    pca = {str(name): _components(path, str(name), entry) for name, entry in parts["pca"].items() if entry is not None}
    counters = {str(key): entry for key, entry in value.items() if type(entry) is int}
    return DirtorchCheckpoint(path, arrays, parts["model_options"], parts["preprocess"], pca, counters)


def _components(path: Path, name: str, entry: Any) -> Components:
    names = ("mean_", "components_", "explained_variance_")
    arrays = [entry.get(key) if isinstance(entry, dict) else None for key in names]
    shapes = [x.shape if isinstance(x, np.ndarray) and x.dtype.kind == "f" else None for x in arrays]
    mean, components, variance = shapes
    fits = mean and components and variance and len(components) == 2 and mean == components[1:] and variance == components[:1]
    if not fits:
        found = ", ".join(f"{key} {'missing' if shape is None else shape}" for key, shape in zip(names, shapes, strict=True))
        raise DataError(
            f"{path}: pca {name!r}: expected mean_ (width,), components_ (K, width), explained_variance_ (K,); found {found}."
        )
    if not all(np.isfinite(x).all() for x in arrays):  # type: ignore[arg-type]
        raise WeightsError(f"{path}: pca {name!r} has values that are not finite.")
    return Components(arrays[0], arrays[1], arrays[2], bool(entry.get("whiten", True)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Head:
    """What `model_options` and the arrays say about the part behind the last map."""

    pooling: str
    norm_features: bool
    dropout: float
    linear: bool


def _head(checkpoint: DirtorchCheckpoint, norm_features: bool | None) -> _Head:
    options, path = checkpoint.options, checkpoint.path
    pooling = str(options.get("pooling", "gem" if "adpool.p" in checkpoint.state else "avg"))
    pooling = "gem" if pooling.startswith("gem") else pooling
    if pooling not in ("gem", "max", "avg"):
        raise WeightsError(f"{path}: its pooling {pooling!r} is not known here; known are gem, max and avg.")
    if options.get("center_bias"):
        raise WeightsError(f"{path}: its network weighs the middle of the map (center_bias), which is not known here.")
    norm = bool(options.get("norm_features", False)) if norm_features is None else norm_features
    dropout = options.get("dropout_p") or 0.0
    linear = checkpoint.linear is not None
    if linear and options.get("without_fc"):
        raise WeightsError(f"{path}: its options say 'without_fc', but there is a linear layer.")
    return _Head(pooling, norm, float(dropout), linear)


def dirtorch_network(
    kind: str | ResNetKind,
    dim: int | None,
    height: int | None = None,
    width: int | None = None,
    pooling: str = "gem",
    norm_features: bool = False,
    unbiased_variance: bool = True,
) -> keras.Model:
    """The network of dirtorch as a functional model, for pictures of any shape (models of a fixed side: `DomainAdapter`).

    Args:
        kind: As for `torch_resnet`.
        dim: Width of the embeddings; None without linear layer.
        height, width: Of the pictures; None for any.
        pooling: "gem", "max" or "avg".
        norm_features: Whether pooled vectors are scaled to length one.
        unbiased_variance: Of the batch normalisations; PyTorch's way.

    Returns:
        From pictures `(batch, height, width, 3)`, scaled by ImageNet's mean and deviation, to
        `{"pooled": (batch, channels), "projected": (batch, dim), "embedding": (batch, dim)}`, the last of length one.
    """
    trunk = torch_resnet(kind, height, width, unbiased_variance=unbiased_variance)
    if pooling == "gem":
        pooled = GeM(name="adpool")(trunk.output)
    else:
        layer = keras.layers.GlobalMaxPooling2D if pooling == "max" else keras.layers.GlobalAveragePooling2D
        pooled = layer(name="adpool")(trunk.output)
    x = L2Normalize(name="norm_features")(pooled) if norm_features else pooled
    projected = x if dim is None else keras.layers.Dense(dim, name="fc")(x)
    outputs = {"pooled": pooled, "projected": projected, "embedding": L2Normalize(1e-24, name="embedding")(projected)}
    return keras.Model(trunk.input, outputs, name="dirtorch")


def _scalar(x: np.ndarray) -> np.ndarray:
    return np.reshape(x, ())


def dirtorch_slots(trunk: keras.Model, gem: GeM | None, fc: keras.layers.Dense | None) -> list[Slot]:
    """Where the arrays of a state dictionary belong: the layers of the trunk, `adpool.p`, `fc.weight` and `fc.bias`."""
    slots = trunk_slots(trunk)
    if gem is not None:
        slots.append(Slot(("adpool.p",), gem.p, _scalar))
    if fc is not None:
        slots += [Slot(("fc.weight",), fc.kernel, np.transpose), Slot(("fc.bias",), fc.bias)]
    return slots


def load_network(checkpoint: DirtorchCheckpoint, norm_features: bool | None = None) -> tuple[keras.Model, ConversionReport]:
    """The file's network as `dirtorch_network`, of whatever sizes it has.

    Args:
        checkpoint: The file.
        norm_features: Overrides what its options say.

    Raises:
        WeightsError: the file has no network, or one that is not known here.
    """
    head = _head(checkpoint, norm_features)
    linear = checkpoint.linear
    network = dirtorch_network(
        checkpoint.kind, None if linear is None else len(linear[1]), pooling=head.pooling, norm_features=head.norm_features
    )
    gem = network.get_layer("adpool") if head.pooling == "gem" else None
    # The trunk's own layers only: `trunk_slots` knows convolutions and normalisations.
    slots = dirtorch_slots(network, gem, network.get_layer("fc") if linear else None)
    return network, fill(slots, checkpoint.state, checkpoint.path, "dirtorch's network")


def _floats(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in state.items() if not name.endswith(_COUNTER)}


def load_dirtorch(
    path: str | Path, image_size: int = 224, norm_features: bool | None = None, trainable: bool = True
) -> tuple[DomainAdapter, ConversionReport]:
    """Reads a checkpoint as a model: DF-BL and its starting point with their encoder, UDMA-MLP without one.

    Args:
        path: `Resnet101-TL-GeM.pt`, `DeepFashion_ADAM_ALL_59_ckpt.t7` (a whole network), or UDMA-MLP's (the linear layer alone).
        image_size: Side of the pictures, which are squashed to it (UDMA: 224).
        norm_features: Whether pooled vectors are scaled to length one; default what the file's options say.
        trainable: Whether encoder and batch statistics are trained, or everything stays as it is.

    Returns:
        The model, and which variables were used and left aside. Its encoder's normalisation is that of ImageNet.

    Raises:
        WeightsError: there is no such file, or its network is not known here.
        DataError: as `read_dirtorch`.
    """
    checkpoint = read_dirtorch(path)
    linear = checkpoint.linear
    if not checkpoint.has_network:
        if linear is None or len(_floats(checkpoint.state)) != 2:
            raise WeightsError(f"{path}: expected a network or a linear layer (fc), found {', '.join(list(checkpoint.state)[:4])}.")
        model = DomainAdapter(
            feature_dim=linear[0].shape[1], dim=len(linear[1]), norm_features=bool(norm_features), name="domain_adapter"
        )
        model.set_linear(*linear)
        return model, ConversionReport(checkpoint.path, used=["fc.weight", "fc.bias"])
    _expect_imagenet(checkpoint)
    head = _head(checkpoint, norm_features)
    encoder = ImageEncoder(
        checkpoint.backbone(),
        image_size=image_size,
        pooling=head.pooling,
        batch_norm="train" if trainable else "frozen",
        batch_norm_unbiased=True,
        name="image_encoder",
    )
    model = DomainAdapter(
        encoder,
        dim=None if linear is None else len(linear[1]),
        norm_features=head.norm_features,
        dropout=head.dropout,
        linear=head.linear,
        name="domain_adapter",
    )
    slots = dirtorch_slots(encoder.network, encoder.gems[0] if head.pooling == "gem" else None, model.fc)
    report = fill(slots, checkpoint.state, path, encoder.backbone_name)
    if not trainable:
        encoder.trainable = False
    if checkpoint.pca:
        report.notes.append(f"analyses of components, not applied: {', '.join(checkpoint.pca)}")
    return model, report


def _expect_imagenet(checkpoint: DirtorchCheckpoint) -> None:
    for name, expected in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
        found = checkpoint.preprocess.get(name)
        if found is not None and not (np.shape(found) == (3,) and np.allclose(found, expected, atol=1e-3)):
            raise WeightsError(f"{checkpoint.path}: its pixels are scaled by {name} {found}; known is ImageNet's, {list(expected)}.")


def convert_dirtorch(source: str | Path, out: str | Path, image_size: int = 224, norm_features: bool | None = None) -> ConversionReport:
    """Writes a checkpoint as `.keras`, a `DomainAdapter`.

    Args:
        source, image_size, norm_features: As `load_dirtorch`.
        out: Ends in `.keras`; an older file is replaced, and only if all went well.

    Raises:
        UsageError: another ending.
        WeightsError, DataError: as `load_dirtorch`.
    """
    checked_model_path(out)
    model, report = load_dirtorch(source, image_size, norm_features)
    write_model(model, out)
    return report
