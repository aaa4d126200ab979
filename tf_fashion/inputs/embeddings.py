"""Given embeddings of pictures, from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.inputs.arrays import read_npz
from tf_fashion.inputs.feature_cache import FeatureTable


def load_embeddings(path: str | Path) -> FeatureTable:
    """Reads an `.npz` with the arrays `ids` (N,) and `embeddings` (N, D).

    Raises:
        UsageError: no such file.
        DataError: not such a file, repeated ids, or values that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file. Embeddings are an .npz file with the arrays 'ids' (N,) and 'embeddings' (N, D).")
    ids, values = read_npz(path, "ids", "embeddings")
    if values.ndim != 2 or ids.shape != values.shape[:1] or values.dtype.kind != "f":
        raise DataError(
            f"{path}: expected ids (N,) and floating embeddings (N, D), found {ids.shape} and {values.dtype} {values.shape}."
        )
    names = [str(entry) for entry in ids]
    if len(set(names)) < len(names):
        raise DataError(f"{path}: {len(names) - len(set(names))} ids appear more than once.")
    if not np.isfinite(values).all():
        raise DataError(
            f"{path}: expected finite numbers, found NaN or infinity in {int((~np.isfinite(values)).any(axis=1).sum())} rows."
        )
    return FeatureTable(names, values.astype(np.float32))
