"""RTIC-GCN from the command line: the graph of a trained model beside the matching loss; training that begins with given weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_fashion.cli import build_parser, main, training_config
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets import FashionIQ
from tf_fashion.datasets.wardrobe import draw_wardrobe
from tf_fashion.models import load_composed
from tf_fashion.training.composed import ComposedRun
from tf_fashion.training.graph import TripletGraph, build_graph, triplet_features
from tf_fashion.training.runs import copy_weights

pytestmark = pytest.mark.slow

SMALL = ["--preset", "rtic", "--backbone", "small_cnn", "--image-size", "32", "--text-encoder", "swem", "--text-dropout", "0.1"]
SMALL += ["--dim", "24", "--word-dim", "8", "--batch-size", "16", "--steps-per-epoch", "2", "--epochs", "2"]
SMALL += ["--precision", "float32", "--quiet", "--no-report"]
GRAPH = ["--loss", "batch_classification", "--graph-option", "hidden=16", "--graph-from"]


@pytest.fixture(scope="module")
def wardrobe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_wardrobe(tmp_path_factory.mktemp("data") / "wardrobe", items=120, size=32, progress=False, workers=1)


@pytest.fixture(scope="module")
def plain(wardrobe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.keras as a run without a graph leaves it, except that it has learned nothing."""
    folder = tmp_path_factory.mktemp("plain")
    run = built(wardrobe, folder / "run", "--seed", "8")
    run.model.save(folder / "model.keras")
    return folder / "model.keras"


