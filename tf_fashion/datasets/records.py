"""What every dataset gives: triplets, galleries, paths of pictures, and the problems found in a tree.

A dataset is opened without reading more than its folder listing; a category's split is read, validated and kept when it is
first asked for. Strict reading raises the first problem as `DataError`; `inspect` collects all of them for the `check` command.
Both run the same code: readers report each problem to a callback, and only the callback differs.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from tf_fashion.core import files
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.registry import Registry

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
DATASETS: Registry[Any] = Registry("dataset")

_SPLIT_ORDER = {"train": 0, "val": 1, "test": 2}
_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = 80
_shorten.maxlevel = 2
_shorten.maxlist = _shorten.maxdict = 3


def short_repr(value: object) -> str:
    """A `repr` that stays short (and does not recurse deeply) whatever the value, for messages."""
    return _shorten.repr(value)


def split_order(splits: Iterable[str]) -> list[str]:
    """Unique split names: train, val, test, then the others by name."""
    return sorted(set(splits), key=lambda split: (_SPLIT_ORDER.get(split, 3), split))


@dataclass(frozen=True)
class Problem:
    """Something in a tree that is wrong (`error`) or deserves a look (`warning`).

    Attributes:
        severity: "error" or "warning".
        where: File (and row) or folder.
        what: What was expected and what was found.
        fix: What to do about it; may be empty.
        kind: Short slug by which equal problems are grouped ("missing image").
    """

    severity: str
    where: str
    what: str
    fix: str = ""
    kind: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" {self.fix}" if self.fix else "")


OnProblem = Callable[[Problem], None]


def raise_errors(problem: Problem) -> None:
    """The strict callback: errors are raised, warnings pass (the `check` command shows them).

    Raises:
        DataError: the problem is an error.
    """
    if problem.severity == "error":
        raise DataError(str(problem))


def id_problem(value: object, where: str, role: str = "image id") -> Problem | None:
    """The problem of `value` as an image id, or None if it is a good one."""
    if not isinstance(value, str):
        fix = f'Put it in quotes: "{value}".' if type(value) is int and abs(value) < 10**40 else ""
        return Problem("error", where, f"expected {role} (a string), found {short_repr(value)}.", fix, "bad id")
    # fullmatch: `$` alone would let a line break at the end pass.
    if not files.ID_PATTERN.fullmatch(value[:129]) or value.endswith("\n") or set(value) == {"."}:
        what = f"the {role} {short_repr(value)} is not usable as a file name."
        return Problem("error", where, what, "Ids have 1 to 128 letters, digits, '_', '.' or '-'; rename it.", "bad id")
    return None


def caption_problem(value: object, where: str) -> Problem | None:
    """The problem of `value` as one caption, or None. Empty captions are no problem by themselves."""
    if not isinstance(value, str):
        return Problem("error", where, f"expected a caption (a string), found {short_repr(value)}.", "", "bad caption")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        what = f"the caption {short_repr(value)} holds half a Unicode character (a lone surrogate)."
        return Problem("error", where, what, "Write the character itself.", "bad caption")
    return None


@dataclass(frozen=True)
class Triplet:
    """One query of composed retrieval: a reference picture, sentences that say what to change, and the picture that is meant.

    Attributes:
        reference: Image id.
        target: Image id, or None where the answer is withheld (test).
        captions: The sentences in file order; single ones may be empty, never all.
        category: The category it belongs to.
        row: Its position in the annotation file, from 0.
    """

    reference: str
    target: str | None
    captions: tuple[str, ...]
    category: str
    row: int


@dataclass(frozen=True)
class CategorySplit:
    """One category of one split.

    Attributes:
        category, split: Names.
        triplets: The queries in file order.
        gallery: Unique image ids to rank, in file order.
        missing: Ids that belong to the gallery but were left out (see `ComposedDataset.without_images`). Not empty means a
            reduced gallery, which a result measured on it has to state.
        dropped_triplets: How many queries were left out with them.
        labels: Image id of the gallery -> what makes a picture a right answer, where that is not the picture itself (Fashion200k:
            every picture with the target's caption is right).
    """

    category: str
    split: str
    triplets: tuple[Triplet, ...]
    gallery: tuple[str, ...]
    missing: tuple[str, ...] = ()
    dropped_triplets: int = 0
    labels: Mapping[str, str] | None = field(default=None, repr=False)

    @property
    def has_targets(self) -> bool:
        """Whether every query knows its answer."""
        return all(triplet.target is not None for triplet in self.triplets)

    @property
    def references(self) -> list[str]:
        """Distinct reference ids, sorted."""
        return sorted({triplet.reference for triplet in self.triplets})

    @property
    def union_gallery(self) -> list[str]:
        """Distinct reference and target ids, sorted: the smaller gallery of the `union` protocols (VAL, CoSMo)."""
        return sorted({id for t in self.triplets for id in (t.reference, t.target) if id is not None})

    @property
    def image_ids(self) -> set[str]:
        """Every image id that occurs: gallery, references, targets."""
        return set(self.gallery).union(self.union_gallery)


@dataclass
class SplitSummary:
    """What `inspect` saw of one category and split; rows with errors are not counted as pairs."""

    category: str
    split: str
    pairs: int
    gallery: int
    references: int
    image_ids: set[str] = field(repr=False)

    @classmethod
    def of(cls, part: CategorySplit) -> SplitSummary:
        """Summary of a split that was read."""
        return cls(part.category, part.split, len(part.triplets), len(part.gallery), len(part.references), part.image_ids)


@dataclass
class Inspection:
    """Result of a dataset's `inspect`: counts, and the pictures that should exist.

    Attributes:
        kind: Name of the dataset class.
        splits: One summary per category and split.
        paths: For each image id, the path of its picture, or None where no file was found.
        images_root: Folder of the pictures, or None where there is none (reported as a problem).
        arrays: For pictures that are no files: image id -> function that reads the picture of that id or raises `DataError`.
    """

    kind: str
    splits: list[SplitSummary]
    paths: dict[str, Path | None]
    images_root: Path | None
    arrays: Mapping[str, Callable[[str], Any]] = field(default_factory=dict)


class ImageFolder:
    """Pictures named `{id}.jpg` (or .jpeg, .png, .webp, in this order of preference) in one folder, listed once.

    Args:
        folder: The folder.
        depth: How many levels of folders below it are searched as well; pictures higher up are preferred.
    """

    def __init__(self, folder: Path, depth: int = 0) -> None:
        self.folder = Path(folder)
        self.depth = depth
        self._names: dict[str, str] | None = None

    def _index(self) -> dict[str, str]:
        if self._names is None:
            best: dict[str, tuple[int, int, str]] = {}
            self._list(self.folder, "", 0, best)
            self._names = {stem: name for stem, (_, _, name) in best.items()}
        return self._names

    def _list(self, folder: Path, prefix: str, level: int, best: dict[str, tuple[int, int, str]]) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                stem, extension = os.path.splitext(entry.name)
                if extension.lower() in IMAGE_EXTENSIONS:
                    rank = (level, IMAGE_EXTENSIONS.index(extension.lower()), prefix + entry.name)
                    best[stem] = min(best.get(stem, rank), rank)
                elif level < self.depth and entry.is_dir():
                    self._list(folder / entry.name, f"{prefix}{entry.name}/", level + 1, best)

    def find(self, image_id: str) -> Path | None:
        """Path of the picture of a (checked) id, or None."""
        name = self._index().get(image_id)
        if name is not None:
            return self.folder / name
        # A picture may have arrived after the listing.
        for extension in IMAGE_EXTENSIONS:
            path = self.folder / f"{image_id}{extension}"
            if path.is_file():
                self._index()[image_id] = path.name
                return path
        return None

    def find_all(self, image_ids: Iterable[str]) -> dict[str, Path | None]:
        """Paths of many ids from one fresh listing of the folder."""
        self._names = None
        index = self._index()
        return {id: self.folder / index[id] if id in index else None for id in image_ids}


def existing_folder(path: str | Path, role: str, hint: str = "") -> Path:
    """`path` as a Path, if it is a folder.

    Raises:
        UsageError: it is not.
    """
    path = Path(path)
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing there"
        raise UsageError(f"{path}: expected {role}, found {found}." + (f" {hint}" if hint else ""))
    return path


class PathFinder:
    """Pictures that the annotations name by a relative path.

    A picture is looked for as `folder/path` in each of the folders, then by the path's last name directly in one of them (with
    any picture's extension), then by the name of the path's last folder (`.../51727804/51727804_0.jpeg` as `51727804.jpg`, for
    collections with one picture per product).

    Args:
        paths: Image id -> relative path with forward slashes, safe to join.
        folders: Where to look, in this order.
        by_folder: Whether the last rule applies.
    """

    def __init__(self, paths: Mapping[str, str], folders: Sequence[Path], by_folder: bool = False) -> None:
        self.paths = paths
        self.folders = [Path(folder) for folder in folders]
        self.by_folder = by_folder

    @property
    def folder(self) -> Path:
        """The folder to name in messages."""
        return self.folders[0]

    def find(self, image_id: str) -> Path | None:
        """Path of the picture, or None."""
        relative = self.paths.get(image_id)
        if relative is None:
            return None
        for folder in self.folders:
            if (folder / relative).is_file():
                return folder / relative
        steps = relative.split("/")
        stems = [os.path.splitext(steps[-1])[0], *(steps[-2:-1] if self.by_folder else ())]
        names = [stem + extension for stem in stems for extension in IMAGE_EXTENSIONS]
        return next((folder / name for name in names for folder in self.folders if (folder / name).is_file()), None)

    def find_all(self, image_ids: Iterable[str]) -> dict[str, Path | None]:
        """Paths of many ids."""
        return {image_id: self.find(image_id) for image_id in image_ids}


class ComposedDataset:
    """Base class of the datasets for composed retrieval (picture + sentence -> picture).

    A subclass sets `root` and `categories`, and writes `splits`, `annotation_files`, `_read`, and the class methods `matches`
    and `inspect`. It is filed with `@DATASETS.register(name)`.

    Args:
        root: Folder of the annotations.
        images: Folder of the pictures; default `root/images`.

    Raises:
        UsageError: a folder does not exist.
    """

    name: ClassVar[str] = ""
    looked_for: ClassVar[str] = ""
    """What `matches` looks for, for the message when no dataset matches."""
    specificity: ClassVar[int] = 0
    """Where several datasets match one tree, the highest wins."""
    default_protocol: ClassVar[str] = "original"
    """Name of the evaluation protocol that its published numbers are measured by."""
    sampled: bool = False
    """Whether the triplets of "train" are drawn anew for each epoch, by `sample_triplets`."""

    categories: list[str]

    def __init__(self, root: str | Path, images: str | Path | None = None) -> None:
        self.root = existing_folder(root, "the folder of a dataset")
        self._images = None if images is None else existing_folder(images, "the folder of the pictures")
        self._folder: ImageFolder | PathFinder | None = None
        self._parts: dict[tuple[str, str], CategorySplit] = {}

    # What a subclass writes.

    @classmethod
    def matches(cls, root: Path) -> bool:
        """Whether the tree at `root` looks like this dataset (by names of files only)."""
        raise NotImplementedError

    @classmethod
    def inspect(cls, root: Path, images: Path | None, on_problem: OnProblem) -> Inspection:
        """Reads everything under `root`, reports each problem to `on_problem`, and never raises for bad data."""
        raise NotImplementedError

    def splits(self, category: str | None = None) -> list[str]:
        """Names of the splits that `category` (default: any category) has: train, val, test, then others."""
        raise NotImplementedError

    def annotation_files(self, splits: Collection[str] | None = None) -> list[Path]:
        """The files that define the given splits (default: all) of the chosen categories, sorted."""
        raise NotImplementedError

    def _read(self, category: str, split: str) -> CategorySplit:
        raise NotImplementedError

    # What every dataset has.

    @property
    def default_split(self) -> str | None:
        """The split that is evaluated if nobody says which: val, else test, else none."""
        return next((split for split in ("val", "test") if split in self.splits()), None)

    def get(self, category: str, split: str) -> CategorySplit:
        """The triplets and gallery of one category and split, validated; read once.

        Raises:
            UsageError: no such category or split; the message lists those there are.
            DataError: the files do not hold what they promise; the message has file, row and what was found.
        """
        key = (category, split)
        if key not in self._parts:
            if category not in self.categories:
                raise UsageError(f"{self.root}: no category {category!r}. Found: {', '.join(self.categories)}.")
            if split not in self.splits(category):
                known = ", ".join(self.splits(category)) or "none"
                raise UsageError(f"{self.root}: category {category!r} has no split {split!r}. Found: {known}.")
            self._parts[key] = self._read(category, split)
        return self._parts[key]

    def swap_captions(self, category: str, split: str, swapped: Collection[Any]) -> None:
        """Exchanges the two captions of some triplets for everybody who reads them from now on.

        Args:
            category, split: Which part.
            swapped: One truth value per triplet, in file order.

        Raises:
            UsageError: another number of values.
        """
        part = self.get(category, split)
        if len(swapped) != len(part.triplets):
            raise UsageError(f"swap_captions: expected {len(part.triplets)} values for {category}/{split}, found {len(swapped)}.")
        triplets = (
            replace(triplet, captions=triplet.captions[::-1]) if swap else triplet
            for triplet, swap in zip(part.triplets, swapped, strict=True)
        )
        self._parts[category, split] = replace(part, triplets=tuple(triplets))

    @property
    def images_root(self) -> Path:
        """Folder of the pictures.

        Raises:
            DataError: no folder was given and `root/images` does not exist.
        """
        if self._images is not None:
            return self._images
        return default_images_root(self.root)

    def image_path(self, image_id: str) -> Path:
        """Path of a picture that exists.

        Raises:
            DataError: the id is not safe as a file name, or there is no such picture.
        """
        files.check_id(image_id, str(self.root))
        if self._folder is None:
            self._folder = self._finder()
        path = self._folder.find(image_id)
        if path is None:
            raise DataError(
                f"{self._folder.folder}: no picture for the id {image_id!r} (looked for {image_id} with "
                f"{', '.join(IMAGE_EXTENSIONS)}). List all missing pictures with: tf-fashion data check {self.root}"
            )
        return path

    def image_ids(self, splits: Collection[str] | None = None) -> list[str]:
        """Sorted unique ids of gallery, references and targets of the given splits (default: all).

        Raises:
            UsageError: no category has one of the splits.
            DataError: see `get`.
        """
        ids: set[str] = set()
        for category, split in self._pairs_of(splits):
            ids |= self.get(category, split).image_ids
        return sorted(ids)

    def missing_images(self, splits: Collection[str] | None = None) -> list[str]:
        """Sorted ids (see `image_ids`) without a picture."""
        found = self._finder().find_all(self.image_ids(splits))
        return [id for id, path in found.items() if path is None]

    def _finder(self) -> ImageFolder | PathFinder:
        """What knows where the pictures are."""
        return ImageFolder(self.images_root)

    def sample_triplets(self, seed: int, epoch: int) -> list[Triplet]:
        """The training triplets of one epoch, where they are drawn (`sampled`): equal for equal seed and epoch."""
        raise NotImplementedError(f"{self.name}: the triplets are fixed; use get(category, 'train').triplets.")

    def attribute_texts(self, split: str) -> dict[str, str]:
        """Side information: image id -> a text about the picture (tags, a description); pictures without one are absent."""
        return {}

    def vocabulary_texts(self) -> list[str]:
        """The texts whose words make the vocabulary, in order: here the captions of "train"."""
        parts = [self.get(category, "train") for category in self.categories if "train" in self.splits(category)]
        return [caption for part in parts for triplet in part.triplets for caption in triplet.captions]

    def data_hash(self, splits: Collection[str] | None = None) -> str:
        """SHA-256 over names and contents of the annotation files of the given splits and the chosen categories."""
        self._pairs_of(splits)
        entries = [[path.name, files.hash_file(path)] for path in self.annotation_files(splits)]
        return files.hash_json({"dataset": self.name, "categories": sorted(self.categories), "files": sorted(entries)})

    def without_images(self, bad_ids: Iterable[str], splits: Collection[str] | None = None) -> ReducedDataset:
        """A view that leaves out the pictures `bad_ids` and every triplet that uses one.

        Args:
            bad_ids: Image ids, for instance those of `bad_images.csv`.
            splits: Splits to reduce; the others stay whole. Default: all.
        """
        return ReducedDataset(self, bad_ids, splits)

    def _pairs_of(self, splits: Collection[str] | None) -> list[tuple[str, str]]:
        if isinstance(splits, str):
            splits = [splits]
        known = self.splits()
        for split in splits or ():
            if split not in known:
                raise UsageError(f"{self.root}: no split {split!r}. Found: {', '.join(known) or 'none'}.")
        wanted = known if splits is None else splits
        return [(category, split) for category in self.categories for split in self.splits(category) if split in wanted]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.root)!r}, categories={self.categories})"


def default_images_root(root: Path) -> Path:
    """`root/images`, if it is there.

    Raises:
        DataError: it is not; the message names folders nearby that hold pictures.
    """
    path = root / "images"
    if path.is_dir():
        return path
    nearby = [folder for folder in (root.parent / "images", root / "image", root / "img", root / "resized_image") if folder.is_dir()]
    hint = f" There is {nearby[0]}: is it that?" if nearby else ""
    raise DataError(f"{path}: no such folder. Put the pictures there as ID.jpg, or say where they are with --images DIR.{hint}")


class ReducedDataset(ComposedDataset):
    """A view of a dataset without certain pictures; see `ComposedDataset.without_images`.

    `get` returns splits with `missing` and `dropped_triplets` filled in, so that nothing disappears silently.

    Args:
        base: The whole dataset.
        bad_ids: Ids to leave out.
        splits: Splits to reduce; default all.
    """

    def __init__(self, base: ComposedDataset, bad_ids: Iterable[str], splits: Collection[str] | None = None) -> None:
        super().__init__(base.root, base._images)
        base._pairs_of(splits)
        self.base = base
        self.bad_ids = frozenset(bad_ids)
        self.reduced_splits = [splits] if isinstance(splits, str) else base.splits() if splits is None else split_order(splits)
        self.categories = base.categories
        self.name = base.name  # type: ignore[misc]
        self.default_protocol = base.default_protocol  # type: ignore[misc]
        self.sampled = base.sampled

    def splits(self, category: str | None = None) -> list[str]:
        return self.base.splits(category)

    def annotation_files(self, splits: Collection[str] | None = None) -> list[Path]:
        return self.base.annotation_files(splits)

    def image_path(self, image_id: str) -> Path:
        return self.base.image_path(image_id)

    @property
    def images_root(self) -> Path:
        return self.base.images_root

    def _finder(self) -> ImageFolder | PathFinder:
        return self.base._finder()

    def sample_triplets(self, seed: int, epoch: int) -> list[Triplet]:
        triplets = self.base.sample_triplets(seed, epoch)
        return self._kept(triplets) if "train" in self.reduced_splits else triplets

    def attribute_texts(self, split: str) -> dict[str, str]:
        return self.base.attribute_texts(split)

    def vocabulary_texts(self) -> list[str]:
        return self.base.vocabulary_texts()

    def _kept(self, triplets: Iterable[Triplet]) -> list[Triplet]:
        return [t for t in triplets if t.reference not in self.bad_ids and t.target not in self.bad_ids]

    def data_hash(self, splits: Collection[str] | None = None) -> str:
        whole = self.base.data_hash(splits)
        bad = sorted(self.bad_ids.intersection(self.base.image_ids(splits)))
        return files.hash_json({"of": whole, "without": bad, "in": self.reduced_splits}) if bad else whole

    def report(self) -> list[str]:
        """One line per category and split in which something was left out."""
        lines = []
        for category, split in self._pairs_of(self.reduced_splits):
            part = self.get(category, split)
            if part.missing or part.dropped_triplets:
                pairs, gallery = len(part.triplets) + part.dropped_triplets, len(part.gallery) + len(part.missing)
                lines.append(
                    f"{category} {split}: left out {part.dropped_triplets} of {pairs} pairs and {len(part.missing)} of "
                    f"{gallery} gallery pictures"
                )
        return lines

    def _read(self, category: str, split: str) -> CategorySplit:
        part = self.base.get(category, split)
        if split not in self.reduced_splits or self.bad_ids.isdisjoint(part.image_ids):
            return part
        kept = tuple(self._kept(part.triplets))
        if not kept:
            raise DataError(
                f"{self.root}: category {category!r} is empty: each of the {len(part.triplets)} pairs of {split!r} uses a "
                "picture that is missing or cannot be read. Look at the list of bad pictures, and check --images."
            )
        return replace(
            part,
            triplets=kept,
            gallery=tuple(id for id in part.gallery if id not in self.bad_ids),
            missing=part.missing + tuple(id for id in part.gallery if id in self.bad_ids),
            dropped_triplets=part.dropped_triplets + len(part.triplets) - len(kept),
        )
