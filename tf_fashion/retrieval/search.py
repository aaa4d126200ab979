"""Exact search: top-k, rank of a target and ranks of several positives, without ever holding the whole score matrix.

All functions share one way of scoring. Queries and gallery are cut into blocks, every block of a call is padded to one shape
whose sides are multiples of 64, and a block of scores is one matrix product. The padding matters: at the ragged edge of a
product, vectorised kernels round differently, so two byte-identical gallery pictures would get scores that differ in the last
bit and a tie would be missed. `precision="float64"` computes in double precision and rounds to float32 at the end, which makes
scores independent of block sizes and of the machine (about twice the work).

The order of a ranking is (-score, gallery position): among equal scores the earlier gallery row comes first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.retrieval.ranks import TIES, PositiveRanks, RankCounts, Tie

Metric = Literal["dot", "cosine"]


Precision = Literal["float32", "float64"]

QUERY_BLOCK = 256
GALLERY_BLOCK = 8192
_ALIGN = 64
_KEEP_BYTES = 256 * 2**20
_PAIR_BLOCK = 1024


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows `(n, dim)` divided by max(length, 1e-12), in their own precision."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def top_k(
    queries: Any,
    gallery: Any,
    k: int,
    *,
    chunk: int = GALLERY_BLOCK,
    exclude: Any = None,
    mask: Any = None,
    metric: Metric = "dot",
    precision: Precision = "float32",
) -> tuple[np.ndarray, np.ndarray]:
    """The k best gallery rows of every query, exactly, ordered by (-score, gallery position).

    Args:
        queries: (Q, D) floats, array or tensor.
        gallery: (N, D) floats, array (memory-mapped if you like) or tensor; float16 is widened block by block.
        k: How many to return, at least 1. May exceed what is there: see below.
        chunk: Gallery rows per block.
        exclude: None, or gallery positions that a query must not find: int (Q,) or (Q, m), -1 for "none".
        mask: None, or bool (N,): only rows with True can be found.
        metric: "dot", or "cosine" (rows are divided by max(norm, 1e-12) first).
        precision: "float32" or "float64", see the module's text. Scores are returned as float32 either way.

    Returns:
        Scores (Q, k) float32 and gallery positions (Q, k) int64. Where fewer than k rows can be found, the rest of the row is
        filled with score -inf and position -1.

    Raises:
        UsageError: k below 1, unknown metric or precision, shapes that do not fit, positions outside the gallery.
        DataError: NaN or infinity in queries or gallery (the message names the rows).
    """
    if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or k < 1:
        raise UsageError(f"k must be a whole number of at least 1, got {k!r}.")
    scorer = _Scorer(queries, gallery, chunk, exclude, mask, metric, precision)
    scores = np.full((scorer.query_count, k), -np.inf, np.float32)
    positions = np.full((scorer.query_count, k), -1, np.int64)
    for rows in scorer.query_blocks():
        best_scores: Any = None
        best_positions: Any = None
        for start, block in scorer.blocks(rows):
            values, places = tf.math.top_k(block, min(int(k), block.shape[1]))
            places = tf.cast(places, tf.int64) + start
            if best_scores is not None:
                # The kept rows come first and have smaller positions, and top_k prefers earlier columns: ties stay in order.
                values = tf.concat([best_scores, values], axis=1)
                places = tf.concat([best_positions, places], axis=1)
                values, columns = tf.math.top_k(values, min(int(k), values.shape[1]))
                places = tf.gather(places, columns, batch_dims=1)
            best_scores, best_positions = values, places
        if best_scores is not None:
            count = len(range(*rows.indices(scorer.query_count)))
            width = best_scores.shape[1]
            scores[rows, :width] = best_scores.numpy()[:count]
            positions[rows, :width] = best_positions.numpy()[:count]
    positions[np.isneginf(scores)] = -1
    return scores, positions


def rank_counts(
    queries: Any,
    gallery: Any,
    targets: Any,
    *,
    exclude: Any = None,
    mask: Any = None,
    chunk: int = GALLERY_BLOCK,
    metric: Metric = "dot",
    precision: Precision = "float32",
) -> RankCounts:
    """Counts, for every query, the gallery rows above and level with its target; nothing is sorted.

    The target's own score is read from the same matrix products as its rivals' scores.

    Args:
        targets: int (Q,), the gallery position of each query's target.
        queries: As in `top_k`, like `gallery`, `exclude`, `mask`, `chunk`, `metric` and `precision`.

    Raises:
        UsageError: as `top_k`; also target positions outside the gallery.
        DataError: as `top_k`; also a target that `exclude` or `mask` takes away.
    """
    scorer = _Scorer(queries, gallery, chunk, exclude, mask, metric, precision)
    columns = _positions(targets, "targets", scorer.gallery_count)
    if columns.shape != (scorer.query_count,):
        raise UsageError(f"targets must have one position per query ({scorer.query_count}), got shape {columns.shape}.")
    return _count(scorer, np.arange(scorer.query_count), columns)


def rank_of_target(
    queries: Any,
    gallery: Any,
    targets: Any,
    exclude: Any = None,
    tie: Tie = "stable",
    chunk: int = GALLERY_BLOCK,
    **options: Any,
) -> np.ndarray:
    """The rank (from 1) of every query's target, by counting: `rank_counts(...).ranks(tie)`.

    Args:
        tie: "stable" counts ties that come earlier in the gallery, "optimistic" none, "pessimistic" all, "expected" half.
        options: `mask`, `metric`, `precision` as in `top_k`.

    Returns:
        int64 (Q,), or float64 (Q,) for `tie="expected"`.
    """
    if tie not in TIES:
        raise UsageError(f"Unknown tie rule {tie!r}. Known: {', '.join(TIES)}.")
    return rank_counts(queries, gallery, targets, exclude=exclude, chunk=chunk, **options).ranks(tie)


def ranks_of_positives(
    queries: Any,
    gallery: Any,
    positives: Any,
    *,
    exclude: Any = None,
    mask: Any = None,
    chunk: int = GALLERY_BLOCK,
    metric: Metric = "dot",
    precision: Precision = "float32",
) -> PositiveRanks:
    """Ranks of every positive of every query, for mAP, nDCG and the like.

    Args:
        positives: The relevant gallery rows: a list with one sequence of positions per query (empty ones are fine), a boolean
            matrix (Q, N), or a pair `(splits, positions)` as in a CSR matrix. A position twice in one list counts once.
        queries: As in `top_k`, like `gallery`, `exclude`, `mask`, `chunk`, `metric` and `precision`.

    Raises:
        UsageError: as `top_k`; positives of another form or outside the gallery.
        DataError: as `top_k`; also a positive that `exclude` or `mask` takes away.
    """
    scorer = _Scorer(queries, gallery, chunk, exclude, mask, metric, precision)
    splits, columns = positive_lists(positives, scorer.query_count, scorer.gallery_count)
    rows = np.repeat(np.arange(scorer.query_count), np.diff(splits))
    return _best_first(splits, rows, _count(scorer, rows, columns))


def score_matrix(
    queries: Any, gallery: Any, *, chunk: int = GALLERY_BLOCK, metric: Metric = "dot", precision: Precision = "float32"
) -> np.ndarray:
    """All scores (Q, N) float32, bit for bit those that the other functions rank with the same arguments."""
    scorer = _Scorer(queries, gallery, chunk, None, None, metric, precision)
    scores = np.empty((scorer.query_count, scorer.gallery_count), np.float32)
    for rows in scorer.query_blocks():
        for start, block in scorer.blocks(rows):
            part = scores[rows, start : start + block.shape[1]]
            part[...] = block.numpy()[: part.shape[0], : part.shape[1]]
    return scores


def squared_distances(queries: Any, gallery: Any, *, chunk: int = GALLERY_BLOCK) -> np.ndarray:
    """All squared Euclidean distances (Q, N) float32, computed in double precision; never negative."""
    distances = score_matrix(queries, gallery, chunk=chunk, precision="float64")
    lengths = [np.square(np.asarray(rows, np.float64)).sum(axis=1) for rows in (queries, gallery)]
    for start in range(0, len(distances), QUERY_BLOCK):
        rows = slice(start, start + QUERY_BLOCK)
        exact = lengths[0][rows, None] + lengths[1][None, :] - 2.0 * distances[rows].astype(np.float64)
        distances[rows] = np.maximum(exact, 0.0)
    return distances


def top_k_of_scores(scores: Any, k: int, exclude: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Like `top_k`, from a score matrix (Q, N) that already exists (a fused ensemble, say); dtype of the scores is kept."""
    matrix = _checked_scores(scores)
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}.")
    matrix = _without(matrix, exclude)
    width = min(k, matrix.shape[1])
    order = _best_columns(matrix, width)
    values = np.full((len(matrix), k), -np.inf, matrix.dtype)
    positions = np.full((len(matrix), k), -1, np.int64)
    values[:, :width] = np.take_along_axis(matrix, order, axis=1)
    positions[:, :width] = order
    positions[np.isneginf(values)] = -1
    return values, positions


