"""The contracts of datasets for composed retrieval and for attribute prediction, each as one call."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tf_fashion.core import files
from tf_fashion.core.errors import TfFashionError, UsageError
from tf_fashion.datasets.attributes import AttributeDataset
from tf_fashion.datasets.labels import LabelMap
from tf_fashion.datasets.records import ComposedDataset


def _require(condition: object, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _require_usage_error(call: object, message: str) -> None:
    try:
        call()  # type: ignore[operator]
    except UsageError:
        return
    raise AssertionError(message)


def run_dataset_test(
    dataset: ComposedDataset,
    expected_counts: Mapping[tuple[str, str], tuple[int, int]] | None = None,
    pictures: int = 20,
) -> None:
    """Checks that `dataset` keeps the promises of `ComposedDataset`.

    Categories and splits are named and ordered; every split has typed triplets with safe ids, at least one filled caption, and
    targets inside a gallery of unique ids; reading twice gives the same object; pictures are found inside the images folder;
    the data hash is stable and depends on the splits; `without_images` leaves out what it says and counts it; unknown names
    raise `UsageError`.

    Args:
        dataset: The dataset.
        expected_counts: (category, split) -> (number of triplets, size of the gallery), checked if given.
        pictures: How many pictures of each split to look for; 0 for data without pictures.

    Raises:
        AssertionError: a promise is broken; the message says which and where.
    """
    _require(isinstance(dataset, ComposedDataset), f"expected a ComposedDataset, found {type(dataset).__name__}")
    _require(bool(dataset.name), "the dataset has no name")
    _require(bool(dataset.categories), "the dataset has no categories")
    _require(len(set(dataset.categories)) == len(dataset.categories), "a category occurs twice")
    _require_usage_error(lambda: dataset.get("no-such-category", "train"), "an unknown category must raise UsageError")
    _require_usage_error(lambda: dataset.image_ids(["no-such-split"]), "an unknown split must raise UsageError")

    pairs = [(category, split) for category in dataset.categories for split in dataset.splits(category)]
    _require(bool(pairs), "the dataset has no splits")
    _require(set(dataset.splits()) == {split for _, split in pairs}, "splits() must be the union over the categories")
    for category, split in pairs:
        where = f"{category} {split}"
        part = dataset.get(category, split)
        _require(part is dataset.get(category, split), f"{where}: reading twice must give the same object")
        _require((part.category, part.split) == (category, split), f"{where}: the split has other names")
        _require(bool(part.triplets) and bool(part.gallery), f"{where}: empty")
        _require(len(set(part.gallery)) == len(part.gallery), f"{where}: the gallery holds an id twice")
        gallery = set(part.gallery)
        for triplet in part.triplets:
            row = f"{where} row {triplet.row}"
            _require(triplet.category == category, f"{row}: another category")
            _require(bool(triplet.captions) and all(isinstance(text, str) for text in triplet.captions), f"{row}: bad captions")
            _require(any(text.strip() for text in triplet.captions), f"{row}: all captions are empty")
            _require(triplet.target is None or triplet.target in gallery, f"{row}: the target is not in the gallery")
            _require(triplet.reference != triplet.target, f"{row}: reference and target are the same")
        _require(split == "test" or part.has_targets, f"{where}: a target is missing")
        for image_id in part.image_ids:
            files.check_id(image_id, where)
        for image_id in sorted(part.image_ids)[:pictures]:
            path = dataset.image_path(image_id)
            _require(path.is_file() and path.is_relative_to(dataset.images_root), f"{where}: {path} is no picture of the dataset")
    if expected_counts is not None:
        counts = {pair: (len(dataset.get(*pair).triplets), len(dataset.get(*pair).gallery)) for pair in pairs}
        _require(counts == dict(expected_counts), f"expected the counts {dict(expected_counts)}, found {counts}")

    ids = dataset.image_ids()
    _require(ids == sorted(set(ids)), "image_ids() must be sorted and unique")
    for bad in ("../outside", "a/b", ""):
        try:
            dataset.image_path(bad)
        except TfFashionError:
            continue
        raise AssertionError(f"image_path({bad!r}) must raise")
    _require(dataset.data_hash() == dataset.data_hash(), "the data hash must be stable")

    category, split = pairs[0]
    part = dataset.get(category, split)
    if len({triplet.reference for triplet in part.triplets}) > 1:
        bad = part.triplets[0].reference
        reduced = dataset.without_images([bad], [split])
        small = reduced.get(category, split)
        _require(bad not in small.image_ids, "without_images: the picture is still there")
        _require(
            len(small.triplets) + small.dropped_triplets == len(part.triplets) and small.dropped_triplets > 0,
            "without_images: dropped triplets are not counted",
        )
        _require(len(small.gallery) + len(small.missing) == len(part.gallery), "without_images: the gallery is not accounted for")
        _require(reduced.data_hash([split]) != dataset.data_hash([split]), "without_images: the data hash must change")
        _require(bool(reduced.report()), "without_images: nothing reported")


def run_attribute_dataset_test(
    dataset: AttributeDataset, expected_counts: Mapping[str, tuple[int, int]] | None = None, pictures: int = 20
) -> None:
    """Checks that `dataset` keeps the promises of `AttributeDataset`.

    The label map survives its configuration; every split has records with safe ids, each once, and labels of the map; targets say
    what the records say; reading twice gives the same object; pictures exist; exclusive tasks are exclusive; the data hash is stable;
    `without_images` leaves out what it says and reports it; unknown names raise `UsageError`.

    Args:
        dataset: The dataset.
        expected_counts: Split -> (number of records, number of labels over all of them), checked if given.
        pictures: How many pictures of each split to look for; 0 for data without pictures.

    Raises:
        AssertionError: a promise is broken; the message says which and where.
    """
    _require(isinstance(dataset, AttributeDataset), f"expected an AttributeDataset, found {type(dataset).__name__}")
    _require(bool(dataset.name), "the dataset has no name")
    labels = dataset.label_map
    _require(LabelMap.from_config(labels.to_config()) == labels, "the label map changes on its way through its configuration")
    positions = np.sort(np.concatenate([labels.groups[task] for task in labels.tasks]))
    _require(np.array_equal(positions, np.arange(len(labels))), "the groups must hold every position once")
    _require(bool(dataset.splits()), "the dataset has no splits")
    _require_usage_error(lambda: dataset.records("no-such-split"), "an unknown split must raise UsageError")
    _require_usage_error(lambda: dataset.image_ids(["no-such-split"]), "an unknown split must raise UsageError")
    _require(dataset.default_split is None or dataset.has_labels(dataset.default_split), "the default split has no labels")

    counts = {}
    for split in dataset.splits():
        records = dataset.records(split)
        _require(records is dataset.records(split), f"{split}: reading twice must give the same object")
        ids = [record.image_id for record in records]
        counts[split] = (len(records), sum(len(record.label_ids) for record in records))
        _require(bool(ids) and ids == dataset.image_ids(split), f"{split}: empty, or an id occurs twice")
        for record in records:
            files.check_id(record.image_id, split)
            _require(len(set(record.label_ids)) == len(record.label_ids), f"{split}: {record.image_id} has a label twice")
            _require(all(number in labels for number in record.label_ids), f"{split}: {record.image_id} has an unknown label")
        for path in dataset.image_paths(ids[:pictures]).values():
            _require(path.is_file(), f"{split}: {path} is no picture")
        if dataset.has_labels(split):
            _require_same_labels(dataset, split)
    if expected_counts is not None:
        _require(counts == dict(expected_counts), f"expected the counts {dict(expected_counts)}, found {counts}")
    for bad in ("../outside", "a/b", ""):
        try:
            dataset.image_path(bad)
        except TfFashionError:
            continue
        raise AssertionError(f"image_path({bad!r}) must raise")
    _require(dataset.data_hash() == dataset.data_hash(), "the data hash must be stable")

    split = dataset.splits()[0]
    ids = dataset.image_ids(split)
    if len(ids) > 1:
        reduced = dataset.without_images(ids[:1])
        _require(reduced.image_ids(split) == ids[1:], "without_images: the picture is still there, or others are gone")
        _require(reduced.label_map == labels, "without_images: the label map must stay")
        _require(reduced.data_hash([split]) != dataset.data_hash([split]), "without_images: the data hash must change")
        _require(len(reduced.report()) > len(dataset.report()), "without_images: nothing reported")


def _require_same_labels(dataset: AttributeDataset, split: str) -> None:
    labels, records = dataset.label_map, dataset.records(split)
    ids, targets = dataset.targets(split)
    _require(ids == [record.image_id for record in records], f"{split}: targets in another order than records")
    _require(targets.dtype == np.float32 and targets.shape == (len(ids), len(labels)), f"{split}: targets of another shape or type")
    for record, vector in zip(records, targets, strict=True):
        same = np.array_equal(labels.encode(record.label_ids), vector)
        _require(same and set(labels.ids_of_vector(vector)) == set(record.label_ids), f"{split}: other targets of {record.image_id}")
    unknown = dataset.targets(split, unknown=True)[1]
    _require(np.array_equal(unknown == 1, targets == 1), f"{split}: unknown labels change the known ones")
    for task, places in labels.groups.items():
        without = ~targets[:, places].any(axis=1)
        _require(np.array_equal((unknown[:, places] == -1).all(axis=1), without), f"{split}: {task} is unknown in the wrong places")
    for task in dataset.exclusive_groups(split):
        _require(targets[:, labels.groups[task]].sum(axis=1).max() <= 1, f"{split}: {task} is not exclusive")
