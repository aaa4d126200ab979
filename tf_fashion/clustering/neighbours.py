"""First neighbours: for every row of a matrix the one other row that is closest to it, without holding all distances.

Distances are compared in double precision. Among equally distant rows the one with the lowest index is the first neighbour, where
"equally" allows for the rounding of double precision, and a row's exact copy is closer than anything else.

For the Euclidean and the cosine distance, most of the work is done by matrix products in single precision: a tile of squared
distances is one product, a pair of tiles is looked at once for its rows and once for its columns, and of every row only the smallest
value in each tile is kept. With a bound on the rounding error that says in which tiles the first neighbour can be, and only those
are computed again in double precision.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from tf_fashion.core.errors import DataError, MissingExtraError, UsageError
from tf_fashion.core.machine import cpu_count

Neighbours = Literal["exact", "faiss"]
NEIGHBOURS: tuple[Neighbours, ...] = ("exact", "faiss")
METRICS = (
    "cosine",
    "euclidean",
    "sqeuclidean",
    "cityblock",
    "chebyshev",
    "canberra",
    "braycurtis",
    "correlation",
    "hamming",
    "jensenshannon",
)
_ALIASES = {"l2": "euclidean", "l1": "cityblock", "manhattan": "cityblock"}

# Up to so many rows double precision alone is as fast.
_SMALL = 2048
_TILE, _TILES = 512, 128
# Up to so many rows the approximate mode searches exactly.
_EXACT_UP_TO = 10_000
# FAISS's graph: links of a point, and how many candidates a walk keeps while it is built and searched.
_LINKS, _BUILD_WIDTH, _SEARCH_WIDTH = 32, 40, 32
_SAMPLE = 1000
_NUMBERS = 2**22
_SINGLE, _DOUBLE = 2.0**-24, 2.0**-53
_UNDERFLOW = 1e-36
_RELATIVE_SLACK, _ABSOLUTE_SLACK = 1e-12, 1e-15


def first_neighbours(features: Any, metric: str = "cosine", *, neighbours: Neighbours = "exact", progress: bool = False) -> np.ndarray:
    """The first neighbour of every row: the other row at the smallest distance, that of the lowest index among equals.

    Args:
        features: (n, d) finite numbers, converted to float32; n at least 1.
        metric: One of `METRICS` or "l1", "l2", "manhattan". The cosine distance is 1 minus the cosine; a row of zeros is at
            distance 1 from every row, other rows of zeros included.
        neighbours: "exact", or "faiss": above 10,000 rows walks through a neighbourhood graph (HNSW) of FAISS, for the Euclidean and
            the cosine distance. That misses some first neighbours, and with several threads not always the same ones.
        progress: Whether a progress bar is shown.

    Returns:
        int64 (n,). A single row is its own neighbour.

    Raises:
        UsageError: unknown metric or mode, another shape, or a metric that the approximate mode does not have.
        DataError: no rows, values that are not finite in float32, or rows between which the metric is not defined.
        MissingExtraError: `neighbours="faiss"` without FAISS.
    """
    return rows_of(checked_features(features), metric).first_neighbours(neighbours, progress)


def checked_features(features: Any) -> np.ndarray:
    """`features` as a float32 matrix (n, d) without NaN and infinity; errors as in `first_neighbours`."""
    matrix = np.asarray(features)
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiub":
        raise UsageError(f"features must be a matrix of numbers (rows, width), got {matrix.dtype} of shape {matrix.shape}.")
    if 0 in matrix.shape:
        raise DataError(f"features must have at least one row and one column, got shape {matrix.shape}.")
    with np.errstate(over="ignore"):
        matrix = np.ascontiguousarray(matrix, np.float32)
    bad = np.concatenate([rows[~np.isfinite(matrix[rows]).all(axis=1)] for rows in chunks(np.arange(len(matrix)), matrix.shape[1])])
    if len(bad):
        shown = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        raise DataError(
            f"features: expected finite float32 numbers, found NaN, infinity or numbers beyond float32 in {len(bad)} row(s) "
            f"(rows {shown}). Leave these rows out or compute their features anew."
        )
    return matrix


def rows_of(values: np.ndarray, metric: str) -> Rows:
    """Rows of a finite float32 or float64 matrix (n, d) under one of `METRICS` or their other names."""
    metric = _ALIASES.get(metric, metric)
    if metric not in METRICS:
        raise UsageError(f"Unknown metric {metric!r}. Known: {', '.join((*METRICS, *_ALIASES))}.")
    return Points(values, metric) if metric in ("cosine", "euclidean", "sqeuclidean") else Rows(values, metric)


class Rows:
    """Rows under any metric of scipy's `cdist` that needs nothing but two rows."""

    def __init__(self, values: np.ndarray, metric: str) -> None:
        self.values = values
        self.metric = metric
        self._first_copy: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: Any) -> np.ndarray:
        """The rows at these positions (an index array or a slice) as float64."""
        return self.values[rows].astype(np.float64)

    @property
    def first_copy(self) -> np.ndarray:
        """int64 (n,): for every row the position of the first row that is equal to it."""
        if self._first_copy is None:
            self._first_copy = _first_copies(self._comparable, len(self))
        return self._first_copy

    def between(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Distances of pairs: float64 (m,), of the rows at positions `left` (m,) from those at `right` (m,)."""
        import scipy.spatial.distance

        of_two = getattr(scipy.spatial.distance, self.metric)
        pairs = zip(left, right, strict=True)
        return np.array([of_two(self.take(a), self.take(b)) for a, b in pairs], np.float64)

    def from_one(self, position: int) -> np.ndarray:
        """Distances of all rows from one of them: float64 (n,)."""
        from scipy.spatial.distance import cdist

        return cdist(self.take([position]), self.take(slice(None)), self.metric)[0]

    def replace(self, position: int, row: np.ndarray) -> None:
        """Puts another row (d,) in the place of one."""
        self.values[position] = row
        self._first_copy = None

    def first_neighbours(self, neighbours: Neighbours = "exact", progress: bool = False) -> np.ndarray:
        """As the function of this name."""
        if neighbours not in NEIGHBOURS:
            raise UsageError(f"Unknown way to find neighbours {neighbours!r}. Known: {', '.join(NEIGHBOURS)}.")
        if len(self) == 1:
            return np.zeros(1, np.int64)
        return self._search(neighbours, progress)

    def _search(self, neighbours: Neighbours, progress: bool) -> np.ndarray:
        from scipy.spatial.distance import cdist

        if neighbours == "faiss":
            raise UsageError(f"FAISS has no index for the metric {self.metric!r}. Use 'cosine', 'euclidean', or exact neighbours.")
        nearest = np.zeros(len(self), np.int64)
        for rows in _bar(list(chunks(np.arange(len(self)), min(len(self), _TILE))), progress):
            block = self.take(rows)
            least = np.full(len(rows), np.inf)
            for columns in chunks(np.arange(len(self)), max(len(rows), self.values.shape[1])):
                distances = cdist(block, self.take(columns), self.metric)
                _without_themselves(distances, rows, columns)
                if np.isnan(distances).any():
                    row, column = np.argwhere(np.isnan(distances))[0]
                    raise DataError(
                        f"The metric {self.metric!r} is not defined between rows {rows[row]} and {columns[column]}. "
                        "Leave out rows without variation or with the wrong sign, or take another metric."
                    )
                best = distances.argmin(axis=1)
                value = distances[np.arange(len(rows)), best]
                nearest[rows] = np.where(value < least, columns[best], nearest[rows])
                least = np.minimum(value, least)
        return nearest

    def _comparable(self, rows: np.ndarray) -> np.ndarray:
        return self.values[rows]


class Points(Rows):
    """Rows as points of a Euclidean space, in which the nearest point is the nearest row under the metric.

    For the cosine distance that is the unit sphere, where half of the squared distance is the cosine distance. Rows of zeros, at
    distance 1 from everything, become the unit vector of one more dimension.
    """

    def __init__(self, values: np.ndarray, metric: str) -> None:
        super().__init__(values, metric)
        self.cosine = metric == "cosine"
        self.lengths = np.ones(len(values))
        self.zero = np.zeros(len(values), bool)
        if self.cosine:
            for rows in chunks(np.arange(len(values)), values.shape[1]):
                self._measure(rows)
        self._widen()

    def _measure(self, rows: Any) -> None:
        lengths = np.linalg.norm(self.values[rows].astype(np.float64), axis=-1)
        self.zero[rows] = lengths == 0.0
        self.lengths[rows] = np.where(lengths == 0.0, 1.0, lengths)

    def _widen(self) -> None:
        self.width = self.values.shape[1] + int(self.zero.any())

    def take(self, rows: Any) -> np.ndarray:
        points = self.values[rows].astype(np.float64)
        if self.cosine:
            points /= self.lengths[rows][..., None]
            if self.width > self.values.shape[1]:
                points = np.concatenate([points, self.zero[rows][..., None]], axis=-1)
        return points

    def replace(self, position: int, row: np.ndarray) -> None:
        super().replace(position, row)
        if self.cosine:
            self._measure(position)
            self._widen()

    def between(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        squares = self.squares(left, right)
        if self.cosine:
            return np.where(self.zero[left] & self.zero[right], 1.0, squares / 2.0)
        return squares if self.metric == "sqeuclidean" else np.sqrt(squares)

    def from_one(self, position: int) -> np.ndarray:
        return self.between(np.full(len(self), position), np.arange(len(self)))

    def squares(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Squared distances of pairs, from differences: their error is relative to the distance itself."""
        squares = np.empty(len(left), np.float64)
        for part in chunks(np.arange(len(left)), self.width):
            difference = self.take(left[part]) - self.take(right[part])
            squares[part] = np.einsum("nd,nd->n", difference, difference)
        return squares

    def _comparable(self, rows: np.ndarray) -> np.ndarray:
        # Multiples of one vector differ in the last digits of double precision once they have length one.
        return self.take(rows).astype(np.float32) if self.cosine else self.values[rows]

    def _search(self, neighbours: Neighbours, progress: bool) -> np.ndarray:
        count = len(self)
        first = self.first_copy
        nearest = first.copy()
        copies = np.flatnonzero(first != np.arange(count))
        # From the last to the first, so that the second row of each kind is what stays.
        nearest[first[copies[::-1]]] = copies[::-1]
        # Zeros are as far from each other as from anything else.
        nearest[self.zero] = 0
        if self.zero[0]:
            nearest[0] = 1
        kinds = np.flatnonzero(first == np.arange(count))
        open_rows = (nearest[kinds] == kinds) & ~self.zero[kinds]
        if open_rows.any():
            if neighbours == "faiss" and len(kinds) > _EXACT_UP_TO:
                found = self._approximate(kinds, progress)
            else:
                found = self._exact(kinds, progress)
            nearest[kinds[open_rows]] = found[open_rows]
        return nearest

    def _exact(self, kinds: np.ndarray, progress: bool) -> np.ndarray:
        """The first neighbours of the rows `kinds`, which all differ, among themselves: int64 (len(kinds),)."""
        space = _Centred(self, kinds)
        everything = np.arange(len(kinds))
        if len(kinds) <= _SMALL:
            return kinds[_nearest_in(space, everything, everything)[0]]
        nearest, least = np.zeros(len(kinds), np.int64), np.full(len(kinds), np.inf)
        tiles = _tiles(len(kinds))
        with _one_thread_each() as pool:
            lower, upper = _bounds(space, tiles, pool, progress)
            within = upper.min(axis=0)
            jobs = [
                (rows, tile)
                for tile, low in zip(tiles, lower, strict=True)
                for rows in chunks(np.flatnonzero(low <= within), max(len(tile), self.width))
            ]
            for (rows, _), (found, distance, slack) in zip(jobs, pool.map(lambda job: _nearest_in(space, *job), jobs), strict=True):
                # Tiles come in order: what is equally near in a later one has a greater index.
                nearer = distance + slack < least[rows]
                nearest[rows[nearer]] = found[nearer]
                least[rows] = np.minimum(least[rows], distance)
        return kinds[nearest]

    def _approximate(self, kinds: np.ndarray, progress: bool) -> np.ndarray:
        try:
            import faiss
        except ImportError:
            raise MissingExtraError("faiss-cpu", "faiss", "Approximate neighbours") from None
        space = _Centred(self, kinds)
        points = space.single()
        index = faiss.IndexHNSWFlat(points.shape[1], _LINKS)
        index.hnsw.efConstruction, index.hnsw.efSearch = _BUILD_WIDTH, _SEARCH_WIDTH
        parts = list(chunks(np.arange(len(points)), points.shape[1]))
        for places in _bar(parts, progress):
            index.add(points[places])
        found = np.empty(len(points), np.int64)
        for places in _bar(parts, progress):
            _, two = index.search(points[places], 2)
            others = np.where(two == places[:, None], -1, two)
            found[places] = np.where(others[:, 0] >= 0, others[:, 0], others[:, 1])
        # A walk through the graph can end at its start.
        for places in chunks(np.flatnonzero(found < 0), len(points)):
            found[places] = _nearest_in(space, places, np.arange(len(points)))[0]
        return kinds[found]


class _Centred:
    """Points around their median, scaled into the unit ball: rounding errors then are about as small as products allow."""

    def __init__(self, points: Points, kinds: np.ndarray) -> None:
        self.points, self.kinds = points, kinds
        # A mean would follow a few points that lie far out, and a few rows show well enough where the others are.
        self.centre = np.median(points.take(kinds[:: -(-len(kinds) // _SAMPLE)]), axis=0)
        self.scale = 1.0
        self.squares = np.concatenate([np.square(part).sum(axis=1) for part in self._parts()])
        self.scale = 1.0 / float(np.sqrt(self.squares.max()))
        self.squares *= self.scale**2

    def take(self, places: np.ndarray) -> np.ndarray:
        """Centred and scaled points at these places among `kinds`: float64."""
        return (self.points.take(self.kinds[places]) - self.centre) * self.scale

    def single(self) -> np.ndarray:
        """All of them as float32."""
        return np.concatenate([part.astype(np.float32) for part in self._parts()])

    def _parts(self) -> Iterator[np.ndarray]:
        for places in chunks(np.arange(len(self.kinds)), self.points.width):
            yield self.take(places)


def _tiles(count: int) -> list[np.ndarray]:
    size = max(_TILE, -(-count // _TILES))
    return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]


def _bounds(space: _Centred, tiles: list[np.ndarray], pool: ThreadPoolExecutor, progress: bool) -> tuple[np.ndarray, np.ndarray]:
    """What the squared distance of every point from the nearest other one in each tile is at least and at most: (tiles, n) float32."""
    count, width = len(space.kinds), space.points.width
    squares = space.squares.astype(np.float32)[:, None]
    points = np.concatenate([space.single(), squares, np.ones_like(squares)], axis=1)
    least = np.empty((len(tiles), count), np.float32)

    def look(number: int) -> None:
        rows = slice(tiles[number][0], tiles[number][-1] + 1)
        # The product of (-2a, 1, |a|^2) with (b, |b|^2, 1) is the squared distance.
        left = np.concatenate([points[rows, :width] * np.float32(-2.0), points[rows, :-3:-1]], axis=1)
        space_for_products = np.empty((len(tiles[number]),) * 2, np.float32)
        for other in range(number, len(tiles)):
            columns = slice(tiles[other][0], tiles[other][-1] + 1)
            products = space_for_products[:, : len(tiles[other])]
            np.matmul(left, points[columns].T, out=products)
            if other == number:
                np.fill_diagonal(products, np.inf)
            else:
                products.min(axis=0, out=least[number, columns])
            products.min(axis=1, out=least[other, rows])

    jobs = [pool.submit(look, number) for number in range(len(tiles))]
    for done in _bar(as_completed(jobs), progress, len(tiles)):
        done.result()
    # Any order of summation is off by at most (terms - 1) roundings of the sum of absolute values, which is at most
    # 2 (|a|^2 + |b|^2); rounding the factors to single precision costs two more.
    unit = 2.0 * (width + 6) * _SINGLE
    farthest = np.array([space.squares[tile].max() for tile in tiles], np.float32)[:, None]
    error = (unit * (farthest + squares.T) + _UNDERFLOW).astype(np.float32)
    return least - error, least + error


def _nearest_in(space: _Centred, rows: np.ndarray, tile: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For the points at the places `rows` the nearest other one among those of `tile`: places, distances, what counts as equal."""
    squares = (-2.0 * space.take(rows)) @ space.take(tile).T
    squares += space.squares[rows][:, None]
    squares += space.squares[tile]
    _without_themselves(squares, rows, tile)
    error = 2.0 * (space.points.width + 6) * _DOUBLE * (space.squares[rows] + space.squares[tile].max())
    near_rows, near_columns = np.nonzero(squares <= (squares.min(axis=1) + 2.0 * error)[:, None])
    # Products cannot tell what is closer by less than their rounding: the differences decide among these few.
    own, others = space.kinds[rows], space.kinds[tile]
    distances = np.sqrt(space.points.squares(own[near_rows], others[near_columns]))
    least = np.minimum.reduceat(distances, np.searchsorted(near_rows, np.arange(len(rows))))
    slack = least * _RELATIVE_SLACK + np.linalg.norm(space.points.take(own), axis=1) * _ABSOLUTE_SLACK
    tied = np.flatnonzero(distances <= (least + slack)[near_rows])
    _, firsts = np.unique(near_rows[tied], return_index=True)
    return tile[near_columns[tied[firsts]]], least, slack


@contextlib.contextmanager
def _one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """As many threads as CPUs, in which BLAS uses one: its own threads would wait busily while minima are taken."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(cpu_count()) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _first_copies(read: Callable[[np.ndarray], np.ndarray], count: int) -> np.ndarray:
    """int64 (count,): the first row equal to each, of a matrix whose rows `read(positions)` returns."""
    width = read(np.arange(1)).shape[1]
    weights = np.random.default_rng(0).integers(0, 2**64, 2 * width, np.uint64) | np.uint64(1)
    hashes = np.empty(count, np.uint64)
    for rows in chunks(np.arange(count), width):
        # Adding zero turns -0.0 into 0.0.
        bits = np.ascontiguousarray(read(rows) + 0.0).view(np.uint32).astype(np.uint64)
        bits *= np.uint64(0x9E3779B97F4A7C15)
        bits ^= bits >> np.uint64(32)
        hashes[rows] = bits @ weights[: bits.shape[1]]
    _, firsts, kinds = np.unique(hashes, return_index=True, return_inverse=True)
    first = firsts[kinds]
    copies = np.flatnonzero(first != np.arange(count))
    for rows in chunks(copies, width):
        different = (read(rows) != read(first[rows])).any(axis=1)
        first[rows[different]] = rows[different]
    return first.astype(np.int64)


def chunks(places: np.ndarray, width: int) -> Iterator[np.ndarray]:
    """Parts of `places` of which a matrix with `width` columns stays small."""
    size = max(1, _NUMBERS // max(1, width))
    for start in range(0, len(places), size):
        yield places[start : start + size]


def _without_themselves(distances: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> None:
    """Sets the entries of pairs of the same row to infinity; `columns` are consecutive."""
    own = np.flatnonzero((rows >= columns[0]) & (rows <= columns[-1]))
    distances[own, rows[own] - columns[0]] = np.inf


def _bar(steps: Any, progress: bool, total: int | None = None) -> Any:
    return tqdm(steps, desc="first neighbours", unit="block", total=total, disable=not progress, leave=False)
