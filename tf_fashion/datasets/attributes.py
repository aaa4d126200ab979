"""Pictures with labels: what a dataset for attribute prediction gives, and a shop's own catalogue as one.

dataset = open_attributes("data/imaterialist", images="photos")
ids, targets = dataset.targets("train")          # targets float32 (len(ids), len(dataset.label_map))
paths = dataset.image_paths(ids)
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tf_fashion.core import files
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.catalogue import ID_COLUMNS, IMAGE_COLUMNS, TEXT_COLUMNS, Item, find_csv, read_items, read_table
from tf_fashion.datasets.labels import LabelMap, raise_all
from tf_fashion.datasets.records import (
    DATASETS,
    ImageFolder,
    Inspection,
    OnProblem,
    Problem,
    SplitSummary,
    existing_folder,
    split_order,
)

ON_MISSING = ("error", "skip")
SPLIT_NAMES = {"validation": "val", "valid": "val", "dev": "val", "training": "train", "testing": "test"}
"""Other names of splits, as they stand in files."""
NO_VALUE = ("", "NA", "N/A", "NaN", "nan")
"""Cells that say nothing."""


@dataclass(frozen=True, slots=True)
class AttributeRecord:
    """One picture and its labels.

    Attributes:
        image_id: Id of the picture, unique in the dataset.
        label_ids: Numbers of its labels, in file order, each once; empty where the file has none.
        row: Its place in the split's file, from 0.
    """

    image_id: str
    label_ids: tuple[int, ...]
    row: int


class AttributeDataset:
    """Base class of the datasets for attribute prediction.

    A subclass sets `root` and `label_map`, and writes `splits`, `annotation_files`, `_read`, `_find`, and the class methods
    `matches` and `inspect`.

    Args:
        root: Folder of the annotations.
        images: Folder of the pictures, where they are not in the dataset's own place.
        on_missing: What to do about records whose picture does not exist, when a split is read: "skip" leaves them out and counts
            them (`report`), "error" raises a `DataError` that lists them. By default nobody looks; see `missing_images`.

    Raises:
        UsageError: a folder that does not exist; another value of `on_missing`.
    """

    name: ClassVar[str] = ""
    looked_for: ClassVar[str] = ""
    specificity: ClassVar[int] = 0

    root: Path
    label_map: LabelMap
    _dropped: frozenset[str] = frozenset()

    def __init__(self, root: str | Path, images: str | Path | None = None, on_missing: str | None = None) -> None:
        self.root = existing_folder(root, "the folder of a dataset")
        self._images = None if images is None else existing_folder(images, "the folder of the pictures")
        if on_missing is not None and on_missing not in ON_MISSING:
            raise UsageError(f"on_missing: expected one of {', '.join(ON_MISSING)}, or None; found {on_missing!r}.")
        self.on_missing = on_missing
        self._records: dict[str, list[AttributeRecord]] = {}
        self._notes: dict[str, list[str]] = {}

    # What a subclass writes.

    @classmethod
    def matches(cls, root: Path) -> bool:
        """Whether the tree at `root` looks like this dataset."""
        raise NotImplementedError

    @classmethod
    def inspect(cls, root: Path, images: Path | None, on_problem: OnProblem) -> Inspection:
        """Reads everything under `root`, reports each problem to `on_problem`, and never raises for bad data."""
        raise NotImplementedError

    def splits(self) -> list[str]:
        """Names of the splits: train, val, test, then others."""
        raise NotImplementedError

    def annotation_files(self, splits: str | Collection[str] | None = None) -> list[Path]:
        """The files that define the given splits (default: all), sorted."""
        raise NotImplementedError

    def has_labels(self, split: str) -> bool:
        """Whether the labels of a split are known; the pictures of a competition's test have none."""
        return True

    def _read(self, split: str, on_problem: OnProblem) -> list[AttributeRecord]:
        """All records of a split; problems go to `on_problem`."""
        raise NotImplementedError

    def _find(self, image_ids: Iterable[str]) -> dict[str, Path | None]:
        """Where the pictures of known ids are, after a fresh look; None for those that are missing."""
        raise NotImplementedError

    @property
    def images_root(self) -> Path:
        """The folder of the pictures, to name in messages."""
        return self._images or self.root

    # What every dataset has.

    def _names_of(self, splits: str | Collection[str] | None) -> list[str]:
        known = self.splits()
        if splits is None:
            return known
        wanted = [splits] if isinstance(splits, str) else list(splits)
        for split in wanted:
            if split not in known:
                raise UsageError(f"{self.root}: no split {split!r}. Found: {', '.join(known) or 'none'}.")
        return [split for split in known if split in wanted]

    @property
    def default_split(self) -> str | None:
        """The split that is evaluated if nobody says which: the first of val and test whose labels are known, else none."""
        return next((split for split in ("val", "test") if split in self.splits() and self.has_labels(split)), None)

    def records(self, split: str) -> list[AttributeRecord]:
        """The pictures of a split with their labels, in file order, validated; read once.

        Raises:
            UsageError: no such split.
            DataError: the file does not hold what it promises; the message lists what is wrong. No record is left.
        """
        self._names_of(split)
        if split not in self._records:
            problems: list[Problem] = []
            records = self._read(split, problems.append)
            raise_all(problems, str(self.annotation_files(split)[0]))
            notes = [f"{count} {kind}" for kind, count in Counter(problem.kind for problem in problems).items()]
            self._records[split] = self._kept(split, records, notes)
            self._notes[split] = notes
        return self._records[split]

    def _kept(self, split: str, records: list[AttributeRecord], notes: list[str]) -> list[AttributeRecord]:
        kept = [record for record in records if record.image_id not in self._dropped] if self._dropped else records
        if len(kept) < len(records):
            notes.append(f"left out {len(records) - len(kept)} of {len(records)} pictures that cannot be used")
        if self.on_missing is not None:
            paths = self._find(record.image_id for record in kept)
            missing = [image_id for image_id, path in paths.items() if path is None]
            if missing and self.on_missing == "error":
                raise DataError(
                    f"{self.images_root}: {len(missing)} of {len(kept)} pictures of {split!r} are missing "
                    f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}). Put them there, or leave them out with "
                    f"on_missing=skip. List all with: tf-fashion data check {self.root}"
                )
            if missing:
                notes.append(f"left out {len(missing)} of {len(kept)} pictures that are missing")
                kept = [record for record in kept if paths[record.image_id] is not None]
        if records and not kept:
            raise DataError(
                f"{self.root}: {split!r} is empty: each of its {len(records)} pictures is missing or cannot be read. Check --images "
                f"({self.images_root})."
            )
        return kept

    def image_ids(self, splits: str | Collection[str] | None = None) -> list[str]:
        """The pictures of the given splits (default: all), each once, in the order of the records. Raises as `records`."""
        return list(dict.fromkeys(record.image_id for split in self._names_of(splits) for record in self.records(split)))

    def targets(self, split: str, unknown: bool = False) -> tuple[list[str], np.ndarray]:
        """The labels of a split as vectors.

        Args:
            split: Name of the split.
            unknown: Whether a picture without any label of a task is unknown there (-1) instead of having none of them (0).

        Returns:
            Image ids, and float32 (number of ids, number of labels) of 0, 1, and perhaps -1.

        Raises:
            DataError: the labels of the split are not known; or as `records`.
        """
        if split in self.splits() and not self.has_labels(split):
            raise DataError(f"{self.annotation_files(split)[0]}: the pictures of {split!r} have no labels. Take another split.")
        records = self.records(split)
        rows, places = self._entries(records)
        targets = np.zeros((len(records), len(self.label_map)), np.float32)
        targets[rows, places] = 1
        if unknown:
            for positions in self.label_map.groups.values():
                without = ~targets[:, positions].any(axis=1)
                targets[np.ix_(without, positions)] = -1
        return [record.image_id for record in records], targets

    def _entries(self, records: Sequence[AttributeRecord]) -> tuple[np.ndarray, np.ndarray]:
        """Row and position of every label of some records, int64."""
        counts = np.fromiter((len(record.label_ids) for record in records), np.int64, len(records))
        place = {id: position for position, id in enumerate(self.label_map.ids)}
        places = np.fromiter((place[id] for record in records for id in record.label_ids), np.int64, int(counts.sum()))
        return np.repeat(np.arange(len(records)), counts), places

    def exclusive_groups(self, split: str = "train") -> tuple[str, ...]:
        """The tasks of at least two labels of which no picture of a split has more than one, in the order of the tasks.

        Raises:
            UsageError, DataError: as `records`.
        """
        rows, places = self._entries(self.records(split))
        tasks = self.label_map.task_numbers
        _, repeats = np.unique(np.stack([rows, tasks[places]], axis=1), axis=0, return_index=True)
        twice = np.ones(len(rows), bool)
        twice[repeats] = False
        several = set(tasks[places][twice].tolist())
        sizes = np.bincount(tasks)
        return tuple(task for number, task in enumerate(self.label_map.tasks) if number not in several and sizes[number] > 1)

    def label_counts(self, split: str = "train") -> np.ndarray:
        """How many pictures of a split have each label, int64 (number of labels). Raises as `records`."""
        return np.bincount(self._entries(self.records(split))[1], minlength=len(self.label_map))

    # Pictures.

    def image_path(self, image_id: str) -> Path:
        """Path of a picture that exists.

        Raises:
            DataError: an unknown or unsafe id, or there is no such picture.
        """
        return self.image_paths([image_id])[image_id]

    def image_paths(self, image_ids: Iterable[str]) -> dict[str, Path]:
        """Paths of pictures that exist.

        Raises:
            DataError: an unknown or unsafe id, or a picture that is missing; the message counts them.
        """
        wanted = [files.check_id(image_id, str(self.root)) for image_id in image_ids]
        found = self._find(wanted)
        missing = [image_id for image_id, path in found.items() if path is None]
        if missing:
            some = ", ".join(map(repr, missing[:3])) + (", ..." if len(missing) > 3 else "")
            what = f"no picture for the id {some}" if len(missing) == 1 else f"no pictures for {len(missing)} ids ({some})"
            raise DataError(f"{self.images_root}: {what}. List all missing pictures with: tf-fashion data check {self.root}")
        return {image_id: path for image_id, path in found.items() if path is not None}

    def missing_images(self, splits: str | Collection[str] | None = None) -> list[str]:
        """Ids (see `image_ids`) without a picture."""
        return [image_id for image_id, path in self._find(self.image_ids(splits)).items() if path is None]

    def without_images(self, bad_ids: Iterable[str]) -> AttributeDataset:
        """A view that leaves out the pictures `bad_ids`; the label map stays."""
        view = copy.copy(self)
        view._records, view._notes = {}, {}
        view._dropped = self._dropped | frozenset(bad_ids)
        return view

    def report(self) -> list[str]:
        """A line for each split that was read and is not whole or not as it should be (see the `check` command)."""
        return [f"{split}: {', '.join(self._notes[split])}" for split in self.splits() if self._notes.get(split)]

    def data_hash(self, splits: str | Collection[str] | None = None) -> str:
        """SHA-256 over the annotation files of the given splits, the label map, and the pictures left out."""
        entries = sorted([path.name, files.hash_file(path)] for path in self.annotation_files(splits))
        value: dict[str, Any] = {"dataset": self.name, "files": entries, "labels": self.label_map.fingerprint, **self._options()}
        left_out = set(self._dropped)
        if self.on_missing == "skip":
            left_out.update(id for id, path in self._find(self._all_ids(splits)).items() if path is None)
        if left_out:
            value["without"] = sorted(left_out)
        return files.hash_json(value)

    def _all_ids(self, splits: str | Collection[str] | None) -> list[str]:
        return [record.image_id for split in self._names_of(splits) for record in self._read(split, lambda problem: None)]

    def _options(self) -> dict[str, Any]:
        """Arguments on which the content of the splits depends."""
        return {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.root)!r}, {len(self.label_map)} labels)"


