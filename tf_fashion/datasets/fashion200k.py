"""Fashion200k: attribute captions, and queries made of pictures whose captions differ by one word.

    labels/{category}_{split}_detect_all.txt   lines: relative path TAB detection score (unused) TAB caption
    test_queries.txt                           lines: source path BLANK target path
    women/...                                  the pictures; or anything that `PathFinder` finds, in `root` or `root/images`

There are no written modification texts. For training, pairs are drawn anew for each epoch; the text of a pair is "replace X with
Y", where X and Y are the words in which the captions differ. A query is answered by every gallery picture with the target's
caption.

Data: Han et al., "Automatic Spatially-aware Fashion Concept Discovery" (ICCV 2017). Queries: Vo et al., "Composing Text and Image
for Image Retrieval" (CVPR 2019). Epochs: VAL (CVPR 2020).
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.captions import replacement_text, spell_out_marks
from tf_fashion.datasets.records import (
    DATASETS,
    CategorySplit,
    ComposedDataset,
    Inspection,
    OnProblem,
    PathFinder,
    Problem,
    SplitSummary,
    Triplet,
    existing_folder,
    id_problem,
    raise_errors,
    short_repr,
    split_order,
)

ALL = "all"
LABEL_FILE = re.compile(r"^(?P<category>.+)_(?P<split>[^_]+)_detect_all\.txt$")
QUERY_FILE = "test_queries.txt"


class CaptionIndex:
    """Which captions differ by one word, and pairs of pictures drawn from them (TIRG, VAL).

    Taking one word out of a caption gives a parent; captions with a common parent are one replacement apart.

    Args:
        captions: Caption of each picture.
        word_level: Takes whole words out. The original takes out every occurrence of the word's letters, inside other words as
            well ("dot" out of "dots dot dress" leaves "s  dress"), and the published pairs come from that.

    Attributes:
        pictures: Caption -> numbers of its pictures, captions in the order in which they appear.
        children: Parent -> captions, each once.
        parents: For each picture the parents by which it can be changed; empty for pictures that cannot.
    """

    def __init__(self, captions: Sequence[str], word_level: bool = False) -> None:
        self.captions = list(captions)
        self.pictures: dict[str, list[int]] = {}
        for number, caption in enumerate(self.captions):
            self.pictures.setdefault(caption, []).append(number)
        self.children: dict[str, list[str]] = {}
        for caption in self.pictures:
            for word in dict.fromkeys(caption.split()):
                siblings = self.children.setdefault(_without(caption, word, word_level), [])
                if caption not in siblings:
                    siblings.append(caption)
        of_caption: dict[str, list[str]] = {caption: [] for caption in self.pictures}
        for parent, siblings in self.children.items():
            if len(siblings) > 1:
                for caption in siblings:
                    of_caption[caption].append(parent)
        self.parents = [of_caption[caption] for caption in self.captions]

    @cached_property
    def modifiable(self) -> list[int]:
        """Numbers of the pictures that have a parent."""
        return [number for number, parents in enumerate(self.parents) if parents]

    def draw_target(self, source: int, generator: random.Random) -> int:
        """A picture whose caption is one replacement away from that of `source`, which must be modifiable."""
        while True:
            caption = generator.choice(self.children[generator.choice(self.parents[source])])
            if caption != self.captions[source]:
                return generator.choice(self.pictures[caption])

    def epoch(self, generator: random.Random) -> list[tuple[int, int]]:
        """VAL's list for one epoch: a target for every modifiable picture, without pairs that were drawn already (in either
        direction) and pairs whose captions have the same words in another order; shuffled."""
        drawn: set[tuple[int, int]] = set()
        pairs = []
        for source in self.modifiable:
            target = self.draw_target(source, generator)
            if set(self.captions[source].split(" ")) == set(self.captions[target].split(" ")):
                continue
            unordered = (min(source, target), max(source, target))
            if unordered not in drawn:
                drawn.add(unordered)
                pairs.append((source, target))
        generator.shuffle(pairs)
        return pairs


def _without(caption: str, word: str, word_level: bool) -> str:
    if word_level:
        return " ".join(other for other in caption.split() if other != word)
    return caption.replace(word, "").replace("  ", " ").strip()


@dataclass(frozen=True)
class LabelledImage:
    """One line of a label file."""

    id: str
    path: str
    caption: str
    where: str


def label_files(root: Path, split: str | None = None) -> list[Path]:
    """The label files of a split (default: all), in the order in which they are read."""
    folder = root / "labels"
    if not folder.is_dir():
        return []
    matches = sorted((path.name, match) for path in folder.iterdir() if (match := LABEL_FILE.match(path.name)))
    return [folder / name for name, match in matches if split is None or match["split"] == split]


def read_labels(path: Path, marks: bool, on_problem: OnProblem = raise_errors) -> list[LabelledImage]:
    """Reads one label file; ids are not assigned yet (they are the stems of the paths)."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        on_problem(Problem("error", str(path), f"cannot be read as UTF-8 text ({error}).", "", "unreadable file"))
        return []
    images = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        fields = line.split("\t")
        if len(fields) != 3:
            what = f"expected path, score and caption between tabs, found {len(fields)} field(s): {short_repr(line)}."
            on_problem(Problem("error", where, what, "", "bad row"))
            continue
        problem = path_problem(fields[0], where)
        if problem is not None:
            on_problem(problem)
            continue
        caption = spell_out_marks(fields[2]) if marks else fields[2].strip()
        if not caption.split():
            on_problem(
                Problem("error", where, f"{fields[0]!r} has an empty caption.", "Write one, or remove the line.", "empty captions")
            )
            continue
        images.append(LabelledImage(os.path.splitext(fields[0].rsplit("/", 1)[-1])[0], fields[0], caption, where))
    return images


