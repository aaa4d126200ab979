"""Arrays from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tf_fashion.core.errors import DataError


def read_npz(path: Path, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of an `.npz`, without unpickling anything.

    Raises:
        DataError: the file is not readable, or lacks one of them.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not {first, second} <= set(archive.files):
                raise DataError(f"{path}: expected the arrays '{first}' and '{second}', found {', '.join(archive.files) or 'none'}.")
            return archive[first], archive[second]
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: not a readable .npz file ({error}).") from None
