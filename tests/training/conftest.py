"""What the tests of street-to-shop runs share: a small drawn wardrobe in two domains, a frozen encoder, and a model trained on them."""

from __future__ import annotations

import shutil
from pathlib import Path

import keras
import pytest

from tf_fashion.cli import build_parser, main, street_config
from tf_fashion.core.quiet import import_tensorflow_quietly
from tf_fashion.datasets.wardrobe import draw_wardrobe
from tf_fashion.encoders.image import BACKBONES

import_tensorflow_quietly()


class Street:
    """A wardrobe and the options of quick runs.

    Attributes:
        data: Folder of the lists.
        cache: Options of a frozen encoder of random weights, whose features are computed once.
        model: What a run of one epoch on them left.
        base: Folder for what is made of the wardrobe.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.data = draw_wardrobe(base / "wardrobe", items=120, size=40, layout="street_to_shop", progress=False, workers=1)
        keras.utils.set_random_seed(3)
        weights = base / "small_cnn.weights.h5"
        BACKBONES.get("small_cnn").build(32, None).save_weights(weights)
        cached = ["--cache", str(base / "cache")]
        self.cache = ["--preset", "frozen", "--backbone", "small_cnn", "--image-size", "32", "--taps", "stage3,stage5"]
        self.cache += ["--weights", str(weights), "--freeze-backbone", *cached]
        self.quick = ["--quiet", "--no-report", "--no-export"]
        self.small = ["--precision", "float32", "--epochs", "1", "--steps-per-epoch", "2", "--batch-size", "8"]
        self.adapted = ["--steps-per-epoch", "2", "--epochs", "1", "--batch-size", "8", "--partition", "1", *cached]
        self.model = base / "run" / "model.keras"
        assert self.train(base / "run", *self.cache, "--dim", "16", "--epochs", "2") == 0

    def train(self, out: Path, *options: str, data: Path | None = None) -> int:
        """`tf-fashion train street_to_shop` without report and export."""
        return main(
            ["train", "street_to_shop", "--data", str(data or self.data), "--out", str(out), *self.quick, *self.small, *options]
        )

    def adapt(self, out: Path, *options: str, data: Path | None = None, model: Path | None = None) -> int:
        """`tf-fashion adapt` without report and export."""
        given = ["--model", str(model or self.model), "--data", str(data or self.data), "--out", str(out)]
        return main(["adapt", *given, *self.quick, *self.adapted, *options])

    def config(self, out: Path, *options: str, data: Path | None = None):
        """The configuration of `train`."""
        arguments = ["train", "street_to_shop", "--data", str(data or self.data), "--out", str(out), *self.quick, *self.small, *options]
        return street_config(build_parser().parse_args(arguments))

    def copy(self, to: Path) -> Path:
        """Lists to change; the photos stay where they are, and are given by a link."""
        for name in ("train_cluster", "test"):
            shutil.copytree(self.data / name, to / name)
        (to / "images").symlink_to(self.data / "images")
        return to

    def copy_photos(self, to: Path) -> Path:
        """The wardrobe once more, with photos to spoil."""
        return Path(shutil.copytree(self.data, to))


@pytest.fixture(scope="session")
def street(tmp_path_factory: pytest.TempPathFactory) -> Street:
    """A wardrobe in two domains, and a model."""
    return Street(tmp_path_factory.mktemp("street"))
