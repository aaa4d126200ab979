"""Label maps: positions, names and tasks, and how broken ones are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shared import shared
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.labels import OFFICIAL_FILE, Label, LabelMap, label_id

GAPS = LabelMap([Label(3, "red", 2, "color"), Label(10, "dress", 1, "category"), Label(11, "red", 5, "print")])


def test_the_official_map():
    labels = LabelMap.imaterialist()
    assert len(labels) == 228 and labels.ids == tuple(range(1, 229))
    assert labels.tasks == ("category", "color", "gender", "material", "neckline", "pattern", "sleeve", "style")
    assert [len(places) for places in labels.groups.values()] == [105, 21, 3, 34, 11, 28, 5, 21]
    assert labels.find("Hosiery, Stockings, Tights").id == 89 and labels.find("zebra") == Label(228, "Zebra", 6, "pattern")
    vector = labels.encode(["66", 105, "17", 66])
    assert vector.dtype == np.float32 and vector.sum() == 3 and vector[[65, 104, 16]].all()
    assert labels.names_of_vector(vector) == ["Black", "Female", "Long Sleeved"] and labels.ids_of_vector(vector) == [17, 66, 105]
    assert labels.names_of(["228", 1]) == ["Zebra", "Argyle"] and labels.ids_of(["Zebra", "Female"]) == ["228", "66"]
    assert labels.tasks_of(["66", 17]) == labels.tasks_of_names(["Female", "Black"]) == ["gender", "color"]
    recorded = shared("golden/attributes") / OFFICIAL_FILE
    assert LabelMap.read(recorded) == labels and LabelMap.read(recorded).fingerprint == labels.fingerprint


def test_ids_with_gaps_and_names_of_several_tasks():
    assert GAPS.tasks == ("category", "color", "print") and GAPS.position(11) == 2 and "10" in GAPS and 4 not in GAPS
    assert GAPS.groups == {"category": [1], "color": [0], "print": [2]}
    assert GAPS.find("red", "print").id == 11
    with pytest.raises(UsageError, match="color:red, print:red"):
        GAPS.find("red")
    with pytest.raises(UsageError, match="Did you mean 'dress'"):
        GAPS.find("dres")
    with pytest.raises(UsageError, match="No task 'size' in the label map. Found: category, color, print"):
        GAPS.find("red", "size")
    with pytest.raises(UsageError, match="expected a vector of 3 values"):
        GAPS.decode(np.zeros(4))


@pytest.mark.parametrize("bad", [0, -1, 4, "03", " 3", "3.0", 3.0, None, True, "x", "٣"])
def test_ids_outside_the_map(bad):
    assert label_id(bad) in (None, 4)
    with pytest.raises(DataError, match="not in the label map"):
        GAPS.encode([3, bad])


@given(st.data())
def test_encoding_and_decoding_are_inverse(data):
    ids = data.draw(st.lists(st.integers(1, 10**6), unique=True, min_size=1, max_size=30))
    tasks = data.draw(st.lists(st.integers(1, 5), min_size=len(ids), max_size=len(ids)))
    labels = LabelMap(Label(number, f"n{place}", task, f"t{task}") for place, (number, task) in enumerate(zip(ids, tasks, strict=True)))
    rows = data.draw(st.lists(st.lists(st.sampled_from(ids)), max_size=5))
    vectors = labels.encode_all(rows)
    assert vectors.shape == (len(rows), len(ids)) and vectors.dtype == np.float32
    for row, vector in zip(rows, vectors, strict=True):
        assert labels.ids_of_vector(vector) == [number for number in ids if number in row]
        assert np.array_equal(vector, labels.encode(map(str, row)))
    assert np.array_equal(np.sort(np.concatenate(list(labels.groups.values()))), np.arange(len(ids)))
    assert LabelMap.from_config(labels.to_config()) == labels and hash(LabelMap(labels.labels)) == hash(labels)


def test_files_in_any_order_of_rows_and_columns(tmp_path):
    path = tmp_path / "map.csv"
    path.write_text('taskName,label_id,labelName,taskId,more\ncolor,7,"Red, dark",2,x\ncategory,3,Dress,1,y\n', encoding="utf-8-sig")
    labels = LabelMap.read(path)
    assert labels.labels == (Label(3, "Dress", 1, "category"), Label(7, "Red, dark", 2, "color"))
    labels.write(tmp_path / "again.csv")
    assert LabelMap.read(tmp_path / "again.csv") == labels


ROWS = "1,1,Dress,category\n2,2,Red,color\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,task,name\n1,1,x\n", "expected the columns labelId,taskId,labelName,taskName, found id,task,name"),
        ("", "empty file"),
        ("labelId,taskId,labelName,taskName\n", "no usable row"),
        (ROWS + "2,2,Blue,color\n", "line 4: the label id 2 occurs a second time"),
        (ROWS + "3,2,Red,color\n", "the label 'Red' twice"),
        (ROWS + "3,2,Blue,colour\n", "the task 2 is called 'colour' here and 'color' before"),
        (ROWS + "3,3,Blue,color\n", "the task 'color' has the number 3 here and 2 before"),
        (ROWS + "x,2,Blue,color\n", "line 4: expected a whole number of at least 1 as labelId, found 'x'"),
        (ROWS + "0,0,Blue,color\n", "2 errors"),
        (ROWS + "3,2,,color\n", "has no name"),
        (ROWS + "3,2,Blue\n", "expected 4 values as in the header, found 3"),
    ],
)
def test_broken_maps(tmp_path, text, message):
    path = tmp_path / "map.csv"
    path.write_text(text if text.startswith("id,") or not text.startswith("1") else "labelId,taskId,labelName,taskName\n" + text)
    with pytest.raises(DataError, match=message):
        LabelMap.read(path)


def test_maps_that_are_none(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        LabelMap.read(tmp_path / "nothing.csv")
    for bad in ({}, {"labels": 3}, {"labels": [[1, "x"]]}, []):
        with pytest.raises(DataError, match="Expected a label map"):
            LabelMap.from_config(bad)
    with pytest.raises(DataError, match="at least one label"):
        LabelMap([])
