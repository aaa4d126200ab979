"""Pseudo-labels across meta-domains: which shop photos of an unlabelled set stand for products of a labelled one (no TensorFlow).

    clusters = cluster_groups(source_shop, target_shop, DEEPFASHION_TO_STREET2SHOP)
    labels = pseudo_labels(source_consumer, source_shop, target_shop, DEEPFASHION_TO_STREET2SHOP, "ws5", clusters=clusters)

The source has consumer and shop photos of known products, of the target only shop photos are used. Shop photos of both are clustered
together, category group by category group (FINCH, cosine). A cluster that holds photos of a source product gives its target photos to
that product; so a source consumer photo gets positives from the target's shop. The strategies differ in who gets which photos:

| strategy | target photos of a source product |
|---|---|
| `unweighted` | all of every cluster with a shop photo of the product; a photo can serve many products |
| `ws5` | those of clusters where it has the greatest share of its shop photos, if it is the most similar such product (published) |
| `ws6` | by `ws5` each target product follows its most similar photo, and the product takes the best target product, whole |
| `ws7` | without clusters: prototypes of all products, matched one to one in rounds of mutual choice |
| `ws8` | the matches of `ws7`, combined like `ws6` |
| `soft` | as `unweighted`, with weights from the similarity to the product's prototype in the cluster (not in the original) |

`ws6`, `ws7` and `ws8` use the target's product ids, `unweighted`, `ws5` and `soft` do not. All use the target's coarse categories, by
the groups of the alignment; `CategoryAlignment.single` does without.

UDMA: Sharma, Murray, Larlus, Sarfraz, Stiefelhagen, Csurka, "Unsupervised Meta-Domain Adaptation for Fashion Retrieval" (WACV 2021).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import atomic_write, replaced_file

STRATEGIES = ("ws5", "ws6", "ws7", "ws8", "soft", "unweighted")
_NEEDS_CLUSTERS = ("ws5", "ws6", "soft", "unweighted")
# Numbers of made-up products begin this far above the number of the source's products.
_NEW_PRODUCTS = 100
_BLOCK_VALUES = 2**24


@dataclass(frozen=True, eq=False)
class Domain:
    """The photos of one meta-domain: consumer or shop photos of the source, shop photos of the target.

    Attributes:
        products: int64 (n,), product numbers from 0, unique over categories.
        categories: int64 (n,), category numbers from 0, in the data set's own numbering.
        features: float32 (n, dim), or None where only the lists are needed (consumer photos).
        name: For messages.

    Raises:
        UsageError: shapes that do not fit, or numbers that are no whole numbers from 0.
        DataError: NaN or infinity in the features; the message names the rows.
    """

    products: np.ndarray
    categories: np.ndarray
    features: np.ndarray | None = field(default=None, repr=False)
    name: str = "domain"

    def __post_init__(self) -> None:
        for what in ("products", "categories"):
            values = np.asarray(getattr(self, what))
            if values.ndim != 1 or (values.size and (values.dtype.kind not in "iu" or values.min() < 0)):
                raise UsageError(f"{self.name}: {what} must be whole numbers from 0, one per row; got {values.dtype} {values.shape}.")
            object.__setattr__(self, what, values.astype(np.int64))
        if len(self.products) != len(self.categories):
            raise UsageError(
                f"{self.name}: {len(self.products)} products and {len(self.categories)} categories; expected one of each a row."
            )
        if self.features is None:
            return
        features = np.asarray(self.features)
        if features.ndim != 2 or features.dtype.kind not in "fiu" or len(features) != len(self.products):
            raise UsageError(
                f"{self.name}: features must be ({len(self.products)}, dim), one row per product number; "
                f"got {features.dtype} {features.shape}."
            )
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if len(bad):
            shown = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
            raise DataError(
                f"{self.name}: expected finite features, found NaN or infinity in {len(bad)} row(s) ({shown}). Extract them anew."
            )
        object.__setattr__(self, "features", features.astype(np.float32, copy=False))

    def __len__(self) -> int:
        return len(self.products)


@dataclass(frozen=True)
class CategoryGroup:
    """Categories that are clustered together.

    Attributes:
        name: For messages and files.
        target: Category numbers of the target.
        source: Category numbers of the source; their order is that of the rows. Empty for categories that the source does not have.
    """

    name: str
    target: tuple[int, ...]
    source: tuple[int, ...] = ()


@dataclass(frozen=True)
class CategoryAlignment:
    """Which categories of the target belong to which of the source.

    Attributes:
        groups: Groups with source categories.
        target_only: Groups without; they only serve as clusters of their own (L3 of the original).

    Raises:
        UsageError: two groups of one name, a group without a target category or on the wrong list, a target category in two groups.
    """

    groups: tuple[CategoryGroup, ...]
    target_only: tuple[CategoryGroup, ...] = ()

    def __post_init__(self) -> None:
        every = (*self.groups, *self.target_only)
        names = [group.name for group in every]
        categories = [number for group in every for number in group.target]
        for kind, values in (("name", names), ("target category", [str(number) for number in categories])):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise UsageError(f"The {kind} {', '.join(twice)} is in two groups of the alignment. Each belongs to one.")
        for group in every:
            aligned = group in self.groups
            if not group.target or bool(group.source) != aligned:
                rule = "a target and a source category" if aligned else "a target category and no source category"
                raise UsageError(f"The group {group.name!r} of the alignment needs {rule}.")

    @classmethod
    def of(cls, aligned: Mapping[int, Sequence[int]], target_only: Iterable[int] = (), names: Sequence[str] = ()) -> CategoryAlignment:
        """A group per target category: `of({2: (8, 9, 11), 6: (20,)}, target_only=(0, 1))`; `names` by category number."""

        def name(number: int) -> str:
            return names[number] if 0 <= number < len(names) else str(number)

        groups = tuple(CategoryGroup(name(number), (int(number),), tuple(map(int, source))) for number, source in aligned.items())
        return cls(groups, tuple(CategoryGroup(name(number), (int(number),)) for number in target_only))

    @classmethod
    def single(cls, source: Iterable[int], target: Iterable[int]) -> CategoryAlignment:
        """One group of all categories: nothing of the target's labels is used."""
        return cls((CategoryGroup("all", tuple(sorted(set(map(int, target)))), tuple(sorted(set(map(int, source))))),))

    @classmethod
    def by_name(cls, source: Mapping[int, str], target: Mapping[int, str]) -> CategoryAlignment:
        """A group per target category, with the source categories of the same name (case, blanks, '-' and '_' do not matter).

        Args:
            source, target: Category number -> name.

        Raises:
            UsageError: no name is in both.
        """
        of_name: dict[str, list[int]] = {}
        for number, name in source.items():
            of_name.setdefault(_plain(name), []).append(number)
        aligned = {number: of_name[_plain(name)] for number, name in target.items() if _plain(name) in of_name}
        if not aligned:
            found = f"{', '.join(sorted(set(source.values()))[:5])} and {', '.join(sorted(set(target.values()))[:5])}"
            raise UsageError(f"No category of the target has the name of one of the source: {found}. Say which belong together.")
        groups = tuple(CategoryGroup(target[number], (number,), tuple(numbers)) for number, numbers in aligned.items())
        return cls(groups, tuple(CategoryGroup(name, (number,)) for number, name in target.items() if number not in aligned))


