"""Pictures with descriptions: what a dataset for image-text retrieval gives, and a shop's own catalogue as one.

dataset = open_image_text("data/fashion_gen", images="photos")
dataset.pairs("train")[0].text, dataset.image_bytes(dataset.pairs("train")[0].image_id)
"""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tf_fashion.core import files
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.catalogue import ALL, TEXT_COLUMNS, Catalogue, Item, Table, read_table
from tf_fashion.datasets.concepts import ConceptVocabulary
from tf_fashion.datasets.pictures import PictureStore
from tf_fashion.datasets.records import DATASETS, existing_folder, split_order

GROUP_COLUMNS = ("subcategory", "category", "articletype", "class")
"""Columns that say what a picture shows, without case and underscores; the first that exists counts."""


@dataclass(frozen=True)
class ImageTextPair:
    """One training example: a picture and a text about it.

    Attributes:
        query_id: Id of the text.
        text: As in the file.
        image_id: Id of the picture.
        phrases: Phrases of the text, as in the file.
        match_phrases: Those phrases that a knowledge base knows.
    """

    query_id: int
    text: str
    image_id: str
    phrases: tuple[str, ...] = ()
    match_phrases: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextQuery:
    """A text and all pictures that answer it.

    Attributes:
        query_id: Id of the text.
        text: As in the file.
        item_ids: Ids of the pictures, in the file's order, each once.
    """

    query_id: int
    text: str
    item_ids: tuple[str, ...]


@dataclass(frozen=True)
class TextRecord:
    """A text with everything that its line says."""

    query_id: int
    text: str
    item_ids: tuple[str, ...]
    phrases: tuple[str, ...] = ()
    match_phrases: tuple[str, ...] = ()
    group: str | None = None


