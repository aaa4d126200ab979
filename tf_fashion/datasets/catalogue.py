"""A shop's own pictures: a folder, with or without a CSV file of free columns, and optionally a CSV file of triplets.

    ROOT/anything.csv          one row per item: `id` and/or `image`; every other column is an attribute
    ROOT/images/{id}.jpg       where the CSV has no image column
    ROOT/triplets.csv          `reference,target,caption` (more: caption_2, category, split): composed retrieval on the catalogue

Without a CSV file every picture under the folder is an item, and its id is made from its path.
"""

from __future__ import annotations

import csv as csv_module
import hashlib
import io
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tf_fashion.core import files
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.records import (
    DATASETS,
    IMAGE_EXTENSIONS,
    CategorySplit,
    ComposedDataset,
    ImageFolder,
    Inspection,
    OnProblem,
    Problem,
    SplitSummary,
    Triplet,
    existing_folder,
    id_problem,
    raise_errors,
    short_repr,
    split_order,
)

ID_COLUMNS = ("id", "image_id", "item_id", "product_id", "sku")
IMAGE_COLUMNS = ("image", "path", "image_path", "file", "filename", "file_name")
TEXT_COLUMNS = ("description", "text", "caption", "title", "name")
TRIPLETS_FILE = "triplets.csv"
ALL = "all"
"""Name of the split (category) of a catalogue without a `split` (`category`) column."""


@dataclass(frozen=True)
class Item:
    """One item of a catalogue.

    Attributes:
        id: Image id.
        path: Its picture; None where the file was not found by its id.
        attributes: The free columns, values stripped.
        row: Line of the CSV file (1 is the header), or 0.
    """

    id: str
    path: Path | None
    attributes: Mapping[str, str] = field(default_factory=dict)
    row: int = 0

    @property
    def text(self) -> str:
        """The first filled one of the columns description, text, caption, title, name; else ""."""
        return next((self.attributes[name] for name in TEXT_COLUMNS if self.attributes.get(name)), "")

    @property
    def split(self) -> str:
        """The `split` column, or "all"."""
        return self.attributes.get("split") or ALL


@dataclass(frozen=True)
class Table:
    """A CSV file that was read: column names, and per row its line number and values (as many as columns)."""

    path: Path
    columns: list[str]
    rows: list[tuple[int, list[str]]]


def read_table(path: Path, on_problem: OnProblem = raise_errors) -> Table:
    """Reads a CSV file with a header: UTF-8 (with or without a byte order mark); commas, semicolons, tabs or bars.

    Rows with another number of values than the header are reported and left out. The first unnamed column (a row number
    that some tools write) is called `unnamed`. Any problem goes to `on_problem`; an unreadable file gives an empty table.
    """
    path = Path(path)

    def fail(where: str, what: str, fix: str = "") -> Table:
        on_problem(Problem("error", where, what, fix, "unreadable file"))
        return Table(path, [], [])

    try:
        data = path.read_bytes()
    except OSError as error:
        return fail(str(path), f"cannot be read ({error.strerror}).")
    fix = 'Save it as UTF-8 (in Excel: "CSV UTF-8").'
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return fail(str(path), "expected UTF-8, found UTF-16.", fix)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        return fail(f"{path}, line {line}", f"expected UTF-8, found the byte 0x{data[error.start]:02x}.", fix)
    if "\0" in text:
        return fail(str(path), "expected a CSV file, found NUL characters: this is a binary file.")

    header_line = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",;\t|", key=header_line.count)
    reader = csv_module.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=delimiter != "\t")
    columns: list[str] = []
    rows: list[tuple[int, list[str]]] = []
    try:
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            values = [value.strip() for value in values]
            if not columns:
                columns = values
                continue
            if len(values) != len(columns):
                where = f"{path}, line {reader.line_num}"
                what = f"expected {len(columns)} values as in the header, found {len(values)}."
                fix = 'Put values that hold the separator in double quotes ("red, long").'
                on_problem(Problem("error", where, what, fix, "ragged row"))
                continue
            rows.append((reader.line_num, values))
    except csv_module.Error as error:
        return fail(f"{path}, line {reader.line_num}", f"not valid CSV ({error}).")
    if not columns:
        return fail(str(path), "expected a header line, found an empty file.")
    if "" in columns:
        columns[columns.index("")] = "unnamed"
    doubled = sorted({name for name in columns if columns.count(name) > 1})
    if doubled:
        names = ", ".join(repr(name) for name in doubled)
        return fail(f"{path}, line 1", f"the header names {names} more than once.", "Rename one.")
    return Table(path, columns, rows)


