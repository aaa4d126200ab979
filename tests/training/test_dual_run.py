"""Whole runs of dual encoders on a small drawn wardrobe: results, resume, concepts, large batches, archives of pictures, bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tf_fashion.checkpoints.clip import clip_weights
from tf_fashion.cli import build_parser, dual_config, main
from tf_fashion.core.errors import UsageError
from tf_fashion.datasets.wardrobe import draw_wardrobe
from tf_fashion.encoders.clip import CLIPImageEncoder, CLIPTextEncoder
from tf_fashion.inputs.bpe import CLIPTokenizer, learn_merges
from tf_fashion.models import load_dual
from tf_fashion.serving.export import ExportedDualEncoder
from tf_fashion.training.dual import DualRun

SMALL = ["--batch-size", "16", "--image-size", "32", "--dim", "24", "--word-dim", "8", "--text-units", "12", "--precision", "float32"]


@pytest.fixture(scope="module")
def wardrobe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "wardrobe"
    return draw_wardrobe(folder, items=120, size=40, layout="fashion_gen", progress=False, workers=1)


def train(data: Path, out: Path, *options: str, quick: bool = True) -> int:
    rest = ["--no-report", "--no-export"] if quick else []
    return main(["train", "dual", "--data", str(data), "--out", str(out), "--quiet", *rest, *SMALL, *options])


def weights_of(out: Path) -> list[np.ndarray]:
    return [np.asarray(v) for v in load_dual(out / "model.keras").weights]


def config(*options: str):
    return dual_config(build_parser().parse_args(["train", "dual", "--data", "d", "--out", "o", *options])).resolved()


@pytest.fixture(scope="module")
def finished(wardrobe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    assert train(wardrobe, out, "--epochs", "2", "--concept-loss", quick=False) == 0
    return out


def test_run_leaves_everything_that_it_promises(finished: Path, wardrobe: Path) -> None:
    for name in ("model.keras", "metrics.json", "history.csv", "sheet.png", "report.html", "config.json", "export/1/saved_model.pb"):
        assert (finished / name).is_file(), name
    metrics = json.loads((finished / "metrics.json").read_text())
    assert set(metrics["categories"]) == {"image to text", "text to image"}
    assert metrics["protocol"]["candidates"] == "full" and metrics["run"]["config"]["concept_loss"] is True
    rows = (finished / "history.csv").read_text().splitlines()
    assert len(rows) == 3 and "val_t2i_R@1" in rows[0] and "concept_weight" in rows[0]
    model, export = load_dual(finished / "model.keras"), ExportedDualEncoder(finished / "export" / "1")
    texts = ["a red dress", "", "über-coat, “new”"]
    np.testing.assert_allclose(export.embed_text(texts), model.embed_text(model.token_ids(texts)), atol=1e-5)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_the_same(finished: Path, wardrobe: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    run = DualRun(dual_config(build_parser().parse_args(_arguments(wardrobe, out))))
    run.load_pictures()
    model = run.build_model()
    state = run.prepare_state()
    # The rate follows the whole run's steps; only its first epoch is done here.
    model.fit(run.training_data(0), epochs=1, steps_per_epoch=run.steps, callbacks=run.callbacks(), verbose=0, shuffle=False)
    assert state.rows and not (out / "model.keras").exists()
    assert train(wardrobe, out, "--epochs", "2", "--concept-loss", quick=False) == 0
    for ours, theirs in zip(weights_of(out), weights_of(finished), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def _arguments(data: Path, out: Path) -> list[str]:
    return ["train", "dual", "--data", str(data), "--out", str(out), "--quiet", *SMALL, "--epochs", "2", "--concept-loss"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of a CLIP that is built in seconds."""
    values = {"embed_dim": 16, "image_resolution": 32, "vision_layers": 1, "vision_width": 64, "vision_patch_size": 16}
    values |= {"context_length": 24, "vocab_size": 600, "transformer_width": 64, "transformer_heads": 1, "transformer_layers": 1}
    sizes = tmp_path_factory.mktemp("clip") / "clip.json"
    sizes.write_text(json.dumps(values))
    rest = [
        "--bpe-size",
        "600",
        "--epochs",
        "1",
        "--evaluate-every",
        "9",
        "--precision",
        "float32",
        "--quiet",
        "--no-report",
        "--no-export",
    ]
    return ["--clip", str(sizes), *rest]