def first_entries(entries: Sequence[tuple[str, str, Collection[Any]]], on_problem: OnProblem) -> list[int]:
    """Places of the first entry of each picture. Repeats that say the same are one warning, others an error each.

    Args:
        entries: For each entry its place in the file (for messages), the picture's id, and what is said about the picture.
        on_problem: What to do about each problem.
    """
    first: dict[str, int] = {}
    repeats: list[int] = []
    for number, (where, image_id, said) in enumerate(entries):
        before_where, _, before = entries[first.setdefault(image_id, number)]
        if first[image_id] == number:
            continue
        if set(said) == set(before):
            repeats.append(number)
            continue
        here, there = sorted(set(said) - set(before)), sorted(set(before) - set(said))
        what = f"the picture {image_id!r} is listed a second time with other labels: {_listed(here)} only here, {_listed(there)} only "
        on_problem(Problem("error", where, f"{what}in {before_where}.", "Keep one of the two.", "picture listed twice"))
    if repeats:
        where, image_id, _ = entries[repeats[0]]
        count = f"{len(repeats)} pictures are" if len(repeats) > 1 else "a picture is"
        example = f"for instance {image_id!r} (first in {entries[first[image_id]][0]})."
        what = f"{count} listed more than once with the same labels, {example}"
        on_problem(Problem("warning", where, what, "Each counts once.", "pictures listed twice"))
    return list(first.values())


