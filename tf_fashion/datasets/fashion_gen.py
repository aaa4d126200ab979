"""FashionGen in FashionKLIP's files: descriptions, the pictures that they belong to, and concepts.

    train/PREFIX_train_queries_phrases.jsonl   query_id, query_text, item_ids, phrases, match_phrases
    val/PREFIX_val_queries.jsonl               query_id, query_text, item_ids
    val/PREFIX_val_images.jsonl                image_id, item_ids (ids of texts)
    train/PREFIX_concepts_queries.jsonl, train/PREFIX_concepts_fathers.jsonl      concepts of the dataset (see `concepts.py`)
    fashion_kb/*_concepts_queries.jsonl, fashion_kb/*_concepts_fathers.jsonl      concepts of a knowledge base
    train/*.npz, val/*.npz, fashion_kb/*.npz   pictures (see `pictures.py`); or images/ID.jpg, also in sub-folders

The folder may have all of this under `fashiongen/`, with `fashion_kb/` beside it. Files of concepts may be absent.

Data: Rostamzadeh et al., "Fashion-Gen" (2018). Files: FashionKLIP (ACL 2023, Industry Track).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.concepts import ConceptVocabulary, read_fathers
from tf_fashion.datasets.image_text import ImageTextDataset, TextRecord, read_groups
from tf_fashion.datasets.json_lines import field_problem, read_lines
from tf_fashion.datasets.pictures import PictureStore
from tf_fashion.datasets.records import (
    DATASETS,
    Inspection,
    OnProblem,
    Problem,
    SplitSummary,
    caption_problem,
    existing_folder,
    id_problem,
    raise_errors,
    short_repr,
)

SPLITS = ("train", "val", "test")
GROUP_KEYS = ("sub_category", "category")
MESSAGES = 20
"""How many bad lines an error message quotes; it gives the line numbers of all of them."""


def image_id_of(value: object) -> object:
    """Ids of pictures are strings; the published files have whole numbers too."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**40 else value


def read_texts(path: Path, on_problem: OnProblem = raise_errors, unique: bool = True) -> list[TextRecord]:
    """Reads a file of texts. Bad lines go to `on_problem` and are left out.

    Args:
        path: The file.
        on_problem: What to do about each bad line.
        unique: Whether a second text with the same id is a bad line, as it must be where texts are looked up by their ids.

    `phrases` and `match_phrases` may be absent from the whole file; where one line has them, every line needs them.
    """
    records: list[TextRecord] = []
    without: list[tuple[str, int]] = []
    lines: dict[int, int] = {}
    with_phrases = False
    for number, line in read_lines(path, on_problem):
        where = f"{path}, line {number}"
        problem, record = _text_record(line, where, on_problem)
        if problem is not None or record is None:
            if problem is not None:
                on_problem(problem)
            continue
        first = lines.setdefault(record.query_id, number)
        if first != number and unique:
            what = f"the query_id {record.query_id} occurs a second time (first in line {first})."
            on_problem(Problem("error", where, what, "Ids must be unique.", "duplicate id"))
            continue
        if "phrases" in line or "match_phrases" in line:
            with_phrases = True
        else:
            without.append((where, len(records)))
        records.append(record)
    if with_phrases and without:
        for where, _ in without:
            on_problem(
                Problem("error", where, "expected the keys 'phrases' and 'match_phrases', as in other lines.", "", "missing key")
            )
        left_out = {place for _, place in without}
        records = [record for place, record in enumerate(records) if place not in left_out]
    return records


def _text_record(line: Mapping[str, Any], where: str, on_problem: OnProblem) -> tuple[Problem | None, TextRecord | None]:
    fields: dict[str, type] = {"query_id": int, "query_text": str, "item_ids": list}
    if "phrases" in line or "match_phrases" in line:
        fields |= {"phrases": list, "match_phrases": list}
    problem = field_problem(line, fields, where) or caption_problem(line["query_text"], where)
    if problem is not None:
        return problem, None
    if not line["query_text"].strip():
        return Problem("error", where, "the text is empty.", "Write one, or remove the line.", "empty captions"), None
    ids = [image_id_of(value) for value in line["item_ids"]]
    problem = next((p for image_id in ids if (p := id_problem(image_id, where))), None)
    if problem is not None:
        return problem, None
    if not ids:
        return Problem("error", where, "'item_ids' is empty: no picture belongs to the text.", "Remove the line.", "no pictures"), None
    unique = tuple(dict.fromkeys(map(str, ids)))
    if len(unique) != len(ids):
        on_problem(Problem("warning", where, "'item_ids' names a picture twice.", "It counts once.", "duplicate id"))
    phrases: list[tuple[str, ...]] = []
    for name in ("phrases", "match_phrases"):
        values = line.get(name, ())
        wrong = next((value for value in values if not isinstance(value, str)), None)
        if wrong is not None:
            return Problem("error", where, f"expected strings in {name!r}, found {short_repr(wrong)}.", "", "bad value"), None
        phrases.append(tuple(values))
    group = next((line[key] for key in GROUP_KEYS if isinstance(line.get(key), str) and line[key]), None)
    return None, TextRecord(line["query_id"], line["query_text"], unique, phrases[0], phrases[1], group)


