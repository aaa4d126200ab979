"""Parts of photos as files, so that everything that reads files can use them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from tf_fashion.core.errors import DataError
from tf_fashion.core.files import atomic_write, hash_json, make_out_folder
from tf_fashion.datasets.pictures import png_bytes
from tf_fashion.datasets.street_lists import ProductPhoto
from tf_fashion.datasets.street_to_shop import StreetToShop, box_is_whole, crop_picture
from tf_fashion.inputs.audit import BadImage
from tf_fashion.inputs.feature_cache import default_cache


def photo_paths(
    dataset: StreetToShop, photos: Iterable[ProductPhoto], folder: str | Path | None = None, progress: bool = True
) -> tuple[dict[str, Path], list[BadImage]]:
    """Files of photos with their boxes applied: parts are written once, without loss, as PNG files into a cache.

    A box that holds the whole picture gives the photo's own file.

    Args:
        dataset: Where the photos are.
        photos: Which ones; several may be parts of one photo.
        folder: The cache; default beside the feature cache. A changed photo gets a new place in it.
        progress: Whether to show a bar while parts are written.

    Returns:
        Image id -> file, and the photos that are missing, cannot be read, or have a box outside of the picture.
    """
    paths: dict[str, Path] = {}
    bad: list[BadImage] = []
    parts: dict[str, tuple[ProductPhoto, Path]] = {}
    order: dict[str, None] = {}
    for photo in photos:
        if photo.image_id in order:
            continue
        order[photo.image_id] = None
        path = dataset.find(photo)
        if path is None:
            bad.append(BadImage(photo.image_id, dataset.images_root / photo.path, "missing"))
        elif photo.box is None or box_is_whole(path, photo.box):
            paths[photo.image_id] = path
        else:
            parts[photo.image_id] = (photo, path)
    target = make_out_folder(Path(folder or default_cache().parent / "parts")) if parts else Path()
    for image_id, (photo, path) in tqdm(parts.items(), desc="cutting photos", unit="photo", disable=not (progress and parts)):
        stat = path.stat()
        corners = photo.box.corners if photo.box is not None else ()
        part = target / f"{hash_json([str(path.resolve()), stat.st_size, stat.st_mtime_ns, corners])[:32]}.png"
        try:
            if photo.box is not None and not part.exists():
                contents = png_bytes(crop_picture(path, photo.box))
                with atomic_write(part, "wb") as file:
                    file.write(contents)
            paths[image_id] = part
        except DataError as error:
            bad.append(BadImage(image_id, path, str(error).removeprefix(f"{path}: ")))
    return {image_id: paths[image_id] for image_id in order if image_id in paths}, bad
