"""iMaterialist Fashion 2018 and data in its format.

    ROOT/train.json, validation.json, test.json     {"images": [{"imageId", "url"}], "annotations": [{"imageId", "labelId": [...]}]}
    ROOT/label_map.csv                              labelId,taskId,labelName,taskName; without one, the official 228 labels
    ROOT/train/ID.jpg, ROOT/validation/ID.jpg, ...  pictures of each split; or ROOT/images/ID.jpg; or as `url` says, if it is a path

Both spellings of the keys are read (`imageId` and `image_id`, `labelId` and `label_id`), ids as strings or numbers, and `url` as a
string or a list of which the first counts. Images and annotations are joined on the id; records come in the order of the
annotations. A file without annotations (the competition's test) has pictures without labels.

The competition numbers the pictures of each split from 1. Where that is so and each split has its own folder, the ids of all
splits begin with the folder's name: `validation__1` is `validation/1.jpg`.

Data: the iMaterialist Challenge (Fashion) at FGVC5, Guo et al., "The iMaterialist Fashion Attribute Dataset" (ICCV workshops 2019).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tf_fashion.core import files
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.attributes import AttributeDataset, AttributeRecord, first_entries
from tf_fashion.datasets.catalogue import relative_path_problem
from tf_fashion.datasets.labels import OFFICIAL_FILE, LabelMap, label_id, raise_all
from tf_fashion.datasets.records import (
    DATASETS,
    IMAGE_EXTENSIONS,
    ImageFolder,
    Inspection,
    OnProblem,
    Problem,
    SplitSummary,
    existing_folder,
    id_problem,
    raise_errors,
    short_repr,
    split_order,
)

FILES = {"train": ("train.json",), "val": ("validation.json", "val.json"), "test": ("test.json",)}
LABEL_MAPS = ("label_map.csv", OFFICIAL_FILE)
_IMAGE_KEYS = ("imageId", "image_id")
_LABEL_KEYS = ("labelId", "label_id")
_FIRST_IDS = re.compile(r'"image_?[iI]d"\s*:\s*"?([\w.-]+)')
_HEAD = 65_536
# Ids of which nothing needs to be asked; the others go through `id_problem`.
_GOOD_ID = re.compile(r"[A-Za-z0-9_-][\w.-]{0,127}", re.ASCII)


class ListedImage(NamedTuple):
    """An entry of `images`: id, address (None where there is none), and its place in the file."""

    id: str
    url: str | None
    row: int


@dataclass
class SplitFile:
    """What one JSON file says.

    Attributes:
        images: All pictures of the list, in file order, each once.
        records: Pictures with labels, in the order of the annotations; where there are no annotations, all pictures without labels.
        labelled: Whether the file has annotations.
    """

    images: list[ListedImage] = field(default_factory=list)
    records: list[AttributeRecord] = field(default_factory=list)
    labelled: bool = True


def read_split(path: str | Path, label_map: LabelMap | None = None, on_problem: OnProblem = raise_errors) -> SplitFile:
    """Reads a JSON file of the competition's format. What is wrong goes to `on_problem` and is left out.

    Args:
        path: The file.
        label_map: The labels that there are; None takes every whole number from 1.
        on_problem: What to do about each problem.
    """
    path = Path(path)
    content = _read_object(path, on_problem)
    if content is None:
        return SplitFile()
    found = SplitFile(_read_images(path, content["images"], on_problem))
    if "annotations" in content:
        known = {image.id for image in found.images}
        found.records = _read_annotations(path, content["annotations"], known, label_map, on_problem)
        annotated = {record.image_id for record in found.records}
        without = [image.id for image in found.images if image.id not in annotated]
        if without and found.records:
            what = f"{len(without)} of {len(known)} listed pictures without annotation, for instance {without[0]!r}."
            on_problem(Problem("warning", str(path), what, "They are left out.", "no annotation"))
    else:
        found.labelled = False
        found.records = [AttributeRecord(image.id, (), image.row) for image in found.images]
    if not found.records:
        on_problem(Problem("error", str(path), "no usable picture: the split is empty.", "", "empty category"))
    return found


def read_listed_images(path: str | Path) -> list[ListedImage]:
    """The list of pictures of a JSON file of the competition's format; annotations are not looked at.

    Raises:
        DataError: the file or its list is broken; the message lists what is wrong.
    """
    problems: list[Problem] = []
    content = _read_object(Path(path), problems.append)
    images = _read_images(Path(path), content["images"], problems.append) if content is not None else []
    raise_all(problems, str(path))
    return images


def _read_object(path: Path, on_problem: OnProblem) -> dict[str, Any] | None:
    """The JSON object of a file, whose "images" is a list, and "annotations" too where it is there; else None."""
    form = 'an object {"images": [...], "annotations": [...]}'
    what, fix = "", ""
    try:
        content = files.read_json(path)
    except DataError as error:
        what = str(error).removeprefix(f"{path}: ")
    else:
        if not isinstance(content, dict):
            what = f"expected {form}, found {short_repr(content)}."
        elif "images" not in content:
            what, fix = f"expected {form}, found the keys {short_repr(list(content))}.", 'Write the list "images".'
        else:
            wrong = next((key for key in ("images", "annotations") if not isinstance(content.get(key, []), list)), None)
            what = f"expected a list as {wrong!r}, found {short_repr(content[wrong])}." if wrong else ""
    if what:
        on_problem(Problem("error", str(path), what, fix, "unreadable file"))
        return None
    return content


def _entry(value: object, keys: Sequence[str], where: str) -> tuple[Problem | None, Any]:
    """The value under the first of `keys` that an object has."""
    if not isinstance(value, dict):
        return Problem("error", where, f"expected an object, found {short_repr(value)}.", "", "bad entry"), None
    for key in keys:
        if key in value:
            return None, value[key]
    what = f"expected the key {keys[0]!r}, found {', '.join(map(short_repr, value)) or 'nothing'}."
    return Problem("error", where, what, "", "missing key"), None


def _image_id(value: object, where: str) -> tuple[Problem | None, str]:
    problem, found = _entry(value, _IMAGE_KEYS, where)
    if isinstance(found, int) and not isinstance(found, bool) and 0 <= found < 10**40:
        found = str(found)
    problem = problem or id_problem(found, where)
    return problem, found


def _simple_id(entry: object) -> str | None:
    """The id of an entry in the usual spelling, which is nearly every one; None for all that needs a closer look."""
    value = entry.get("imageId") if isinstance(entry, dict) else None
    return value if isinstance(value, str) and _GOOD_ID.fullmatch(value) else None


def _address(url: object, where: str) -> tuple[Problem | None, str | None]:
    """The address of an entry: the first of a list, None for none."""
    if isinstance(url, list):
        url = url[0] if url else None
    if url is not None and not isinstance(url, str):
        what = f"expected an address (a string) as 'url', found {short_repr(url)}."
        return Problem("error", where, what, "", "bad address"), None
    if url and "://" not in url:
        return relative_path_problem(url, where), url
    return None, url or None


def _read_images(path: Path, entries: Sequence[object], on_problem: OnProblem) -> list[ListedImage]:
    images: dict[str, ListedImage] = {}
    repeated: list[tuple[str, int]] = []
    for row, entry in enumerate(entries):
        image_id, url = _simple_id(entry), entry.get("url") if isinstance(entry, dict) else None
        if image_id is None or not isinstance(url, str) or "://" not in url:
            where = f"{path}, images[{row}]"
            problem, image_id = _image_id(entry, where)
            if problem is None:
                problem, url = _address(url, where)
            if problem is not None:
                on_problem(problem)
                continue
        first = images.setdefault(image_id, ListedImage(image_id, url, row))
        if first.row == row:
            continue
        if first.url == url:
            repeated.append((image_id, row))
            continue
        what = f"the picture {image_id!r} is listed a second time with another url (first in images[{first.row}])."
        on_problem(Problem("error", f"{path}, images[{row}]", what, "Ids must be unique.", "picture listed twice"))
    if repeated:
        image_id, row = repeated[0]
        what = f"{_number(len(repeated), 'entry repeats', 'entries repeat')} a picture with the same url, for instance {image_id!r}"
        what += f" (first in images[{images[image_id].row}])."
        on_problem(Problem("warning", f"{path}, images[{row}]", what, "Each counts once.", "pictures listed twice"))
    return list(images.values())


def _read_annotations(
    path: Path, entries: Sequence[object], known: Collection[str], label_map: LabelMap | None, on_problem: OnProblem
) -> list[AttributeRecord]:
    records: list[AttributeRecord] = []
    empty: list[str] = []
    doubled: list[str] = []
    numbers_of = {key: number for number in (label_map.ids if label_map else ()) for key in (str(number), number)}
    for row, entry in enumerate(entries):
        image_id, values = _simple_id(entry) or "", entry.get("labelId") if isinstance(entry, dict) else None
        # 0 stands for what is no label; True would be found as 1.
        numbers = [numbers_of.get(value, 0) if type(value) in (str, int) else 0 for value in values] if type(values) is list else [0]
        if image_id not in known or 0 in numbers:
            problem, image_id, numbers = _checked_annotation(entry, f"{path}, annotations[{row}]", known, label_map)
            if problem is not None:
                on_problem(problem)
                continue
        unique = tuple(dict.fromkeys(numbers))
        if not unique:
            empty.append(image_id)
        if len(unique) < len(numbers):
            doubled.append(image_id)
        records.append(AttributeRecord(image_id, unique, row))
    for ids, what, fix, kind in (
        (empty, "without any label", "They count as having none of the labels.", "no labels"),
        (doubled, "with a label that is listed twice", "It counts once.", "label listed twice"),
    ):
        if ids:
            text = f"{_number(len(ids), 'annotation', 'annotations')} {what}, for instance that of {ids[0]!r}."
            on_problem(Problem("warning", str(path), text, fix, kind))
    place = f"{path}, annotations"
    entries_of = [(f"{place}[{record.row}]", record.image_id, record.label_ids) for record in records]
    return [records[place] for place in first_entries(entries_of, on_problem)]


def _checked_annotation(
    entry: object, where: str, known: Collection[str], label_map: LabelMap | None
) -> tuple[Problem | None, str, list[int]]:
    """What is wrong with an annotation, its picture, and its labels."""
    problem, image_id = _image_id(entry, where)
    values: Any = []
    if problem is None:
        problem, values = _entry(entry, _LABEL_KEYS, where)
    if problem is None and not isinstance(values, list):
        what = f"expected a list of label ids as 'labelId', found {short_repr(values)}."
        problem = Problem("error", where, what, f'Write ["{values}"].' if label_id(values) else "", "bad labels")
    if problem is None and image_id not in known:
        what = f"the picture {image_id!r} is not in the list of images."
        problem = Problem("error", where, what, "Add it there, or remove the annotation.", "unknown picture")
    if problem is None:
        problem = _label_problem(values, label_map, where)
    return problem, image_id, [label_id(value) or 0 for value in values] if problem is None else []


def _label_problem(values: Sequence[object], label_map: LabelMap | None, where: str) -> Problem | None:
    for value in values:
        number = label_id(value)
        if number is None:
            what = f"expected label ids (whole numbers of at least 1, also as text), found {short_repr(value)}."
            return Problem("error", where, what, "", "bad labels")
        if label_map is not None and number not in label_map:
            ids = label_map.ids
            what = f"the label id {number} is not in the label map, which has {len(ids)} ids from {min(ids)} to {max(ids)}."
            return Problem("error", where, what, "Correct it, or give the label map that belongs to the file.", "unknown label")
    return None


@DATASETS.register("imaterialist")
class Imaterialist(AttributeDataset):
    """Data in the format of iMaterialist Fashion 2018. A split is read when it is first asked for.

    A picture is looked for by the path that its `url` gives, then as `SPLIT/ID.jpg` (SPLIT as the JSON file is called), then as
    `images/ID.jpg` and `ID.jpg`, below the folder of the pictures.

    Args:
        root: Folder of the JSON files.
        images: Folder of the pictures; default `root`.
        label_map: A map, or the path of one; default: `label_map.csv` or the official file's name in `root`, else the official map.
        train, val, test: JSON files, in place of those in `root`.
        on_missing: As in `AttributeDataset`.

    Raises:
        UsageError: a folder or file that does not exist.
        DataError: no JSON file of a split in `root`; a broken label map.
    """

    name = "imaterialist"
    looked_for = "train.json, validation.json or test.json (iMaterialist's format)"
    specificity = 24

    def __init__(
        self,
        root: str | Path,
        images: str | Path | None = None,
        label_map: LabelMap | str | Path | None = None,
        train: str | Path | None = None,
        val: str | Path | None = None,
        test: str | Path | None = None,
        on_missing: str | None = None,
    ) -> None:
        super().__init__(root, images, on_missing)
        self._files = _split_files(self.root)
        for split, path in (("train", train), ("val", val), ("test", test)):
            if path is not None:
                if not Path(path).is_file():
                    raise UsageError(f"{path}: expected the JSON file of {split!r}, found {_what_is(Path(path))}.")
                self._files[split] = Path(path)
        if not self._files:
            raise DataError(f"{self.root}: expected {self.looked_for}, found none.")
        self.label_map_file: Path | None = None
        if isinstance(label_map, LabelMap):
            self.label_map = label_map
        else:
            self.label_map_file = Path(label_map) if label_map is not None else _label_map_file(self.root)
            self.label_map = LabelMap.read(self.label_map_file) if self.label_map_file else LabelMap.imaterialist()
        self._parsed: dict[str, SplitFile] = {}
        self._problems: dict[str, list[Problem]] = {}

    @classmethod
    def matches(cls, root: Path) -> bool:
        """Whether the folder has the JSON file of a split."""
        return bool(_split_files(Path(root)))

    def splits(self) -> list[str]:
        return split_order(self._files)

    def annotation_files(self, splits: str | Collection[str] | None = None) -> list[Path]:
        return sorted(self._files[split] for split in self._names_of(splits))

    def has_labels(self, split: str) -> bool:
        self._names_of(split)
        return self._parse(split).labelled

    def _parse(self, split: str) -> SplitFile:
        if split not in self._parsed:
            problems: list[Problem] = []
            self._parsed[split] = read_split(self._files[split], self.label_map, problems.append)
            self._problems[split] = problems
        return self._parsed[split]

    def _read(self, split: str, on_problem: OnProblem) -> list[AttributeRecord]:
        parsed = self._parse(split)
        for problem in self._problems[split]:
            on_problem(problem)
        prefix = self._prefix(split)
        if not prefix:
            return parsed.records
        return [AttributeRecord(prefix + record.image_id, record.label_ids, record.row) for record in parsed.records]

    def listed_images(self, split: str) -> list[ListedImage]:
        """The pictures of a split with their addresses, in the order of the file's list, whether or not they are there.

        Raises:
            UsageError: no such split.
            DataError: the file's list is broken; the annotations are not looked at.
        """
        self._names_of(split)
        return read_listed_images(self._files[split])

    # Pictures.

    def folder_of(self, split: str) -> str:
        """Name of the folder of a split's own pictures: that of its JSON file without the ending."""
        self._names_of(split)
        return self._files[split].stem

    def _prefix(self, split: str) -> str:
        return f"{self.folder_of(split)}__" if self._numbered_anew else ""

    @property
    def _numbered_anew(self) -> bool:
        """Whether the splits have their own folders of pictures and the same ids in them."""
        if not hasattr(self, "_anew"):
            own = [split for split in self._files if (self.images_root / self.folder_of(split)).is_dir()]
            heads = [_first_ids(path) for path in self._files.values()] if own else []
            self._anew = len(set().union(*heads)) < sum(map(len, heads))
        return self._anew

    def _places(self) -> dict[str, list[tuple[str, ListedImage]]]:
        """Image id of the dataset -> splits that list it, with the entry; of all splits that were read."""
        found: dict[str, list[tuple[str, ListedImage]]] = {}
        for split in self.splits():
            if split in self._parsed:
                prefix = self._prefix(split)
                for image in self._parsed[split].images:
                    found.setdefault(prefix + image.id, []).append((split, image))
        return found

    def _find(self, image_ids: Iterable[str]) -> dict[str, Path | None]:
        wanted = list(image_ids)
        places = self._places()
        if any(image_id not in places for image_id in wanted):
            for split in self.splits():
                self._parse(split)
            places = self._places()
        paths: dict[str, Path | None] = {}
        listed: dict[str, list[tuple[str, ListedImage]]] = {}
        for image_id in wanted:
            if image_id not in places:
                raise DataError(
                    f"{self.root}: no picture {image_id!r} is listed in {', '.join(p.name for p in self.annotation_files())}."
                )
            for split, image in places[image_id]:
                listed.setdefault(split, []).append((image_id, image))
        for split, entries in listed.items():
            found = _find_pictures(self.images_root, self.folder_of(split), [image for _, image in entries])
            for image_id, image in entries:
                path = found[image.id]
                if (paths.get(image_id) or path) != path and path is not None:
                    what = f"the id {image_id!r} names two pictures, {paths[image_id]} and {path}"
                    raise DataError(f"{self.images_root}: {what}. Give them different ids.")
                paths[image_id] = path or paths.get(image_id)
        return {image_id: paths[image_id] for image_id in wanted}

    @classmethod
    def inspect(cls, root: Path, images: Path | None, on_problem: OnProblem) -> Inspection:
        """Reads everything under `root`, reports each problem to `on_problem`, and never raises for bad data."""
        root = existing_folder(root, "the folder of a dataset")
        map_file = _label_map_file(root)
        label_map: LabelMap | None
        try:
            label_map = LabelMap.read(map_file, on_problem) if map_file else LabelMap.imaterialist()
        except DataError as error:
            on_problem(Problem("error", str(map_file), str(error).removeprefix(f"{map_file}: "), "", "bad label map"))
            label_map = None
        # The map is read already; a broken one must not hide what is wrong elsewhere.
        dataset = cls(root, images, label_map=label_map or LabelMap.imaterialist())
        summaries: list[SplitSummary] = []
        paths: dict[str, Path | None] = {}
        labels: dict[str, Counter[int]] = {}
        for split in dataset.splits():
            parsed = dataset._parsed[split] = read_split(dataset._files[split], label_map, on_problem)
            if parsed.labelled:
                labels[split] = Counter(number for record in parsed.records for number in record.label_ids)
            prefix, folder = dataset._prefix(split), dataset.folder_of(split)
            annotated = {record.image_id for record in parsed.records}
            listed = [image for image in parsed.images if image.id in annotated]
            there = {prefix + id: path for id, path in _find_pictures(dataset.images_root, folder, listed).items()}
            pairs = sum(len(record.label_ids) for record in parsed.records)
            summaries.append(SplitSummary("all", split, pairs, len(there), 0, set(there)))
            _report_missing(dataset, split, there, on_problem)
            for image_id, path in there.items():
                if path is not None and (paths.get(image_id) or path) != path:
                    what = f"the id {image_id!r} names two pictures: {paths[image_id]} and {path}."
                    on_problem(Problem("error", str(dataset._files[split]), what, "Ids must be unique.", "duplicate id"))
                paths[image_id] = paths.get(image_id) or path
        if label_map is not None:
            _report_unused_labels(dataset, labels, on_problem)
        found_some = any(path is not None for path in paths.values())
        return Inspection(cls.name, summaries, paths, dataset.images_root if found_some else None)