def _best_columns(matrix: np.ndarray, width: int) -> np.ndarray:
    """The columns of the `width` greatest values of each row, greatest first, equal ones from left to right."""
    if len(matrix) and width < matrix.shape[1]:
        # All that reach the width-th greatest value: a few more than wanted where there are ties.
        least = np.partition(matrix, matrix.shape[1] - width, axis=1)[:, -width]
        rows, columns = np.nonzero(matrix >= least[:, None])
        most = int(np.bincount(rows, minlength=len(matrix)).max(initial=0))
        if most <= 4 * width:
            places = np.full((len(matrix), most), matrix.shape[1], np.int64)
            places[rows, np.arange(len(rows)) - np.searchsorted(rows, rows)] = columns
            values = np.take_along_axis(matrix, np.minimum(places, matrix.shape[1] - 1), axis=1)
            values[places == matrix.shape[1]] = -np.inf
            order = np.argsort(-values, axis=1, kind="stable")[:, :width]
            return np.take_along_axis(places, order, axis=1)
    return np.argsort(-matrix, axis=1, kind="stable")[:, :width]


def rank_counts_of_scores(scores: Any, targets: Any, exclude: Any = None) -> RankCounts:
    """Like `rank_counts`, from a score matrix (Q, N) that already exists."""
    matrix = _checked_scores(scores)
    columns = _positions(targets, "targets", matrix.shape[1])
    if columns.shape != (len(matrix),):
        raise UsageError(f"targets must have one position per query ({len(matrix)}), got shape {columns.shape}.")
    rows = np.arange(len(matrix))
    own = matrix[rows, columns][:, None]
    matrix = _without(matrix, exclude)
    _refuse_hidden(np.isneginf(matrix[rows, columns]), rows)
    equal = matrix == own
    before = (equal & (np.arange(matrix.shape[1]) < columns[:, None])).sum(axis=1)
    return RankCounts((matrix > own).sum(axis=1), before, equal.sum(axis=1) - before - 1)


