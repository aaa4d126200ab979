"""Conditions on attributes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.labels import Label, LabelMap
from tf_fashion.retrieval.filters import AttributeTable, Filter, near_names

LABELS = LabelMap(
    [
        Label(1, "Black", 2, "color"),
        Label(2, "Gray", 2, "color"),
        Label(3, "Gold", 2, "color"),
        Label(4, "Female", 3, "gender"),
        Label(5, "Male", 3, "gender"),
        Label(6, "Hosiery, Stockings, Tights", 1, "category"),
        Label(7, "Tights", 1, "category"),
        Label(8, "Gold", 4, "material"),
        Label(9, "A=B", 4, "material"),
    ]
)


def table(*rows: list[int]) -> AttributeTable:
    return AttributeTable.of_labels(LABELS.encode_all(rows) > 0, LABELS)


ROWS = table([1, 4], [2, 4], [1, 5], [3, 4, 6], [7, 8], [])


@pytest.mark.parametrize(
    ("only", "without", "expected"),
    [
        ([], [], [0, 1, 2, 3, 4, 5]),
        (["gender=Female"], [], [0, 1, 3]),
        (["gender=Female", "color=Black,Gray"], [], [0, 1]),
        (["GENDER = female", "color=black , gray"], [], [0, 1]),
        (["Female"], ["color=Black"], [1, 3]),
        (["Black,Gray"], [], [0, 1, 2]),
        (["category=Hosiery, Stockings, Tights"], [], [3]),
        (["category=tights,hosiery, stockings,  tights"], [], [3, 4]),
        (["Tights"], [], [4]),
        (["material=Gold"], [], [4]),
        (["color=Gold"], [], [3]),
        (["A=B"], [], []),
        (["material=A=B"], [], []),
        ([], ["gender=Female,Male"], [4, 5]),
        (["color=Black", "color=Gray"], [], []),
    ],
)
def test_conditions_choose_rows(only, without, expected):
    mask = Filter.parse(only, without, ROWS).mask(ROWS)
    assert np.flatnonzero(mask).tolist() == expected


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(1, 9), max_size=4), max_size=8),
    only=st.lists(st.integers(0, 8), max_size=3),
    without=st.lists(st.integers(0, 8), max_size=3),
)
def test_any_labels_written_out_choose_the_rows_that_have_them(rows, only, without):
    labels = LABELS.labels
    attributes = table(*rows)
    write = [f"{labels[n].task}={labels[n].name}" for n in range(9)]
    found = Filter.parse([write[n] for n in only], [write[n] for n in without], attributes)
    has = LABELS.encode_all(rows) > 0
    expected = has[:, only].all(axis=1) & ~has[:, without].any(axis=1)
    np.testing.assert_array_equal(found.mask(attributes), expected)
    # What it says about itself reads back to itself.
    said = [str(condition).removeprefix("not ") for condition in found.conditions]
    again = Filter.parse(said[: len(only)], said[len(only) :], attributes)
    assert again == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour=Black", r"no task 'colour'. Did you mean 'color'\? Tasks: category, color, gender, material"),
        ("color=Blakc", r"color has no label 'Blakc'. Did you mean 'Black'\? Its labels: Black, Gray, Gold. Tasks: "),
        ("color=Black,Famale", "color has no label 'Famale'"),
        ("color=Female", "color has no label 'Female'. It is a label of gender"),
        ("Gold", "fits several tasks. Write color=Gold or material=Gold"),
        ("Femal", r"no task has such a label. Did you mean gender=Female or gender=Male\?"),
        ("__import__('os')", "no task has such a label. Write task=name. Tasks"),
        ("color=", "names no label"),
        ("color= , ", "color has no label ''"),
        ("", "names no label"),
        ("=Black", "no task ''"),
        ("color=Black,,Gray", "color has no label ''"),
    ],
)
def test_unknown_names_are_told_with_near_ones(text, message):
    with pytest.raises(UsageError, match=message):
        Filter.parse([text], [], ROWS)


def test_given_columns_and_predictions():
    given_columns = AttributeTable.of_columns(
        ["a", "b", "c", "d"],
        {"a": {"Color": "black", "brand": "X|Y"}, "b": {"Color": " "}, "c": {"Color": ["Gray", "gray"], "brand": None}},
        separator="|",
    )
    assert given_columns.tasks == ("Color", "brand")
    assert given_columns.known["Color"].tolist() == [True, False, True, False]
    chosen = Filter.parse(["brand=x"], [], given_columns)
    assert chosen.mask(given_columns).tolist() == [True, False, False, False]
    assert Filter.parse([], ["color=black"], given_columns).mask(given_columns).tolist() == [False, True, True, True]

    both = given_columns.or_else(table([2, 4], [1], [1, 5], [2]))
    assert set(both.tasks) == {"Color", "brand", "gender", "category", "material"}
    assert Filter.parse(["color=black"], [], both).mask(both).tolist() == [True, True, False, False]
    assert Filter.parse(["color=Gray"], [], both).mask(both).tolist() == [False, False, True, True]
    assert Filter.parse(["Male", "gray"], [], both).mask(both).tolist() == [False, False, True, False]
    report = Filter.parse(["color=gray"], ["brand=Y"], both).report(both)
    assert report == [
        "Color=Gray: 2 of 4 rows, 2 left",
        "not brand=Y: 3 of 4 rows, 2 left; brand is not known of 3",
    ]
    assert Filter.parse(["color=gray"], ["brand=Y"], both).describe() == "Color=Gray, not brand=Y"


def test_refusals():
    with pytest.raises(UsageError, match=r"bool \(n, 9\)"):
        AttributeTable.of_labels(np.zeros((2, 9)), LABELS)
    with pytest.raises(DataError, match="picture 'a', column 'x': expected text"):
        AttributeTable.of_columns(["a"], {"a": {"x": 3}})
    with pytest.raises(UsageError, match="same rows, found 6 and 1"):
        ROWS.or_else(table([1]))
    with pytest.raises(UsageError, match="these rows have none"):
        Filter.parse(["color=Black"], [], AttributeTable(0, {}))


def test_near_names_ignore_capitals():
    assert near_names("BLAK", ["Black", "black", "Blue", "Red"]) == ["Black", "black"]
    assert near_names("x", []) == []