def _listed(values: Sequence[object], shown: int = 5) -> str:
    """Some values for a message."""
    if not values:
        return "nothing"
    return ", ".join(map(str, values[:shown])) + (", ..." if len(values) > shown else "")


@dataclass(frozen=True)
class _CatalogueOptions:
    """See `AttributeCatalogue`."""

    csv: Path
    images: Path | None = None
    columns: Sequence[str] | None = None
    separator: str = "|"
    image_column: str | None = None
    id_column: str | None = None
    split_column: str = "split"
    val_share: float = 0.1
    min_count: int = 1
    label_map: LabelMap | None = None


@dataclass
class _CatalogueContent:
    """What a catalogue's CSV file says: label columns, items of each split, and labels (None where there are none)."""

    columns: tuple[str, ...]
    parts: dict[str, list[Item]]
    label_map: LabelMap | None = None


class AttributeCatalogue(AttributeDataset):
    """A shop's folder with a CSV file (see `Catalogue`) whose columns hold labels.

    Each column is a task; a cell holds one value or several (`red|blue`); an empty one (or NA) none. The labels are the values that
    occur in "train", numbered column by column, or those of a given map; other values are no labels. The column `split` says what is
    trained on; without one, a share of the pictures is set apart by a hash of their ids.

    Args:
        root: Folder of the catalogue.
        images: Folder of the pictures; default as in `Catalogue`.
        csv: The CSV file; default: the only one in `root`.
        columns: The columns with labels, as a list or joined by commas; default: all whose values repeat often enough to be labels,
            texts, ids and the split apart.
        separator: What stands between the values of a cell.
        image_column, id_column: As in `Catalogue`.
        split_column: The column of the split.
        val_share: Share of the pictures that become "val" where there is no such column.
        min_count: Values on fewer pictures of "train" are no labels.
        label_map: Labels to use instead of those that occur, as a map or the path of one: for pictures that a trained model shall
            be measured on. Columns and tasks are matched by name.
        on_missing: As in `AttributeDataset`.

    Raises:
        UsageError: a folder, file, or column that does not exist; an option out of range.
        DataError: a broken CSV file; no label column, or one without a value in "train"; a picture listed twice with different labels.
    """

    name = "attribute_catalogue"
    looked_for = "a CSV file with pictures and columns of labels"
    # Below `catalogue`, which opens the same folders where nobody asks for labels.
    specificity = 9

    def __init__(
        self,
        root: str | Path,
        images: str | Path | None = None,
        csv: str | Path | None = None,
        columns: str | Sequence[str] | None = None,
        separator: str = "|",
        image_column: str | None = None,
        id_column: str | None = None,
        split_column: str = "split",
        val_share: float = 0.1,
        min_count: int = 1,
        label_map: LabelMap | str | Path | None = None,
        on_missing: str | None = None,
    ) -> None:
        super().__init__(root, images, on_missing)
        if not isinstance(separator, str) or not separator:
            raise UsageError(f"separator: expected the characters between the values of a cell, found {separator!r}.")
        if not 0 <= val_share < 1:
            raise UsageError(f"val_share: expected a share of the pictures from 0 to below 1, found {val_share}.")
        if isinstance(min_count, bool) or not isinstance(min_count, int) or min_count < 1:
            raise UsageError(f"min_count: expected a whole number of at least 1, found {min_count!r}.")
        if csv is not None and not Path(csv).is_file():
            raise UsageError(f"{csv}: expected the CSV file of a catalogue, found no such file.")
        path = Path(csv) if csv is not None else find_csv(self.root)
        if path is None:
            raise DataError(f"{self.root}: expected {self.looked_for}, found no CSV file.")
        if isinstance(columns, str):
            columns = [name.strip() for name in columns.split(",") if name.strip()]
        labels = label_map if label_map is None or isinstance(label_map, LabelMap) else LabelMap.read(label_map)
        self.options = _CatalogueOptions(
            path, self._images, columns, separator, image_column, id_column, split_column, val_share, min_count, labels
        )
        problems: list[Problem] = []
        content = _read_catalogue(self.root, self.options, problems.append)
        raise_all(problems, str(path))
        if content.label_map is None:
            raise DataError(f"{path}: no labels found.")
        self.columns, self._parts, self.label_map = content.columns, content.parts, content.label_map
        self._items = {item.id: item for items in self._parts.values() for item in items}
        self._warnings = [str(problem) for problem in problems]

    @classmethod
    def matches(cls, root: Path) -> bool:
        """Whether the folder has a CSV file of pictures with at least one column that can be labels."""
        for path in sorted(Path(root).iterdir()):
            if path.suffix.lower() not in (".csv", ".tsv"):
                continue
            table = read_table(path, lambda problem: None)
            cells = {name: [values[place] for _, values in table.rows] for place, name in enumerate(table.columns)}
            if {name.lower() for name in cells} & {*ID_COLUMNS, *IMAGE_COLUMNS} and label_columns(cells):
                return True
        return False

    def splits(self) -> list[str]:
        return split_order(self._parts)

    def annotation_files(self, splits: str | Collection[str] | None = None) -> list[Path]:
        self._names_of(splits)
        return [self.options.csv]

    def _read(self, split: str, on_problem: OnProblem) -> list[AttributeRecord]:
        ids = {(label.task, label.name): label.id for label in self.label_map}
        values = (_item_values(item, self.columns, self.options.separator) for item in self._parts[split])
        return [
            AttributeRecord(item.id, tuple(ids[value] for value in found if value in ids), row)
            for row, (item, found) in enumerate(zip(self._parts[split], values, strict=True))
        ]

    def _find(self, image_ids: Iterable[str]) -> dict[str, Path | None]:
        paths: dict[str, Path | None] = {}
        for image_id in image_ids:
            if image_id not in self._items:
                raise DataError(f"{self.options.csv}: no picture {image_id!r} is listed.")
            paths[image_id] = self._items[image_id].path
        unknown = [image_id for image_id, path in paths.items() if path is None]
        there = {image_id: path if path is not None and path.is_file() else None for image_id, path in paths.items()}
        return {**there, **(ImageFolder(self.images_root).find_all(unknown) if unknown else {})}

    @property
    def images_root(self) -> Path:
        return self._images or (self.root / "images" if (self.root / "images").is_dir() else self.root)

    def report(self) -> list[str]:
        return [*self._warnings, *super().report()]

    def _options(self) -> dict[str, Any]:
        options = self.options
        return {"columns": list(self.columns), "separator": options.separator, "split": [options.split_column, options.val_share]}

    @classmethod
    def inspect(cls, root: Path, images: Path | None, on_problem: OnProblem) -> Inspection:
        """Reads the CSV file, reports each problem to `on_problem`, and never raises for bad data."""
        root = existing_folder(root, "the folder of a catalogue")
        try:
            csv = find_csv(root)
            if csv is None:
                raise UsageError(f"{root}: expected {cls.looked_for}, found no CSV file.")
            content = _read_catalogue(root, _CatalogueOptions(csv, images), on_problem)
        except UsageError as error:
            where, _, what = str(error).partition(": ")
            on_problem(Problem("error", where, what, "", "missing file"))
            return Inspection(cls.name, [], {}, None)
        paths: dict[str, Path | None] = {}
        summaries = []
        for split in split_order(content.parts):
            items = content.parts[split]
            labels = sum(len(_item_values(item, content.columns, "|")) for item in items)
            summaries.append(SplitSummary("all", split, labels, len(items), 0, {item.id for item in items}))
            for item in items:
                paths[item.id] = item.path if item.path is not None and item.path.is_file() else None
                if paths[item.id] is None:
                    what = f"missing picture of the item {item.id!r}" + (f": {item.path}." if item.path else ".")
                    on_problem(Problem("error", f"{csv}, line {item.row}", what, "", "missing image"))
        return Inspection(cls.name, summaries, paths, images or root)