DEEPFASHION_TO_STREET2SHOP = CategoryAlignment.of(
    {2: (8, 9, 11), 6: (20,), 7: (1, 15), 8: (3, 21), 9: (10, 12), 10: (13, 14, 16, 17, 18, 19)},
    target_only=(0, 1, 3, 4, 5),
    names=("belts", "bags", "dresses", "eyewear", "footwear", "hats", "leggings", "outerwear", "pants", "skirts", "tops"),
)
"""DeepFashion's categories (numbered from 0 to 22) and Street2Shop's (from 0 to 10), as UDMA aligns them."""


@dataclass(frozen=True, eq=False)
class GroupClusters:
    """The clusters of one group.

    Attributes:
        rows: int64 (n,), rows of [source shop; target shop]: those of the source, then those of the target.
        labels: int32 (n, partitions), from the finest to the coarsest.
    """

    rows: np.ndarray
    labels: np.ndarray

    def partition(self, number: int, name: str = "") -> np.ndarray:
        """int32 (n,): the labels of one partition.

        Raises:
            UsageError: there is no such partition.
        """
        count = self.labels.shape[1]
        if not 0 <= number < count:
            raise UsageError(
                f"There is no partition {number} of {name or 'these rows'}: FINCH found {count}, and 0 is the finest. Take one of them."
            )
        return self.labels[:, number]


