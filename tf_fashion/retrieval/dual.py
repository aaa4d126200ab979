"""Evaluation of image-text retrieval: which texts a picture finds, and which pictures a text finds, under one protocol.

Recall at K here is the share of queries with any right answer among the first K, as the field calls it. Ranks come from counting the
gallery entries above a query's best right answer, block by block; the whole matrix of scores never exists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import hash_json
from tf_fashion.retrieval.dual_protocol import DualProtocol, get_dual_protocol
from tf_fashion.retrieval.metrics import mean_reciprocal_rank, median_rank, recall_at_k
from tf_fashion.retrieval.ranks import RankCounts, Tie
from tf_fashion.retrieval.search import GALLERY_BLOCK, Metric, Precision, rank_counts, unit_rows

IMAGE_TO_TEXT = "image to text"
TEXT_TO_IMAGE = "text to image"
_PAIRS = 2**12


@dataclass(frozen=True)
class Draw:
    """One ranking of queries.

    Attributes:
        queries: Query ids.
        counts: `RankCounts` (Q,) of each query's best right answer; other right answers with its score are no rivals.
        candidates: int64 (Q,), entries that were ranked, right ones included.
        filled: int64 (Q,), those of them that are of another group than the right answer because its group had too few.
    """

    queries: list[str]
    counts: RankCounts = field(repr=False)
    candidates: np.ndarray = field(repr=False)
    filled: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class DirectionResult:
    """Retrieval in one direction under a protocol. Fractions and ranks are means over the protocol's draws.

    Attributes:
        direction: "image to text" (queries are pictures) or "text to image".
        draws: One per repeat.
        protocol: The protocol.
    """

    direction: str
    draws: tuple[Draw, ...]
    protocol: DualProtocol

    def measures(self, draw: Draw, tie: Tie | None = None) -> dict[str, float]:
        """R@K and their mean in percent, MRR as a fraction, median rank, of one draw."""
        tie = tie or self.protocol.tie
        values = {f"R@{k}": 100 * value for k, value in recall_at_k(draw.counts, self.protocol.ks, tie).items()}
        values["mean"] = float(np.mean(list(values.values())))
        values["MRR"] = mean_reciprocal_rank(draw.counts, tie)
        values["median_rank"] = median_rank(draw.counts, tie)
        return values

    @property
    def mean(self) -> dict[str, float]:
        """The measures, averaged over the draws."""
        return _averaged([self.measures(draw) for draw in self.draws])

    @property
    def spread(self) -> dict[str, float] | None:
        """Sample standard deviation of the measures over the draws; None for a single draw."""
        if len(self.draws) < 2:
            return None
        values = [self.measures(draw) for draw in self.draws]
        return {key: float(np.std([value[key] for value in values], ddof=1)) for key in values[0]}

    def bounds(self, tie: Tie) -> dict[str, float]:
        """The measures under another tie rule: "pessimistic" and "optimistic" bound every order of equal scores."""
        return _averaged([self.measures(draw, tie) for draw in self.draws])


@dataclass(frozen=True)
class DualResult:
    """Both directions under one protocol."""

    image_to_text: DirectionResult
    text_to_image: DirectionResult
    protocol: DualProtocol

    @property
    def directions(self) -> tuple[DirectionResult, DirectionResult]:
        """Image to text, text to image."""
        return self.image_to_text, self.text_to_image


@dataclass(frozen=True)
class DualTruth:
    """Which pictures and texts belong together, by positions in the two lists of ids.

    Attributes:
        image_ids: Ids of the pictures, as strings.
        text_ids: Ids of the texts, as strings.
        texts_of: Position of a picture that is a query -> ascending positions of its right texts.
        images_of: Position of a text that is a query -> ascending positions of its right pictures.
    """

    image_ids: list[str]
    text_ids: list[str]
    texts_of: dict[int, np.ndarray] = field(repr=False)
    images_of: dict[int, np.ndarray] = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """Hash of ids, their order, and answers: what the numbers were measured on."""
        sides = [{str(query): rows.tolist() for query, rows in side.items()} for side in (self.texts_of, self.images_of)]
        return hash_json([self.image_ids, self.text_ids, *sides])


def dual_truth(
    image_ids: Sequence[Any],
    text_ids: Sequence[Any],
    text_truth: Mapping[Any, Sequence[Any]] | None = None,
    image_truth: Mapping[Any, Sequence[Any]] | None = None,
) -> DualTruth:
    """Brings right answers to positions. Ids are compared as strings, so 15 and "15" are the same.

    Args:
        image_ids: Ids of all pictures, without repeats.
        text_ids: Ids of all texts, without repeats.
        text_truth: Text id -> ids of its right pictures. Texts that are not listed are no queries, but may be found.
        image_truth: Picture id -> ids of its right texts. Where one of the two is missing, it follows from the other.

    Raises:
        UsageError: neither is given.
        DataError: repeated ids, queries or answers that are not among the ids, queries without answers.
    """
    if text_truth is None and image_truth is None:
        raise UsageError("The right answers are missing: give text_truth (text id -> picture ids), image_truth, or both.")
    images, texts = _places(image_ids, "pictures"), _places(text_ids, "texts")
    of_texts = None if text_truth is None else _answers(text_truth, texts, images, "text", "picture")
    of_images = None if image_truth is None else _answers(image_truth, images, texts, "picture", "text")
    if of_images is None:
        of_images = _inverted(of_texts)  # type: ignore[arg-type]
    if of_texts is None:
        of_texts = _inverted(of_images)
    return DualTruth(list(images), list(texts), of_images, of_texts)


def evaluate_dual(
    image_embeddings: Any,
    image_ids: Sequence[Any],
    text_embeddings: Any,
    text_ids: Sequence[Any],
    *,
    text_truth: Mapping[Any, Sequence[Any]] | None = None,
    image_truth: Mapping[Any, Sequence[Any]] | None = None,
    protocol: str | DualProtocol = "full",
    groups: Mapping[Any, str] | None = None,
    metric: Metric = "dot",
    precision: Precision = "float64",
    block: int = GALLERY_BLOCK,
) -> DualResult:
    """Measures image-text retrieval in both directions.

    Args:
        image_embeddings: (N, D) floats, rows in the order of `image_ids`.
        image_ids: N ids.
        text_embeddings: (M, D) floats, rows in the order of `text_ids`.
        text_ids: M ids.
        text_truth, image_truth: Right answers, see `dual_truth`.
        protocol: A `DualProtocol` or the name of one.
        groups: Picture id -> group, for a protocol that draws wrong candidates from the right one's group. A text has the group of its
            first right picture.
        metric: "dot" (FashionKLIP; features of length one) or "cosine".
        precision: As in `retrieval.search.top_k`; double precision makes a result the same on every machine.
        block: Gallery rows at a time.

    Raises:
        UsageError: shapes that do not fit, unknown protocol, no truth, a protocol that needs groups without any.
        DataError: as `dual_truth`; pictures without group; NaN in embeddings.
    """
    protocol = get_dual_protocol(protocol)
    truth = dual_truth(image_ids, text_ids, text_truth, image_truth)
    image_rows = _rows(image_embeddings, len(truth.image_ids), "image_embeddings")
    text_rows = _rows(text_embeddings, len(truth.text_ids), "text_embeddings")
    if image_rows.shape[1] != text_rows.shape[1]:
        raise UsageError(f"Embeddings of pictures are {image_rows.shape[1]} wide, those of texts {text_rows.shape[1]}.")
    scoring = _Scoring(metric, precision, block)
    if protocol.candidates == "sample":
        of_images, of_texts = _groups(truth, protocol, groups)
        to_text = _Side(IMAGE_TO_TEXT, truth.image_ids, image_rows, text_rows, truth.texts_of, of_texts, of_images)
        to_image = _Side(TEXT_TO_IMAGE, truth.text_ids, text_rows, image_rows, truth.images_of, of_images, None)
        sides = [
            DirectionResult(
                side.name, tuple(_sampled(side, protocol, scoring, [protocol.seed, r, n]) for r in range(protocol.repeats)), protocol
            )
            for n, side in enumerate((to_text, to_image))
        ]
        return DualResult(sides[0], sides[1], protocol)
    if protocol.candidates == "full":
        draws = [_ranked_both(truth, image_rows, text_rows, scoring)]
    else:
        draws = []
        for repeat in range(protocol.repeats):
            part, images, texts = _drawn_part(truth, protocol, repeat)
            draws.append(_ranked_both(part, image_rows[images], text_rows[texts], scoring))
    to_texts, to_images = (tuple(sides) for sides in zip(*draws, strict=True))
    return DualResult(DirectionResult(IMAGE_TO_TEXT, to_texts, protocol), DirectionResult(TEXT_TO_IMAGE, to_images, protocol), protocol)


def summarise_dual(result: DualResult, run: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The content of `metrics.json`: as of composed retrieval, with the two directions as its categories.

    Beside R@K and their mean (percent), a direction has "MRR" (a fraction), "median_rank", "queries", "gallery" (candidates of a query
    at most), "interval" (percent, over all orders of equal scores), and, where there are several draws, "std" and "draws". Under a
    protocol that draws candidates, "filled_queries" is the number of queries (per draw) whose group had too few, "filled_candidates"
    the mean number of candidates from other groups over all queries, and "fewest_candidates" the least that a query was ranked among.

    "mean" averages the two directions; its "mean" is the mean of all recalls of both, often called the mean recall or Rmean.
    """
    protocol = result.protocol
    cuts = [f"R@{k}" for k in protocol.ks]
    categories: dict[str, dict[str, Any]] = {}
    for side in result.directions:
        low, high = side.bounds("pessimistic"), side.bounds("optimistic")
        values: dict[str, Any] = dict(side.mean)
        values["queries"] = len(side.draws[0].queries)
        values["gallery"] = int(max(draw.candidates.max() for draw in side.draws))
        values["interval"] = {key: [low[key], high[key]] for key in cuts}
        if protocol.candidates == "sample":
            values["filled_queries"] = float(np.mean([(draw.filled > 0).sum() for draw in side.draws]))
            values["filled_candidates"] = float(np.mean([draw.filled.mean() for draw in side.draws]))
            values["fewest_candidates"] = int(min(draw.candidates.min() for draw in side.draws))
        if side.spread is not None:
            values["std"] = side.spread
            values["draws"] = [side.measures(draw) for draw in side.draws]
        categories[side.direction] = values
    mean = {key: float(np.mean([entry[key] for entry in categories.values()])) for key in (*cuts, "mean")}
    described = {**protocol.to_config(), "fingerprint": protocol.fingerprint, "description": protocol.describe()}
    return {"protocol": described, "categories": categories, "mean": mean, "run": dict(run or {})}


