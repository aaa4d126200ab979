"""Tables and the refusal to print numbers without, or of different, protocols."""

from __future__ import annotations

import pytest

from tests.reports.made_up import metrics
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.reports import tables


def test_text_tables_are_aligned():
    lines = tables.format_table(["name", "value"], [["a", 1.234], ["日本", None], ["long name", 10]]).splitlines()
    assert lines == [
        "name       value",
        "─────────  ─────",
        "a           1.23",
        "日本           –",
        "long name     10",
    ]


def test_markdown_escapes_pipes_and_newlines():
    lines = tables.format_table(["a", "b"], [["x|y", "two\nlines"]], "markdown").splitlines()
    assert lines == ["| a    | b         |", "| ---- | --------- |", r"| x\|y | two lines |"]


def test_results_table_prints_its_protocol():
    for style in ("text", "markdown"):
        table = tables.results_table(metrics(), style)
        assert "Protocol original: fashion_iq/val" in table.splitlines()[-1]
        assert "46.50" in table and "dress" in table
    assert tables.results_table(metrics()).splitlines()[-2].split() == ["mean", "35.00", "58.00", "46.50", "30", "–"]


def test_comparison_and_seeds():
    table = tables.comparison_table([metrics(), metrics(5)], ["a", "b"])
    assert [line.split()[0] for line in table.splitlines()[2:4]] == ["a", "b"]
    table = tables.seeds_table({"tirg": [metrics(), metrics(2), metrics(4)], "once": [metrics()]}, categories=True)
    row = next(line for line in table.splitlines() if line.startswith("tirg"))
    assert "37.00 ± 2.00" in row and row.endswith("3")
    assert "±" not in next(line for line in table.splitlines() if line.startswith("once"))


def test_refusals():
    other = metrics(protocol="original-noref")
    with pytest.raises(UsageError, match="different protocols"):
        tables.comparison_table([metrics(), other])
    with pytest.raises(UsageError, match="different protocols"):
        tables.seeds_table({"a": [metrics()], "b": [other]})
    with pytest.raises(DataError, match="names no protocol"):
        tables.results_table({"categories": {}, "mean": {}})
    with pytest.raises(DataError, match="categories"):
        tables.results_table({**metrics(), "categories": {}})
    with pytest.raises(DataError):
        tables.seeds_table({"a": []})
    with pytest.raises(DataError):
        tables.comparison_table([])
    with pytest.raises(UsageError, match="cells"):
        tables.format_table(["a"], [["x", "y"]])
    with pytest.raises(UsageError, match="style"):
        tables.format_table(["a"], [["x"]], "latex")