def _pick_column(table: Table, wanted: str | None, known: Sequence[str]) -> str | None:
    if wanted is not None:
        if wanted not in table.columns:
            raise UsageError(f"{table.path}: no column {wanted!r}. Found: {', '.join(table.columns)}.")
        return wanted
    lower = {name.lower(): name for name in reversed(table.columns)}
    return next((lower[name] for name in known if name in lower), None)


def relative_path_problem(relative: str, where: str) -> Problem | None:
    """The problem of a path that is absolute or climbs out of its root, or None. Links inside the root are the user's own."""
    pure = PurePosixPath(relative.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or re.match(r"^[A-Za-z]:", relative) or "\0" in relative:
        what = f"the path {short_repr(relative)} leads outside the catalogue's folder."
        return Problem("error", where, what, "Give paths relative to that folder.", "path outside")
    return None


def id_from_path(relative: str) -> str:
    """An image id made from a relative path: without its extension, folders joined by `__`.

    Paths with characters that ids may not have, and long ones, get 8 hexadecimal digits of their hash at the end, so that
    different paths keep different ids.
    """
    stem = os.path.splitext(relative)[0].replace("/", "__")
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", stem)
    if safe != stem or len(safe) > 120:
        safe = f"{safe[:110]}-{hashlib.sha256(relative.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"
    return safe


def walk_images(root: Path) -> Iterator[str]:
    """Relative paths (with `/`) of all pictures under `root`, sorted; hidden files and folders are left out."""
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        inside = Path(folder).relative_to(root)
        found += [
            (inside / name).as_posix()
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS
        ]
    return iter(sorted(found))


def read_items(
    root: Path,
    csv: Path | None,
    images: Path | None,
    image_column: str | None = None,
    id_column: str | None = None,
    on_problem: OnProblem = raise_errors,
    repeated: list[Item] | None = None,
) -> tuple[list[str], list[Item]]:
    """Reads the items of a catalogue; the names of its attribute columns come first. See `Catalogue`.

    Rows that repeat an id go to the list `repeated`; without one they are a problem.
    """
    if csv is None:
        folder = images or root
        items: dict[str, Item] = {}
        for relative in walk_images(folder):
            image_id = id_from_path(relative)
            if image_id in items:
                what = f"gives the same id {image_id!r} as {items[image_id].path}."
                on_problem(Problem("error", str(folder / relative), what, "Rename one of the two.", "duplicate id"))
            else:
                items[image_id] = Item(image_id, folder / relative)
        return [], list(items.values())

    table = read_table(csv, on_problem)
    if not table.columns:
        return [], []
    of_id = _pick_column(table, id_column, ID_COLUMNS)
    of_image = _pick_column(table, image_column, IMAGE_COLUMNS)
    if of_id is None and of_image is None:
        what = f"expected a column {ID_COLUMNS[0]!r} or {IMAGE_COLUMNS[0]!r}, found {', '.join(table.columns)}."
        on_problem(Problem("error", f"{csv}, line 1", what, "Rename one, or name the columns to use.", "missing column"))
        return [], []
    attribute_names = [name for name in table.columns if name not in (of_id, of_image)]
    folder = images or (root if of_image or not (root / "images").is_dir() else root / "images")
    by_id = ImageFolder(folder)
    found: dict[str, Item] = {}
    for line, values in table.rows:
        where = f"{csv}, line {line}"
        row = dict(zip(table.columns, values, strict=True))
        path = None
        if of_image:
            relative = row[of_image].replace("\\", "/")
            problem = relative_path_problem(row[of_image], where) if relative else None
            if problem is None and not relative:
                fix = "Fill it in, or remove the row."
                problem = Problem("error", where, f"the column {of_image!r} is empty.", fix, "missing image name")
            if problem:
                on_problem(problem)
                continue
            path = folder / relative
        image_id = row[of_id] if of_id else id_from_path(row[of_image or ""].replace("\\", "/"))
        if problem := id_problem(image_id, where):
            on_problem(problem)
            continue
        if image_id in found and repeated is None:
            what = f"the id {image_id!r} occurs a second time (first in line {found[image_id].row})."
            on_problem(Problem("error", where, what, "Ids must be unique.", "duplicate id"))
            continue
        if path is None:
            path = by_id.find(image_id)
        item = Item(image_id, path, {name: row[name] for name in attribute_names}, line)
        if image_id in found and repeated is not None:
            repeated.append(item)
        else:
            found[image_id] = item
    return attribute_names, list(found.values())


def find_csv(root: Path) -> Path | None:
    """The one CSV (or TSV) file of a catalogue directly in `root` (not triplets.csv), or None.

    Raises:
        UsageError: there are several.
    """
    found = sorted(path for path in root.iterdir() if path.suffix.lower() in (".csv", ".tsv") and path.name != TRIPLETS_FILE)
    if len(found) > 1:
        raise UsageError(f"{root}: several CSV files ({', '.join(path.name for path in found)}). Say which with --csv FILE.")
    return found[0] if found else None


@DATASETS.register("catalogue")
class Catalogue:
    """Items with pictures and free attributes.

    Args:
        root: Folder of the catalogue. Paths in the CSV file are relative to `images`, by default `root`.
        csv: The CSV file; default: the only one in `root`; without one, every picture under the folder is an item.
        images: Folder of the pictures. Default: `root`; for a CSV file without image column `root/images` if there is one.
        image_column, id_column: Names of columns. By default `image` or `path`, and `id`, are recognised. Without an id column
            ids are made from the paths; without an image column the picture is the one named by the id.

    Raises:
        UsageError: a folder, file or column that does not exist.
        DataError: broken CSV, ragged rows, missing columns, unsafe or duplicate ids, paths that leave the root, no items.
    """

    name = "catalogue"
    looked_for = "a CSV file with a column id or image, or pictures (a catalogue)"
    specificity = 10

    def __init__(
        self,
        root: str | Path,
        csv: str | Path | None = None,
        images: str | Path | None = None,
        image_column: str | None = None,
        id_column: str | None = None,
    ) -> None:
        self.root = existing_folder(root, "the folder of a catalogue")
        self.images = None if images is None else existing_folder(images, "the folder of the pictures")
        if csv is not None and not Path(csv).is_file():
            raise UsageError(f"{csv}: expected the CSV file of a catalogue, found no such file.")
        self.csv = find_csv(self.root) if csv is None else Path(csv)
        self.attribute_names, items = read_items(self.root, self.csv, self.images, image_column, id_column)
        if not items:
            what = "no rows" if self.csv else f"no pictures ({', '.join(IMAGE_EXTENSIONS)})"
            raise DataError(f"{self.csv or self.images or self.root}: the catalogue is empty: {what}.")
        self._items = {item.id: item for item in items}

    @classmethod
    def matches(cls, root: Path) -> bool:
        root = Path(root)
        return any(path.suffix.lower() in (".csv", ".tsv") for path in root.iterdir()) or next(walk_images(root), None) is not None

    @property
    def items(self) -> list[Item]:
        """All items in file order."""
        return list(self._items.values())

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, image_id: str) -> Item:
        try:
            return self._items[image_id]
        except KeyError:
            raise UsageError(f"{self.csv or self.root}: no item {image_id!r}.") from None

    def splits(self) -> list[str]:
        """Names in the `split` column, or ["all"]."""
        return split_order(item.split for item in self._items.values())

    def image_ids(self, splits: Collection[str] | None = None) -> list[str]:
        """Sorted ids of the items of the given splits (default: all)."""
        return sorted(item.id for item in self._items.values() if splits is None or item.split in splits)

    def image_path(self, image_id: str) -> Path:
        """Path of an item's picture.

        Raises:
            UsageError: no such item.
            DataError: its picture does not exist.
        """
        path = self[image_id].path
        if path is None or not path.is_file():
            looked = path or (self.images or self.root) / f"[images/]{image_id}.jpg"
            raise DataError(f"{looked}: missing picture of the item {image_id!r}. See: tf-fashion data check {self.root}")
        return path

    def missing_images(self, splits: Collection[str] | None = None) -> list[str]:
        """Sorted ids of items without a picture."""
        paths = {id: self._items[id].path for id in self.image_ids(splits)}
        return [id for id, path in paths.items() if path is None or not path.is_file()]

    def data_hash(self, splits: Collection[str] | None = None) -> str:
        """SHA-256 of the CSV file, or of the list of ids where there is none."""
        if self.csv is not None:
            return files.hash_json({"dataset": self.name, "csv": files.hash_file(self.csv)})
        return files.hash_json({"dataset": self.name, "ids": self.image_ids()})

    @classmethod
    def inspect(cls, root: Path, images: Path | None, on_problem: OnProblem) -> Inspection:
        root = existing_folder(root, "the folder of a catalogue")
        try:
            csv = find_csv(root)
            _, items = read_items(root, csv, None if images is None else Path(images), on_problem=on_problem)
        except UsageError as error:
            where, _, what = str(error).partition(": ")
            on_problem(Problem("error", where, what, "", "missing file"))
            return Inspection(cls.name, [], {}, None)
        paths = _checked_paths(items, csv, on_problem)
        if not items:
            on_problem(Problem("error", str(csv or root), "the catalogue is empty: no usable item.", "", "empty category"))
        summaries = []
        for split in split_order(item.split for item in items):
            ids = {item.id for item in items if item.split == split}
            summaries.append(SplitSummary("catalogue", split, 0, len(ids), 0, ids))
        return Inspection(cls.name, summaries, paths, images or root)