def read_image_truth(path: Path, query_ids: Collection[int], on_problem: OnProblem = raise_errors) -> dict[str, tuple[int, ...]]:
    """Reads which texts describe each picture. Bad lines go to `on_problem` and are left out.

    Args:
        path: `..._images.jsonl`.
        query_ids: The ids of the split's texts.
        on_problem: What to do about each bad line.
    """
    truth: dict[str, tuple[int, ...]] = {}
    known = frozenset(query_ids)
    for number, line in read_lines(path, on_problem):
        where = f"{path}, line {number}"
        missing = next((key for key in ("image_id", "item_ids") if key not in line), None)
        image_id = image_id_of(line.get("image_id"))
        if missing is not None:
            problem: Problem | None = Problem(
                "error", where, f"expected the key {missing!r}, found {short_repr(line)}.", "", "missing key"
            )
        else:
            problem = id_problem(image_id, where) or field_problem(line, {"item_ids": list}, where)
        if problem is None and (wrong := [v for v in line["item_ids"] if not isinstance(v, int) or isinstance(v, bool)]):
            what = f"expected ids of texts (whole numbers) in 'item_ids', found {short_repr(wrong[0])}."
            problem = Problem("error", where, what, "", "bad value")
        if problem is None and (unknown := [value for value in line["item_ids"] if value not in known]):
            what = f"{short_repr(unknown[0])} in 'item_ids' is the query_id of no text."
            problem = Problem("error", where, what, "Add the text, or remove the id.", "unknown id")
        if problem is None and image_id in truth:
            what = f"the picture {image_id!r} occurs a second time."
            problem = Problem("error", where, what, "Ids must be unique.", "duplicate id")
        if problem is not None:
            on_problem(problem)
            continue
        truth[str(image_id)] = tuple(dict.fromkeys(line["item_ids"]))
    return truth


class _Files:
    """Where the files of a tree are."""

    def __init__(self, root: Path | None, given: Mapping[str, str | Path | None]) -> None:
        self.root = root
        self.base = root
        if root is not None and not _has_texts(root) and _has_texts(root / "fashiongen"):
            self.base = root / "fashiongen"
        self.given = {name: Path(path) for name, path in given.items() if path is not None}
        for name, path in self.given.items():
            if not path.is_file():
                raise UsageError(f"{path}: expected the file for {name}, found {'a folder' if path.is_dir() else 'no such file'}.")

    def _one(self, name: str, folders: Sequence[Path | None], *endings: str) -> Path | None:
        """The only file with one of the endings (earlier ones first) in the first folder that has one."""
        if name in self.given:
            return self.given[name]
        for folder in folders:
            for ending in endings:
                found = [path for path in _listing(folder) if path.name.endswith(ending)]
                if len(found) > 1:
                    names = ", ".join(path.name for path in found)
                    raise DataError(f"{folder}: several files end in {ending} ({names}). Leave one, or say which: {name}=FILE.")
                if found:
                    return found[0]
        return None

    def _places(self, split: str) -> list[Path | None]:
        return [] if self.base is None else [self.base / split, self.base]

    def texts(self, split: str) -> Path | None:
        return self._one(split, self._places(split), f"_{split}_queries_phrases.jsonl", f"_{split}_queries.jsonl")

    def truth(self, split: str) -> Path | None:
        return self._one(f"{split}_images", self._places(split), f"_{split}_images.jsonl")

    def concepts(self) -> Path | None:
        return self._one("concepts", self._places("train"), "_concepts_queries.jsonl")

    def fathers(self) -> Path | None:
        return self._one("fathers", self._places("train"), "_concepts_fathers.jsonl")

    @property
    def _kb(self) -> list[Path | None]:
        if self.root is None:
            return []
        beside = [self.root.parent / "fashion_kb"] if self.root.name == "fashiongen" else []
        return [self.root / "fashion_kb", *beside]

    def kb_concepts(self) -> Path | None:
        return self._one("kb_concepts", self._kb, "_concepts_queries.jsonl")

    def kb_fathers(self) -> Path | None:
        return self._one("kb_fathers", self._kb, "_concepts_fathers.jsonl")

    def concept_archives(self) -> list[Path]:
        return next((found for folder in self._kb if (found := _archives(folder))), [])

    def image_sources(self) -> list[Path]:
        """The dataset's own places of pictures."""
        if self.base is None:
            return []
        folders = [self.base / "images"] if (self.base / "images").is_dir() else []
        return [*folders, *(path for folder in (*(self.base / split for split in SPLITS), self.base) for path in _archives(folder))]

    def every(self, splits: Collection[str]) -> list[Path]:
        """All annotation files of some splits; those of the concepts belong to "train"."""
        found = [path for split in splits for path in (self.texts(split), self.truth(split))]
        if "train" in splits:
            found += [self.concepts(), self.fathers(), self.kb_concepts(), self.kb_fathers()]
        return sorted({path for path in found if path is not None})


