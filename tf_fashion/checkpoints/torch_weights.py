"""PyTorch's state dictionaries into our networks: torchvision's ResNets, and the FashionIQ 2020 entry as a whole."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tf_fashion.checkpoints.base import CONVERTERS, ConversionReport
from tf_fashion.checkpoints.torch_files import flatten, read_weights
from tf_fashion.composers.tirg import TIRGFashionIQ2020
from tf_fashion.core.errors import UsageError, WeightsError
from tf_fashion.encoders.text import TextEncoder
from tf_fashion.encoders.torch_resnet import TORCH_RESNETS, torch_resnet
from tf_fashion.models import ComposedRetriever

Arrays = Mapping[str, np.ndarray]

# PyTorch's order of gates -> Keras'. LSTM: i f g o -> i f c o; GRU: r z n -> z r h.
_GATES = {"lstm": (0, 1, 2, 3), "gru": (1, 0, 2)}
# What a trunk in a file is recognised by.
_FIRST = ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight")
_COMPOSER = {
    "gate_norm": "gated_feature_composer.1",
    "gate_hidden": "gated_feature_composer.3",
    "gate_hidden_norm": "gated_feature_composer.4",
    "gate_out": "gated_feature_composer.6",
    "residual_norm": "res_info_composer.1",
    "residual_hidden": "res_info_composer.3",
    "residual_out": "res_info_composer.5",
}


@dataclass(frozen=True)
class Slot:
    """One of our variables and the tensors of a state dictionary that it takes.

    Attributes:
        names: Names of the tensors.
        variable: Ours.
        convert: From these arrays to the variable's value.
    """

    names: tuple[str, ...]
    variable: Any
    convert: Callable[..., np.ndarray] = np.asarray


def _kernel_slot(name: str, variable: Any) -> Slot:
    if len(variable.shape) == 4:
        return Slot((f"{name}.weight",), variable, lambda x: np.transpose(x, (2, 3, 1, 0)))
    return Slot((f"{name}.weight",), variable, np.transpose)


def _norm_slots(name: str, layer: keras.layers.BatchNormalization) -> list[Slot]:
    parts = {"weight": layer.gamma, "bias": layer.beta, "running_mean": layer.moving_mean, "running_var": layer.moving_variance}
    return [Slot((f"{name}.{part}",), variable) for part, variable in parts.items()]


def _dense_slots(name: str, layer: keras.layers.Layer) -> list[Slot]:
    slots = [_kernel_slot(name, layer.kernel)]
    return [*slots, Slot((f"{name}.bias",), layer.bias)] if layer.use_bias else slots


def reorder_gates(array: np.ndarray, cell: str) -> np.ndarray:
    """PyTorch's order of gates along the first axis to Keras', and back (for "lstm" and "gru" it is the same exchange)."""
    gates = np.split(array, len(_GATES[cell]), axis=0)
    return np.concatenate([gates[index] for index in _GATES[cell]], axis=0)


def _recurrent_slots(prefix: str, layer: keras.layers.Layer, cell: str, index: int) -> list[Slot]:
    def kernel(x: np.ndarray) -> np.ndarray:
        return reorder_gates(x, cell).T

    def bias(inputs: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        # Keras' LSTM has the sum of the two, its GRU has both because the reset gate acts on one of them.
        if cell == "lstm":
            return reorder_gates(inputs + hidden, cell)
        return np.stack([reorder_gates(inputs, cell), reorder_gates(hidden, cell)])

    name = f"{prefix}{cell}"
    return [
        Slot((f"{name}.weight_ih_l{index}",), layer.cell.kernel, kernel),
        Slot((f"{name}.weight_hh_l{index}",), layer.cell.recurrent_kernel, kernel),
        Slot((f"{name}.bias_ih_l{index}", f"{name}.bias_hh_l{index}"), layer.cell.bias, bias),
    ]


def trunk_slots(network: keras.Model, prefix: str = "") -> list[Slot]:
    """The slots of a network of `encoders.torch_resnet` (or of a part of one); `prefix` precedes torchvision's own names."""
    slots: list[Slot] = []
    for layer in network.layers:
        parts = layer.name.split("_")
        name = prefix + ".".join(parts)
        if isinstance(layer, keras.layers.BatchNormalization):
            slots += _norm_slots(name, layer)
        elif isinstance(layer, keras.layers.Conv2D):
            slots.append(_kernel_slot(name, layer.kernel))
    return slots


def text_slots(encoder: TextEncoder, prefix: str = "") -> list[Slot]:
    """The slots of a recurrent text encoder of the FashionIQ 2020 entry: `embedding_layer.embedding`, `lstm`, `gru`, `fc_output`."""
    slots = [Slot((f"{prefix}embedding_layer.embedding.weight",), encoder.embedding.embeddings)]
    for cell, stack in zip(encoder.cells, encoder.stacks, strict=True):
        for index, layer in enumerate(stack.forward_layers):
            slots += _recurrent_slots(prefix, layer, cell, index)
    if encoder.head_norm is None:
        return slots + _dense_slots(f"{prefix}fc_output", encoder.head_dense)
    return slots + _norm_slots(f"{prefix}fc_output.0", encoder.head_norm) + _dense_slots(f"{prefix}fc_output.1", encoder.head_dense)


