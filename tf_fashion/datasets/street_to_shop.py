"""Consumer-to-shop data as UDMA reads it: a source with known products (DeepFashion), and a target (Street2Shop).

    ROOT/train_cluster/{df,s2s}_{shop,consumer}.txt             path product category [category name]
    ROOT/test/consumer_df.txt, shop_df.txt                      path,id
    ROOT/test/test_{consumer,shop}_single*street2shop.json      lists of photos; consumer photos with boxes
    ROOT/df_train/V_list_eval_partition.txt                     DeepFashion's pairs
    ROOT/df_train/train_dataset_street2shop.json                products with photos of both sides

All are optional, and looked for in `ROOT`, `ROOT/dataset_files` and without their folder, too. DeepFashion's product ids are matched as
text; Street2Shop numbers its products in each category anew.

data = open_street_to_shop("data/street_to_shop", images="photos")
queries = data.photos("test", PhotoDomain("s2s", "consumer"))
paths = data.image_paths(queries)                           # whole photos; `tf_fashion.inputs.crops` applies the boxes

DeepFashion: Liu et al. (CVPR 2016); Street2Shop: Kiapour et al. (ICCV 2015); lists: Sharma et al., "Unsupervised Meta-Domain
Adaptation for Fashion Retrieval" (WACV 2021).
"""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from tf_fashion.core import files
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.catalogue import id_from_path
from tf_fashion.datasets.check import FORMATS, picture_problem
from tf_fashion.datasets.records import (
    DATASETS,
    Inspection,
    OnProblem,
    Problem,
    SplitSummary,
    existing_folder,
    raise_errors,
)
from tf_fashion.datasets.street_lists import (
    Box,
    PhotoPair,
    Product,
    ProductPhoto,
    products_of,
    products_of_pairs,
    read_eval_partition,
    read_id_list,
    read_pair_json,
    read_photo_json,
    read_train_list,
)

Source = Literal["df", "s2s"]
Side = Literal["consumer", "shop"]
SPLITS = ("train", "test")


@dataclass(frozen=True, slots=True)
class PhotoDomain:
    """Where photos come from: a data set and a meta-domain.

    Attributes:
        source: "df" (the labelled source, DeepFashion) or "s2s" (the target, Street2Shop).
        side: "consumer" or "shop".

    Raises:
        UsageError: another name.
    """

    source: Source
    side: Side

    def __post_init__(self) -> None:
        if self.source not in get_args(Source) or self.side not in get_args(Side):
            raise UsageError(f"A domain is df or s2s, consumer or shop; got {self.source!r}, {self.side!r}.")

    def __str__(self) -> str:
        return f"{self.source}_{self.side}"


DOMAINS = tuple(PhotoDomain(source, side) for source in get_args(Source) for side in get_args(Side))

_LISTS: dict[tuple[str, str], str] = {
    **{("train", str(domain)): f"train_cluster/{domain}.txt" for domain in DOMAINS},
    ("test", "df_consumer"): "test/consumer_df.txt",
    ("test", "df_shop"): "test/shop_df.txt",
    ("test", "s2s_consumer"): "test/test_consumer_single*street2shop.json",
    ("test", "s2s_shop"): "test/test_shop_single*street2shop.json",
}
_PAIRS = "df_train/V_list_eval_partition.txt"
_PAIR_JSON = "df_train/train_dataset_street2shop.json"