@dataclass(frozen=True, eq=False)
class Lists:
    """Lists of rows of different lengths, one per product.

    Attributes:
        splits: int64 (n + 1,); list i is `rows[splits[i]:splits[i + 1]]`.
        rows: int64.
    """

    splits: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, lists: Iterable[Sequence[int] | np.ndarray]) -> Lists:
        """From one sequence per product."""
        parts = [np.asarray(entry, np.int64) for entry in lists]
        splits = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        return cls(splits, np.concatenate(parts) if parts else np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.splits) - 1

    def __getitem__(self, number: int) -> np.ndarray:
        return self.rows[self.splits[number] : self.splits[number + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """int64 (n,): how many rows each list has."""
        return np.diff(self.splits)


@dataclass(frozen=True, eq=False)
class Matches:
    """Which photos or products of the target belong to which product of the source.

    Attributes:
        rows: int64 (m,), rows of the target's shop; None where whole products are matched (`ws7`).
        target_products, source_products: int64 (m,).
        similarity: float32 (m,), cosine of the photo (or the product's prototype) to the source product's prototype.
    """

    rows: np.ndarray | None
    target_products: np.ndarray
    source_products: np.ndarray
    similarity: np.ndarray

    def __len__(self) -> int:
        return len(self.source_products)

    def write_csv(self, path: str | Path, source_shop: Domain) -> Path:
        """Writes the original's file, without header: `row, target product, source product, similarity` (without the row for `ws7`).

        There, target rows are counted on from the source's shop rows, and target products from its greatest product number.
        """
        first, last = _offsets(source_shop)
        with atomic_write(path) as file:
            writer = csv.writer(file, lineterminator="\n")
            for number in range(len(self)):
                row = [] if self.rows is None else [int(self.rows[number]) + first]
                products = int(self.target_products[number]) + last, int(self.source_products[number])
                writer.writerow([*row, *products, repr(float(self.similarity[number]))])
        return Path(path)

    @classmethod
    def read_csv(cls, path: str | Path, source_shop: Domain, target_shop: Domain) -> Matches:
        """Reads a file of `write_csv` or of the original (`L12_WS5_WS6_0.csv`, `L12_WS6_0.csv`, `WS7.csv`).

        Raises:
            DataError: no such file, rows of another number of columns, no numbers, rows or products that the domains do not have, or a
                row whose target product is another one's; the message names the line.
        """
        path = Path(path)
        try:
            lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path}: cannot be read ({error}).") from None
        first, last = _offsets(source_shop)
        known = set(target_shop.products.tolist()), set(source_shop.products.tolist())
        numbers: list[list[float]] = []
        width = len(lines[0]) if lines else 4
        if width not in (3, 4):
            raise DataError(
                f"{path}, line 1: expected 4 columns (row, target product, source product, similarity) or 3, found {width}."
            )
        for line, cells in enumerate(lines, start=1):
            where = f"{path}, line {line}"
            try:
                values = [float(cell) for cell in cells]
            except ValueError:
                raise DataError(f"{where}: expected {width} numbers, found {','.join(cells)!r}.") from None
            if len(values) != width or not np.isfinite(values).all() or any(value != int(value) for value in values[:-1]):
                raise DataError(f"{where}: expected {width - 1} whole numbers and a similarity, found {','.join(cells)!r}.")
            target, source = int(values[-3]) - last, int(values[-2])
            for product, these, what in (
                (target, known[0], f"target product {target + last}"),
                (source, known[1], f"source product {source}"),
            ):
                if product not in these:
                    raise DataError(f"{where}: the {what} is not in the lists. The file belongs to other lists.")
            if width == 4:
                row = int(values[0]) - first
                if not 0 <= row < len(target_shop) or target_shop.products[row] != target:
                    raise DataError(
                        f"{where}: row {row + first} is no photo of target product {target + last}. The file belongs to other lists."
                    )
            numbers.append(values)
        table = np.array(numbers, np.float64).reshape(-1, width)
        rows = table[:, 0].astype(np.int64) - first if width == 4 else None
        return cls(rows, table[:, -3].astype(np.int64) - last, table[:, -2].astype(np.int64), table[:, -1].astype(np.float32))


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """What adaptation trains on: the source's products, each with its own photos and those attached to it.

    Attributes:
        strategy: One of `STRATEGIES`, or "none" (`without_target`).
        categories: int64 (n,), source category of each product; products are ordered by it.
        products: int64 (n,), product numbers, rising within a category.
        consumers: Rows of the source's consumer photos.
        shops: Rows of the source's shop photos.
        weak: Rows of the target's shop photos (from 0; the original counts on from the source's shop rows).
        weights: float32, one per entry of `weak.rows`, above 0; 1 for all strategies but `soft`.
        left_out: Products with consumer photos but without a shop photo, which cannot be trained on.
    """

    strategy: str
    categories: np.ndarray
    products: np.ndarray
    consumers: Lists
    shops: Lists
    weak: Lists
    weights: np.ndarray
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.products)

    @property
    def attached(self) -> np.ndarray:
        """bool (n,): products with photos of the target."""
        return self.weak.lengths > 0

    def of_category(self, category: int) -> np.ndarray:
        """int64: numbers of the products of a source category, to index the lists."""
        return np.flatnonzero(self.categories == category)

    def weights_of(self, number: int) -> np.ndarray:
        """float32: the weights of product `number`'s attached photos."""
        return self.weights[self.weak.splits[number] : self.weak.splits[number + 1]]

    def summary(self) -> dict[str, Any]:
        """Counts for logs and JSON."""
        return {
            "strategy": self.strategy,
            "products": len(self),
            "products_with_target_photos": int(self.attached.sum()),
            "target_photos": len(np.unique(self.weak.rows)),
            "attachments": len(self.weak.rows),
            "mean_weight": float(self.weights.mean()) if len(self.weights) else None,
            "left_out": self.left_out,
        }

    def save(self, path: str | Path) -> Path:
        """Writes an `.npz` of plain arrays."""
        path = Path(path)
        if path.suffix != ".npz":
            raise UsageError(f"Pseudo-labels are written to .npz files, not to {path.name!r}.")
        lists = {"consumers": self.consumers, "shops": self.shops, "weak": self.weak}
        arrays = {f"{name}_{part}": getattr(entry, part) for name, entry in lists.items() for part in ("splits", "rows")}
        arrays |= {"categories": self.categories, "products": self.products, "weights": self.weights}
        arrays |= {"strategy": np.array(self.strategy), "left_out": np.array(self.left_out)}
        with replaced_file(path, ".npz") as temporary:
            np.savez_compressed(temporary, allow_pickle=False, **arrays)
        return path

    @classmethod
    def load(cls, path: str | Path) -> PseudoLabels:
        """Reads what `save` wrote.

        Raises:
            DataError: not such a file, or lists that do not fit together.
        """
        path = Path(path)
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                data = {key: archive[key] for key in archive.files}
            lists = [Lists(data[f"{name}_splits"], data[f"{name}_rows"]) for name in ("consumers", "shops", "weak")]
            numbers = data["categories"], data["products"]
            labels = cls(str(data["strategy"]), *numbers, lists[0], lists[1], lists[2], data["weights"], int(data["left_out"]))
        except KeyError as error:
            raise DataError(f"{path}: expected pseudo-labels, found no array {error}.") from None
        except Exception as error:
            raise DataError(f"{path}: cannot be read as pseudo-labels ({error}).") from None
        count = len(labels.products)
        whole = all(len(e.splits) == count + 1 and e.splits[0] == 0 and (np.diff(e.splits) >= 0).all() for e in lists)
        if not whole or any(e.splits[-1] != len(e.rows) for e in lists) or len(labels.weights) != len(labels.weak.rows):
            raise DataError(f"{path}: the lists of the pseudo-labels do not fit together. Write the file anew.")
        return labels