def train_clip(data: Path, out: Path, *options: str) -> Path:
    assert main(["train", "dual", "--data", str(data), "--out", str(out), *options]) == 0
    return out


@pytest.mark.slow
def test_the_original_recipe_runs_with_a_tiny_clip(wardrobe: Path, tmp_path: Path, clip: list[str]) -> None:
    out = train_clip(wardrobe, tmp_path / "o", "--preset", "fashion_klip_original", "--batch-size", "32", *clip)
    row = (out / "history.csv").read_text().splitlines()
    logged = dict(zip(row[0].split(","), row[1].split(","), strict=True))
    assert float(logged["concept_loss"]) > 0 and np.isfinite(float(logged["loss"]))
    assert load_dual(out / "model.keras").tokenizer.truncation == "original"


@pytest.mark.slow
def test_parts_and_replicas_train_as_one_batch(wardrobe: Path, tmp_path: Path, clip: list[str]) -> None:
    # With a larger epsilon the rounding noise of gradients near zero is not blown up into steps.
    common = ["--preset", "tiny_clip", *clip, "--learning-rate", "1e-4", "--optimizer-option", "epsilon=1e-3", "--concept-loss"]
    whole = weights_of(train_clip(wardrobe, tmp_path / "whole", *common, "--batch-size", "48"))
    parts = weights_of(train_clip(wardrobe, tmp_path / "parts", *common, "--batch-size", "20", "--global-batch", "48"))
    # In a process of its own: TensorFlow numbers collective operations per process, and an earlier test may have left a gap.
    out = tmp_path / "two"
    two = ["--data", str(wardrobe), "--out", str(out), "--batch-size", "48", "--strategy", "mirrored", "--devices", "cpu:0,cpu:1"]
    subprocess.run([sys.executable, "-m", "tf_fashion.cli", "train", "dual", *two, *common], check=True)
    replicas = weights_of(out)
    for ours, by_parts, by_replicas in zip(whole, parts, replicas, strict=True):
        np.testing.assert_allclose(by_parts, ours, atol=5e-6)
        np.testing.assert_allclose(by_replicas, ours, atol=5e-6)