def path_problem(path: str, where: str) -> Problem | None:
    """The problem of a relative path of a picture, or None if it is a good one."""
    steps = path.split("/")
    if path.startswith("/") or "\\" in path or "\0" in path or ".." in steps or not all(steps):
        what = f"expected a relative path inside the folder, found {short_repr(path)}."
        return Problem("error", where, what, "Correct or remove the line.", "bad id")
    return id_problem(os.path.splitext(steps[-1])[0], where, "name of the picture")


@dataclass
class _Labels:
    """All pictures of a split, each once, under unique ids."""

    images: list[LabelledImage]
    by_path: dict[str, str]


def read_split_labels(
    root: Path, split: str, marks: bool, others: _Labels | None = None, on_problem: OnProblem = raise_errors
) -> _Labels:
    """Reads all label files of a split; `others` are the pictures of another split, whose ids are taken."""
    images: list[LabelledImage] = []
    by_path: dict[str, str] = {}
    names = Counter(os.path.splitext(path.rsplit("/", 1)[-1])[0] for path in others.by_path) if others else Counter()
    for path in label_files(root, split):
        for image in read_labels(path, marks, on_problem):
            if image.path in by_path:
                what = f"the picture {image.path!r} is listed a second time."
                on_problem(Problem("warning", image.where, what, "The first line counts.", "duplicate id"))
                continue
            # Two folders may hold pictures of one name; the second gets a number.
            names[image.id] += 1
            unique = image.id if names[image.id] == 1 else f"{image.id}.{names[image.id]}"
            by_path[image.path] = unique
            images.append(LabelledImage(unique, image.path, image.caption, image.where))
    if not images:
        fix = "Put the published label files there."
        what = f"category {ALL!r} is empty: no pictures for {split!r}."
        on_problem(Problem("error", f"{root / 'labels'}/*_{split}_detect_all.txt", what, fix, "empty category"))
    return _Labels(images, by_path)