@DATASETS.register("street_to_shop")
class StreetToShop:
    """The lists of a folder. A list is read when it is first asked for.

    Photos are looked for in `images`, or without it in `root`, `root/images` and the folder above `root`; by the path of the list,
    but parts that show the product come first where they are: `{category}/rtr/{category}_{product}_rtr_{photo}.jpg` (of Street2Shop's
    detector), `cropped_img/{path}` (DeepFashion's boxes), `img/{path}`.

    Args:
        root: Folder of the lists.
        images: Folder of the photos.

    Raises:
        UsageError: a folder that does not exist.
        DataError: no list in `root`.
    """

    name = "street_to_shop"
    looked_for = "train_cluster/df_shop.txt, test/consumer_df.txt or other lists of UDMA (street_to_shop)"
    specificity = 26

    def __init__(self, root: str | Path, images: str | Path | None = None) -> None:
        self.root = existing_folder(root, "the folder of a dataset")
        self._images = None if images is None else existing_folder(images, "the folder of the pictures")
        self._files = {key: path for key, pattern in _LISTS.items() if (path := _find_list(self.root, pattern)) is not None}
        self._read: dict[tuple[str, str], list[ProductPhoto]] = {}
        if not self._files and self._pairs_file is None and self._pair_json_file is None:
            raise DataError(f"{self.root}: expected {self.looked_for}, found none.")

    @classmethod
    def matches(cls, root: Path) -> bool:
        """Whether the folder has one of the lists in its own place."""
        patterns = (*_LISTS.values(), _PAIRS, _PAIR_JSON)
        return any(_find_list(Path(root), pattern, loose=False) is not None for pattern in patterns)

    # Lists.

    def splits(self) -> list[str]:
        """ "train" and "test", as far as there are lists."""
        return [split for split in SPLITS if any(key[0] == split for key in self._files)]

    @property
    def has_pairs(self) -> bool:
        """Whether there are products to train on beside the lists: DeepFashion's pairs, or `train_dataset_street2shop.json`."""
        return self._pairs_file is not None or self._pair_json_file is not None

    def domains(self, split: str) -> list[PhotoDomain]:
        """The domains that a split has lists of."""
        return [domain for domain in DOMAINS if (split, str(domain)) in self._files]

    def annotation_files(self) -> list[Path]:
        """All lists that there are, sorted."""
        others = [path for path in (self._pairs_file, self._pair_json_file) if path is not None]
        return sorted([*self._files.values(), *others])

    def list_file(self, split: str, domain: PhotoDomain) -> Path:
        """The file of a list.

        Raises:
            UsageError: no such split.
            DataError: there is no such file; the message says where it was looked for.
        """
        if split not in SPLITS:
            raise UsageError(f"{self.root}: no split {split!r}. Known: {', '.join(SPLITS)}.")
        path = self._files.get((split, str(domain)))
        if path is None:
            found = ", ".join(f"{a} {b}" for a, b in self._files) or "none"
            raise DataError(
                f"{self.root / _LISTS[split, str(domain)]}: no such file; it lists the {split} photos of {domain}. Found: {found}."
            )
        return path

    def photos(self, split: str, domain: PhotoDomain) -> list[ProductPhoto]:
        """The photos of a list, in file order, validated; read once.

        Raises:
            UsageError, DataError: as `list_file`; or the list does not hold what it promises (the message has file and line).
        """
        key = (split, str(domain))
        if key not in self._read:
            self._read[key] = _read_list(self.list_file(split, domain), split, domain, raise_errors)
        return self._read[key]

    def numbers(self, split: str, domain: PhotoDomain) -> tuple[np.ndarray, np.ndarray]:
        """Products and categories of a list of numbered products, each int64 (n,).

        Raises:
            DataError: a product that is no number, or a list without categories.
        """
        photos = self.photos(split, domain)
        bad = next((photo for photo in photos if not photo.product.isdigit() or photo.category is None), None)
        if bad is not None:
            raise DataError(f"{self.list_file(split, domain)}: {bad.path} has no product number and category, which clusters need.")
        products = np.array([int(photo.product) for photo in photos], np.int64)
        return products, np.array([photo.category for photo in photos], np.int64)

    def category_names(self, split: str, domain: PhotoDomain) -> dict[int, str]:
        """Category number -> its most frequent name in the list (the number where it has none), by number."""
        names: dict[int, dict[str, int]] = {}
        for photo in self.photos(split, domain):
            if photo.category is not None:
                counts = names.setdefault(photo.category, {})
                name = photo.category_name or str(photo.category)
                counts[name] = counts.get(name, 0) + 1
        return {number: max(counts, key=lambda name: counts[name]) for number, counts in sorted(names.items())}

    @property
    def _pairs_file(self) -> Path | None:
        return _find_list(self.root, _PAIRS)

    @property
    def _pair_json_file(self) -> Path | None:
        return _find_list(self.root, _PAIR_JSON)

    def pairs(self) -> list[PhotoPair]:
        """DeepFashion's pairs.

        Raises:
            DataError: there is no such file, or it is broken.
        """
        if self._pairs_file is None:
            raise DataError(f"{self.root / _PAIRS}: no such file. It is DeepFashion's list_eval_partition.txt.")
        return read_eval_partition(self._pairs_file)

    def train_products(self, source: Source = "df", statuses: Sequence[str] = ("train", "val"), listed: bool = False) -> list[Product]:
        """Products with photos of both sides, to fine-tune an encoder on.

        For "df" from DeepFashion's pairs if they are there, else from `train_cluster`; for "s2s" from `train_cluster`, else from
        `train_dataset_street2shop.json`.

        Args:
            source: "df" or "s2s".
            statuses: Whose pairs count (only with pairs).
            listed: With pairs: take only the photos that they name, instead of all that are in the products' folders.

        Raises:
            DataError: there is no list, a broken one, or no product with photos of both sides.
        """
        consumer, shop = PhotoDomain(source, "consumer"), PhotoDomain(source, "shop")
        both = all(("train", str(domain)) in self._files for domain in (consumer, shop))
        if source == "df" and self._pairs_file is not None:
            folders = None if listed else self._pair_folders()
            products = products_of_pairs(self.pairs(), folders, statuses)
        elif both or self._pair_json_file is None:
            products = products_of(self.photos("train", consumer), self.photos("train", shop))
        else:
            every = read_pair_json(self._pair_json_file)
            numbered = [all(photo.category is not None for photo in (*p.consumers, *p.shops)) for p in every]
            products = [p for p, is_s2s in zip(every, numbered, strict=True) if is_s2s == (source == "s2s") and p.consumers and p.shops]
        if not products:
            raise DataError(f"{self.root}: no product of {source!r} has both consumer and shop photos to train on.")
        return products

    def _pair_folders(self) -> Path:
        bases = [base / name for base in self._bases() for name in ("cropped_img", "img", "")]
        pairs = self.pairs()
        found = next((base for base in bases if pairs and (base / pairs[0].shop).parent.is_dir()), None)
        if found is None:
            where = ", ".join(map(str, bases[:3]))
            raise DataError(
                f"{pairs[0].shop if pairs else self.root}: no such folder in {where}. Say where the photos are with --images DIR."
            )
        return found

    # Pictures.

    @property
    def images_root(self) -> Path:
        """The folder of the pictures, to name in messages."""
        return self._images or self.root

    def _bases(self) -> list[Path]:
        return [self._images] if self._images else [self.root, self.root / "images", self.root.parent]

    def find(self, photo: ProductPhoto) -> Path | None:
        """The file of a photo (the whole, also where it has a box), or None."""
        places = [photo.path]
        if photo.box is None:
            places = [f"cropped_img/{photo.path}", f"img/{photo.path}", photo.path]
            category = photo.category_name
            if photo.product.isdigit() and files.ID_PATTERN.fullmatch(category) and set(category) != {"."}:
                part = f"{category}_{int(photo.product):07d}_rtr_{Path(photo.path).stem}.jpg"
                places.insert(0, f"{category}/rtr/{part}")
        return next((base / place for place in places for base in self._bases() if (base / place).is_file()), None)

    def image_paths(self, photos: Iterable[ProductPhoto]) -> dict[str, Path]:
        """Image id -> file (of the whole photo).

        Raises:
            DataError: photos that are missing; the message counts them.
        """
        found = {photo.image_id: (photo, self.find(photo)) for photo in photos}
        missing = [photo.path for photo, path in found.values() if path is None]
        if missing:
            some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            bases = " or ".join(map(str, self._bases()))
            raise DataError(
                f"{bases}: {len(missing)} of {len(found)} photos are missing ({some}). Say where they are with --images DIR."
            )
        return {image_id: path for image_id, (_, path) in found.items() if path is not None}

    def missing_images(self, photos: Iterable[ProductPhoto]) -> list[str]:
        """Ids of photos without a file."""
        return [photo.image_id for photo in photos if self.find(photo) is None]

    def data_hash(self) -> str:
        """SHA-256 over all lists."""
        return files.hash_json(
            {"dataset": self.name, "files": [[path.name, files.hash_file(path)] for path in self.annotation_files()]}
        )

    @classmethod
    def inspect(cls, root: Path, images: Path | None, on_problem: OnProblem) -> Inspection:
        """Reads everything under `root`, reports each problem to `on_problem`, and never raises for bad data."""
        dataset = cls(root, images)
        summaries: list[SplitSummary] = []
        paths: dict[str, Path | None] = {}
        parts: dict[str, Callable[[str], np.ndarray]] = {}
        for split, name in _LISTS:
            if (split, name) not in dataset._files:
                continue
            domain = next(entry for entry in DOMAINS if str(entry) == name)
            file = dataset._files[split, name]
            photos = dataset._read[split, name] = _read_list(file, split, domain, on_problem)
            for photo in photos:
                path = dataset.find(photo)
                if path is None:
                    what = f"missing picture {photo.path!r} (entry {photo.row})."
                    on_problem(Problem("error", str(file), what, "", "missing image"))
                if path is not None and photo.box is not None:
                    parts[photo.image_id] = functools.partial(_part_of, path, photo.box)
                else:
                    paths[photo.image_id] = path
            products = len({photo.identity for photo in photos})
            summaries.append(SplitSummary(name, split, len(photos), products, 0, {photo.image_id for photo in photos}))
        for source in get_args(Source):
            _report_lost_queries(dataset, source, on_problem)
        for path, read in ((dataset._pairs_file, read_eval_partition), (dataset._pair_json_file, read_pair_json)):
            if path is not None:
                read(path, on_problem)
        return Inspection(cls.name, summaries, paths, dataset.images_root, parts)

    def __repr__(self) -> str:
        return f"StreetToShop({str(self.root)!r}, {', '.join(f'{a} {b}' for a, b in self._files)})"


