"""Tables and curves of attributes."""

import numpy as np
import pytest
from PIL import Image

from tests.tagging.made_up import label_map, predictions, sigmoid
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.reports import attributes
from tf_fashion.tagging.calibration import reliability
from tf_fashion.tagging.metrics import evaluate_attributes
from tf_fashion.tagging.thresholds import Thresholds


def numbers(records=40, threshold=0.5, exclusive=()):
    labels = label_map()
    logits, targets = predictions(records)
    targets[:, 4] = 0.0
    p = sigmoid(logits)
    rule = Thresholds.constant(labels, threshold, exclusive)
    return evaluate_attributes(p, targets, rule.decide(p, labels), labels, logits, rule.values)


def test_table_of_labels():
    metrics = numbers(exclusive=["color"])
    headers, rows = attributes.label_rows(metrics)
    assert headers[-1] == "threshold"
    assert [row[1] for row in rows] == ["category"] * 3 + ["color"] * 3 + ["style"] * 2
    assert [row[-1] for row in rows] == ["0.500"] * 3 + ["best"] * 3 + ["0.500"] * 2
    assert rows[0][:3] == ["Bag", "category", 3] and rows[0][7] == 100 * metrics["per_label"][0]["f1"]
    assert len(attributes.label_rows(metrics, only_present=True)[1]) == 7
    by_support = [row[3] for row in attributes.label_rows(metrics, "support")[1]]
    assert by_support == sorted(by_support, reverse=True)
    by_precision = attributes.label_rows(metrics, "average_precision")[1]
    assert by_precision[-1][0] == "Shoe", "labels without average precision come last"
    assert [row[0] for row in attributes.label_rows(metrics, "name")[1]][:3] == ["Bag", "Bag", "Black"]
    for style in ("text", "markdown"):
        table = attributes.label_table(metrics, style, note="made-up/val, p > 0.5")
        assert table.splitlines()[-1] == "made-up/val, p > 0.5"
        assert "Dress" in table and "–" in table


def test_table_of_tasks():
    metrics = numbers()
    headers, rows = attributes.task_rows(metrics)
    assert [row[0] for row in rows] == ["category", "color", "style", "all"]
    assert rows[1][headers.index("best label right")] == 100 * metrics["tasks"]["color"]["accuracy"]
    assert rows[-1][:3] == ["all", 8, sum(row[2] for row in rows[:-1])]
    assert rows[-1][3] == 100 * metrics["micro_f1"]
    assert "color" in attributes.task_table(metrics, "markdown")


def test_comparison():
    results = {"p > 0.5": numbers(), "p > 0.3": numbers(threshold=0.3)}
    headers, rows = attributes.overall_rows(results, ["color"])
    assert headers[1] == "micro-F1" and headers[-2:] == ["color right", "BCE"]
    assert rows[1][1] == 100 * results["p > 0.3"]["micro_f1"]
    assert "p > 0.3" in attributes.overall_table(results, accuracy_of=["color"], note="val")
    with pytest.raises(UsageError, match="41 records"):
        attributes.overall_rows({**results, "other": numbers(41)})
    with pytest.raises(UsageError, match="no task 'size'"):
        attributes.overall_rows(results, ["size"])
    with pytest.raises(DataError, match="no results"):
        attributes.overall_rows({})


def test_curves(tmp_path):
    logits, targets = predictions(100)
    curves = {
        "before": reliability(sigmoid(logits), targets).to_config(),
        "after": reliability(sigmoid(0.5 * logits), targets, binning="mass").to_config(),
    }
    path = attributes.draw_reliability(curves, tmp_path / "curve.png", "made up")
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape[0] > 300 and pixels.std() > 5
    svg = attributes.draw_reliability(curves, tmp_path / "curve.svg").read_text()
    assert "ECE" in svg and svg == attributes.draw_reliability(curves, tmp_path / "again.svg").read_text()
    with pytest.raises(UsageError, match=r"\.png or \.svg"):
        attributes.draw_reliability(curves, tmp_path / "curve.gif")
    with pytest.raises(UsageError, match="nothing to draw"):
        attributes.draw_reliability({"none": reliability(np.zeros(0), np.zeros(0)).to_config()}, tmp_path / "curve.png")
    with pytest.raises(DataError, match="'odd'"):
        attributes.draw_reliability({"odd": {"ece": 0.1}}, tmp_path / "curve.png")


def test_refusals():
    with pytest.raises(UsageError, match="Unknown order"):
        attributes.label_rows(numbers(), "luck")
    for function in (attributes.label_rows, attributes.task_rows):
        with pytest.raises(DataError, match="numbers of attributes"):
            function({"micro_f1": 0.5})
