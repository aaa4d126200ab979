"""Whole runs on a small drawn wardrobe: results, resume, distribution, bad input, search, export."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tf_fashion.cli import main
from tf_fashion.datasets.wardrobe import draw_wardrobe
from tf_fashion.serving.export import ExportedRetriever
from tf_fashion.training.commands import load_composed

SMALL = ["--batch-size", "32", "--image-size", "32", "--dim", "32", "--word-dim", "16", "--seed", "3", "--precision", "float32"]


@pytest.fixture(scope="module")
def wardrobe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_wardrobe(tmp_path_factory.mktemp("data") / "wardrobe", items=160, size=64, progress=False, workers=1)


@pytest.fixture(scope="module")
def finished(wardrobe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    assert main(["train", "composed", "--data", str(wardrobe), "--out", str(out), "--epochs", "2", "--quiet", *SMALL]) == 0
    return out


def train(data: Path, out: Path, *options: str) -> int:
    return main(
        ["train", "composed", "--data", str(data), "--out", str(out), "--quiet", "--no-report", "--no-export", *SMALL, *options]
    )


def weights_of(path: Path) -> list[np.ndarray]:
    return [np.asarray(v) for v in load_composed(path).weights]


def test_run_leaves_everything_that_it_promises(finished: Path) -> None:
    for name in ("model.keras", "metrics.json", "history.csv", "sheet.png", "report.html", "config.json", "export/1/saved_model.pb"):
        assert (finished / name).is_file(), name
    metrics = json.loads((finished / "metrics.json").read_text())
    assert set(metrics) == {"protocol", "categories", "mean", "run"}
    assert set(metrics["mean"]) == {"R@10", "R@50", "mean"}
    assert set(metrics["categories"]) == {"dress", "bottom", "shoes", "top"}
    for values in metrics["categories"].values():
        assert 0 <= values["R@10"] <= values["R@50"] <= 100
    assert {"seed", "versions", "config", "data_hash"} <= set(metrics["run"])
    rows = (finished / "history.csv").read_text().splitlines()
    assert len(rows) == 3 and "val_R@10" in rows[0]
    assert "<script" not in (finished / "report.html").read_text()


def test_evaluate_repeats_the_numbers_of_training(finished: Path, wardrobe: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.json"
    command = ["evaluate", "composed", "--model", str(finished / "model.keras"), "--data", str(wardrobe), "--split", "val"]
    assert main([*command, "--out", str(out), "--quiet"]) == 0
    first, again = (json.loads(path.read_text()) for path in (finished / "metrics.json", out))
    assert again["categories"] == first["categories"]
    assert again["protocol"] == first["protocol"]
    assert main([*command, "--protocol", "val-split", "--out", str(out), "--quiet"]) == 0
    assert json.loads(out.read_text())["protocol"]["gallery"] == "union"


def test_a_split_without_targets_cannot_be_measured(
    finished: Path, wardrobe: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["evaluate", "composed", "--model", str(finished / "model.keras"), "--data", str(wardrobe), "--split", "test"]
    assert main([*command, "--out", str(tmp_path / "m.json"), "--quiet"]) == 1
    assert "no targets" in capsys.readouterr().err
    assert not (tmp_path / "m.json").exists()


def test_export_answers_like_the_model_and_survives_garbage(finished: Path, wardrobe: Path) -> None:
    model, export = load_composed(finished / "model.keras"), ExportedRetriever(finished / "export" / "1")
    photos = [path.read_bytes() for path in sorted((wardrobe / "images").iterdir())[:3]]
    texts = ["is red and longer", "", "übergroß, with stripes!"]
    queries, valid = export.embed_query([*photos, b"<html>"], [*texts, "x"])
    assert valid.tolist() == [True, True, True, False]
    own = model.embed_query(model.encode_image(_shrunk(model, photos)), model.token_ids(texts)).numpy()
    np.testing.assert_allclose(queries[:3], own, atol=1e-5)
    gallery, _ = export.embed_image(photos)
    np.testing.assert_allclose(np.linalg.norm(gallery, axis=1), 1.0, atol=1e-5)


def _shrunk(model: keras.Model, photos: list[bytes]) -> tf.Tensor:
    from tf_fashion.inputs.images import load_image

    return tf.stack([load_image(photo, model.image_encoder.image_spec) for photo in photos])


def test_embed_and_search_a_folder(finished: Path, wardrobe: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in sorted((wardrobe / "images").iterdir())[:12]:
        shutil.copy(path, folder)
    model = str(finished / "model.keras")
    assert main(["embed", "--model", model, "--images", str(folder), "--out", str(tmp_path / "index"), "--quiet"]) == 0
    shutil.copy(sorted((wardrobe / "images").iterdir())[20], folder)
    assert main(["embed", "--model", model, "--images", str(folder), "--out", str(tmp_path / "index"), "--quiet"]) == 0
    capsys.readouterr()
    photo = str(next(folder.iterdir()))
    common = ["search", "--model", model, "--photo", photo, "--text", "is red", "--top", "5", "--quiet"]
    assert main([*common, "--index", str(tmp_path / "index"), "--sheet", str(tmp_path / "found.png")]) == 0
    by_index = capsys.readouterr().out
    assert main([*common, "--gallery", str(folder)]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[2:]] == [
        line.split()[1] for line in by_index.splitlines()[2:]
    ]
    with Image.open(tmp_path / "found.png") as sheet:
        assert sheet.width > 400
    assert main([*common[:4], str(tmp_path / "none.jpg"), "--gallery", str(folder)]) == 2


def test_another_run_in_the_folder_is_refused_until_overwritten(finished: Path, wardrobe: Path, capsys: pytest.CaptureFixture) -> None:
    before = (finished / "metrics.json").read_bytes()
    assert train(wardrobe, finished, "--epochs", "2", "--learning-rate", "0.5") == 2
    assert "learning_rate" in capsys.readouterr().err
    assert (finished / "metrics.json").read_bytes() == before


@pytest.mark.slow
def test_killed_run_ends_with_the_same_weights(wardrobe: Path, tmp_path: Path) -> None:
    arguments = ["--epochs", "3", "--text-dropout", "0.2", "--feature-dropout", "0.2", "--flip"]
    assert train(wardrobe, tmp_path / "whole", *arguments) == 0
    out = tmp_path / "killed"
    command = [
        "train",
        "composed",
        "--data",
        str(wardrobe),
        "--out",
        str(out),
        "--quiet",
        "--no-report",
        "--no-export",
        *SMALL,
        *arguments,
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "tf_fashion.cli", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ}
    )
    deadline = time.time() + 120
    state = out / "state" / "state.json"
    while not state.exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads(state.read_text())["epochs"] < 3
    assert train(wardrobe, out, *arguments) == 0
    for whole, resumed in zip(weights_of(tmp_path / "whole" / "model.keras"), weights_of(out / "model.keras"), strict=True):
        np.testing.assert_array_equal(whole, resumed)
    assert (out / "history.csv").read_text().count("\n") == 4


def _edit_captions(data: Path, change: object) -> None:
    path = data / "captions" / "cap.dress.train.json"
    entries = json.loads(path.read_text())
    change(entries)  # type: ignore[operator]
    path.write_text(json.dumps(entries))


def _first_picture(data: Path) -> Path:
    return data / "images" / f"{json.loads((data / 'captions' / 'cap.dress.train.json').read_text())[0]['candidate']}.jpg"


BROKEN = {
    "not JSON": (lambda d: (d / "captions" / "cap.dress.train.json").write_text('{"a":'), "not valid JSON"),
    "one string": (lambda d: _edit_captions(d, lambda v: v[0].update(captions="is red")), "one string"),
    "leaves the root": (lambda d: _edit_captions(d, lambda v: v[0].update(candidate="../../etc/passwd")), "../../etc/passwd"),
    "no picture": (lambda d: _first_picture(d).unlink(), "missing"),
    "truncated": (lambda d: _first_picture(d).write_bytes(_first_picture(d).read_bytes()[:900]), "truncated"),
    "html": (lambda d: _first_picture(d).write_text("<!DOCTYPE html><html>404</html>"), "HTML"),
    "bomb": (lambda d: Image.new("1", (22000, 22000)).save(_first_picture(d), "PNG"), "22000"),
    "empty category": (lambda d: (d / "captions" / "cap.dress.train.json").write_text("[]"), "empty"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_broken_data_is_named_and_nothing_is_half_written(
    name: str, wardrobe: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = tmp_path / "data"
    shutil.copytree(wardrobe, data)
    change, words = BROKEN[name]
    change(data)
    assert train(data, tmp_path / "out") == 1
    message = capsys.readouterr().err
    assert words in message and "Traceback" not in message
    left = {path.name for path in (tmp_path / "out").iterdir()} if (tmp_path / "out").exists() else set()
    assert left <= {"bad_images.csv"}


@pytest.mark.slow
def test_bad_pictures_can_be_left_out_and_are_declared(wardrobe: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(wardrobe, data)
    gallery = json.loads((data / "image_splits" / "split.dress.val.json").read_text())
    (data / "images" / f"{gallery[0]}.jpg").write_bytes(b"")
    _first_picture(data).unlink()
    assert train(data, tmp_path / "out", "--epochs", "1", "--skip-bad-images") == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["categories"]["dress"]["gallery_missing"] == 1
    assert (tmp_path / "out" / "bad_images.csv").read_text().count("\n") == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "/nowhere/at/all"], "found nothing there"),
        (["--composer", "foo"], "Known: combiner"),
        (["--batch-size", "100000"], "--batch-size"),
        (["--split", "dev"], "--split"),
        (["--protocol", "mine"], "Known: covr"),
        (["--freeze-backbone"], "--weights"),
        (["--out", "/proc/none"], "--out"),
        (["--strategy", "magic"], "--strategy"),
    ],
)
def test_wrong_usage_has_exit_code_2(
    options: list[str], words: str, wardrobe: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert train(wardrobe, tmp_path / "out", *options) == 2
    message = capsys.readouterr().err
    assert words in message and "Traceback" not in message
    assert not (tmp_path / "out" / "config.json").exists()


def test_help_is_fast_and_does_not_import_tensorflow() -> None:
    code = (
        "import sys, tf_fashion.cli as c\n"
        "try: c.main(['train', 'composed', '--help'])\n"
        "except SystemExit: pass\n"
        "print('tensorflow' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.rstrip().endswith("False")
    assert "--freeze-backbone" in shown
