"""FashionIQ's layout: what it reads, and how it refuses what is wrong."""

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.shared import shared
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets import DATASETS, FashionIQ, open_composed, open_dataset
from tf_fashion.datasets.fashion_iq import read_split
from tf_fashion.testing.datasets import run_dataset_test

PUBLISHED = {
    ("dress", "train"): (5985, 11452),
    ("dress", "val"): (2017, 3817),
    ("dress", "test"): (2024, 3818),
    ("toptee", "train"): (6027, 16121),
    ("toptee", "val"): (1961, 5373),
    ("toptee", "test"): (2056, 5374),
    ("shirt", "train"): (5988, 19036),
    ("shirt", "val"): (2038, 6346),
    ("shirt", "test"): (2038, 6346),
}


def pair(candidate, target=None, captions=("is red", "is longer")):
    entry = {"candidate": candidate, "captions": list(captions)}
    return entry if target is None else {**entry, "target": target}


def write_tree(root, pairs, galleries=None, pictures=True):
    """`pairs`: (category, split) -> list of entries; galleries default to all ids that occur."""
    for folder in ("captions", "image_splits", "images"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for (category, split), entries in pairs.items():
        ids = sorted({id for e in entries for id in (e["candidate"], e.get("target")) if id})
        gallery = (galleries or {}).get((category, split), ids)
        (root / f"captions/cap.{category}.{split}.json").write_text(json.dumps(entries))
        (root / f"image_splits/split.{category}.{split}.json").write_text(json.dumps(gallery))
        for index, id in enumerate(dict.fromkeys(ids + gallery) if pictures else ()):
            colour = tuple((hash_ + 37 * index) % 256 for hash_ in (sum(map(ord, id)), len(id), index))
            Image.new("RGB", (16, 12), colour).save(root / f"images/{id}.jpg")
    return root


@pytest.fixture
def tree(tmp_path):
    return write_tree(
        tmp_path / "tree",
        {
            ("shirt", "train"): [pair("a", "b"), pair("b", "c", ["", " leading blank"]), pair("a", "c")],
            ("shirt", "val"): [pair("d", "e")],
            ("shirt", "test"): [pair("f"), pair("g")],
            ("v.neck tops", "train"): [pair("h", "i"), pair("i", "j")],
        },
        {("shirt", "val"): ["e", "d", "x"]},
    )


def write(tree, entries, gallery=("a", "b", "c"), split="train"):
    (tree / f"captions/cap.shirt.{split}.json").write_text(json.dumps(entries))
    (tree / f"image_splits/split.shirt.{split}.json").write_text(json.dumps(list(gallery)))
    return FashionIQ(tree)


def test_keeps_the_contract(tree):
    counts = {("shirt", "train"): (3, 3), ("shirt", "val"): (1, 3), ("shirt", "test"): (2, 2), ("v.neck tops", "train"): (2, 3)}
    run_dataset_test(FashionIQ(tree), counts)


def test_reads_what_is_written(tree):
    data = FashionIQ(tree)
    assert data.categories == ["shirt", "v.neck tops"]
    assert data.splits("shirt") == ["train", "val", "test"]
    assert data.splits("v.neck tops") == ["train"]
    part = data.get("shirt", "train")
    assert [(t.reference, t.target, t.captions, t.row) for t in part.triplets][1] == ("b", "c", ("", " leading blank"), 1)
    assert data.get("shirt", "val").gallery == ("e", "d", "x")
    assert data.get("shirt", "val").union_gallery == ["d", "e"]
    assert not data.get("shirt", "test").has_targets
    assert data.image_ids(["val"]) == ["d", "e", "x"]
    assert data.missing_images() == []
    assert data.data_hash(["train"]) != data.data_hash(["val"]) != data.data_hash()


def test_the_hash_follows_the_content_not_the_place(tree, tmp_path):
    before = FashionIQ(tree).data_hash()
    tree.rename(tmp_path / "moved")
    assert FashionIQ(tmp_path / "moved").data_hash() == before
    write(tmp_path / "moved", [pair("a", "b")])
    assert FashionIQ(tmp_path / "moved").data_hash() != before


def test_a_chosen_category_needs_no_other(tree):
    (tree / "captions/cap.shirt.train.json").write_text("broken")
    data = open_composed(tree, categories=["v.neck tops"])
    assert data.image_ids() == ["h", "i", "j"]
    with pytest.raises(UsageError, match="no category 'dress'. Found: shirt, v.neck tops"):
        FashionIQ(tree, categories=["dress"])
    with pytest.raises(UsageError, match="no split 'val'. Found: train"):
        data.get("v.neck tops", "val")


@pytest.mark.parametrize("extension", [".jpeg", ".png", ".webp", ".JPG"])
def test_pictures_may_have_other_extensions(tree, extension):
    os.rename(tree / "images/a.jpg", tree / f"images/a{extension}")
    assert FashionIQ(tree).image_path("a").name == f"a{extension}"


def test_pictures_elsewhere_arriving_late_and_missing(tree, tmp_path):
    os.rename(tree / "images", tmp_path / "photos")
    data = FashionIQ(tree)
    assert len(data.get("shirt", "train").triplets) == 3
    with pytest.raises(DataError, match="--images DIR"):
        data.image_path("a")
    data = FashionIQ(tree, images=tmp_path / "photos")
    assert data.image_path("a") == tmp_path / "photos/a.jpg"
    with pytest.raises(DataError, match="no picture for the id 'late'"):
        data.image_path("late")
    os.rename(tmp_path / "photos/b.jpg", tmp_path / "photos/late.jpg")
    assert data.image_path("late").is_file()
    assert data.missing_images() == ["b"]
    with pytest.raises(UsageError, match="found nothing there"):
        FashionIQ(tree, images=tmp_path / "absent")


def test_folders_that_are_none(tree, tmp_path):
    with pytest.raises(UsageError, match="expected the folder of a dataset, found nothing there"):
        FashionIQ(tmp_path / "absent")
    with pytest.raises(DataError, match="Did you mean .*tree"):
        FashionIQ(tmp_path)
    with pytest.raises(DataError, match=r"Looked for: .*cap.CATEGORY.SPLIT.json.*Did you mean .*tree"):
        open_composed(tmp_path)
    assert isinstance(open_dataset("auto", tree), FashionIQ)
    with pytest.raises(UsageError, match="Known: .*fashion_iq"):
        open_dataset("nothing", tree)
    assert "fashion_iq" in DATASETS


BAD_ENTRIES = [
    ({"target": "b", "captions": ["x", "y"]}, "no 'candidate'; found 'target', 'captions'"),
    ({"candidate": "a", "captions": ["x", "y"]}, "no 'target'"),
    ({"candidate": "a", "target": "b"}, "no 'captions'"),
    ("a red dress", "expected an object"),
    (pair("a", "b") | {"captions": "is red"}, "found one string: 'is red'"),
    (pair("a", "b", ["is red"]), "expected two captions, found 1"),
    (pair("a", "b", ["1", "2", "3"]), "expected two captions, found 3"),
    (pair("a", "b", ["is red", None]), "caption 2: expected a caption .* found None"),
    (pair("a", "b", [float("nan"), "is red"]), "caption 1: .*found nan"),
    (pair("a", "b", [7, "is red"]), "found 7"),
    (pair("a", "b", ["\ud800", "is red"]), "surrogate"),
    (pair("a", "b", ["", "  "]), "all captions of the pair are empty"),
    (pair("../../etc/passwd", "b"), r"'candidate' '../../etc/passwd' is not usable as a file name"),
    (pair("a", "b/c"), "'target' 'b/c' is not usable"),
    (pair("a", "b\n"), "is not usable"),
    (pair("a", "b" * 200), "is not usable"),
    (pair(7, "b"), 'Put it in quotes: "7"'),
    (pair("a", "z"), "the target 'z' is not in the gallery split.shirt.train.json"),
    (pair("a", "a"), "reference and target are the same picture 'a'"),
]


@pytest.mark.parametrize("entry, message", BAD_ENTRIES)
def test_a_bad_pair_is_named_with_file_and_row(tree, entry, message):
    data = write(tree, [pair("a", "b"), entry])
    with pytest.raises(DataError, match=message) as error:
        data.get("shirt", "train")
    assert "cap.shirt.train.json, row 2 of 2" in str(error.value)
    problems = []
    part = read_split(tree, "shirt", "train", problems.append)
    assert problems and all(problem.severity == "error" for problem in problems)
    assert part.triplets[0].target == "b"


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "not valid JSON"),
        ('[{"candidate": "a"', "not valid JSON"),
        ("<html>", "not valid JSON"),
        ('{"candidate": "a"}', "expected a JSON list of objects"),
        ("[" * 100_000, "nested too deeply|not valid JSON"),
        ("[" + "9" * 5000 + "]", "cannot be read"),
        ("null", "found None"),
        ("[]", "category 'shirt' is empty: there are no pairs in 'train'"),
        ("\ufeff[]", "not valid JSON"),
    ],
)
def test_a_bad_caption_file_is_named(tree, text, message):
    (tree / "captions/cap.shirt.train.json").write_text(text)
    with pytest.raises(DataError, match=message) as error:
        FashionIQ(tree).get("shirt", "train")
    assert "cap.shirt.train.json" in str(error.value)


