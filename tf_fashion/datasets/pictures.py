"""Pictures by id, from folders of image files or from `.npz` files of arrays.

    store = PictureStore([Path("images"), Path("train/train.224.npz")])
    store.bytes("10160")      # the file's content, or the array as a PNG file

An `.npz` holds one array per picture under its id: uint8 (height, width, 3), or floating point (3, height, width) that has been
normalised with CLIP's mean and deviation (FashionKLIP's files). Both give uint8 RGB, the second by undoing the normalisation.
Arrays are read one by one when asked for.
"""

from __future__ import annotations

import io
import threading
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from tf_fashion.core import files
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.records import IMAGE_EXTENSIONS, ImageFolder

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_PIXELS = 50_000_000
# What rounding to float16 and to grey levels may add to values that belong between 0 and 1.
SLACK = 0.02


class NpzPictures:
    """The pictures of one `.npz` file.

    Args:
        path: The file. Only its directory is read.

    Raises:
        DataError: it is not a readable `.npz` file.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            self._archive = zipfile.ZipFile(self.path)
            self._members = {m.filename.removesuffix(".npy"): m for m in self._archive.infolist() if m.filename.endswith(".npy")}
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise DataError(f"{self.path}: not a readable .npz file ({error}). Copy it anew.") from None
        # `zipfile` guards its reads, but not the closing of a member beside a read of another.
        self._lock = threading.Lock()

    @property
    def ids(self) -> list[str]:
        """The keys, in the file's order."""
        return list(self._members)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._members

    def digest(self, image_id: str) -> tuple[int, int]:
        """Checksum and size of a member, from the file's directory: members that differ here are different pictures."""
        member = self._members[image_id]
        return member.CRC, member.file_size

    def array(self, image_id: str) -> np.ndarray:
        """uint8 RGB (height, width, 3) of a picture.

        Raises:
            DataError: the member is damaged, holds Python objects, has another shape or type, or values that are no normalised
                pixels.
        """
        where = f"{self.path}, array {image_id!r}"
        try:
            with self._lock, self._archive.open(self._members[image_id]) as stream:
                values = _read_array(stream, where)
        except DataError:
            raise
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
            raise DataError(f"{where}: damaged ({error}). Copy the file anew.") from None
        return _to_rgb(values, where)


def _read_array(stream: IO[bytes], where: str) -> np.ndarray:
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    if dtype.hasobject:
        raise DataError(f"{where}: expected numbers, found pickled Python objects, which are not opened.")
    normalised = dtype.kind == "f" and len(shape) == 3 and shape[0] == 3
    if not normalised and not (dtype == np.uint8 and len(shape) == 3 and shape[2] == 3):
        what = "expected uint8 (height, width, 3) or floats (3, height, width)"
        raise DataError(f"{where}: {what}, found {dtype} {shape}.")
    pixels = int(np.prod(shape, dtype=np.float64)) // 3
    if not 0 < pixels <= MAX_PIXELS:
        raise DataError(f"{where}: expected 1 to {MAX_PIXELS} pixels, found an array of the shape {shape}.")
    size = 3 * pixels * dtype.itemsize
    data = stream.read(size)
    if len(data) != size:
        raise DataError(f"{where}: cut short, {len(data)} of {size} bytes. Copy the file anew.")
    # The checksum is compared at the end of the member.
    stream.read(1)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _to_rgb(values: np.ndarray, where: str) -> np.ndarray:
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    pixels = values.astype(np.float32).transpose(1, 2, 0) * np.array(CLIP_STD, np.float32) + np.array(CLIP_MEAN, np.float32)
    if not np.isfinite(pixels).all():
        raise DataError(f"{where}: {int((~np.isfinite(values)).sum())} values are not finite.")
    low, high = float(pixels.min()), float(pixels.max())
    if low < -SLACK or high > 1 + SLACK:
        what = "expected pixels normalised with CLIP's mean and deviation"
        raise DataError(f"{where}: {what}; undone, they reach from {low:.2f} to {high:.2f} instead of 0 to 1.")
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def png_bytes(array: np.ndarray) -> bytes:
    """A uint8 (height, width, 3) array as a PNG file, without loss."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


class PictureStore:
    """Pictures of several places; where two have the same id, the earlier place counts.

    Args:
        sources: Folders (searched three levels deep) and `.npz` files.

    Raises:
        UsageError: a source that is neither.
        DataError: an `.npz` that cannot be read; two of them with different pictures under one id.
    """

    def __init__(self, sources: Sequence[str | Path]) -> None:
        self.folders: list[ImageFolder] = []
        self.archives: list[NpzPictures] = []
        self._places: dict[str, NpzPictures] = {}
        for source in map(Path, sources):
            if source.is_dir():
                self.folders.append(ImageFolder(source, depth=3))
            elif source.is_file() and source.suffix.lower() == ".npz":
                self._add(NpzPictures(source))
            else:
                found = "another file" if source.exists() else "nothing there"
                raise UsageError(f"{source}: expected a folder of pictures or an .npz file, found {found}.")

    def _add(self, archive: NpzPictures) -> None:
        self.archives.append(archive)
        for image_id in archive.ids:
            first = self._places.setdefault(image_id, archive)
            if first is not archive and first.digest(image_id) != archive.digest(image_id):
                where = f"{first.path} and {archive.path}"
                raise DataError(f"{where}: different pictures under the same id {image_id!r}. Give them different ids.")

    def __str__(self) -> str:
        places = [str(folder.folder) for folder in self.folders] + [str(archive.path) for archive in self.archives]
        return ", ".join(places) or "(no pictures)"

    def archive_ids(self) -> list[str]:
        """The ids of all arrays, in the order of the files."""
        return list(self._places)

    def path(self, image_id: str) -> Path | None:
        """The file of a picture, or None where it is no file."""
        for folder in self.folders:
            found = folder.find(image_id)
            if found is not None:
                return found
        return None

    def in_archive(self, image_id: str) -> bool:
        """Whether a picture is an array (and no file)."""
        return image_id in self._places and self.path(image_id) is None

    def missing(self, image_ids: Iterable[str]) -> list[str]:
        """Those ids that have no picture, after a fresh look at the folders."""
        rest = [image_id for image_id in image_ids if image_id not in self._places]
        for folder in self.folders:
            paths = folder.find_all(rest)
            rest = [image_id for image_id in rest if paths[image_id] is None]
        return rest

    def array(self, image_id: str) -> np.ndarray:
        """uint8 RGB (height, width, 3) of a picture that is an array.

        Raises:
            DataError: there is none of this id, or it cannot be used.
        """
        files.check_id(image_id, str(self))
        if image_id not in self._places:
            raise DataError(f"{self}: no array for the id {image_id!r}.")
        return self._places[image_id].array(image_id)

    def bytes(self, image_id: str) -> bytes:
        """The content of the picture's file, or the array as a PNG file.

        Raises:
            DataError: there is no such picture, or it cannot be read.
        """
        files.check_id(image_id, str(self))
        path = self.path(image_id)
        if path is not None:
            try:
                return path.read_bytes()
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
        if image_id in self._places:
            return png_bytes(self.array(image_id))
        looked = f"(looked for {image_id} with {', '.join(IMAGE_EXTENSIONS)}, and for an array of this name)"
        raise DataError(f"{self}: no picture for the id {image_id!r} {looked}.")