def entry_slots(model: ComposedRetriever, trunk: bool = True) -> list[Slot]:
    """The slots of a whole model of the FashionIQ 2020 entry (method `tirg`).

    Args:
        model: A torchvision trunk, a recurrent text encoder with a head, the composer `tirg_fiq2020`, a linear projection.
        trunk: Whether the trunk (`backbone.`) is among them.

    Raises:
        UsageError: the model is built of other parts.
    """
    encoder = model.text_encoder
    recurrent = getattr(encoder, "cells", ()) and not encoder.bidirectional and encoder.head in ("dense", "bn_dense")
    torchvision = getattr(model.image_encoder, "backbone_name", "").startswith("torch_")
    composer = isinstance(model.composer, TIRGFashionIQ2020)
    if not (recurrent and torchvision and composer and model.projection == "linear" and not model.feature_norm):
        raise UsageError(
            "Checkpoints of the FashionIQ 2020 entry fit a ComposedRetriever with a torch_... backbone, the text encoder lstm or "
            "lstm_gru, the composer tirg_fiq2020, a linear projection and no feature_norm."
        )
    slots = trunk_slots(model.image_encoder.network, "backbone.") if trunk else []
    slots += _dense_slots("image_encoder.0", model.heads[0].out)
    slots += text_slots(encoder, "text_encoder.")
    slots.append(Slot(("norm.norm_s",), model.scaled.scale, lambda x: np.reshape(x, ())))
    for part, name in _COMPOSER.items():
        layer = getattr(model.composer, part)
        norm = isinstance(layer, keras.layers.BatchNormalization)
        slots += _norm_slots(name, layer) if norm else _dense_slots(name, layer)
    return slots


def why_unused(name: str) -> str:
    """Why a tensor of a state dictionary has no place in our networks."""
    if name.endswith("num_batches_tracked"):
        return "counter of batches"
    if name.rsplit(".", 1)[0].endswith("fc") and ".fc_output" not in name:
        return "classifier"
    return "not part of the network"


def fill(slots: Iterable[Slot], arrays: Arrays, source: str | Path, what: str) -> ConversionReport:
    """Puts arrays into variables. Nothing is changed if something does not fit.

    Args:
        slots: Where the arrays belong.
        arrays: Name -> floating array.
        source: Where they come from, for messages and the report.
        what: What the slots are together, for messages ("resnet50").

    Raises:
        WeightsError: arrays are missing, have other shapes, or values that are not finite.
    """
    slots = list(slots)
    report = ConversionReport(Path(source))
    values: list[tuple[Any, np.ndarray]] = []
    problems: list[str] = []
    for slot in slots:
        absent = [name for name in slot.names if name not in arrays]
        if absent:
            problems += [f"{name} is not in the file" for name in absent]
            continue
        found = [np.asarray(arrays[name], dtype=np.float32) for name in slot.names]
        try:
            value = slot.convert(*found)
        except (ValueError, IndexError):
            value = np.zeros((0,))
        if value.shape != tuple(slot.variable.shape):
            shapes = " and ".join(str(tuple(x.shape)) for x in found)
            wanted = tuple(slot.variable.shape)
            problems.append(f"{' and '.join(slot.names)} has shape {shapes} in the file, but fills {wanted} in the network")
            continue
        if not np.isfinite(value).all():
            raise WeightsError(
                f"{source}: {slot.names[0]} has values that are not finite. The training that wrote the file had failed."
            )
        values.append((slot.variable, value))
        report.used += slot.names
    if problems:
        raise WeightsError(
            f"{source}: not weights of {what}: {len(problems)} of {len(slots)} variables do not fit. "
            + "; ".join(problems[:4])
            + (f"; and {len(problems) - 4} more." if len(problems) > 4 else ".")
        )
    used = set(report.used)
    report.unused = {name: why_unused(name) for name in sorted(arrays) if name not in used}
    for variable, value in values:
        variable.assign(value)
    return report


def _trunk_prefix(names: Iterable[str], source: str | Path) -> str:
    """What precedes the names of the one trunk in a file: nothing, `module.`, `state_dict.backbone.`, ..."""
    names = set(names)
    prefixes = sorted(name.removesuffix(_FIRST[0]) for name in names if name == _FIRST[0] or name.endswith(f".{_FIRST[0]}"))
    found = [prefix for prefix in prefixes if all(prefix + name in names for name in _FIRST)]
    if len(found) == 1:
        return found[0]
    if found:
        raise WeightsError(f"{source}: expected one ResNet in the file, found {len(found)}, below {', '.join(found)}.")
    raise WeightsError(
        f"{source}: expected the weights of a torchvision ResNet ({', '.join(_FIRST)}, ..., whatever precedes these names); found "
        f"{len(names)} arrays" + (f" ({', '.join(sorted(names)[:3])}, ...)." if names else ".")
    )


