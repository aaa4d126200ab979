"""`check_tree` finds everything that is wrong at once, and names it."""

import csv
import io
import json
import os
import struct
import zlib

import pytest
from PIL import Image

from tests.datasets.test_fashion_iq import pair, write_tree
from tests.shared import shared
from tf_fashion.core.errors import UsageError
from tf_fashion.datasets import check_tree
from tf_fashion.datasets.check import picture_header, picture_problem


@pytest.fixture
def tree(tmp_path):
    ids = [f"i{number}" for number in range(12)]
    train = [pair(ids[k], ids[k + 1]) for k in range(5)]
    val = [pair(ids[k], ids[k + 1]) for k in range(6, 11)]
    return write_tree(tmp_path / "tree", {("hat", "train"): train, ("hat", "val"): val})


def encoded(kind, size=(40, 30), **options):
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, kind, **options)
    return file.getvalue()


def bomb(side):
    """A small PNG file that decodes to `side` x `side` pixels (one bit each)."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    body = zlib.compress(bytes(side * (side // 8 + 1)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def what(report):
    return {(problem.kind, problem.where.rsplit("/", 1)[-1]): problem.what for problem in report.problems}


def test_a_good_tree_is_good(tree):
    report = check_tree(tree, progress=False)
    assert report.ok and not report.problems, report.format()
    assert report.counts == [
        {"category": "hat", "split": "train", "pairs": 5, "gallery": 6, "references": 5, "missing": 0, "unreadable": 0},
        {"category": "hat", "split": "val", "pairs": 5, "gallery": 6, "references": 5, "missing": 0, "unreadable": 0},
    ]
    assert "No errors; 12 pictures" in report.format()
    assert json.loads(json.dumps(report.to_json()))["ok"] is True


def test_everything_wrong_is_listed_at_once(tree):
    images = tree / "images"
    (images / "i0.jpg").write_bytes(encoded("JPEG", (300, 200))[:-900])
    (images / "i1.jpg").write_text("\n<!DOCTYPE html><html>404</html>")
    (images / "i2.jpg").write_bytes(bomb(22000))
    (images / "i3.jpg").write_bytes(b"")
    (images / "i4.jpg").unlink()
    captions = tree / "captions/cap.hat.val.json"
    entries = json.loads(captions.read_text())
    entries[0]["captions"] = "is red"
    entries[1]["candidate"] = "../i1"
    entries[2]["target"] = "nowhere"
    captions.write_text(json.dumps(entries))
    (tree / "captions/cap.shoe.val.json").write_text("[]")
    (tree / "image_splits/split.shoe.val.json").write_text("[]")
    (tree / "captions/cap.bag.json").write_text("[]")
    report = check_tree(tree, progress=False)
    assert not report.ok
    found = what(report)
    assert "cannot be decoded" in found["unreadable image", "i0.jpg"]
    assert "HTML page" in found["unreadable image", "i1.jpg"]
    assert "22000 x 22000 pixels; at most 50 million" in found["unreadable image", "i2.jpg"]
    assert "empty file" in found["unreadable image", "i3.jpg"]
    assert "used by hat train" in found["missing image", "i4.jpg"]
    assert "one string" in found["bad caption", "cap.hat.val.json, row 1 of 5"]
    assert "../i1" in next(text for (kind, _), text in found.items() if kind == "bad id")
    assert "not in the gallery" in found["target not in gallery", "cap.hat.val.json, row 3 of 5"]
    assert "category 'shoe' is empty" in found["empty category", "cap.shoe.val.json"]
    assert ("unknown file", "cap.bag.json") in found
    counts = {(row["category"], row["split"]): (row["missing"], row["unreadable"]) for row in report.counts}
    assert counts["hat", "train"] == (1, 4)
    text = report.format()
    assert "error: unreadable image (4)" in text and "i4.jpg: missing picture" in text


def test_long_lists_are_cut_on_screen_but_not_in_the_file(tree, tmp_path):
    for number in range(12):
        (tree / f"images/i{number}.jpg").unlink()
    report = check_tree(tree, progress=False)
    assert report.format(limit=3).count("missing picture") == 3
    assert "... and 9 more" in report.format(limit=3)
    assert report.format(limit=None).count("missing picture") == 12
    report.write(tmp_path / "problems.csv")
    with open(tmp_path / "problems.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 12


def test_one_missing_folder_is_one_problem(tree, tmp_path):
    os.rename(tree / "images", tmp_path / "photos")
    report = check_tree(tree, progress=False)
    assert [problem.kind for problem in report.problems] == ["missing file"]
    assert "--images" in report.format() and "  -" in report.format()
    assert check_tree(tree, tmp_path / "photos", progress=False).ok
    with pytest.raises(UsageError, match="folder of the pictures"):
        check_tree(tree, tmp_path / "absent", progress=False)


def test_overlaps_and_copies_are_warnings(tree):
    (tree / "images/i7.jpg").write_bytes((tree / "images/i0.jpg").read_bytes())
    captions = tree / "image_splits/split.hat.val.json"
    captions.write_text(json.dumps(json.loads(captions.read_text()) + ["i1"]))
    report = check_tree(tree, progress=False)
    assert report.ok
    texts = [str(problem) for problem in report.warnings]
    assert any("splits train and val: 1 pictures occur in both (i1)" in text for text in texts)
    assert any("byte-identical" in text and "i0 = i7; 1 of the groups span several splits" in text for text in texts)


def test_addresses_of_missing_pictures_are_told(tree):
    (tree / "asin2url.hat.txt").write_text("i3\thttp://example.org/3.jpg\n")
    (tree / "images/i3.jpg").unlink()
    assert "http://example.org/3.jpg" in check_tree(tree, progress=False).format()


def test_trees_that_are_none(tmp_path):
    report = check_tree(tmp_path, progress=False)
    assert not report.ok and "Looked for" in report.format() and "image_splits" in report.format()
    (tmp_path / "captions").mkdir()
    report = check_tree(tmp_path, progress=False)
    assert report.kind == "fashion_iq" and "no category" in report.format()
    with pytest.raises(UsageError, match="found nothing there"):
        check_tree(tmp_path / "absent", progress=False)
    with pytest.raises(UsageError, match="Unknown dataset"):
        check_tree(tmp_path, kind="what", progress=False)


@pytest.mark.parametrize(
    "kind, options",
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0"}),
        ("GIF", {}),
        ("BMP", {}),
    ],
)
def test_headers_tell_format_and_size(tmp_path, kind, options):
    data = encoded(kind, (41, 30), **options)
    assert picture_header(data) == (kind, 41, 30)
    path = tmp_path / "x.jpg"
    path.write_bytes(data)
    assert picture_problem(path)[0] is None
    path.write_bytes(data[: len(data) // 2])
    assert picture_problem(path)[0] is not None
    for cut in (3, 9, 14, 20, 25):
        path.write_bytes(data[:cut])
        assert picture_problem(path)[0] is not None
        assert cut > 20 or picture_problem(path, decode=False)[0] is not None


def test_headers_alone_miss_truncation_but_not_bombs(tmp_path):
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded("JPEG", (300, 200))[:-900])
    assert picture_problem(path, decode=False)[0] is None
    path.write_bytes(bomb(8000))
    assert "8000 x 8000" in picture_problem(path, decode=False)[0]
    path.write_bytes(encoded("BMP", (3000, 2400)))
    assert "21.6 MB; at most 20 MB" in picture_problem(path)[0]
    assert "special file" in picture_problem(tmp_path)[0]
    path.write_bytes(encoded("TIFF"))
    assert "TIFF" in picture_problem(path)[0]


def test_cmyk_and_grey_pictures_are_fine(tmp_path):
    for mode in ("CMYK", "L"):
        Image.new(mode, (20, 20)).save(tmp_path / "x.jpg")
        assert picture_problem(tmp_path / "x.jpg")[0] is None


def test_a_real_tree_is_good():
    report = check_tree(shared("data/clothing"), progress=False)
    assert report.ok and report.images_checked == 1921, report.format()
