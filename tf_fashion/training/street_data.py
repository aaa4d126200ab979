"""The lists that a street-to-shop run uses, without the photos that it cannot use."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tf_fashion.clustering.meta_domains import DEEPFASHION_TO_STREET2SHOP, CategoryAlignment, CategoryGroup, Domain
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import read_json
from tf_fashion.datasets.street_lists import ProductPhoto
from tf_fashion.datasets.street_to_shop import PhotoDomain, StreetToShop
from tf_fashion.inputs.audit import BadImage
from tf_fashion.inputs.crops import photo_paths

CONSUMER_DF, SHOP_DF, SHOP_S2S = PhotoDomain("df", "consumer"), PhotoDomain("df", "shop"), PhotoDomain("s2s", "shop")


class StreetPhotos:
    """Lists of consumer and shop photos, some of whose photos may be left out.

    Args:
        dataset: The data.
        left_out: Ids of photos that do not count.

    Attributes:
        name: The dataset's name.
    """

    def __init__(self, dataset: StreetToShop, left_out: Collection[str] = ()) -> None:
        self.source = dataset
        self.left_out = frozenset(left_out)
        self.name = dataset.name
        self._used: dict[str, dict[str, ProductPhoto]] = {}

    def use(self, split: str, photos: Sequence[ProductPhoto]) -> None:
        """Notes that a run needs these photos.

        Raises:
            DataError: two of the run's photos have one id (`a.jpg` and `a.png` do).
        """
        noted = self._used.setdefault(split, {})
        for photo in photos:
            for other in filter(None, (entries.get(photo.image_id) for entries in self._used.values())):
                if (other.path, other.box) != (photo.path, photo.box):
                    raise DataError(
                        f"{self.source.root}: {other.path} and {photo.path} would both get the id {photo.image_id}. Rename one of them "
                        "in the lists and on the disk."
                    )
            noted[photo.image_id] = photo

    def splits(self) -> list[str]:
        """ "train" and "test", as far as there are lists, or products to train on."""
        found = self.source.splits()
        return found if "train" in found or not self.source.has_pairs else ["train", *found]

    def photos(self, split: str, domain: PhotoDomain) -> list[ProductPhoto]:
        """The photos of a list, in file order; raises as `StreetToShop.photos`."""
        return [photo for photo in self.source.photos(split, domain) if photo.image_id not in self.left_out]

    def domain(self, split: str, domain: PhotoDomain, features: np.ndarray | None = None) -> Domain:
        """Products and categories of a list, one row per photo that counts; raises as `StreetToShop.numbers`."""
        products, categories = self.source.numbers(split, domain)
        kept = self.kept(split, domain)
        return Domain(products[kept], categories[kept], features, str(domain))

    def kept(self, split: str, domain: PhotoDomain) -> np.ndarray:
        """int64: the lines of a list whose photos count; raises as `photos`."""
        return np.flatnonzero([photo.image_id not in self.left_out for photo in self.source.photos(split, domain)])

    def products(self, source: str, statuses: Sequence[str]) -> list[tuple[list[str], list[str]]]:
        """Ids of the consumer photos and of the shop photos of each training product that has both; raises as `train_products`."""
        found = []
        for product in self.source.train_products(source, statuses):  # type: ignore[arg-type]
            sides = [
                [photo.image_id for photo in side if photo.image_id not in self.left_out] for side in (product.consumers, product.shops)
            ]
            if all(sides):
                found.append((sides[0], sides[1]))
        if not found:
            raise DataError(f"{self.source.root}: no product is left that has both consumer and shop photos to train on.")
        return found

    def image_ids(self, splits: Sequence[str]) -> list[str]:
        """Ids of the photos that the run needs of these splits."""
        ids = {image_id: None for split in splits for image_id in self._used.get(split, {})}
        return [image_id for image_id in ids if image_id not in self.left_out]

    def paths(self, splits: Sequence[str], progress: bool = True) -> tuple[dict[str, Path], list[BadImage]]:
        """Files of the photos that the run needs, boxes applied, and those that cannot be had."""
        photos = [self._used[split][image_id] for split in splits if split in self._used for image_id in self._used[split]]
        return photo_paths(self.source, photos, progress=progress)

    def without_images(self, ids: Collection[str]) -> StreetPhotos:
        """The same without some photos."""
        other = StreetPhotos(self.source, self.left_out | set(ids))
        other._used = self._used
        return other

    def report(self) -> list[str]:
        """What is left out, a line per list."""
        lines = []
        for split in self.splits():
            for domain in self.source.domains(split):
                photos = self.source.photos(split, domain)
                missing = sum(photo.image_id in self.left_out for photo in photos)
                if missing:
                    lines.append(f"{split} {domain}: {missing} of {len(photos)} photos left out")
        return lines

    def data_hash(self) -> str:
        """SHA-256 over all lists."""
        return self.source.data_hash()


def make_alignment(name: str, photos: StreetPhotos) -> CategoryAlignment:
    """The alignment that a user names: `single`, `by_name`, `deepfashion`, or a JSON file.

    The file holds `{"groups": [{"name": "tops", "target": [10], "source": [13, 14]}, ...]}`; groups without source: the target's own.

    Raises:
        UsageError: categories that do not fit the lists.
        DataError: another file.
    """
    lists = [photos.source.category_names("train", domain) for domain in (SHOP_DF, SHOP_S2S)]
    if name == "single":
        return CategoryAlignment.single(*lists)
    if name == "by_name":
        return CategoryAlignment.by_name(*lists)
    alignment = DEEPFASHION_TO_STREET2SHOP if name == "deepfashion" else _read_alignment(Path(name))
    for which, known in (("source", set(lists[0])), ("target", set(lists[1]))):
        if not any(number in known for group in alignment.groups for number in getattr(group, which)):
            raise UsageError(f"--alignment {name}: none of its {which} categories is in the {which}'s list, which has {sorted(known)}.")
    return alignment


def _read_alignment(path: Path) -> CategoryAlignment:
    content: Any = read_json(path)
    try:
        groups = [
            CategoryGroup(str(entry["name"]), _numbers(entry["target"]), _numbers(entry.get("source", [])))
            for entry in content["groups"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'{path}: expected {{"groups": [{{"name": ..., "target": [numbers], "source": [numbers]}}, ...]}} ({type(error).__name__}: '
            f"{error})."
        ) from None
    return CategoryAlignment(tuple(g for g in groups if g.source), tuple(g for g in groups if not g.source))


def _numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or any(isinstance(value, bool) or not isinstance(value, int) for value in values):
        raise TypeError(f"expected a list of whole numbers, found {values!r}")
    return tuple(values)
