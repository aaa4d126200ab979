"""Shoes: footwear with sentences that compare two pictures.

    relative_captions_shoes.json                list of {"ImageName": target, "ReferenceImageName": reference, "RelativeCaption": text}
    captions_shoes.json                         list of {"ImageName": name, "Caption": text} (side information; may be absent)
    train_im_names.txt, eval_im_names.txt       names of the pictures of each split, one in each line
    shoes-test-all.txt                          relative paths of the gallery (may be absent)
    attributedata/womens_*/{0,1}/*.jpg          the pictures; or flat in `root/images`

Data: Guo et al., "Dialog-based Interactive Image Retrieval" (NeurIPS 2018), on pictures of Berg et al. (ECCV 2010); this layout:
VAL (CVPR 2020).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

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
    existing_folder,
    id_problem,
    raise_errors,
    short_repr,
)

ALL = "all"
RELATIVE_FILE = "relative_captions_shoes.json"
CAPTION_FILE = "captions_shoes.json"
GALLERY_FILE = "shoes-test-all.txt"
NAME_FILES = {"train": "train_im_names.txt", "test": "eval_im_names.txt"}


def stem(name: str) -> str:
    """Image id of a name or path: its last part without extension."""
    return os.path.splitext(name.rsplit("/", 1)[-1])[0]


def read_names(path: Path, on_problem: OnProblem = raise_errors) -> list[str]:
    """Image ids from a file with one name or path in each line; each once."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        on_problem(Problem("error", str(path), f"cannot be read ({error.strerror}).", "It is part of the layout.", "missing file"))
        return []
    except UnicodeDecodeError:
        on_problem(Problem("error", str(path), "is not UTF-8 text.", "", "unreadable file"))
        return []
    ids: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            problem = id_problem(stem(line.strip()), f"{path}, line {number}", "name of a picture")
            if problem is not None:
                on_problem(problem)
            else:
                ids.setdefault(stem(line.strip()))
    if not ids:
        on_problem(Problem("error", str(path), f"category {ALL!r} is empty: no names.", "", "empty category"))
    return list(ids)


def read_rows(path: Path, keys: Sequence[str], on_problem: OnProblem = raise_errors) -> list[dict[str, str]]:
    """Rows of a JSON list of objects; under the first keys stand names of pictures, under the last one a text. Names become ids."""
    try:
        value = read_json(path)
    except DataError as error:
        on_problem(Problem("error", str(path), str(error).removeprefix(f"{path}: "), "", "unreadable file"))
        return []
    if not isinstance(value, list):
        what = f"expected a JSON list of objects with {', '.join(keys)}; found {short_repr(value)}."
        on_problem(Problem("error", str(path), what, "", "wrong structure"))
        return []
    rows = []
    for number, entry in enumerate(value, 1):
        where = f"{path}, row {number} of {len(value)}"
        if not isinstance(entry, dict) or any(key not in entry for key in keys):
            what = f"expected an object with {', '.join(keys)}; found {short_repr(entry)}."
            on_problem(Problem("error", where, what, "", "wrong structure"))
            continue
        problems: list[Problem | None] = []
        for key in keys[:-1]:
            name = entry[key]
            problems.append(id_problem(stem(name) if isinstance(name, str) else name, where, f"name of a picture as {key!r}"))
        problems.append(caption_problem(entry[keys[-1]], where))
        found = [problem for problem in problems if problem is not None]
        if found:
            for problem in found:
                on_problem(problem)
            continue
        rows.append({**{key: stem(entry[key]) for key in keys[:-1]}, keys[-1]: entry[keys[-1]]})
    return rows


def read_descriptions(root: Path, split: str) -> list[tuple[str, str]]:
    """Image id and text of every description of a split, in the order of its names; empty if there are none."""
    if not (root / CAPTION_FILE).is_file():
        return []
    texts: dict[str, list[str]] = {}
    for row in read_rows(root / CAPTION_FILE, ("ImageName", "Caption")):
        texts.setdefault(row["ImageName"], []).append(row["Caption"])
    return [(name, text) for name in read_names(root / NAME_FILES[split]) for text in texts.get(name, ())]


def pairs_of(records: Sequence[Mapping[str, str]], names: Sequence[str], duplicate_by_endpoint: bool = False) -> list[int]:
    """Numbers of the records that belong to a split: for each name in order, those that have it as target or reference.

    Args:
        records: Rows of `relative_captions_shoes.json`.
        names: The split's image ids.
        duplicate_by_endpoint: As released, a record whose two pictures are both in the list comes twice; otherwise once, where it
            comes first.
    """
    of_name: dict[str, list[int]] = {}
    for number, record in enumerate(records):
        for name in dict.fromkeys((record["ImageName"], record["ReferenceImageName"])):
            of_name.setdefault(name, []).append(number)
    numbers = [number for name in names for number in of_name.get(name, ())]
    return numbers if duplicate_by_endpoint else list(dict.fromkeys(numbers))


