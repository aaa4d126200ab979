"""Vectors of photos that were extracted before, in the files of UDMA's programs, in place of photos."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.domain_features import read_domain_features
from tf_fashion.datasets.records import existing_folder
from tf_fashion.datasets.street_to_shop import PhotoDomain
from tf_fashion.inputs.feature_cache import FeatureTable
from tf_fashion.training.street_data import StreetPhotos

_FOLDERS = {"df": "DeepFashion", "s2s": "Street2Shop"}
_ROLES = {"consumer": "Query", "shop": "Gallery"}


def file_pattern(split: str, domain: PhotoDomain) -> str:
    """Where the pooled vectors ("X-1") of a list are, below the folder that the published archives are unpacked into."""
    role = f"train_{domain.side.capitalize()}" if split == "train" else _ROLES[domain.side]
    return f"{_FOLDERS[domain.source]}/**/{role}_X-1_*"


def find_features(folder: str | Path, split: str, domain: PhotoDomain) -> Path:
    """The file of a list.

    Raises:
        UsageError: there is no such folder.
        DataError: no such file, or several.
    """
    root = existing_folder(folder, "the folder of the extracted features")
    pattern = file_pattern(split, domain)
    found = sorted(path for path in root.glob(f"**/{pattern}") if path.suffix in (".h5", ".hdf5", ".mat") and path.is_file())
    if len(found) != 1:
        what = "found none" if not found else f"found {len(found)} ({', '.join(str(path.relative_to(root)) for path in found[:3])})"
        raise DataError(
            f"{root}: expected one file {pattern} (.h5 or .mat) with the vectors of the {split} photos of {domain}, {what}."
        )
    return found[0]


def feature_table(photos: StreetPhotos, folder: str | Path, lists: Iterable[tuple[str, PhotoDomain]], width: int) -> FeatureTable:
    """Vectors of the photos of some lists, by image id.

    Args:
        photos: The lists; the files have a row for each of their lines, in their order.
        folder: Where the files are.
        lists: Split and domain of each.
        width: Width of the vectors that the model takes.

    Raises:
        UsageError: vectors of another width.
        DataError: files that are missing, damaged, or belong to other lists.
    """
    ids: dict[str, int] = {}
    parts: list[np.ndarray] = []
    count = 0
    for split, domain in lists:
        entries = photos.source.photos(split, domain)
        found = read_domain_features(find_features(folder, split, domain))
        found.require_list(entries, str(photos.source.list_file(split, domain)))
        if found.values.shape[1] != width:
            raise UsageError(
                f"{found.path}: expected vectors of {width} numbers, as the model takes them, found {found.values.shape[1]}."
            )
        parts.append(found.values)
        ids |= {photo.image_id: count + row for row, photo in enumerate(entries)}
        count += len(entries)
    values = np.concatenate(parts)
    return FeatureTable(list(ids), values[list(ids.values())])
