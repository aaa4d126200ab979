"""Consumer-to-shop retrieval: several right answers per query, per category and overall (no TensorFlow needed).

    result = evaluate(queries, gallery, query_ids, gallery_ids, "street2shop", query_categories, gallery_categories)
    result.overall["mAP"], result.by_category["dresses"]["R@1"]

Every query picture is ranked against all shop pictures (DeepFashion) or against those of its category (Street2Shop); those of the same
product are right. Products are compared as strings. Queries without any right picture are left out, and counted.

Ranks are counts of greater scores, nothing is sorted. The scores of some queries with the whole gallery are held at a time, within a
budget; each is computed once. BLAS rounds a column of a product by its place, so that copies of a picture could lose their tie: equal
gallery rows are found beforehand and given the score of the first of them.

Two definitions of average precision are in use. The `trapezoid` of the Oxford and Market-1501 programs, which UDMA's scripts have,
gives 1 / (2 r) for a single right answer at rank r > 1, the `standard` one 1 / r; so protocols say which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import hash_json
from tf_fashion.retrieval.ranks import PositiveRanks, RankCounts

AveragePrecision = Literal["trapezoid", "standard"]
Scope = Literal["all", "category"]
TieRule = Literal["stable", "optimistic", "pessimistic"]
KIND = "multi_positive"
KS = (1, 5, 10, 20, 50)

SCORE_BYTES = 512 * 2**20
_QUERY_BLOCK = 1024
_CAST_BYTES = 128 * 2**20
# Rows this near to length one are taken as they are.
_UNIT = 1e-6
# Positives per query from which one pass over a row of scores serves all of them.
_MANY = 24


@dataclass(frozen=True)
class StreetProtocol:
    """Everything that decides what a number of consumer-to-shop retrieval means.

    Attributes:
        name: Short name; not part of the meaning.
        dataset: The dataset's name.
        split: "test", "val", ...
        scope: What a query is ranked against: "all" shop pictures, or those of its "category".
        ap: Definition of average precision: "trapezoid" or "standard".
        ks: Cut-offs of R@K, the share of queries with a right picture among the first K.
        selected: Names of the categories whose mean is printed beside that of all; only with scope "category".
        tie: Among equal scores: "stable" (gallery order), "optimistic" and "pessimistic" (right ones first or last).
        original_ids: Numbers the products of queries and gallery separately, as UDMA's MATLAB script for DeepFashion does: right only
            where both have the same products.

    Raises:
        UsageError: a value that is not listed above.
    """

    name: str = "consumer-to-shop"
    dataset: str = "deepfashion"
    split: str = "test"
    scope: Scope = "all"
    ap: AveragePrecision = "trapezoid"
    ks: tuple[int, ...] = KS
    selected: tuple[str, ...] = ()
    tie: TieRule = "stable"
    original_ids: bool = False

    def __post_init__(self) -> None:
        for attribute, kind in (("scope", Scope), ("ap", AveragePrecision), ("tie", TieRule)):
            if getattr(self, attribute) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise UsageError(f"Protocol {self.name!r}: {attribute} must be one of {known}; got {getattr(self, attribute)!r}.")
        for attribute in ("name", "dataset", "split"):
            if not isinstance(getattr(self, attribute), str) or not getattr(self, attribute):
                raise UsageError(f"Protocol: {attribute} must be a non-empty string, got {getattr(self, attribute)!r}.")
        object.__setattr__(self, "ks", tuple(self.ks))
        object.__setattr__(self, "selected", tuple(self.selected))
        if not self.ks or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in self.ks):
            raise UsageError(f"Protocol {self.name!r}: ks must be whole numbers of at least 1, got {self.ks!r}.")
        if self.selected and self.scope != "category":
            raise UsageError(f"Protocol {self.name!r}: selected categories need scope='category'.")
        if self.original_ids and self.scope != "all":
            raise UsageError(f"Protocol {self.name!r}: original_ids is how DeepFashion's script works, which has scope='all'.")

    def describe(self) -> str:
        """One line for people, as printed under tables."""
        parts = [
            f"{self.dataset}/{self.split}",
            "every consumer picture against all shop pictures"
            if self.scope == "all"
            else "every consumer picture against the shop pictures of its category, mean over categories",
            "right = same product" + (" (numbered as the original does)" if self.original_ids else ""),
            f"{self.ap} AP",
            f"ties {self.tie}",
        ]
        return f"{self.name}: {' · '.join(parts)}"

    def replace(self, **changes: Any) -> StreetProtocol:
        """The protocol with other fields; raises as the constructor.

        Raises:
            UsageError: an unknown field.
        """
        unknown = sorted(set(changes) - {entry.name for entry in dataclasses.fields(self)})
        if unknown:
            raise UsageError(f"A protocol has no field {', '.join(unknown)}.")
        return dataclasses.replace(self, **changes)

    def to_config(self) -> dict[str, Any]:
        """Plain dictionary for JSON; `from_config` reads it back."""
        values = dataclasses.asdict(self)
        return {"kind": KIND, **values, "ks": list(self.ks), "selected": list(self.selected)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> StreetProtocol:
        """Makes a protocol from `to_config`'s dictionary (a stored fingerprint or description is ignored).

        Raises:
            UsageError: unknown or missing keys, or values that are not allowed.
        """
        values = {key: value for key, value in config.items() if key not in ("fingerprint", "description", "kind")}
        known = {entry.name for entry in dataclasses.fields(cls)}
        if set(values) - known or "name" not in values or config.get("kind", KIND) != KIND:
            raise UsageError(f"A protocol has the keys {', '.join(sorted(known))} ('name' is needed); got {', '.join(sorted(values))}.")
        return cls(**values)

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits of all fields but the name, the cut-offs and the selected categories."""
        meaning = self.to_config()
        for key in ("name", "ks", "selected"):
            del meaning[key]
        return hash_json(meaning)[:12]


