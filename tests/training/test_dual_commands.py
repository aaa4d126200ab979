"""Commands on dual encoders and feature files, through the command line."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from tests.shared import shared
from tf_fashion.cli import main
from tf_fashion.encoders.image import ImageEncoder
from tf_fashion.encoders.text import TEXT_ENCODERS
from tf_fashion.inputs.text import WordTokenizer, build_vocabulary
from tf_fashion.models.dual import DualEncoder, load_dual
from tf_fashion.retrieval.feature_files import read_feature_file
from tf_fashion.training import dual_commands

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 200)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A shop of 24 pictures in a catalogue and in FashionGen's layout, and an untrained model."""
    root = tmp_path_factory.mktemp("shop")
    rng = np.random.default_rng(0)
    rows, queries = [], []
    (root / "images").mkdir()
    for n in range(24):
        colour, kind = list(COLOURS)[n % 3], ["dress", "shoe"][n // 3 % 2]
        pixels = np.clip(np.array(COLOURS[colour]) + rng.integers(-30, 30, (40, 40, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"p{n}.png")
        rows.append([f"p{n}", f"a {colour} {kind}", colour, kind])
        queries.append({"query_id": n, "query_text": f"a {colour} {kind} number {n}", "item_ids": [f"p{n}"], "category": kind})
    with open(root / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows([["id", "description", "colour", "kind"], *rows])
    tree = root / "tree"
    (tree / "val").mkdir(parents=True)
    (tree / "train").mkdir()
    lines = "".join(json.dumps(query) + "\n" for query in queries)
    (tree / "val" / "fashion-gen_val_queries.jsonl").write_text(lines)
    phrases = "".join(json.dumps({**query, "phrases": [], "match_phrases": []}) + "\n" for query in queries[:4])
    (tree / "train" / "fashion-gen_train_queries_phrases.jsonl").write_text(phrases)
    words = build_vocabulary([query["query_text"] for query in queries])
    tokenizer = WordTokenizer(words, max_length=8, name="tokenizer")
    encoder = ImageEncoder("small_cnn", image_size=32, name="image_encoder")
    text = TEXT_ENCODERS.get("swem")(vocabulary_size=len(tokenizer.vocabulary), dim=16, embedding_dim=8, name="text_encoder")
    model = DualEncoder(encoder, text, tokenizer, dim=16, projection="linear")
    model.save(root / "model.keras")
    return root


@pytest.fixture(scope="module")
def features(place):
    """Features of all pictures and texts of "val"."""
    options = ["--model", str(place / "model.keras"), "--data", str(place / "tree"), "--images", str(place / "images"), "--quiet"]
    assert main(["embed", "dual", *options, "--split", "val", "--format", "npz,jsonl", "--out", str(place / "features")]) == 0
    return place / "features"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_embedding_in_both_formats_equals_the_model_and_feeds_the_other_verbs(place, features, tmp_path, capsys):
    options = ["--model", str(place / "model.keras"), "--data", str(place / "tree"), "--images", str(place / "images"), "--quiet"]
    out = features
    assert sorted(path.name for path in out.iterdir()) == [
        "images.img_feat.jsonl",
        "images.img_feat.npz",
        "texts.txt_feat.jsonl",
        "texts.txt_feat.npz",
    ]
    images, texts = (read_feature_file(out / f"{name}.jsonl") for name in ("images.img_feat", "texts.txt_feat"))
    np.testing.assert_array_equal(images.values, read_feature_file(out / "images.img_feat.npz").values)
    assert images.ids == [f"p{n}" for n in range(24)] and texts.ids == list(range(24))
    model = load_dual(place / "model.keras")
    np.testing.assert_allclose(
        texts.values, model.embed_text(model.token_ids([f"a {c} {k} number {n}" for n, c, k in items()])), atol=1e-6
    )

    files = ["--image-features", str(out / "images.img_feat.npz"), "--text-features", str(out / "texts.txt_feat.jsonl")]
    truth = ["--text-truth", str(place / "tree/val/fashion-gen_val_queries.jsonl")]
    results = []
    for name, arguments in {
        "model": options,
        "files": [*files, *truth, "--quiet"],
        "files on data": [*files, "--data", str(place / "tree"), "--quiet"],
    }.items():
        path = tmp_path / f"{name}.json"
        assert main(["evaluate", "dual", *arguments, "--out", str(path)]) == 0
        results.append(json.loads(path.read_text()))
    assert results[0]["categories"] == results[1]["categories"] == results[2]["categories"]
    assert results[0]["protocol"]["dataset"] == "fashion_gen" and results[1]["protocol"]["dataset"].startswith("files-")
    assert results[0]["run"]["model"]["file"] == "model.keras"

    capsys.readouterr()
    assert main(["predict", "retrieval", *files, *truth, "--out", str(tmp_path / "found")]) == 0
    printed = capsys.readouterr().out
    side = results[1]["categories"]["text to image"]
    scores = json.loads((tmp_path / "found/text_output.json").read_text())
    assert scores["scoreJson"]["r5"] == pytest.approx(side["R@5"]) and f"{side['R@5']:.2f}" in printed
    assert len((tmp_path / "found/image_predictions.jsonl").read_text().splitlines()) == 24


def items():
    return [(n, list(COLOURS)[n % 3], ["dress", "shoe"][n // 3 % 2]) for n in range(24)]


def test_an_interrupted_embedding_goes_on_where_it_was(place, features, tmp_path, monkeypatch):
    monkeypatch.setattr(dual_commands, "PART_ROWS", 5)
    seen = []
    real = dual_commands.DualEmbedder.features

    def features_of(self, values):
        seen.append(len(values))
        if sum(seen) > 15 and "late" not in seen:
            seen[:] = ["late"]
            raise KeyboardInterrupt
        return real(self, values)

    monkeypatch.setattr(dual_commands.DualEmbedder, "features", features_of)
    command = ["embed", "dual", "--model", str(place / "model.keras"), "--images", str(place / "images"), "--quiet"]
    command += ["--batch-size", "4", "--out", str(tmp_path)]
    assert main(command) == 130
    assert len(list((tmp_path / ".parts-images").iterdir())) == 2
    monkeypatch.setattr(dual_commands.DualEmbedder, "features", lambda self, values: seen.append(len(values)) or real(self, values))
    assert main(command) == 0
    assert seen == ["late", 4, 4, 4, 2]
    assert not (tmp_path / ".parts-images").exists()
    again, whole = (read_feature_file(path / "images.img_feat.npz") for path in (tmp_path, features))
    rows = [whole.ids.index(entry) for entry in again.ids]
    assert sorted(rows) == list(range(24))
    np.testing.assert_allclose(again.values, whole.values[rows], atol=1e-6)


def test_bad_pictures_are_all_listed_and_nothing_is_computed_twice(place, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(3):
        (folder / f"p{n}.png").write_bytes((place / f"images/p{n}.png").read_bytes())
    (folder / "broken.png").write_bytes(b"no picture")
    command = [
        "embed",
        "dual",
        "--model",
        str(place / "model.keras"),
        "--images",
        str(folder),
        "--quiet",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(command) == 1
    assert "broken.png" in capsys.readouterr().err and "broken" in (tmp_path / "out/bad_images.csv").read_text()
    assert not (tmp_path / "out/images.img_feat.npz").exists()
    assert main([*command, "--skip-bad-images"]) == 0
    assert read_feature_file(tmp_path / "out/images.img_feat.npz").ids == ["p0", "p1", "p2"]


def test_texts_of_files(place, tmp_path):
    (tmp_path / "t.txt").write_text("a red dress\n\na blue shoe\n")
    assert dual_commands.read_text_file(str(tmp_path / "t.txt")) == ([0, 1], ["a red dress", "a blue shoe"])
    ids, texts = dual_commands.read_text_file(f"{place / 'table.csv'}:kind")
    assert ids[:2] == ["p0", "p1"] and texts[3] == "shoe"
    assert dual_commands.read_text_file(str(place / "table.csv"))[1][0] == "a red dress"
    with pytest.raises(ValueError, match="no column nothing"):
        dual_commands.read_text_file(f"{place / 'table.csv'}:nothing")


def test_sampled_protocol_takes_groups_from_the_data_or_a_table(place, features, tmp_path):
    files = ["--image-features", str(features / "images.img_feat.npz"), "--text-features", str(features / "texts.txt_feat.npz")]
    options = [*files, "--data", str(place / "tree"), "--images", str(place / "images"), "--quiet", "--out", str(tmp_path / "m.json")]
    sampled = ["--protocol", "sample", "--protocol-option", "negatives=8", "--protocol-option", "repeats=2"]
    for groups in ([], ["--groups", f"{place / 'table.csv'}:colour"]):
        assert main(["evaluate", "dual", *options, *sampled, *groups, "--report", str(tmp_path / "report")]) == 0
        side = json.loads((tmp_path / "m.json").read_text())["categories"]["image to text"]
        assert side["gallery"] == 9 and side["filled_queries"] == (24 if groups else 0) and len(side["draws"]) == 2
    assert (tmp_path / "report/sheet.png").exists()


def test_zero_shot_and_leaderboard(place, features, tmp_path, capsys):
    model = ["--model", str(place / "model.keras")]
    labels = ["--labels", f"{place / 'table.csv'}:colour"]
    out = tmp_path / "classes"
    assert main(["predict", "zero-shot", *model, "--images", str(place / "images"), *labels, "--top", "2", "--out", str(out)]) == 0
    assert "weighted F1" in capsys.readouterr().out
    scores = json.loads((out / "scores.json").read_text())
    rows = list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))
    assert scores["accuracy"] == pytest.approx(np.mean([row["label"] == row["class1"] for row in rows]))
    assert set(rows[0]) == {"id", "label", "class1", "cosine1", "class2", "cosine2"}
    file = ["--image-features", str(features / "images.img_feat.npz")]
    assert main(["predict", "zero-shot", *model, *file, "--classes", "dress, shoe", "--quiet", "--out", str(tmp_path / "two")]) == 0
    assert set((tmp_path / "two/predictions.csv").read_text().splitlines()[0].split(",")) == {"id", "class1", "cosine1"}
    board = tmp_path / "board.json"
    arguments = ["--catalogue", str(place), "--category", "kind", "--sub-category", "colour", "--out", str(board)]
    assert main(["evaluate", "leaderboard", *model, *arguments]) == 0
    tasks = {task["task"]: task for task in json.loads(board.read_text())["tasks"]}
    assert list(tasks) == ["text-to-image", "category-to-product", "sub-category-to-product"]
    assert tasks["sub-category-to-product"]["queries"] == 3 and "AvgP" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "dual", "--out", "x.json"], "either --model FILE"),
        (["evaluate", "dual", "--model", "m", "--out", "x.json"], "--model needs --data"),
        (["evaluate", "dual", "--image-features", "a", "--text-features", "b", "--out", "x.json"], "right answers are missing"),
        (["evaluate", "dual", "--model", "m", "--data", "d", "--protocol", "none", "--out", "x.json"], "none"),
        (["predict", "retrieval", "--image-features", "a", "--text-features", "b"], "Give --out DIR"),
        (["predict", "retrieval", "--image-features", "a", "--text-features", "b", "--out", "x"], "a: no such file"),
        (["predict", "zero-shot", "--model", "m", "--out", "x"], "either --images DIR"),
        (["embed", "dual", "--model", "m", "--out", "x"], "nothing to embed"),
        (["embed", "--model", "m", "--out", "x"], "--images is missing"),
        (["embed", "--model", "m", "--out", "x", "--texts", "t", "--images", "i"], "embed dual"),
    ],
)
def test_wrong_use_is_explained(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_the_command_gives_the_published_files(tmp_path):
    case = shared("golden/fashionklip/eval/success")
    features = case.parent / "features"
    command = [
        "predict",
        "retrieval",
        *("--image-feats", str(next(features.glob("*.img_feat.jsonl"))), "--text-feats", str(next(features.glob("*.txt_feat.jsonl")))),
        *("--image-standard-path", str(case / "image_standard.jsonl"), "--text-standard-path", str(case / "text_standard.jsonl")),
        *("--output-images", str(tmp_path / "image_predictions.jsonl"), "--output-texts", str(tmp_path / "text_predictions.jsonl")),
        *("--image-out-path", str(tmp_path / "image_output.json"), "--text-out-path", str(tmp_path / "text_output.json")),
        *("--top-k", "10", "--eval-batch-size", "4", "--quiet"),
    ]
    for options in ([], ["--original-errors"]):
        assert main([*command, *options]) == 0
        for name in ("image_predictions.jsonl", "text_predictions.jsonl", "image_output.json", "text_output.json"):
            assert (tmp_path / name).read_text() == (case / name).read_text()
    failing = [part.replace("/success/", "/fail_missing_query/") for part in command]
    assert main(failing) == 1
    assert main([*failing, "--original-errors"]) == 0
    assert (tmp_path / "text_output.json").read_text() == (case.parent / "fail_missing_query/text_output.json").read_text()
