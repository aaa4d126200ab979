"""Checkpoints of TF-slim (TensorFlow 1's Saver, format V2 or V1) into the networks of `encoders.slim`."""

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
    """Opens a checkpoint of TensorFlow 1.

    Args:
        path: What precedes `.index` and `.data-...` (or one of these files); of the older format V1, the only file.

    Raises:
        WeightsError: nothing there, or not a checkpoint.
    """
    prefix = Path(re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", str(path)))
    index = prefix.with_name(f"{prefix.name}.index")
    if index.is_file():
        if not any(file.name.startswith(f"{prefix.name}.data-") for file in prefix.parent.iterdir()):
            raise WeightsError(f"{prefix}: the file {prefix.name}.data-00000-of-00001 is missing beside {index.name}.")
        try:
            return tf.train.load_checkpoint(str(prefix))
        except Exception as error:
            raise WeightsError(f"{index} is damaged or no checkpoint ({_first_line(error)}). Fetch it again.") from None
    found = "nothing there"
    if prefix.is_file():
        try:
            return tf.train.load_checkpoint(str(prefix))
        except Exception as error:
            found = f"a file of another kind ({_first_line(error).removeprefix(f'Unable to open table file {prefix}: ')})"
    elif prefix.is_dir():
        inside = sorted(file.name.removesuffix(".index") for file in prefix.iterdir() if file.name.endswith(".index"))
        found = "a folder" + (f" with the checkpoints {', '.join(inside)}" if inside else "")
    elif Path(path).exists():
        found = f"no {index.name} beside it"
    raise WeightsError(
        f"{path}: expected a checkpoint of TensorFlow 1 (PREFIX of PREFIX.index and PREFIX.data-00000-of-00001, or a single file), "
        f"found {found}. Unpack the published archive and give the path that ends in .ckpt."
    )


def load_slim(model: keras.Model, path: str | Path, ema: bool = False) -> ConversionReport:
    """Puts the weights of a checkpoint into a network of `encoders.slim`. Nothing is changed if something does not fit.

    Args:
        model: The network.
        path: See `read_checkpoint`.
        ema: Takes the moving averages `.../ExponentialMovingAverage` of trained variables; where a variable has none, the report
            lists that as missing and the variable itself is taken.

    Raises:
        WeightsError: not readable, without moving averages although `ema`, with values that are no numbers, or variables are
            missing (VAL's own normalisations may be) or have other shapes.
    """
    reader = read_checkpoint(path)
    shapes = reader.get_variable_to_shape_map()
    if ema and not any(name.endswith(AVERAGE) for name in shapes):
        raise WeightsError(f"{path}: the file holds no moving averages (NAME{AVERAGE}). Leave out the option for them (ema, --ema).")
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
            value = np.asarray(reader.get_tensor(source), dtype=np.float32)
        except Exception as error:
            raise WeightsError(
                f"{path}: {source} cannot be read ({_first_line(error)}). The data file is damaged; fetch it again."
            ) from None
        if not np.isfinite(value).all():
            raise WeightsError(f"{path}: {source} has values that are not finite. The training that wrote the file had failed.")
        if ema and source == name and "/moving_" not in name:
            report.missing[name + AVERAGE] = "the variable itself was taken"
        values.append((variable, value))
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
    # Before a network is built for nothing.
    read_checkpoint(path)
    model = build(224, 224)
    return model, load_slim(model, path, ema)


CONVERTERS.register("slim_mobilenet_v1")(functools.partial(_convert, mobilenet_v1))
CONVERTERS.register("slim_resnet_v2_50")(functools.partial(_convert, resnet_v2_50))
