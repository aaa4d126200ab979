"""What `tf-fashion cluster` does (no TensorFlow needed)."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from tf_fashion.clustering.finch import FinchResult, finch
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import atomic_write, make_out_folder, replaced_file
from tf_fashion.datasets.domain_features import read_domain_features
from tf_fashion.reports.clusters import PROJECTIONS, draw_clusters, readable_partition
from tf_fashion.retrieval.index import ExactIndex


def cluster_file(
    features: str,
    out: str,
    metric: str = "cosine",
    required: int | None = None,
    pruning: str = "none",
    neighbours: str = "exact",
    csv: str | None = None,
    picture: str | None = None,
    projection: str = "pca",
    partition: int | None = None,
    progress: bool = True,
) -> str:
    """Clusters the rows of a file with FINCH. See `tf-fashion cluster --help`.

    Returns:
        The numbers of clusters, as text.

    Raises:
        UsageError: options that cannot be used.
        DataError: a file that cannot be read as a matrix of finite numbers.
    """
    if Path(out).suffix != ".npz":
        raise UsageError(f"--out: clusters are written to .npz files, not to {Path(out).name!r}.")
    if projection not in PROJECTIONS:
        raise UsageError(f"--projection: expected {' or '.join(PROJECTIONS)}, found {projection!r}.")
    if picture and Path(picture).suffix not in (".png", ".svg"):
        raise UsageError(f"--picture: clusters are drawn to .png or .svg, not to {Path(picture).name!r}.")
    values, ids = read_matrix(features)
    options = {"metric": metric, "pruning": pruning, "neighbours": neighbours, "required": required, "progress": progress}
    found = finch(values, **options)  # type: ignore[arg-type]
    if partition is not None:
        found.partition(partition)
    make_out_folder(Path(out).parent)
    arrays = {"labels": found.labels, "counts": np.array(found.counts)}
    if found.required_labels is not None:
        arrays["required"] = found.required_labels
    with replaced_file(Path(out), ".npz") as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **arrays)
    if csv:
        _write_csv(Path(csv), found, ids)
    if picture:
        make_out_folder(Path(picture).parent)
        level = readable_partition(found.counts) if partition is None else partition
        title = f"{found.counts[level]:,} clusters of {len(values):,} rows"
        draw_clusters(
            picture, values, found.labels[:, level], method=projection, title=title, protocol=f"FINCH, {metric}, partition {level}"
        )  # type: ignore[arg-type]
    lines = [f"partition {level}: {count:,} clusters" for level, count in enumerate(found.counts)]
    return "\n".join([f"{len(values):,} rows of {values.shape[1]} numbers", *lines, f"Written to {out}"])


def read_matrix(path: str | Path) -> tuple[np.ndarray, list[str] | None]:
    """Embeddings of a file: `.npy`, an index folder of `embed` (with its ids), `.h5` or `.mat`.

    Raises:
        UsageError: another kind of file, or nothing there.
        DataError: no matrix of numbers.
    """
    path = Path(path)
    if path.is_dir():
        index = ExactIndex.load(path)
        kept = np.flatnonzero(~index.deleted)
        return np.asarray(index.embeddings[kept], np.float32), [index.ids[row] for row in kept]
    if not path.is_file():
        raise UsageError(f"{path}: no such file or folder.")
    if path.suffix in (".h5", ".hdf5", ".mat"):
        return read_domain_features(path).values, None
    if path.suffix != ".npy":
        raise UsageError(f"{path}: embeddings are read from .npy, .h5 and .mat files and from folders that `embed` wrote.")
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as an array ({error}).") from None
    if not isinstance(values, np.ndarray):
        raise DataError(f"{path}: expected one array, found an archive of several. Save the matrix with numpy.save.")
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise DataError(f"{path}: expected numbers (rows, width), found {values.dtype} {values.shape}.")
    return values, None


def _write_csv(path: Path, found: FinchResult, ids: list[str] | None) -> None:
    make_out_folder(path.parent)
    columns = [*found.labels.T, *([] if found.required_labels is None else [found.required_labels])]
    heads = [f"partition_{level}" for level in range(len(found.counts))] + (["required"] if found.required_labels is not None else [])
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row" if ids is None else "id", *heads])
        for row, values in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
            writer.writerow([row if ids is None else ids[row], *values])
