"""Published checkpoint -> weights file that our encoders take."""

from __future__ import annotations

from pathlib import Path

import keras

from tf_fashion.checkpoints.base import CONVERTERS, ConversionReport
from tf_fashion.core.errors import UsageError
from tf_fashion.core.files import make_out_folder, replaced_file, write_json

SUFFIX = ".weights.h5"


def convert_weights(source: str | Path, to: str, out: str | Path, ema: bool = False) -> ConversionReport:
    """Converts a checkpoint into a Keras weights file; an older file of that name is replaced, and only if all went well.

    Beside the weights of a CLIP model, NAME.weights.h5, stands its configuration, NAME.json.

    Args:
        source: The checkpoint (see `tf_slim.read_checkpoint`, `torch_files.read_weights` and `clip.read_clip`).
        to: Name of the network in `CONVERTERS`: "clip", or its name in `encoders.image.BACKBONES`.
        out: Ends in `.weights.h5`.
        ema: Takes moving averages of the weights instead of the weights.

    Returns:
        Which variables were used, left aside and missing.

    Raises:
        UsageError: unknown `to`, or `out` cannot be written or has another ending.
        WeightsError: the checkpoint is not there, unreadable (TF-slim), or belongs to another network.
        DataError: a file of PyTorch is damaged or asks for more than tensors; or the disk is full.
        MissingExtraError: a .safetensors file without the package `safetensors`.
    """
    convert = CONVERTERS.get(to)
    out = Path(out)
    if not out.name.endswith(SUFFIX) or out.name == SUFFIX:
        raise UsageError(f"--out {out}: expected a file name that ends in {SUFFIX}, as Keras wants it, such as {to}{SUFFIX}.")
    if out.is_dir():
        raise UsageError(f"--out {out}: expected the name of a file, found a folder.")
    network, report = convert(source, ema=ema)
    make_out_folder(out.parent)
    with replaced_file(out, SUFFIX) as temporary:
        network.save_weights(temporary)
    record = getattr(network, "record", None)
    if record is not None:
        write_json(out.with_name(out.name.removesuffix(SUFFIX) + ".json"), record)
    return report


def write_model(model: keras.Model, out: str | Path) -> None:
    """Writes a converted model as `.keras`; an older file is replaced, and only if all went well.

    Raises:
        UsageError: another ending.
    """
    out = checked_model_path(out)
    make_out_folder(out.parent)
    with replaced_file(out, ".keras") as temporary:
        model.save(temporary)


def checked_model_path(out: str | Path) -> Path:
    """The path of a model to write, checked before anything slow happens; raises as `write_model`."""
    if Path(out).suffix != ".keras":
        raise UsageError(f"--out {out}: expected a file name that ends in .keras: it becomes a whole model.")
    return Path(out)
