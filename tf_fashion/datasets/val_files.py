"""The intermediate text files and ground-truth matrices that the released VAL programs read, byte for byte.

tf_fashion itself needs none of them: its datasets read the annotations directly. They are for running the original, or other
programs that take its files, on data that are only there as annotations.

    fashion_iq/captions_pairs/fashion_iq-{train,val}-cap[-CATEGORY].txt   lines: CATEGORY/reference.jpg;CATEGORY/target.jpg;caption
    fashion_iq/tags/asin2attr-SPLIT[-CATEGORY].txt                        lines: CATEGORY/id.jpg;words
    shoes/shoes-cap-{train,test}.txt, shoes/shoes-tag-{train,test}.txt    likewise, with paths from PREFIX on
    groundtruth/NAME.npy                                                  bool (queries, gallery)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import atomic_write
from tf_fashion.datasets import fashion200k, fashion_iq, shoes
from tf_fashion.datasets.fashion_iq import FashionIQ, tag_text
from tf_fashion.datasets.records import ComposedDataset, ImageFolder

PREFIX = "datasets/"
# The originals put the files of all categories together in this order.
CATEGORY_ORDER = ("dress", "shirt", "toptee")


@dataclass
class Lines:
    """The lines of one file, and how many were left out for want of a picture or a text."""

    name: str
    lines: list[str] = field(default_factory=list)
    without_picture: int = 0
    without_text: int = 0

    def add(self, text: str, *paths: str | None) -> None:
        """Adds a line, unless a path is missing or the text empty."""
        if any(path is None for path in paths):
            self.without_picture += 1
        elif not text.strip():
            self.without_text += 1
        else:
            self.lines.append(";".join([*(str(path) for path in paths), text.strip()]) + " \n")

    def report(self) -> str:
        """One line for the terminal."""
        left_out = [
            f"{count} left out {why}"
            for count, why in ((self.without_picture, "for want of a picture"), (self.without_text, "as their text is empty"))
            if count
        ]
        return f"{self.name}: {len(self.lines)} lines" + (f" ({', '.join(left_out)})" if left_out else "")


def parse_line(line: str) -> tuple[str, str, str]:
    """Reference path, target path and caption as the original's reader takes them: a caption ends at its first semicolon."""
    fields = line.rstrip("\n").split(";")
    if len(fields) < 3:
        raise DataError(f"Expected 'reference;target;caption', found {line!r}.")
    return fields[0], fields[1], fields[2].strip()


def _in_order(categories: Sequence[str]) -> list[str]:
    known = [category for category in CATEGORY_ORDER if category in categories]
    return known + sorted(set(categories) - set(known))


def fashion_iq_pairs(root: Path, category: str, split: str, pictures: ImageFolder) -> Lines:
    """Every caption of a category and split as a line; pairs need both pictures."""
    part = fashion_iq.read_split(root, category, split)
    result = Lines(f"fashion_iq/captions_pairs/fashion_iq-{split}-cap-{category}.txt")
    for triplet in part.triplets:
        paths = [
            f"{category}/{image_id}.jpg" if image_id and pictures.find(image_id) else None
            for image_id in (triplet.reference, triplet.target)
        ]
        for caption in triplet.captions:
            result.add(caption, *paths)
    return result


def fashion_iq_tags(dataset: FashionIQ, category: str, split: str, pictures: ImageFolder) -> Lines:
    """The words about every picture of a category and split."""
    result = Lines(f"fashion_iq/tags/asin2attr-{split}-{category}.txt")
    for image_id, groups in dataset.attributes(category, split).items():
        result.add(tag_text(groups), f"{category}/{image_id}.jpg" if pictures.find(image_id) else None)
    return result


def shoes_paths(pictures: ImageFolder, prefix: str = PREFIX) -> dict[str, str]:
    """Image id -> path as the original's files name it."""
    folder = "" if pictures.folder.name != "attributedata" else "attributedata/"
    return {image_id: f"{prefix}shoes/{folder}{name}" for image_id, name in pictures._index().items()}


def shoes_pairs(root: Path, split: str, paths: dict[str, str]) -> Lines:
    """The relative captions of a split; a record with both pictures in it comes twice, as released."""
    names = shoes.read_names(root / shoes.NAME_FILES[split])
    records = shoes.read_rows(root / shoes.RELATIVE_FILE, ("ImageName", "ReferenceImageName", "RelativeCaption"))
    result = Lines(f"shoes/shoes-cap-{split}.txt")
    for number in shoes.pairs_of(records, names, duplicate_by_endpoint=True):
        record = records[number]
        result.add(record["RelativeCaption"], paths.get(record["ReferenceImageName"]), paths.get(record["ImageName"]))
    return result


def shoes_tags(root: Path, split: str, paths: dict[str, str]) -> Lines:
    """The descriptions of the pictures of a split."""
    result = Lines(f"shoes/shoes-tag-{split}.txt")
    for image_id, text in shoes.read_descriptions(root, split):
        result.add(text, paths.get(image_id))
    return result