@dataclass(frozen=True, eq=False)
class TargetClusters:
    """Made-up products of the target's own clusters (L3 of the original): one per photo, standing for the cluster that it is in.

    Members of a cluster get different numbers. That is the original's doing, whose training does not use them.

    Attributes:
        categories: int64 (n,), target category.
        products: int64 (n,), new numbers.
        rows: Rows of the target's shop photos.
    """

    categories: np.ndarray
    products: np.ndarray
    rows: Lists


def cluster_groups(
    source_shop: Domain,
    target_shop: Domain,
    alignment: CategoryAlignment,
    *,
    target_only: bool = False,
    **options: Any,
) -> dict[str, GroupClusters]:
    """Clusters the shop photos of both data sets, group by group, with FINCH (cosine).

    Args:
        source_shop, target_shop: With features.
        alignment: The groups; those without any target photo are left out.
        target_only: Whether to cluster the target's own groups as well.
        **options: Passed on to `tf_fashion.clustering.finch.finch`.

    Raises:
        UsageError: domains without features or with features of different widths; no group has photos.
    """
    # FINCH needs SciPy, the rest of this module does not.
    from tf_fashion.clustering.finch import finch

    vectors = _stacked(source_shop, target_shop)
    found: dict[str, GroupClusters] = {}
    for group in (*alignment.groups, *(alignment.target_only if target_only else ())):
        source = [np.flatnonzero(source_shop.categories == number) for number in group.source]
        target = [np.flatnonzero(target_shop.categories == number) + len(source_shop) for number in group.target]
        if not sum(map(len, target)):
            continue
        rows = np.concatenate([*source, *target]).astype(np.int64)
        if len(rows) > 1:
            labels = np.asarray(finch(vectors[rows], **{"metric": "cosine", **options}).labels, np.int32)
        else:
            labels = np.zeros((1, 1), np.int32)
        found[group.name] = GroupClusters(rows, labels)
    if not any(group.name in found for group in alignment.groups):
        raise UsageError(f"No photo of {target_shop.name} is in a category of the alignment. Check the category numbers.")
    return found


