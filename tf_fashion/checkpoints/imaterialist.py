"""The published attribute predictor of iMaterialist Fashion 2018, as a model of ours."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tf_fashion.checkpoints.base import ConversionReport
from tf_fashion.checkpoints.convert import SUFFIX, checked_model_path, convert_weights, write_model
from tf_fashion.checkpoints.torch_weights import read_torchvision_classifier
from tf_fashion.core.errors import WeightsError
from tf_fashion.datasets.labels import LabelMap
from tf_fashion.encoders.image import ImageEncoder
from tf_fashion.models.attributes import AttributeClassifier


def load_imaterialist(
    path: str | Path, label_map: LabelMap | None = None, backbone: str = "torch_resnet50", image_size: int = 512
) -> tuple[AttributeClassifier, ConversionReport]:
    """Reads a checkpoint of the published predictor (github.com/malteprinzler/VisualFashionAttributePrediction).

    Args:
        path: Lightning's `.ckpt`, a state dictionary, or the ONNX file, with or without the prefix `predictor.`.
        label_map: The labels in the order of the classifier's outputs; default the competition's 228.
        backbone: Name of the ResNet among `BACKBONES`.
        image_size: Side of the pictures in pixels.

    Returns:
        The model, and which variables were used, left aside and missing.

    Raises:
        WeightsError, DataError: as `read_torchvision_classifier` and `convert_weights`; or the classifier has another number of
            classes than the label map.
    """
    labels = label_map or LabelMap.imaterialist()
    _, kernel, bias = read_torchvision_classifier(path)
    if len(bias) != len(labels):
        raise WeightsError(
            f"{path}: expected a classifier of {len(labels)} labels, as the label map has; found {len(bias)}. Give the label map that "
            "it was trained with."
        )
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / f"{backbone}{SUFFIX}"
        report = convert_weights(path, backbone, weights)
        encoder = ImageEncoder(backbone, image_size=image_size, scaling="imaterialist", weights=weights, name="image_encoder")
    model = AttributeClassifier(encoder, labels, name="attribute_classifier")
    model.head.kernel.assign(kernel)
    model.head.bias.assign(bias)
    return model, report


def convert_imaterialist(source: str | Path, out: str | Path, label_map: str | Path | None = None) -> ConversionReport:
    """Writes a checkpoint of the published predictor as `model.keras`, for `predict attributes` and `match`.

    Args:
        source: As `load_imaterialist`.
        out: Ends in `.keras`; an older file is replaced, and only if all went well.
        label_map: CSV file of the labels; default the competition's.

    Raises:
        UsageError: another ending, or no such label map.
        WeightsError, DataError: as `load_imaterialist`.
    """
    checked_model_path(out)
    model, report = load_imaterialist(source, None if label_map is None else LabelMap.read(label_map))
    write_model(model, out)
    return report