class ImageTextDataset:
    """Base class of the datasets for image-text retrieval.

    A subclass sets `root` (a folder or None) and `_store`, and writes `splits`, `_read`, `annotation_files`, and the class methods
    `matches` and `inspect`.

    Attributes:
        concepts, kb_concepts: Vocabularies of the phrases, or None.
        concept_pictures: Pictures from which prototypes of concepts are taken, where they are other ones than the dataset's; or None.
    """

    name: ClassVar[str] = ""
    looked_for: ClassVar[str] = ""
    specificity: ClassVar[int] = 0

    root: Path | None
    _dropped: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self._records: dict[str, list[TextRecord]] = {}
        self._truth: dict[str, dict[str, tuple[int, ...]]] = {}
        self._groups: dict[str, str] | None = None

    # What a subclass writes.

    def splits(self) -> list[str]:
        """Names of the splits: train, val, test, then others."""
        raise NotImplementedError

    def annotation_files(self, splits: str | Collection[str] | None = None) -> list[Path]:
        """The files that define the given splits (default: all), sorted."""
        raise NotImplementedError

    def _read(self, split: str) -> list[TextRecord]:
        raise NotImplementedError

    def _store(self) -> PictureStore:
        raise NotImplementedError

    def _read_truth(self, split: str) -> dict[str, tuple[int, ...]] | None:
        return None

    def _read_groups(self) -> dict[str, str]:
        return {}

    @property
    def concepts(self) -> ConceptVocabulary | None:
        return None

    @property
    def kb_concepts(self) -> ConceptVocabulary | None:
        return None

    @property
    def concept_pictures(self) -> PictureStore | None:
        return None

    # What every dataset has.

    def _names_of(self, splits: str | Collection[str] | None) -> list[str]:
        known = self.splits()
        if splits is None:
            return known
        wanted = [splits] if isinstance(splits, str) else list(splits)
        for split in wanted:
            if split not in known:
                raise UsageError(f"{self._where}: no split {split!r}. Found: {', '.join(known) or 'none'}.")
        return [split for split in known if split in wanted]

    @property
    def _where(self) -> str:
        return str(self.root) if self.root is not None else ", ".join(map(str, self.annotation_files()))

    def records(self, split: str) -> list[TextRecord]:
        """The texts of a split with all their fields, in file order, validated; read once.

        Raises:
            UsageError: no such split.
            DataError: the file does not hold what it promises; the message lists every bad line.
        """
        self._names_of(split)
        if split not in self._records:
            records = self._read(split)
            if self._dropped:
                reduced = [replace(r, item_ids=tuple(i for i in r.item_ids if i not in self._dropped)) for r in records]
                records = [record for record in reduced if record.item_ids]
                if not records:
                    raise DataError(
                        f"{self._where}: {split!r} is empty: every text belongs to a picture that is missing or cannot be read. "
                        "Check --images."
                    )
            self._records[split] = records
        return self._records[split]

    def pairs(self, split: str) -> list[ImageTextPair]:
        """One pair per text and picture, in file order. Raises as `records`."""
        return [
            ImageTextPair(record.query_id, record.text, image_id, record.phrases, record.match_phrases)
            for record in self.records(split)
            for image_id in record.item_ids
        ]

    def queries(self, split: str) -> list[TextQuery]:
        """The texts with the pictures that answer them, in file order. Raises as `records`."""
        return [TextQuery(record.query_id, record.text, record.item_ids) for record in self.records(split)]

    def image_truth(self, split: str) -> dict[str, tuple[int, ...]]:
        """Image id -> ids of the texts that describe it, in the order of the gallery. Raises as `records`."""
        records = self.records(split)
        if split not in self._truth:
            truth = self._read_truth(split)
            if truth is None:
                found: dict[str, list[int]] = {}
                for record in records:
                    for image_id in record.item_ids:
                        found.setdefault(image_id, []).append(record.query_id)
                truth = {image_id: tuple(numbers) for image_id, numbers in found.items()}
            known = {record.query_id for record in records}
            if self._dropped:
                truth = {i: tuple(n for n in numbers if n in known) for i, numbers in truth.items() if i not in self._dropped}
            self._truth[split] = truth
        return self._truth[split]

    def image_ids(self, splits: str | Collection[str] | None = None) -> list[str]:
        """The pictures of the given splits (default: all), each once, in the order of the galleries."""
        found: dict[str, None] = {}
        for split in self._names_of(splits):
            found.update(dict.fromkeys(self.image_truth(split)))
            found.update(dict.fromkeys(image_id for record in self.records(split) for image_id in record.item_ids))
        return list(found)

    def vocabulary_texts(self) -> list[str]:
        """The texts whose words make a vocabulary: those of "train", in file order."""
        return [record.text for record in self.records("train")] if "train" in self.splits() else []

    @property
    def default_split(self) -> str | None:
        """The split that is evaluated if nobody says which: val, else test, else none."""
        return next((split for split in ("val", "test") if split in self.splits()), None)

    @property
    def pictures(self) -> PictureStore:
        """Where the pictures are."""
        if not hasattr(self, "_pictures"):
            self._pictures = self._store()
        return self._pictures

    def image_path(self, image_id: str) -> Path:
        """Path of a picture that is a file.

        Raises:
            DataError: there is no such file; or the picture is an array of an `.npz` file.
        """
        files.check_id(image_id, self._where)
        path = self.pictures.path(image_id)
        if path is None and self.pictures.in_archive(image_id):
            raise DataError(f"{self.pictures}: the picture {image_id!r} is an array, not a file; take image_bytes({image_id!r}).")
        if path is None:
            raise DataError(f"{self.pictures}: no picture for the id {image_id!r}.{self._advice}")
        return path

    def image_array(self, image_id: str) -> np.ndarray:
        """uint8 RGB (height, width, 3) of a picture that is an array of an `.npz` file.

        Raises:
            DataError: there is none, or it is damaged.
        """
        return self.pictures.array(image_id)

    def image_bytes(self, image_id: str) -> bytes:
        """The content of the picture's file; of an array, the same pixels as a PNG file.

        Raises:
            DataError: there is no such picture, or it cannot be read.
        """
        return self.pictures.bytes(image_id)

    @property
    def _advice(self) -> str:
        return f" List all missing pictures with: tf-fashion data check {self.root}" if self.root is not None else ""

    def missing_images(self, splits: str | Collection[str] | None = None) -> list[str]:
        """Ids (see `image_ids`) without a picture."""
        return self.pictures.missing(self.image_ids(splits))

    def group(self, image_id: str) -> str | None:
        """What the picture shows (its sub-category), or None where nobody says."""
        if self._groups is None:
            groups: dict[str, str] = {}
            for split in self.splits():
                for record in self.records(split):
                    if record.group is not None:
                        groups.update(dict.fromkeys(record.item_ids, record.group))
            self._groups = {**groups, **self._read_groups()}
        return self._groups.get(image_id)

    def data_hash(self, splits: str | Collection[str] | None = None) -> str:
        """SHA-256 over names and contents of the annotation files of the given splits, and over the pictures left out."""
        entries = sorted([path.name, files.hash_file(path)] for path in self.annotation_files(splits))
        value: dict[str, Any] = {"dataset": self.name, "files": entries, **self._options()}
        if self._dropped:
            value["without"] = sorted(self._dropped)
        return files.hash_json(value)

    def _options(self) -> dict[str, Any]:
        """Arguments on which the content of the splits depends."""
        return {}

    def without_images(self, bad_ids: Iterable[str]) -> ImageTextDataset:
        """A view that leaves out the pictures `bad_ids`, and texts that keep none."""
        view = copy.copy(self)
        view._records, view._truth, view._groups = {}, {}, None
        view._dropped = self._dropped | frozenset(bad_ids)
        return view

    def report(self) -> list[str]:
        """Lines about what was left out of the splits that have been read; empty if nothing was."""
        if not self._dropped:
            return []
        gone = [f"{split}: {len(self._dropped.intersection(self._ids_of_file(split)))}" for split in self.splits()]
        return [f"left out pictures: {', '.join(gone)}"]

    def _ids_of_file(self, split: str) -> set[str]:
        return {image_id for record in self._read(split) for image_id in record.item_ids}