@dataclass(frozen=True)
class _Scoring:
    metric: Metric
    precision: Precision
    block: int


@dataclass(frozen=True)
class _Side:
    """One direction with what sampling needs: groups of the gallery, and those of queries where they do not follow from answers."""

    name: str
    ids: list[str]
    queries: np.ndarray
    gallery: np.ndarray
    answers: dict[int, np.ndarray]
    gallery_groups: np.ndarray | None
    query_groups: np.ndarray | None


def _ranked_both(truth: DualTruth, images: np.ndarray, texts: np.ndarray, scoring: _Scoring) -> tuple[Draw, Draw]:
    return (
        _ranked(truth.image_ids, images, texts, truth.texts_of, scoring),
        _ranked(truth.text_ids, texts, images, truth.images_of, scoring),
    )


def _ranked(ids: list[str], queries: np.ndarray, gallery: np.ndarray, answers: dict[int, np.ndarray], scoring: _Scoring) -> Draw:
    """Every query against the whole gallery."""
    rows = np.fromiter(answers, np.int64, len(answers))
    splits = np.concatenate([[0], np.cumsum([len(right) for right in answers.values()])])
    columns = np.concatenate(list(answers.values()))
    owner = np.repeat(np.arange(len(rows)), np.diff(splits))
    scores = _pair_scores(queries, gallery, rows[owner], columns, scoring.metric)
    # Best score first, then the earliest in the gallery.
    order = np.lexsort((columns, -scores, owner))
    first = order[splits[:-1]]
    fellows = np.bincount(owner[scores == scores[first][owner]], minlength=len(rows)) - 1
    kept = queries if np.array_equal(rows, np.arange(len(queries))) else queries[rows]
    counts = rank_counts(kept, gallery, columns[first], chunk=scoring.block, metric=scoring.metric, precision=scoring.precision)
    counts = RankCounts(counts.above, counts.tied_before, np.maximum(counts.tied_after - fellows, 0))
    return Draw([ids[row] for row in rows], counts, np.full(len(rows), len(gallery)), np.zeros(len(rows), np.int64))