def positive_lists(positives: Any, query_count: int, gallery_count: int) -> tuple[np.ndarray, np.ndarray]:
    """Brings the accepted forms of relevance (see `ranks_of_positives`) to `(splits, positions)`, sorted and without repeats.

    Raises:
        UsageError: another form, another number of queries, or positions outside the gallery.
    """
    if isinstance(positives, tuple) and len(positives) == 2 and np.ndim(positives[0]) == 1:
        splits = np.asarray(positives[0], np.int64)
        flat = np.asarray(positives[1])
        if len(splits) != query_count + 1 or splits[0] != 0 or splits[-1] != len(flat) or (np.diff(splits) < 0).any():
            raise UsageError(
                f"positives as (splits, positions): splits must rise from 0 to {len(flat)} in {query_count + 1} steps, got "
                f"{len(splits)} values."
            )
        lists: Sequence[Any] = [flat[a:b] for a, b in zip(splits[:-1], splits[1:], strict=True)]
    elif isinstance(positives, np.ndarray) and positives.dtype == bool:
        if positives.shape != (query_count, gallery_count):
            raise UsageError(f"positives as a boolean matrix must be {(query_count, gallery_count)}, got {positives.shape}.")
        lists = [np.flatnonzero(row) for row in positives]
    else:
        lists = list(positives)
    if len(lists) != query_count:
        raise UsageError(f"positives must have one list per query ({query_count}), got {len(lists)}.")
    clean = [np.unique(_positions(entry, f"positives of query {i}", gallery_count)) for i, entry in enumerate(lists)]
    splits = np.concatenate([[0], np.cumsum([len(entry) for entry in clean])]).astype(np.int64)
    flat = np.concatenate(clean) if clean else np.zeros(0, np.int64)
    return splits, flat.astype(np.int64)