def ground_truth(targets: Sequence[str], gallery: Sequence[str]) -> np.ndarray:
    """bool (queries, gallery): where the gallery's entry is the query's target (its path, or its caption)."""
    numbers = {value: number for number, value in enumerate(dict.fromkeys([*gallery, *targets]))}
    rows, columns = (np.array([numbers[value] for value in values], np.int64) for values in (targets, gallery))
    return rows[:, None] == columns[None, :]


def gallery_of(lines: Sequence[str], more: Sequence[str] = ()) -> list[str]:
    """VAL's gallery: the sorted paths of all references and targets, and of `more`."""
    pairs = [parse_line(line) for line in lines]
    return sorted({*more, *(pair[0] for pair in pairs), *(pair[1] for pair in pairs)})


def prepare(dataset: ComposedDataset, out: Path, prefix: str = PREFIX) -> list[str]:
    """Writes all files for a dataset; running it again gives the same files.

    Args:
        dataset: FashionIQ, Shoes or Fashion200k.
        out: Folder that takes the place of the original's `datasets` folder.
        prefix: What the original puts before paths of Shoes and Fashion200k.

    Returns:
        One line about each file.

    Raises:
        UsageError: another dataset.
        DataError: broken annotations, or no pictures.
    """
    if isinstance(dataset, FashionIQ):
        files, truths = _fashion_iq(dataset)
    elif isinstance(dataset, shoes.Shoes):
        files, truths = _shoes(dataset, prefix)
    elif isinstance(dataset, fashion200k.Fashion200k):
        part = dataset.get(fashion200k.ALL, "test")
        labels = part.labels or {}
        wanted = [labels[str(triplet.target)] for triplet in part.triplets]
        files, truths = [], {"fashion200k_modif_pairs": ground_truth(wanted, [labels[image_id] for image_id in part.gallery])}
    else:
        raise UsageError(f"VAL has no files for the dataset {dataset.name!r}; expected fashion_iq, shoes or fashion200k.")
    report = []
    for file in files:
        if not file.lines and file.without_picture:
            raise DataError(
                f"{file.name}: none of {file.without_picture} lines has its pictures. Say where they are with --images DIR."
            )
        (out / file.name).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out / file.name) as stream:
            stream.writelines(file.lines)
        report.append(file.report())
    for name, truth in truths.items():
        (out / "groundtruth").mkdir(parents=True, exist_ok=True)
        with atomic_write(out / "groundtruth" / f"{name}.npy", "wb") as stream:
            np.save(stream, truth)
        report.append(f"groundtruth/{name}.npy: {truth.shape[0]} queries, {truth.shape[1]} pictures")
    return report


def _fashion_iq(dataset: FashionIQ) -> tuple[list[Lines], dict[str, np.ndarray]]:
    pictures = dataset._finder()
    files: list[Lines] = []
    truths = {}
    for split in ("train", "val"):
        parts = [
            fashion_iq_pairs(dataset.root, c, split, pictures) for c in _in_order(dataset.categories) if split in dataset.splits(c)
        ]
        files += [*parts, _together(f"fashion_iq/captions_pairs/fashion_iq-{split}-cap.txt", parts)] if parts else []
        if split == "val" and parts:
            for part in [*parts, files[-1]]:
                category = part.name.partition("-cap-")[2].removesuffix(".txt")
                targets = [parse_line(line)[1] for line in part.lines]
                name = "fashion_iq_modif_pairs" + (f"_{category}" if category else "")
                truths[name] = ground_truth(targets, gallery_of(part.lines))
    for split in ("train", "val", "test"):
        categories = [c for c in _in_order(dataset.categories) if dataset.attributes(c, split)]
        parts = [fashion_iq_tags(dataset, category, split, pictures) for category in categories]
        files += [*parts, _together(f"fashion_iq/tags/asin2attr-{split}.txt", parts)] if parts else []
    return files, truths


def _together(name: str, parts: Sequence[Lines]) -> Lines:
    return Lines(
        name,
        [line for part in parts for line in part.lines],
        sum(part.without_picture for part in parts),
        sum(part.without_text for part in parts),
    )


def _shoes(dataset: shoes.Shoes, prefix: str) -> tuple[list[Lines], dict[str, np.ndarray]]:
    paths = shoes_paths(dataset._finder(), prefix)
    files: list[Lines] = []
    truths = {}
    for split in dataset.splits():
        pairs = shoes_pairs(dataset.root, split, paths)
        files += [pairs, shoes_tags(dataset.root, split, paths)]
        if split == "test":
            listed = dataset.root / shoes.GALLERY_FILE
            more = [paths[i] for i in shoes.read_names(listed) if i in paths] if listed.is_file() else []
            targets = [parse_line(line)[1] for line in pairs.lines]
            truths["shoes_modif_pairs"] = ground_truth(targets, gallery_of(pairs.lines, more))
    return [file for file in files if file.lines or file.without_picture], truths