def test_files_in_other_encodings_and_folders_in_their_place(tree):
    (tree / "captions/cap.shirt.train.json").write_bytes('["é"]'.encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        FashionIQ(tree).get("shirt", "train")
    (tree / "captions/cap.shirt.val.json").unlink()
    (tree / "captions/cap.shirt.val.json").mkdir()
    with pytest.raises(DataError, match="found a folder"):
        FashionIQ(tree).get("shirt", "val")


@pytest.mark.parametrize(
    "gallery, message",
    [
        ([], "category 'shirt' is empty: the gallery has no images"),
        (["a", "b", "c", "a"], r"row 4 of 4: the gallery holds the id 'a' a second time \(first in row 1\)"),
        (["a", "b", "../c"], r"row 3 of 3: the image id '../c' is not usable"),
        (["a", 5], "found 5"),
    ],
)
def test_a_bad_gallery_is_named(tree, gallery, message):
    data = write(tree, [pair("a", "b")], gallery)
    with pytest.raises(DataError, match=message) as error:
        data.get("shirt", "train")
    assert "split.shirt.train.json" in str(error.value)


def test_missing_halves_are_named(tree):
    (tree / "image_splits/split.shirt.train.json").unlink()
    with pytest.raises(DataError, match="split.shirt.train.json: no such file"):
        FashionIQ(tree).get("shirt", "train")


def test_test_has_all_targets_or_none(tree):
    write(tree, [pair("a", "b"), pair("b", "c")], split="test")
    assert FashionIQ(tree).get("shirt", "test").has_targets
    write(tree, [pair("a", "b"), pair("b")], split="test")
    with pytest.raises(DataError, match="1 of 2 pairs have no 'target'"):
        FashionIQ(tree).get("shirt", "test")


def test_references_outside_the_gallery_are_allowed(tree):
    data = write(tree, [pair("a", "b")], ["b", "c"])
    assert data.get("shirt", "train").image_ids == {"a", "b", "c"}


def test_without_images_counts_what_it_leaves_out(tree):
    data = FashionIQ(tree)
    reduced = data.without_images(["b", "x", "elsewhere"], ["train"])
    part = reduced.get("shirt", "train")
    assert [(t.reference, t.target) for t in part.triplets] == [("a", "c")]
    assert (part.gallery, part.missing, part.dropped_triplets) == (("a", "c"), ("b",), 2)
    assert reduced.get("shirt", "val") is data.get("shirt", "val")
    assert reduced.report() == ["shirt train: left out 2 of 3 pairs and 1 of 3 gallery pictures"]
    assert data.without_images(["x"]).get("shirt", "val").missing == ("x",)
    assert data.without_images(["elsewhere"]).data_hash() == data.data_hash()
    with pytest.raises(DataError, match="is empty: each of the 3 pairs"):
        data.without_images(["a", "b"]).get("shirt", "train")


def test_attributes_and_addresses(tree):
    folder = tree / "image_tag_dataset/tags"
    folder.mkdir(parents=True)
    (folder / "asin2attr.shirt.val.json").write_text(json.dumps({"d": [["red"], [], ["long", "sleeve"]]}))
    (tree / "image_url").mkdir()
    (tree / "image_url/asin2url.shirt.txt").write_text("d\thttp://example.org/d.jpg\nbroken line\n../e\thttp://x\n")
    data = FashionIQ(tree)
    assert data.attributes("shirt", "val") == {"d": (("red",), (), ("long", "sleeve"))}
    assert data.attributes("shirt", "train") == {}
    assert data.image_urls == {"d": "http://example.org/d.jpg"}
    (folder / "asin2attr.shirt.val.json").write_text(json.dumps({"d": ["red"]}))
    with pytest.raises(DataError, match="'d': expected lists of words"):
        data.attributes("shirt", "val")


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["a", "b", "../a"])
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3))
entries = st.fixed_dictionaries(
    {},
    optional={
        "candidate": st.sampled_from(["a", "b", "c"]) | anything,
        "target": st.sampled_from(["a", "b", "c"]) | anything,
        "captions": st.lists(st.text(max_size=4), max_size=3) | anything,
    },
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(entries | anything, max_size=4) | anything,
    st.lists(st.sampled_from(["a", "b", "c"]) | anything, max_size=4) | anything,
    st.sampled_from(["train", "test"]),
)
def test_whatever_the_json_only_data_errors_come_out(tmp_path, captions, gallery, split):
    root = tmp_path / "fuzz"
    for folder, prefix, value in (("captions", "cap", captions), ("image_splits", "split", gallery)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / f"{prefix}.c.{split}.json").write_text(json.dumps(value))
    for other in {"train", "test"} - {split}:
        for path in root.glob(f"*/*.c.{other}.json"):
            path.unlink()
    problems = []
    read_split(root, "c", split, problems.append)
    try:
        data = FashionIQ(root)
        data.get("c", split)
    except DataError:
        assert any(problem.severity == "error" for problem in problems)
    else:
        assert all(problem.severity == "warning" for problem in problems)
        run_dataset_test(data, pictures=0)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 400), st.binary(max_size=6), st.integers(0, 12))