def _checked_paths(items: list[Item], csv: Path | None, on_problem: OnProblem) -> dict[str, Path | None]:
    """Paths of items whose picture exists, None for the others, which are reported."""
    paths: dict[str, Path | None] = {}
    for item in items:
        paths[item.id] = item.path if item.path is not None and item.path.is_file() else None
        if paths[item.id] is None:
            what = f"missing picture of the item {item.id!r}" + (f": {item.path}." if item.path else f" (no {item.id}.jpg or other).")
            on_problem(Problem("error", f"{csv}, line {item.row}", what, "", "missing image"))
    return paths


@dataclass(frozen=True)
class _TripletRow:
    triplet: Triplet
    split: str


def read_triplets(path: Path, known: Collection[str], on_problem: OnProblem = raise_errors) -> list[_TripletRow]:
    """Reads `reference,target,caption...` rows; `known` are the ids of the catalogue."""
    table = read_table(path, on_problem)
    if not table.columns:
        return []
    caption_columns = [name for name in table.columns if re.match(r"^(captions?|text|sentence)[ _]?\d*$", name.lower())]
    missing = [name for name in ("reference", "target") if name not in table.columns] + ([] if caption_columns else ["caption"])
    if missing:
        found = ", ".join(table.columns)
        what = f"expected the columns reference, target and caption; no {' and no '.join(missing)}; found {found}."
        on_problem(Problem("error", f"{path}, line 1", what, "", "missing column"))
        return []
    rows = []
    for row, (line, values) in enumerate(table.rows):
        where = f"{path}, line {line}"
        record = dict(zip(table.columns, values, strict=True))
        split, category = record.get("split") or "train", record.get("category") or ALL
        reference, target = record["reference"], record["target"] or None
        captions = tuple(record[name] for name in caption_columns if record[name])
        what, kind = "", "bad row"
        if target is None and split != "test":
            what = 'no target; only the split "test" may do without.'
        elif reference not in known:
            what, kind = f"the reference {short_repr(reference)} is no item of the catalogue.", "unknown id"
        elif target is not None and target not in known:
            what, kind = f"the target {short_repr(target)} is no item of the catalogue.", "unknown id"
        elif reference == target:
            what, kind = f"reference and target are the same picture {reference!r}.", "reference is target"
        elif not captions:
            what, kind = "the caption is empty.", "empty captions"
        if what:
            on_problem(Problem("error", where, what, "Correct or remove the row.", kind))
            continue
        rows.append(_TripletRow(Triplet(reference, target, captions, category, row), split))
    return rows