def _report_missing(dataset: Imaterialist, split: str, paths: dict[str, Path | None], on_problem: OnProblem) -> None:
    missing = [image_id for image_id, path in paths.items() if path is None]
    root = dataset.images_root
    if len(missing) < len(paths):
        for image_id in missing:
            on_problem(Problem("error", str(root), f"missing picture {image_id!r} of {split!r}.", "", "missing image"))
    elif missing:
        folder = dataset.folder_of(split)
        what = f"none of the {len(missing)} pictures of {split!r} is there (looked into {folder}/, images/ and the folder itself)."
        images = dataset._parsed[split].images
        nearby = [place for place in (root.parent, root.parent / "images") if _some_there(place, folder, images[:20])]
        fix = "Say where they are with --images DIR."
        if nearby:
            fix += f" Some are in {nearby[0]}: is it that?"
        elif any(image.url and "://" in image.url for image in images):
            fix = "Download them with tf-fashion data fetch, or say where they are with --images DIR."
        on_problem(Problem("error", str(root), what, fix, "missing folder"))


def _report_unused_labels(dataset: Imaterialist, counts: dict[str, Counter[int]], on_problem: OnProblem) -> None:
    """Warnings about labels that "train" cannot teach."""
    train = counts.get("train")
    if not train:
        return
    unused = [label for label in dataset.label_map if label.id not in train]
    if unused:
        some = ", ".join(f"{label.id} {label.name}" for label in unused[:3]) + (", ..." if len(unused) > 3 else "")
        what = f"{len(unused)} of {len(dataset.label_map)} labels are on no picture ({some})."
        on_problem(Problem("warning", str(dataset._files["train"]), what, "Nothing can be learned about them.", "unused labels"))
    for split, found in counts.items():
        new = sorted(found.keys() - train.keys())
        if new:
            some = ", ".join(map(str, new[:5])) + (", ..." if len(new) > 5 else "")
            what = f"{_number(len(new), 'label occurs', 'labels occur')} here and not in 'train' ({some})."
            on_problem(Problem("warning", str(dataset._files[split]), what, "", "labels without examples"))