def _read_trunk(path: str | Path) -> tuple[dict[str, np.ndarray], str]:
    arrays = flatten(read_weights(path))
    return arrays, _trunk_prefix(arrays, path)


def load_torchvision(network: keras.Model, path: str | Path) -> ConversionReport:
    """Puts the weights of a torchvision trunk into a network of `encoders.torch_resnet`.

    Args:
        network: The network.
        path: A state dictionary, or a checkpoint that contains one (under any names, such as `state_dict`, `module.`, `backbone.`);
            see `torch_files.read_weights` for the formats.

    Raises:
        WeightsError, DataError: as `torch_files.read_weights` and `fill`; or the file has no trunk, or several.
    """
    arrays, prefix = _read_trunk(path)
    return fill(trunk_slots(network, prefix), arrays, path, network.name)


def load_fashion_iq_2020(model: ComposedRetriever, path: str | Path) -> ConversionReport:
    """Puts the weights of the FashionIQ 2020 entry into a model, from its `best_model.pth` (`state_dict`: module -> tensors).

    The two factors of the composer are not in the file, because the entry neither trained nor saved them; the report lists them as
    missing, and the model keeps its own.

    Args:
        model: See `entry_slots`; as wide as the entry's, with its number of words.
        path: The file, or the state dictionary alone in one of the formats of `torch_files.read_weights`.

    Raises:
        UsageError: the model is built of other parts.
        WeightsError, DataError: as `torch_files.read_weights` and `fill`.
    """
    slots = entry_slots(model)
    arrays = {name.removeprefix("state_dict."): value for name, value in flatten(read_weights(path)).items()}
    report = fill(slots, arrays, path, f"the FashionIQ 2020 entry with {model.image_encoder.backbone_name}")
    report.missing["w"] = f"the factors stay {', '.join(f'{a:g}' for a in np.asarray(model.composer.scalars))}"
    return report


def read_torchvision_classifier(path: str | Path) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Reads a torchvision ResNet with its classifier, such as one of iMaterialist's attributes.

    Args:
        path: A state dictionary, a checkpoint that contains one (Lightning's `.ckpt` too) or an ONNX file; names may be preceded by
            anything (`predictor.`, `state_dict.predictor.`).

    Returns:
        The network's arrays by torchvision's own names and in its layout, without the classifier and the counters of batches (for
        `fill(trunk_slots(network), arrays, path, network.name)`); the classifier's kernel `(channels, classes)` and bias
        `(classes,)`, float32.

    Raises:
        WeightsError, DataError: as `torch_files.read_weights`; or the file has no trunk, or several; or no classifier (`fc`) that
            fits it, or one with values that are not finite.
    """
    arrays, prefix = _read_trunk(path)
    own = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
    weight, bias = own.pop("fc.weight", None), own.pop("fc.bias", None)
    if weight is None or bias is None:
        lacking = " and ".join(f"{prefix}fc.{part}" for part, value in (("weight", weight), ("bias", bias)) if value is None)
        raise WeightsError(f"{path}: expected a ResNet with its classifier, found one without {lacking}. Give the whole checkpoint.")
    weight, bias = np.asarray(weight, np.float32), np.asarray(bias, np.float32)
    last = [value for name, value in own.items() if re.fullmatch(r"layer4\.0\.bn[23]\.weight", name)]
    channels = max((len(value) for value in last if value.ndim == 1), default=0)
    if weight.ndim != 2 or bias.shape != weight.shape[:1] or weight.shape[1] != channels or not len(bias):
        raise WeightsError(
            f"{path}: expected a classifier {prefix}fc of {channels} channels, with one bias per class; found a weight of shape "
            f"{weight.shape} and a bias of shape {bias.shape}."
        )
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise WeightsError(f"{path}: {prefix}fc has values that are not finite. The training that wrote the file had failed.")
    network = {name: value for name, value in own.items() if not name.endswith("num_batches_tracked")}
    return network, np.ascontiguousarray(weight.T), bias


def _convert(kind: str, path: str | Path, ema: bool = False) -> tuple[keras.Model, ConversionReport]:
    if ema:
        raise UsageError("Weights of PyTorch hold no moving averages beside them. Leave out the option for them (ema, --ema).")
    # Before a network is built for nothing.
    arrays, prefix = _read_trunk(path)
    network = torch_resnet(kind, 224, 224)
    return network, fill(trunk_slots(network, prefix), arrays, path, kind)


for _kind in TORCH_RESNETS:
    CONVERTERS.register(f"torch_{_kind}")(functools.partial(_convert, _kind))