def pseudo_labels(
    source_consumer: Domain,
    source_shop: Domain,
    target_shop: Domain,
    alignment: CategoryAlignment,
    strategy: str = "ws5",
    *,
    partition: int = 0,
    clusters: Mapping[str, GroupClusters] | None = None,
    matches: Matches | None = None,
    temperature: float = 0.05,
    least_weight: float = 0.05,
    **finch_options: Any,
) -> PseudoLabels:
    """Runs the whole of a strategy, in memory: clusters (unless given), matches, and the lists to train on.

    Args:
        source_consumer: Consumer photos of the source; its features are not needed.
        source_shop, target_shop: Shop photos with features.
        alignment: Which categories belong together.
        strategy: One of `STRATEGIES`, see the module's text.
        partition: Which partition of FINCH, 0 (the finest, as published) and up.
        clusters: What `cluster_groups` gave, to be used by several strategies.
        matches: Matches to use in place of computed ones (read from the original's files); not for `unweighted` and `soft`.
        temperature: `soft` only: of the softmax over a cluster's products.
        least_weight: `soft` only: attachments with a smaller weight are left out.
        **finch_options: Passed on to FINCH.

    Raises:
        UsageError: an unknown strategy, domains that do not fit, no such partition, or numbers out of range.
        DataError: no source product has both consumer and shop photos, or one is in two categories.
    """
    if strategy not in STRATEGIES:
        raise UsageError(f"Unknown strategy {strategy!r}. Known: {', '.join(STRATEGIES)}.")
    if matches is not None and strategy in ("unweighted", "soft"):
        raise UsageError(f"Matches are given to ws5, ws6, ws7 and ws8; {strategy!r} has none.")
    if clusters is None and matches is None and strategy in _NEEDS_CLUSTERS:
        clusters = cluster_groups(source_shop, target_shop, alignment, **finch_options)
    weights: dict[int, np.ndarray] | None = None
    if strategy == "unweighted":
        weak = unweighted_rows(source_consumer, source_shop, alignment, clusters or {}, partition)
    elif strategy == "soft":
        parts = (source_consumer, source_shop, target_shop, alignment, clusters or {}, partition)
        weak, weights = soft_rows(*parts, temperature=temperature, least_weight=least_weight)
    else:
        if matches is None:
            if strategy in ("ws7", "ws8"):
                matches = product_matches(source_shop, target_shop, alignment)
            else:
                matches = cluster_matches(source_consumer, source_shop, target_shop, alignment, clusters or {}, partition)
        if strategy == "ws5":
            weak = rows_of_matches(matches)
        else:
            weak = rows_of_partners(best_of_products(matches) if strategy == "ws6" else matches, target_shop)
    return _assembled(strategy, source_consumer, source_shop, weak, weights)


def without_target(source_consumer: Domain, source_shop: Domain) -> PseudoLabels:
    """The source's products without any photo of the target: what the strategies have to be compared with.

    Raises:
        DataError: no product has both consumer and shop photos, or one is in two categories.
    """
    return _assembled("none", source_consumer, source_shop, {}, None)