def read_queries(path: Path, labels: _Labels, on_problem: OnProblem = raise_errors) -> list[Triplet]:
    """Reads the test queries: two paths in each line."""
    captions = {image.id: image.caption for image in labels.images}
    triplets = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        on_problem(Problem("error", str(path), f"cannot be read as UTF-8 text ({error}).", "", "unreadable file"))
        return []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where, fields = f"{path}, line {number}", line.split()
        if len(fields) != 2:
            what = f"expected two paths between blanks, found {len(fields)}: {short_repr(line)}."
            on_problem(Problem("error", where, what, "", "bad row"))
            continue
        unknown = [field for field in fields if field not in labels.by_path]
        if unknown:
            what = f"{short_repr(unknown[0])} is in no label file of 'test'."
            on_problem(Problem("error", where, what, "Add it there, or remove the line.", "unknown id"))
            continue
        source, target = (labels.by_path[field] for field in fields)
        if source == target:
            what = f"reference and target are the same picture {fields[0]!r}."
            on_problem(Problem("error", where, what, "Remove the line: there is nothing to find.", "reference is target"))
            continue
        text = replacement_text(captions[source], captions[target])
        triplets.append(Triplet(source, target, (text,), ALL, number - 1))
    if lines and not triplets:
        on_problem(Problem("error", str(path), f"category {ALL!r} is empty: no usable queries.", "", "empty category"))
    return triplets


