"""Stores of label scores: files, refusals, and runs that go on where they stopped."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.labels import Label, LabelMap
from tf_fashion.retrieval.score_store import ScoreStore, ScoreWriter

LABELS = LabelMap([Label(3, "red", 2, "color"), Label(7, "red", 5, "trim"), Label(4, "Hosiery, Stockings", 5, "trim")])
MODEL = "0123456789abcdef0123"


def make(count: int = 4, **options) -> ScoreStore:
    random = np.random.default_rng(count)
    values = {"embeddings": random.standard_normal((count, 2)), "exclusive": ("color",)} | options
    scores = random.standard_normal((count, len(LABELS)))
    return ScoreStore(scores, tuple(f"p{row}" for row in range(count)), LABELS, MODEL, **values)


def rewritten(path, **changes):
    """The file with some arrays exchanged (None removes one)."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays = {name: value for name, value in (arrays | changes).items() if value is not None}
    np.savez(path, **arrays)
    return path


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), unique=True, max_size=9))
@pytest.mark.parametrize("full", [True, False])
def test_a_file_reads_back_to_what_was_written(tmp_path, ids, full):
    random = np.random.default_rng(0)
    options = {}
    if full:
        options = {
            "embeddings": random.standard_normal((len(ids), 4)),
            "paths": ["a/b.jpg"] * len(ids),
            "digests": ["d"] * len(ids),
            "exclusive": ["trim"],
        }
    store = ScoreStore(random.standard_normal((len(ids), 3)), ids, LABELS, MODEL, **options)
    read = ScoreStore.read(store.write(tmp_path / "s.npz"), label_map=LABELS, fingerprint=MODEL)
    assert read.image_ids == tuple(ids)
    assert read.label_map == LABELS
    assert (read.fingerprint, read.paths, read.digests, read.exclusive) == (MODEL, store.paths, store.digests, store.exclusive)
    np.testing.assert_array_equal(read.scores, store.scores)
    assert read.scores.dtype == np.float32
    assert (read.embeddings is None) == (not full)
    if full:
        np.testing.assert_array_equal(read.embeddings, store.embeddings)


def test_the_arrays_have_the_names_that_the_format_promises(tmp_path):
    path = make(paths=["a.jpg", "", "c/d.jpg", "e.jpg"], digests=list("abcd")).write(tmp_path / "s.npz")
    with np.load(path, allow_pickle=False) as archive:
        assert sorted(archive.files) == sorted(
            ["scores", "image_ids", "label_ids", "labels", "fingerprint", "exclusive", "embeddings", "paths", "digests"]
        )
        assert archive["label_ids"].tolist() == [3, 7, 4]
        assert archive["image_ids"].tolist() == ["p0", "p1", "p2", "p3"]
        assert archive["scores"].dtype == np.float32
    assert ScoreStore.read(path).picture_paths(tmp_path) == {
        "p0": tmp_path / "a.jpg",
        "p2": tmp_path / "c/d.jpg",
        "p3": tmp_path / "e.jpg",
    }
    assert make().picture_paths(tmp_path) == {}


def test_rows_are_taken_by_position_mask_and_id():
    store = make(digests=list("abcd"))
    assert store.take([2, 0]).image_ids == ("p2", "p0")
    assert store.take(np.array([True, False, False, True])).digests == ("a", "d")
    assert len(store.take([])) == 0
    assert store.rows(["p3", "p1"]).tolist() == [3, 1]
    assert "p1" in store
    assert "q" not in store
    with pytest.raises(DataError, match="1 of 2 ids have no scores: 'q'"):
        store.rows(["p0", "q"])


@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_the_bare_matrix_of_the_original_needs_ids_and_labels(tmp_path, ending):
    scores = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    path = tmp_path / f"scores{ending}"
    if ending == ".npy":
        np.save(path, scores)
    else:
        np.savez(path, scores=scores)
    for options in ({}, {"label_map": LABELS}, {"image_ids": ["a", "b"]}):
        with pytest.raises(UsageError, match="without ids"):
            ScoreStore.read(path, **options)
    store = ScoreStore.read(path, label_map=LABELS, image_ids=["a", "b"])
    assert (store.image_ids, store.fingerprint) == (("a", "b"), "")
    np.testing.assert_array_equal(store.scores, scores)
    with pytest.raises(DataError, match=r"must be \(3, 3\)"):
        ScoreStore.read(path, label_map=LABELS, image_ids=["a", "b", "c"])
    with pytest.raises(UsageError, match="itself"):
        ScoreStore.read(make(2).write(tmp_path / "full.npz"), image_ids=["a", "b"])


