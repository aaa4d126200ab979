"""Score files: what is written is read, and nothing damaged is."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ensemble.made_up import ANY, KEPT, REMOVED, made_queries, write_member
from tf_fashion.core.errors import DataError, TfFashionError, UsageError
from tf_fashion.ensemble.fusion import Fusion
from tf_fashion.ensemble.scores import ScoredQuery, ScoreWriter, check_together, open_scores

SHAPE = (7, 11)


def matrix(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def write(folder: Path, **options: Any) -> Path:
    return write_member(folder, {"dress": (made_queries("dress", *SHAPE), matrix())}, **options).folder


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_round_trip(tmp_path: Path, dtype: str) -> None:
    queries, scores = made_queries("dress", *SHAPE), matrix()
    few = [ScoredQuery("only", "g0", None, ())]
    both = {"dress": (queries, scores), "a-b_c.d": (few, scores[:1, :3])}
    member = write_member(tmp_path / "a" / "b", both, REMOVED, scale=None, dtype=dtype, run={"x": [1]})
    assert (member.name, member.protocol, member.scale, member.run) == ("b", REMOVED, None, {"x": [1]})
    assert list(member.categories) == ["dress", "a-b_c.d"] and not member.has_targets
    part = member.categories["dress"]
    assert part.queries == queries and part.gallery == [f"g{place}" for place in range(SHAPE[1])] and part.has_targets
    assert isinstance(part.scores, np.memmap) and part.scores.dtype == dtype
    read = part.read(slice(2, 99))
    assert read.dtype == np.float32 and read.tolist() == scores[2:].astype(dtype).astype(np.float32).tolist()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["b"]


def test_labels_are_kept_where_several_answers_are_right(tmp_path: Path) -> None:
    labels = {f"g{place}": f"label {place % 3}" for place in range(40)}
    member = write_member(tmp_path / "m", {"all": (made_queries("all", *SHAPE), matrix())}, ANY, labels)
    assert member.categories["all"].labels == {f"g{place}": f"label {place % 3}" for place in range(SHAPE[1])}


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ScoreWriter(tmp_path / "m", "m", KEPT, 1.0) as writer:
        writer.category("dress", made_queries("dress", *SHAPE), ["g0"])[0] = 1.0
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError), ScoreWriter(tmp_path / "m", "m", KEPT, float("nan")) as writer:
        writer.category("dress", made_queries("dress", *SHAPE), ["g0"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "a\n", "ü"])
def test_a_category_cannot_leave_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="usable"), ScoreWriter(tmp_path / "m", "m", KEPT, 1.0) as writer:
        writer.category(name, made_queries("dress", *SHAPE), ["g0"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_an_empty_category_is_not_written(tmp_path: Path, shape: tuple[int, int]) -> None:
    queries = [ScoredQuery(f"q{row}", "r", "t") for row in range(shape[0])]
    with pytest.raises(DataError, match="'dress' has"), ScoreWriter(tmp_path / "m", "m", KEPT, 1.0) as writer:
        writer.category("dress", queries, [f"g{place}" for place in range(shape[1])])
    assert not list(tmp_path.iterdir())


def test_older_scores_are_replaced_only_if_told(tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    with pytest.raises(UsageError, match="--overwrite"):
        write(folder)
    write(folder, overwrite=True, name="other")
    assert open_scores(folder).name == "other" and [path.name for path in tmp_path.iterdir()] == ["m"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(UsageError, match="other files"):
        write(tmp_path / "mine", overwrite=True)
    with pytest.raises(UsageError, match="found a file"):
        write(tmp_path / "mine" / "thesis.txt", overwrite=True)
    with pytest.raises(UsageError, match="float16, found 'int8'"):
        write(tmp_path / "new", dtype="int8")


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        manifest = json.loads((folder / "scores.json").read_text())
        changed = change(manifest)
        (folder / "scores.json").write_text(json.dumps(manifest if changed is None else changed))

    return apply


def put(value: Any, *keys: Any) -> Callable[[Path], None]:
    def change(manifest: Any) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] = value

    return edit(change)


def drop(*keys: Any) -> Callable[[Path], None]:
    def change(manifest: Any) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        del manifest[keys[-1]]

    return edit(change)


def cut(count: int) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = (folder / "dress.npy").read_bytes()
        (folder / "dress.npy").write_bytes(data[:count] if count <= len(data) else data + b"\0" * (count - len(data)))

    return apply


def array(value: Any) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / "dress.npy", value, allow_pickle=True)


def header(text: bytes, version: tuple[int, int] = (1, 0)) -> Callable[[Path], None]:
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return lambda folder: (folder / "dress.npy").write_bytes(b"\x93NUMPY" + bytes(version) + size + text)


FIRST = ("categories", "dress", "queries", 0)
DAMAGE = {
    "no manifest": (lambda folder: (folder / "scores.json").unlink(), "there is no scores.json"),
    "no folder": (shutil.rmtree, "no such folder"),
    "not JSON": (lambda folder: (folder / "scores.json").write_text("{"), "not valid JSON"),
    "deep JSON": (lambda folder: (folder / "scores.json").write_text("[" * 100_000), "nested too deeply"),
    "a list": (edit(lambda manifest: [manifest]), "not a score file"),
    "a string": (edit(lambda manifest: "scores"), "not a score file"),
    "null": (lambda folder: (folder / "scores.json").write_text("null"), "not a score file"),
    "other format": (put("recipes", "format"), "found 'recipes' 1"),
    "later version": (put(2, "version"), "version 1, found"),
    "no protocol": (drop("protocol"), "key 'protocol' is missing"),
    "protocol list": (put([], "protocol"), "not a score file"),
    "protocol value": (put("moon", "protocol", "gallery"), "not a score file.*gallery must be one of"),
    "protocol cuts": (put(5, "protocol", "ks"), "not a score file"),
    "no scale": (drop("scale"), "key 'scale' is missing"),
    "scale text": (put("25", "scale"), "scale: expected int or float, found str"),
    "scale NaN": (put(float("nan"), "scale"), "expected a positive number, found nan"),
    "scale negative": (put(-1, "scale"), "expected a positive number"),
    "scale huge": (put(10**400, "scale"), "not a score file"),
    "name": (put(None, "name"), "name: expected str"),
    "run": (put([], "run"), "run: expected dict"),
    "categories list": (put([], "categories"), "categories: expected dict"),
    "no category": (put({}, "categories"), "no category"),
    "category list": (put([], "categories", "dress"), "not a score file"),
    "queries dict": (put({}, "categories", "dress", "queries"), "queries: expected list, found dict"),
    "query list": (put([], *FIRST), "not a score file"),
    "query id": (put(1, *FIRST, "id"), "query 0, id: expected str, found int"),
    "reference": (put(None, *FIRST, "reference"), "reference: expected str, found NoneType"),
    "no target": (drop(*FIRST, "target"), "key 'target' is missing"),
    "target list": (put(["g0"], *FIRST, "target"), "target: expected str or NoneType, found list"),
    "captions text": (put("is red", *FIRST, "captions"), "captions: expected list, found str"),
    "caption": (put([1], *FIRST, "captions"), "captions: expected str, found int"),
    "gallery text": (put("abcdefghijk", "categories", "dress", "gallery"), "gallery: expected list, found str"),
    "gallery numbers": (put(list(range(11)), "categories", "dress", "gallery"), "gallery: expected str"),
    "gallery repeats": (put("g0", "categories", "dress", "gallery", 1), "'g0' stands there more than once"),
    "queries repeat": (
        edit(lambda m: m["categories"]["dress"]["queries"][1].update(m["categories"]["dress"]["queries"][0])),
        "more than",
    ),
    "gallery shorter": (drop("categories", "dress", "gallery", 0), r"expected .* \(7, 10\)"),
    "gallery empty": (put([], "categories", "dress", "gallery"), "has no gallery"),
    "queries empty": (put([], "categories", "dress", "queries"), "has no queries"),
    "labels": (put([], "categories", "dress", "labels"), "labels: expected dict"),
    "labels lack": (put({"g0": "x"}, "categories", "dress", "labels"), "labels: none for 'g1'"),
    "labels numbers": (put({"g0": 1}, "categories", "dress", "labels"), "labels: expected str"),
    "outside": (edit(lambda m: m["categories"].update({"../x": m["categories"]["dress"]})), r"'../x' is not usable"),
    "absolute": (edit(lambda m: m["categories"].update({"/etc/x": m["categories"]["dress"]})), "is not usable"),
    "not there": (edit(lambda m: m["categories"].update({"shirt": m["categories"]["dress"]})), "shirt.npy: missing"),
    "no matrix": (lambda folder: (folder / "dress.npy").unlink(), "dress.npy: missing"),
    "matrix is a folder": (lambda folder: ((folder / "dress.npy").unlink(), (folder / "dress.npy").mkdir()), "missing"),
    "empty file": (cut(0), "not a NumPy file"),
    "half a header": (cut(40), "not a NumPy file"),
    "no data": (cut(128), "cut short"),
    "a byte less": (cut(128 + 4 * 77 - 1), "cut short: expected 436 bytes for 7 x 11 float32, found 435"),
    "a byte more": (cut(128 + 4 * 77 + 1), "too long"),
    "transposed": (array(matrix().T), r"expected .* \(7, 11\) as its ids say, found float32 \(11, 7\)"),
    "flat": (array(matrix().ravel()), r"found float32 \(77,\)"),
    "Fortran": (array(np.asfortranarray(matrix())), "Fortran order"),
    "float64": (array(matrix().astype(np.float64)), "found float64"),
    "integers": (array(matrix().astype(np.int32)), "found int32"),
    "objects": (array(matrix().astype(object)), "found object"),
    "records": (array(np.zeros(SHAPE, [("a", "f4")])), "expected float32 or float16"),
    "archive": (lambda folder: (np.savez(folder / "x.npz", matrix()), (folder / "x.npz").replace(folder / "dress.npy")), "not a NumPy"),
    "huge header": (header(b"{" + b" " * 60_000 + b"}"), "not a NumPy file"),
    "huge shape": (header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999, 999999999999), }\n"), "expected float32"),
    "negative shape": (header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-7, -11), }\n"), "expected float32"),
    "nested header": (header(b"(" * 9_000), "not a NumPy file"),
    "open header": (header(b"{'descr': ("), "not a NumPy file"),
    "no dictionary": (header(b"[]\n"), "not a NumPy file"),
    "odd type": (header(b"{'descr': 'Q9', 'fortran_order': False, 'shape': (7, 11), }\n"), "not a NumPy file|expected float32"),
    "odd version": (header(b"{}", (9, 9)), "not a NumPy file"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(tmp_path: Path, kind: str) -> None:
    change, message = DAMAGE[kind]
    folder = write(tmp_path / "m")
    change(folder)
    with pytest.raises(TfFashionError, match=message) as caught:
        open_scores(folder)
    assert str(folder) in str(caught.value)


def test_byte_orders_and_older_format_versions_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    with open(folder / "dress.npy", "wb") as file:
        np.lib.format.write_array(file, matrix().astype(">f4"), version=(2, 0))
    read = open_scores(folder).categories["dress"].read(slice(1, 4))
    assert read.dtype.isnative and read.tolist() == matrix()[1:4].tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_other_numbers_are_named(tmp_path: Path, value: float, dtype: str) -> None:
    scores = matrix()
    scores[3, 5] = value
    queries = made_queries("dress", *SHAPE)
    fusion = Fusion([write_member(tmp_path / "m", {"dress": (queries, scores)}, dtype=dtype)])
    with pytest.raises(DataError, match=f"m, dress: expected finite scores, found {value} for query '{queries[3].id}'.*'g5'"):
        fusion.check_finite()


def test_members_must_belong_together(tmp_path: Path) -> None:
    queries, scores = made_queries("dress", *SHAPE), matrix()
    first = write_member(tmp_path / "first", {"dress": (queries, scores), "shirt": (queries, scores)})

    def refused(
        name: str, queries: list[ScoredQuery], scores: np.ndarray, kind: type[TfFashionError], message: str, **options: Any
    ) -> None:
        other = write_member(tmp_path / name, {"dress": (queries, scores), "shirt": (queries, scores)}, **options)
        with pytest.raises(kind, match=message):
            check_together([first, other])

    refused(
        "order", queries[::-1], scores, DataError, "order, dress: the queries differ.*same ids in another order; first at position 0"
    )
    refused("fewer", queries[:-1], scores[:-1], DataError, "6 ids instead of 7.*1 missing.*position 6.*found 'nothing'")
    refused("gallery", queries, scores[:, :-1], DataError, "gallery, dress: the gallery differ.*10 ids instead of 11")
    swapped = [ScoredQuery(q.id, q.reference, q.reference, q.captions) for q in queries]
    refused("targets", swapped, scores, DataError, "targets, dress: the targets differ")
    swapped = [ScoredQuery(q.id, str(q.target), q.target, q.captions) for q in queries]
    refused("references", swapped, scores, DataError, "references, dress: the references differ")
    refused("protocol", queries, scores, UsageError, "different protocols.*reference removed", protocol=REMOVED)
    alone = write_member(tmp_path / "alone", {"dress": (queries, scores)})
    for pair in ([first, alone], [alone, first]):
        with pytest.raises(DataError, match="alone: the categories shirt are missing"):
            check_together(pair)
    with pytest.raises(UsageError, match="needs score files"):
        check_together([])
    # Other captions and other orders of the categories are no difference.
    turned = [ScoredQuery(q.id, q.reference, q.target, q.captions[::-1]) for q in queries]
    check_together([first, write_member(tmp_path / "turned", {"shirt": (turned, scores), "dress": (turned, scores)})])


def test_other_labels_are_refused(tmp_path: Path) -> None:
    members = [
        write_member(
            tmp_path / f"{by}", {"all": (made_queries("all", *SHAPE), matrix())}, ANY, {f"g{p}": f"{p % by}" for p in range(11)}
        )
        for by in (3, 4)
    ]
    with pytest.raises(DataError, match="labels differ"):
        check_together(members)