def test_whatever_the_bytes_only_data_errors_come_out(tmp_path, position, inserted, removed):
    good = json.dumps([pair("a", "b"), pair("b", "c"), pair("c", "a", ["", "é"])], ensure_ascii=False).encode()
    for folder in ("captions", "image_splits"):
        (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / "image_splits/split.c.train.json").write_text('["a", "b", "c"]')
    (tmp_path / "captions/cap.c.train.json").write_bytes(good[:position] + inserted + good[position + removed :])
    try:
        FashionIQ(tmp_path).get("c", "train")
    except DataError as error:
        assert "cap.c.train.json" in str(error)


def test_the_published_files_have_their_published_counts():
    data = FashionIQ(shared("data/fashion_iq_text"))
    assert data.categories == ["dress", "toptee", "shirt"]
    counts = {}
    for category in data.categories:
        for split in data.splits(category):
            part = data.get(category, split)
            counts[category, split] = (len(part.triplets), len(part.gallery))
    assert counts == PUBLISHED
    union = [len(data.get(category, "val").union_gallery) for category in data.categories]
    assert union == [2628, 2902, 3089]
    texts = [text for category, split in counts for t in data.get(category, split).triplets for text in t.captions]
    assert sum(not text for text in texts) == 16


@pytest.mark.parametrize("relative, images", [("data/clothing", None), ("data/products/fashion_iq", "data/products/images")])
def test_real_trees_keep_the_contract(relative, images):
    run_dataset_test(open_composed(shared(relative), shared(images) if images else None), pictures=3)