def label_columns(cells: Mapping[str, Sequence[str]], separator: str = "|", split_column: str = "split") -> list[str]:
    """The columns whose values repeat often enough to be labels: at most 500 values, each on two rows in the mean (where they are
    at most 20, on 1.25), none long; and not the same one everywhere, nor a scale of more than 20 numbers.

    Args:
        cells: Name of each column -> its cells.
        separator: What stands between the values of a cell.
        split_column: A column to leave out, as those of texts, ids and paths.
    """
    found = []
    for name, column in cells.items():
        if (
            name == split_column
            or name.lower().endswith("split")
            or name.lower() in (*TEXT_COLUMNS, *ID_COLUMNS, *IMAGE_COLUMNS, "unnamed", "url")
        ):
            continue
        values = Counter(value for cell in column for value in _values(cell, separator))
        repeats = 2 if len(values) > 20 else 1.25
        if not values or len(values) > 500 or values.total() < repeats * len(values) or max(map(len, values)) > 60:
            continue
        constant = len(values) == 1 and values.total() == len(column)
        scale = len(values) > 20 and all(re.fullmatch(r"[-+]?\d+([.,]\d+)?%?", value) for value in values)
        if not constant and not scale:
            found.append(name)
    return found


def _values(cell: str, separator: str) -> list[str]:
    return list(dict.fromkeys(value for part in cell.split(separator) if (value := part.strip()) not in NO_VALUE))