@DATASETS.register("composed_catalogue")
class ComposedCatalogue(ComposedDataset):
    """Composed retrieval on a catalogue of one's own: its items, and a CSV file of triplets.

    The columns of the triplets are `reference`, `target` (ids of items), `caption` (further ones: `caption_2`, ...), and
    optionally `category` and `split` (default "all" and "train"). The gallery of a category and split are the catalogue's items
    with the same `category` and `split`, where the catalogue has these columns.

    Args:
        root: Folder of the catalogue.
        images: Folder of the pictures; see `Catalogue`.
        categories: Which categories; default all that occur in the triplets.
        csv: The catalogue's CSV file; see `Catalogue`.
        triplets_csv: The file of triplets; default `root/triplets.csv`.

    Raises:
        UsageError: a file or category that does not exist.
        DataError: see `Catalogue`; and triplets with unknown ids, without caption, without target (except in "test"), with
            a target outside their gallery.
    """

    name = "composed_catalogue"
    looked_for = f"{TRIPLETS_FILE} beside a catalogue's CSV file or pictures"
    specificity = 20

    def __init__(
        self,
        root: str | Path,
        images: str | Path | None = None,
        categories: Sequence[str] | None = None,
        csv: str | Path | None = None,
        triplets_csv: str | Path | None = None,
    ) -> None:
        super().__init__(root, images)
        self.catalogue = Catalogue(root, csv, images)
        self.triplets_csv = Path(triplets_csv) if triplets_csv is not None else self.root / TRIPLETS_FILE
        if not self.triplets_csv.is_file():
            raise UsageError(f"{self.triplets_csv}: expected a CSV file of triplets, found no such file.")
        self._rows = read_triplets(self.triplets_csv, self.catalogue._items)
        found = sorted({row.triplet.category for row in self._rows})
        if not found:
            raise DataError(f"{self.triplets_csv}: category {ALL!r} is empty: no triplets.")
        self.categories = found if categories is None else list(dict.fromkeys(categories))
        unknown = [category for category in self.categories if category not in found]
        if unknown or not self.categories:
            raise UsageError(f"{self.triplets_csv}: no category {', '.join(map(repr, unknown))}. Found: {', '.join(found)}.")

    @classmethod
    def matches(cls, root: Path) -> bool:
        return (Path(root) / TRIPLETS_FILE).is_file()

    def splits(self, category: str | None = None) -> list[str]:
        wanted = self.categories if category is None else [category]
        return split_order(row.split for row in self._rows if row.triplet.category in wanted)

    def annotation_files(self, splits: Collection[str] | None = None) -> list[Path]:
        return sorted([self.triplets_csv] + ([self.catalogue.csv] if self.catalogue.csv else []))

    @property
    def images_root(self) -> Path:
        return self.catalogue.images or self.root

    def image_path(self, image_id: str) -> Path:
        return self.catalogue.image_path(image_id)

    def missing_images(self, splits: Collection[str] | None = None) -> list[str]:
        missing = set(self.catalogue.missing_images())
        return [id for id in self.image_ids(splits) if id in missing]

    def _read(self, category: str, split: str) -> CategorySplit:
        return _catalogue_split(self.triplets_csv, self._rows, self.catalogue.items, category, split, raise_errors)

    @classmethod
    def inspect(cls, root: Path, images: Path | None, on_problem: OnProblem) -> Inspection:
        inspection = Catalogue.inspect(root, images, on_problem)
        triplets_csv = Path(root) / TRIPLETS_FILE
        items = _silent_items(Path(root), images)
        rows = read_triplets(triplets_csv, {item.id for item in items}, on_problem)
        if not rows:
            on_problem(Problem("error", str(triplets_csv), "category 'all' is empty: no usable triplets.", "", "empty category"))
        summaries = []
        for category in sorted({row.triplet.category for row in rows}):
            for split in split_order(row.split for row in rows if row.triplet.category == category):
                summaries.append(SplitSummary.of(_catalogue_split(triplets_csv, rows, items, category, split, on_problem)))
        return Inspection(cls.name, summaries, inspection.paths, inspection.images_root)


