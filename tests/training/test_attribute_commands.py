"""What one does with a trained attribute classifier, through the command line: predict, match, evaluate, fetch."""

from __future__ import annotations

import csv
import functools
import http.server
import json
import shutil
import threading

import numpy as np
import pytest
from PIL import Image

from tf_fashion.cli import main
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.attributes import open_attributes
from tf_fashion.datasets.labels import LabelMap
from tf_fashion.encoders.image import ImageEncoder
from tf_fashion.encoders.text import TEXT_ENCODERS
from tf_fashion.inputs.feature_cache import FeatureCache
from tf_fashion.inputs.images import load_image
from tf_fashion.inputs.text import WordTokenizer
from tf_fashion.models import AttributeClassifier, DualEncoder, load_attributes
from tf_fashion.reports.tags import tagged
from tf_fashion.retrieval.score_store import ScoreStore, ScoreWriter
from tf_fashion.tagging.thresholds import Thresholds
from tf_fashion.training import attribute_scores
from tf_fashion.training.attribute_evaluation import AttributeEmbedder
from tf_fashion.training.attribute_scores import find_photos

COLOURS = {"blue": (30, 40, 200), "green": (30, 180, 40), "red": (200, 30, 30)}
LABELS = LabelMap.of_tasks({"color": COLOURS, "style": ["long", "warm", "wide"]})