def _item_values(item: Item, columns: Iterable[str], separator: str) -> list[tuple[str, str]]:
    """Task and value of every label of an item."""
    return [(name, value) for name in columns for value in _values(item.attributes[name], separator)]


def _read_catalogue(root: Path, options: _CatalogueOptions, on_problem: OnProblem) -> _CatalogueContent:
    csv = options.csv
    repeated: list[Item] = []
    names, items = read_items(root, csv, options.images, options.image_column, options.id_column, on_problem, repeated)
    if not items:
        on_problem(Problem("error", str(csv), "the catalogue is empty: no usable row.", "", "empty category"))
        return _CatalogueContent((), {})
    unknown = [name for name in options.columns or () if name not in names]
    if unknown:
        raise UsageError(f"{csv}: no column {unknown[0]!r}. Found: {', '.join(names)}.")
    if options.split_column not in names and options.split_column != "split":
        raise UsageError(f"{csv}: no column {options.split_column!r}. Found: {', '.join(names)}.")
    if not any(item.attributes.get(options.split_column) for item in items):
        options = replace(options, split_column="")
    columns = _chosen_columns(names, items, options, on_problem)
    items = sorted([*items, *repeated], key=lambda item: item.row)
    splits = [_split_of(item, options, on_problem) for item in items]
    entries = []
    for item, split in zip(items, splits, strict=True):
        said = [("split", split), ("image", str(item.path)), *_item_values(item, columns, options.separator)]
        entries.append((f"{csv}, line {item.row}", item.id, [f"{name} {value}" for name, value in said]))
    parts: dict[str, list[Item]] = {}
    for number in first_entries(entries, on_problem):
        parts.setdefault(splits[number], []).append(items[number])
    content = _CatalogueContent(columns, parts, options.label_map)
    if columns and content.label_map is None:
        content.label_map = _labels_of_train(content, options, on_problem)
    if content.label_map is not None:
        _report_unknown_values(content, options, on_problem)
    return content