def cluster_matches(
    source_consumer: Domain,
    source_shop: Domain,
    target_shop: Domain,
    alignment: CategoryAlignment,
    clusters: Mapping[str, GroupClusters],
    partition: int = 0,
) -> Matches:
    """The matches of `ws5`: each target photo of a cluster with source photos goes to one source product.

    In a cluster, a product's score is the share of its shop photos that lie there. Among the products of the greatest score the photo
    goes to the one with the most similar prototype (mean of its photos in the cluster, scaled to length one), on ties to the smallest
    number. Only clusters with a product that has consumer photos in one of the group's categories are looked at.

    Raises:
        UsageError: domains without features, or no such partition.
    """
    vectors = _stacked(source_shop, target_shop)
    numbers, photos = np.unique(source_shop.products, return_counts=True)
    share = 1.0 / photos
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for source, target, _ in _visited(source_consumer, source_shop, alignment, clusters, partition):
        owners, counts = np.unique(source_shop.products[source], return_counts=True)
        scores = counts * share[np.searchsorted(numbers, owners)]
        best = owners[scores == scores.max()]
        similarity = _unit(vectors[target]) @ _prototypes(vectors, source, source_shop.products[source], best).T
        choice = similarity.argmax(axis=1)
        parts.append((target - len(source_shop), best[choice], similarity[np.arange(len(target)), choice]))
    if not parts:
        none = np.zeros(0, np.int64)
        return Matches(none, none, none, np.zeros(0, np.float32))
    rows, owners, values = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(rows, kind="stable")
    return Matches(rows[order], target_shop.products[rows[order]], owners[order], values[order].astype(np.float32))


def best_of_products(matches: Matches) -> Matches:
    """The matches of `ws6`: of each target product only its most similar photo's, by rising product number."""
    order = np.lexsort((np.arange(len(matches)), -matches.similarity, matches.target_products))
    first = order[np.unique(matches.target_products[order], return_index=True)[1]]
    rows = None if matches.rows is None else matches.rows[first]
    return Matches(rows, matches.target_products[first], matches.source_products[first], matches.similarity[first])