def test_refusals_of_values():
    with pytest.raises(DataError, match="row 1 .id 'p1'. has NaN"):
        make(embeddings=np.array([[0, 0], [0, np.inf], [0, 0], [0, 0]]))
    with pytest.raises(DataError, match="'a' is there more than once .rows 0 and 2"):
        ScoreStore(np.zeros((3, 3)), ("a", "b", "a"), LABELS)
    with pytest.raises(DataError, match="row 1 has no usable id"):
        ScoreStore(np.zeros((2, 3)), ("a", ""), LABELS)
    with pytest.raises(UsageError, match=r"\(2, 3\).*\(2, 4\)"):
        ScoreStore(np.zeros((2, 4)), ("a", "b"), LABELS)
    with pytest.raises(UsageError, match="dtype <U1"):
        ScoreStore(np.full((2, 3), "x"), ("a", "b"), LABELS)
    with pytest.raises(UsageError, match="no task shape; it has color, trim"):
        make(exclusive=("shape",))
    with pytest.raises(UsageError, match="paths must have one entry"):
        make(paths=("a",))
    for path in ("/etc/passwd", "../a.jpg", "a/../../b.jpg"):
        with pytest.raises(DataError, match="outside"):
            make(1, paths=(path,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": np.full((4, 3), np.nan)}, "row 0 .id 'p0'. has NaN"),
        ({"scores": np.zeros((4, 2))}, r"must be \(4, 3\)"),
        ({"scores": np.zeros((4, 3), complex)}, "must hold numbers"),
        ({"scores": None}, "expected the array 'scores'"),
        ({"scores": np.array([[None] * 3] * 4)}, "not a readable"),
        ({"image_ids": np.array(["a", "b", "c", None], object)}, "not a readable"),
        ({"image_ids": np.array(list("abca"))}, "'a' is there more than once"),
        ({"image_ids": np.arange(4)}, "'image_ids' must be a row of strings"),
        ({"label_ids": None}, "label_ids are missing"),
        ({"label_ids": np.array([3, 4, 7])}, "do not fit each other"),
        ({"labels": np.array("{")}, "not the JSON"),
        ({"labels": np.array("[1]")}, "Expected a label map"),
        ({"labels": np.array(["x"])}, "single string"),
        ({"fingerprint": np.array(3)}, "single string"),
        ({"paths": np.array(["../a", "", "", ""])}, "outside"),
        ({"exclusive": np.array(["shape"])}, "no task shape"),
        ({"embeddings": np.zeros((3, 2))}, "embeddings must be"),
    ],
)
def test_damaged_files_are_told_with_their_name(tmp_path, changes, message):
    path = rewritten(make().write(tmp_path / "s.npz"), **changes)
    with pytest.raises(DataError, match=message) as error:
        ScoreStore.read(path)
    assert str(path) in str(error.value)


def test_files_of_other_labels_or_models_or_none_at_all(tmp_path):
    path = make().write(tmp_path / "s.npz")
    with pytest.raises(DataError, match="another model .0123456789ab, expected ffff"):
        ScoreStore.read(path, fingerprint="ffff")
    smaller = LabelMap(LABELS.labels[:2])
    with pytest.raises(DataError, match="another label map: 3 labels, expected 2"):
        ScoreStore.read(path, label_map=smaller)
    (tmp_path / "s.npz").write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match="not a readable"):
        ScoreStore.read(path)
    (tmp_path / "s.npy").write_bytes(b"text")
    with pytest.raises(DataError, match="not a readable"):
        ScoreStore.read(tmp_path / "s.npy", label_map=LABELS, image_ids=[])
    with pytest.raises(UsageError, match="no such file"):
        ScoreStore.read(tmp_path / "gone.npz")
    (tmp_path / "s.pth").write_bytes(b"")
    with pytest.raises(UsageError, match="not from '.pth'"):
        ScoreStore.read(tmp_path / "s.pth")
    with pytest.raises(UsageError, match="not as '.csv'"):
        make().write(tmp_path / "s.csv")


