"""Image models as ONNX files, which run without TensorFlow, and are compared with the model before they are written."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_fashion import __version__
from tf_fashion.core.errors import DataError, MissingExtraError, UsageError
from tf_fashion.core.files import atomic_write
from tf_fashion.inputs.images import SCALINGS, scale_pixels, unscale_pixels

LAYOUTS = ("pixels", "original")
OPSET = 17
_RECORD = "tf_fashion"
_KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
_BATCH = 8


@dataclass(frozen=True)
class OnnxReport:
    """What was written.

    Attributes:
        path: The file.
        inputs, outputs: Name -> shape, None for the batch.
        operations: How often each operation occurs, the most frequent one first.
        bytes: Size of the file.
        pictures: How many pictures the two programs were compared on.
        differences: Largest absolute difference of each output.
        record: What the file says about itself.
    """

    path: Path
    inputs: dict[str, list[int | None]]
    outputs: dict[str, list[int | None]]
    operations: dict[str, int]
    bytes: int
    pictures: int
    differences: dict[str, float]
    record: dict[str, Any] = field(default_factory=dict)

    def format(self) -> str:
        """The report for a terminal."""

        def shape(sides: list[int | None]) -> str:
            return " x ".join("batch" if side is None else str(side) for side in sides)

        lines = [f"{self.path}: {self.bytes / 1e6:.1f} MB, {sum(self.operations.values())} operations, ONNX opset {OPSET}"]
        lines += [f"  input {name}: {shape(sides)}" for name, sides in self.inputs.items()]
        for name, sides in self.outputs.items():
            lines.append(f"  output {name}: {shape(sides)}, at most {self.differences[name]:.1e} from the model's")
        return "\n".join([*lines, f"  compared on {self.pictures} pictures by onnxruntime"])


def _import(package: str, purpose: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return __import__(package)
    except ImportError:
        raise MissingExtraError(package, "onnx", purpose) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """tf2onnx reports with tracebacks what its optimiser leaves as it is, and NumPy what tf2onnx should write otherwise."""
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _area_weights(side: int, wanted: int) -> np.ndarray:
    """Share of each of `side` pixels in each of `wanted`, float32 `(wanted, side)`."""
    scale = side / wanted
    starts, pixels = np.arange(wanted)[:, np.newaxis] * scale, np.arange(side)[np.newaxis]
    covered = np.minimum(starts + scale, pixels + 1) - np.maximum(starts, pixels)
    return (np.maximum(covered, 0.0) / scale).astype(np.float32)


def _resize_area(context: Any, node: Any, name: str, arguments: Any) -> None:
    """`ResizeArea` as two products: tf2onnx makes a nearest neighbour of it without a word."""
    _, height, width, _ = context.get_shape(node.input[0])
    rows, columns = (int(side) for side in node.inputs[1].get_tensor_value())
    source, output = node.input[0], node.output[0]
    shape, kind = context.get_shape(output), context.get_dtype(output)
    context.remove_node(node.name)
    left = context.make_const(f"{name}_rows", _area_weights(height, rows))
    right = context.make_const(f"{name}_columns", _area_weights(width, columns).T.copy())
    planes = context.make_node("Transpose", [source], attr={"perm": [0, 3, 1, 2]})
    shrunk = context.make_node("MatMul", [left.output[0], planes.output[0]])
    shrunk = context.make_node("MatMul", [shrunk.output[0], right.output[0]])
    context.make_node("Transpose", [shrunk.output[0]], attr={"perm": [0, 2, 3, 1]}, outputs=[output], shapes=[shape], dtypes=[kind])


def _named(function: Callable[..., Any], outputs: Sequence[str] | None) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """The function, with its outputs by name."""

    def run(images: tf.Tensor) -> dict[str, tf.Tensor]:
        trained = isinstance(function, (keras.layers.Layer, keras.Model))
        found = function(images, training=False) if trained else function(images)
        if not isinstance(found, Mapping):
            if outputs is not None and len(outputs) != 1:
                raise UsageError(f"export_onnx(outputs=...): the function has one output, found the names {', '.join(outputs)}.")
            return {outputs[0] if outputs else "output": found}
        wanted = list(found) if outputs is None else list(outputs)
        unknown = [name for name in wanted if name not in found]
        if unknown:
            raise UsageError(f"export_onnx: no output {unknown[0]!r}. The function gives {', '.join(found)}.")
        return {name: found[name] for name in wanted}

    return run


def export_onnx(
    function: Callable[..., Any],
    path: str | Path,
    image_size: int,
    *,
    outputs: Sequence[str] | None = None,
    layout: str = "pixels",
    scaling: str = "imaterialist",
    pictures: np.ndarray | None = None,
    record: Mapping[str, Any] | None = None,
    tolerance: float = 1e-3,
) -> OnnxReport:
    """Writes an image model as an ONNX file, after onnxruntime has shown that it computes the same.

    Args:
        function: Keras model or layer, or a function, from pixels float32 `(batch, S, S, 3)`, RGB in 0..255, to a tensor or to a
            dictionary of tensors with the batch as first axis. Scaling for the backbone, probabilities and whatever else is in it
            is in the file.
        path: Ends in `.onnx`; written whole or not at all.
        image_size: S.
        outputs: Names of the outputs to keep, in this order; or the name of the only one (default "output").
        layout: "pixels": the input `images` is that of the function. "original": as the attribute predictor of iMaterialist has
            it, `input` float32 `(batch, 3, S, S)`, already scaled; `output` its one output.
        scaling: How pixels are scaled beforehand with the layout "original" (see `ImageSpec.scaling`).
        pictures: Pixels `(n, S, S, 3)` of real photos on which the two are compared too.
        record: JSON-able facts to be kept in the file, under the key `tf_fashion` of its metadata.
        tolerance: Largest difference, relative to an output's largest value where that is above 1.

    Raises:
        UsageError: an unknown layout, scaling or output; another ending; pictures of another shape.
        MissingExtraError: `onnx`, `tf2onnx` or `onnxruntime` is not installed.
        DataError: the function has operations that ONNX lacks, or the two compute different values. No file is written.
    """
    path = Path(path)
    if path.suffix.lower() != ".onnx":
        raise UsageError(f"{path}: expected a file name that ends in .onnx.")
    if layout not in LAYOUTS:
        raise UsageError(f"export_onnx(layout=...): expected one of {', '.join(LAYOUTS)}; found {layout!r}.")
    if scaling not in SCALINGS:
        raise UsageError(f"export_onnx(scaling=...): expected one of {', '.join(SCALINGS)}; found {scaling!r}.")
    if layout == "original" and outputs is not None and len(outputs) != 1:
        raise UsageError(f"export_onnx(layout='original') has one output, found the names {', '.join(outputs) or 'of none'}.")
    inputs = [pictures_for_check(image_size)]
    if pictures is not None:
        pictures = np.asarray(pictures, np.float32)
        if pictures.ndim != 4 or pictures.shape[1:] != (image_size, image_size, 3):
            wanted = f"(n, {image_size}, {image_size}, 3)"
            raise UsageError(f"export_onnx(pictures=...): expected pixels of shape {wanted}, found {pictures.shape}.")
        inputs.append(pictures)
    checked = np.concatenate(inputs)
    named = _named(function, outputs)
    if layout == "pixels":
        traced, signature = named, tf.TensorSpec((None, image_size, image_size, 3), tf.float32, name="images")
    else:
        checked = _scaled(checked, scaling)
        signature = tf.TensorSpec((None, 3, image_size, image_size), tf.float32, name="input")

        def traced(images: tf.Tensor) -> dict[str, tf.Tensor]:
            found = named(unscale_pixels(tf.transpose(images, (0, 2, 3, 1)), scaling))
            if len(found) != 1:
                raise UsageError(f"export_onnx(layout='original') has one output: name one of {', '.join(found)} in `outputs`.")
            return {"output": next(iter(found.values()))}

    run = tf.function(traced, input_signature=[signature], autograph=False)
    model = _converted(run)
    facts = {"version": __version__, "layout": layout, "image_size": image_size, **(record or {})}
    if layout == "original":
        facts["scaling"] = scaling
    entry = model.metadata_props.add()
    entry.key, entry.value = _RECORD, json.dumps(facts, allow_nan=False)
    content = model.SerializeToString()
    differences = _compare(content, run, checked, tolerance)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as file:
        file.write(content)
    return OnnxReport(
        path,
        inputs={value.name: _sides(value) for value in model.graph.input},
        outputs={value.name: _sides(value) for value in model.graph.output},
        operations=dict(Counter(node.op_type for node in model.graph.node).most_common()),
        bytes=len(content),
        pictures=len(checked),
        differences=differences,
        record=facts,
    )


def pictures_for_check(side: int) -> np.ndarray:
    """Pictures that need no files, float32 `(6, side, side, 3)` in 0..255: noise, blots of colour, a ramp, white and black."""
    random = np.random.default_rng(20260)
    noise = random.uniform(0, 255, (2, side, side, 3))
    coarse = random.uniform(0, 255, (1, -(-side // 16), -(-side // 16), 3))
    blots = coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :side, :side]
    ramp = np.linspace(0, 255, side)
    ramps = np.stack([*np.meshgrid(ramp, ramp, indexing="ij"), np.full((side, side), 128.0)], axis=-1)
    plain = [np.full((1, side, side, 3), level) for level in (255.0, 0.0)]
    return np.concatenate([noise, blots, ramps[np.newaxis], *plain]).astype(np.float32)


def _scaled(images: np.ndarray, scaling: str) -> np.ndarray:
    return np.ascontiguousarray(scale_pixels(images, scaling).numpy().transpose(0, 3, 1, 2))


def _converted(run: Any) -> Any:
    onnx = _import("onnx", "Writing .onnx")
    tf2onnx = _import("tf2onnx", "Writing .onnx")
    _import("onnxruntime", "Comparing an .onnx file with its model")
    # What is wrong with the function itself shall be told as it is.
    run.get_concrete_function()
    with _quiet():
        try:
            model, _ = tf2onnx.convert.from_function(
                run, input_signature=run.input_signature, opset=OPSET, custom_op_handlers={"ResizeArea": (_resize_area, [])}
            )
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise DataError(f"The model cannot be written as ONNX: {reason[:200]}.") from None
    strange = sorted({node.op_type for node in model.graph.node if _unknown(onnx, node)})
    if strange:
        raise DataError(f"The model cannot be written as ONNX, which has no operation like TensorFlow's {', '.join(strange)}.")
    return model


def _unknown(onnx: Any, node: Any) -> bool:
    return node.domain not in _KNOWN_DOMAINS or not onnx.defs.has(node.op_type, node.domain)


def _sides(value: Any) -> list[int | None]:
    return [side.dim_value if side.HasField("dim_value") else None for side in value.type.tensor_type.shape.dim]


def _session(content: bytes) -> Any:
    runtime = _import("onnxruntime", "Running .onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _compare(content: bytes, run: Any, images: np.ndarray, tolerance: float) -> dict[str, float]:
    """Largest differences per output, over batches of several sizes."""
    try:
        session = _session(content)
        names = [output.name for output in session.get_outputs()]
        (source,) = session.get_inputs()
        largest = dict.fromkeys(names, 0.0)
        scale = dict.fromkeys(names, 1.0)
        for part in [images[:1], *(images[at : at + _BATCH] for at in range(0, len(images), _BATCH))]:
            theirs = dict(zip(names, session.run(names, {source.name: part}), strict=True))
            ours = {name: np.asarray(value, np.float64) for name, value in run(tf.constant(part)).items()}
            for name in names:
                if theirs[name].shape != ours[name].shape:
                    raise DataError(f"The ONNX file gives {name} of shape {theirs[name].shape}, the model of {ours[name].shape}.")
                apart = np.abs(theirs[name].astype(np.float64) - ours[name])
                largest[name] = max(largest[name], float(np.nan_to_num(apart, nan=math.inf).max(initial=0.0)))
                scale[name] = max(scale[name], float(np.abs(ours[name]).max(initial=0.0)))
    except (DataError, MissingExtraError):
        raise
    # Each of the runtime's errors has a class of its own.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"The ONNX file would not run ({reason[:200]}). Models of mixed precision are not exported: build one of float32 with "
            "the same weights."
        ) from None
    for name, apart in largest.items():
        if apart > tolerance * scale[name]:
            raise DataError(
                f"The ONNX file computes something else than the model: {name} differs by up to {apart:.3g} where its largest value is "
                f"{scale[name]:.3g} (allowed: {tolerance:g} of it). Nothing was written."
            )
    return largest


class OnnxModel:
    """An ONNX file of ours, run by onnxruntime on the CPU.

    Args:
        path: What `export_onnx` wrote.

    Attributes:
        record: What the file says about itself.

    Raises:
        UsageError: there is no such file.
        MissingExtraError: `onnxruntime` is not installed.
        DataError: the file is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UsageError(f"{self.path}: expected an .onnx file, found {'a folder' if self.path.is_dir() else 'nothing there'}.")
        try:
            self._session = _session(self.path.read_bytes())
        except MissingExtraError:
            raise
        except Exception as error:
            raise DataError(f"{self.path} is damaged or no ONNX file ({(str(error).splitlines() or [''])[0][:160]}).") from None
        self._input = self._session.get_inputs()[0].name
        self.outputs = [output.name for output in self._session.get_outputs()]
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.record: dict[str, Any] = json.loads(metadata[_RECORD]) if _RECORD in metadata else {}

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name of a batch, float32 in the file's layout."""
        values = self._session.run(self.outputs, {self._input: np.ascontiguousarray(images, np.float32)})
        return dict(zip(self.outputs, values, strict=True))
