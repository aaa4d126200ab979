"""Tables of image-text retrieval and of the leaderboard."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.reports.dual import directions_table, dual_comparison, dual_comparison_table, leaderboard_table, write_table
from tf_fashion.retrieval.dual import evaluate_dual, summarise_dual
from tf_fashion.retrieval.dual_protocol import get_dual_protocol
from tf_fashion.retrieval.leaderboard import evaluate_task, leaderboard_tasks
from tf_fashion.retrieval.protocol import get_protocol


def result(protocol, name="model", seed=0):
    rng = np.random.default_rng(seed)
    ids = [f"i{n}" for n in range(60)]
    values = rng.standard_normal((60, 4)).astype(np.float32)
    groups = {entry: "rare" if n < 5 else "common" for n, entry in enumerate(ids)}
    truth = {n: [entry] for n, entry in enumerate(ids)}
    return summarise_dual(
        evaluate_dual(values, ids, -values, range(60), text_truth=truth, protocol=protocol, groups=groups), {"name": name}
    )


SAMPLE = get_dual_protocol("sample", negatives=10, queries=30, repeats=2)


def test_directions_with_deviations_and_filled_candidates():
    text = directions_table(result(SAMPLE))
    assert "image to text" in text and "±" in text and "1 right and 10 wrong candidates of the same sub-category" in text
    assert "the group had too few wrong candidates" in text
    assert "ranked among 5 candidates only" in directions_table(result(SAMPLE.replace(fill="fewer")))
    plain = directions_table(result(get_dual_protocol("full")), "markdown")
    assert "±" not in plain and "every query against the whole gallery" in plain and plain.startswith("| direction")
    with pytest.raises(DataError, match="image-text retrieval"):
        directions_table({"protocol": get_protocol("original").to_config(), "categories": {"dress": {}}, "mean": {}})


def test_comparison_refuses_other_protocols(tmp_path):
    metrics = [result(get_dual_protocol("full"), name, seed) for seed, name in enumerate("ab")]
    headers, rows = dual_comparison(metrics)
    assert headers == ["model", "I2T R@1", "I2T R@5", "I2T R@10", "T2I R@1", "T2I R@5", "T2I R@10", "mean"]
    assert [row[0] for row in rows] == ["a", "b"]
    assert rows[1][1] == f"{metrics[1]['categories']['image to text']['R@1']:.2f}"
    assert dual_comparison_table(metrics, style="markdown").count("\n") == 5
    with pytest.raises(UsageError, match="different protocols"):
        dual_comparison([metrics[0], result(SAMPLE)])
    with pytest.raises(DataError, match="no results"):
        dual_comparison([])
    for ending in ("md", "txt", "csv", "json"):
        path = write_table(tmp_path / f"t.{ending}", headers, rows, note="Under it.")
        assert "I2T R@10" in path.read_text()
    assert json.loads((tmp_path / "t.json").read_text())[0]["model"] == "a"
    assert "Under it." in (tmp_path / "t.md").read_text()
    with pytest.raises(UsageError, match="written as"):
        write_table(tmp_path / "t.xls", headers, rows)


def test_leaderboard_averages_over_datasets_and_refuses_other_settings():
    rng = np.random.default_rng(0)

    def model(seed, documents=30, **tasks):
        draw = np.random.default_rng(seed)
        records = [{"text": f"t{n}", "category": f"c{n % 3}"} for n in range(documents)]
        images = rng.standard_normal((documents, 4))
        return [
            evaluate_task(task, records, images, lambda s: draw.standard_normal((len(s), 4)), images)
            for task in leaderboard_tasks(**tasks)
        ]

    results = {name: {"one": model(n), "two": model(n + 5)} for n, name in enumerate(["ours", "theirs"])}
    table = leaderboard_table(results)
    assert "### text-to-image (averaged over 2 datasets: one, two)" in table and "AvgP" in table and table.count("**") >= 12
    numbers = [entries[0]["AvgRecall"] for entries in results["ours"].values()]
    assert f"{np.mean(numbers):.3f}" in table
    with pytest.raises(UsageError, match="was measured on one"):
        leaderboard_table({**results, "other": {"one": model(3)}})
    with pytest.raises(UsageError, match="other settings, queries or documents"):
        leaderboard_table({**results, "other": {"one": model(3), "two": model(3, 31)}})
    with pytest.raises(DataError, match="no results"):
        leaderboard_table({})