def _find_pictures(root: Path, split_folder: str, images: Iterable[ListedImage]) -> dict[str, Path | None]:
    """Id -> path below `root`, or None; every folder is listed once."""
    paths: dict[str, Path | None] = {}
    for image in images:
        paths[image.id] = None
        if image.url and "://" not in image.url:
            path = root / image.url.replace("\\", "/")
            if path.suffix.lower() in IMAGE_EXTENSIONS and path.is_file():
                paths[image.id] = path
    for folder in (root / split_folder, root / "images", root):
        rest = [image_id for image_id, path in paths.items() if path is None]
        if rest and folder.is_dir():
            paths.update(ImageFolder(folder).find_all(rest))
    return paths


def _some_there(root: Path, split_folder: str, images: Sequence[ListedImage]) -> bool:
    return root.is_dir() and any(_find_pictures(root, split_folder, images).values())


def _number(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"


def _what_is(path: Path) -> str:
    return "a folder" if path.is_dir() else "no such file"


def _split_files(root: Path) -> dict[str, Path]:
    found = {}
    for split, names in FILES.items():
        path = next((root / name for name in names if (root / name).is_file()), None)
        if path is not None:
            found[split] = path
    return found


def _label_map_file(root: Path) -> Path | None:
    return next((root / name for name in LABEL_MAPS if (root / name).is_file()), None)


def _first_ids(path: Path) -> set[str]:
    """The ids at the beginning of a file, without reading the rest."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return set(_FIRST_IDS.findall(file.read(_HEAD)))
    except OSError:
        return set()