STREET_PROTOCOLS: dict[str, StreetProtocol] = {
    protocol.name: protocol
    for protocol in (
        StreetProtocol("deepfashion-c2s"),
        StreetProtocol("deepfashion-c2s-original", original_ids=True),
        StreetProtocol(
            "street2shop",
            "street2shop",
            scope="category",
            selected=("dresses", "leggings", "outerwear", "pants", "skirts", "tops"),
        ),
        StreetProtocol("cross-domain", "cross_domain", ap="standard"),
    )
}
"""Published protocols (UDMA's for DeepFashion and Street2Shop), and one of this library."""


def get_street_protocol(name: str | StreetProtocol, **changes: Any) -> StreetProtocol:
    """The named protocol, with fields replaced.

    Raises:
        UsageError: unknown name, field or value.
    """
    if isinstance(name, StreetProtocol):
        protocol = name
    elif name in STREET_PROTOCOLS:
        protocol = STREET_PROTOCOLS[name]
    else:
        raise UsageError(f"Unknown protocol {name!r}. Known: {', '.join(STREET_PROTOCOLS)}.")
    return protocol.replace(**changes) if changes else protocol


@dataclass(frozen=True, eq=False)
class StreetResult:
    """How well consumer pictures find their products.

    Attributes:
        average_precision: float64 (q,), NaN for queries without a right picture.
        first_rank: int64 (q,), rank of the best right picture from 1; 0 for queries without one.
        categories: int64 (q,), places in `names`, one per query; all 0 with scope "all".
        names: Names of the categories; ("all",) with scope "all".
        gallery_sizes: int64, pictures in each category's gallery.
        protocol: The protocol.
    """

    average_precision: np.ndarray = field(repr=False)
    first_rank: np.ndarray = field(repr=False)
    categories: np.ndarray = field(repr=False)
    names: tuple[str, ...]
    gallery_sizes: np.ndarray
    protocol: StreetProtocol

    @property
    def used(self) -> np.ndarray:
        """bool (q,): queries that have a right picture."""
        return self.first_rank > 0

    @property
    def metric_names(self) -> tuple[str, ...]:
        """("mAP", "R@1", ...)."""
        return ("mAP", *(f"R@{k}" for k in self.protocol.ks))

    def table(self) -> np.ndarray:
        """float64 (categories, metrics): fractions, NaN for categories without a query that has a right picture."""
        rows = np.full((len(self.names), len(self.metric_names)), np.nan)
        for place in range(len(self.names)):
            inside = self.used & (self.categories == place)
            if inside.any():
                ranks = self.first_rank[inside]
                rows[place] = [self.average_precision[inside].mean(), *((ranks <= k).mean() for k in self.protocol.ks)]
        return rows

    def cmc(self, length: int | None = None) -> np.ndarray:
        """float64 (length,): share of all used queries with a right picture among the first 1, 2, ... (default: the gallery's size)."""
        length = int(self.gallery_sizes.max(initial=0)) if length is None else length
        ranks = self.first_rank[self.used]
        counts = np.bincount(np.minimum(ranks, length + 1) - 1, minlength=length + 1)[:length]
        return np.cumsum(counts) / max(len(ranks), 1)

    @property
    def by_category(self) -> dict[str, dict[str, float]]:
        """Category -> metric -> fraction; categories without used queries are left out."""
        keys = self.metric_names
        rows = {name: dict(zip(keys, row.tolist(), strict=True)) for name, row in zip(self.names, self.table(), strict=True)}
        return {name: row for name, row in rows.items() if not np.isnan(row["mAP"])}

    @property
    def overall(self) -> dict[str, float]:
        """Metric -> unweighted mean over categories (with scope "all": over queries)."""
        return self._mean(self.names)

    @property
    def selected(self) -> dict[str, float] | None:
        """Metric -> unweighted mean over the protocol's selected categories; None if there are none.

        Raises:
            DataError: a selected category is not in the data or has no used query.
        """
        if not self.protocol.selected:
            return None
        missing = [name for name in self.protocol.selected if name not in self.by_category]
        if missing:
            raise DataError(
                f"The protocol's mean needs the categories {', '.join(missing)}, which have no query with a right picture. "
                f"Found: {', '.join(self.by_category)}."
            )
        return self._mean(self.protocol.selected)

    def _mean(self, names: Sequence[str]) -> dict[str, float]:
        rows = [self.by_category[name] for name in names if name in self.by_category]
        return {key: float(np.mean([row[key] for row in rows])) for key in self.metric_names}

    def summary(self, run: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Content of a `metrics.json`, in percent: protocol, categories, means, counts, and the run's facts (`run["name"]`)."""

        def percent(values: Mapping[str, float]) -> dict[str, float]:
            return {key: 100 * value for key, value in values.items()}

        protocol = {**self.protocol.to_config(), "fingerprint": self.protocol.fingerprint, "description": self.protocol.describe()}
        selected = None
        if self.protocol.selected and set(self.protocol.selected) <= set(self.by_category):
            selected = percent(self.selected or {})
        sizes = dict(zip(self.names, self.gallery_sizes.tolist(), strict=True))
        places = {name: place for place, name in enumerate(self.names)}
        return {
            "protocol": protocol,
            "categories": {
                name: {**percent(row), "queries": int((self.used & (self.categories == places[name])).sum()), "gallery": sizes[name]}
                for name, row in self.by_category.items()
            },
            "mean": percent(self.overall),
            "selected": selected,
            "counts": {
                "queries": int(self.used.sum()),
                "queries_without_right_picture": int((~self.used).sum()),
                "gallery": int(self.gallery_sizes.sum()),
            },
            "run": dict(run or {}),
        }


def evaluate(
    queries: np.ndarray,
    gallery: np.ndarray,
    query_products: Sequence[Any] | np.ndarray,
    gallery_products: Sequence[Any] | np.ndarray,
    protocol: StreetProtocol | str = "deepfashion-c2s",
    query_categories: Sequence[Any] | np.ndarray | None = None,
    gallery_categories: Sequence[Any] | np.ndarray | None = None,
    *,
    names: Sequence[str] | Mapping[int, str] = (),
    metric: Literal["cosine", "dot"] = "cosine",
    precision: Literal["float32", "float64"] = "float32",
    score_bytes: int = SCORE_BYTES,
) -> StreetResult:
    """Evaluates embeddings.

    Args:
        queries: (q, dim) floats.
        gallery: (n, dim) floats; may be memory-mapped.
        query_products, gallery_products: Product ids, compared as strings.
        protocol: A `StreetProtocol` or its name.
        query_categories, gallery_categories: Category numbers or names; needed by scope "category".
        names: Names of category numbers (only with numbers).
        metric: "cosine" (rows need not be unit) or "dot".
        precision: "float64" computes scores in double precision and rounds them to float32.
        score_bytes: Budget for a block of scores.

    Raises:
        UsageError: shapes or numbers of ids that do not fit, or no categories where they are needed.
        DataError: NaN or infinity; no query has a right picture.
    """
    protocol = get_street_protocol(protocol)
    queries, gallery = _matrix(queries, "queries"), _matrix(gallery, "gallery")
    if queries.shape[1] != gallery.shape[1]:
        raise UsageError(f"queries {queries.shape} and gallery {gallery.shape} must have the same width.")

    def ranks(rows: np.ndarray, columns: np.ndarray, positives: tuple[np.ndarray, np.ndarray]) -> PositiveRanks:
        whole = len(columns) == len(gallery)
        options: dict[str, Any] = {"metric": metric, "precision": precision, "score_bytes": score_bytes}
        return multi_positive_ranks(queries[rows], gallery if whole else gallery[columns], *positives, **options)

    sizes = len(queries), len(gallery)
    return _evaluated(ranks, sizes, query_products, gallery_products, protocol, query_categories, gallery_categories, names)


def evaluate_scores(
    scores: np.ndarray,
    query_products: Sequence[Any] | np.ndarray,
    gallery_products: Sequence[Any] | np.ndarray,
    protocol: StreetProtocol | str = "deepfashion-c2s",
    query_categories: Sequence[Any] | np.ndarray | None = None,
    gallery_categories: Sequence[Any] | np.ndarray | None = None,
    *,
    names: Sequence[str] | Mapping[int, str] = (),
) -> StreetResult:
    """As `evaluate`, from scores (q, n) that exist already; greater is better (give distances with a minus sign)."""
    protocol = get_street_protocol(protocol)
    matrix = _matrix(scores, "scores")
    if not np.isfinite(matrix).all():
        raise DataError(f"scores: row {np.flatnonzero(~np.isfinite(matrix).all(axis=1))[0]} has NaN or infinity.")

    def ranks(rows: np.ndarray, columns: np.ndarray, positives: tuple[np.ndarray, np.ndarray]) -> PositiveRanks:
        return ranks_of_scores(matrix[np.ix_(rows, columns)], *positives)

    return _evaluated(ranks, matrix.shape, query_products, gallery_products, protocol, query_categories, gallery_categories, names)


def same_product(
    query_products: Sequence[Any] | np.ndarray, gallery_products: Sequence[Any] | np.ndarray, original: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Gallery positions of each query's product, as `(splits, positions)`; positions rise within a query.

    Args:
        query_products, gallery_products: Ids, compared as strings.
        original: Compare the ids' places in the sorted lists of different ids, which are made for each side by itself.
    """
    here, there = _as_strings(query_products), _as_strings(gallery_products)
    if original:
        here, there = group_numbers(here), group_numbers(there)
    order = np.argsort(there, kind="stable")
    ids = there[order]
    starts, stops = np.searchsorted(ids, here, "left"), np.searchsorted(ids, here, "right")
    counts = stops - starts
    splits = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    inside = np.arange(splits[-1]) - np.repeat(splits[:-1], counts)
    return splits, order[np.repeat(starts, counts) + inside].astype(np.int64)


def group_numbers(ids: Sequence[Any] | np.ndarray) -> np.ndarray:
    """int64 (n,): the place, from 1, of each id in the sorted list of different ids (MATLAB's `grp2idx` of a categorical)."""
    return np.unique(_as_strings(ids), return_inverse=True)[1].astype(np.int64) + 1


def multi_positive_ranks(
    queries: np.ndarray,
    gallery: np.ndarray,
    splits: np.ndarray,
    positions: np.ndarray,
    *,
    metric: Literal["cosine", "dot"] = "cosine",
    precision: Literal["float32", "float64"] = "float32",
    score_bytes: int = SCORE_BYTES,
) -> PositiveRanks:
    """Ranks of all positives of all queries by counting; each score is computed once and no row is sorted.

    Args:
        queries: (q, dim) floats.
        gallery: (n, dim) floats; may be memory-mapped. Read once per block of queries, without a copy if it is float32 (float64).
        splits, positions: The positives of query i are the gallery rows `positions[splits[i]:splits[i + 1]]`, rising.
        metric, precision, score_bytes: As in `evaluate`.

    Raises:
        UsageError: shapes, metric or precision that are not allowed; positions outside the gallery.
        DataError: NaN or infinity, also of the scores; the message names the rows.
    """
    if metric not in ("cosine", "dot") or precision not in ("float32", "float64"):
        raise UsageError(f"Expected metric cosine or dot and precision float32 or float64, got {metric!r} and {precision!r}.")
    queries, gallery = _matrix(queries, "queries"), _matrix(gallery, "gallery")
    if queries.shape[1] != gallery.shape[1]:
        raise UsageError(f"queries {queries.shape} and gallery {gallery.shape} must have the same width.")
    splits, positions = _checked_lists(splits, positions, len(queries), len(gallery))
    kind = np.dtype(precision)
    facts = _gallery_facts(gallery, metric == "cosine")
    block = max(1, min(_QUERY_BLOCK, score_bytes // (kind.itemsize * max(len(gallery), 1)), len(queries)))
    above, before, after = (np.zeros(len(positions), np.int64) for _ in range(3))
    buffer = np.empty((block, len(gallery)), kind)
    for start in range(0, len(queries), block):
        rows = np.asarray(queries[start : start + block], kind)
        lengths = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1))
        if not np.isfinite(lengths).all():
            raise DataError(_not_finite("queries", start + np.flatnonzero(~np.isfinite(lengths))))
        if metric == "cosine":
            rows = (rows / np.maximum(lengths, 1e-12)[:, None]).astype(kind)
        elif lengths.max() * facts.longest > np.finfo(np.float32).max:
            raise DataError(f"The scores of query rows from {start} on may overflow float32: scale the embeddings down.")
        if splits[start] == splits[start + len(rows)]:
            continue
        scores = buffer[: len(rows)]
        _fill(scores, rows, gallery, facts)
        # Of double precision only the sum is wanted: what differs in its last digits is equal.
        scores = scores.astype(np.float32, copy=False)
        for query in range(len(rows)):
            part = slice(splits[start + query], splits[start + query + 1])
            above[part], before[part], after[part] = _counts(scores[query], positions[part])
    return _best_first(splits, RankCounts(above, before, after))


def ranks_of_scores(scores: np.ndarray, splits: np.ndarray, positions: np.ndarray) -> PositiveRanks:
    """As `multi_positive_ranks`, from finite scores (q, n) that exist already."""
    matrix = _matrix(scores, "scores")
    splits, positions = _checked_lists(splits, positions, *matrix.shape)
    above, before, after = (np.zeros(len(positions), np.int64) for _ in range(3))
    for query, row in enumerate(matrix):
        part = slice(splits[query], splits[query + 1])
        above[part], before[part], after[part] = _counts(row, positions[part])
    return _best_first(splits, RankCounts(above, before, after))


def average_precisions(ranks: PositiveRanks, ap: AveragePrecision = "trapezoid", tie: TieRule = "stable") -> np.ndarray:
    """Average precision of every query, float64 (q,); NaN for queries without positives.

    With the rank r_i of the i-th of R positives, `standard` is the mean of i / r_i, and `trapezoid` the mean of the precisions at r_i
    and just before it: (i / r_i + (i - 1) / (r_i - 1)) / 2, where the second is 1 for r_i = 1.
    """
    return _precisions(tied_ranks(ranks, tie), ranks.splits, ap)


def tied_ranks(ranks: PositiveRanks, tie: TieRule = "stable") -> np.ndarray:
    """int64 (p,): rising ranks of each query's positives; in the bounds those with one score stand first or last among its rows."""
    counts = ranks.counts
    if tie == "stable":
        return counts.ranks("stable")
    if tie not in get_args(TieRule):
        raise UsageError(f"Unknown tie rule {tie!r}. Known: {', '.join(get_args(TieRule))}.")
    if not len(counts):
        return np.zeros(0, np.int64)
    query = np.repeat(np.arange(len(ranks)), np.diff(ranks.splits))
    new = np.flatnonzero(np.concatenate([[True], (np.diff(query) > 0) | (np.diff(counts.above) != 0)]))
    members = np.diff(np.append(new, len(counts)))
    place = np.arange(len(counts)) - np.repeat(new, members) + 1
    if tie == "optimistic":
        return counts.above + place
    return counts.above + counts.tied + 1 - np.repeat(members, members) + place


def ranking_metrics(ranked: Sequence[int], good: Sequence[int], junk: Sequence[int] = ()) -> tuple[float, np.ndarray]:
    """Trapezoid average precision and cumulative match curve of one ranking, as UDMA's `compute_AP` has them.

    Args:
        ranked: Items, best first.
        good: The right ones.
        junk: Items that are passed over and take up no rank.

    Returns:
        The average precision (NaN without right items), and float64 (len(ranked),): 1 from the first right item on, at its rank.
    """
    items = np.asarray(ranked)
    kept = items[~np.isin(items, np.asarray(junk))]
    places = np.flatnonzero(np.isin(kept, np.asarray(good))) + 1
    curve = np.zeros(len(items))
    if not len(good):
        return float("nan"), curve
    if len(places):
        curve[places[0] - 1 :] = 1.0
    # Right items that the ranking lacks count as never found.
    found = float(np.nansum(_precisions(places, np.array([0, len(places)]), "trapezoid"))) * len(places) / len(good)
    return found, curve


def _precisions(ranks: np.ndarray, splits: np.ndarray, ap: AveragePrecision) -> np.ndarray:
    if ap not in get_args(AveragePrecision):
        raise UsageError(f"Unknown average precision {ap!r}. Known: {', '.join(get_args(AveragePrecision))}.")
    counts = np.diff(splits)
    hits = np.arange(len(ranks)) - np.repeat(splits[:-1], counts) + 1
    precision = hits / ranks
    if ap == "trapezoid":
        precision = (precision + np.where(ranks > 1, (hits - 1) / np.maximum(ranks - 1, 1), 1.0)) / 2
    values = np.full(len(counts), np.nan)
    some = np.flatnonzero(counts)
    if len(some):
        values[some] = np.add.reduceat(precision, splits[:-1][some]) / counts[some]
    return values


def _evaluated(
    ranks: Any,
    sizes: tuple[int, ...],
    query_products: Any,
    gallery_products: Any,
    protocol: StreetProtocol,
    query_categories: Any,
    gallery_categories: Any,
    names: Sequence[str] | Mapping[int, str],
) -> StreetResult:
    for what, values, size in (("query", query_products, sizes[0]), ("gallery", gallery_products, sizes[1])):
        if len(values) != size:
            raise UsageError(f"Expected {size} {what} products, one per row; got {len(values)}.")
    if not sizes[0] or not sizes[1]:
        raise UsageError("An evaluation needs at least one query and one gallery picture.")
    here, there = _as_strings(query_products), _as_strings(gallery_products)
    if protocol.scope == "all":
        groups = [("all", np.arange(sizes[0]), np.arange(sizes[1]))]
    else:
        groups = _category_groups(query_categories, gallery_categories, sizes, names)
    precision = np.full(sizes[0], np.nan)
    first = np.zeros(sizes[0], np.int64)
    categories = np.zeros(sizes[0], np.int64)
    for place, (_, rows, columns) in enumerate(groups):
        categories[rows] = place
        if not len(rows) or not len(columns):
            continue
        found = ranks(rows, columns, same_product(here[rows], there[columns], protocol.original_ids))
        precision[rows] = average_precisions(found, protocol.ap, protocol.tie)
        some = ~found.empty
        first[rows[some]] = tied_ranks(found, protocol.tie)[found.splits[:-1][some]]
    if not (first > 0).any():
        raise DataError("No query has a picture of its product in the gallery. Check that both name products alike.")
    sizes_of = np.array([len(columns) for _, _, columns in groups], np.int64)
    return StreetResult(precision, first, categories, tuple(name for name, _, _ in groups), sizes_of, protocol)


def _category_groups(
    query_categories: Any, gallery_categories: Any, sizes: tuple[int, ...], names: Sequence[str] | Mapping[int, str]
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    if query_categories is None or gallery_categories is None:
        raise UsageError("This protocol ranks within categories: give the categories of queries and gallery.")
    here, there = np.asarray(query_categories), np.asarray(gallery_categories)
    if (len(here), len(there)) != (sizes[0], sizes[1]) or here.ndim != 1 or there.ndim != 1:
        raise UsageError(f"Expected {sizes[0]} query and {sizes[1]} gallery categories, got {here.shape} and {there.shape}.")
    if (here.dtype.kind in "iu") != (there.dtype.kind in "iu"):
        raise UsageError("Categories of queries and gallery must both be numbers, or both be names.")
    known = names if isinstance(names, Mapping) else dict(enumerate(names))
    # Categories without a query have nothing to average.
    present = np.unique(here)
    titles = [str(known.get(int(entry), entry)) if here.dtype.kind in "iu" else str(entry) for entry in present]
    return [(title, np.flatnonzero(here == c), np.flatnonzero(there == c)) for title, c in zip(titles, present, strict=True)]


def _counts(row: np.ndarray, positives: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entries of `row` above each positive, and equal ones before and after it."""
    own = row[positives]
    if len(positives) > _MANY:
        return _counts_of_many(row, positives, own)
    above, before, after = (np.zeros(len(positives), np.int64) for _ in range(3))
    for place, (position, score) in enumerate(zip(positives, own, strict=True)):
        above[place] = np.count_nonzero(row > score)
        level = row == score
        equal = np.count_nonzero(level)
        if equal > 1:
            before[place] = np.count_nonzero(level[:position])
            after[place] = equal - 1 - before[place]
    return above, before, after


def _counts_of_many(row: np.ndarray, positives: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same, by filing every entry between the positives' different scores."""
    levels, of_level = np.unique(own, return_inverse=True)
    bins = np.searchsorted(levels, row, "right")
    counts = np.bincount(bins, minlength=len(levels) + 1)
    reached = np.cumsum(counts[::-1])[::-1]
    # An entry in bin b is at least levels[b - 1]; equal ones must be told from greater ones.
    level_of_bin = np.concatenate([[np.nan], levels]).astype(row.dtype)
    tied = np.flatnonzero(row == level_of_bin[bins])
    equal = np.bincount(bins[tied] - 1, minlength=len(levels))
    above = (reached[1:] - equal)[of_level]
    before = np.zeros(len(own), np.int64)
    order = np.lexsort((tied, bins[tied]))
    starts = np.concatenate([[0], np.cumsum(equal)])
    for place in np.flatnonzero(equal[of_level] > 1):
        level = of_level[place]
        before[place] = np.searchsorted(tied[order[starts[level] : starts[level + 1]]], positives[place])
    return above, before, equal[of_level] - 1 - before


@dataclass(frozen=True, eq=False)
class _GalleryFacts:
    """What a gallery's rows need: factors that make them unit (None where they are or need not be), copies, and the greatest length."""

    factors: np.ndarray | None
    copies: np.ndarray
    originals: np.ndarray
    longest: float


def _gallery_facts(gallery: np.ndarray, cosine: bool) -> _GalleryFacts:
    squares = np.empty(len(gallery))
    step = max(1, 2**22 // max(gallery.shape[1], 1))
    for start in range(0, len(gallery), step):
        rows: Any = np.asarray(gallery[start : start + step])
        rows = rows if rows.dtype == np.float64 else rows.astype(np.float32, copy=False)
        squares[start : start + step] = np.einsum("ij,ij->i", rows, rows)
    # Single precision overflows where double does not.
    for row in np.flatnonzero(~np.isfinite(squares)):
        squares[row] = np.square(gallery[row], dtype=np.float64).sum()
    bad = np.flatnonzero(~np.isfinite(squares))
    if len(bad):
        raise DataError(_not_finite("gallery", bad))
    # Equal rows have equal squares, so only rows that share theirs are compared.
    _, which, counts = np.unique(squares, return_inverse=True, return_counts=True)
    first: dict[bytes, int] = {}
    pairs = [(row, first.setdefault(gallery[row].tobytes(), row)) for row in np.flatnonzero(counts[which] > 1).tolist()]
    copies = np.array([pair for pair in pairs if pair[0] != pair[1]], np.int64).reshape(-1, 2)
    lengths = np.sqrt(squares)
    factors = 1.0 / np.maximum(lengths, 1e-12) if cosine and (np.abs(lengths - 1) > _UNIT).any() else None
    return _GalleryFacts(factors, copies[:, 0], copies[:, 1], float(lengths.max(initial=0)))


def _fill(scores: np.ndarray, queries: np.ndarray, gallery: np.ndarray, facts: _GalleryFacts) -> None:
    """Writes the products (or cosines) of unit queries with the gallery, the same for equal gallery rows."""
    step = len(gallery) if gallery.dtype == queries.dtype else max(1, _CAST_BYTES // (queries.itemsize * max(queries.shape[1], 1)))
    for start in range(0, len(gallery), max(step, 1)):
        part = np.asarray(gallery[start : start + step], queries.dtype)
        np.matmul(queries, part.T, out=scores[:, start : start + step])
    if facts.factors is not None:
        scores *= facts.factors.astype(scores.dtype)
    if len(facts.copies):
        scores[:, facts.copies] = scores[:, facts.originals]


def _best_first(splits: np.ndarray, counts: RankCounts) -> PositiveRanks:
    query = np.repeat(np.arange(len(splits) - 1), np.diff(splits))
    return PositiveRanks(splits, counts.take(np.lexsort((counts.ranks("stable"), query))))


def _checked_lists(splits: np.ndarray, positions: np.ndarray, queries: int, gallery: int) -> tuple[np.ndarray, np.ndarray]:
    splits, positions = np.asarray(splits, np.int64), np.asarray(positions, np.int64)
    if splits.shape != (queries + 1,) or splits[0] != 0 or splits[-1] != len(positions) or (np.diff(splits) < 0).any():
        raise UsageError(f"splits must rise from 0 to {len(positions)} in {queries + 1} values, got shape {splits.shape}.")
    bad = positions[(positions < 0) | (positions >= gallery)]
    if bad.size:
        raise UsageError(f"positives: position {bad[0]} is outside the gallery of {gallery} rows.")
    return splits, positions


def _matrix(value: Any, name: str) -> np.ndarray:
    matrix = value if isinstance(value, np.ndarray) else np.asarray(value)
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
        raise UsageError(f"{name} must be a matrix of numbers (rows, width), got {matrix.dtype} {matrix.shape}.")
    return matrix


def _as_strings(ids: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Ids as strings; whole numbers stay numbers' digits, so that 7 and "7" are one product."""
    values = np.asarray(ids)
    if values.ndim != 1 or values.dtype.kind not in "iuUS" and not all(isinstance(entry, (str, int)) for entry in values):
        raise UsageError(f"Product ids must be strings or whole numbers, one per row; got {values.dtype} {values.shape}.")
    return values.astype(np.str_)


def _not_finite(name: str, rows: np.ndarray) -> str:
    shown = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
    return f"{name}: expected finite numbers, found NaN or infinity in {len(rows)} row(s) ({shown}). Extract the features anew."
