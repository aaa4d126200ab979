"""The contract of a dataset for composed retrieval, as one call."""

from __future__ import annotations

from collections.abc import Mapping

from tf_fashion.core import files
from tf_fashion.core.errors import TfFashionError, UsageError
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
