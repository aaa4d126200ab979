"""Pictures of array archives as files, so that everything that reads files can use them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from tf_fashion.core.errors import DataError
from tf_fashion.core.files import atomic_write, hash_json, make_out_folder
from tf_fashion.datasets.pictures import PictureStore
from tf_fashion.inputs.audit import BadImage
from tf_fashion.inputs.feature_cache import default_cache


def picture_paths(
    store: PictureStore, ids: Iterable[str], folder: str | Path | None = None, progress: bool = True
) -> tuple[dict[str, Path], list[BadImage]]:
    """Files of pictures; arrays are written once, without loss, as PNG files into a cache.

    Args:
        store: Where the pictures are.
        ids: Which ones.
        folder: The cache; default beside the feature cache. A changed archive gets a new place in it.
        progress: Whether to show a bar while arrays are written.

    Returns:
        Id -> file, and the pictures that are missing or cannot be read.
    """
    wanted = list(ids)
    missing = set(store.missing(wanted))
    bad = [BadImage(image_id, Path(f"{store}/{image_id}"), "missing") for image_id in wanted if image_id in missing]
    paths: dict[str, Path] = {}
    arrays = []
    for image_id in wanted:
        if image_id in missing:
            continue
        path = store.path(image_id)
        if path is None:
            arrays.append(image_id)
        else:
            paths[image_id] = path
    if not arrays:
        return paths, bad
    stats = [(str(archive.path.resolve()), archive.path.stat().st_size, archive.path.stat().st_mtime_ns) for archive in store.archives]
    target = make_out_folder(Path(folder or default_cache().parent / "pictures") / hash_json(stats)[:16])
    for image_id in tqdm(arrays, desc="unpacking pictures", unit="picture", disable=not progress):
        path = target / f"{image_id}.png"
        try:
            if not path.exists():
                contents = store.bytes(image_id)
                with atomic_write(path, "wb") as file:
                    file.write(contents)
            paths[image_id] = path
        except DataError as error:
            bad.append(BadImage(image_id, path, str(error)))
    return {image_id: paths[image_id] for image_id in wanted if image_id in paths}, bad
