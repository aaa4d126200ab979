"""Disk to records: datasets for retrieval, each able to check its own tree.

dataset = open_composed("data/fashion_iq", images="photos")
part = dataset.get("dress", "train")
part.triplets[0].captions, dataset.image_path(part.gallery[0])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tf_fashion.core.errors import UsageError
from tf_fashion.datasets.attributes import AttributeCatalogue, AttributeDataset, AttributeRecord, open_attributes
from tf_fashion.datasets.catalogue import Catalogue, ComposedCatalogue, Item
from tf_fashion.datasets.check import CheckReport, check_tree, find_dataset
from tf_fashion.datasets.concepts import ConceptVocabulary
from tf_fashion.datasets.fashion200k import Fashion200k
from tf_fashion.datasets.fashion_gen import FashionGen
from tf_fashion.datasets.fashion_iq import FashionIQ
from tf_fashion.datasets.image_text import ImageTextDataset, ImageTextPair, TextCatalogue, TextQuery, open_image_text
from tf_fashion.datasets.imaterialist import Imaterialist
from tf_fashion.datasets.labels import Label, LabelMap
from tf_fashion.datasets.records import (
    DATASETS,
    CategorySplit,
    ComposedDataset,
    Problem,
    ReducedDataset,
    Triplet,
    existing_folder,
)
from tf_fashion.datasets.shoes import Shoes
from tf_fashion.datasets.street_to_shop import PhotoDomain, StreetToShop, open_street_to_shop

__all__ = [
    "DATASETS",
    "AttributeCatalogue",
    "AttributeDataset",
    "AttributeRecord",
    "Catalogue",
    "CategorySplit",
    "CheckReport",
    "ComposedCatalogue",
    "ComposedDataset",
    "ConceptVocabulary",
    "Fashion200k",
    "FashionGen",
    "FashionIQ",
    "ImageTextDataset",
    "ImageTextPair",
    "Imaterialist",
    "Item",
    "Label",
    "LabelMap",
    "PhotoDomain",
    "Problem",
    "ReducedDataset",
    "Shoes",
    "StreetToShop",
    "TextCatalogue",
    "TextQuery",
    "Triplet",
    "check_tree",
    "open_attributes",
    "open_composed",
    "open_dataset",
    "open_image_text",
    "open_street_to_shop",
]


def open_dataset(name: str, root: str | Path, images: str | Path | None = None, **options: Any) -> Any:
    """Opens a dataset of any registered kind.

    Args:
        name: Name in `DATASETS`, or "auto" to recognise the tree.
        root: Folder of the dataset.
        images: Folder of the pictures, where they are not in the dataset's own place.
        **options: Passed on to the class.

    Raises:
        UsageError: no such folder or name.
        DataError: the tree is not recognised, or broken.
    """
    root = existing_folder(root, "the folder of a dataset")
    return find_dataset(root, name)(root, images=images, **options)


def open_composed(
    root: str | Path, images: str | Path | None = None, categories: Sequence[str] | None = None, name: str = "auto"
) -> ComposedDataset:
    """Opens a dataset for composed retrieval (picture + sentence -> picture).

    Args:
        root: Folder of the dataset.
        images: Folder of the pictures, where they are not in the dataset's own place.
        categories: Which categories; default all.
        name: Name in `DATASETS`, or "auto".

    Raises:
        UsageError: no such folder, name or category; or the named dataset has no triplets.
        DataError: the tree is not recognised, or broken.
    """
    root = existing_folder(root, "the folder of a dataset")
    cls = find_dataset(root, name, ComposedDataset)
    if not issubclass(cls, ComposedDataset):
        composed = ", ".join(known for known in DATASETS if issubclass(DATASETS.get(known), ComposedDataset))
        raise UsageError(f"The dataset {name!r} has no triplets (reference, sentence, target). Known with triplets: {composed}.")
    return cls(root, images=images, categories=categories)