def _chosen_columns(names: Sequence[str], items: Sequence[Item], options: _CatalogueOptions, on_problem: OnProblem) -> tuple[str, ...]:
    where = f"{options.csv}, line 1"
    if options.columns is not None:
        return tuple(dict.fromkeys(options.columns))
    if options.label_map is not None:
        found = [name for name in names if name in options.label_map.tasks]
        what = f"expected columns called as the tasks of the label map ({', '.join(options.label_map.tasks)})"
        fix = "Rename the columns."
    else:
        cells = {name: [item.attributes[name] for item in items] for name in names}
        found = label_columns(cells, options.separator, options.split_column)
        empty = [name for name in names if name != "split" and not any(_values(cell, options.separator) for cell in cells[name])]
        if empty:
            text = f"the column {empty[0]!r} is empty." if len(empty) == 1 else f"the columns {', '.join(empty)} are empty."
            on_problem(Problem("warning", where, text, "No labels are taken from there.", "empty label column"))
        what, fix = "expected columns of labels", "Name them with columns=COLUMN,COLUMN."
    if not found:
        on_problem(Problem("error", where, f"{what}, found {', '.join(names) or 'none'}.", fix, "no label column"))
    return tuple(found)


def _split_of(item: Item, options: _CatalogueOptions, on_problem: OnProblem) -> str:
    """The split that a row names, or that the hash of its id gives."""
    name = item.attributes.get(options.split_column)
    if name is None:
        digest = hashlib.sha256(item.id.encode("utf-8")).digest()
        return "val" if int.from_bytes(digest[:6], "big") / 2**48 < options.val_share else "train"
    if not name:
        what = f"the column {options.split_column!r} is empty."
        on_problem(Problem("error", f"{options.csv}, line {item.row}", what, "Write train, val or test.", "empty split"))
    return SPLIT_NAMES.get(name.lower(), name)


