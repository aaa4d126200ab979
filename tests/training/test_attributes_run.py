"""Whole runs of attribute classifiers on a small drawn wardrobe: results, resume, two replicas, bad input."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tf_fashion.cli import attribute_config, build_parser, main
from tf_fashion.core.errors import UsageError
from tf_fashion.datasets.labels import LabelMap
from tf_fashion.datasets.wardrobe import draw_wardrobe
from tf_fashion.models import load_attributes
from tf_fashion.tagging.thresholds import Thresholds
from tf_fashion.training.attributes import AttributeRun

SMALL = ["--batch-size", "16", "--image-size", "32", "--precision", "float32", "--epochs", "2"]


@pytest.fixture(scope="module")
def wardrobe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "wardrobe"
    return draw_wardrobe(folder, items=160, size=40, layout="imaterialist", progress=False, workers=1)


def train(data: Path, out: Path, *options: str, quick: bool = True) -> int:
    rest = ["--no-report", "--no-export"] if quick else []
    return main(["train", "attributes", "--data", str(data), "--out", str(out), "--quiet", *rest, *SMALL, *options])


def config(data: Path, out: Path, *options: str):
    arguments = ["train", "attributes", "--data", str(data), "--out", str(out), *SMALL, *options]
    return attribute_config(build_parser().parse_args(arguments))


def test_a_run_leaves_all_its_files(wardrobe: Path, tmp_path: Path) -> None:
    assert train(wardrobe, tmp_path / "run", quick=False) == 0
    for name in ("model.keras", "metrics.json", "thresholds.json", "labels.csv", "calibration.svg", "report.html", "history.csv"):
        assert (tmp_path / "run" / name).stat().st_size, name
    assert (tmp_path / "run/export/1/saved_model.pb").exists()
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert set(metrics["rules"]) == {"at 0.5", "cross-fitted"} and metrics["protocol"]["folds"] == 5
    assert 0 < metrics["rules"]["cross-fitted"]["micro_f1"] < 1
    assert {"cosine", "embedding", "mix"} <= set(metrics["matching"])
    model = load_attributes(tmp_path / "run/model.keras")
    assert Thresholds.read(tmp_path / "run/thresholds.json", model.label_map).kind == "label"
    page = (tmp_path / "run/report.html").read_text()
    assert "Protocol" in page and "cross-fitted" in page and "data:image/jpeg" in page


@pytest.mark.slow
def test_an_interrupted_run_ends_like_an_uninterrupted_one(wardrobe: Path, tmp_path: Path) -> None:
    whole = AttributeRun(config(wardrobe, tmp_path / "whole", "--quiet", "--flip"))
    whole.load_pictures()
    whole.build_model()
    whole.fit()
    for _ in range(2):
        part = AttributeRun(config(wardrobe, tmp_path / "part", "--quiet", "--flip"))
        part.load_pictures()
        part.build_model()
        state = part.prepare_state()
        part._fit(state.initial_epoch, state.initial_epoch + 1, part.callbacks())
    for ours, theirs in zip(whole.model.weights, part.model.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


@pytest.mark.slow
def test_two_replicas_train_like_one_process(wardrobe: Path, tmp_path: Path) -> None:
    options = ["--loss", "focal", "--unlabelled", "unknown", "--optimizer", "adam"]
    code = "import sys; from tf_fashion.cli import main; sys.exit(main(sys.argv[1:]))"
    common = ["train", "attributes", "--data", str(wardrobe), "--quiet", "--no-report", "--no-export", *SMALL, "--steps-per-epoch", "3"]
    two = ["--strategy", "mirrored", "--devices", "cpu:0,cpu:1", "--out", str(tmp_path / "two")]
    for extra in (["--out", str(tmp_path / "one")], two):
        subprocess.run([sys.executable, "-c", code, *common, *options, *extra], check=True, capture_output=True)
    one, both = (load_attributes(tmp_path / name / "model.keras") for name in ("one", "two"))
    for ours, theirs in zip(one.trainable_weights, both.trainable_weights, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=3e-4, err_msg=ours.path)


def test_exclusive_groups_are_found_or_chosen(wardrobe: Path, tmp_path: Path) -> None:
    run = AttributeRun(config(wardrobe, tmp_path / "a"))
    _, targets = run.dataset.targets("train")
    shares = {name: targets[:, places].any(axis=1).mean() for name, places in run.label_map.groups.items()}
    assert run.exclusive == tuple(name for name in run.dataset.exclusive_groups("train") if shares[name] >= 0.95)
    assert run.exclusive and min(shares.values()) < 0.95
    assert AttributeRun(config(wardrobe, tmp_path / "b", "--exclusive", "none")).exclusive == ()
    first = run.exclusive[0]
    assert AttributeRun(config(wardrobe, tmp_path / "c", "--exclusive", first)).exclusive == (first,)
    with pytest.raises(UsageError, match="no group 'shape'"):
        AttributeRun(config(wardrobe, tmp_path / "d", "--exclusive", "shape"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--loss", "batch_hard"], "--loss: expected"),
        (["--thresholds", "best"], "--thresholds: expected"),
        (["--label-smoothing", "1"], "--label-smoothing: expected"),
        (["--split", "holiday"], "no split 'holiday'"),
        (["--freeze-backbone"], "random features"),
        (["--loss-option", "gama=2"], "--loss-option gama"),
        (["--preset", "imat"], "Unknown preset"),
        (["--batch-size", "5000"], "--batch-size"),
        (["--data-option", "colour=1"], "has no option 'colour'"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_written(
    wardrobe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert train(wardrobe, tmp_path / "run", *options) == 2
    message = capsys.readouterr().err
    assert words in message and "Traceback" not in message
    assert not (tmp_path / "run" / "model.keras").exists()


@pytest.mark.slow
def test_a_damaged_and_a_missing_photo_are_named(wardrobe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    shutil.copytree(wardrobe, data)
    run = AttributeRun(config(data, tmp_path / "look"))
    paths = run.dataset.image_paths(run.dataset.image_ids(["train"]))
    (gone, damaged), files = list(paths)[:2], list(paths.values())
    files[0].unlink()
    files[1].write_bytes(b"not a picture")
    assert train(data, tmp_path / "run") == 1
    message = capsys.readouterr().err
    assert gone in message and "--skip-bad-images" in message
    assert train(data, tmp_path / "run", "--skip-bad-images") == 0
    listed = (tmp_path / "run/bad_images.csv").read_text()
    assert gone in listed and damaged in listed


@pytest.mark.slow
def test_a_catalogue_with_columns_of_labels(wardrobe: Path, tmp_path: Path) -> None:
    run = AttributeRun(config(wardrobe, tmp_path / "look"))
    ids = run.dataset.image_ids(["train"])[:60]
    paths = run.dataset.image_paths(ids)
    shop = tmp_path / "shop"
    (shop / "images").mkdir(parents=True)
    with (shop / "items.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "colour", "kind"])
        for number, image_id in enumerate(ids):
            shutil.copy(paths[image_id], shop / "images" / f"{image_id}.png")
            writer.writerow([image_id, "red|blue" if number % 3 else "green", f"kind {number % 2}"])
    assert train(shop, tmp_path / "run") == 0
    labels = load_attributes(tmp_path / "run/model.keras").label_map
    assert isinstance(labels, LabelMap) and {"colour", "kind"} <= set(labels.tasks)