@pytest.fixture(scope="module")
def tuned(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that continue with all weights of `plain`; photos are encoded once."""
    return ["--init-from", str(plain), "--freeze-backbone", "--cache", str(tmp_path_factory.mktemp("cache"))]


def train(data: Path, out: Path, *options: str) -> int:
    return main(["train", "composed", "--data", str(data), "--out", str(out), *SMALL, *options])


def config(*options: str, data: Path = Path("d"), out: Path = Path("o")):
    return training_config(build_parser().parse_args(["train", "composed", "--data", str(data), "--out", str(out), *SMALL, *options]))


def built(data: Path, out: Path, *options: str) -> ComposedRun:
    run = ComposedRun(config(*options, data=data, out=out))
    run.load_pictures()
    run.build_model()
    return run


class Copied(keras.callbacks.Callback):
    """Keeps a run's folder as it was after its first epoch."""

    def __init__(self, source: Path, copy: Path) -> None:
        super().__init__()
        self.source, self.copy = source, copy

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if epoch == 0:
            shutil.copytree(self.source, self.copy)


@pytest.mark.slow
def test_graph_takes_part_in_training_and_is_gone_afterwards(
    wardrobe: Path, plain: Path, tuned: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = tmp_path / "given.keras"
    shutil.copy(plain, given)
    options = [*tuned, "--evaluate-every", "2", *GRAPH, str(given), "--graph-weight", "0.5"]
    run = built(wardrobe, tmp_path / "whole", *options)
    model, (stream,) = run.model, run.model.attached

    # The loss has both parts, and rows are those of the examples.
    inputs, labels = next(iter(run.training_data(0)))
    rows = inputs["row"].numpy()
    np.testing.assert_array_equal(run.triplets.labels[rows], labels)
    composed, query = (np.random.default_rng(seed).normal(size=(16, 24)).astype(np.float32) for seed in (0, 1))
    outputs = {"query": query, "target": query}
    matching = model.compute_loss(inputs, labels, outputs, training=True)
    both = model.compute_loss(inputs, labels, outputs | {"composed": composed}, training=True)
    np.testing.assert_allclose(both - matching, 0.5 * stream(composed, rows, training=True), rtol=1e-4)
    with pytest.raises(UsageError, match="with_rows"):
        model.compute_loss({}, labels, outputs | {"composed": composed})
    with pytest.raises(UsageError, match="attached already"):
        model.attach(stream)

    before = [v.numpy() for v in stream.trainable_variables]
    state = run.prepare_state()
    run._fit(0, 2, [state, Copied(tmp_path / "whole", tmp_path / "killed")])
    assert np.isfinite([row["loss"] for row in state.rows]).all() and "val_mean" in state.rows[1]
    assert all(np.abs(new.numpy() - old).max() > 0 for new, old in zip(stream.trainable_variables, before, strict=True))
    run.release()

    # Continued after its first epoch, it ends with the same weights, and does not build the graph again.
    (graph,) = (tmp_path / "killed/state").glob("graph-*.npz")
    written = graph.stat().st_mtime_ns
    assert train(wardrobe, tmp_path / "killed", *options) == 0
    assert graph.stat().st_mtime_ns == written
    kept = keras.models.load_model(tmp_path / "killed/model.keras")
    for whole, resumed in zip(model.weights, kept.weights, strict=True):
        np.testing.assert_array_equal(whole, resumed)
    assert kept.attached == [] and not any("graph" in v.path for v in [*kept.variables, *kept.optimizer.variables])
    # The run has compared an answer of it with the model's.
    assert (tmp_path / "killed/export/1/saved_model.pb").exists()
    assert json.loads((tmp_path / "killed/metrics.json").read_text())["run"]["models"].keys() == {"init_from", "graph_from"}

    given.write_bytes(b"another model")
    assert train(wardrobe, tmp_path / "killed", *options) == 2
    assert "the content of a given model" in capsys.readouterr().err


def test_graph_is_that_of_the_given_model(wardrobe: Path, plain: Path, tuned: list[str], tmp_path: Path) -> None:
    run = built(wardrobe, tmp_path, *tuned, *GRAPH, str(plain), "--graph-ratio", "0.3", "--graph-tau", "0.2")
    model, triplets, table = load_composed(plain), run.triplets, run.table
    assert run.encoder.fingerprint() == model.image_encoder.fingerprint()
    for mine, theirs in zip([v for v in run.model.weights if "graph" not in v.path], model.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    parts = triplet_features(model, table, triplets)
    sentences = [f"{a.strip()} [SEP] {b.strip()}" for a, b in triplets.captions]
    references, targets = (np.float32(table.values[table.rows(ids)]) for ids in (triplets.references, triplets.targets))
    queries = model.embed_query(references, model.token_ids(sentences))
    np.testing.assert_allclose(tf.math.l2_normalize(parts["composed"], -1), queries, atol=1e-5)
    np.testing.assert_allclose(tf.math.l2_normalize(parts["target"], -1), model.embed_features(targets), atol=1e-5)
    wanted = build_graph(**parts, ratio=0.3, tau=0.2)
    np.testing.assert_array_equal(run.graph.adjacency.bits, wanted.adjacency.bits)
    np.testing.assert_array_equal(run.graph.image, wanted.image)
    (path,) = (tmp_path / "state").glob("graph-*.npz")
    read = TripletGraph.load(path)
    np.testing.assert_array_equal(read.adjacency.bits, wanted.adjacency.bits)
    np.testing.assert_array_equal(read.text, wanted.text)
    assert (read.adjacency.tau, read.ratio, read.threshold) == (0.2, 0.3, wanted.threshold)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="built anew"):
        TripletGraph.load(path)


def test_weights_of_another_model_are_refused(wardrobe: Path, plain: Path, tuned: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="another vocabulary"):
        built(wardrobe, tmp_path / "words", *tuned, "--categories", "dress")
    with pytest.raises(UsageError, match="composer Concat, found RTIC"):
        built(wardrobe, tmp_path / "composer", *tuned, "--composer", "concat")
    layers = [keras.layers.Dense(units, name="dense") for units in (2, 3)]
    for layer in layers:
        layer.build((None, 4))
    with pytest.raises(UsageError, match=r"FILE: .*with kernel \(4, 3\) at dense/kernel; found kernel \(4, 2\) there"):
        copy_weights(*layers, "FILE")
    with pytest.raises(UsageError, match=r"with kernel \(4, 2\) at dense/kernel; found nothing there \(0 weights against 2\)"):
        copy_weights(keras.layers.Dropout(0.1), layers[0], "FILE")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--graph-weight", "2"], "--graph-weight needs --graph-from"),
        (["--graph-option", "hidden=3"], "--graph-option needs --graph-from"),
        (["--graph-from", "m.keras", "--composer", "film"], "film works on feature maps"),
        (["--graph-from", "m.keras", "--composer", "val"], "val works on feature maps"),
        (["--graph-from", "m.keras", "--graph-ratio", "1.5"], "at most 1, found 1.5"),
        (["--graph-from", "m.keras", "--graph-weight", "0"], "more than 0, found 0"),
        (["--graph-from", "m.keras", "--graph-tau=-1"], "at least 0, found -1"),
        (["--graph-from", "m.keras", "--strategy", "mirrored", "--graph-option", "class_balanced=true"], "class_balanced"),
    ],
)
def test_options_that_do_not_fit(options: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config(*options).resolved()


def test_models_that_make_no_graph(
    wardrobe: Path, plain: Path, tuned: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    dense.save(tmp_path / "dense.keras")
    for model, options, code, message in (
        (tmp_path / "nothing.keras", [], 2, "found nothing there"),
        (tmp_path / "dense.keras", [], 1, "found a Sequential"),
        (plain, ["--dim", "16"], 2, "--dim 16), found 24"),
        (plain, [*tuned, "--graph-option", "width=3"], 2, "GraphStream takes hidden, class_balanced"),
    ):
        assert train(wardrobe, tmp_path / "out", "--graph-from", str(model), *options) == code
        assert message in capsys.readouterr().err
    monkeypatch.setattr(FashionIQ, "sampled", True)
    assert train(wardrobe, tmp_path / "out", "--graph-from", str(plain)) == 2
    assert "drawn anew in each epoch" in capsys.readouterr().err
