"""Catalogues of one's own: CSV files as shops write them, folders, and triplets."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.shared import shared
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets import Catalogue, ComposedCatalogue, check_tree, open_composed, open_dataset
from tf_fashion.datasets.catalogue import id_from_path
from tf_fashion.testing.datasets import run_dataset_test


def picture(path, colour=(200, 10, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 16), colour).save(path)


@pytest.fixture
def shop(tmp_path):
    root = tmp_path / "shop"
    for index, name in enumerate(["1", "2", "3", "4"]):
        picture(root / f"images/{name}.jpg", (index * 50, 0, 0))
    (root / "items.csv").write_text("id,colour,description,split\n1,red,long dress,train\n2,blue,,train\n3,red,x,train\n4,,y,val\n")
    return root


def test_ids_name_the_pictures(shop):
    catalogue = open_dataset("catalogue", shop)
    assert catalogue.attribute_names == ["colour", "description", "split"]
    assert [item.id for item in catalogue.items] == ["1", "2", "3", "4"]
    assert catalogue["1"].attributes == {"colour": "red", "description": "long dress", "split": "train"}
    assert (catalogue["1"].text, catalogue["2"].text, catalogue["4"].split) == ("long dress", "", "val")
    assert catalogue.image_path("2") == shop / "images/2.jpg"
    assert catalogue.splits() == ["train", "val"] and catalogue.image_ids(["val"]) == ["4"]
    assert len(catalogue) == 4 and catalogue.missing_images() == []
    with pytest.raises(UsageError, match="no item '9'"):
        catalogue.image_path("9")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_separators_and_encodings(shop, separator, encoding):
    rows = [["image", "farbe", "text"], ["images\\1.jpg", "grün", f'"a{separator}b\u2028c"'], ["images/2.jpg", "blau", '""']]
    (shop / "items.csv").write_text("\r\n".join(separator.join(row) for row in rows) + "\r\n\r\n", encoding=encoding)
    catalogue = Catalogue(shop)
    assert catalogue["images__1"].attributes == {"farbe": "grün", "text": f"a{separator}b\u2028c"}
    assert catalogue.image_path("images__1").is_file()


@pytest.mark.parametrize(
    "content, message",
    [
        (b"id,colour\n1,red\n1,blue\n", r"line 3: the id '1' occurs a second time \(first in line 2\)"),
        (b"id,image\n1,../../etc/passwd\n", "line 2: the path '../../etc/passwd' leads outside"),
        (b"id,image\n1,/etc/passwd\n", "leads outside"),
        (b"id,image\n1,C:\\x.jpg\n", "leads outside"),
        (b"id,image\n1,\n", "the column 'image' is empty"),
        (b"../1,colour\n", "expected a column 'id' or 'image', found ../1, colour"),
        (b"id\n../1\n", "'../1' is not usable as a file name"),
        (b"colour,size\nred,1\n", "expected a column 'id' or 'image', found colour, size"),
        (b"id,colour\n1,red,long\n", "line 2: expected 2 values as in the header, found 3"),
        (b"id,colour\n1\n", "found 1"),
        (b"id,id\n1,2\n", "names 'id' more than once"),
        (b"id,colour\n1,gr\xfcn\n", "line 2: expected UTF-8, found the byte 0xfc"),
        ("id,colour\n1,x\n".encode("utf-16"), "found UTF-16"),
        (b"id\n1\0\n", "binary file"),
        (b'id,colour\n1,"red\n', "not valid CSV"),
        (b"", "empty file"),
        (b"id,colour\n", "the catalogue is empty: no rows"),
    ],
)
def test_broken_files_are_explained(shop, content, message):
    (shop / "items.csv").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        Catalogue(shop)
    assert "items.csv" in str(error.value)
    report = check_tree(shop, kind="catalogue", progress=False)
    assert not report.ok


def test_columns_may_be_named(shop):
    (shop / "items.csv").write_text(",sku,Foto\n0,A1,images/1.jpg\n")
    catalogue = Catalogue(shop, image_column="Foto")
    assert catalogue["A1"].attributes == {"unnamed": "0"}
    with pytest.raises(UsageError, match="no column 'photo'. Found: unnamed, sku, Foto"):
        Catalogue(shop, image_column="photo")


def test_which_csv_must_be_clear(shop):
    (shop / "other.csv").write_text("id\n1\n")
    with pytest.raises(UsageError, match=r"several CSV files \(items.csv, other.csv\)"):
        Catalogue(shop)
    assert len(Catalogue(shop, csv=shop / "other.csv")) == 1
    with pytest.raises(UsageError, match="no such file"):
        Catalogue(shop, csv=shop / "absent.csv")


def test_missing_pictures_are_named(shop):
    (shop / "images/3.jpg").unlink()
    catalogue = Catalogue(shop)
    assert catalogue.missing_images() == ["3"]
    with pytest.raises(DataError, match="missing picture of the item '3'"):
        catalogue.image_path("3")
    report = check_tree(shop, progress=False)
    assert [p.where.endswith("items.csv, line 4") for p in report.errors] == [True]


def test_a_folder_of_pictures_is_a_catalogue(tmp_path):
    for name in ("red/a.jpg", "blue/a.png", "ü ñ.jpg", ".hidden/x.jpg", ".y.jpg"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    catalogue = open_dataset("auto", tmp_path)
    assert len(catalogue) == 3 and {"red__a", "blue__a"} < set(catalogue.image_ids())
    assert all(catalogue.image_path(id).is_file() for id in catalogue.image_ids())
    picture(tmp_path / "red__a.jpg")
    with pytest.raises(DataError, match="gives the same id 'red__a' as"):
        Catalogue(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="the catalogue is empty: no pictures"):
        Catalogue(empty)


@given(st.lists(st.text(st.characters(exclude_characters="\0/.", exclude_categories=["Cs"]), min_size=1), unique=True, max_size=9))
def test_made_ids_are_safe_and_unique(names):
    ids = [id_from_path(f"{name}.jpg") for name in names]
    assert all(1 <= len(id) <= 128 and id.isascii() and "/" not in id for id in ids)
    awkward = {id for id, name in zip(ids, names, strict=True) if not name.isascii()}
    assert len(awkward) == sum(not name.isascii() for name in names)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.text(alphabet='id,;\t"\n\r1a./\\', max_size=40).map(str.encode))
def test_whatever_the_bytes_only_our_errors_come_out(tmp_path, content):
    (tmp_path / "items.csv").write_bytes(content)
    try:
        catalogue = Catalogue(tmp_path)
    except DataError as error:
        assert "items.csv" in str(error)
    else:
        assert len(catalogue)


def test_triplets_make_a_catalogue_a_composed_dataset(shop):
    (shop / "triplets.csv").write_text(
        "reference,target,caption,caption_2,split\n1,2,is blue,,train\n2,3,is red,shorter,train\n3,1,long,,train\n"
    )
    data = open_composed(shop)
    assert isinstance(data, ComposedCatalogue)
    run_dataset_test(data, {("all", "train"): (3, 3)})
    assert data.get("all", "train").triplets[1].captions == ("is red", "shorter")
    assert check_tree(shop, progress=False).ok


@pytest.mark.parametrize(
    "row, message",
    [
        ("9,2,x,,train", "line 2: the reference '9' is no item"),
        ("1,9,x,,train", "the target '9' is no item"),
        ("1,1,x,,train", "the same picture '1'"),
        ("1,2, ,,train", "the caption is empty"),
        ("1,,x,,val", "no target; only the split"),
        ("1,4,x,,train", r"the target '4' \(triplet 1\) is no item of 'all' and 'train'"),
        ("1,2,x", "expected 5 values"),
    ],
)
def test_bad_triplets_are_named(shop, row, message):
    (shop / "triplets.csv").write_text(f"reference,target,caption,caption_2,split\n{row}\n")
    with pytest.raises(DataError, match=message):
        open_composed(shop).get("all", "train")
    report = check_tree(shop, progress=False)
    assert report.kind == "composed_catalogue" and not report.ok


def test_triplets_need_their_columns_and_a_dataset_that_has_them(shop):
    with pytest.raises(UsageError, match="has no triplets .*Known with triplets: composed_catalogue, fashion200k, fashion_iq, shoes"):
        open_composed(shop, name="catalogue")
    with pytest.raises(DataError, match="no dataset recognised"):
        open_composed(shop)
    (shop / "triplets.csv").write_text("reference,words\n1,x\n")
    with pytest.raises(DataError, match="no target and no caption; found reference, words"):
        open_composed(shop)


def test_a_real_catalogue():
    catalogue = open_dataset("auto", shared("data/products"))
    assert len(catalogue) == 6000 and catalogue.splits() == ["train", "val"]
    assert catalogue.missing_images() == []
    assert catalogue["10000"].attributes["baseColour"] == "White"
