"""Feature files, prediction files and score files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.retrieval.feature_files import FeatureFile, FeatureWriter, read_feature_file, write_feature_file
from tf_fashion.retrieval.index import ExactIndex
from tf_fashion.retrieval.predictions import (
    read_predictions,
    read_truth,
    score_files,
    score_files_original,
    score_predictions,
    write_predictions,
)

RELAXED = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@RELAXED
@given(
    rows=hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 5)), elements=FLOATS),
    ending=st.sampled_from(["jsonl", "npz"]),
)
@pytest.mark.parametrize("key", ["image_id", "query_id"])
def test_every_float32_reads_back_to_itself(tmp_path, rows, ending, key):
    ids = [f"p{n}" for n in range(len(rows))] if key == "image_id" else list(range(7, 7 + len(rows)))
    read = read_feature_file(write_feature_file(tmp_path / f"f.{ending}", ids, rows, key))
    assert read.ids == ids
    assert read.values.dtype == np.float32
    np.testing.assert_array_equal(read.values, rows)
    assert read.key == (key if ending == "jsonl" else None)


def test_the_lines_are_those_of_the_published_format(tmp_path):
    path = write_feature_file(tmp_path / "t.jsonl", np.array([3, 4]), np.array([[0.1, -2.0], [1.0, 3.0]], np.float32), "query_id")
    assert path.read_text() == ('{"query_id": 3, "feature": [0.10000000149011612, -2.0]}\n{"query_id": 4, "feature": [1.0, 3.0]}\n')
    path = write_feature_file(tmp_path / "i.jsonl", [15], np.ones((1, 1)), "image_id")
    assert path.read_text() == '{"image_id": "15", "feature": [1.0]}\n'


def test_lines_of_growing_length_and_files_without_a_last_line_break(tmp_path):
    rows = np.random.default_rng(0).standard_normal((500, 3)).astype(np.float32)
    rows[400:] = 1
    lines = [json.dumps({"feature": row.tolist(), "query_id": n, "more": None}) for n, row in enumerate(rows[::-1])]
    (tmp_path / "f.jsonl").write_text("\n\n".join(lines))
    np.testing.assert_array_equal(read_feature_file(tmp_path / "f.jsonl").values, rows[::-1])


def test_half_precision_and_the_folder_of_an_index(tmp_path):
    rows = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    read = read_feature_file(write_feature_file(tmp_path / "f.npz", list("abcd"), rows, "image_id", dtype="float16"))
    np.testing.assert_array_equal(read.values, rows.astype(np.float16).astype(np.float32))
    index = ExactIndex.build(list("abcd"), rows)
    index.delete(["b"])
    index.save(tmp_path / "index")
    read = read_feature_file(tmp_path / "index")
    assert read.ids == ["a", "c", "d"]
    np.testing.assert_array_equal(read.values, rows[[0, 2, 3]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image_id": "b", "feature": [1, 2]', "JSON object"),
        ("[1, 2]", "JSON object"),
        ('{"image_id": "b"}', "keys image_id and feature"),
        ('{"query_id": 4, "feature": [1, 2]}', "keys image_id and feature"),
        ('{"image_id": 4, "feature": [1, 2]}', "not both"),
        ('{"image_id": true, "feature": [1, 2]}', "an id is"),
        ('{"image_id": "", "feature": [1, 2]}', "an id is"),
        ('{"image_id": "a", "feature": [1, 2]}', "already .line 1"),
        ('{"image_id": "b", "feature": [1, 2, 3]}', "3 numbers"),
        ('{"image_id": "b", "feature": [1, NaN]}', "NaN"),
        ('{"image_id": "b", "feature": [1, 1e300]}', "too large"),
        ('{"image_id": "b", "feature": [1, "2"]}', "list of numbers"),
        ('{"image_id": "b", "feature": [1, [2]]}', "list of numbers"),
        ('{"image_id": "b", "feature": 3}', "list of numbers"),
        ('{"image_id": "b", "feature": []}', "list of numbers"),
    ],
)
def test_damaged_lines_are_named(tmp_path, line, message):
    (tmp_path / "f.jsonl").write_text('{"image_id": "a", "feature": [1, 2]}\n' + line + "\n")
    with pytest.raises(DataError, match=f"line 2: .*{message}"):
        read_feature_file(tmp_path / "f.jsonl")


def test_other_files_are_refused(tmp_path):
    for name in ("none.jsonl", "f.csv"):
        if name == "f.csv":
            (tmp_path / name).write_text("a")
        with pytest.raises(UsageError, match=name):
            read_feature_file(tmp_path / name)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="no features"):
        read_feature_file(tmp_path / "empty.jsonl")
    np.savez(tmp_path / "twice.npz", ids=["a", "a"], embeddings=np.ones((2, 2), np.float32))
    with pytest.raises(DataError, match="'a' is there more than once"):
        read_feature_file(tmp_path / "twice.npz")
    np.savez(tmp_path / "nan.npz", ids=[1, 2], embeddings=np.array([[1.0], [np.nan]], np.float32))
    with pytest.raises(DataError, match="row 1 .id 2"):
        read_feature_file(tmp_path / "nan.npz")
    with pytest.raises(DataError, match="more than once"):
        write_feature_file(tmp_path / "f.jsonl", ["1", 1], np.ones((2, 2)), "image_id")
    with pytest.raises(UsageError, match="one row per id"):
        write_feature_file(tmp_path / "f.jsonl", ["1"], np.ones((2, 2)), "image_id")


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    path = write_feature_file(tmp_path / "f.jsonl", ["a"], np.ones((1, 2)), "image_id")
    before = path.read_text()
    with pytest.raises(DataError, match="'b' are not finite"), FeatureWriter(path, "image_id") as writer:
        writer.append(["a", "b"], np.array([[1.0], [np.inf]]))
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["f.jsonl"]


def naive_predictions(queries, gallery, k):
    lists = {}
    for entry, row in zip(queries.ids, queries.values, strict=True):
        scores = [np.float32(np.dot(row.astype(np.float64), other.astype(np.float64))) for other in gallery.values]
        order = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
        lists[entry] = [gallery.ids[place] for place in order[:k]]
    return lists


@RELAXED
@given(data=st.data(), k=st.integers(1, 12), block=st.integers(1, 9), precision=st.sampled_from(["float32", "float64"]))
def test_predictions_are_those_of_a_naive_loop_with_ties_in_file_order(tmp_path, data, k, block, precision):
    few = st.integers(-2, 2).map(float)
    sizes = st.tuples(st.integers(1, 8), st.just(3))
    images = FeatureFile([], data.draw(hnp.arrays(np.float32, sizes, elements=few)), "image_id")
    texts = FeatureFile([], data.draw(hnp.arrays(np.float32, sizes, elements=few)), "query_id")
    images.ids.extend(f"i{n}" for n in range(len(images.values)))
    texts.ids.extend(range(len(texts.values)))
    found = write_predictions(tmp_path / "p.jsonl", "query_id", texts, images, k, block=block, precision=precision)
    assert found == naive_predictions(texts, images, k) == read_predictions(tmp_path / "p.jsonl", "query_id")


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_hits_at_any_right_answer_and_all_queries_of_the_truth(tmp_path):
    truth = read_truth(
        write_lines(
            tmp_path / "t.jsonl",
            [{"query_id": 1, "item_ids": [7, 8]}, {"query_id": 2, "text": 9}, {"query_id": 3, "item_ids": ["99"], "query_text": "x"}],
        ),
        "query_id",
    )
    found = {1: ["5", "8"], 2: ["9"], 3: ["1"] * 10, 4: ["1"]}
    scores, remarks = score_predictions(truth, found)
    assert not remarks
    assert scores["scoreJson"]["r1"] == pytest.approx(100 / 3)
    assert scores["scoreJson"]["r5"] == scores["scoreJson"]["r10"] == pytest.approx(200 / 3)
    assert scores["score"] == scores["scoreJson"]["mean_recall"] == pytest.approx(500 / 9)
    assert list(scores) == ["success", "score", "scoreJson"]
    assert list(scores["scoreJson"]) == ["score", "mean_recall", "r1", "r5", "r10"]
    strict, remarks = score_predictions(truth, {1: ["8"], 2: ["9"], 3: ["1"]}, original_ids=True)
    assert strict["score"] == 0
    assert any("R@5, R@10 means R@1" in remark for remark in remarks)


def test_failures_are_readable_or_those_of_the_original(tmp_path):
    found = {1: ["a"]}
    cases = {
        "absent": ([{"query_id": 2, "item_ids": ["a"]}], 2, "1 of 1 queries have no prediction: '2'"),
        "key": ([{"query": 2}], "query_id", "line 1: expected the key query_id"),
        "answer": ([{"query_id": 1}], "text", "line 1: the right answers are missing"),
        "empty": ([], "float division by zero", "there are no queries"),
    }
    for name, (lines, original, readable) in cases.items():
        path = write_lines(tmp_path / f"{name}.jsonl", lines)
        failure = score_files_original(path, found, "query_id")
        assert failure == {"errorDetail": original, "errorMsg": original, "score": 0, "scoreJson": {}, "success": False}
        ours, _ = score_files(path, found, "query_id")
        assert list(ours) == list(failure)
        assert not ours["success"] and readable in ours["errorMsg"]
    assert score_files_original(tmp_path / "none", found, "query_id")["errorMsg"] == 2
    assert "none" in score_files(tmp_path / "none", found, "query_id")[0]["errorMsg"]


def test_of_repeated_queries_the_last_line_counts_and_is_told(tmp_path):
    path = write_lines(tmp_path / "t.jsonl", [{"image_id": "1", "item_ids": [5]}, {"image_id": "1", "item_ids": [6]}])
    scores, remarks = score_files(path, {"1": [6] * 10}, "image_id")
    assert scores["score"] == 100.0
    assert "'1'" in remarks[0]


def test_exchanged_files_and_other_widths_are_refused(tmp_path):
    images, texts = (
        FeatureFile(["a"], np.ones((1, 2), np.float32), "image_id"),
        FeatureFile([1], np.ones((1, 3), np.float32), "query_id"),
    )
    with pytest.raises(UsageError, match="exchanged"):
        write_predictions(tmp_path / "p", "query_id", images, images)
    with pytest.raises(UsageError, match="width 3"):
        write_predictions(tmp_path / "p", "query_id", texts, images)
