"""Arrays of numbers in MATLAB's files of version 5 (what `save` writes by default and `scipy.io.savemat` too), read without SciPy.

A file is a header of 128 bytes and a row of elements; an element is a tag (type, size) and data, filled up to 8 bytes. A matrix element
holds flags (class, complex), dimensions, a name and the numbers in column order, which may be stored in a smaller type than the class.
Elements may be compressed with zlib. Only real, dense, numeric matrices are read; what else is in a file is passed over. Files of
version 7.3 are HDF5 and belong to h5py.

Format: "MAT-File Format", The MathWorks.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tf_fashion.core.errors import DataError

_MATRIX, _COMPRESSED = 14, 15
# Storage types and matrix classes, as NumPy knows them.
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_COMPLEX = 0x0800
MAX_BYTES = 2**34


def read_mat(path: str | Path, name: str) -> np.ndarray:
    """The matrix called `name`, in its class's dtype and MATLAB's shape.

    Raises:
        DataError: no such file, no file of version 5, one that is cut short or damaged, or without that matrix.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    if data[:4] == b"\x89HDF" or data[512:516] == b"\x89HDF":
        raise DataError(f"{path}: expected a MATLAB file of version 5, found version 7.3 (HDF5). Save it with -v7, or read it as .h5.")
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if len(data) < 128 or order is None:
        raise DataError(f"{path}: expected a MATLAB file of version 5, found another file.")
    found = []
    try:
        for title, matrix in _matrices(data[128:], order):
            if title == name and matrix is not None:
                return matrix
            found.append(title)
    except (struct.error, zlib.error, ValueError, IndexError, KeyError) as error:
        raise DataError(f"{path}: damaged or cut short ({error}). Copy it anew.") from None
    raise DataError(f"{path}: expected the matrix {name!r} of numbers, found {', '.join(map(repr, found)) or 'none'}.")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        if kind >> 16:
            # Up to four bytes stand in the tag itself.
            kind, size = kind & 0xFFFF, kind >> 16
            if size > 4:
                raise ValueError("a short element of more than four bytes")
            yield kind, data[at + 4 : at + 4 + size]
            at += 8
            continue
        at += 8
        if at + size > len(data):
            raise ValueError(f"an element of {size} bytes where {len(data) - at} are left")
        yield kind, data[at : at + size]
        # Compressed elements are not filled up.
        at += size if kind == _COMPRESSED else -(-size // 8) * 8
    if at < len(data):
        raise ValueError(f"a tag of {len(data) - at} bytes")


def _matrices(data: bytes, order: str) -> Iterator[tuple[str, np.ndarray | None]]:
    for kind, content in _elements(data, order):
        if kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            content = unpacker.decompress(content, MAX_BYTES)
            if not unpacker.eof:
                raise ValueError("a compressed element that does not end")
            yield from _matrices(content, order)
        elif kind == _MATRIX:
            yield _matrix(content, order)


def _matrix(content: bytes, order: str) -> tuple[str, np.ndarray | None]:
    parts = _elements(content, order)
    flags = struct.unpack_from(f"{order}I", next(parts, (0, b""))[1])[0]
    dimensions = np.frombuffer(next(parts, (0, b""))[1], np.dtype(f"{order}i4"))
    title = next(parts, (0, b""))[1].decode("ascii", "replace")
    kind = _CLASSES.get(flags & 0xFF)
    if kind is None or flags & _COMPLEX:
        return title, None
    stored, numbers = next(parts, (0, b""))
    values = np.frombuffer(numbers, np.dtype(order + _TYPES[stored]))
    return title, values.astype(kind).reshape(tuple(dimensions.tolist()), order="F")