def picture(n, side=40):
    rng = np.random.default_rng(n)
    colour = np.array(list(COLOURS.values())[n % 3])
    return Image.fromarray(np.clip(colour + rng.integers(-30, 30, (side, side, 3)), 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A shop of 24 photos with a CSV file, two models of it, and a model of another kind."""
    root = tmp_path_factory.mktemp("shop")
    (root / "photos/new").mkdir(parents=True)
    rows = []
    for n in range(24):
        name = f"new/p{n}" if n >= 20 else f"p{n}"
        picture(n).save(root / f"photos/{name}.png")
        rows.append([f"sku-{n}", f"{name}.png", list(COLOURS)[n % 3], "wide|long" if n % 2 else "warm", ["train", "val"][n % 4 == 0]])
    with open(root / "shop.csv", "w", newline="") as file:
        csv.writer(file).writerows([["id", "image", "color", "style", "split"], *rows])
    for name in ("model", "other"):
        encoder = ImageEncoder("small_cnn", image_size=32, name="image_encoder")
        model = AttributeClassifier(encoder, LABELS, hidden=(8,), exclusive=("color",), feature_norm=True)
        # Without training all photos get the same labels, unless features are spread.
        features = model.encode_image(np.stack([np.asarray(picture(n, 32), np.float32) for n in range(24)])).numpy()
        model.norm.moving_mean.assign(features.mean(axis=0))
        model.norm.moving_variance.assign(features.var(axis=0))
        (root / name).mkdir()
        model.save(root / name / "model.keras")
    tokenizer = WordTokenizer(["red"], max_length=4, name="tokenizer")
    text = TEXT_ENCODERS.get("swem")(vocabulary_size=len(tokenizer.vocabulary), dim=8, embedding_dim=8, name="text_encoder")
    DualEncoder(encoder, text, tokenizer, dim=8, projection="linear").save(root / "dual.keras")
    return root


@pytest.fixture(scope="module")
def tags(place):
    """What `predict attributes` writes about all photos."""
    out = place / "tags"
    assert run("predict", "attributes", place / "photos", "--model", place / "model/model.keras", "--out", out, "--quiet") == 0
    return out


@functools.cache
def _loaded(path):
    return load_attributes(path)


def loaded(path):
    return _loaded(str(path))


@functools.cache
def embedder(model, batch_size, tta):
    return AttributeEmbedder(model, batch_size, tta)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    """An empty cache, an empty current folder, and models that are loaded and traced once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(attribute_scores, "load_attributes", loaded)
    monkeypatch.setattr(attribute_scores, "AttributeEmbedder", embedder)


def run(*arguments):
    return main([str(argument) for argument in arguments])


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def own_probabilities(place, names):
    model = load_attributes(place / "model/model.keras")
    images = np.stack([load_image(place / f"photos/{name}", model.image_encoder.image_spec) for name in names])
    return model.probabilities(model({"image": images})).numpy()


# Predicting.


def test_all_files_say_what_the_model_says(place, tags):
    wide, long = rows_of(tags / "attributes.csv"), rows_of(tags / "attributes_long.csv")
    listed = json.loads((tags / "attributes.json").read_text())
    names = [row["file"] for row in wide]
    assert len(wide) == 24 and names[0] == "new/p20.png" and wide[0]["id"] == "new__p20"
    assert list(wide[0]) == ["id", "file", "color", "color_probability", "style", "style_probability"]
    expected = own_probabilities(place, names)
    for row, photo, p in zip(wide, listed["photos"], expected, strict=True):
        colour = int(p[:3].argmax())
        assert row["color"] == LABELS.names[colour] and float(row["color_probability"]) == pytest.approx(p[colour], abs=1e-4)
        styles = sorted((place for place in range(3, 6) if p[place] > 0.5), key=lambda place: -p[place])
        assert row["style"] == "|".join(LABELS.names[place] for place in styles)
        assert [float(x) for x in row["style_probability"].split("|") if x] == pytest.approx(p[styles], abs=1e-4)
        own = [line for line in long if line["id"] == row["id"]]
        assert [line["label"] for line in own] == [row["color"], *filter(None, row["style"].split("|"))]
        assert [line["rank"] for line in own if line["group"] == "style"] == [str(n + 1) for n in range(len(styles))]
        assert all(line["decided"] == "1" and LABELS.label(line["label_id"]).name == line["label"] for line in own)
        assert photo["id"] == row["id"] and [tag["label"] for tag in photo["attributes"]["color"]] == [row["color"]]
    assert listed["groups"] == ["color", "style"] and listed["model"]["file"] == "model.keras" and listed["photos_left_out"] == 0
    page = (tags / "report.html").read_text()
    assert page.count("data:image/jpeg") == 24 and "What 24 photos show" in page and "<script" not in page
    store = ScoreStore.read(tags / "scores.npz", label_map=LABELS)
    assert store.paths == tuple(names) and store.embeddings.shape == (24, 8) and store.exclusive == ("color",)
    assert not (tags / "bad_images.csv").exists() and not list(tags.glob(".*"))


def test_the_table_is_a_catalogue_again(place, tags):
    shutil.copy(tags / "attributes.csv", place / "photos")
    dataset = open_attributes(place / "photos", name="attribute_catalogue", columns=["color", "style"])
    (place / "photos/attributes.csv").unlink()
    ids, targets = dataset.targets("train")
    rows = {row["id"]: row for row in rows_of(tags / "attributes.csv")}
    for image_id, target in zip(ids, targets, strict=True):
        said = {*rows[image_id]["color"].split("|"), *rows[image_id]["style"].split("|")} - {""}
        assert set(dataset.label_map.names_of_vector(target)) == said


def test_a_few_photos_are_printed(place, capsys):
    photos = [place / "photos/p0.png", place / "photos/p1.png"]
    assert run("predict", "attributes", *photos, "--model", place / "model/model.keras", "--top", 2, "--groups", "color") == 0
    printed = capsys.readouterr().out
    p = own_probabilities(place, ["p0.png"])[0, :3]
    best, second = np.argsort(-p)[:2]
    line = f"{LABELS.names[best]} {p[best]:.2f}, ({LABELS.names[second]} {p[second]:.2f})"
    assert "p0 " in printed and "p1 " in printed and line in printed and "style" not in printed


def test_labels_are_explained(place, tmp_path, capsys):
    command = ["predict", "attributes", place / "photos", "--model", place / "model/model.keras", "--out", tmp_path / "out", "--quiet"]
    assert run(*command, "--explain", tmp_path / "maps", "--explain-photos", 2) == 0
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["new__p20.png", "new__p21.png"]
    assert "2 pictures in" in capsys.readouterr().out
    with Image.open(tmp_path / "maps/new__p20.png") as sheet:
        assert sheet.width > 400


def test_options_of_the_files(place, tags, tmp_path, capsys):
    model = place / "model/model.keras"
    out = tmp_path / "some"
    options = ["--groups", "style", "--top", 3, "--threshold", 1.0, "--format", "csv"]
    assert run("predict", "attributes", place / "photos", "--model", model, "--out", out, *options, "--quiet") == 0
    assert sorted(path.name for path in out.iterdir()) == ["attributes.csv", "attributes_long.csv", "scores.json", "scores.npz"]
    assert all(row["style"] == row["style_probability"] == "" for row in rows_of(out / "attributes.csv"))
    long = rows_of(out / "attributes_long.csv")
    assert len(long) == 24 * 3 and {row["decided"] for row in long} == {"0"}
    capsys.readouterr()
    # Scores are kept: only the pages are written anew, fewer photos on fewer pages.
    before = (out / "scores.npz").read_bytes()
    (out / "report-7.html").write_text("old")
    assert run("predict", "attributes", place / "photos", "--model", model, "--out", out, "--report-photos", 5, "--quiet") == 0
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg") == 5 and "The first 5 of 24 photos" in page and not (out / "report-7.html").exists()
    assert (out / "scores.npz").read_bytes()[-2000:] == before[-2000:]
    printed = capsys.readouterr().out
    assert "without any" in printed and "24 photos" in printed


def test_pages(tags, tmp_path):
    from tf_fashion.reports.tags import TagCounts
    from tf_fashion.reports.tags_html import write_tag_pages

    store = ScoreStore.read(tags / "scores.npz")
    photos = list(tagged(store, Thresholds.constant(LABELS, 0.5, ("color",)), tags, top=1))
    counts = TagCounts(LABELS.tasks)
    for photo in photos:
        counts.add(photo)
    pages = write_tag_pages(tmp_path, photos, counts, 24, per_page=5)
    assert [page.name for page in pages] == ["report.html", *(f"report-{n}.html" for n in range(2, 6))]
    texts = [page.read_text() for page in pages]
    assert "Photos 6 to 10" in texts[1] and 'href="report.html"' in texts[1] and "What 24 photos show" not in texts[1]
    assert sum(text.count('class="photo"') for text in texts) == 24 and "no picture" in texts[0]
    assert sum(counts.labels["color"].values()) == 24
    with pytest.raises(UsageError, match="at least 1 photo"):
        write_tag_pages(tmp_path, photos, counts, 24, per_page=0)


def test_flip_is_the_mean_of_both_sides(place, tmp_path):
    out = tmp_path / "flip"
    photos = ["predict", "attributes", place / "photos/p3.png", "--model", place / "model/model.keras", "--out", out, "--quiet"]
    assert run(*photos, "--tta", "flip") == 0
    model = load_attributes(place / "model/model.keras")
    image = np.asarray(load_image(place / "photos/p3.png", model.image_encoder.image_spec))[None]
    expected = (model({"image": image}) + model({"image": image[:, :, ::-1]})) / 2
    store = ScoreStore.read(out / "scores.npz")
    np.testing.assert_allclose(store.scores, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(store.embeddings, axis=1), 1, atol=1e-6)
    # Scores without the mirror image are others: they do not replace these.
    assert run(*photos) == 2


@pytest.mark.slow
def test_a_killed_prediction_goes_on_where_it_was(place, tags, tmp_path, monkeypatch):
    monkeypatch.setattr(attribute_scores, "PART_ROWS", 5)
    # What kill -9 leaves: nothing is flushed.
    monkeypatch.setattr(ScoreWriter, "__exit__", lambda *details: None)
    seen = []
    real = AttributeEmbedder.batch

    def batch(self, images):
        if len(seen) == 7:
            raise KeyboardInterrupt
        rows = real(self, images)
        seen.append(len(rows))
        return rows

    monkeypatch.setattr(AttributeEmbedder, "batch", batch)
    out = tmp_path / "out"
    command = ["predict", "attributes", place / "photos", "--model", place / "model/model.keras", "--out", out, "--batch-size", 2]
    assert run(*command, "--quiet") == 130
    assert not (out / "scores.npz").exists() and not (out / "attributes.csv").exists()
    seen.append(0)
    assert run(*command, "--quiet") == 0
    assert sum(seen[:7]) == 14 and sum(seen[8:]) == 24 - 10  # two full parts of the first run are kept
    assert (out / "attributes.csv").read_text() == (tags / "attributes.csv").read_text()
    count = len(seen)
    picture(99).save(out / "one_more.png")
    assert run(*command[:3], out / "one_more.png", *command[3:], "--quiet") == 0
    assert sum(seen[count:]) == 1 and len(rows_of(out / "attributes.csv")) == 25


@pytest.mark.slow
def test_bad_pictures_stop_at_the_end_and_cost_nothing(place, tmp_path, monkeypatch, capsys):
    photos = tmp_path / "photos"
    shutil.copytree(place / "photos", photos)
    whole = (photos / "p2.png").read_bytes()
    (photos / "p2.png").write_bytes(whole[: len(whole) // 2])
    shutil.copy(photos / "p2.png", photos / "z_copy.png")
    (photos / "text.jpg").write_text("<html>not found</html>")
    (photos / "empty.jpg").write_bytes(b"")
    out = tmp_path / "out"
    command = ["predict", "attributes", photos, "--model", place / "model/model.keras", "--out", out, "--quiet"]
    assert run(*command) == 1
    message = capsys.readouterr().err
    assert "Pictures that cannot be used: 4" in message and "--skip-bad-images" in message
    bad = rows_of(out / "bad_images.csv")
    assert [row["id"] for row in bad] == ["empty", "p2", "text", "z_copy"] and bad[0]["reason"] == "empty file"
    assert "HTML" in bad[2]["reason"] and bad[1]["reason"] == bad[3]["reason"] == "truncated PNG"
    assert not (out / "attributes.csv").exists()
    seen = []
    real = AttributeEmbedder.batch
    monkeypatch.setattr(AttributeEmbedder, "batch", lambda self, images: seen.append(1) or real(self, images))
    assert run(*command, "--skip-bad-images") == 0
    assert not seen and len(rows_of(out / "attributes.csv")) == 23
    assert "4 left out" in capsys.readouterr().out and json.loads((out / "attributes.json").read_text())["photos_left_out"] == 4
    for name in ("p2.png", "z_copy.png"):
        (photos / name).write_bytes(whole)
    (photos / "text.jpg").unlink()
    (photos / "empty.jpg").unlink()
    assert run(*command) == 0
    assert len(seen) == 1 and len(rows_of(out / "attributes.csv")) == 25 and not (out / "bad_images.csv").exists()


def test_a_catalogue_keeps_its_ids(place, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["predict", "attributes", place / "shop.csv", "--model", place / "model/model.keras", "--out", out, "--quiet"]
    assert run(*command, "--images", place / "photos") == 0
    rows = rows_of(out / "attributes.csv")
    assert [row["id"] for row in rows] == [f"sku-{n}" for n in range(24)] and rows[21]["file"] == "new/p21.png"
    table = tmp_path / "ids.csv"
    table.write_text("id\np1\np2\ngone\n")
    capsys.readouterr()
    assert run("predict", "attributes", table, "--images", place / "photos", *command[3:]) == 1
    assert "missing" in capsys.readouterr().err and [row["id"] for row in rows_of(out / "bad_images.csv")] == ["gone"]


@pytest.mark.slow
def test_thresholds_beside_the_model_decide(place, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(place / "model/model.keras", folder)
    values = (1.0, 1.0, 1.0, 0.0, 0.0, 1.0)
    Thresholds("label", values, LABELS.ids, ("color",), "micro").write(folder / "thresholds.json")
    command = ["predict", "attributes", place / "photos/p0.png", place / "photos/p1.png", "--model", folder / "model.keras", "--quiet"]
    assert run(*command, "--out", tmp_path / "a") == 0
    rows = rows_of(tmp_path / "a/attributes.csv")
    assert all(row["color"] == "" and set(row["style"].split("|")) == {"long", "warm"} for row in rows)
    assert run(*command, "--out", tmp_path / "b", "--threshold", 0.5) == 0
    assert all(row["color"] for row in rows_of(tmp_path / "b/attributes.csv"))
    capsys.readouterr()
    others = LabelMap.of_tasks({"color": ["red", "blue"]})
    Thresholds.constant(others).write(tmp_path / "others.json")
    assert run(*command, "--thresholds", tmp_path / "others.json") == 1
    assert "the label map has 6" in capsys.readouterr().err
    assert run(*command, "--thresholds", tmp_path / "others.json", "--threshold", 0.5) == 2
    assert run(*command, "--thresholds", tmp_path / "nowhere.json") == 1
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--groups", "colour"], 2, "no group 'colour'. Groups: color, style"),
        (["--format", "xlsx"], 2, "--format: expected some of csv, json, html"),
        (["--top", "-1"], 2, "--top"),
        (["--batch-size", "0"], 2, "--batch-size"),
        (["--tta", "crop"], 2, "--tta"),
        (["--threshold", "1.5"], 2, "--threshold"),
        (["--images", "photos"], 2, "--images belongs to the CSV file"),
        (["nowhere.jpg"], 2, "nowhere.jpg: no such file or folder"),
        (["{empty}"], 1, "there are no pictures in this folder"),
        (["--model", "{dual}"], 1, "expected a AttributeClassifier, found a DualEncoder"),
        (["--model", "nowhere.keras"], 2, "expected a .keras file"),
        (["--out", "{other}"], 2, "holds scores of another model"),
    ],
)
def test_bad_input_of_predict(place, tmp_path, capsys, options, code, words):
    (tmp_path / "empty").mkdir()
    if "{other}" in options:
        assert (
            run("predict", "attributes", place / "photos/p0.png", "--model", place / "other/model.keras", "--out", tmp_path / "o") == 0
        )
    places = {"empty": tmp_path / "empty", "dual": place / "dual.keras", "other": tmp_path / "o"}
    given = [option.format(**places) for option in options]
    photos = [place / "photos/p0.png", *(option for option in given if option.endswith(("jpg", "empty")))]
    given = [option for option in given if option not in photos]
    assert run("predict", "attributes", *photos, "--model", place / "model/model.keras", "--quiet", *given) == code
    assert words in capsys.readouterr().err


def test_photos_are_found_once_and_told_apart(place, tmp_path):
    for name in ("a/1.png", "b/1.png", "b/1.jpg", "b/.hidden.png", "b/ä ö.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(1).save(tmp_path / name)
    (tmp_path / "b/notes.txt").write_text("no picture")
    found = find_photos([str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "b/1.png")])
    assert found.root == tmp_path and [found.relative(entry) for entry in found.paths] == ["a/1.png", "b/1.jpg", "b/1.png", "b/ä ö.png"]
    ids = list(found.paths)
    assert ids[:2] == ["a__1", "b__1"] and ids[2].startswith("b__1-") and len(set(ids)) == 4
    assert list(find_photos([str(tmp_path / "a/1.png")]).paths) == ["1"]
    (tmp_path / "shop.csv").write_text("id,image\n7,a/1.png\n")
    assert list(find_photos([str(tmp_path / "shop.csv"), str(tmp_path / "a")]).paths) == ["7"]
    (tmp_path / "again.csv").write_text("id,image\n7,b/1.png\n")
    with pytest.raises(DataError, match="'7' is in another catalogue too"):
        find_photos([str(tmp_path / "shop.csv"), str(tmp_path / "again.csv")])
    with pytest.raises(UsageError, match="Name the photos"):
        find_photos([])


# Matching.


def found_by(place, tags, tmp_path, *options, photos=("p0.png",)):
    out = tmp_path / "found.json"
    model = ["--model", place / "model/model.keras"] if photos else []
    queries = [place / f"photos/{name}" for name in photos]
    assert run("match", *queries, *model, "--store", tags, "--json", out, "--quiet", *options) == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize(
    ("options", "metric"),
    [
        ([], "euclidean_logits"),
        (["--metric", "cosine"], "cosine"),
        (["--by", "embedding"], "embedding"),
        (["--by", "mix", "--weight", 0.3, "--metric", "euclidean_prob", "--group-weight", "color=2"], "mix"),
    ],
)
def test_matches_by_every_metric(place, tags, tmp_path, capsys, options, metric):
    found = found_by(place, tags, tmp_path, *options, "--top", 5, photos=("p0.png", "p1.png"))
    assert found["metric"]["name"] == metric and [query["query"] for query in found["queries"]] == ["p0", "p1"]
    for query in found["queries"]:
        matches = query["matches"]
        assert len(matches) == 5 and query["query"] not in [match["id"] for match in matches]
        assert [match["distance"] for match in matches] == sorted(match["distance"] for match in matches)
    # The photo itself is the catalogue's: it is its own nearest only when asked for.
    first = found_by(place, tags, tmp_path, *options, "--include-self")["queries"][0]["matches"][0]
    assert first["id"] == "p0" and first["distance"] == pytest.approx(0, abs=1e-3) and first["different"] == []


def test_euclidean_distance_of_logits(place, tags, tmp_path):
    store = ScoreStore.read(tags / "scores.npz")
    found = found_by(place, tags, tmp_path, "--top", 23, "--ids", "p0", photos=())["queries"][0]["matches"]
    scores = store.scores.astype(np.float64)
    scores[:, :3] -= scores[:, :3].mean(axis=1, keepdims=True)
    expected = np.linalg.norm(scores - scores[store.rows(["p0"])], axis=1)
    for match in found:
        assert match["distance"] == pytest.approx(expected[store.rows([match["id"]])[0]], rel=1e-5)
    assert len(found) == 23


def test_another_photo_of_the_same_name_is_no_self(place, tags, tmp_path):
    other = tmp_path / "elsewhere"
    other.mkdir()
    shutil.copy(place / "photos/p7.png", other / "p0.png")
    out = tmp_path / "found.json"
    assert run("match", other, "--model", place / "model/model.keras", "--store", tags, "--top", 24, "--json", out, "--quiet") == 0
    ids = [match["id"] for match in json.loads(out.read_text())["queries"][0]["matches"]]
    assert len(ids) == 23 and "p0" in ids and "p7" not in ids


@pytest.mark.slow
def test_filters_on_labels_and_columns(place, tmp_path, capsys):
    store = tmp_path / "shop.npz"
    gallery = ["--gallery", place / "shop.csv", "--images", place / "photos", "--model", place / "model/model.keras"]
    command = ["match", place / "photos/p0.png", *gallery, "--store", store, "--top", 24, "--quiet", "--json", tmp_path / "f.json"]
    predicted = {}
    assert run(*command) == 0
    for match in json.loads((tmp_path / "f.json").read_text())["queries"][0]["matches"]:
        predicted[match["id"]] = match["labels"]["color"][0]
    colour = max(set(predicted.values()), key=list(predicted.values()).count)
    assert run(*command, "--not", f"color={colour.upper()}") in (0, 1)
    capsys.readouterr()
    assert run(*command, "--only", f"color={colour}", "--csv", tmp_path / "f.csv") == 0
    assert {row["image_id"] for row in rows_of(tmp_path / "f.csv")} == {entry for entry, name in predicted.items() if name == colour}
    assert f"color={colour}: " in capsys.readouterr().out
    # The shop's own column counts before the model.
    assert run(*command, "--only", "color=red", "--not", "style=warm", "--catalogue", place / "shop.csv") == 0
    found = json.loads((tmp_path / "f.json").read_text())
    assert {match["id"] for match in found["queries"][0]["matches"]} == {f"sku-{n}" for n in range(24) if n % 3 == 2 and n % 2}
    assert len(found["filter"]) == 2
    assert run(*command, "--only", "color=rde") == 2
    assert "Did you mean 'red'" in capsys.readouterr().err
    assert run(*command, "--catalogue", place / "shop.csv") == 2
    assert run(*command, "--only", "color=red", "--not", "color=red", "--catalogue", place / "shop.csv") == 1
    assert "No picture passes the filter" in capsys.readouterr().err


def test_sheet_csv_and_table(place, tags, tmp_path, capsys):
    files = ["--sheet", tmp_path / "new/found.png", "--csv", tmp_path / "found.csv"]
    assert run("match", place / "photos", "--model", place / "model/model.keras", "--store", tags, *files, "--quiet") == 0
    with Image.open(tmp_path / "new/found.png") as sheet:
        assert sheet.width > 600 and sheet.height > 2000
    rows = rows_of(tmp_path / "found.csv")
    assert len(rows) == 24 * 4 and set(rows[0]) == {"query", "rank", "image_id", "distance", "file", "color", "style"}
    assert rows[0]["file"].endswith(".png") and rows[0]["file"].startswith(str(place / "photos"))
    printed = capsys.readouterr().out
    assert "and 4 more queries" in printed and "Distance: euclidean_logits, among 24 pictures." in printed


@pytest.mark.slow
def test_a_store_keeps_its_augmentation_and_grows(place, tmp_path, capsys):
    photos, store = tmp_path / "photos", tmp_path / "s.npz"
    shutil.copytree(place / "photos", photos)
    command = ["match", place / "photos/p0.png", "--model", place / "model/model.keras", "--store", store, "--quiet"]
    assert run(*command, "--gallery", photos, "--tta", "flip") == 0
    picture(50).save(photos / "p50.png")
    assert run(*command, "--gallery", photos, "--tta", "flip") == 0
    assert "p50" in ScoreStore.read(store)
    assert run(*command, "--top", 1, "--include-self", "--json", tmp_path / "f.json") == 0
    nearest = json.loads((tmp_path / "f.json").read_text())["queries"][0]["matches"][0]
    assert nearest["id"] == "p0" and nearest["distance"] < 1e-3
    capsys.readouterr()
    assert run(*command, "--tta", "none") == 2
    assert "were made with flip" in capsys.readouterr().err
    assert run(*command[:2], "--model", place / "other/model.keras", "--store", store, "--quiet") == 1
    assert "scores of another model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--store", "{tags}"], 2, "Give either photos to look for, or --ids"),
        (["{photo}"], 2, "Where shall be looked?"),
        (["{photo}", "--store", "{tags}"], 2, "--model is missing"),
        (["--ids", "p0,none", "--store", "{tags}"], 1, "1 of 2 ids have no scores: 'none'"),
        (["--ids", "p0", "--store", "nowhere.npz"], 2, "no such file"),
        (["--ids", "p0", "--store", "{tags}", "--by", "smell"], 2, "--by: expected attributes, embedding, mix"),
        (["--ids", "p0", "--store", "{tags}", "--metric", "mix"], 2, "say --by mix"),
        (["--ids", "p0", "--store", "{tags}", "--weight", "0.5"], 2, "--weight is the attributes' share"),
        (["--ids", "p0", "--store", "{tags}", "--by", "embedding", "--group-weight", "color=2"], 2, "no effect with --by embedding"),
        (["--ids", "p0", "--store", "{tags}", "--group-weight", "colour=2"], 2, "the tasks are color, style"),
        (["--ids", "p0", "--store", "{tags}", "--group-weight", "color=much"], 2, "expected a number"),
        (["--ids", "p0", "--store", "{tags}", "--top", "0"], 2, "--top"),
        (["--ids", "p0", "--store", "{tags}", "--only", "red", "--catalogue", "nowhere.csv"], 2, "expected a CSV file"),
    ],
)
def test_bad_input_of_match(place, tags, capsys, options, code, words):
    places = {"tags": tags, "photo": place / "photos/p0.png"}
    assert run("match", *[option.format(**places) for option in options], "--quiet") == code
    assert words in capsys.readouterr().err


