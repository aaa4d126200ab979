"""Commands beside training: a street-to-shop model measured again, and clusters of embeddings."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.training.conftest import Street
from tf_fashion.cli import main
from tf_fashion.clustering.finch import finch
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.retrieval.index import ExactIndex
from tf_fashion.training.cluster_command import read_matrix


def measure(street: Street, out: Path, *options: str, data: Path | None = None) -> int:
    given = ["--model", str(street.model), "--data", str(data or street.data), "--out", str(out), "--quiet"]
    return main(["evaluate", "street_to_shop", *given, *options])


def nearly(one: dict, other: dict) -> bool:
    return set(one) == set(other) and all(one[key] == pytest.approx(other[key], abs=1e-3) for key in one)


def test_evaluation_gives_what_the_run_gave(street: Street, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure(street, tmp_path / "new/all.json", "--original-lines") == 0
    text = capsys.readouterr().out
    ours, theirs = (json.loads(path.read_text()) for path in (tmp_path / "new/all.json", street.model.parent / "metrics.json"))
    assert ours["test"] == "df" and list(ours["tests"]) == ["df", "s2s"]
    for name in ("df", "s2s"):
        assert nearly(ours["tests"][name]["mean"], theirs["tests"][name]["mean"])
        assert ours["tests"][name]["protocol"] == theirs["tests"][name]["protocol"]
        assert ours["tests"][name]["counts"] == theirs["tests"][name]["counts"]
    assert ours["run"]["name"] == "all" and ours["run"]["left_out"] == 0 and ours["run"]["data_hash"] == theirs["run"]["data_hash"]
    assert "Written to" in text and "consumer photos in the shop" in text and "mAP" in text


@pytest.mark.slow
def test_evaluation_by_another_definition(street: Street, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        measure(street, tmp_path / "s2s.json", "--test", "s2s", "--ap", "standard", "--name", "mine", "--report", str(tmp_path / "r"))
        == 0
    )
    metrics = json.loads((tmp_path / "s2s.json").read_text())
    assert list(metrics["tests"]) == ["s2s"] and metrics["protocol"]["ap"] == "standard" and metrics["run"]["name"] == "mine"
    run = json.loads((street.model.parent / "metrics.json").read_text())["tests"]["s2s"]
    # One positive at rank r > 1 counts twice as much as by the trapezoid.
    assert metrics["mean"]["mAP"] > run["mean"]["mAP"] and metrics["mean"]["R@5"] == pytest.approx(run["mean"]["R@5"], abs=1e-3)
    assert (tmp_path / "r/sheet.png").exists() and "mine" in (tmp_path / "r/report.html").read_text()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--test", "imat"], "--test imat"),
        (["--test", "df", "--protocol", "street2shop"], "ranks within categories"),
        (["--protocol", "val"], "Unknown protocol 'val'"),
        (["--ap", "mean"], "ap must be one of"),
        (["--batch-size", "0"], "--batch-size: expected at least 1"),
        (["--model", "nowhere.keras"], "nowhere.keras"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_evaluations_that_cannot_be(street: Street, tmp_path: Path, capsys, options: list[str], words: str) -> None:
    assert measure(street, tmp_path / "out.json", *options) in (1, 2)
    message = capsys.readouterr().err
    assert words in message and "Traceback" not in message
    assert not (tmp_path / "out.json").exists()


def test_evaluation_without_test_lists(street: Street, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = street.copy(tmp_path / "data")
    for path in (data / "test").iterdir():
        path.unlink()
    assert measure(street, tmp_path / "out.json", data=data) == 2
    assert "nothing to measure" in capsys.readouterr().err


@pytest.mark.slow
def test_spoiled_photos_are_left_out_of_an_evaluation(street: Street, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = street.copy_photos(tmp_path / "data")
    listed = [line.split(",")[0] for line in (data / "test/consumer_df.txt").read_text().splitlines()]
    shop = [line.split(",")[0] for line in (data / "test/shop_df.txt").read_text().splitlines()]
    (data / listed[0]).unlink()
    (data / shop[-1]).write_bytes(b"no picture")
    assert measure(street, tmp_path / "out.json", "--test", "df", data=data) == 1
    assert "--skip-bad-images" in capsys.readouterr().err and not (tmp_path / "out.json").exists()
    assert measure(street, tmp_path / "out.json", "--test", "df", "--skip-bad-images", data=data) == 0
    metrics = json.loads((tmp_path / "out.json").read_text())
    assert metrics["run"]["left_out"] == 2 and metrics["counts"]["gallery"] == len(shop) - 1
    assert metrics["counts"]["queries"] + metrics["counts"]["queries_without_right_picture"] == len(listed) - 1
    for name in listed:
        (data / name).unlink(missing_ok=True)
    assert measure(street, tmp_path / "none.json", "--test", "df", "--skip-bad-images", data=data) == 1
    assert "no consumer photo is left in the test lists of df" in capsys.readouterr().err


# Clusters.


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    random = np.random.default_rng(0)
    centres = random.normal(size=(5, 8))
    return (np.repeat(centres, 12, axis=0) + 0.05 * random.normal(size=(60, 8))).astype(np.float32)


def clustered(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["cluster", *map(str, arguments), "--quiet"]) == 0
    return capsys.readouterr().out


def test_clusters_of_an_array(vectors: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", vectors)
    files = [tmp_path / name for name in ("deep/x.npz", "tables/x.csv", "pictures/x.png")]
    text = clustered(capsys, tmp_path / "x.npy", "--out", files[0], "--csv", files[1], "--picture", files[2], "--clusters", "3")
    expected = finch(vectors, required=3)
    with np.load(files[0], allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["labels"], expected.labels)
        np.testing.assert_array_equal(archive["required"], expected.required_labels)
        assert archive["counts"].tolist() == expected.counts and len(np.unique(archive["required"])) == 3
    assert "60 rows of 8 numbers" in text and f"partition 0: {expected.counts[0]} clusters" in text
    with open(files[1]) as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60 and list(rows[0]) == ["row", *(f"partition_{n}" for n in range(len(expected.counts))), "required"]
    assert [int(row["required"]) for row in rows] == expected.required_labels.tolist()
    assert files[2].read_bytes().startswith(b"\x89PNG")


def test_clusters_of_an_index_and_of_a_feature_file(vectors: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    index = ExactIndex.build([f"photo-{n}" for n in range(60)], unit)
    index.delete(["photo-7"])
    index.save(tmp_path / "index")
    clustered(capsys, tmp_path / "index", "--out", tmp_path / "i.npz", "--csv", tmp_path / "i.csv")
    with open(tmp_path / "i.csv") as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    assert ids == [f"photo-{n}" for n in range(60) if n != 7]
    with np.load(tmp_path / "i.npz") as archive:
        np.testing.assert_array_equal(archive["labels"], finch(np.delete(unit, 7, axis=0)).labels)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["X_"], file["pid"], file["cid"] = vectors, np.arange(60), np.zeros(60, np.int64)
    clustered(capsys, tmp_path / "x.h5", "--out", tmp_path / "h.npz", "--metric", "euclidean")
    with np.load(tmp_path / "h.npz") as archive:
        np.testing.assert_array_equal(archive["labels"], finch(vectors, "euclidean").labels)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.npy", b"", "cannot be read as an array"),
        ("x.npy", b"\x93NUMPY no", "cannot be read as an array"),
        ("x.npy", np.zeros(4, np.float32), r"expected numbers \(rows, width\)"),
        ("x.npy", np.zeros((4, 2), np.complex64), r"expected numbers \(rows, width\)"),
        ("x.npy", np.array([["a", "b"]]), r"expected numbers \(rows, width\)"),
        ("x.npy", np.array([[{}]]), "cannot be read as an array"),
        ("x.h5", b"no hdf5", "x.h5"),
        ("x.mat", b"", "x.mat"),
    ],
)
def test_files_that_hold_no_matrix(tmp_path: Path, name: str, content: bytes | np.ndarray, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    with pytest.raises(DataError, match=words):
        read_matrix(path)


def test_archives_and_other_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 2)))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(DataError, match="an archive of several"):
        read_matrix(tmp_path / "a.npy")
    with pytest.raises(UsageError, match="are read from .npy"):
        read_matrix(Path(__file__))
    with pytest.raises(UsageError, match="no such file"):
        read_matrix(tmp_path / "b.npy")
    with pytest.raises((DataError, UsageError)):
        read_matrix(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "x.npy"], "--out: clusters are written to .npz files"),
        (["--projection", "tsne"], "--projection: expected pca or umap"),
        (["--picture", "x.pdf"], "--picture: clusters are drawn to .png or .svg"),
        (["--metric", "sinus"], "sinus"),
        (["--pruning", "all"], "Unknown pruning 'all'"),
        (["--neighbours", "flann"], "flann"),
        (["--clusters", "0"], "at least 1"),
        (["--clusters", "61"], "61"),
        (["--partition", "9"], "partition 9"),
    ],
)
def test_clusters_that_cannot_be(vectors: np.ndarray, tmp_path: Path, capsys, options: list[str], words: str) -> None:
    np.save(tmp_path / "x.npy", vectors)
    assert main(["cluster", str(tmp_path / "x.npy"), "--out", str(tmp_path / "x.npz"), "--quiet", *options]) == 2
    message = capsys.readouterr().err
    assert words in message and "Traceback" not in message
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_hardly_any_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: int) -> None:
    np.save(tmp_path / "x.npy", np.ones((rows, 3), np.float32))
    arguments = ["cluster", str(tmp_path / "x.npy"), "--out", str(tmp_path / "x.npz"), "--picture", str(tmp_path / "x.svg"), "--quiet"]
    code = main(arguments)
    message = capsys.readouterr()
    assert "Traceback" not in message.err and code == (0 if rows else 1), message
    np.save(tmp_path / "x.npy", np.full((4, 3), np.nan))
    assert main(arguments) == 1 and "NaN" in capsys.readouterr().err