def test_pictures_from_archives_are_used_like_files(wardrobe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tree = tmp_path / "npz"
    shutil.copytree(wardrobe, tree, ignore=shutil.ignore_patterns("images"))
    arrays = {path.stem: np.asarray(Image.open(path).convert("RGB")) for path in sorted((wardrobe / "images").iterdir())}
    np.savez(tree / "train" / "train.40.npz", **arrays)
    run = DualRun(dual_config(build_parser().parse_args(_arguments(tree, tmp_path / "o"))))
    run.load_pictures()
    assert len(run.paths) == len(run.dataset.image_ids(["train", "val"]))
    for image_id, path in list(run.paths.items())[::20]:
        np.testing.assert_array_equal(np.asarray(Image.open(path)), arrays[image_id])


def test_missing_and_broken_pictures_are_listed(wardrobe: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tree = tmp_path / "broken"
    shutil.copytree(wardrobe, tree)
    pictures = sorted((tree / "images").iterdir())
    pictures[0].unlink()
    pictures[1].write_bytes(b"<html>")
    assert train(tree, tmp_path / "o", "--epochs", "1") == 1
    assert "missing" in capsys.readouterr().err
    assert train(tree, tmp_path / "o", "--epochs", "1", "--skip-bad-images") == 0
    listed = (tmp_path / "o" / "bad_images.csv").read_text()
    assert pictures[0].stem in listed and pictures[1].stem in listed


def test_wrong_use_is_explained(wardrobe: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cases = {
        "one step needs 4096 pairs": ["--batch-size", "4096"],
        "has no split 'test2'": ["--split", "test2"],
        "Unknown CLIP model": ["--clip", "ViT-X"],
        "no such file": ["--clip", str(tmp_path / "none.json")],
        "--global-batch": ["--global-batch", "8"],
        "belong together": ["--loss", "sigmoid"],
        "ConceptLoss takes": ["--concept-loss", "--concept-option", "tops=3"],
        "--same-pairs": ["--same-pairs", "colour"],
        "unexpected keyword argument": ["--data-option", "colour=1"],
    }
    for message, options in cases.items():
        assert train(wardrobe, tmp_path / "o", "--epochs", "1", *options) == 2, message
        assert message in capsys.readouterr().err
    plain = tmp_path / "plain"
    shutil.copytree(wardrobe, plain)
    for path in plain.glob("*/*concepts*"):
        path.unlink()
    assert train(plain, tmp_path / "p", "--concept-loss") == 1
    assert "tf-fashion concepts mine" in capsys.readouterr().err


def test_presets_fill_in_what_belongs_together() -> None:
    klip = config("--preset", "fashion_klip", "--weights", "ViT-B-32.pt", "--bpe", "v.txt.gz")
    assert klip.image_is_clip and klip.text_encoder == "clip" and klip.projection == "none"
    assert (klip.learning_rate, klip.batch_size, klip.epochs, klip.weight_decay) == (1e-5, 32, 20, 1e-3)
    assert klip.schedule_options == {"warmup_steps": 500} and klip.concept_loss and klip.optimizer_options["beta_2"] == 0.98
    original = config("--preset", "fashion_klip_original")
    assert original.concept_options == {"original_transposed": True, "original_padding": True, "keep_negative": True}
    assert original.concept_weighting == "original" and original.same_pairs == "none" and original.original_truncation
    mixed = config("--backbone", "mobilenet_v2", "--text-encoder", "clip")
    assert not mixed.image_is_clip and mixed.clip == "tiny" and mixed.text_encoder == "clip"
    siglip = config("--preset", "siglip", "--weights", "w.h5", "--freeze-backbone")
    assert (siglip.loss, siglip.bias, siglip.scale) == ("sigmoid", -10.0, 10.0)
    assert config("--batch-size", "8", "--global-batch", "64", "--preset", "tiny_clip").micro_batch == 8
    with pytest.raises(UsageError, match="feature-norm"):
        config("--global-batch", "999")


def test_a_published_checkpoint_is_trained_along(
    wardrobe: Path, tmp_path: Path, clip: list[str], capsys: pytest.CaptureFixture
) -> None:
    tokenizer = CLIPTokenizer(learn_merges(["a red dress", "blue jeans and a green coat"] * 5, 540), context_length=24)
    tokenizer.save(tmp_path / "vocabulary.txt.gz")
    sizes = {**json.loads(Path(clip[1]).read_text()), "vocab_size": tokenizer.vocabulary_size}
    (tmp_path / "sizes.json").write_text(json.dumps(sizes))
    keras.utils.set_random_seed(77)
    towers = CLIPImageEncoder(sizes), CLIPTextEncoder(sizes)
    weights = clip_weights(*towers, 3.25)
    save_file(weights, tmp_path / "clip.safetensors")
    options = ["--clip", str(tmp_path / "sizes.json"), "--weights", str(tmp_path / "clip.safetensors"), "--quiet"]
    arguments = ["train", "dual", "--data", str(wardrobe), "--out", str(tmp_path / "o"), "--batch-size", "16", *options]
    run = DualRun(dual_config(build_parser().parse_args([*arguments, "--bpe", str(tmp_path / "vocabulary.txt.gz")])))
    run.load_pictures()
    model = run.build_model()
    assert run.config.preset == "finetune" and float(model.logit_scale) == pytest.approx(3.25)
    for name, value in clip_weights(model.image_encoder, model.text_encoder, 3.25).items():
        np.testing.assert_array_equal(value, weights[name])
    assert main(arguments) == 2
    assert "--bpe bpe_simple_vocab_16e6.txt.gz" in capsys.readouterr().err
