"""Pictures with labels: iMaterialist's format, catalogues with label columns, and how both refuse what is wrong."""

import json
import re
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.shared import shared
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets import AttributeCatalogue, Imaterialist, LabelMap, check_tree, open_attributes
from tf_fashion.datasets.imaterialist import read_split
from tf_fashion.datasets.wardrobe import draw_wardrobe
from tf_fashion.testing.datasets import run_attribute_dataset_test

MAP = "labelId,taskId,labelName,taskName\n1,2,Black,color\n2,1,Dress,category\n4,1,Jeans,category\n9,2,Red,color\n"


def entries(**labels):
    """The content of a JSON file."""
    return {
        "images": [{"imageId": id, "url": f"http://host/{id}"} for id in labels],
        "annotations": [{"labelId": ids, "imageId": id} for id, ids in labels.items()],
    }


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)).save(path)


def write_tree(root, place="images", label_map=MAP, **splits):
    """A tree in iMaterialist's format; `place` of the pictures may hold {split}, or be None."""
    splits = splits or {
        "train": entries(a=["2", "1"], b=["4", "1", "9"], c=["9"]),
        "validation": entries(d=["2"], e=["4", "9"]),
        "test": {"images": [{"imageId": "f", "url": "http://host/f"}]},
    }
    root.mkdir(exist_ok=True)
    if label_map:
        (root / "label_map.csv").write_text(label_map)
    for name, content in splits.items():
        (root / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
        for image in content["images"] if place is not None else []:
            image_id = image["imageId"]
            picture(root / place.format(split=name) / f"{image_id}.png", zlib.crc32(f"{name} {image_id}".encode()))
    return root


@pytest.mark.parametrize("place", ["images", "{split}", ""])
def test_the_format(tmp_path, place):
    root = write_tree(tmp_path / "tree", place)
    dataset = open_attributes(root)
    run_attribute_dataset_test(dataset, {"train": (3, 6), "val": (2, 3), "test": (1, 0)})
    assert isinstance(dataset, Imaterialist) and dataset.splits() == ["train", "val", "test"] and dataset.default_split == "val"
    ids, targets = dataset.targets("train")
    assert ids == ["a", "b", "c"] and targets.tolist() == [[1, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 1]]
    assert dataset.targets("train", unknown=True)[1].tolist() == [[1, 1, 0, 0], [1, 0, 1, 1], [0, -1, -1, 1]]
    assert dataset.exclusive_groups() == ("category",) and dataset.exclusive_groups("val") == ("category", "color")
    assert dataset.label_counts().tolist() == [2, 1, 1, 2]
    assert not dataset.has_labels("test") and dataset.image_ids("test") == ["f"]
    with pytest.raises(DataError, match="have no labels"):
        dataset.targets("test")
    report = check_tree(root, progress=False)
    assert report.ok and report.kind == "imaterialist" and report.images_checked == 6, report.format()


def test_both_spellings_and_the_order_of_the_annotations(tmp_path):
    tree = {
        "images": [{"image_id": 7, "url": ["http://host/7", "http://other/7"]}, {"imageId": "8", "url": "http://host/8"}],
        "annotations": [{"image_id": 8, "label_id": [9, 1]}, {"imageId": "7", "labelId": ["4"]}],
    }
    dataset = Imaterialist(write_tree(tmp_path / "tree", None, train=tree))
    assert [(r.image_id, r.label_ids, r.row) for r in dataset.records("train")] == [("8", (9, 1), 0), ("7", (4,), 1)]
    assert [tuple(image) for image in dataset.listed_images("train")] == [("7", "http://host/7", 0), ("8", "http://host/8", 1)]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_spelling_reads_the_same(tmp_path_factory, data):
    ids = data.draw(st.lists(st.integers(0, 10**6), unique=True, min_size=1, max_size=6))
    labels = [data.draw(st.lists(st.integers(1, 228), unique=True, max_size=5)) for _ in ids]
    order = data.draw(st.permutations(range(len(ids))))

    def spelled(number):
        return data.draw(st.sampled_from([number, str(number)]))

    def key(name):
        return data.draw(st.sampled_from({"image": ["imageId", "image_id"], "label": ["labelId", "label_id"]}[name]))

    content = {
        "images": [
            {key("image"): spelled(id), "url": data.draw(st.sampled_from([f"http://h/{id}", [f"http://h/{id}", "no"]]))} for id in ids
        ],
        "annotations": [{key("label"): [spelled(n) for n in labels[i]], key("image"): spelled(ids[i])} for i in order],
    }
    path = tmp_path_factory.mktemp("spelled") / "train.json"
    path.write_text(json.dumps(content))
    found = read_split(path, LabelMap.imaterialist())
    assert [(record.image_id, record.label_ids) for record in found.records] == [(str(ids[i]), tuple(labels[i])) for i in order]
    assert [(image.id, image.url) for image in found.images] == [(str(id), f"http://h/{id}") for id in ids]


@settings(max_examples=80, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["images", "annotations", "imageId", "labelId", "url", "x"]), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
def test_any_json_is_read_or_reported(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "train.json"
    path.write_text(json.dumps(content))
    problems = []
    found = read_split(path, LabelMap.imaterialist(), problems.append)
    assert found.records or any(problem.severity == "error" for problem in problems)


def test_pictures_by_the_path_of_their_url(tmp_path):
    tree = {"images": [{"imageId": "1", "url": "photos/sub/one.png"}], "annotations": [{"imageId": "1", "labelId": [1]}]}
    root = write_tree(tmp_path / "tree", None, train=tree)
    picture(tmp_path / "photos/sub/one.png")
    with pytest.raises(DataError, match="no picture for the id '1'"):
        Imaterialist(root).image_path("1")
    assert Imaterialist(root, images=tmp_path).image_path("1") == tmp_path / "photos/sub/one.png"
    problems = check_tree(root, progress=False).errors
    assert len(problems) == 1 and f"Some are in {tmp_path}: is it that?" in str(problems[0])


def test_ids_that_each_split_numbers_anew(tmp_path):
    splits = {"train": entries(**{"1": [1], "2": [4]}), "validation": entries(**{"1": [9], "2": [1, 2]})}
    dataset = Imaterialist(write_tree(tmp_path / "own", "{split}", **splits))
    run_attribute_dataset_test(dataset)
    assert dataset.image_ids() == ["train__1", "train__2", "validation__1", "validation__2"]
    assert dataset.image_path("validation__1") == tmp_path / "own/validation/1.png"
    assert check_tree(tmp_path / "own", progress=False).ok
    # In a common folder the same id is the same picture.
    common = Imaterialist(write_tree(tmp_path / "common", **splits))
    assert common.image_ids() == ["1", "2"] and "splits overlap" in {p.kind for p in check_tree(common.root, progress=False).warnings}


def test_missing_pictures(tmp_path):
    root = write_tree(tmp_path / "tree")
    (root / "images/b.png").unlink()
    assert Imaterialist(root).missing_images() == ["b"] and len(Imaterialist(root).records("train")) == 3
    dataset = Imaterialist(root, on_missing="skip")
    assert dataset.image_ids("train") == ["a", "c"] and dataset.targets("train")[1].shape == (2, 4)
    assert dataset.report() == ["train: left out 1 of 3 pictures that are missing"]
    assert dataset.data_hash() != Imaterialist(root).data_hash()
    with pytest.raises(DataError, match=r"1 of 3 pictures of 'train' are missing \(b\)"):
        Imaterialist(root, on_missing="error").records("train")
    with pytest.raises(UsageError, match="expected one of error, skip"):
        Imaterialist(root, on_missing="ignore")
    with pytest.raises(DataError, match="'val' is empty"):
        Imaterialist(root).without_images(["d", "e"]).records("val")
    assert [str(problem) for problem in check_tree(root, progress=False).errors] == [f"{root}: missing picture 'b' of 'train'."]


GOOD = entries(a=["1"])
BAD = [
    ("[]", "expected an object"),
    ('"x"', "expected an object"),
    ("{", "not valid JSON"),
    ("", "not valid JSON"),
    ({"annotations": []}, "found the keys"),
    ({"images": {}}, "expected a list as 'images'"),
    ({"images": [], "annotations": 3}, "expected a list as 'annotations'"),
    ({"images": [], "annotations": []}, "the split is empty"),
    ({**GOOD, "images": [3]}, r"images\[0\]: expected an object, found 3"),
    ({**GOOD, "images": [{"url": "x"}]}, "expected the key 'imageId'"),
    ({**GOOD, "images": [{"imageId": "../a"}]}, "not usable as a file name"),
    ({**GOOD, "images": [{"imageId": 1.5}]}, "expected image id"),
    ({**GOOD, "images": [{"imageId": "a", "url": 3}]}, "expected an address"),
    ({**GOOD, "images": [{"imageId": "a", "url": "../../etc/passwd"}]}, "leads outside"),
    ({**GOOD, "images": [{"imageId": "a", "url": "http://1"}, {"imageId": "a", "url": "http://2"}]}, "second time with another url"),
    ({**GOOD, "annotations": [{"imageId": "a"}]}, "expected the key 'labelId'"),
    ({**GOOD, "annotations": [{"imageId": "b", "labelId": ["1"]}]}, "not in the list of images"),
    ({**GOOD, "annotations": [{"imageId": "a", "labelId": "1"}]}, "expected a list of label ids"),
    ({**GOOD, "annotations": [{"imageId": "a", "labelId": ["3"]}]}, r"annotations\[0\]: the label id 3 is not in the label map"),
    ({**GOOD, "annotations": [{"imageId": "a", "labelId": [0]}]}, "expected label ids"),
    ({**GOOD, "annotations": [{"imageId": "a", "labelId": ["red"]}]}, "found 'red'"),
    ({**GOOD, "annotations": [{"imageId": "a", "labelId": [1.0]}]}, "expected label ids"),
    (
        {**GOOD, "annotations": [{"imageId": "a", "labelId": [1]}, {"imageId": "a", "labelId": [1, 4]}]},
        r"annotations\[1\]: the picture 'a' is listed a second time with other labels: 4 only here, nothing only in .*\[0\]",
    ),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_bad_files(tmp_path, content, message):
    root = write_tree(tmp_path / "tree", validation=GOOD)
    (root / "train.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=message):
        Imaterialist(root).records("train")
    report = check_tree(root, progress=False)
    assert not report.ok and report.kind == "imaterialist"
    assert re.search(message, "\n".join(map(str, report.errors)))
    assert Imaterialist(root).image_ids("val") == ["a"]


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    content = entries(a=["1"], b=["3"], c=["x"], d=["77"])
    root = write_tree(tmp_path / "tree", train=content)
    with pytest.raises(DataError) as error:
        Imaterialist(root).records("train")
    assert "3 errors" in str(error.value) and str(error.value).count("annotations[") == 3


def test_harmless_repetitions_and_gaps_are_warnings(tmp_path):
    content = entries(a=["1", "1"], b=[], c=["2"], d=["4"])
    content["images"].append(content["images"][0])
    content["annotations"] = [*content["annotations"][:3], {"imageId": "c", "labelId": ["2"]}]
    root = write_tree(tmp_path / "tree", train=content, validation=entries(e=["9"]))
    dataset = Imaterialist(root)
    assert [(r.image_id, r.label_ids) for r in dataset.records("train")] == [("a", (1,)), ("b", ()), ("c", (2,))]
    assert dataset.report() == ["train: 2 pictures listed twice, 1 no labels, 1 label listed twice, 1 no annotation"]
    report = check_tree(root, progress=False)
    kinds = {problem.kind for problem in report.warnings}
    assert report.ok and kinds >= {"pictures listed twice", "no labels", "label listed twice", "no annotation"}, report.format()
    assert kinds >= {"unused labels", "labels without examples"}


def test_a_broken_label_map_does_not_hide_the_rest(tmp_path):
    root = write_tree(tmp_path / "tree", train=entries(a=["1"], b=["x"]), label_map="id,name\n1,x\n")
    with pytest.raises(DataError, match="expected the columns labelId"):
        Imaterialist(root)
    messages = "\n".join(map(str, check_tree(root, progress=False).errors))
    assert "expected the columns labelId" in messages and "found 'x'" in messages
    (root / "label_map.csv").unlink()
    assert len(Imaterialist(write_tree(tmp_path / "official", label_map="", train=entries(a=["228"]))).label_map) == 228


def test_folders_that_are_none(tmp_path):
    with pytest.raises(UsageError, match="nothing there"):
        open_attributes(tmp_path / "nothing")
    with pytest.raises(DataError, match="no dataset of pictures with labels recognised"):
        open_attributes(tmp_path)
    write_tree(tmp_path / "below")
    with pytest.raises(DataError, match="Did you mean .*below"):
        open_attributes(tmp_path)
    with pytest.raises(UsageError, match="Unknown dataset"):
        open_attributes(tmp_path, name="fashion_iq")
    with pytest.raises(UsageError, match="has no option 'colums'. It has: .*label_map"):
        open_attributes(tmp_path / "below", colums="x")
    with pytest.raises(DataError, match="expected train.json"):
        Imaterialist(tmp_path)
    with pytest.raises(UsageError, match="expected the JSON file of 'val'"):
        Imaterialist(tmp_path / "below", val=tmp_path / "no.json")


# Catalogues.

TABLE = """id,name,Color,kind,price,split,notes
p1,Dress one,red|blue,dress,10,train,
p2,Dress two,blue,dress,20,train,
p3,Jeans,blue,trousers,30,train,
p4,Coat,,coat,40,train,
p5,Coat two,red|mauve,coat,50,validation,
p6,Cap,NA,cap,60,validation,
"""


def write_catalogue(root, table=TABLE):
    root.mkdir(exist_ok=True)
    (root / "items.csv").write_text(table)
    for line in table.splitlines()[1:]:
        picture(root / "images" / f"{line.split(',')[0]}.png", len(line))
    return root


def test_a_catalogue_with_label_columns(tmp_path):
    root = write_catalogue(tmp_path / "shop")
    dataset = open_attributes(root)
    run_attribute_dataset_test(dataset, {"train": (4, 8), "val": (2, 2)})
    assert isinstance(dataset, AttributeCatalogue) and dataset.columns == ("Color", "kind")
    assert [(label.id, label.task, label.name) for label in dataset.label_map] == [
        (1, "Color", "blue"),
        (2, "Color", "red"),
        (3, "kind", "coat"),
        (4, "kind", "dress"),
        (5, "kind", "trousers"),
    ]
    ids, targets = dataset.targets("val", unknown=True)
    assert ids == ["p5", "p6"] and targets.tolist() == [[0, 1, 1, 0, 0], [-1, -1, -1, -1, -1]]
    assert dataset.exclusive_groups() == ("kind",)
    told = "\n".join(dataset.report())
    assert "2 values that 'train' does not have: Color 'mauve', kind 'cap'" in told and "the column 'notes' is empty" in told
    other = open_attributes(root, columns=["kind"], label_map=dataset.label_map)
    assert other.label_map == dataset.label_map and other.targets("train")[1][:, :2].sum() == 0
    assert open_attributes(root, columns="Color,price", min_count=1).label_map.tasks == ("Color", "price")
    assert len(open_attributes(root, columns="Color", min_count=2).label_map) == 1
    report = check_tree(root, kind="attribute_catalogue", progress=False)
    assert report.ok and {"empty label column", "unknown values"} <= {problem.kind for problem in report.warnings}
    assert check_tree(root, progress=False).kind == "catalogue"


def test_other_separators_and_a_split_by_hash(tmp_path):
    rows = "\n".join(f"q{number},red / blue,{'dress' if number % 2 else 'coat'}" for number in range(200))
    root = write_catalogue(tmp_path / "shop", f"id,color,kind\n{rows}\n")
    dataset = AttributeCatalogue(root, separator="/", val_share=0.25)
    assert dataset.label_map.names == ("blue", "red", "coat", "dress") and dataset.splits() == ["train", "val"]
    assert 30 < len(dataset.records("val")) < 70 and dataset.exclusive_groups() == ("kind",)
    assert dataset.image_ids("val") == AttributeCatalogue(root, separator="/", val_share=0.25).image_ids("val")
    assert AttributeCatalogue(root, val_share=0).splits() == ["train"]


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (TABLE, {"columns": "notes"}, "the label column 'notes' is empty: no value in 'train'"),
        (TABLE + "p1,Dress one,red,dress,10,train,\n", {}, "line 8: the picture 'p1' is listed a second time with other labels"),
        (TABLE + "p1,Dress one,blue|red,dress,10,val,\n", {}, "split val only here, split train only in .*line 2"),
        (TABLE + "p7,x,red,dress,10,,\n", {}, "line 8: the column 'split' is empty"),
        (TABLE.replace("train", "val"), {}, "no row belongs to 'train'"),
        ("id,name\n1,x\n2,y\n", {}, "expected columns of labels, found name"),
        ("id,color\n", {}, "the catalogue is empty"),
        ("color,kind\nred,x\nred,y\n", {}, "expected a column 'id' or 'image'"),
        (TABLE + "p7,x,red\n", {}, "line 8: expected 7 values"),
        (TABLE + "../p7,x,red,dress,10,train,\n", {}, "not usable as a file name"),
    ],
)
def test_bad_catalogues(tmp_path, table, options, message):
    root = tmp_path / "shop"
    root.mkdir()
    (root / "items.csv").write_text(table)
    with pytest.raises(DataError, match=message):
        AttributeCatalogue(root, **options)
    if not options:
        assert not check_tree(root, kind="attribute_catalogue", progress=False).ok


def test_wrong_options_of_catalogues(tmp_path):
    root = write_catalogue(tmp_path / "shop", TABLE + "p1,Dress one,blue|red,dress,10,train,\n")
    assert "a picture is listed more than once with the same labels" in "\n".join(AttributeCatalogue(root).report())
    for options in (
        {"columns": "size"},
        {"separator": ""},
        {"val_share": 1},
        {"min_count": 0},
        {"csv": "no.csv"},
        {"split_column": "x"},
    ):
        with pytest.raises(UsageError):
            AttributeCatalogue(root, **options)
    with pytest.raises(DataError, match="expected columns called as the tasks"):
        AttributeCatalogue(root, label_map=LabelMap.imaterialist())


def test_the_drawn_wardrobe(tmp_path):
    root = draw_wardrobe(tmp_path / "w", items=48, size=32, layout="imaterialist", progress=False, workers=1)
    dataset = open_attributes(root)
    run_attribute_dataset_test(dataset)
    assert {split: len(dataset.records(split)) for split in dataset.splits()} == {"train": 40, "val": 8}
    assert dataset.exclusive_groups()[:2] == ("category", "color") and "shoe" not in dataset.exclusive_groups()
    assert check_tree(root, progress=False).ok
    before = (root / "train.json").read_bytes()
    assert (
        draw_wardrobe(tmp_path / "v", items=48, size=32, layout="imaterialist", progress=False, workers=1)
        .joinpath("train.json")
        .read_bytes()
        == before
    )


@pytest.mark.parametrize("images", [".", "images"])
def test_real_photos(images):
    products = shared("data/products")
    dataset = open_attributes(products / "imaterialist", images=products / images)
    run_attribute_dataset_test(dataset, {"train": (4800, 33594), "val": (1200, 8399)})
    assert dataset.missing_images() == [] and len(dataset.label_map) == 161 and len(dataset.exclusive_groups()) == 7
