"""The FashionIQ 2020 entry from the command line: presets, options for its mistakes, given target embeddings, black pictures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_fashion.cli import build_parser, main, training_config
from tf_fashion.core.errors import UsageError
from tf_fashion.datasets import open_composed
from tf_fashion.datasets.wardrobe import draw_wardrobe
from tf_fashion.inputs.text import legacy_caption_order
from tf_fashion.serving.export import ExportedRetriever
from tf_fashion.training.commands import load_composed
from tf_fashion.training.composed import ComposedRun
from tf_fashion.training.optimizers import GroupedAdamW
from tf_fashion.training.schedules import WarmupStepDecay

SMALL = [
    "--batch-size",
    "16",
    "--backbone",
    "small_cnn",
    "--image-size",
    "32",
    "--dim",
    "24",
    "--word-dim",
    "8",
    "--epochs",
    "1",
    "--precision",
    "float32",
    "--quiet",
]


@pytest.fixture(scope="module")
def wardrobe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_wardrobe(tmp_path_factory.mktemp("data") / "wardrobe", items=120, size=32, progress=False, workers=1)


def config(*options: str, data: str = "d", out: str = "o"):
    return training_config(build_parser().parse_args(["train", "composed", "--data", data, "--out", out, *options]))


def train(data: Path, out: Path, *options: str) -> int:
    return main(["train", "composed", "--data", str(data), "--out", str(out), "--no-report", *SMALL, *options])


def built(data: Path, out: Path, *options: str) -> ComposedRun:
    run = ComposedRun(config(*SMALL, *options, data=str(data), out=str(out)))
    run.load_pictures()
    run.build_model()
    return run


def test_presets_have_the_published_settings() -> None:
    entry = config("--preset", "fiq2020_tirg").resolved()
    assert (entry.backbone, entry.composer, entry.text_encoder, entry.dim) == ("torch_resnet152", "tirg_fiq2020", "lstm_gru", 2048)
    assert (entry.resize, entry.scale, entry.loss, entry.spelling) == ("pad", 5.0, "batch_hard_triplet", True)
    assert entry.protocol == "fiq2020"
    assert entry.text_options["head"] == "dense" and not entry.legacy_markers and entry.caption_order == "shuffled"
    text = config("--preset", "fiq2020_text_only").resolved()
    assert (text.composer, text.text_options["head"], text.backbone_factor) == ("text_only", "bn_dense", 0.1)
    original = config("--preset", "fiq2020_tirg_original").resolved()
    assert original.optimizer_options["decay_vectors"] and not original.composer_options["trainable_scalars"]
    assert original.legacy_triple_pass and original.caption_order == "legacy" and original.interpolation == "nearest"
    match = ["--preset", "fiq2020_match_text_only", "--target-embeddings", "e.npz"]
    assert config(*match).resolved().text_encoder == "lstm" and config(*match).resolved().loss == "match_embedding"
    with pytest.raises(UsageError, match="--target-embeddings"):
        config("--preset", "fiq2020_match_tirg").resolved()


def test_optimizer_and_schedule_are_the_entrys(wardrobe: Path, tmp_path: Path) -> None:
    run = built(wardrobe, tmp_path, "--preset", "fiq2020_tirg_original", "--schedule-option", "warmup_images=100")
    optimizer = run.model.optimizer
    assert isinstance(optimizer, GroupedAdamW) and (optimizer.beta_1, optimizer.decay_vectors) == (0.55, True)
    assert optimizer.multiplier("composed_retriever/image_encoder/stem/kernel") == 0.48
    assert optimizer.multiplier("composed_retriever/projection/kernel") == 1.0
    schedule = optimizer._learning_rate
    assert isinstance(schedule, WarmupStepDecay)
    rates = schedule.rates(np.array([0, 1, 100]))
    # 16 triplets per step: the rate is the given one, reached after 100 of them.
    np.testing.assert_allclose(rates[:2], [0.00011148 * 0.16, 0.00011148 * 0.32], rtol=1e-6)


def test_legacy_caption_order_is_one_stream_over_the_files(wardrobe: Path, tmp_path: Path) -> None:
    plain = open_composed(wardrobe)
    run = ComposedRun(config(*SMALL, "--caption-order", "legacy", data=str(wardrobe), out=str(tmp_path)))
    parts = [(c, "train") for c in plain.categories] + [(c, "val") for c in plain.categories]
    orders = legacy_caption_order([len(plain.get(*part).triplets) for part in parts])
    for part, order in zip(parts, orders, strict=True):
        for before, after, swapped in zip(plain.get(*part).triplets, run.dataset.get(*part).triplets, order, strict=True):
            assert after.captions == (before.captions[::-1] if swapped else before.captions)


def test_spelling_of_the_vocabulary_alone_makes_unknown_words(wardrobe: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "data"
    shutil.copytree(wardrobe, copy)
    path = copy / "captions/cap.dress.train.json"
    path.write_text(path.read_text().replace("red", "sleves"))
    ids = {}
    for spelling in ("--spelling=vocabulary", "--spelling"):
        run = built(copy, tmp_path / spelling, spelling)
        assert "sleeves" in run.tokenizer.vocabulary and "sleves" not in run.tokenizer.vocabulary
        ids[spelling] = int(run.model.token_ids(["sleves"])[0, 0])
    assert ids["--spelling"] == run.tokenizer.vocabulary.index("sleeves")
    assert ids["--spelling=vocabulary"] == run.tokenizer.vocabulary.index("[UNK]")


def test_captions_keep_their_order_unless_they_are_shuffled(wardrobe: Path, tmp_path: Path) -> None:
    run = built(wardrobe, tmp_path, "--caption-style", "rtic")
    for order, kept in (("file", True), ("shuffled", False)):
        run.config = dataclasses.replace(run.config, caption_order=order)
        sentences = {" [SEP] ".join(caption.strip() for caption in pair) for pair in run.triplets.captions}
        wanted = {tuple(row[row > 0]) for row in np.asarray(run.tokenizer(np.array(sorted(sentences), dtype=object)))}
        inputs, _ = next(iter(run.training_data(0)))
        found = {tuple(row[row > 0]) for row in inputs["text"].numpy()}
        assert (found <= wanted) == kept


def test_third_pass_changes_statistics_of_the_backbone_only() -> None:
    from tf_fashion.encoders.image import ImageEncoder
    from tf_fashion.encoders.text import TEXT_ENCODERS
    from tf_fashion.models import ComposedRetriever

    random = np.random.default_rng(0)
    inputs = {name: random.uniform(0, 255, (4, 32, 32, 3)).astype(np.float32) for name in ("reference_image", "target_image")}
    inputs["text"] = np.array([[1, 2], [2, 0], [1, 1], [3, 2]], np.int32)
    found = []
    for third in (False, True):
        keras.utils.set_random_seed(1)
        encoder = ImageEncoder("small_cnn", image_size=32, taps=("stage5",))
        text = TEXT_ENCODERS.get("swem")(vocabulary_size=5, dim=8, embedding_dim=4)
        model = ComposedRetriever(encoder, text, "sum", dim=8, legacy_triple_pass=third)
        outputs = model(inputs, training=True)
        found.append((outputs["query"].numpy(), [np.asarray(v) for v in encoder.non_trainable_variables]))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert any(np.abs(a - b).max() > 1e-6 for a, b in zip(found[0][1], found[1][1], strict=True))


@pytest.mark.slow
def test_entry_with_its_mistakes_trains_evaluates_and_exports(wardrobe: Path, tmp_path: Path) -> None:
    options = ["--preset", "fiq2020_tirg_original", "--text-encoder", "lstm", "--steps-per-epoch", "2"]
    assert train(wardrobe, tmp_path / "run", *options) == 0
    model, export = load_composed(tmp_path / "run/model.keras"), ExportedRetriever(tmp_path / "run/export/1")
    assert model.needs_lengths
    photo = sorted((wardrobe / "images").iterdir())[0].read_bytes()
    texts = ["[CLS] is red [SEP] has stripes", "[CLS] unheardof [SEP] alsounheardof"]
    images = tf.stack([_picture(model, photo)] * 2)
    own = model.embed_query(model.encode_image(images), *model.text_inputs(texts)).numpy()
    np.testing.assert_allclose(export.embed_query([photo, photo], texts)[0], own, atol=1e-5)
    # Unknown last words count as words, although they share the padding's id.
    assert model.text_inputs(texts)[1].numpy().tolist() == [6, 4]


def _picture(model: keras.Model, photo: bytes) -> tf.Tensor:
    from tf_fashion.inputs.images import load_image

    return load_image(photo, model.image_encoder.image_spec)


@pytest.mark.slow
def test_match_trains_towards_given_embeddings(wardrobe: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    dataset = open_composed(wardrobe)
    targets = sorted({str(t.target) for c in dataset.categories for t in dataset.get(c, "train").triplets})
    random = np.random.default_rng(0)
    vectors = random.standard_normal((len(targets), 24)).astype(np.float32)
    options = ["--preset", "fiq2020_match_text_only", "--text-encoder", "swem", "--target-embeddings"]
    for name, arrays in {
        "good": {"ids": np.array(targets[1:]), "embeddings": vectors[1:]},
        "wide": {"ids": np.array(targets), "embeddings": np.ones((len(targets), 7), np.float32)},
        "other": {"ids": np.array([f"x{i}" for i in range(5)]), "embeddings": vectors[:5]},
        "nan": {"ids": np.array(targets), "embeddings": np.full_like(vectors, np.nan)},
        "twice": {"ids": np.array(targets[:1] * 2), "embeddings": vectors[:2]},
        "names": {"id": np.array(targets), "values": vectors},
    }.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    (tmp_path / "text.npz").write_text("hello")
    assert train(wardrobe, tmp_path / "run", *options, str(tmp_path / "good.npz"), "--no-export") == 0
    loss = float((tmp_path / "run/history.csv").read_text().splitlines()[1].split(",")[1])
    assert 0 < loss < 2
    for name, message in {
        "wide": "as wide as --dim 24, found 7",
        "other": "none of the",
        "nan": "NaN or infinity",
        "twice": "more than once",
        "names": "'ids' and 'embeddings'",
        "text": "not a readable .npz",
        "missing": "no such file",
    }.items():
        assert train(wardrobe, tmp_path / name, *options, str(tmp_path / f"{name}.npz")) in (1, 2)
        assert message in capsys.readouterr().err
        assert not (tmp_path / name / "model.keras").exists()


@pytest.mark.slow
def test_bad_pictures_can_count_as_black_ones(wardrobe: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    import shutil

    copy = tmp_path / "data"
    shutil.copytree(wardrobe, copy)
    dataset = open_composed(copy)
    gone, broken = sorted(dataset.get("dress", "val").gallery)[:2]
    dataset.image_path(gone).unlink()
    dataset.image_path(broken).write_bytes(b"no picture")
    assert train(copy, tmp_path / "stop") == 1
    assert train(copy, tmp_path / "black", "--black-bad-images", "--no-export") == 0
    metrics = json.loads((tmp_path / "black/metrics.json").read_text())
    assert metrics["categories"]["dress"]["gallery"] == len(dataset.get("dress", "val").gallery)
    listed = (tmp_path / "black/bad_images.csv").read_text()
    assert gone in listed and broken in listed
    capsys.readouterr()
    assert train(copy, tmp_path / "both", "--black-bad-images", "--skip-bad-images") == 2
    assert "exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--composer-option", "blocks=3"], "TIRG takes initial_scalars, trainable_scalars"),
        (["--optimizer-option", "betas=1"], "GroupedAdamW takes"),
        (["--schedule-option", "total_steps=3"], "WarmupCosine takes"),
        (["--schedule", "constant", "--schedule-option", "x=1"], "has no options"),
        (["--text-option", "dim=3"], "takes"),
        (["--loss-option", "margin=1"], "BatchClassification takes"),
        (["--composer", "rtic", "--composer-option", "blocks=many"], "does not take"),
        (["--caption-order", "sorted"], "--caption-order"),
    ],
)
def test_wrong_options_are_named(wardrobe: Path, tmp_path: Path, capsys: pytest.CaptureFixture, options, message) -> None:
    assert train(wardrobe, tmp_path, *options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_several_glove_files_stand_side_by_side(wardrobe: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "a.txt").write_text("is 1 2 3\nred 4 5 6\n")
    (tmp_path / "b.txt").write_text("is 7 8 9 10 11\nblue 1 1 1 1 1\n")
    options = ["--glove", str(tmp_path / "a.txt"), "--glove", str(tmp_path / "b.txt")]
    run = built(wardrobe, tmp_path / "run", *options)
    row = run.tokenizer.vocabulary.index("is")
    table = np.asarray(run.model.text_encoder.embedding.embeddings)
    np.testing.assert_array_equal(table[row], [1, 2, 3, 7, 8, 9, 10, 11])
    assert train(wardrobe, tmp_path / "one", "--glove", str(tmp_path / "a.txt")) == 2
    assert "3 wide together, --word-dim is 8" in capsys.readouterr().err