def _sampled(side: _Side, protocol: DualProtocol, scoring: _Scoring, seed: list[int]) -> Draw:
    """Some queries, each against one right and some wrong candidates."""
    random = np.random.default_rng(seed)
    every = np.fromiter(side.answers, np.int64, len(side.answers))
    rows = np.sort(random.permutation(every)[: protocol.queries])
    right = np.array([random.choice(side.answers[row]) for row in rows.tolist()])
    members: dict[int, np.ndarray] = {}
    if side.gallery_groups is not None:
        order = np.argsort(side.gallery_groups, kind="stable")
        values, starts = np.unique(side.gallery_groups[order], return_index=True)
        members = dict(zip(values.tolist(), np.split(order, starts[1:]), strict=True))
    wrong, filled = [], np.zeros(len(rows), np.int64)
    everything = np.arange(len(side.gallery))
    for n, (row, answer) in enumerate(zip(rows.tolist(), right.tolist(), strict=True)):
        own = everything
        if side.gallery_groups is not None:
            group = side.gallery_groups[answer] if side.query_groups is None else side.query_groups[row]
            own = members.get(int(group), own[:0])
        drawn = _draw(random, own, protocol.negatives, side.answers[row])
        missing = protocol.negatives - len(drawn)
        if missing and side.gallery_groups is not None and protocol.fill == "other":
            rest = _draw(random, everything, missing, np.concatenate([own, side.answers[row]]))
            filled[n] = len(rest)
            drawn = np.concatenate([drawn, rest])
        wrong.append(drawn)
    sizes = np.array([len(drawn) for drawn in wrong])
    owner = np.repeat(np.arange(len(rows)), sizes)
    columns = np.concatenate(wrong) if len(wrong) else np.zeros(0, np.int64)
    own_scores = _pair_scores(side.queries, side.gallery, rows, right, scoring.metric)
    scores = _pair_scores(side.queries, side.gallery, rows[owner], columns, scoring.metric)
    level, before = scores == own_scores[owner], columns < right[owner]
    counts = RankCounts(
        *(np.bincount(owner[which], minlength=len(rows)) for which in (scores > own_scores[owner], level & before, level & ~before))
    )
    return Draw([side.ids[row] for row in rows], counts, sizes + 1, filled)