class Model:
    """Scores of pictures by their hash, and a list of what was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, writer: ScoreWriter, ids: list[str]) -> None:
        self.asked += ids
        numbers = np.array([[int(writer.digests[entry], 16)] for entry in ids], np.float32)
        writer.append(ids, numbers + np.arange(3), np.repeat(numbers, 2, axis=1))


def writer(path, digests, **options) -> ScoreWriter:
    return ScoreWriter(path, digests, LABELS, options.pop("model", MODEL), **({"embedding_dim": 2, "part_rows": 4} | options))


def test_a_killed_run_goes_on_with_the_next_part(tmp_path):
    digests = {f"p{n}": f"{n:04x}" for n in range(11)}
    model = Model()
    first = writer(tmp_path / "s.npz", digests)
    for _ in range(3):
        model(first, first.missing()[:3])
    # Nine rows were computed, eight are in full parts; a kill loses the ninth.
    del first
    assert not (tmp_path / "s.npz").exists()
    second = writer(tmp_path / "s.npz", digests)
    assert second.missing() == ["p8", "p9", "p10"]
    with pytest.raises(UsageError, match="3 of 11 pictures have no scores yet, the first: p8"):
        second.finish()
    with pytest.raises(KeyboardInterrupt), second:
        model(second, ["p8"])
        raise KeyboardInterrupt
    with writer(tmp_path / "s.npz", digests) as third:
        assert third.missing() == ["p9", "p10"]
        model(third, third.missing())
        store = third.finish(paths={"p1": "one.jpg"})
    assert list(tmp_path.iterdir()) == [tmp_path / "s.npz"]
    read = ScoreStore.read(tmp_path / "s.npz")
    for found in (store, read):
        assert found.image_ids == tuple(digests)
        np.testing.assert_array_equal(found.scores, np.arange(11)[:, None] + np.arange(3))
        np.testing.assert_array_equal(found.embeddings[:, 1], np.arange(11))
        assert found.paths[:3] == ("", "one.jpg", "")


def test_equal_pictures_share_a_row_and_replaced_ones_are_computed_anew(tmp_path):
    model = Model()
    with writer(tmp_path / "s.npz", {"a": "01", "b": "02", "c": "01", "d": ""}) as first:
        assert first.missing() == ["a", "b", "d"]
        model(first, ["a", "b"])
        with pytest.raises(UsageError, match="'d' is not among the readable"):
            first.append(["d"], np.zeros((1, 3)), np.zeros((1, 2)))
        first.finish(skip=["d"])
    assert model.asked[:2] == ["a", "b"]
    with writer(tmp_path / "s.npz", {"c": "03", "b": "02", "new": "01"}) as second:
        assert second.missing() == ["c"]
        model(second, ["c"])
        store = second.finish()
    assert store.image_ids == ("c", "b", "new")
    assert store.scores[:, 0].tolist() == [3, 2, 1]


@pytest.mark.parametrize("change", ["model", "embedding_dim", "exclusive", "damage"])
def test_rows_of_another_model_are_not_used(tmp_path, change):
    digests = {"a": "01", "b": "02"}
    with writer(tmp_path / "s.npz", digests) as first:
        Model()(first, ["a", "b"])
        first.finish()
    options = {"model": "another model"} if change == "model" else {}
    options |= {"embedding_dim": None} if change == "embedding_dim" else {}
    options |= {"exclusive": ("color",)} if change == "exclusive" else {}
    if change == "damage":
        (tmp_path / "s.npz").write_bytes(b"PK")
    assert writer(tmp_path / "s.npz", digests, **options).missing() == ["a", "b"]


def test_the_writer_refuses(tmp_path):
    one = writer(tmp_path / "s.npz", {"a": "01"})
    with pytest.raises(DataError, match="id 'a'. has NaN"):
        one.append(["a"], [[0, 0, np.nan]], [[0, 0]])
    with pytest.raises(UsageError, match="expected width 2"):
        one.append(["a"], [[0, 0, 0]])
    with pytest.raises(UsageError, match=r"scores must be \(1, 3\)"):
        one.append(["a"], [[0, 0]], [[0, 0]])
    with pytest.raises(UsageError, match="fingerprint"):
        writer(tmp_path / "s.npz", {}, model="")
    with pytest.raises(UsageError, match="not as '.json'"):
        writer(tmp_path / "s.json", {})
    with pytest.raises(UsageError, match="at least 1 row"):
        writer(tmp_path / "s.npz", {}, part_rows=0)
    assert one.missing() == ["a"]
    assert json.dumps(one.digests) == '{"a": "01"}'