@DATASETS.register("fashion200k")
class Fashion200k(ComposedDataset):
    """A tree in Fashion200k's layout. It has one category, "all".

    `get("all", "train").triplets` are those of `sample_triplets(0, 0)`; training asks for the triplets of each epoch. The ids are
    the pictures' names without extension.

    Args:
        root: Folder with `labels/` and `test_queries.txt`.
        images: Folder of the pictures; default `root`, then `root/images`.
        categories: None or ("all",): the data are used as a whole.
        word_level: See `CaptionIndex`.
        marks: Spells out punctuation in captions, as TIRG and VAL do before they compare captions.

    Raises:
        UsageError: the folder does not exist, or another category was asked for.
        DataError: the folder has no label files; broken lines (when a split is first asked for).
    """

    name = "fashion200k"
    looked_for = "labels/CATEGORY_SPLIT_detect_all.txt (Fashion200k's layout)"
    # Below FashionIQ: a tree that has both layouts is read as FashionIQ.
    specificity = 28
    default_protocol = "fashion200k"
    sampled = True

    def __init__(
        self,
        root: str | Path,
        images: str | Path | None = None,
        categories: Sequence[str] | None = None,
        word_level: bool = False,
        marks: bool = True,
    ) -> None:
        super().__init__(root, images)
        if not label_files(self.root):
            raise DataError(f"{self.root}: expected {self.looked_for}, found none.")
        if categories is not None and list(categories) != [ALL]:
            raise UsageError(f"{self.root}: Fashion200k is used as a whole, as category {ALL!r}; found {', '.join(categories)}.")
        self.categories = [ALL]
        self.word_level = word_level
        self.marks = marks
        self._labels: dict[str, _Labels] = {}

    @classmethod
    def matches(cls, root: Path) -> bool:
        return bool(label_files(Path(root)))

    def splits(self, category: str | None = None) -> list[str]:
        found = {LABEL_FILE.match(path.name)["split"] for path in label_files(self.root)}  # type: ignore[index]
        return split_order(s for s in found if s == "train" or (s == "test" and (self.root / QUERY_FILE).is_file()))

    def annotation_files(self, splits: Collection[str] | None = None) -> list[Path]:
        wanted = [split for _, split in self._pairs_of(splits)]
        queries = [self.root / QUERY_FILE] if "test" in wanted else []
        return sorted([*queries, *(path for split in wanted for path in label_files(self.root, split))])

    def labels(self, split: str) -> _Labels:
        """The pictures of a split, read once."""
        if split not in self._labels:
            others = self.labels("train") if split != "train" and label_files(self.root, "train") else None
            self._labels[split] = read_split_labels(self.root, split, self.marks, others)
        return self._labels[split]

    @cached_property
    def index(self) -> CaptionIndex:
        """The captions of "train" and their neighbours."""
        return CaptionIndex([image.caption for image in self.labels("train").images], self.word_level)

    def sample_triplets(self, seed: int, epoch: int) -> list[Triplet]:
        """VAL's list of one epoch (see `CaptionIndex.epoch`), drawn by a generator that depends on seed and epoch only."""
        images = self.labels("train").images
        triplets = []
        for row, (source, target) in enumerate(self.index.epoch(random.Random(f"{seed},{epoch}"))):
            text = replacement_text(images[source].caption, images[target].caption)
            triplets.append(Triplet(images[source].id, images[target].id, (text,), ALL, row))
        if not triplets:
            raise DataError(f"{self.root}/labels: no two captions of 'train' differ by one word, so that there is nothing to train on.")
        return triplets

    def _read(self, category: str, split: str) -> CategorySplit:
        labels = self.labels(split)
        triplets = self.sample_triplets(0, 0) if split == "train" else read_queries(self.root / QUERY_FILE, labels)
        captions = {image.id: image.caption for image in labels.images}
        return CategorySplit(ALL, split, tuple(triplets), tuple(captions), labels=captions)

    def attribute_texts(self, split: str) -> dict[str, str]:
        return {image.id: image.caption for image in self.labels(split).images}

    def vocabulary_texts(self) -> list[str]:
        """The captions of "train"; and "replace" and "with", of which the modification texts are made."""
        return [*(image.caption for image in self.labels("train").images), "replace with"]

    @property
    def images_root(self) -> Path:
        if self._images is not None:
            return self._images
        return self.root / "images" if (self.root / "images").is_dir() else self.root

    def _finder(self) -> PathFinder:
        paths = {id: path for split in self.splits() for path, id in self.labels(split).by_path.items()}
        return PathFinder(paths, _image_folders(self.root, self._images), by_folder=True)

    @classmethod
    def inspect(cls, root: Path, images: Path | None, on_problem: OnProblem) -> Inspection:
        root = existing_folder(root, "the folder of a dataset")
        images = None if images is None else existing_folder(images, "the folder of the pictures")
        summaries = []
        paths: dict[str, str] = {}
        others = None
        for path in sorted((root / "labels").iterdir()) if (root / "labels").is_dir() else ():
            match = LABEL_FILE.match(path.name)
            if path.suffix == ".txt" and (match is None or match["split"] not in ("train", "test")):
                fix = f"Expected {cls.looked_for}, with train or test."
                on_problem(Problem("warning", str(path), "the name says no category and split; not read.", fix, "unknown file"))
        for split in ("train", "test"):
            if not label_files(root, split):
                continue
            labels = others = read_split_labels(root, split, True, others, on_problem)
            captions = {image.id: image.caption for image in labels.images}
            triplets: list[Triplet] = []
            if split == "test" and not (root / QUERY_FILE).is_file():
                fix = "Without it there is nothing to evaluate; it is part of TIRG's release."
                on_problem(Problem("warning", str(root / QUERY_FILE), "no such file (the test queries).", fix, "missing file"))
            elif split == "test":
                triplets = read_queries(root / QUERY_FILE, labels, on_problem)
            else:
                index = CaptionIndex(list(captions.values()))
                ids = list(captions)
                triplets = [Triplet(ids[s], ids[t], ("",), ALL, row) for row, (s, t) in enumerate(index.epoch(random.Random("0,0")))]
                if labels.images and not triplets:
                    what = "no two captions differ by one word, so that there is nothing to train on."
                    on_problem(Problem("error", str(root / "labels"), what, "", "empty category"))
            summaries.append(SplitSummary.of(CategorySplit(ALL, split, tuple(triplets), tuple(captions))))
            paths |= {id: path for path, id in labels.by_path.items()}
        finder = PathFinder(paths, _image_folders(root, images), by_folder=True)
        found = finder.find_all(sorted(paths))
        for image_id, picture in found.items():
            if picture is None:
                what = "missing picture."
                on_problem(Problem("error", f"{finder.folder}/{paths[image_id]}", what, "", "missing image"))
        return Inspection(cls.name, summaries, found, images or root)


def _image_folders(root: Path, images: Path | None) -> list[Path]:
    return [images] if images is not None else [folder for folder in (root, root / "images") if folder.is_dir()]