def _listing(folder: Path | None) -> list[Path]:
    """The files of the layout's kinds in a folder, sorted; pictures beside them are passed over quickly."""
    if folder is None or not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.name[0] != "." and e.name.lower().endswith((".jsonl", ".npz")) and e.is_file()]
    return [folder / name for name in sorted(names)]


def _archives(folder: Path | None) -> list[Path]:
    return [path for path in _listing(folder) if path.suffix.lower() == ".npz"]


def _has_texts(root: Path) -> bool:
    return any(
        path.name.endswith((f"_{split}_queries_phrases.jsonl", f"_{split}_queries.jsonl"))
        for split in SPLITS
        for folder in (root / split, root)
        for path in _listing(folder)
    )


@DATASETS.register("fashion_gen")
class FashionGen(ImageTextDataset):
    """Descriptions and pictures in FashionKLIP's layout, or single files of that kind. A split is read when it is first asked for.

    Args:
        root: Folder of the dataset; None where all files are given one by one.
        images: Folder of the pictures or `.npz` file, or several of them; default: `images/` and the `.npz` files of the layout.
        train, val, test: Files of texts, in place of those in `root`.
        val_images, test_images: Files with the texts of each picture; where there is none, they follow from the texts.
        concepts, fathers: Files of the dataset's concepts.
        kb_concepts, kb_fathers: Files of the knowledge base's concepts.
        concept_images: Where prototypes of concepts are taken from, as `images`; default: the `.npz` files in `fashion_kb`. With
            neither, they come from the pictures of "train".
        groups: CSV file that says what each picture shows; else `sub_category` or `category` in the lines of texts does.
        group_column: Column of `groups`; default: subCategory, category, ...
        skip_bad_lines: Leaves bad lines of files of texts out, counts them (`report`), and goes on.

    Raises:
        UsageError: a folder, file or column that does not exist; neither `root` nor a file.
        DataError: no texts in `root`. And when something is first asked for: bad lines (the message lists them all), several
            files for one purpose, unreadable `.npz` files.
    """

    name = "fashion_gen"
    looked_for = "train/PREFIX_train_queries_phrases.jsonl or val/PREFIX_val_queries.jsonl (FashionGen in FashionKLIP's layout)"
    specificity = 26

    def __init__(
        self,
        root: str | Path | None = None,
        images: str | Path | Sequence[str | Path] | None = None,
        *,
        train: str | Path | None = None,
        val: str | Path | None = None,
        test: str | Path | None = None,
        val_images: str | Path | None = None,
        test_images: str | Path | None = None,
        concepts: str | Path | None = None,
        fathers: str | Path | None = None,
        kb_concepts: str | Path | None = None,
        kb_fathers: str | Path | None = None,
        concept_images: str | Path | Sequence[str | Path] | None = None,
        groups: str | Path | None = None,
        group_column: str | None = None,
        skip_bad_lines: bool = False,
    ) -> None:
        super().__init__()
        self.root = None if root is None else existing_folder(root, "the folder of a dataset")
        given = {"train": train, "val": val, "test": test, "val_images": val_images, "test_images": test_images}
        given |= {"concepts": concepts, "fathers": fathers, "kb_concepts": kb_concepts, "kb_fathers": kb_fathers}
        self._files = _Files(self.root, given)
        self._splits = [split for split in SPLITS if self._files.texts(split) is not None]
        if not self.splits():
            if self.root is None:
                raise UsageError("Expected the folder of a dataset, or a file of texts (train, val or test); found neither.")
            raise DataError(f"{self.root}: expected {self.looked_for}, found none.")
        self._sources = _several(images)
        self._concept_sources = _several(concept_images)
        self.groups = None if groups is None else Path(groups)
        self.group_column = group_column
        self.skip_bad_lines = skip_bad_lines
        self.skipped: dict[str, list[Problem]] = {}
        # Opened here, so that a wrong path is told before anything is read.
        if self._sources:
            PictureStore([path for path in self._sources if path.suffix.lower() != ".npz" or not path.is_file()])

    @classmethod
    def matches(cls, root: Path) -> bool:
        """Whether the tree at `root` looks like this dataset (by names of files only)."""
        return _has_texts(Path(root)) or _has_texts(Path(root) / "fashiongen")

    def splits(self) -> list[str]:
        return list(self._splits)

    def annotation_files(self, splits: str | Collection[str] | None = None) -> list[Path]:
        return self._files.every(self._names_of(splits))

    def _options(self) -> dict[str, Any]:
        return {"skip_bad_lines": True} if self.skip_bad_lines else {}

    def _read(self, split: str) -> list[TextRecord]:
        path = self._files.texts(split)
        if path is None:
            raise UsageError(f"{self._where}: no split {split!r}.")
        problems: list[Problem] = []
        records = read_texts(path, problems.append, unique=split != "train")
        errors = [problem for problem in problems if problem.severity == "error"]
        fatal = [problem for problem in errors if problem.kind == "unreadable file"]
        if fatal or (errors and not self.skip_bad_lines):
            raise DataError(list_problems(path, fatal or errors, None if fatal else "skip_bad_lines leaves them out."))
        self.skipped[split] = errors
        if not records:
            raise DataError(f"{path}: no usable text: {len(errors)} bad lines." if errors else f"{path}: the file is empty.")
        return records

    def _read_truth(self, split: str) -> dict[str, tuple[int, ...]] | None:
        path = self._files.truth(split)
        if path is None:
            return None
        known = [record.query_id for record in self._read(split)] if self._dropped else [r.query_id for r in self.records(split)]
        problems: list[Problem] = []
        truth = read_image_truth(path, known, problems.append)
        # The texts of skipped lines are missing here as well.
        errors = [p for p in problems if p.severity == "error" and not (p.kind == "unknown id" and self.skipped.get(split))]
        if errors:
            raise DataError(list_problems(path, errors))
        return truth

    def _store(self) -> PictureStore:
        sources = self._sources or self._files.image_sources()
        if not sources:
            nearby = self._files.base.parent / "images" if self._files.base is not None else None
            hint = f" There is {nearby}: is it that?" if nearby is not None and nearby.is_dir() else ""
            place = self._files.base or "The dataset"
            raise DataError(
                f"{place}: no pictures: neither images/ nor .npz files. Put them there, or say where they are with --images.{hint}"
            )
        return PictureStore(sources)

    def _read_groups(self) -> dict[str, str]:
        return {} if self.groups is None else read_groups(self.groups, self.group_column)

    @cached_property
    def _vocabularies(self) -> tuple[ConceptVocabulary | None, ConceptVocabulary | None]:
        found = self._files
        pairs = ((found.concepts(), found.fathers()), (found.kb_concepts(), found.kb_fathers()))
        data, kb = (None if concepts is None else ConceptVocabulary.read(concepts, fathers) for concepts, fathers in pairs)
        return data, kb

    @property
    def concepts(self) -> ConceptVocabulary | None:
        """The dataset's concepts, or None where there is no file of them."""
        return self._vocabularies[0]

    @property
    def kb_concepts(self) -> ConceptVocabulary | None:
        """The knowledge base's concepts, or None where there is no file of them."""
        return self._vocabularies[1]

    @cached_property
    def concept_pictures(self) -> PictureStore | None:  # type: ignore[override]
        """Pictures for prototypes of concepts, or None where they are those of "train"."""
        sources = self._concept_sources or self._files.concept_archives()
        return PictureStore(sources) if sources else None

    def report(self) -> list[str]:
        lines = super().report()
        for split, problems in self.skipped.items():
            if problems:
                kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(problem.kind for problem in problems).most_common())
                numbers = ", ".join(problem.where.rpartition(" ")[2] for problem in problems[:MESSAGES])
                more = ", ..." if len(problems) > MESSAGES else ""
                lines.append(f"{split}: left out {len(problems)} bad lines ({kinds}): lines {numbers}{more}")
        return lines

    @classmethod
    def inspect(cls, root: Path, images: Path | None, on_problem: OnProblem) -> Inspection:
        """Reads everything under `root`, reports each problem to `on_problem`, and never raises for bad data."""
        root = existing_folder(root, "the folder of a dataset")
        dataset = cls(root, images)
        summaries: list[SplitSummary] = []
        for split in dataset.splits():
            path = dataset._files.texts(split)
            records = [] if path is None else read_texts(path, on_problem, unique=split != "train")
            if not records:
                on_problem(Problem("error", str(path), f"{split!r} is empty: no usable text.", "", "empty category"))
            ids = {image_id for record in records for image_id in record.item_ids}
            truth_path = dataset._files.truth(split)
            if truth_path is not None:
                _inspect_truth(truth_path, records, ids, on_problem)
            pairs = sum(len(record.item_ids) for record in records)
            summaries.append(SplitSummary("all", split, pairs, len(ids), len(records), ids))
        _inspect_concepts(dataset._files, on_problem)
        everything = sorted(set().union(*(summary.image_ids for summary in summaries)))
        try:
            store = dataset.pictures
        except DataError as error:
            on_problem(Problem("error", str(root), str(error).removeprefix(f"{root}: "), "", "missing folder"))
            return Inspection(cls.name, summaries, dict.fromkeys(everything), None)
        missing = store.missing(everything)
        for image_id in missing:
            on_problem(Problem("error", str(store), f"missing picture {image_id!r}.", "", "missing image"))
        paths = {image_id: store.path(image_id) for image_id in everything}
        arrays = {image_id: store.array for image_id in everything if store.in_archive(image_id)}
        place = store.folders[0].folder if store.folders else store.archives[0].path.parent
        return Inspection(cls.name, summaries, paths, place, arrays)