def _labels_of_train(content: _CatalogueContent, options: _CatalogueOptions, on_problem: OnProblem) -> LabelMap | None:
    csv, train = options.csv, content.parts.get("train")
    if not train:
        what = f"no row belongs to 'train', whose values would be the labels (found {', '.join(split_order(content.parts))})."
        on_problem(Problem("error", str(csv), what, "Fill the column of the split, or give a label_map.", "no labels"))
        return None
    counts = Counter(value for item in train for value in _item_values(item, content.columns, options.separator))
    tasks: dict[str, list[str]] = {name: [] for name in content.columns}
    for (name, value), count in counts.items():
        if count >= options.min_count:
            tasks[name].append(value)
    empty = [name for name, values in tasks.items() if not values]
    for name in empty:
        what = f"the label column {name!r} is empty: no value in 'train'"
        what += f" on {options.min_count} pictures." if options.min_count > 1 else "."
        fix = "Fill it in, or leave it out of the columns."
        on_problem(Problem("error", f"{csv}, line 1", what, fix, "empty label column"))
    rare = sum(count < options.min_count for count in counts.values())
    if rare:
        what = f"{rare} values are on fewer than {options.min_count} pictures of 'train'."
        on_problem(Problem("warning", str(csv), what, "They are no labels.", "rare values"))
    return None if empty or not tasks else LabelMap.of_tasks(tasks)