class _Scorer:
    """Checks the arguments once and hands out blocks of scores."""

    def __init__(self, queries: Any, gallery: Any, chunk: int, exclude: Any, mask: Any, metric: Metric, precision: Precision) -> None:
        if metric not in ("dot", "cosine"):
            raise UsageError(f"Unknown metric {metric!r}. Known: dot, cosine.")
        if precision not in ("float32", "float64"):
            raise UsageError(f"Unknown precision {precision!r}. Known: float32, float64.")
        if not isinstance(chunk, (int, np.integer)) or chunk < 1:
            raise UsageError(f"chunk must be a whole number of at least 1, got {chunk!r}.")
        self.queries = _matrix(queries, "queries")
        self.gallery = _matrix(gallery, "gallery")
        if self.queries.shape[1] != self.gallery.shape[1]:
            raise UsageError(f"queries {self.queries.shape} and gallery {self.gallery.shape} must have the same width.")
        self.query_count, self.gallery_count = int(self.queries.shape[0]), int(self.gallery.shape[0])
        self.metric = metric
        self.dtype = tf.float64 if precision == "float64" else tf.float32
        self.query_block = min(QUERY_BLOCK, _rounded_up(self.query_count))
        self.gallery_block = min(int(chunk), self.gallery_count, 2**23)
        self.padded_block = _rounded_up(self.gallery_block)
        self.exclude = None
        if exclude is not None:
            self.exclude = _exclusions(exclude, self.query_count, self.gallery_count)
        self.mask = None
        if mask is not None:
            self.mask = np.asarray(mask)
            if self.mask.dtype != bool or self.mask.shape != (self.gallery_count,):
                raise UsageError(
                    f"mask must be bool ({self.gallery_count},), one per gallery row; got {self.mask.dtype} {self.mask.shape}."
                )
        fits = self.dtype.size * self.gallery_count * int(self.gallery.shape[1]) <= _KEEP_BYTES
        self._kept: dict[int, tf.Tensor] | None = {} if fits else None
        self._checked: set[int] = set()

    def query_blocks(self) -> Iterator[slice]:
        for start in range(0, self.query_count, self.query_block):
            yield slice(start, min(start + self.query_block, self.query_count))

    def blocks(self, rows: slice, starts: Sequence[int] | None = None) -> Iterator[tuple[int, tf.Tensor]]:
        """Yields (first gallery position, scores (padded queries, padded gallery rows)) for the queries `rows`.

        Columns that are padding, masked or excluded hold -inf. Rows beyond `rows` are padding.
        """
        if not self.gallery_count:
            return
        query = self._block(self.queries, rows.start, rows.stop, self.query_block, "queries")
        every = range(0, self.gallery_count, self.gallery_block)
        for start in every if starts is None else starts:
            stop = min(start + self.gallery_block, self.gallery_count)
            part = self._kept.get(start) if self._kept is not None else None
            if part is None:
                part = self._block(self.gallery, start, stop, self.padded_block, "gallery", start not in self._checked)
                # A product with the transposed gallery takes a quarter less time than one that transposes on the way.
                part = tf.transpose(part)
                self._checked.add(start)
                if self._kept is not None:
                    self._kept[start] = part
            with _full_float32():
                scores = tf.cast(tf.matmul(query, part), tf.float32)
            yield start, self._hide(scores, rows, start, stop)

    def hidden(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """bool (P,): pairs that mask or exclude take away."""
        gone = np.zeros(len(rows), bool)
        if self.mask is not None:
            gone |= ~self.mask[columns]
        if self.exclude is not None:
            gone |= (self.exclude[rows] == columns[:, None]).any(axis=1)
        return gone

    def _block(self, matrix: Any, start: int, stop: int, size: int, name: str, check: bool = True) -> tf.Tensor:
        block = tf.cast(tf.convert_to_tensor(matrix[start:stop]), self.dtype)
        if check and not bool(tf.reduce_all(tf.math.is_finite(block))):
            bad = start + np.flatnonzero(~np.isfinite(block.numpy()).all(axis=1))
            shown = ", ".join(str(row) for row in bad[:10]) + (", ..." if len(bad) > 10 else "")
            raise DataError(
                f"{name}: expected finite numbers, found NaN or infinity in {len(bad)} row(s) from {start} to {stop - 1} "
                f"(rows {shown}). Look for a diverged model or a zero vector that was divided by its norm."
            )
        if self.metric == "cosine":
            block = block / tf.maximum(tf.norm(block, axis=1, keepdims=True), 1e-12)
        return tf.pad(block, [[0, size - (stop - start)], [0, 0]])

    def _hide(self, scores: tf.Tensor, rows: slice, start: int, stop: int) -> tf.Tensor:
        width = stop - start
        if self.mask is not None or width < self.padded_block:
            keep = np.zeros(self.padded_block, bool)
            keep[:width] = True if self.mask is None else self.mask[start:stop]
            if not keep.all():
                scores = tf.where(keep[None, :], scores, -np.inf)
        if self.exclude is not None:
            wanted = self.exclude[rows]
            where = np.argwhere((wanted >= start) & (wanted < stop))
            if len(where):
                pairs = np.stack([where[:, 0], wanted[where[:, 0], where[:, 1]] - start], axis=1)
                scores = tf.tensor_scatter_nd_update(scores, pairs, np.full(len(pairs), -np.inf, np.float32))
        return scores


def _count(scorer: _Scorer, rows: np.ndarray, columns: np.ndarray) -> RankCounts:
    """Counts for the pairs (rows[i], columns[i]); `rows` rises."""
    _refuse_hidden(scorer.hidden(rows, columns), rows)
    above = np.zeros(len(rows), np.int64)
    before = np.zeros(len(rows), np.int64)
    after = np.zeros(len(rows), np.int64)
    fits = 4 * scorer.query_block * scorer.gallery_count <= _KEEP_BYTES
    for block_rows in scorer.query_blocks():
        first, last = np.searchsorted(rows, [block_rows.start, block_rows.stop])
        kept = list(scorer.blocks(block_rows)) if fits else None
        homes = columns // max(scorer.gallery_block, 1) * scorer.gallery_block
        for begin in range(first, last, _PAIR_BLOCK):
            pairs = slice(begin, min(begin + _PAIR_BLOCK, last))
            local, target, home = rows[pairs] - block_rows.start, columns[pairs], homes[pairs]
            own = np.zeros(len(local), np.float32)
            # Without the kept blocks the same product, of the same shapes, is computed a second time.
            for start, block in kept or scorer.blocks(block_rows, np.unique(home).tolist()):
                here = home == start
                if here.any():
                    own[here] = tf.gather_nd(block, np.stack([local[here], target[here] - start], axis=1)).numpy()
            _refuse_overflow(own, rows[pairs])
            straight = len(local) == block_rows.stop - block_rows.start and (np.diff(local) == 1).all()
            for start, block in kept or scorer.blocks(block_rows):
                scores = block[: len(local)] if straight else tf.gather(block, local)
                greater = _count_true(scores > own[:, None])
                level = _count_true(scores >= own[:, None]) - greater
                above[pairs] += greater
                here = home == start
                before[pairs] += np.where(home > start, level, 0)
                after[pairs] += np.where(home < start, level, 0)
                # Only rows with a rival on the same score need to look where the rival stands.
                split = np.flatnonzero(here & (level > 1))
                if len(split):
                    equal = tf.gather(scores, split).numpy() == own[split, None]
                    lower = (equal & (np.arange(start, start + equal.shape[1]) < target[split, None])).sum(axis=1)
                    before[begin + split] += lower
                    after[begin + split] += level[split] - 1 - lower
    return RankCounts(above, before, after)


def _count_true(values: tf.Tensor) -> np.ndarray:
    """int64 (rows,): True values per row. Sums of float32 are the fastest and, for fewer than 2^24 columns, exact."""
    return tf.reduce_sum(tf.cast(values, tf.float32), axis=1).numpy().astype(np.int64)


def _best_first(splits: np.ndarray, rows: np.ndarray, counts: RankCounts) -> PositiveRanks:
    order = np.lexsort((counts.ranks("stable"), rows))
    return PositiveRanks(splits, counts.take(order))


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Keeps recent GPUs from rounding the factors of a float32 product to 10 bits (TensorFloat-32)."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    if before:
        tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        if before:
            tf.config.experimental.enable_tensor_float_32_execution(True)


def _rounded_up(count: int) -> int:
    return max(_ALIGN, -(-count // _ALIGN) * _ALIGN)


def _matrix(value: Any, name: str) -> Any:
    matrix = value if isinstance(value, (np.ndarray, tf.Tensor)) else np.asarray(value)
    if len(matrix.shape) != 2:
        raise UsageError(f"{name} must be a matrix (rows, width), got shape {tuple(matrix.shape)}.")
    if isinstance(matrix, np.ndarray) and matrix.dtype.kind not in "fiu":
        raise UsageError(f"{name} must hold numbers, got dtype {matrix.dtype}.")
    return matrix


def _positions(value: Any, name: str, count: int) -> np.ndarray:
    positions = np.asarray(value)
    if positions.size == 0:
        positions = positions.astype(np.int64)
    if positions.dtype.kind not in "iu":
        raise UsageError(f"{name} must be whole numbers (gallery positions), got dtype {positions.dtype}.")
    bad = positions[(positions < 0) | (positions >= count)]
    if bad.size:
        raise UsageError(f"{name}: position {bad.flat[0]} is outside the gallery of {count} rows.")
    return positions.astype(np.int64)


def _exclusions(value: Any, query_count: int, gallery_count: int) -> np.ndarray:
    positions = np.asarray(value)
    if positions.dtype.kind not in "iu" or positions.ndim not in (1, 2) or len(positions) != query_count:
        raise UsageError(
            f"exclude must be whole numbers ({query_count},) or ({query_count}, m), got {positions.dtype} {positions.shape}."
        )
    positions = positions.reshape(query_count, positions.shape[1] if positions.ndim == 2 else 1).astype(np.int64)
    bad = positions[(positions < -1) | (positions >= gallery_count)]
    if bad.size:
        raise UsageError(f"exclude: position {bad.flat[0]} is outside the gallery of {gallery_count} rows (-1 means none).")
    return positions


def _checked_scores(scores: Any) -> np.ndarray:
    matrix = np.asarray(scores)
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
        raise UsageError(f"scores must be a matrix of numbers (queries, gallery), got {matrix.dtype} {matrix.shape}.")
    if matrix.dtype.kind != "f":
        matrix = matrix.astype(np.float64)
    if not np.isfinite(matrix).all():
        bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
        shown = ", ".join(map(str, bad[:10]))
        raise DataError(f"scores: expected finite numbers, found NaN or infinity in {len(bad)} row(s) (rows {shown}).")
    return matrix


def _without(matrix: np.ndarray, exclude: Any) -> np.ndarray:
    if exclude is None:
        return matrix
    positions = _exclusions(exclude, *matrix.shape)
    rows, slots = np.nonzero(positions >= 0)
    matrix = matrix.copy()
    matrix[rows, positions[rows, slots]] = -np.inf
    return matrix


def _refuse_hidden(hidden: np.ndarray, rows: np.ndarray) -> None:
    if hidden.any():
        bad = np.unique(rows[hidden])
        shown = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        raise DataError(
            f"The target (or a positive) of {len(bad)} query row(s) ({shown}) is taken out by `exclude` or `mask`. "
            "Remove it from one of the two."
        )


def _refuse_overflow(scores: np.ndarray, rows: np.ndarray) -> None:
    bad = rows[~np.isfinite(scores)]
    if len(bad):
        raise DataError(f"The scores of query rows {', '.join(map(str, bad[:10]))} overflow float32: scale the embeddings down.")