@DATASETS.register("shoes")
class Shoes(ComposedDataset):
    """A tree in the layout of Shoes. It has one category, "all", and the splits "train" and "test".

    A record belongs to a split if one of its pictures does (29 published ones cross the splits). Records whose two pictures are the
    same (27 published ones) ask for nothing and are left out; `tf-fashion data check` counts them.

    Args:
        root: Folder of the files above.
        images: Folder of the pictures, which may have two levels of folders; default `root/images`, else `root/attributedata`.
        categories: None or ("all",).
        duplicate_by_endpoint: See `pairs_of`.

    Raises:
        UsageError: the folder does not exist, or another category was asked for.
        DataError: the folder has no relative captions; broken files (when a split is first asked for).
    """

    name = "shoes"
    looked_for = f"{RELATIVE_FILE} (the layout of Shoes)"
    specificity = 29
    default_protocol = "shoes"

    def __init__(
        self,
        root: str | Path,
        images: str | Path | None = None,
        categories: Sequence[str] | None = None,
        duplicate_by_endpoint: bool = False,
    ) -> None:
        super().__init__(root, images)
        if not self.matches(self.root):
            raise DataError(f"{self.root}: expected {self.looked_for}, found none.")
        if categories is not None and list(categories) != [ALL]:
            raise UsageError(f"{self.root}: Shoes is used as a whole, as category {ALL!r}; found {', '.join(categories)}.")
        self.categories = [ALL]
        self.duplicate_by_endpoint = duplicate_by_endpoint

    @classmethod
    def matches(cls, root: Path) -> bool:
        return (Path(root) / RELATIVE_FILE).is_file()

    def splits(self, category: str | None = None) -> list[str]:
        return [split for split, name in NAME_FILES.items() if (self.root / name).is_file()]

    def annotation_files(self, splits: Collection[str] | None = None) -> list[Path]:
        wanted = [split for _, split in self._pairs_of(splits)]
        names = [RELATIVE_FILE, CAPTION_FILE, *(NAME_FILES[split] for split in wanted), *([GALLERY_FILE] if "test" in wanted else ())]
        return sorted(self.root / name for name in names if (self.root / name).is_file())

    def _read(self, category: str, split: str) -> CategorySplit:
        return _read_split(self.root, split, self.duplicate_by_endpoint, raise_errors)

    def attribute_texts(self, split: str) -> dict[str, str]:
        texts: dict[str, str] = {}
        for image_id, text in read_descriptions(self.root, split):
            if text.strip():
                texts.setdefault(image_id, text.strip())
        return texts

    def vocabulary_texts(self) -> list[str]:
        """The descriptions of "train", then its relative captions."""
        return [*(text for _, text in read_descriptions(self.root, "train")), *super().vocabulary_texts()]

    @property
    def images_root(self) -> Path:
        return _images_root(self.root, self._images)

    def _finder(self) -> ImageFolder:
        return ImageFolder(self.images_root, depth=3)

    @classmethod
    def inspect(cls, root: Path, images: Path | None, on_problem: OnProblem) -> Inspection:
        root = existing_folder(root, "the folder of a dataset")
        images = None if images is None else existing_folder(images, "the folder of the pictures")
        summaries = []
        told: set[Problem] = set()

        def once(problem: Problem) -> None:
            # Both splits read the file of records.
            if problem not in told:
                told.add(problem)
                on_problem(problem)

        for split, name in NAME_FILES.items():
            if (root / name).is_file():
                summaries.append(SplitSummary.of(_read_split(root, split, False, once)))
            else:
                on_problem(Problem("warning", str(root / name), f"no such file (the names of {split!r}).", "", "missing file"))
        if (root / CAPTION_FILE).is_file():
            read_rows(root / CAPTION_FILE, ("ImageName", "Caption"), on_problem)
        ids = sorted(set().union(*(summary.image_ids for summary in summaries)))
        folder = _images_root(root, images)
        paths: dict[str, Path | None] = ImageFolder(folder, depth=3).find_all(ids)
        for image_id, path in paths.items():
            if path is None:
                on_problem(Problem("error", f"{folder}/{image_id}.jpg", "missing picture.", "", "missing image"))
        return Inspection(cls.name, summaries, paths, folder)


def _images_root(root: Path, images: Path | None) -> Path:
    if images is not None:
        return images
    return next((root / name for name in ("images", "attributedata") if (root / name).is_dir()), root)


def _read_split(root: Path, split: str, duplicate_by_endpoint: bool, on_problem: OnProblem) -> CategorySplit:
    names = read_names(root / NAME_FILES[split], on_problem)
    path = root / RELATIVE_FILE
    records: list[dict[str, Any]] = list(read_rows(path, ("ImageName", "ReferenceImageName", "RelativeCaption"), on_problem))
    triplets = []
    same = empty = 0
    for number in pairs_of(records, names, duplicate_by_endpoint):
        record = records[number]
        reference, target, caption = record["ReferenceImageName"], record["ImageName"], record["RelativeCaption"].strip()
        same += reference == target
        empty += not caption
        if reference != target and caption:
            triplets.append(Triplet(reference, target, (caption,), ALL, number))
    for count, what in ((same, "name one picture as reference and target"), (empty, "have an empty caption")):
        if count:
            fix = "They are left out: there is nothing to find."
            on_problem(Problem("warning", str(path), f"{count} records of {split!r} {what}.", fix, "unusable record"))
    if names and not triplets:
        what = f"category {ALL!r} is empty: no record has a picture of {split!r}."
        on_problem(Problem("error", str(path), what, f"Compare the names with {NAME_FILES[split]}.", "empty category"))
    ids = {id for triplet in triplets for id in (triplet.reference, triplet.target) if id is not None}
    gallery_path = root / GALLERY_FILE
    ids.update(read_names(gallery_path, on_problem) if split == "test" and gallery_path.is_file() else names)
    return CategorySplit(ALL, split, tuple(triplets), tuple(sorted(ids)))