def product_matches(source_shop: Domain, target_shop: Domain, alignment: CategoryAlignment) -> Matches:
    """The matches of `ws7`: source and target products one to one, by prototypes and in rounds of mutual choice, across categories.

    In a round every target product that is left points to its most similar source product that is left, and each of these takes the
    most similar of those that point to it. Target products of the alignment's groups take part, and all source products.

    Raises:
        UsageError: domains without features.
    """
    vectors = _stacked(source_shop, target_shop)
    numbers = np.unique(source_shop.products)
    aligned = [number for group in alignment.groups for number in group.target]
    inside = np.flatnonzero(np.isin(target_shop.categories, aligned))
    members = np.unique(target_shop.products[inside])
    here = _prototypes(vectors, np.arange(len(source_shop)), source_shop.products, numbers)
    there = _prototypes(vectors, inside + len(source_shop), target_shop.products[inside], members)
    similarity = there @ here.T
    free = np.ones(len(numbers), bool)
    waiting = np.arange(len(members))
    choice = np.full(len(members), -1)
    value = np.zeros(len(members), np.float32)
    pairs: list[tuple[int, int, float]] = []
    while len(waiting) and free.any():
        # A choice stands until the product chosen is gone.
        again = waiting[(choice[waiting] < 0) | ~free[choice[waiting]]]
        places = np.flatnonzero(free)
        step = max(1, _BLOCK_VALUES // len(places))
        for start in range(0, len(again), step):
            rows = again[start : start + step]
            offered = similarity[rows] if free.all() else similarity[np.ix_(rows, places)]
            best = offered.argmax(axis=1)
            choice[rows], value[rows] = places[best], offered[np.arange(len(rows)), best]
        order = waiting[np.lexsort((waiting, -value[waiting], choice[waiting]))]
        winners = order[np.unique(choice[order], return_index=True)[1]]
        pairs += [(int(members[row]), int(numbers[choice[row]]), float(value[row])) for row in winners]
        free[choice[winners]] = False
        waiting = np.setdiff1d(waiting, winners)
    target, source, values = zip(*pairs, strict=True) if pairs else ((), (), ())
    return Matches(None, np.array(target, np.int64), np.array(source, np.int64), np.array(values, np.float32))


def rows_of_matches(matches: Matches) -> dict[int, np.ndarray]:
    """Source product -> target rows matched to it, rising.

    Raises:
        UsageError: matches of whole products.
    """
    if matches.rows is None:
        raise UsageError("These matches are of whole products and name no photos. Give matches with rows (4 columns).")
    order = np.lexsort((matches.rows, matches.source_products))
    owners, starts = np.unique(matches.source_products[order], return_index=True)
    return dict(zip(owners.tolist(), np.split(matches.rows[order], starts[1:]), strict=True)) if len(order) else {}


def rows_of_partners(matches: Matches, target_shop: Domain) -> dict[int, np.ndarray]:
    """Source product -> all rows of the most similar target product among those matched to it, rising."""
    order = np.lexsort((np.arange(len(matches)), -matches.similarity, matches.source_products))
    owners, firsts = np.unique(matches.source_products[order], return_index=True)
    partners = matches.target_products[order[firsts]]
    return {int(owner): np.flatnonzero(target_shop.products == partner) for owner, partner in zip(owners, partners, strict=True)}


def unweighted_rows(
    source_consumer: Domain,
    source_shop: Domain,
    alignment: CategoryAlignment,
    clusters: Mapping[str, GroupClusters],
    partition: int = 0,
) -> dict[int, np.ndarray]:
    """Source product -> target rows of every cluster with one of its shop photos, cluster by cluster; raises as `cluster_matches`."""
    found: dict[int, list[np.ndarray]] = {}
    for _, target, candidates in _visited(source_consumer, source_shop, alignment, clusters, partition):
        for product in candidates.tolist():
            found.setdefault(product, []).append(target - len(source_shop))
    return {product: np.concatenate(rows) for product, rows in found.items()}


def soft_rows(
    source_consumer: Domain,
    source_shop: Domain,
    target_shop: Domain,
    alignment: CategoryAlignment,
    clusters: Mapping[str, GroupClusters],
    partition: int = 0,
    *,
    temperature: float = 0.05,
    least_weight: float = 0.05,
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Source product -> target rows of its clusters, rising, and their weights float32.

    With s_p the cosine of a target photo to the prototype of product p in the cluster, and n_p the share of p's shop photos that lie
    there, the weight of the pair is max(s_p, 0) times the softmax of s_p / temperature + log n_p over the cluster's products. So a
    photo is divided among the products that it resembles, and a photo that resembles none counts little.

    Raises:
        UsageError: as `cluster_matches`; a temperature that is not above 0, or a least weight outside 0 to 1.
    """
    if not temperature > 0 or not 0 <= least_weight < 1:
        raise UsageError(f"temperature must be above 0 and least_weight from 0 to below 1, got {temperature!r} and {least_weight!r}.")
    vectors = _stacked(source_shop, target_shop)
    numbers, photos = np.unique(source_shop.products, return_counts=True)
    found: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for source, target, candidates in _visited(source_consumer, source_shop, alignment, clusters, partition):
        owners = source_shop.products[source]
        inside = np.searchsorted(np.sort(owners), candidates, "right") - np.searchsorted(np.sort(owners), candidates)
        share = inside / photos[np.searchsorted(numbers, candidates)]
        similarity = (_unit(vectors[target]) @ _prototypes(vectors, source, owners, candidates).T).astype(np.float64)
        logits = similarity / temperature + np.log(share)
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        weights = np.clip(similarity, 0, 1) * chances / chances.sum(axis=1, keepdims=True)
        for place, product in enumerate(candidates.tolist()):
            kept = np.flatnonzero((weights[:, place] >= least_weight) & (weights[:, place] > 0))
            if len(kept):
                found.setdefault(product, []).append((target[kept] - len(source_shop), weights[kept, place]))
    rows: dict[int, np.ndarray] = {}
    values: dict[int, np.ndarray] = {}
    for product, parts in found.items():
        every, weight = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(every, kind="stable")
        rows[product], values[product] = every[order], weight[order].astype(np.float32)
    return rows, values


def target_clusters(
    source_consumer: Domain,
    source_shop: Domain,
    target_shop: Domain,
    alignment: CategoryAlignment,
    clusters: Mapping[str, GroupClusters],
    partition: int = 0,
) -> TargetClusters:
    """The clusters of the target's own categories as made-up products (L3), of groups that `clusters` has (`target_only=True`).

    Raises:
        UsageError: no such partition.
    """
    categories: list[int] = []
    lists: list[np.ndarray] = []
    for group in alignment.target_only:
        if group.name not in clusters:
            continue
        entry = clusters[group.name]
        labels = entry.partition(partition, group.name)
        order = np.argsort(labels, kind="stable")
        starts = np.searchsorted(labels[order], np.arange(labels.max() + 2))
        for row, label in zip(entry.rows, labels, strict=True):
            categories.append(int(target_shop.categories[row - len(source_shop)]))
            lists.append(entry.rows[order[starts[label] : starts[label + 1]]] - len(source_shop))
    first = len(np.unique(source_consumer.products)) + _NEW_PRODUCTS
    return TargetClusters(np.array(categories, np.int64), first + np.arange(len(lists)), Lists.of(lists))


def _visited(
    source_consumer: Domain,
    source_shop: Domain,
    alignment: CategoryAlignment,
    clusters: Mapping[str, GroupClusters],
    partition: int,
) -> Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Clusters with photos of both data sets: rows of [source; target] that are the source's, those that are the target's, and the
    source products that have consumer photos in a category of the group. Clusters without such a product are passed over."""
    for group in alignment.groups:
        if group.name not in clusters:
            continue
        entry = clusters[group.name]
        labels = entry.partition(partition, group.name)
        asked = np.unique(source_consumer.products[np.isin(source_consumer.categories, group.source)])
        order = np.argsort(labels, kind="stable")
        bounds = np.searchsorted(labels[order], np.arange(labels.max() + 2))
        for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
            rows = entry.rows[order[start:stop]]
            source, target = rows[rows < len(source_shop)], rows[rows >= len(source_shop)]
            if not len(source) or not len(target):
                continue
            candidates = np.intersect1d(source_shop.products[source], asked)
            if len(candidates):
                yield source, target, candidates


def _assembled(
    strategy: str,
    source_consumer: Domain,
    source_shop: Domain,
    weak: Mapping[int, np.ndarray],
    weights: Mapping[int, np.ndarray] | None,
) -> PseudoLabels:
    consumers, shops = _grouped(source_consumer.products), _grouped(source_shop.products)
    order = np.argsort(source_consumer.products, kind="stable")
    sorted_products, sorted_categories = source_consumer.products[order], source_consumer.categories[order]
    split = np.flatnonzero((sorted_products[1:] == sorted_products[:-1]) & (sorted_categories[1:] != sorted_categories[:-1]))
    if len(split):
        raise DataError(f"{source_consumer.name}: product {sorted_products[split[0]]} is in two categories. Give it two numbers.")
    products, first = np.unique(sorted_products, return_index=True)
    categories = sorted_categories[first]
    kept = [place for place in np.lexsort((products, categories)) if int(products[place]) in shops]
    if not kept:
        raise DataError(f"No product has photos in both {source_consumer.name} and {source_shop.name}. Check that their numbers agree.")
    names = [int(products[place]) for place in kept]
    attached = [weak.get(name, np.zeros(0, np.int64)) for name in names]
    if weights is None:
        values = np.ones(sum(map(len, attached)), np.float32)
    else:
        values = np.concatenate([weights.get(name, np.zeros(0, np.float32)) for name in names]).astype(np.float32)
    return PseudoLabels(
        strategy,
        categories[kept],
        products[kept],
        Lists.of(consumers[name] for name in names),
        Lists.of(shops[name] for name in names),
        Lists.of(attached),
        values,
        len(products) - len(kept),
    )


def _grouped(numbers: np.ndarray) -> dict[int, np.ndarray]:
    """Number -> its rows, rising; numbers rise."""
    if not len(numbers):
        return {}
    order = np.argsort(numbers, kind="stable")
    found, starts = np.unique(numbers[order], return_index=True)
    return dict(zip(found.tolist(), np.split(order, starts[1:]), strict=True))


def _prototypes(vectors: np.ndarray, rows: np.ndarray, owners: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """float32 (wanted, dim): mean of the vectors of each wanted owner's rows, scaled to length one; `wanted` rises, each has a row."""
    inside = np.isin(owners, wanted)
    place = np.searchsorted(wanted, owners[inside])
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(wanted)))
    sums = np.add.reduceat(vectors[rows[inside][order]], starts, axis=0)
    counts = np.bincount(place, minlength=len(wanted)).astype(np.float32)
    return _unit(sums / counts[:, None])


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _stacked(source_shop: Domain, target_shop: Domain) -> np.ndarray:
    """float32 (n, dim): the features of [source shop; target shop].

    Raises:
        UsageError: one has none, or they differ in width.
    """
    parts: list[np.ndarray] = []
    for domain in (source_shop, target_shop):
        if domain.features is None or not len(domain):
            raise UsageError(f"{domain.name}: expected photos with features, found none.")
        parts.append(domain.features)
    if parts[0].shape[1] != parts[1].shape[1]:
        widths = f"{parts[0].shape[1]} and {parts[1].shape[1]}"
        raise UsageError(
            f"{source_shop.name} and {target_shop.name} have features of different widths: {widths}. Use one encoder for both."
        )
    return np.concatenate(parts)


def _offsets(source_shop: Domain) -> tuple[int, int]:
    """What the original's files add to target rows and to target products."""
    return len(source_shop), int(source_shop.products.max()) if len(source_shop) else 0


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter not in " -_")