def _report_unknown_values(content: _CatalogueContent, options: _CatalogueOptions, on_problem: OnProblem) -> None:
    """One warning for each split with values that are no labels."""
    known = {(label.task, label.name) for label in content.label_map or ()}
    for split in split_order(content.parts):
        if split == "train" and options.label_map is None:
            continue
        values = Counter(value for item in content.parts[split] for value in _item_values(item, content.columns, options.separator))
        unknown = sorted(f"{name} {value!r}" for name, value in values if (name, value) not in known)
        if unknown:
            source = "'train' does not have" if options.label_map is None else "the label map does not have"
            count = "a value" if len(unknown) == 1 else f"{len(unknown)} values"
            what = f"{split!r} has {count} that {source}: {_listed(unknown)}."
            on_problem(Problem("warning", str(options.csv), what, "What is no label is left out.", "unknown values"))


DATASETS.register(AttributeCatalogue.name)(AttributeCatalogue)


def open_attributes(root: str | Path, images: str | Path | None = None, name: str = "auto", **options: Any) -> AttributeDataset:
    """Opens a dataset for attribute prediction.

    Args:
        root: Folder of the dataset: iMaterialist's layout, or a catalogue whose CSV file has columns of labels.
        images: Folder of the pictures, where they are not in the dataset's own place.
        name: "imaterialist", "attribute_catalogue", or "auto" to recognise the folder.
        **options: Passed on to the class.

    Raises:
        UsageError: no such folder or name; an option that the dataset does not have.
        DataError: nothing is recognised; the message says what was looked for. Broken files.
    """
    root = existing_folder(root, "the folder of a dataset")
    kinds: dict[str, Any] = {kind: DATASETS.get(kind) for kind in DATASETS if issubclass(DATASETS.get(kind), AttributeDataset)}
    if name != "auto":
        if name not in kinds:
            raise UsageError(f"Unknown dataset of pictures with labels {name!r}. Known: {', '.join(kinds)}.")
        cls = kinds[name]
    else:
        matching = [kind for kind in kinds.values() if kind.matches(root)]
        if not matching and options.get("csv") is not None:
            matching = [AttributeCatalogue]
        if not matching:
            below = [str(p) for p in sorted(root.iterdir()) if p.is_dir() and any(kind.matches(p) for kind in kinds.values())]
            hint = f" Did you mean {' or '.join(below[:3])}?" if below else ""
            looked_for = "; ".join(kind.looked_for for kind in kinds.values())
            raise DataError(f"{root}: no dataset of pictures with labels recognised. Looked for: {looked_for}.{hint}")
        cls = max(matching, key=lambda kind: kind.specificity)
    known = inspect.signature(cls).parameters
    unknown = [option for option in options if option not in known]
    if unknown:
        free = ", ".join(option for option in known if option not in ("root", "images"))
        raise UsageError(f"The dataset {cls.name!r} has no option {unknown[0]!r}. It has: {free}.")
    dataset: AttributeDataset = cls(root, images=images, **options)
    return dataset