# Measuring.


@pytest.mark.slow
def test_evaluation_of_a_catalogue(place, tmp_path, capsys):
    out = tmp_path / "results/val.json"
    command = ["evaluate", "attributes", "--model", place / "model/model.keras", "--data", place, "--images", place / "photos"]
    options = ["--out", out, "--report", tmp_path / "report", "--match-task", "style", "--folds", 3]
    assert run(*command, *options) == 0
    metrics = json.loads(out.read_text())
    assert list(metrics["rules"]) == ["at 0.5", "cross-fitted"] and metrics["protocol"]["split"] == "val"
    assert next(iter(metrics["matching"].values()))["protocol"]["task"] == "style"
    names = [f"p{n}.png" if n < 20 else f"new/p{n}.png" for n in range(0, 24, 4)]
    right = own_probabilities(place, names)[:, :3].argmax(axis=1) == np.arange(0, 24, 4) % 3
    assert metrics["rules"]["at 0.5"]["tasks"]["color"]["accuracy"] == pytest.approx(right.mean())
    assert metrics["run"]["model"]["file"] == "model.keras" and metrics["run"]["config"]["folds"] == 3
    assert (tmp_path / "report/report.html").exists() and (tmp_path / "report/labels.csv").exists()
    assert "cross-fitted" in capsys.readouterr().out
    # Features that a training run has cached are used, and new ones are added.
    cache = FeatureCache.of(loaded(place / "model/model.keras").image_encoder)
    assert run(*command, "--out", tmp_path / "again.json", "--folds", 3, "--quiet") == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["rules"]["at 0.5"]["mAP"] == pytest.approx(metrics["rules"]["at 0.5"]["mAP"], abs=1e-3)
    assert sum(map(len, FeatureCache.of(loaded(place / "model/model.keras").image_encoder).shards)) == 6 and not cache.shards


