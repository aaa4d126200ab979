"""Features of consumer and shop photos in files, as UDMA's programs exchange them.

| file | content |
|---|---|
| `.h5` of a training list | `X_` (n, dim), `pid` (n,), `cid` (n,) |
| `.h5` of a test list | `X_` (n, dim), `labels` (n, 1) product numbers, `class_labels` (n, 1) category numbers; or `X_` alone |
| `.mat` (version 5, or 7.3) | `feats` (n, dim); the products in a text file, one id a line |

Rows are in the order of the list. Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import replaced_file
from tf_fashion.datasets.mat_files import read_mat
from tf_fashion.datasets.street_lists import ProductPhoto

_NUMBERS = {"pid": "products", "labels": "products", "cid": "categories", "class_labels": "categories"}


@dataclass(frozen=True, eq=False)
class DomainFeatures:
    """Features in the order of a list.

    Attributes:
        values: float32 (n, dim), finite.
        products: Product ids as text, or None where the file has none.
        categories: int64 (n,), or None.
        path: Where they come from, for messages.
    """

    values: np.ndarray = field(repr=False)
    products: tuple[str, ...] | None = field(default=None, repr=False)
    categories: np.ndarray | None = field(default=None, repr=False)
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.values)

    def require_list(self, photos: Sequence[ProductPhoto], name: str) -> None:
        """Makes sure that the rows are those of a list.

        Args:
            photos: The list.
            name: Its name, for messages.

        Raises:
            DataError: another number of rows, or rows of other products or categories; the message names the first.
        """
        if len(photos) != len(self):
            raise DataError(f"{self.path}: expected {len(photos)} rows as in {name}, found {len(self)}. Extract the features anew.")
        for row, photo in enumerate(photos):
            if self.products is not None and self.products[row] != photo.product:
                raise DataError(
                    f"{self.path}, row {row}: expected product {photo.product} as in {name}, found {self.products[row]}. "
                    "The file belongs to another list, or to another order of its lines."
                )
            if self.categories is not None and photo.category is not None and self.categories[row] != photo.category:
                what = f"expected category {photo.category} as in {name}, found {self.categories[row]}"
                raise DataError(f"{self.path}, row {row}: {what}. The file belongs to another list.")


def read_domain_features(path: str | Path, labels: str | Path | None = None) -> DomainFeatures:
    """Reads a file of features.

    Args:
        path: `.h5` (or `.hdf5`) or `.mat`.
        labels: A text file with one product id a line, for files without products.

    Raises:
        UsageError: another ending.
        DataError: no such file, a damaged one, no features, NaN or infinity (the message names the rows), products or categories that
            are no whole numbers, or of another number of rows.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file. Expected features of photos.")
    numbers: dict[str, np.ndarray] = {}
    if path.suffix in (".h5", ".hdf5"):
        arrays = _read_hdf5(path, ("X_", *_NUMBERS), "X_")
        values = arrays.pop("X_")
        numbers = {_NUMBERS[key]: _whole_numbers(array, f"{path}, {key}") for key, array in arrays.items()}
    elif path.suffix == ".mat":
        with open(path, "rb") as file:
            head = file.read(520)
        if h5py.is_hdf5(path) or head[512:516] == b"\x89HDF":
            # MATLAB's own order is by columns.
            values = _read_hdf5(path, ("feats",), "feats")["feats"].T
        else:
            values = read_mat(path, "feats")
    else:
        raise UsageError(f"{path}: features of photos are read from .h5 and .mat files, not from {path.suffix!r}.")
    if values.ndim != 2 or values.dtype.kind not in "fiu" or not values.size:
        raise DataError(f"{path}: expected features (rows, width), found {values.dtype} {values.shape}.")
    values = np.ascontiguousarray(values, np.float32)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        shown = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        raise DataError(f"{path}: expected finite features, found NaN or infinity in {len(bad)} row(s) ({shown}). Extract them anew.")
    for what, array in numbers.items():
        if len(array) != len(values):
            raise DataError(f"{path}: expected {len(values)} {what}, one per row of the features, found {len(array)}.")
    products = tuple(map(str, numbers["products"].tolist())) if "products" in numbers else None
    if labels is not None:
        products = tuple(read_labels(labels))
        if len(products) != len(values):
            raise DataError(f"{labels}: expected {len(values)} ids, one per row of {path.name}, found {len(products)}.")
    return DomainFeatures(values, products, numbers.get("categories"), path)


