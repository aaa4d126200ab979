"""Consumer-to-shop evaluation of a model: embeddings of the test lists, rankings, and what `metrics.json` holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.street_lists import ProductPhoto
from tf_fashion.datasets.street_to_shop import PhotoDomain
from tf_fashion.inputs.feature_cache import FeatureTable
from tf_fashion.retrieval.multi_positive import StreetProtocol, StreetResult, evaluate, get_street_protocol
from tf_fashion.training.embedding import PictureEmbedder
from tf_fashion.training.street_config import SOURCES
from tf_fashion.training.street_data import StreetPhotos

# The protocol of a source's test lists where none is named.
DEFAULT_PROTOCOLS = {"df": "deepfashion-c2s", "s2s": "street2shop"}

FEATURES, CENTRED = "features alone", "features, each domain centred"


class AdapterEmbedder(PictureEmbedder):
    """Runs a `DomainAdapter` over photos or over their features."""

    def __init__(self, model: Any, batch_size: int = 32) -> None:
        if model.image_encoder is None:
            self.model, self.batch_size = model, batch_size
        else:
            super().__init__(model, batch_size)

    def features(self, rows: np.ndarray) -> np.ndarray:
        """Embeddings float32 `(n, dim)` of pooled vectors `(n, width)`."""
        return self.in_blocks(self.model.embed_features, rows, self.model.dim)

    def table(self, paths: Mapping[str, Any], progress: bool = True) -> FeatureTable:
        """Pooled vectors of photos, in memory."""
        return self.encode_photos(paths, progress)


@dataclass(frozen=True, eq=False)
class StreetTest:
    """The test lists of one source.

    Attributes:
        source: "df" or "s2s".
        protocol: How they are measured.
        queries, gallery: Consumer photos and shop photos.
    """

    source: str
    protocol: StreetProtocol
    queries: list[ProductPhoto] = field(repr=False)
    gallery: list[ProductPhoto] = field(repr=False)

    def measure(self, queries: np.ndarray, gallery: np.ndarray) -> StreetResult:
        """Measures embeddings in the order of the lists.

        Raises:
            DataError: no query has a photo of its product in the gallery.
        """
        lists = (self.queries, self.gallery)
        categories: list[Any] = [None, None]
        if self.protocol.scope == "category":
            categories = [np.array([photo.category for photo in photos], np.int64) for photos in lists]
        names: dict[int, str] = {}
        for photo in (*self.queries, *self.gallery):
            if photo.category is not None:
                names[photo.category] = names.get(photo.category) or photo.category_name
        known = {number: name or str(number) for number, name in names.items()}
        # Street2Shop numbers its products in each category anew.
        here, there = ([photo.identity for photo in photos] for photos in lists)
        return evaluate(queries, gallery, here, there, self.protocol, categories[0], categories[1], names=known)

    def check(self, root: Any) -> None:
        """Raises `DataError` if nothing can be measured: an empty list, or no query with a photo of its product in the gallery."""
        for photos, side in ((self.queries, "consumer"), (self.gallery, "shop")):
            if not photos:
                raise DataError(
                    f"{root}: no {side} photo is left in the test lists of {self.source}. Repair them, or leave it out of --test."
                )
        if {photo.identity for photo in self.queries}.isdisjoint(photo.identity for photo in self.gallery):
            query = self.queries[0]
            raise DataError(
                f"{root}: no consumer photo of the test lists of {self.source} has a shop photo of its product; {query.path} shows "
                f"product {query.identity}. Check that both lists have the same numbers, or leave {self.source} out of --test."
            )


def open_tests(
    photos: StreetPhotos, sources: tuple[str, ...] | None = None, protocol: str | None = None, ap: str | None = None
) -> list[StreetTest]:
    """The test lists that are there, or those asked for; the photos are noted as used.

    Raises:
        UsageError: a source without test lists, a protocol by categories for lists that have none.
        DataError: a list that cannot be read, or by which nothing can be measured.
    """
    there = photos.source.domains("test") if "test" in photos.splits() else []
    both = [s for s in SOURCES if all(PhotoDomain(s, side) in there for side in ("consumer", "shop"))]  # type: ignore[arg-type]
    missing = [source for source in sources or () if source not in both]
    if missing:
        raise UsageError(
            f"--test {missing[0]}: {photos.source.root} has no consumer and shop lists of it. Found: {', '.join(both) or 'none'}."
        )
    tests = []
    for source in dict.fromkeys(sources or both):
        chosen = get_street_protocol(protocol or DEFAULT_PROTOCOLS[source], **({"ap": ap} if ap else {}))
        queries, gallery = (photos.photos("test", PhotoDomain(source, side)) for side in ("consumer", "shop"))  # type: ignore[arg-type]
        if chosen.scope == "category" and any(photo.category is None for photo in (*queries, *gallery)):
            raise UsageError(
                f"--protocol {chosen.name} ranks within categories, which the test lists of {source} do not have. Take "
                "deepfashion-c2s or cross-domain, or --test s2s."
            )
        photos.use("test", [*queries, *gallery])
        tests.append(StreetTest(source, chosen, queries, gallery))
        tests[-1].check(photos.source.root)
    return tests


def refresh(tests: list[StreetTest], photos: StreetPhotos) -> list[StreetTest]:
    """The tests without the photos that are left out by now.

    Raises:
        DataError: nothing is left to measure.
    """
    sides = ("consumer", "shop")
    left = [
        StreetTest(t.source, t.protocol, *(photos.photos("test", PhotoDomain(t.source, side)) for side in sides))  # type: ignore[arg-type]
        for t in tests
    ]
    for test in left:
        test.check(photos.source.root)
    return left


Rows = Callable[[list[ProductPhoto]], np.ndarray]


def measure_tests(tests: list[StreetTest], rows: Rows, centred: bool = False) -> dict[str, StreetResult]:
    """Source -> result; `rows` gives the vectors of photos. With `centred` each list's own mean is taken off its unit vectors first."""
    found = {}
    for test in tests:
        sides = [np.asarray(rows(photos), np.float32) for photos in (test.queries, test.gallery)]
        if centred:
            sides = [side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12) for side in sides]
            sides = [side - side.mean(axis=0) for side in sides]
        found[test.source] = test.measure(*sides)
    return found


def summarise_street(
    results: Mapping[str, StreetResult], run: Mapping[str, Any], compared: Mapping[str, Mapping[str, StreetResult]] | None = None
) -> dict[str, Any]:
    """Content of `metrics.json`: the first source's numbers as every result has them, and those of all sources and comparisons.

    Args:
        results: Source -> result of the model.
        run: Facts about the run.
        compared: Name of what the model is compared with -> source -> result.
    """
    summaries = {source: result.summary() for source, result in results.items()}
    first = next(iter(results))
    for summary in summaries.values():
        del summary["run"]
    return {
        **summaries[first],
        "test": first,
        "tests": summaries,
        "compared": {
            name: {source: {k: v for k, v in result.summary().items() if k != "run"} for source, result in entry.items()}
            for name, entry in (compared or {}).items()
        },
        "run": dict(run),
    }
