"""VAL from the command line: presets, the three layouts, descriptions, feature files, turns of a search."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tf_fashion.cli import build_parser, main, training_config
from tf_fashion.core.errors import UsageError
from tf_fashion.datasets.wardrobe import draw_wardrobe
from tf_fashion.inputs.images import ImageSpec
from tf_fashion.inputs.pipelines import PhotoSource, TripletTable, training_batches
from tf_fashion.inputs.text import WordTokenizer
from tf_fashion.training.commands import load_composed

pytestmark = pytest.mark.slow

SMALL = ["--batch-size", "16", "--image-size", "32", "--dim", "24", "--word-dim", "8", "--precision", "float32", "--quiet"]


def config(*options: str):
    return training_config(build_parser().parse_args(["train", "composed", "--data", "d", "--out", "o", *options])).resolved()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("val")
    data = draw_wardrobe(folder / "data", items=120, size=32, progress=False, workers=1, layout="fashion200k")
    options = ["--composer", "val", "--semantic-weight", "0.2", "--pretrain-epochs", "1", "--ema", "0.9", "--epochs", "2"]
    assert main(["train", "composed", "--data", str(data), "--out", str(folder / "run"), "--no-export", *SMALL, *options]) == 0
    return data, folder / "run"


def test_a_run_on_fashion200k_leaves_its_results(finished: tuple[Path, Path]) -> None:
    _, out = finished
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["protocol"]["hit"] == "any" and metrics["protocol"]["ks"] == [1, 10, 50]
    assert set(metrics["mean"]) == {"R@1", "R@10", "R@50", "mean"}
    first, second = (out / "results.log").read_text().splitlines()
    assert first == str(out) and second.startswith(f"image retrieval: recall: R@1 = {metrics['mean']['R@1']:.2f}, R@10 = ")
    report = (out / "report.html").read_text()
    assert "Where the words act" in report and "replace" in report
    assert (out / "pretraining.csv").read_text().count("\n") == 2


def test_evaluation_repeats_and_writes_vals_files(finished: tuple[Path, Path], tmp_path: Path) -> None:
    data, out = finished
    command = ["evaluate", "composed", "--model", str(out / "model.keras"), "--data", str(data), "--quiet"]
    assert main([*command, "--out", str(tmp_path / "m.json"), "--features", str(tmp_path / "f")]) == 0
    first, again = (json.loads(path.read_text()) for path in (out / "metrics.json", tmp_path / "m.json"))
    assert first["categories"] == again["categories"] and first["protocol"] == again["protocol"]
    query, gallery, distances, truth = (
        np.load(tmp_path / "f" / f"{name}.npy") for name in ("query_images", "test_images", "mod2img_dist", "groundtruth")
    )
    np.testing.assert_allclose((query**2).sum(axis=1), 3.0, atol=1e-4)
    np.testing.assert_allclose(distances, ((query[:, None] - gallery[None]) ** 2).sum(axis=2), atol=1e-4)
    references = [line.split("\t")[0] for line in (tmp_path / "f/queries.txt").read_text().splitlines()]
    ids = (tmp_path / "f/gallery.txt").read_text().splitlines()
    for row, reference in enumerate(references):
        distances[row, ids.index(reference)] = 1e8
    ranks = [truth[row][np.argsort(line, kind="stable")].argmax() for row, line in enumerate(distances)]
    assert abs(100 * np.mean(np.array(ranks) < 10) - first["mean"]["R@10"]) < 1e-6


def test_words_have_their_places(finished: tuple[Path, Path]) -> None:
    model = load_composed(finished[1] / "model.keras")
    images = np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 3)).astype("float32")
    words, maps = model.word_maps(model.encode_image(images), "replace red with blue")
    assert words == ["replace", "red", "with", "blue"] and maps.shape[0] == 4 and (np.asarray(maps) >= 0).all()
    # A word without an embedding of its own differs from padding only by its place.
    assert float(np.asarray(maps).max()) > 0


@pytest.mark.slow
def test_turns_of_a_search(finished: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    data, out = finished
    photos = sorted((data / "images").iterdir())
    command = ["search", "--model", str(out / "model.keras"), "--gallery", str(data / "images"), "--photo", str(photos[0])]
    capsys.readouterr()
    assert main([*command, "--text", "replace red with blue", "--then", "replace mini with maxi", "--top", "3", "--quiet"]) == 0
    printed = capsys.readouterr().out
    best = printed.splitlines()[3].split()[1]
    assert printed.count("rank") == 2 and f"{best}: replace mini with maxi" in printed
    assert best not in printed.split("\n\n")[1].split("rank")[1]
    assert main([*command, "--memory", "3", "--quiet"]) == 2


@pytest.mark.parametrize("name", ["val_fashion_iq", "val_shoes", "val_fashion200k"])
def test_presets_are_vals_released_settings(name: str) -> None:
    found = config("--preset", name)
    assert (found.composer, found.text_encoder, found.batch_size, found.learning_rate) == ("val", "lstm", 32, 2e-4)
    assert found.loss_options["margin"] == 0.2 and found.taps == ("low", "mid", "high") and found.ema == 0.9999
    fashion200k = name == "val_fashion200k"
    assert found.backbone == ("slim_mobilenet_v1" if fashion200k else "slim_resnet_v2_50")
    assert found.image_size == (224 if fashion200k else 256) and found.tokens == ("strip_punct" if fashion200k else "treebank")
    assert found.train_steps == {"val_fashion_iq": 50_000, "val_shoes": 30_000, "val_fashion200k": 160_000}[name]
    assert found.composer_options["attention"]["activation"] == ("relu6" if fashion200k else "relu")
    # Single settings change, the rest stays.
    changed = config("--preset", name, "--loss-option", "margin=0.5", "--epochs", "3")
    assert changed.loss_options == {**found.loss_options, "margin": 0.5} and changed.train_steps is None


def test_composers_of_other_presets_start_from_our_defaults() -> None:
    found = config("--composer", "val")
    assert found.composer_options["attention"]["initial_weights"] == (1.0, 1.0) and found.taps == ("low", "mid", "high")
    assert config("--composer", "val", "--weights", "w", "--freeze-backbone").feature_dropout == 0.1
    assert config("--composer", "tirg").composer_options == {}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tokens", "bpe"], "strip_punct or treebank"),
        (["--ema", "2"], "between 0 and 1"),
        (["--augment", "none"], "fashion_iq_2020"),
        (["--composer", "val", "--pooling", "avg"], "feature maps"),
        (["--captions", "both"], "joined or single"),
    ],
)
def test_impossible_settings_are_refused(options: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        config(*options)


def test_drawn_epochs_are_the_same_after_an_interruption(tmp_path: Path) -> None:
    root = draw_wardrobe(tmp_path / "w", items=60, size=32, progress=False, workers=1, layout="fashion200k")
    from tf_fashion.datasets import open_composed

    dataset = open_composed(root)
    paths = {image_id: dataset.image_path(image_id) for image_id in dataset.image_ids(["train"])}
    tokenizer = WordTokenizer(["replace", "with", "red", "blue", "mini", "maxi"])
    source = PhotoSource(paths, ImageSpec(8, scaling="raw"))

    def batches(initial: int):
        def table(epoch: int) -> TripletTable:
            return TripletTable.of(dataset.sample_triplets(1, epoch))

        return training_batches(table(0), source, tokenizer, 4, 3, initial, seed=1, sampler=table)

    whole, steps = batches(0)
    later, _ = batches(2)
    for (a, labels_a), (b, labels_b) in zip(list(whole)[2 * steps :], later, strict=True):
        np.testing.assert_array_equal(labels_a, labels_b)
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
    assert len(list(whole)) == 3 * steps