def open_street_to_shop(root: str | Path, images: str | Path | None = None) -> StreetToShop:
    """Opens consumer-to-shop data; `root` may also be the folder above one called `cross_domain` or `street_to_shop`.

    Raises:
        UsageError: a folder that does not exist.
        DataError: no list of UDMA's.
    """
    root = existing_folder(root, "the folder of a dataset")
    below = [root / name for name in ("cross_domain", "street_to_shop") if (root / name).is_dir()]
    found = next((folder for folder in below if StreetToShop.matches(folder)), root)
    return StreetToShop(root if StreetToShop.matches(root) else found, images)


def crop_picture(path: str | Path, box: Box) -> np.ndarray:
    """A part of a picture, uint8 RGB (height, width, 3); what lies outside the picture is black.

    The box counts the pixels of the file as they are stored: an orientation tag is not looked at, as in UDMA's loader.

    Raises:
        DataError: a picture that cannot be read, or a box that lies outside of it.
    """
    path = Path(path)
    reason, _ = picture_problem(path, decode=False)
    if reason is not None:
        raise DataError(f"{path}: unreadable picture: {reason}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                left, top, right, bottom = box.corners
                if right <= 0 or bottom <= 0 or left >= image.width or top >= image.height:
                    raise DataError(
                        f"{path}: the box {box.corners} lies outside of the picture, {image.width} x {image.height} pixels."
                    )
                return np.asarray(image.convert("RGB").crop(box.corners))
    except DataError:
        raise
    except Exception as error:  # decoders raise many types for damaged data
        raise DataError(f"{path}: unreadable picture: cannot be decoded ({error}).") from None


def box_is_whole(path: str | Path, box: Box) -> bool:
    """Whether a box holds exactly the whole picture; False if the picture cannot be read."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return box.corners == (0, 0, *image.size)
    except Exception:  # said by whoever decodes it
        return False


def _part_of(path: Path, box: Box, image_id: str) -> np.ndarray:
    return crop_picture(path, box)


def _read_list(path: Path, split: str, domain: PhotoDomain, on_problem: OnProblem) -> list[ProductPhoto]:
    if split == "train":
        return read_train_list(path, on_problem)
    if domain.source == "df":
        return read_id_list(path, on_problem)
    photos = read_photo_json(path, on_problem, boxes=domain.side == "consumer")
    return photos if domain.side == "consumer" else _own_ids(photos)


def _own_ids(photos: list[ProductPhoto]) -> list[ProductPhoto]:
    """The photos, with ids of their own for further products of one photo: the detector's part of each is another file."""
    first: dict[str, str] = {}
    found = []
    for photo in photos:
        if first.setdefault(photo.image_id, photo.identity) != photo.identity:
            stem, extension = os.path.splitext(photo.path)
            photo = dataclasses.replace(photo, image_id=id_from_path(f"{stem}__of_{photo.identity}{extension}"))
        found.append(photo)
    return found


def _find_list(root: Path, pattern: str, loose: bool = True) -> Path | None:
    """The first file that matches in its own place, in that place below `dataset_files`, or (if `loose`) by its name in `root`."""
    places = [root / pattern, root / "dataset_files" / pattern, *([root / pattern.rpartition("/")[2]] if loose else [])]
    for place in places:
        found = sorted(place.parent.glob(place.name)) if place.parent.is_dir() else []
        if found:
            return found[0]
    return None


def _report_lost_queries(dataset: StreetToShop, source: str, on_problem: OnProblem) -> None:
    queries, gallery = dataset._read.get(("test", f"{source}_consumer")), dataset._read.get(("test", f"{source}_shop"))
    if not queries or not gallery:
        return
    known = {photo.identity for photo in gallery}
    lost = [photo.identity for photo in queries if photo.identity not in known]
    if lost:
        what = f"{len(lost)} queries have no picture of their product in the gallery, for instance those of product {lost[0]!r}."
        on_problem(
            Problem("warning", str(dataset._files["test", f"{source}_consumer"]), what, "They are not evaluated.", "no right answer")
        )