def read_groups(path: Path, column: str | None = None) -> dict[str, str]:
    """Image id -> what it shows, from a CSV file with an `id` column.

    Args:
        path: The file.
        column: The column to take; default: the first of sub-category, category, article type, class that exists.

    Raises:
        UsageError: no such file or column.
        DataError: the file is broken.
    """
    if not Path(path).is_file():
        raise UsageError(f"{path}: expected a CSV file with ids and categories, found no such file.")
    table = read_table(Path(path))
    id_column = next((name for name in table.columns if name.lower() in ("id", "image_id", "item_id")), None)
    column = column or find_group_column(table)
    if id_column is None or column not in table.columns:
        wanted = "id" if id_column is None else repr(column or "subCategory")
        raise UsageError(f"{path}: no column {wanted}. Found: {', '.join(table.columns)}.")
    places = table.columns.index(id_column), table.columns.index(str(column))
    return {values[places[0]]: values[places[1]] for _, values in table.rows if values[places[1]]}


def find_group_column(table: Table | Sequence[str]) -> str | None:
    """The first column of GROUP_COLUMNS that a table has, or None."""
    columns = table.columns if isinstance(table, Table) else table
    plain = {name.lower().replace("_", "").replace(" ", ""): name for name in reversed(columns)}
    return next((plain[name] for name in GROUP_COLUMNS if name in plain), None)


class TextCatalogue(ImageTextDataset):
    """A shop's folder with a CSV file that describes the pictures (see `Catalogue`), as pictures and texts.

    Pictures with the same text in the same split answer each other's query, so that several views of a product do not count as
    mistakes. The column `split` says what is trained on; without one, a share of the texts is set apart.

    Args:
        root: Folder of the catalogue.
        images: Folder of the pictures; default as in `Catalogue`.
        csv: The CSV file; default: the only one in `root`.
        text_column: The column with the texts; default: the first filled one of description, text, caption, title, name.
        group_column: The column that says what a picture shows; default: subcategory, category, ...
        val_share: Share of the texts that become "val" where there is no column `split`; which ones follows from the texts alone.
            With 0 everything is "train".

    Raises:
        UsageError: a folder, file, or column that does not exist; a share out of range.
        DataError: a broken CSV file; no item with a text.
    """

    name = "text_catalogue"
    looked_for = f"a CSV file with pictures and a column of texts ({', '.join(TEXT_COLUMNS)})"
    specificity = 10

    def __init__(
        self,
        root: str | Path,
        images: str | Path | None = None,
        csv: str | Path | None = None,
        text_column: str | None = None,
        group_column: str | None = None,
        val_share: float = 0.1,
    ) -> None:
        super().__init__()
        self.root = existing_folder(root, "the folder of a catalogue")
        if not 0 <= val_share < 1:
            raise UsageError(f"Expected a share of texts for validation from 0 to below 1, found {val_share}.")
        self.catalogue = Catalogue(root, csv, images)
        if self.catalogue.csv is None:
            raise DataError(f"{self.root}: expected {self.looked_for}, found pictures without a CSV file.")
        columns = self.catalogue.attribute_names
        for column in (text_column, group_column):
            if column is not None and column not in columns:
                raise UsageError(f"{self.catalogue.csv}: no column {column!r}. Found: {', '.join(columns)}.")
        self.text_column = text_column
        self.group_column = group_column or find_group_column(columns)
        self.val_share = val_share
        self._parts = self._divide(self.catalogue.items)
        if not any(self._parts.values()):
            column = text_column or " or ".join(TEXT_COLUMNS)
            raise DataError(f"{self.catalogue.csv}: no item has a text; expected one in the column {column}.")

    @classmethod
    def matches(cls, root: Path) -> bool:
        """Whether the folder has a CSV file with a column of texts."""
        tables = (path for path in Path(root).iterdir() if path.suffix.lower() in (".csv", ".tsv"))
        return any(set(TEXT_COLUMNS) & set(read_table(path, lambda problem: None).columns) for path in tables)

    def _text(self, item: Item) -> str:
        return item.attributes.get(self.text_column, "") if self.text_column else item.text

    def _divide(self, items: Sequence[Item]) -> dict[str, list[Item]]:
        parts: dict[str, list[Item]] = {}
        for item in items:
            text = self._text(item)
            if not text:
                continue
            split = item.split
            if split == ALL:
                digest = hashlib.sha256(text.encode("utf-8")).digest()
                split = "val" if int.from_bytes(digest[:6], "big") / 2**48 < self.val_share else "train"
            parts.setdefault(split, []).append(item)
        return parts

    def splits(self) -> list[str]:
        return split_order(self._parts)

    def annotation_files(self, splits: str | Collection[str] | None = None) -> list[Path]:
        self._names_of(splits)
        return [self.catalogue.csv] if self.catalogue.csv else []

    def _read(self, split: str) -> list[TextRecord]:
        texts: dict[str, list[str]] = {}
        for item in self._parts[split]:
            texts.setdefault(self._text(item), []).append(item.id)
        # Ids are unique over the splits: a text's place in the whole file.
        places = {text: number for number, text in enumerate(dict.fromkeys(map(self._text, self.catalogue.items)))}
        return [TextRecord(places[text], text, tuple(ids)) for text, ids in texts.items()]

    def _read_groups(self) -> dict[str, str]:
        column = self.group_column
        if column is None:
            return {}
        return {item.id: item.attributes[column] for item in self.catalogue.items if item.attributes[column]}

    def _options(self) -> dict[str, Any]:
        return {"text_column": self.text_column, "val_share": self.val_share}

    def _store(self) -> PictureStore:
        return _CataloguePictures(self.catalogue)