def _draw(random: np.random.Generator, pool: np.ndarray, count: int, without: np.ndarray) -> np.ndarray:
    """Up to `count` entries of `pool` in random order, none of `without`."""
    # Of a random order of the pool only as much is drawn as is needed when all of `without` come first.
    drawn = pool[random.choice(len(pool), min(len(pool), count + len(without)), replace=False)] if len(pool) else pool
    return drawn[~np.isin(drawn, without)][:count]


def _drawn_part(truth: DualTruth, protocol: DualProtocol, repeat: int) -> tuple[DualTruth, np.ndarray, np.ndarray]:
    """Some pictures with their texts: the truth among them, and the rows that are kept."""
    random = np.random.default_rng([protocol.seed, repeat])
    every = np.fromiter(truth.texts_of, np.int64, len(truth.texts_of))
    images = np.sort(random.permutation(every)[: protocol.subset])
    texts = np.unique(np.concatenate([truth.texts_of[image] for image in images.tolist()]))
    new_image, new_text = ({old: new for new, old in enumerate(rows.tolist())} for rows in (images, texts))
    of_images = {n: np.array([new_text[t] for t in truth.texts_of[old].tolist()]) for old, n in new_image.items()}
    of_texts = {}
    for old, n in new_text.items():
        kept = [new_image[i] for i in truth.images_of.get(old, np.zeros(0, np.int64)).tolist() if i in new_image]
        if kept:
            of_texts[n] = np.array(kept)
    part = DualTruth([truth.image_ids[i] for i in images], [truth.text_ids[t] for t in texts], of_images, of_texts)
    return part, images, texts


