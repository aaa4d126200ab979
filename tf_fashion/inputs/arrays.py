"""Arrays from files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tf_fashion.core.errors import DataError


def read_npz(path: Path, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of an `.npz`, without unpickling anything; raises as `read_arrays`."""
    arrays = read_arrays(path, (first, second))
    return arrays[first], arrays[second]


def read_arrays(path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Arrays of an `.npz` by name, without unpickling anything; others are not read.

    Raises:
        DataError: the file is not readable, or lacks a needed array.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            if not set(needed) <= set(archive.files):
                wanted = ", ".join(f"'{name}'" for name in needed[:-1])
                wanted = f"the arrays {wanted} and '{needed[-1]}'" if wanted else f"the array '{needed[-1]}'"
                raise DataError(f"{path}: expected {wanted}, found {', '.join(archive.files) or 'none'}.")
            return {name: archive[name] for name in (*needed, *optional) if name in archive.files}
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: not a readable .npz file ({error}).") from None