@pytest.mark.slow
def test_thresholds_of_training_are_measured_too(place, tmp_path, capsys):
    rule = Thresholds("label", (0.0,) * 6, LABELS.ids, ("color",), "macro", {"records": 9})
    rule.write(tmp_path / "t.json")
    out = tmp_path / "val.json"
    command = ["evaluate", "attributes", "--model", place / "model/model.keras", "--images", place / "photos", "--out", out, "--quiet"]
    assert run(*command, "--data", place, "--thresholds", tmp_path / "t.json", "--folds", 2) == 0
    metrics = json.loads(out.read_text())
    assert list(metrics["rules"]) == ["at 0.5", "thresholds of training", "cross-fitted"]
    assert metrics["rules"]["thresholds of training"]["tasks"]["style"]["micro_recall"] == 1
    assert metrics["run"]["thresholds"]["fitted"] == {"records": 9}
    # A shop without photos to train on, but with the model's labels.
    other = tmp_path / "other"
    other.mkdir()
    (other / "t.csv").write_text(
        "id,image,color,style,split\n" + "".join(f"{n},p{n}.png,red,,test\n" for n in range(4)) + "9,x.png,blue,,test\n"
    )
    assert run(*command, "--data", other) == 1
    assert "missing" in capsys.readouterr().err
    assert run(*command, "--data", other, "--folds", 2, "--skip-bad-images") == 0
    assert json.loads(out.read_text())["rules"]["at 0.5"]["records"] == 4
    (other / "t.csv").write_text("id,image,fabric,split\n" + "".join(f"{n},p{n}.png,silk,test\n" for n in range(4)))
    capsys.readouterr()
    assert run(*command, "--data", other, "--dataset", "attribute_catalogue") == 1
    assert "expected columns called as the tasks of the label map (color, style)" in capsys.readouterr().err
    (other / "t.csv").unlink()
    LabelMap.of_tasks({"color": ["red"], "style": ["wide"]}).write(other / "label_map.csv")
    listed = {"images": [{"imageId": "p0"}], "annotations": [{"imageId": "p0", "labelId": ["1"]}]}
    (other / "validation.json").write_text(json.dumps(listed))
    assert run(*command, "--data", other) == 1
    assert "are not the 6 of the model" in capsys.readouterr().err
    assert run(*command, "--data", place, "--match-task", "colour") == 2
    assert run(*command, "--data", place, "--fit", "none") == 2
    assert run(*command, "--data", place, "--folds", 1) == 2
    assert run(*command, "--data", place, "--split", "test") == 2


# Fetching.


def test_fetch_gets_what_there_is(place, tmp_path, capsys):
    handler = functools.partial(_Silent, directory=str(place / "photos"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"http://127.0.0.1:{server.server_port}"
        listed = [{"imageId": str(n), "url": f"{host}/{name}"} for n, name in enumerate(("p0.png", "p1.png", "gone.png"))]
        (tmp_path / "imat").mkdir()
        (tmp_path / "imat/validation.json").write_text(json.dumps({"images": listed, "annotations": []}))
        assert run("data", "fetch", tmp_path / "imat", "--images", tmp_path / "photos", "--delay", 0, "--quiet") == 1
        printed = capsys.readouterr().out
        assert "2 of 3 pictures" in printed and "404" in printed
        assert sorted(path.name for path in (tmp_path / "photos/validation").glob("[!.]*")) == ["0.jpg", "1.jpg", "failed.csv"]
        alone = [
            "data",
            "fetch",
            tmp_path / "imat/validation.json",
            "--images",
            tmp_path / "few",
            "--limit",
            1,
            "--delay",
            0,
            "--quiet",
        ]
        assert run(*alone) == 0 and (tmp_path / "few/0.jpg").exists()
        server.shutdown()


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *details):
        pass
