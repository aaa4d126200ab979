"""The intermediate files of the released VAL."""

import numpy as np
import pytest

from tests.datasets.test_fashion200k import write_tree as write_fashion200k
from tests.datasets.test_fashion_iq import pair, write_tree
from tests.datasets.test_shoes import write_tree as write_shoes
from tf_fashion.cli import main
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets import ComposedCatalogue, FashionIQ, open_composed
from tf_fashion.datasets.val_files import ground_truth, parse_line, prepare


@pytest.fixture
def tree(tmp_path):
    pairs = {
        ("dress", "train"): [pair("a", "b"), pair("b", "c", ["", " with a blank "])],
        ("dress", "val"): [pair("d", "e", ["one; two", "three"])],
    }
    return write_tree(tmp_path / "tree", pairs)


def test_lines_matrices_and_counts(tree, tmp_path):
    (tree / "images/a.jpg").unlink()
    out = tmp_path / "out"
    report = prepare(FashionIQ(tree), out)
    lines = (out / "fashion_iq/captions_pairs/fashion_iq-train-cap-dress.txt").read_text()
    assert lines == "dress/b.jpg;dress/c.jpg;with a blank \n"
    assert "1 lines (2 left out for want of a picture, 1 left out as their text is empty)" in report[0]
    assert parse_line("x;y;one; two \n") == ("x", "y", "one")
    truth = np.load(out / "groundtruth/fashion_iq_modif_pairs_dress.npy")
    assert truth.tolist() == [[False, True], [False, True]]
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    prepare(FashionIQ(tree), out)
    assert before == {path: path.read_bytes() for path in out.rglob("*.*")}


def test_ground_truth_by_value():
    assert ground_truth(["b", "a"], ["a", "b", "b"]).astype(int).tolist() == [[0, 1, 1], [1, 0, 0]]


def test_other_datasets_and_the_command(tmp_path, capsys):
    shoes, fashion200k = write_shoes(tmp_path / "shoes"), write_fashion200k(tmp_path / "f200k")
    assert main(["data", "prepare", str(shoes), "--out", str(tmp_path / "out")]) == 0
    assert main(["data", "prepare", str(fashion200k), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "shoes/shoes-cap-train.txt: 9 lines" in printed and "3 queries, 3 pictures" in printed
    truth = np.load(tmp_path / "out/groundtruth/fashion200k_modif_pairs.npy")
    assert truth.sum(axis=1).tolist() == [1, 2, 1]


def test_refusals(tree, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="--images DIR"):
        prepare(open_composed(tree, tmp_path / "empty"), tmp_path / "out")
    with pytest.raises(UsageError, match="fashion_iq, shoes or fashion200k"):
        prepare(ComposedCatalogue.__new__(ComposedCatalogue), tmp_path / "out")
