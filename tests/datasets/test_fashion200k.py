"""Fashion200k's layout: label files, drawn triplets, queries, and how it refuses what is wrong."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.shared import shared
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets import Fashion200k, check_tree, open_composed
from tf_fashion.datasets.captions import differing_words, replacement_text
from tf_fashion.datasets.fashion200k import CaptionIndex
from tf_fashion.datasets.wardrobe import draw_wardrobe
from tf_fashion.testing.datasets import run_dataset_test

TRAIN = {"dress": ["red long dress", "blue long dress", "blue short dress", "dots dot dress"], "top": ["red long top", "blue top."]}
TEST = {"dress": ["red long dress", "red long dress", "green long dress"]}


def write_tree(root, train=TRAIN, test=TEST, queries=((0, 2), (2, 0), (1, 2)), pictures=True):
    (root / "labels").mkdir(parents=True)
    paths = {}
    for split, captions in (("train", train), ("test", test)):
        for category, texts in captions.items():
            lines = []
            for number, text in enumerate(texts):
                path = f"women/{category}/{split}{category}{number}/{split}{category}{number}_0.jpeg"
                paths.setdefault(split, []).append(path)
                lines.append(f"{path}\t0.5\t{text}\n")
                if pictures:
                    (root / path).parent.mkdir(parents=True, exist_ok=True)
                    Image.new("RGB", (8, 8), (9 * number, len(category) * 20, len(split) * 20)).save(root / path, "JPEG")
            (root / "labels" / f"{category}_{split}_detect_all.txt").write_text("".join(lines))
    (root / "test_queries.txt").write_text("".join(f"{paths['test'][s]} {paths['test'][t]}\n" for s, t in queries))
    return root


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "tree")


def test_the_contract_and_the_queries(tree):
    dataset = open_composed(tree)
    assert isinstance(dataset, Fashion200k) and dataset.sampled and dataset.default_protocol == "fashion200k"
    run_dataset_test(dataset)
    part = dataset.get("all", "test")
    assert [t.captions[0] for t in part.triplets] == ["replace red with green", "replace green with red", "replace red with green"]
    assert part.labels["testdress0_0"] == part.labels["testdress1_0"] == "red long dress"
    assert dataset.get("all", "train").labels["traintop1_0"] == "blue topdotmark"
    assert check_tree(tree, progress=False).ok


def test_parents_by_letters_and_by_words():
    letters, words = (CaptionIndex(["dots dot dress", "s s dress", "red dress"], word_level=level) for level in (False, True))
    assert "s  dress" not in letters.children and letters.children["s dress"] == ["dots dot dress"]
    assert words.children["dots dress"] == ["dots dot dress"]


WORDS = st.sampled_from(["red", "blue", "long", "short", "dress", "top"])
CAPTIONS = st.lists(st.lists(WORDS, min_size=1, max_size=4), min_size=2, max_size=12)


@settings(max_examples=60, deadline=None)
@given(CAPTIONS, st.integers(0, 5), st.booleans())
def test_an_epoch_asks_for_one_replacement_each(captions, seed, word_level):
    texts = [" ".join(words) for words in captions]
    index = CaptionIndex(texts, word_level)
    pairs = index.epoch(random.Random(seed))
    assert pairs == index.epoch(random.Random(seed))
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)
    for source, target in pairs:
        assert set(texts[source].split()) != set(texts[target].split())
        first, second = differing_words(texts[source], texts[target])
        assert first in texts[source].split() and second in texts[target].split()
        common = set(index.parents[source]) & set(index.parents[target])
        assert any(texts[target] in index.children[parent] for parent in common)
    # Every picture whose caption has a neighbour is asked about, unless its pair was dropped.
    assert {source for source, _ in pairs} <= set(index.modifiable)


def test_epochs_are_drawn_anew_and_repeatably(tree):
    dataset = Fashion200k(tree)
    first, second = dataset.sample_triplets(3, 0), dataset.sample_triplets(3, 1)
    assert first == Fashion200k(tree).sample_triplets(3, 0)
    assert any(first != dataset.sample_triplets(3, epoch) for epoch in range(1, 6)) and second
    ids = set(dataset.image_ids(["train"]))
    assert all({t.reference, t.target} <= ids for t in first)
    reduced = dataset.without_images([first[0].target])
    assert all(first[0].target not in (t.reference, t.target) for t in reduced.sample_triplets(3, 0))
    assert reduced.sampled and reduced.default_protocol == "fashion200k"


@pytest.mark.parametrize(
    ("file", "line", "kind", "said"),
    [
        ("labels/dress_train_detect_all.txt", "one field only", "bad row", "found 1 field"),
        ("labels/dress_train_detect_all.txt", "../../etc/passwd\t1\tred dress", "bad id", "inside the folder"),
        ("labels/dress_train_detect_all.txt", "/etc/x.jpeg\t1\tred dress", "bad id", "inside the folder"),
        ("labels/dress_train_detect_all.txt", "women/x.jpeg\t1\t  ", "empty captions", "empty caption"),
        ("test_queries.txt", "women/a.jpeg", "bad row", "expected two paths"),
        ("test_queries.txt", "women/a.jpeg women/b.jpeg", "unknown id", "in no label file"),
    ],
)
def test_broken_lines_are_named(tree, file, line, kind, said):
    path = tree / file
    number = path.read_text().count("\n") + 1
    path.write_text(path.read_text() + line + "\n")
    report = check_tree(tree, progress=False)
    assert not report.ok and [p.kind for p in report.errors] == [kind]
    assert f"line {number}" in report.errors[0].where and said in report.errors[0].what
    with pytest.raises(DataError, match=f"line {number}"):
        dataset = Fashion200k(tree)
        dataset.get("all", "train"), dataset.get("all", "test")


def test_missing_pictures_and_other_places(tree, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for picture in list(tree.rglob("*.jpeg")):
        # One picture per product, named after it.
        picture.rename(flat / f"{picture.parent.name}.jpg")
    assert len(Fashion200k(tree).missing_images()) == 9
    moved = Fashion200k(tree, flat)
    assert moved.missing_images() == [] and moved.image_path("testdress0_0").name == "testdress0.jpg"
    (flat / "testdress0.jpg").unlink()
    assert moved.missing_images() == ["testdress0_0"]
    report = check_tree(tree, flat, progress=False)
    assert [p.kind for p in report.errors] == ["missing image"] and "testdress0_0.jpeg" in report.errors[0].where


def test_pictures_of_one_name_stay_apart(tmp_path):
    root = write_tree(tmp_path / "tree")
    path = root / "labels/top_train_detect_all.txt"
    path.write_text(path.read_text() + "women/other/traintop0_0.jpeg\t1\tgreen long top\n")
    labels = Fashion200k(root).labels("train")
    assert labels.by_path["women/other/traintop0_0.jpeg"] == "traintop0_0.2"


def test_what_cannot_be_opened(tmp_path, tree):
    with pytest.raises(UsageError, match="used as a whole"):
        Fashion200k(tree, categories=["dress"])
    with pytest.raises(DataError, match="expected labels/"):
        Fashion200k(tmp_path)
    lonely = write_tree(tmp_path / "lonely", {"dress": ["red dress", "something else entirely"]})
    with pytest.raises(DataError, match="nothing to train on"):
        Fashion200k(lonely).get("all", "train")


def test_the_drawn_wardrobe_in_this_layout(tmp_path):
    root = draw_wardrobe(tmp_path / "w", items=160, size=32, progress=False, workers=1, layout="fashion200k")
    dataset = open_composed(root)
    run_dataset_test(dataset)
    assert check_tree(root, progress=False).ok
    part = dataset.get("all", "test")
    for triplet in part.triplets:
        first, second = (part.labels[i].split() for i in (triplet.reference, triplet.target))
        assert len(first) == len(second) == 4 and sum(a != b for a, b in zip(first, second, strict=True)) == 1
        assert triplet.captions[0] == replacement_text(" ".join(first), " ".join(second))
    with pytest.raises(UsageError, match="layout 'fashion200k', asked for|other arguments"):
        draw_wardrobe(root, items=160, size=32, progress=False, layout="shoes")


def test_real_photos_in_this_layout():
    products = shared("data/products")
    dataset = Fashion200k(products / "fashion200k", products / "images")
    assert dataset.missing_images() == [] and len(dataset.get("all", "test").triplets) == 2338
    assert len(dataset.get("all", "test").gallery) == 1200
