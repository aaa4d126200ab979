"""The layout of Shoes: records, splits, descriptions, and how it refuses what is wrong."""

import json

import pytest
from PIL import Image

from tests.shared import shared
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets import Shoes, check_tree, open_composed
from tf_fashion.datasets.shoes import pairs_of
from tf_fashion.datasets.wardrobe import draw_wardrobe
from tf_fashion.testing.datasets import run_dataset_test

RECORDS = [
    ("b", "a", "is red"),
    ("c", "a", "is lower"),
    ("c", "b", "is wider"),
    ("b", "c", "is brown"),
    ("e", "d", "has a heel."),
    ("d", "e", "is flat"),
    ("a", "d", "crosses the splits"),
]


def write_tree(root, records=RECORDS, pictures=True):
    root.mkdir()
    (root / "train_im_names.txt").write_text("a.jpg\nb.jpg\nc.jpg\n")
    (root / "eval_im_names.txt").write_text("d.jpg\ne.jpg\n")
    (root / "shoes-test-all.txt").write_text("attributedata/womens_flats/0/e.jpg \nattributedata/womens_flats/0/d.jpg \n")
    rows = [{"ImageName": f"{t}.jpg", "ReferenceImageName": f"{r}.jpg", "RelativeCaption": text} for t, r, text in records]
    (root / "relative_captions_shoes.json").write_text(json.dumps(rows))
    described = [{"ImageName": "c.jpg", "Caption": "brown boots"}, {"ImageName": "a.jpg", "Caption": "red flats"}]
    (root / "captions_shoes.json").write_text(json.dumps(described))
    for number, name in enumerate("abcde" if pictures else ""):
        folder = root / f"attributedata/womens_flats/{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (40 * number, 9, 9)).save(folder / f"{name}.jpg")
    return root


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "tree")


def test_the_contract_and_the_splits(tree):
    dataset = open_composed(tree)
    assert isinstance(dataset, Shoes) and not dataset.sampled
    run_dataset_test(dataset, {("all", "train"): (5, 4), ("all", "test"): (3, 3)})
    pairs = [(t.reference, t.target) for t in dataset.get("all", "train").triplets]
    assert pairs == [("a", "b"), ("a", "c"), ("d", "a"), ("b", "c"), ("c", "b")]
    assert dataset.attribute_texts("train") == {"a": "red flats", "c": "brown boots"}
    assert dataset.vocabulary_texts()[:3] == ["red flats", "brown boots", "is red"]
    assert check_tree(tree, progress=False).ok


def test_a_record_counts_once_or_by_both_ends():
    records = [{"ImageName": t, "ReferenceImageName": r} for t, r in ("ba", "ca", "aa", "xy")]
    assert pairs_of(records, ["a", "b"]) == [0, 1, 2]
    assert pairs_of(records, ["a", "b"], duplicate_by_endpoint=True) == [0, 1, 2, 0]


def test_records_that_ask_for_nothing_are_counted(tmp_path):
    root = write_tree(tmp_path / "tree", [*RECORDS, ("a", "a", "the same"), ("b", "c", "  ")])
    assert len(Shoes(root).get("all", "train").triplets) == 5
    report = check_tree(root, progress=False)
    assert report.ok and sum(p.kind == "unusable record" for p in report.warnings) == 2


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([("b c", "a", "is red")], "not usable"),
        ([("b" * 200, "a", "is red")], "not usable"),
        ([("b", "a", 5)], "caption"),
    ],
)
def test_broken_records_are_named(tmp_path, records, said):
    root = write_tree(tmp_path / "tree", [*RECORDS, *records])
    report = check_tree(root, progress=False)
    assert not report.ok and len(report.errors) == 1 and "row 8 of 8" in report.errors[0].where
    with pytest.raises(DataError, match=f"row 8 of 8.*{said}"):
        Shoes(root).get("all", "train")


def test_broken_files_and_wrong_use(tree, tmp_path):
    with pytest.raises(UsageError, match="used as a whole"):
        Shoes(tree, categories=["boots"])
    with pytest.raises(DataError, match="relative_captions_shoes"):
        Shoes(tmp_path)
    (tree / "relative_captions_shoes.json").write_text('{"no": "list"}')
    with pytest.raises(DataError, match="expected a JSON list"):
        Shoes(tree).get("all", "train")
    report = check_tree(tree, progress=False)
    assert "wrong structure" in {p.kind for p in report.errors}


def test_missing_pictures_are_named(tree):
    (tree / "attributedata/womens_flats/1/d.jpg").unlink()
    assert Shoes(tree).missing_images() == ["d"]
    assert [p.kind for p in check_tree(tree, progress=False).errors] == ["missing image"]


def test_the_drawn_wardrobe_in_this_layout(tmp_path):
    root = draw_wardrobe(tmp_path / "w", items=60, size=32, progress=False, workers=1, layout="shoes")
    run_dataset_test(open_composed(root))
    assert check_tree(root, progress=False).ok


def test_real_photos_in_this_layout():
    products = shared("data/products")
    dataset = Shoes(products / "shoes", products / "images")
    run_dataset_test(dataset, {("all", "train"): (1817, 1081), ("all", "test"): (454, 270)})
