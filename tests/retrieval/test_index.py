"""The saved exact index."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.retrieval.index import MANIFEST, ExactIndex


@pytest.fixture
def rows():
    return np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)


def names(count, start=0):
    return [f"item{n}" for n in range(start, start + count)]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_save_and_load(tmp_path, rows, dtype):
    index = ExactIndex.build(names(20), rows, dtype=dtype, notes={"model": "abc"})
    wanted = index.search(rows[:3], 4)
    loaded = ExactIndex.load(index.save(tmp_path / "index"), verify=True)
    assert isinstance(loaded.embeddings, np.memmap) and loaded.notes == {"model": "abc"} and len(loaded) == 20
    found = loaded.search(rows[:3], 4)
    assert found[0] == wanted[0]
    np.testing.assert_array_equal(found[1], wanted[1])
    assert [entry[0] for entry in loaded.search(rows[:3], 1)[0]] == [
        names(20)[n] for n in np.argmax(rows[:3] @ rows.astype(dtype).astype(np.float32).T, axis=1)
    ]


def test_add_delete_compact_and_replace(tmp_path, rows):
    index = ExactIndex.build(names(20), rows, metric="cosine")
    index.delete(["item3"])
    assert len(index) == 19 and "item3" not in index
    assert "item3" not in index.search(rows[3:4], 20)[0][0]
    index.add(["item3", "new"], rows[[0, 3]])
    assert index.search(rows[3:4], 1)[0] == [["new"]]
    assert index.search(rows[:1], 2)[0] == [["item0", "item3"]], "a tie goes to the row that was added first"
    index.save(tmp_path / "index")
    loaded = ExactIndex.load(tmp_path / "index")
    assert loaded.search(rows, 21)[0] == index.search(rows, 21)[0]
    loaded.compact()
    assert len(loaded.ids) == 21 and loaded.search(rows, 21)[0] == index.search(rows, 21)[0]
    loaded.save(tmp_path / "index")
    assert len(list((tmp_path / "index").iterdir())) == 3
    np.testing.assert_array_equal(ExactIndex.load(tmp_path / "index").get("new"), rows[3])


def test_more_wanted_than_there_and_exclusions(rows):
    index = ExactIndex.build(names(3), rows[:3])
    found, scores = index.search(rows[:2], 10, exclude_ids=[["item0", "unknown"], []])
    assert [len(entry) for entry in found] == [2, 3] and scores.shape == (2, 3) and np.isneginf(scores[0, 2])
    empty = ExactIndex.build([], np.zeros((0, 6), np.float32))
    assert empty.search(rows[:2], 3)[0] == [[], []]


def test_an_empty_index_can_be_saved(tmp_path):
    ExactIndex.build([], np.zeros((0, 6), np.float32)).save(tmp_path)
    assert len(ExactIndex.load(tmp_path)) == 0


def test_refusals(rows):
    index = ExactIndex.build(names(20), rows)
    with pytest.raises(UsageError, match="'nobody'"):
        index.delete(["item1", "nobody"])
    assert "item1" in index
    with pytest.raises(DataError, match="already"):
        index.add(["item1"], rows[:1])
    with pytest.raises(UsageError, match="shape"):
        index.add(["more"], rows[:1, :3])
    with pytest.raises(DataError, match="not usable as a file name"):
        ExactIndex.build(["../x"], rows[:1])
    with pytest.raises(DataError, match="more than once"):
        ExactIndex.build(["a", "b", "a"], rows[:3])
    with pytest.raises(DataError, match="'b'"):
        ExactIndex.build(["a", "b"], np.array([[1.0], [np.nan]]))
    with pytest.raises(DataError, match="too large for float16"):
        ExactIndex.build(["a"], np.array([[1e9]]), dtype="float16")


def damage_manifest(key, value):
    def damage(folder):
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest[key] = value
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return damage


def cut_embeddings(folder):
    path = next(folder.glob("embeddings.*"))
    path.write_bytes(path.read_bytes()[:-8])


def point_outside(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["ids"]["name"] = "../ids.0000000000000000.json"
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / MANIFEST).unlink(),
        lambda folder: (folder / MANIFEST).write_text("{"),
        lambda folder: (folder / MANIFEST).write_text("[]"),
        lambda folder: next(folder.glob("ids.*")).unlink(),
        cut_embeddings,
        point_outside,
        damage_manifest("version", 99),
        damage_manifest("rows", 19),
        damage_manifest("rows", "20"),
        damage_manifest("dim", 7),
        damage_manifest("dtype", "object"),
        damage_manifest("deleted", [20]),
        damage_manifest("deleted", None),
        damage_manifest("files", None),
    ],
)
def test_damaged_indexes(tmp_path, rows, damage):
    ExactIndex.build(names(20), rows).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError):
        ExactIndex.load(tmp_path)


def test_flipped_bytes_are_found_when_asked(tmp_path, rows):
    ExactIndex.build(names(20), rows).save(tmp_path)
    path = next(tmp_path.glob("embeddings.*"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="SHA-256"):
        ExactIndex.load(tmp_path, verify=True)
