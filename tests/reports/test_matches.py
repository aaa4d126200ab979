"""Sheets and tables of product matches."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from tests.reports.made_up import picture
from tf_fashion.core.errors import UsageError
from tf_fashion.datasets.labels import LabelMap
from tf_fashion.reports import matches as module
from tf_fashion.reports.matches import match_sheet, write_matches
from tf_fashion.reports.sheets import SheetRow
from tf_fashion.retrieval.matching import Matcher
from tf_fashion.retrieval.score_store import ScoreStore

LABELS = LabelMap.of_tasks({"color": ["blue", "red"], "sleeve": ["long", "short"]})
DECIDED = np.array([[1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 0, 0]]) > 0


@pytest.fixture
def found():
    store = ScoreStore(8.0 * DECIDED - 4, tuple("abcd"), LABELS)
    return Matcher(store).match(store.take([0, 1]), 3)


def test_each_match_says_what_agrees(tmp_path, found, monkeypatch):
    given = {}

    def draw(path, rows, **options):
        given.update(options, rows=rows)
        return path

    monkeypatch.setattr(module, "retrieval_sheet", draw)
    paths = {"a": tmp_path / "a.jpg"}
    match_sheet(tmp_path / "s.png", found, paths, paths, query_labels=DECIDED[:2], found_labels=DECIDED, note="not color=red")
    row = given["rows"][0]
    assert row.sentence == "color: blue · sleeve: long"
    assert (row.reference, row.note, row.reference_id) == (tmp_path / "a.jpg", "a", "a")
    assert list(row.result_ids) == found.ids(0) == ["b", "c", "d"]
    assert list(row.results) == [None, None, None]
    assert row.scores == found.distances[0].tolist()
    assert row.details == [
        [("= color: blue", True), ("≠ sleeve: short", False)],
        [("≠ color: red", False), ("= sleeve: long", True)],
        [("≠ color: blue, red", False), ("≠ sleeve: –", False)],
    ]
    assert given["protocol"] == "distance: euclidean_logits · not color=red"
    match_sheet(tmp_path / "s.png", found, {}, {}, query_labels=DECIDED[:2], found_labels=DECIDED, tasks=["sleeve"])
    assert given["rows"][0].details[0] == [("≠ sleeve: short", False)]
    match_sheet(tmp_path / "s.png", found, {}, {})
    assert [(row.sentence, row.details) for row in given["rows"]] == [("a", []), ("b", [])]


def test_the_picture_grows_with_its_lines(tmp_path, found):
    paths = {name: picture(tmp_path / f"{name}.png", "white") for name in "abc"}
    labels = {"query_labels": DECIDED[:2], "found_labels": DECIDED}
    pictures = []
    for name, options in (("plain", {}), ("full", labels)):
        with Image.open(match_sheet(tmp_path / f"{name}.png", found, paths, paths, tile=64, **options)) as image:
            pictures.append(np.asarray(image.convert("RGB")).astype(int))
    plain, pixels = pictures
    assert pixels.shape[1] == plain.shape[1]
    assert pixels.shape[0] > plain.shape[0]
    assert (np.abs(pixels - [22, 163, 74]).sum(axis=2) < 60).sum() > 20


def test_the_table_has_the_columns_of_the_catalogue(tmp_path, found):
    path = write_matches(tmp_path / "m.csv", found, {"b": {"name": 'A "b", c'}, "c": {"name": "C", "price": 3}})
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert rows[0] == {"query": "a", "rank": "1", "image_id": "b", "distance": "11.3137", "name": 'A "b", c', "price": ""}
    assert rows[1]["price"] == "3"


def test_refusals(tmp_path, found):
    with pytest.raises(UsageError, match="no task shape; the tasks are color, sleeve"):
        match_sheet(tmp_path / "s.png", found, {}, {}, tasks=["shape"])
    with pytest.raises(UsageError, match="of queries and catalogue"):
        match_sheet(tmp_path / "s.png", found, {}, {}, query_labels=DECIDED[:2])
    with pytest.raises(UsageError, match=r"found_labels must be bool \(4, 4\)"):
        match_sheet(tmp_path / "s.png", found, {}, {}, query_labels=DECIDED[:2], found_labels=DECIDED[:2])
    with pytest.raises(UsageError, match="details for 1"):
        SheetRow(None, "", [None, None], ["a", "b"], details=[[]])