def _groups(truth: DualTruth, protocol: DualProtocol, groups: Mapping[Any, str] | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Group numbers of pictures and texts; -1 for texts that belong to no picture."""
    if protocol.group is None:
        return None, None
    if groups is None:
        raise UsageError(
            f"Protocol {protocol.name!r} draws wrong candidates of the same {protocol.group}: give the group of each picture (groups), "
            "or draw from the whole gallery (group=None)."
        )
    named = {str(entry): group for entry, group in groups.items()}
    absent = [entry for entry in truth.image_ids if entry not in named]
    if absent:
        raise DataError(f"{len(absent)} of {len(truth.image_ids)} pictures have no {protocol.group}: {_named(absent)}.")
    numbers: dict[str, int] = {}
    images = np.array([numbers.setdefault(named[entry], len(numbers)) for entry in truth.image_ids], np.int64)
    texts = np.full(len(truth.text_ids), -1, np.int64)
    for image, right in truth.texts_of.items():
        fresh = right[texts[right] < 0]
        texts[fresh] = images[image]
    for text, right in truth.images_of.items():
        texts[text] = images[right[0]]
    return images, texts


def _pair_scores(queries: np.ndarray, gallery: np.ndarray, rows: np.ndarray, columns: np.ndarray, metric: Metric) -> np.ndarray:
    """float32 (P,): the scores of pairs, computed in double precision."""
    scores = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _PAIRS):
        part = slice(start, start + _PAIRS)
        left, right = queries[rows[part]].astype(np.float64), gallery[columns[part]].astype(np.float64)
        if metric == "cosine":
            left, right = unit_rows(left), unit_rows(right)
        scores[part] = np.einsum("pd,pd->p", left, right)
    return scores


def _rows(values: Any, count: int, name: str) -> np.ndarray:
    rows = np.asarray(values)
    if rows.ndim != 2 or len(rows) != count or rows.dtype.kind not in "fiu":
        raise UsageError(f"{name} must be numbers ({count}, width), one row per id; got {rows.dtype} {rows.shape}.")
    return rows


def _places(ids: Sequence[Any], what: str) -> dict[str, int]:
    places: dict[str, int] = {}
    repeated = []
    for place, entry in enumerate(ids):
        if places.setdefault(str(entry), place) != place:
            repeated.append(str(entry))
    if repeated:
        raise DataError(f"{len(repeated)} ids of {what} appear more than once: {_named(repeated)}.")
    return places


def _answers(
    truth: Mapping[Any, Sequence[Any]], queries: Mapping[str, int], gallery: Mapping[str, int], query: str, answer: str
) -> dict[int, np.ndarray]:
    unknown = [str(entry) for entry in truth if str(entry) not in queries]
    if unknown:
        raise DataError(f"{len(unknown)} of {len(truth)} {query}s of the truth have no embedding: {_named(unknown)}.")
    if not truth:
        raise DataError(f"The truth names no {query}: there is nothing to measure.")
    found: dict[int, np.ndarray] = {}
    absent: dict[str, None] = {}
    for entry, right in truth.items():
        names = [str(name) for name in right]
        absent.update(dict.fromkeys(name for name in names if name not in gallery))
        if not names:
            raise DataError(f"The {query} {entry!r} has no right {answer}. Leave it out of the truth.")
        found[queries[str(entry)]] = np.unique([gallery[name] for name in names if name in gallery])
    if absent:
        raise DataError(f"{len(absent)} right {answer}s of the truth have no embedding: {_named(list(absent))}.")
    # What is drawn must not depend on the order of the truth's lines.
    return dict(sorted(found.items()))


def _inverted(answers: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    lists: dict[int, list[int]] = {}
    for query, right in answers.items():
        for entry in right.tolist():
            lists.setdefault(entry, []).append(query)
    return {entry: np.unique(lists[entry]) for entry in sorted(lists)}


def _averaged(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([value[key] for value in values])) for key in values[0]}


def _named(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