def _silent_items(root: Path, images: Path | None) -> list[Item]:
    """The items, for a second look: `Catalogue.inspect` has reported the problems already."""
    try:
        return read_items(root, find_csv(root), None if images is None else Path(images), on_problem=lambda problem: None)[1]
    except UsageError:
        return []


def _catalogue_split(
    path: Path, rows: list[_TripletRow], items: list[Item], category: str, split: str, on_problem: OnProblem
) -> CategorySplit:
    by_category = any(item.attributes.get("category") for item in items) and category != ALL
    by_split = any(item.attributes.get("split") for item in items)
    gallery = tuple(
        item.id
        for item in items
        if (not by_category or item.attributes.get("category") == category) and (not by_split or item.split == split)
    )
    if not gallery:
        fix = "Look at the columns category and split of the catalogue."
        on_problem(Problem("error", str(path), f"category {category!r} is empty: no items for {split!r}.", fix, "empty category"))
    triplets = tuple(row.triplet for row in rows if row.split == split and row.triplet.category == category)
    inside = frozenset(gallery)
    for triplet in triplets:
        if gallery and triplet.target is not None and triplet.target not in inside:
            what = f"the target {triplet.target!r} (triplet {triplet.row + 1}) is no item of {category!r} and {split!r}."
            fix = "Its category and split in the catalogue must be those of the triplet."
            on_problem(Problem("error", str(path), what, fix, "target not in gallery"))
    return CategorySplit(category, split, triplets, gallery)