def _several(value: str | Path | Sequence[str | Path] | None) -> list[Path]:
    if value is None:
        return []
    return [Path(value)] if isinstance(value, (str, Path)) else [Path(entry) for entry in value]


def list_problems(path: Path, problems: Sequence[Problem], advice: str | None = None) -> str:
    """One message about all bad lines of a file."""
    if len(problems) == 1:
        return str(problems[0]) + (f" ({advice})" if advice else "")
    lines = [f"{path}: {len(problems)} bad lines." + (f" ({advice})" if advice else "")]
    lines += [f"  {str(problem).removeprefix(f'{path}, ')}" for problem in problems[:MESSAGES]]
    if len(problems) > MESSAGES:
        lines.append("  and the lines " + ", ".join(problem.where.rpartition(" ")[2] for problem in problems[MESSAGES:]))
    return "\n".join(lines)


def _inspect_truth(path: Path, records: list[TextRecord], ids: set[str], on_problem: OnProblem) -> None:
    truth = read_image_truth(path, [record.query_id for record in records], on_problem)
    said = {(image_id, number) for image_id, numbers in truth.items() for number in numbers}
    meant = {(image_id, record.query_id) for record in records for image_id in record.item_ids}
    for pairs, what in (
        (said - meant, "pairs of picture and text that the file of texts does not have"),
        (meant - said, "pairs less than the file of texts has"),
    ):
        if pairs:
            image_id, number = min(pairs)
            example = f"for instance picture {image_id!r} with text {number}."
            fix = "Searches by text and by picture are measured by different truths."
            on_problem(Problem("warning", str(path), f"{len(pairs)} {what}, {example}", fix, "truths differ"))
    ids.update(truth)


def _inspect_concepts(found: _Files, on_problem: OnProblem) -> None:
    for concepts, fathers, what in (
        (found.concepts(), found.fathers(), "concepts of the dataset"),
        (found.kb_concepts(), found.kb_fathers(), "concepts of the knowledge base"),
    ):
        if concepts is None:
            if fathers is not None:
                read_fathers(fathers, on_problem)
                on_problem(Problem("warning", str(fathers), f"fathers without a file of {what}.", "", "missing file"))
            continue
        vocabulary = ConceptVocabulary.read(concepts, fathers, on_problem)
        circles = [phrase for phrase in vocabulary.phrases if _in_circle(vocabulary, phrase)]
        if circles:
            examples = ", ".join(map(repr, circles[:3]))
            text = f"{len(circles)} phrases are their own forefathers ({examples})."
            on_problem(Problem("warning", str(fathers), text, "", "circle of fathers"))


def _in_circle(vocabulary: ConceptVocabulary, phrase: str) -> bool:
    seen: set[str] = set()
    father = vocabulary.father(phrase)
    while father and father not in seen:
        if father == phrase:
            return True
        seen.add(father)
        father = vocabulary.father(father)
    return False