def write_domain_features(
    path: str | Path,
    values: np.ndarray,
    products: Sequence[int] | np.ndarray | None = None,
    categories: Sequence[int] | np.ndarray | None = None,
    test: bool = False,
) -> Path:
    """Writes an `.h5` file as UDMA's programs have it.

    Args:
        path: The file; an older one is replaced as a whole.
        values: (n, dim) floats.
        products, categories: Whole numbers, one per row.
        test: Whether to call them `labels` and `class_labels`, of the shape (n, 1), as in files of test lists.

    Raises:
        UsageError: another ending, or numbers of rows that do not fit.
        DataError: NaN or infinity.
    """
    path = Path(path)
    rows = np.asarray(values, np.float32)
    if path.suffix not in (".h5", ".hdf5") or rows.ndim != 2:
        raise UsageError(f"{path}: expected an .h5 file and features (rows, width), got {path.suffix!r} and the shape {rows.shape}.")
    if not np.isfinite(rows).all():
        raise DataError(
            f"{path}: not written, the features hold NaN or infinity in row {np.flatnonzero(~np.isfinite(rows).all(axis=1))[0]}."
        )
    arrays: dict[str, np.ndarray] = {"X_": rows}
    for key, numbers in zip(("labels", "class_labels") if test else ("pid", "cid"), (products, categories), strict=True):
        if numbers is not None:
            array = np.asarray(numbers)
            if array.shape != (len(rows),) or array.dtype.kind not in "iu":
                raise UsageError(f"{path}: expected {len(rows)} whole numbers as {key}, got {array.dtype} {array.shape}.")
            arrays[key] = array.astype(np.int64).reshape((-1, 1) if test else (-1,))
    with replaced_file(path, path.suffix) as temporary, h5py.File(temporary, "w") as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array)
    return path


def read_labels(path: str | Path) -> list[str]:
    """Product ids of a text file, one a line.

    Raises:
        DataError: no such file, an empty one, or an empty line between ids (with its number).
    """
    path = Path(path)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from None
    while lines and not lines[-1]:
        lines.pop()
    if not lines or "" in lines:
        where = f", line {lines.index('') + 1}" if lines else ""
        raise DataError(f"{path}{where}: expected one product id a line, found none.")
    return lines


def _read_hdf5(path: Path, wanted: Sequence[str], needed: str) -> dict[str, np.ndarray]:
    try:
        with h5py.File(path, "r") as file:
            found = {key: file[key] for key in wanted if isinstance(file.get(key), h5py.Dataset)}
            if needed not in found:
                raise DataError(f"{path}: expected the data set {needed!r}, found {', '.join(file) or 'none'}.")
            return {key: value[()] for key, value in found.items()}
    except (OSError, RuntimeError, KeyError) as error:
        raise DataError(f"{path}: not a readable HDF5 file ({str(error).splitlines()[0]}). Copy it anew.") from None


def _whole_numbers(array: np.ndarray, where: str) -> np.ndarray:
    """int64 (n,); some programs store them as (n, 1), and as floating point."""
    flat = array.reshape(-1) if array.ndim <= 1 or array.shape[1:] == (1,) else array
    if flat.ndim != 1 or flat.dtype.kind not in "iuf":
        raise DataError(f"{where}: expected whole numbers, one per row, found {array.dtype} {array.shape}.")
    if not np.isfinite(flat).all() or (flat != np.floor(flat)).any() or (flat < 0).any():
        row = np.flatnonzero(~np.isfinite(flat) | (flat != np.floor(flat)) | (flat < 0))[0]
        raise DataError(f"{where}, row {row}: expected a whole number from 0, found {flat[row]!r}.")
    return flat.astype(np.int64)
