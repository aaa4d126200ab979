"""FashionGen in FashionKLIP's files: texts, truths, pictures in all their forms, and how it refuses what is wrong."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.shared import shared
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets import FashionGen, TextCatalogue, check_tree, open_image_text
from tf_fashion.datasets.pictures import CLIP_MEAN, CLIP_STD, PictureStore
from tf_fashion.datasets.wardrobe import draw_wardrobe

TRAIN = [
    {"query_id": 7, "query_text": "a red dress", "item_ids": [1, "2"], "phrases": ["red dress", "dress"], "match_phrases": ["dress"]},
    {"query_id": 8, "query_text": "blue jeans", "item_ids": ["3"], "phrases": ["blue jeans"], "match_phrases": []},
]
VAL = [
    {"query_id": 20, "query_text": "a green coat", "item_ids": ["4", "5"], "sub_category": "coats"},
    {"query_id": 21, "query_text": "coat", "item_ids": ["5"], "sub_category": "coats"},
]
VAL_IMAGES = [{"image_id": "5", "item_ids": [20, 21]}, {"image_id": 4, "item_ids": [20]}]
CONCEPTS = [{"query_id": n, "query_text": f"a photo of {p}", "phrase": p} for n, p in enumerate(("dress", "red dress", "blue jeans"))]
FATHERS = [{"query_id": 0, "phrase": "red dress", "phrase_father": "dress"}, {"query_id": 1, "phrase": "dress", "phrase_father": ""}]


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8")


def write_tree(root, pictures=True, base=""):
    here = root / base
    write(here / "train/x_train_queries_phrases.jsonl", TRAIN)
    write(here / "val/x_val_queries.jsonl", VAL)
    write(here / "val/x_val_images.jsonl", VAL_IMAGES)
    write(here / "train/x_concepts_queries.jsonl", CONCEPTS)
    write(here / "train/x_concepts_fathers.jsonl", FATHERS)
    write(root / "fashion_kb/icbu_concepts_queries.jsonl", CONCEPTS[:1])
    if pictures:
        for number in range(1, 6):
            folder = here / "images" / ("deep/er" if number % 2 else "")
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (9, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "tree")


@pytest.mark.parametrize("base", ["", "fashiongen"])
def test_texts_pairs_and_truth(tmp_path, base):
    root = write_tree(tmp_path / "tree", base=base)
    dataset = open_image_text(root)
    assert isinstance(dataset, FashionGen) and dataset.splits() == ["train", "val"] and dataset.default_split == "val"
    pairs = dataset.pairs("train")
    assert [(p.query_id, p.image_id) for p in pairs] == [(7, "1"), (7, "2"), (8, "3")]
    assert pairs[0].phrases == ("red dress", "dress") and pairs[0].match_phrases == ("dress",)
    assert [q.item_ids for q in dataset.queries("val")] == [("4", "5"), ("5",)]
    assert list(dataset.image_truth("val").items()) == [("5", (20, 21)), ("4", (20,))]
    assert dataset.image_ids("val") == ["5", "4"] and dataset.image_ids() == ["1", "2", "3", "5", "4"]
    assert dataset.image_truth("train") == {"1": (7,), "2": (7,), "3": (8,)}
    assert dataset.missing_images() == [] and dataset.image_path("3").name == "3.png"
    assert dataset.concepts.father("red dress") == "dress" and dataset.kb_concepts.phrases == ["dress"]
    assert dataset.group("4") == "coats" and dataset.group("1") is None
    assert dataset.vocabulary_texts() == ["a red dress", "blue jeans"]
    report = check_tree(root, progress=False)
    assert report.ok and not report.warnings and report.kind == "fashion_gen" and report.images_checked == 5


def test_the_truth_of_pictures_follows_from_the_texts(tree):
    (tree / "val/x_val_images.jsonl").unlink()
    assert FashionGen(tree).image_truth("val") == {"4": (20,), "5": (20, 21)}


def test_single_files_and_groups(tree, tmp_path):
    (tmp_path / "styles.csv").write_text("id,articleType,subCategory\n4,Coat,Topwear\n1,Dress,Dress\n")
    dataset = FashionGen(
        val=tree / "val/x_val_queries.jsonl",
        concepts=tree / "train/x_concepts_queries.jsonl",
        images=[tree / "images"],
        groups=tmp_path / "styles.csv",
    )
    assert dataset.splits() == ["val"] and len(dataset.concepts) == 3 and dataset.concepts.father("red dress") == ""
    assert dataset.group("4") == "Topwear" and dataset.group("5") == "coats"
    assert dataset.image_truth("val") == {"4": (20,), "5": (20, 21)} and dataset.missing_images() == []
    with pytest.raises(UsageError, match="no such file"):
        FashionGen(tree, val=tree / "nothing.jsonl")
    with pytest.raises(UsageError, match="found neither"):
        FashionGen()
    with pytest.raises(UsageError, match="no split 'test'"):
        dataset.pairs("test")


BAD = [
    "no json",
    "[1, 2]",
    {"query_id": "9", "query_text": "x", "item_ids": ["1"], "phrases": [], "match_phrases": []},
    {"query_id": 10, "item_ids": ["1"], "phrases": [], "match_phrases": []},
    {"query_id": 11, "query_text": "x", "item_ids": ["../1"], "phrases": [], "match_phrases": []},
    {"query_id": 12, "query_text": "x", "item_ids": [1.5], "phrases": [], "match_phrases": []},
    {"query_id": 13, "query_text": "x", "item_ids": [], "phrases": [], "match_phrases": []},
    {"query_id": 14, "query_text": "x", "item_ids": ["1"], "phrases": [3], "match_phrases": []},
    {"query_id": 15, "query_text": "x", "item_ids": ["1"]},
    {"query_id": 16, "query_text": "  ", "item_ids": ["1"], "phrases": [], "match_phrases": []},
]


def test_bad_lines_are_listed_together_or_left_out(tree):
    path = tree / "train/x_train_queries_phrases.jsonl"
    write(path, [TRAIN[0], *BAD, TRAIN[1]])
    with pytest.raises(DataError) as error:
        FashionGen(tree).pairs("train")
    message = str(error.value)
    assert "10 bad lines" in message and "Write it without quotes: 9" in message
    assert all(f"line {number}:" in message for number in range(2, 12)), message
    dataset = FashionGen(tree, skip_bad_lines=True)
    assert [p.image_id for p in dataset.pairs("train")] == ["1", "2", "3"]
    assert len(dataset.report()) == 1 and "train: left out 10 bad lines" in dataset.report()[0]
    assert dataset.data_hash("train") != FashionGen(tree).data_hash("train")
    report = check_tree(tree, progress=False)
    assert not report.ok and len(report.errors) == 10


def test_truths_that_disagree_and_unknown_texts(tree):
    write(tree / "val/x_val_images.jsonl", [{"image_id": "5", "item_ids": [20]}, {"image_id": "4", "item_ids": [20]}])
    report = check_tree(tree, progress=False)
    assert report.ok and "truths differ" in {problem.kind for problem in report.warnings}
    write(tree / "val/x_val_images.jsonl", [{"image_id": "5", "item_ids": [20, 99]}, {"image_id": "5", "item_ids": ["20"]}, {}])
    with pytest.raises(DataError, match="3 bad lines"):
        FashionGen(tree).image_truth("val")


def test_other_trees_and_doubtful_ones(tree, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="Looked for: .*_train_queries_phrases.jsonl.*CSV"):
        open_image_text(empty)
    with pytest.raises(DataError, match="Did you mean .*tree"):
        open_image_text(tmp_path)
    write(tree / "val/y_val_queries.jsonl", VAL)
    with pytest.raises(DataError, match="several files end in _val_queries.jsonl"):
        FashionGen(tree)


def test_missing_pictures(tree, tmp_path):
    (tree / "images/2.png").unlink()
    (tree / "images/4.png").write_bytes(b"<html>")
    dataset = FashionGen(tree)
    assert dataset.missing_images("train") == ["2"]
    with pytest.raises(DataError, match="no picture for the id '2'"):
        dataset.image_bytes("2")
    with pytest.raises(DataError):
        dataset.image_path("../x")
    kinds = {problem.kind for problem in check_tree(tree, progress=False).errors}
    assert kinds == {"missing image", "unreadable image"}
    reduced = dataset.without_images(["2", "5"])
    assert [p.image_id for p in reduced.pairs("train")] == ["1", "3"] and [q.query_id for q in reduced.queries("val")] == [20]
    assert reduced.image_truth("val") == {"4": (20,)} and reduced.data_hash() != dataset.data_hash()
    assert reduced.report() == ["left out pictures: train: 1, val: 1"] and len(dataset.pairs("train")) == 3
    with pytest.raises(DataError, match="is empty"):
        dataset.without_images(["1", "2", "3"]).pairs("train")
    with pytest.raises(DataError, match="--images"):
        FashionGen(write_tree(tmp_path / "bare", pictures=False)).image_path("1")


def normalised(pixels):
    return ((pixels / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)).transpose(2, 0, 1)


def test_arrays_give_the_pixels_back(tree):
    pixels = {str(n): np.random.default_rng(n).integers(0, 256, (6, 5, 3), dtype=np.uint8) for n in range(1, 6)}
    arrays = {"1": normalised(pixels["1"]).astype(np.float32), "2": normalised(pixels["2"]).astype(np.float16), "3": pixels["3"]}
    np.savez(tree / "train/train.5.npz", **arrays)
    np.savez_compressed(tree / "val/val.5.npz", **{n: pixels[n] for n in "345"})
    for picture in tree.rglob("*.png"):
        picture.unlink()
    dataset = FashionGen(tree)
    assert dataset.missing_images() == []
    for image_id, expected in pixels.items():
        np.testing.assert_array_equal(dataset.image_array(image_id), expected)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(dataset.image_bytes(image_id)))), expected)
    with pytest.raises(DataError, match="is an array, not a file"):
        dataset.image_path("1")
    report = check_tree(tree, progress=False)
    assert report.ok and report.images_checked == 5 and all(row["missing"] == 0 for row in report.counts)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((3, 4, 4), np.nan, np.float32), "not finite"),
        (np.full((3, 4, 4), 200, np.float32), "normalised with CLIP"),
        (np.zeros((4, 4), np.float32), "expected uint8"),
        (np.zeros((4, 4, 3), np.float32), "expected uint8"),
        (np.zeros((3, 4, 4), np.int64), "expected uint8"),
        (np.zeros((3, 0, 4), np.float32), "pixels"),
        (np.array([{"a": 1}], dtype=object), "pickled"),
    ],
)
def test_bad_arrays(tmp_path, array, message):
    np.savez(tmp_path / "a.npz", **{"1": array})
    with pytest.raises(DataError, match=message) as error:
        PictureStore([tmp_path / "a.npz"]).array("1")
    assert "a.npz" in str(error.value) and "'1'" in str(error.value)


def test_damaged_archives(tmp_path):
    np.savez(tmp_path / "a.npz", **{"1": np.zeros((20, 20, 3), np.uint8)})
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[400] ^= 255
    (tmp_path / "b.npz").write_bytes(data)
    with pytest.raises(DataError, match=r"b.npz, array '1': damaged"):
        PictureStore([tmp_path / "b.npz"]).array("1")
    (tmp_path / "c.npz").write_bytes(data[:300])
    with pytest.raises(DataError, match="not a readable .npz"):
        PictureStore([tmp_path / "c.npz"])
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("1.npy", b"\x93NUMPY")
    with pytest.raises(DataError, match="damaged"):
        PictureStore([tmp_path / "d.npz"]).array("1")
    np.savez(tmp_path / "e.npz", **{"1": np.ones((20, 20, 3), np.uint8)})
    with pytest.raises(DataError, match="different pictures under the same id '1'"):
        PictureStore([tmp_path / "a.npz", tmp_path / "e.npz"])
    with pytest.raises(UsageError, match="nothing there"):
        PictureStore([tmp_path / "f.npz"])


def test_a_shops_catalogue(tmp_path):
    rows = [f"{n},red shirt {n // 2},{'Topwear' if n < 3 else 'Shoes'}" for n in range(60)] + ["99,,Shoes"]
    (tmp_path / "shop.csv").write_text("id,description,subCategory\n" + "\n".join(rows) + "\n")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images/3.jpg")
    dataset = open_image_text(tmp_path)
    assert isinstance(dataset, TextCatalogue) and dataset.splits() == ["train", "val"]
    train, val = dataset.queries("train"), dataset.queries("val")
    assert len(train) + len(val) == 30 and all(len(query.item_ids) == 2 for query in train + val)
    assert not {q.query_id for q in train} & {q.query_id for q in val}
    assert dataset.group("2") == "Topwear" and dataset.image_path("3").name == "3.jpg" and len(dataset.missing_images()) == 59
    assert open_image_text(tmp_path, val_share=0).splits() == ["train"]
    assert dataset.data_hash() != open_image_text(tmp_path, val_share=0).data_hash()
    with pytest.raises(UsageError, match="no column 'words'"):
        open_image_text(tmp_path, text_column="words")
    (tmp_path / "shop.csv").write_text("id,description,split\n1,a dress,train\n2,a coat,test\n")
    assert open_image_text(tmp_path).splits() == ["train", "test"]


@pytest.fixture(scope="module")
def wardrobe(tmp_path_factory):
    return draw_wardrobe(tmp_path_factory.mktemp("wardrobe") / "w", 96, size=32, layout="fashion_gen", progress=False, workers=1)


def test_the_drawn_wardrobe(wardrobe, tmp_path):
    assert check_tree(wardrobe, progress=False).ok
    dataset = FashionGen(wardrobe)
    assert (len(dataset.queries("train")), len(dataset.queries("val"))) == (80, 16)
    phrases = {phrase for pair in dataset.pairs("train") for phrase in pair.phrases}
    assert phrases == set(dataset.concepts.phrases)
    roots = {phrase for phrase in phrases if not dataset.concepts.father(phrase)}
    assert {"clothing", "shoes"} <= roots
    for phrase in phrases:
        father = dataset.concepts.father(phrase)
        assert not father or (father in dataset.concepts and len(father.split()) <= len(phrase.split()) + 1)
    for pair in dataset.pairs("train"):
        assert set(pair.match_phrases) == {phrase for phrase in pair.phrases if phrase in dataset.kb_concepts}
    for number, query in enumerate(dataset.queries("val")):
        own = dataset.image_ids("val")[number]
        assert own in query.item_ids and query.query_id in dataset.image_truth("val")[own]
    texts = [query.text for query in dataset.queries("train")]
    assert len(set(texts)) > 75 and not any("{" in text or "  " in text for text in texts)
    again = draw_wardrobe(tmp_path / "w", 96, size=32, layout="fashion_gen", progress=False, workers=1)
    assert FashionGen(again).data_hash() == dataset.data_hash()
    with pytest.raises(UsageError, match="train and val"):
        draw_wardrobe(tmp_path / "v", 96, layout="fashion_gen", splits=["train"])


def test_products():
    folder = shared("data/products/fashion_gen")
    dataset = open_image_text(folder, images=shared("data/products/images"), groups=shared("data/products/styles.csv"))
    assert (len(dataset.pairs("train")), len(dataset.queries("val")), len(dataset.image_truth("val"))) == (4800, 1200, 1200)
    assert len(dataset.concepts) == 2324 and len(dataset.kb_concepts) == 799 and dataset.group("10000") == "Bottomwear"
    arrays = FashionGen(folder / "npz_subset")
    image_id = arrays.image_ids("train")[0]
    with Image.open(dataset.image_path(image_id)) as picture:
        np.testing.assert_array_equal(arrays.image_array(image_id), np.asarray(picture.convert("RGB")))
