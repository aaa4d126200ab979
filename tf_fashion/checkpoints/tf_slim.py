"""Checkpoints of TF-slim (TensorFlow 1's Saver, format V2) into the networks of `encoders.slim`."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_fashion.checkpoints.base import CONVERTERS, ConversionReport
from tf_fashion.core.errors import WeightsError
from tf_fashion.encoders.slim import mobilenet_v1, resnet_v2_50

AVERAGE = "/ExponentialMovingAverage"
_SLOTS = re.compile(r"/(RMSProp(_\d+)?|Adam(_\d+)?|Momentum|Adagrad)$")
_RESNET_PART = re.compile(r"(?:block(\d+)_unit_(\d+)_)?(.+?)_(conv|norm)")
_STATISTICS = ("gamma", "beta", "moving_mean", "moving_variance")


def keras_variables(model: keras.Model) -> dict[str, Any]:
    """TF-slim's name of every variable of a network of `encoders.slim` (or of a part of one); shapes are equal on both sides."""
    mobilenet = any(layer.name.startswith("Conv2d_0") for layer in model.layers)
    found: dict[str, Any] = {}
    for layer in model.layers:
        if not layer.variables:
            continue
        if isinstance(layer, keras.layers.BatchNormalization):
            prefix = _slim_norm(layer.name, mobilenet)
            found.update({f"{prefix}/{name}": getattr(layer, name) for name in _STATISTICS})
        else:
            prefix = _slim_conv(layer.name, mobilenet)
            depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
            found[f"{prefix}/{'depthwise_weights' if depthwise else 'weights'}"] = layer.kernel
            if layer.use_bias:
                found[f"{prefix}/biases"] = layer.bias
    return found


def _slim_conv(name: str, mobilenet: bool) -> str:
    if mobilenet:
        return f"MobilenetV1/{name.removesuffix('_conv')}"
    block, unit, part, _ = _RESNET_PART.fullmatch(name).groups()  # type: ignore[union-attr]
    return f"resnet_v2_50/block{block}/unit_{unit}/bottleneck_v2/{part}" if block else f"resnet_v2_50/{part}"


def _slim_norm(name: str, mobilenet: bool) -> str:
    prefix = _slim_conv(name.removesuffix("_norm") + "_conv", mobilenet)
    # Normalisations of their own have no scope "BatchNorm", those of a convolution have.
    alone = prefix.rsplit("/", 1)[-1] in ("preact", "postnorm", "block2_postnorm", "block3_postnorm")
    return prefix if alone and not mobilenet else f"{prefix}/BatchNorm"


def read_checkpoint(path: str | Path) -> tf.train.CheckpointReader:
    """Opens a checkpoint by its prefix (or one of its files).

    Raises:
        WeightsError: nothing there, or not a checkpoint.
    """
    prefix = re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", str(path))
    if not Path(f"{prefix}.index").is_file():
        found = "nothing there" if not Path(path).exists() else "a file that is no TensorFlow checkpoint"
        raise WeightsError(
            f"{path}: expected a TensorFlow checkpoint in the format of TF1's Saver V2 (PREFIX.index and PREFIX.data-00000-of-00001), "
            f"found {found}. Unpack the published archive and give the path that ends in .ckpt."
        )
    if not list(Path(prefix).parent.glob(f"{Path(prefix).name}.data-*")):
        raise WeightsError(f"{prefix}: the file {Path(prefix).name}.data-00000-of-00001 is missing beside the index.")
    try:
        return tf.train.load_checkpoint(prefix)
    except Exception as error:
        raise WeightsError(f"{prefix}.index is damaged or no checkpoint ({_first_line(error)}). Fetch it again.") from None


def load_slim(model: keras.Model, path: str | Path, ema: bool = False) -> ConversionReport:
    """Puts the weights of a checkpoint into a network of `encoders.slim`. Nothing is changed if something does not fit.

    Args:
        model: The network.
        path: Prefix of the checkpoint.
        ema: Takes the moving averages `.../ExponentialMovingAverage` where the file has them.

    Raises:
        WeightsError: not readable, variables missing (VAL's own normalisations may be), or of other shapes.
    """
    reader = read_checkpoint(path)
    shapes = reader.get_variable_to_shape_map()
    report = ConversionReport(Path(path))
    values: list[tuple[Any, np.ndarray]] = []
    absent, misfits = [], []
    for name, variable in keras_variables(model).items():
        source = name + AVERAGE if ema and name + AVERAGE in shapes else name
        if source not in shapes:
            if re.search(r"/block\d+_postnorm/", name):
                report.missing[name] = "VAL's own normalisation, starts at 1 and 0"
            else:
                absent.append(name)
            continue
        if tuple(shapes[source]) != tuple(variable.shape):
            misfits.append(f"{name} has shape {tuple(shapes[source])} in the file, {tuple(variable.shape)} in the network")
            continue
        try:
            values.append((variable, reader.get_tensor(source)))
        except Exception as error:
            raise WeightsError(
                f"{path}: {source} cannot be read ({_first_line(error)}). The data file is damaged; fetch it again."
            ) from None
        report.used.append(source)
    if absent or misfits:
        problems = [*(f"{name} is not in the file" for name in absent), *misfits]
        raise WeightsError(
            f"{path}: not a checkpoint of {model.name}: {len(problems)} of {len(keras_variables(model))} variables do not fit. "
            + "; ".join(problems[:4])
            + (f"; and {len(problems) - 4} more." if len(problems) > 4 else ".")
        )
    used = set(report.used)
    report.unused = {name: _why_unused(name, ema) for name in sorted(shapes) if name not in used}
    for variable, value in values:
        variable.assign(value)
    return report


def _why_unused(name: str, ema: bool) -> str:
    if name == "global_step":
        return "step counter"
    if name.endswith(AVERAGE):
        return "moving average"
    if _SLOTS.search(name):
        return "state of an optimizer"
    if "ogits" in name:
        return "classifier"
    return "replaced by its moving average" if ema else "not part of the network"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _convert(build: Any, path: str | Path, ema: bool = False) -> tuple[keras.Model, ConversionReport]:
    model = build(224, 224)
    return model, load_slim(model, path, ema)


CONVERTERS.register("slim_mobilenet_v1")(functools.partial(_convert, mobilenet_v1))
CONVERTERS.register("slim_resnet_v2_50")(functools.partial(_convert, resnet_v2_50))
