"""FashionIQ's layout on disk, for FashionIQ itself and for any data written in the same way.

    captions/cap.{category}.{split}.json        list of {"candidate": id, "target": id, "captions": [string, string]}
    image_splits/split.{category}.{split}.json  list of ids: the gallery
    images/{id}.jpg                             (or .jpeg, .png, .webp; or image_data/{category}/{id}.jpg, as VAL has them)
    image_tag_dataset/tags/asin2attr.{category}.{split}.json   optional: id -> lists of attribute words

Layout: Wu et al., "Fashion IQ: A New Dataset Towards Retrieving Images by Natural Language Feedback" (CVPR 2021).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import read_json
from tf_fashion.datasets.records import (
    DATASETS,
    CategorySplit,
    ComposedDataset,
    ImageFolder,
    Inspection,
    OnProblem,
    Problem,
    SplitSummary,
    Triplet,
    caption_problem,
    default_images_root,
    existing_folder,
    id_problem,
    raise_errors,
    short_repr,
    split_order,
)

CAPTION_FILE = re.compile(r"^cap\.(?P<category>.+)\.(?P<split>[^.]+)\.json$")
GALLERY_FILE = re.compile(r"^split\.(?P<category>.+)\.(?P<split>[^.]+)\.json$")
ATTRIBUTE_FOLDER = Path("image_tag_dataset/tags")

# The order in which the published code bases go through the categories (it decides the order of vocabularies and batches).
_PUBLISHED_ORDER = {"dress": 0, "toptee": 1, "shirt": 2}


def _category_order(names: Collection[str]) -> list[str]:
    return sorted(set(names), key=lambda name: (_PUBLISHED_ORDER.get(name, 3), name))


def _listed(folder: Path, pattern: re.Pattern[str]) -> set[tuple[str, str]]:
    """The (category, split) pairs for which `folder` has a file."""
    if not folder.is_dir():
        return set()
    matches = (pattern.match(path.name) for path in folder.iterdir())
    return {(match["category"], match["split"]) for match in matches if match}


def caption_file(root: Path, category: str, split: str) -> Path:
    """Path of the pairs of one category and split."""
    return root / "captions" / f"cap.{category}.{split}.json"


def gallery_file(root: Path, category: str, split: str) -> Path:
    """Path of the gallery of one category and split."""
    return root / "image_splits" / f"split.{category}.{split}.json"


def _read_list(path: Path, what: str, on_problem: OnProblem) -> list | None:
    try:
        value = read_json(path)
    except DataError as error:
        message = str(error).removeprefix(f"{path}: ")
        on_problem(Problem("error", str(path), message, f"Expected {what}.", "unreadable file"))
        return None
    if not isinstance(value, list):
        on_problem(Problem("error", str(path), f"expected {what}, found {short_repr(value)}.", "", "wrong structure"))
        return None
    return value


def _read_gallery(path: Path, on_problem: OnProblem) -> list[str] | None:
    values = _read_list(path, "a JSON list of image ids", on_problem)
    if values is None:
        return None
    rows: dict[str, int] = {}
    for row, value in enumerate(values, 1):
        where = f"{path}, row {row} of {len(values)}"
        if problem := id_problem(value, where):
            on_problem(problem)
        elif value in rows:
            what = f"the gallery holds the id {value!r} a second time (first in row {rows[value]})."
            on_problem(Problem("error", where, what, "Remove one of the two: ranks would count it twice.", "duplicate id"))
        else:
            rows[value] = row
    return list(rows)


def _read_entry(entry: object, where: str, target_optional: bool, on_problem: OnProblem) -> tuple[str, str | None, tuple] | None:
    """Reference, target and captions of one pair; None if it has an error (which was reported)."""
    if not isinstance(entry, dict):
        what = f'expected an object with "candidate", "target" and "captions", found {short_repr(entry)}.'
        on_problem(Problem("error", where, what, "", "wrong structure"))
        return None
    good = True

    def report(problem: Problem) -> None:
        nonlocal good
        good = False
        on_problem(problem)

    needed = ["candidate", "captions"] if target_optional else ["candidate", "target", "captions"]
    missing = [key for key in needed if key not in entry]
    if missing:
        found = ", ".join(short_repr(key) for key in list(entry)[:8]) or "no key at all"
        fix = 'Only the split "test" may do without targets.' if missing == ["target"] else ""
        report(Problem("error", where, f"no {' and no '.join(map(repr, missing))}; found {found}.", fix, "missing key"))
    for key in ("candidate", "target"):
        if key in entry and (problem := id_problem(entry[key], where, f"image id as {key!r}")):
            report(problem)
    captions = entry.get("captions", ["-", "-"])
    if not isinstance(captions, list):
        kind = "one string" if isinstance(captions, str) else "something else"
        what = f"expected 'captions' to be a list of two strings, found {kind}: {short_repr(captions)}."
        report(Problem("error", where, what, 'Write them as ["first", "second"].', "bad caption"))
    else:
        if len(captions) != 2:
            what = f"expected two captions, found {len(captions)}: {short_repr(captions)}."
            report(Problem("error", where, what, 'Give two strings; one of them may be "".', "bad caption"))
        for number, caption in enumerate(captions, 1):
            if problem := caption_problem(caption, f"{where}, caption {number}"):
                report(problem)
        if good and not any(caption.strip() for caption in captions):
            fix = "Write at least one, or remove the pair."
            report(Problem("error", where, "all captions of the pair are empty.", fix, "empty captions"))
    if good and entry["candidate"] == entry.get("target"):
        what = f"reference and target are the same picture {entry['candidate']!r}."
        report(Problem("error", where, what, "Remove the pair: there is nothing to find.", "reference is target"))
    return (entry["candidate"], entry.get("target"), tuple(captions)) if good else None


def read_split(root: Path, category: str, split: str, on_problem: OnProblem = raise_errors) -> CategorySplit:
    """Reads and validates one category and split; problems go to `on_problem`, which may raise.

    With a callback that does not raise, rows with errors are left out of what is returned.
    """
    captions_path, gallery_path = caption_file(root, category, split), gallery_file(root, category, split)
    gallery: list[str] | None = None
    if gallery_path.exists():
        gallery = _read_gallery(gallery_path, on_problem)
    else:
        fix = f"Every {captions_path.name} needs it; or leave the category out with --categories."
        on_problem(Problem("error", str(gallery_path), "no such file (the gallery's list of ids).", fix, "missing file"))
    entries = None
    if captions_path.exists():
        entries = _read_list(captions_path, 'a JSON list of objects with "candidate", "target", "captions"', on_problem)
    else:
        fix = f"Every {gallery_path.name} needs it."
        on_problem(Problem("error", str(captions_path), "no such file (the pairs).", fix, "missing file"))

    # An empty list is said once, about what is really empty; a list that could not be read has been reported already.
    for values, path, what in (
        (gallery, gallery_path, "the gallery has no images"),
        (entries, captions_path, "there are no pairs"),
    ):
        if values is not None and not values:
            fix = "Fill it, or leave the category out with --categories."
            on_problem(Problem("error", str(path), f"category {category!r} is empty: {what} in {split!r}.", fix, "empty category"))

    triplets = []
    in_gallery = frozenset(gallery or ())
    outside: list[str] = []
    for row, entry in enumerate(entries or ()):
        where = f"{captions_path}, row {row + 1} of {len(entries or ())}"
        read = _read_entry(entry, where, split == "test", on_problem)
        if read is None:
            continue
        reference, target, captions = read
        if gallery and target is not None and target not in in_gallery:
            what = f"the target {target!r} is not in the gallery {gallery_path.name}."
            on_problem(Problem("error", where, what, "Add it to the gallery, or remove the pair.", "target not in gallery"))
        if reference not in in_gallery:
            outside.append(reference)
        triplets.append(Triplet(reference, target, captions, category, row))
    without_target = sum(triplet.target is None for triplet in triplets)
    if 0 < without_target < len(triplets):
        what = f"{without_target} of {len(triplets)} pairs have no 'target'."
        on_problem(Problem("error", str(captions_path), what, "Give all of them one, or none.", "missing key"))
    if gallery and outside:
        what = f"{len(outside)} references (the first: {outside[0]!r}) are not in the gallery {gallery_path.name}."
        on_problem(Problem("warning", str(captions_path), what, "They are queried but never found.", "reference not in gallery"))
    return CategorySplit(category, split, tuple(triplets), tuple(gallery or ()))


@DATASETS.register("fashion_iq")
class FashionIQ(ComposedDataset):
    """A tree in FashionIQ's layout, with whatever categories and splits it has files for.

    Args:
        root: Folder with `captions/` and `image_splits/`.
        images: Folder of the pictures; default `root/images`. It is looked at only when a picture is asked for.
        categories: Which categories, in which order; default all that are found (dress, toptee, shirt first, then by name).

    Raises:
        UsageError: the folder does not exist, or lacks a category that was asked for.
        DataError: the folder has no file of the layout.
    """

    name = "fashion_iq"
    looked_for = "captions/cap.CATEGORY.SPLIT.json and image_splits/split.CATEGORY.SPLIT.json (FashionIQ's layout)"
    specificity = 30

    def __init__(self, root: str | Path, images: str | Path | None = None, categories: Sequence[str] | None = None) -> None:
        super().__init__(root, images)
        with_captions = _listed(self.root / "captions", CAPTION_FILE)
        self._listed = with_captions or _listed(self.root / "image_splits", GALLERY_FILE)
        found = _category_order([category for category, _ in self._listed])
        if not found:
            inside = [path.name for path in sorted(self.root.iterdir()) if path.is_dir() and self.matches(path)]
            hint = f" Did you mean {self.root / inside[0]}?" if inside else ""
            raise DataError(f"{self.root}: expected {self.looked_for}, found none.{hint}")
        if categories is None:
            self.categories = found
        else:
            self.categories = [categories] if isinstance(categories, str) else list(dict.fromkeys(categories))
            unknown = [category for category in self.categories if category not in found]
            if unknown or not self.categories:
                raise UsageError(f"{self.root}: no category {', '.join(map(repr, unknown))}. Found: {', '.join(found)}.")

    @classmethod
    def matches(cls, root: Path) -> bool:
        return any((Path(root) / folder).is_dir() for folder in ("captions", "image_splits"))

    def splits(self, category: str | None = None) -> list[str]:
        return split_order(split for name, split in self._listed if (name in self.categories if category is None else name == category))

    def annotation_files(self, splits: Collection[str] | None = None) -> list[Path]:
        pairs = self._pairs_of(splits)
        paths = [make(self.root, *pair) for pair in pairs for make in (caption_file, gallery_file)]
        return sorted(path for path in paths if path.exists())

    def _read(self, category: str, split: str) -> CategorySplit:
        return read_split(self.root, category, split)

    def attributes(self, category: str, split: str) -> dict[str, tuple[tuple[str, ...], ...]]:
        """Attribute words per image id, grouped as in the file; empty if there is no such file.

        Raises:
            DataError: the file does not hold an object of lists of lists of strings.
        """
        path = self.root / ATTRIBUTE_FOLDER / f"asin2attr.{category}.{split}.json"
        if not path.exists():
            return {}
        value = read_json(path)
        if not isinstance(value, dict):
            raise DataError(f"{path}: expected an object from image id to lists of words, found {short_repr(value)}.")
        result = {}
        for image_id, groups in value.items():
            fine = isinstance(groups, list) and all(
                isinstance(group, list) and all(isinstance(word, str) for word in group) for group in groups
            )
            if problem := id_problem(image_id, str(path)):
                raise_errors(problem)
            if not fine:
                raise DataError(f"{path}, {image_id!r}: expected lists of words, found {short_repr(groups)}.")
            result[image_id] = tuple(map(tuple, groups))
        return result

    def attribute_texts(self, split: str) -> dict[str, str]:
        texts: dict[str, str] = {}
        for category in self.categories:
            if split in self.splits(category):
                texts |= {image_id: text for image_id, groups in self.attributes(category, split).items() if (text := tag_text(groups))}
        return texts

    @property
    def images_root(self) -> Path:
        return self._images if self._images is not None else find_images_root(self.root)

    def _finder(self) -> ImageFolder:
        return ImageFolder(self.images_root, depth=1)

    @functools.cached_property
    def image_urls(self) -> dict[str, str]:
        """Addresses from the `asin2url.*.txt` lists in `root` or a folder directly in it. Nothing is ever fetched from them."""
        return find_urls(self.root)

    @classmethod
    def inspect(cls, root: Path, images: Path | None, on_problem: OnProblem) -> Inspection:
        root = existing_folder(root, "the folder of a dataset")
        with_captions = _listed(root / "captions", CAPTION_FILE)
        with_gallery = _listed(root / "image_splits", GALLERY_FILE)
        listed = with_captions | with_gallery
        for folder, pattern in (("captions", CAPTION_FILE), ("image_splits", GALLERY_FILE)):
            if not (root / folder).is_dir():
                on_problem(Problem("error", str(root / folder), "no such folder.", f"Expected {cls.looked_for}.", "missing file"))
                continue
            for path in sorted((root / folder).iterdir()):
                if path.suffix == ".json" and not pattern.match(path.name):
                    fix = f"Expected {cls.looked_for}."
                    on_problem(Problem("warning", str(path), "the name says no category and split; not read.", fix, "unknown file"))
        if not listed:
            what = "no category: neither folder has a file of the layout."
            on_problem(Problem("error", str(root), what, f"Expected {cls.looked_for}.", "empty category"))
        summaries: list[SplitSummary] = []
        paths: dict[str, Path | None] = {}
        images_root: Path | None = None
        for category in _category_order([category for category, _ in listed]):
            for split in split_order(split for name, split in listed if name == category):
                summaries.append(SplitSummary.of(read_split(root, category, split, on_problem)))
        try:
            images_root = existing_folder(images, "the folder of the pictures") if images is not None else find_images_root(root)
            paths = ImageFolder(images_root, depth=1).find_all(sorted(set().union(*(summary.image_ids for summary in summaries))))
        except (DataError, UsageError) as error:
            where, _, what = str(error).partition(": ")
            on_problem(Problem("error", where, what, "", "missing file"))
        urls = find_urls(root) if None in paths.values() else {}
        for image_id, picture in paths.items():
            if picture is None:
                users = [f"{s.category} {s.split}" for s in summaries if image_id in s.image_ids]
                fix = f"Its address in the list: {urls[image_id]}" if image_id in urls else ""
                what = f"missing picture, used by {', '.join(users[:3])}."
                on_problem(Problem("error", f"{images_root}/{image_id}.jpg", what, fix, "missing image"))
        return Inspection(cls.name, summaries, paths, images_root)


def find_images_root(root: Path) -> Path:
    """`root/images`, or `root/image_data` where only that exists.

    Raises:
        DataError: neither is there.
    """
    other = root / "image_data"
    return other if other.is_dir() and not (root / "images").is_dir() else default_images_root(root)


def tag_text(groups: Sequence[Sequence[str]], longest: int = 20) -> str:
    """Attribute words as VAL makes one text of them: groups in reverse order (style first, the kind of garment last), lower case,
    each word once, the last `longest` of them."""
    words = dict.fromkeys(" ".join(word for group in reversed(groups) for word in group).lower().split())
    return " ".join(list(words)[-longest:])


def find_urls(root: Path) -> dict[str, str]:
    """Image addresses listed in `asin2url.*.txt` files (lines `id TAB url`) in `root` or one folder below; lines that are not
    of this form are left out."""
    urls = {}
    for path in sorted([*root.glob("asin2url.*.txt"), *root.glob("*/asin2url.*.txt")]):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            image_id, _, url = line.partition("\t")
            if url.strip() and id_problem(image_id.strip(), "") is None:
                urls[image_id.strip()] = url.strip()
    return urls