class _CataloguePictures(PictureStore):
    """The pictures of a catalogue, whose CSV file may name them by any path."""

    def __init__(self, catalogue: Catalogue) -> None:
        super().__init__([])
        self.catalogue = catalogue

    def __str__(self) -> str:
        return str(self.catalogue.images or self.catalogue.root)

    def path(self, image_id: str) -> Path | None:
        try:
            path = self.catalogue[image_id].path
        except UsageError:
            return None
        return path if path is not None and path.is_file() else None

    def missing(self, image_ids: Iterable[str]) -> list[str]:
        return [image_id for image_id in image_ids if self.path(image_id) is None]


def open_image_text(root: str | Path, images: str | Path | None = None, name: str = "auto", **options: Any) -> ImageTextDataset:
    """Opens a dataset for image-text retrieval.

    Args:
        root: Folder of the dataset: FashionGen's layout, or a catalogue whose CSV file has a column of texts.
        images: Folder of the pictures or `.npz` file, where they are not in the dataset's own place.
        name: "fashion_gen", "text_catalogue", or "auto" to recognise the folder.
        **options: Passed on to the class.

    Raises:
        UsageError: no such folder or name.
        DataError: nothing is recognised; the message says what was looked for. Broken files.
    """
    root = existing_folder(root, "the folder of a dataset")
    kinds = {"fashion_gen": DATASETS.get("fashion_gen"), "text_catalogue": TextCatalogue}
    if name != "auto":
        if name not in kinds:
            raise UsageError(f"Unknown dataset of pictures and texts {name!r}. Known: {', '.join(kinds)}.")
        cls = kinds[name]
    else:
        matching = [kind for kind in kinds.values() if kind.matches(root)]
        if not matching and options.get("csv") is not None:
            matching = [TextCatalogue]
        if not matching:
            below = [str(p) for p in sorted(root.iterdir()) if p.is_dir() and any(kind.matches(p) for kind in kinds.values())]
            hint = f" Did you mean {' or '.join(below[:3])}?" if below else ""
            looked_for = "; ".join(kind.looked_for for kind in kinds.values())
            raise DataError(f"{root}: no dataset of pictures and texts recognised. Looked for: {looked_for}.{hint}")
        cls = max(matching, key=lambda kind: kind.specificity)
    dataset: ImageTextDataset = cls(root, images=images, **options)
    return dataset


def group_counts(dataset: ImageTextDataset, split: str) -> dict[str, int]:
    """How many pictures of a split each group has; pictures without one are left out."""
    return dict(Counter(group for image_id in dataset.image_ids(split) if (group := dataset.group(image_id)) is not None))
