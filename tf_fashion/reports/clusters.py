"""Pictures of clusters: where domains and clusters lie, and how partitions nest."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tf_fashion.core.errors import DataError, MissingExtraError, UsageError
from tf_fashion.core.files import atomic_write

Projection = Literal["pca", "umap"]
PROJECTIONS: tuple[Projection, ...] = ("pca", "umap")
_COLOURS = ("#2563eb", "#ea580c", "#16a34a", "#9333ea", "#db2777", "#0891b2", "#ca8a04", "#64748b")
_OTHER, _INK = "#cbd5e1", "#333333"
# More points than that cover each other, and more clusters cannot be told apart by colour.
_POINTS, _NAMED = 20_000, 12


def project(features: Any, method: Projection = "pca", seed: int = 0) -> np.ndarray:
    """Two coordinates of every row: float64 (n, 2).

    Args:
        features: (n, d) finite numbers.
        method: "pca": the two directions of greatest variance (each pointing to where its greatest entry is positive); "umap": UMAP
            with the cosine distance (needs the package umap-learn).
        seed: Of UMAP.

    Raises:
        UsageError: unknown method or another shape.
        DataError: no rows, or values that are not finite.
        MissingExtraError: UMAP is not installed.
    """
    rows = np.asarray(features, np.float64)
    if method not in PROJECTIONS:
        raise UsageError(f"Unknown projection {method!r}. Known: {', '.join(PROJECTIONS)}.")
    if rows.ndim != 2:
        raise UsageError(f"features must be a matrix (rows, width), got shape {rows.shape}.")
    if 0 in rows.shape or not np.isfinite(rows).all():
        raise DataError(f"features must be finite numbers, with at least one row and column; got shape {rows.shape}.")
    if method == "umap":
        try:
            from umap import UMAP
        except ImportError:
            raise MissingExtraError("umap-learn", "umap", "The projection 'umap'") from None
        return np.asarray(UMAP(n_components=2, metric="cosine", random_state=seed).fit_transform(rows), np.float64)
    rows = rows - rows.mean(axis=0)
    # The smaller of the two products has the same directions.
    if rows.shape[1] <= rows.shape[0]:
        axes = np.linalg.eigh(rows.T @ rows)[1][:, :-3:-1]
    else:
        _, parts = np.linalg.eigh(rows @ rows.T)
        axes = rows.T @ parts[:, :-3:-1]
        axes /= np.maximum(np.linalg.norm(axes, axis=0), 1e-300)
    axes *= np.where(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])] < 0, -1.0, 1.0)
    coordinates = np.zeros((len(rows), 2))
    coordinates[:, : axes.shape[1]] = rows @ axes
    return coordinates


def readable_partition(counts: Sequence[int]) -> int:
    """The finest partition whose clusters colours can tell apart, else the coarsest; `counts` are the clusters of each."""
    return next((level for level, count in enumerate(counts) if count <= _NAMED), len(counts) - 1)


def draw_clusters(
    path: str | Path,
    features: Any,
    labels: Any,
    domains: Sequence[str] | None = None,
    *,
    method: Projection = "pca",
    title: str = "",
    protocol: str = "",
    seed: int = 0,
) -> Path:
    """Draws rows as points, once coloured by domain and once by cluster, into a .png or .svg.

    Args:
        path: The file, replaced as a whole.
        features: (n, d); of more than 20,000 rows that many are drawn, chosen with `seed`.
        labels: int (n,), clusters; the largest twelve get a colour each.
        domains: None, or the domain of every row.
        method: As in `project`.
        title: Printed above.
        protocol: Line printed below.
        seed: Of the choice of rows and of UMAP.

    Raises:
        UsageError: another ending, or arguments of different lengths; also as `project`.
        DataError: as `project`.
    """
    path, rows, clusters = _checked_path(path), np.asarray(features), np.asarray(labels)
    names = None if domains is None else np.asarray(domains, dtype=str)
    if clusters.shape != rows.shape[:1] or (names is not None and names.shape != clusters.shape):
        found = f"{rows.shape[:1]}, {clusters.shape}" + ("" if names is None else f" and {names.shape}")
        raise UsageError(f"features, labels and domains must have one entry per row; got {found}.")
    if len(rows) > _POINTS:
        chosen = np.sort(np.random.default_rng(seed).choice(len(rows), _POINTS, replace=False))
    else:
        chosen = np.arange(len(rows))
    points = project(rows[chosen], method, seed)
    # The last points would hide the others if they came by domain.
    order = np.random.default_rng(seed).permutation(len(points))

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, 1 if names is None else 2, squeeze=False)[0]
        if names is not None:
            kinds = list(dict.fromkeys(names.tolist()))
            groups = [(name, names[chosen] == name, _colour(place)) for place, name in enumerate(kinds)]
            _scatter(panels[0], points, order, groups, "domains")
        values, sizes = np.unique(clusters, return_counts=True)
        largest = values[np.argsort(-sizes, kind="stable")][:_NAMED]
        groups = [(f"cluster {value}", clusters[chosen] == value, _cluster_colour(place)) for place, value in enumerate(largest)]
        rest = len(values) - len(largest)
        if rest:
            others = ~np.isin(clusters[chosen], largest)
            groups.insert(0, (f"{rest:,} more", others, _OTHER))
        _scatter(panels[-1], points, order, groups, f"{len(values):,} clusters")
        drawn = "" if len(chosen) == len(rows) else f"{len(chosen):,} of {len(rows):,} rows"
        _label(figure, title, ", ".join(filter(None, [protocol, method.upper(), drawn])))

    return _save(path, (5.2 if names is None else 10.4, 4.8), draw)


def draw_cluster_tree(
    path: str | Path, hierarchy: Any, domains: Sequence[str] | None = None, *, title: str = "", protocol: str = ""
) -> Path:
    """Draws how partitions nest into a .png or .svg: one band per partition, the coarsest on top, one block per cluster.

    A block is as wide as the cluster has rows and stands below the cluster that it becomes part of. Its colour mixes those of the
    domains of its rows, so that clusters which join domains show.

    Args:
        path: The file, replaced as a whole.
        hierarchy: int (n, P), labels of every partition from the finest to the coarsest, as `FinchResult.labels`.
        domains: None, or the domain of every row.
        title: Printed above.
        protocol: Line printed below.

    Raises:
        UsageError: another ending, another shape, or domains of another length.
    """
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    path, labels = _checked_path(path), np.asarray(hierarchy)
    if labels.ndim != 2 or 0 in labels.shape or labels.dtype.kind not in "iu":
        raise UsageError(f"hierarchy must be whole numbers (rows, partitions), got {labels.dtype} of shape {labels.shape}.")
    names = np.full(len(labels), "") if domains is None else np.asarray(domains, dtype=str)
    if names.shape != labels.shape[:1]:
        raise UsageError(f"domains must have one entry for each of the {len(labels)} rows, got {names.shape}.")
    kinds = list(dict.fromkeys(names.tolist()))
    palette = np.array([to_rgb(_colour(place)) for place in range(len(kinds))])
    kind = np.array([kinds.index(name) for name in names.tolist()])
    # Finer clusters in the order of the coarser ones that hold them; inside of a cluster by domain.
    order = np.lexsort([kind, *labels.T])
    count, levels = labels.shape

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        for level in range(levels):
            # The coarser labels come first: a cluster is one run of rows wherever partitions nest.
            starts = np.flatnonzero(np.r_[True, np.diff(labels[order, level]) != 0])
            sizes = np.diff(np.r_[starts, count])
            shares = np.add.reduceat(np.eye(len(kinds))[kind[order]], starts, axis=0) / sizes[:, None]
            corners = np.stack([starts, starts, starts + sizes, starts + sizes], axis=1).astype(np.float64)
            heights = np.broadcast_to([level + 0.06, level + 0.94, level + 0.94, level + 0.06], corners.shape)
            # White borders of thousands of clusters would hide them.
            border = float(min(0.8, 160.0 / len(starts)))
            outlines = list(np.stack([corners, heights], axis=2))
            blocks = PolyCollection(outlines, facecolors=shares @ palette, edgecolors="white", linewidths=border)
            axis.add_collection(blocks)
        axis.set_xlim(0, count)
        axis.set_ylim(0, levels)
        numbers = [len(np.unique(labels[:, level])) for level in range(levels)]
        axis.set_yticks(np.arange(levels) + 0.5, [f"partition {level}\n{number:,}" for level, number in enumerate(numbers)], fontsize=8)
        axis.tick_params(length=0, labelsize=8)
        axis.set_xlabel("rows", fontsize=8, color=_INK)
        for spine in axis.spines.values():
            spine.set_visible(False)
        if domains is not None:
            patches = [Patch(color=palette[place], label=name) for place, name in enumerate(kinds)]
            legend = axis.legend(handles=patches, frameon=False, fontsize=8, ncols=len(kinds), loc="lower right", bbox_to_anchor=(1, 1))
            _plain(legend)
        _label(figure, title, protocol)

    return _save(path, (9.0, 1.4 + 0.7 * levels), draw)


def _scatter(axis: Any, points: np.ndarray, order: np.ndarray, groups: list[tuple[str, np.ndarray, Any]], heading: str) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.lines import Line2D

    colours = np.empty((len(points), 3))
    for _, members, colour in groups:
        colours[members] = to_rgb(colour)
    size = float(np.clip(4000 / len(points), 1.5, 16))
    axis.scatter(*points[order].T, s=size, c=colours[order], alpha=0.7, linewidths=0, rasterized=True)
    axis.set_title(heading, fontsize=9, color=_INK)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color(_OTHER)
    handles = [Line2D([], [], marker="o", linestyle="", markersize=5, color=colour, label=name) for name, _, colour in groups]
    _plain(axis.legend(handles=handles, frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1)))


def _plain(legend: Any) -> None:
    for text in legend.get_texts():
        # A name with dollar signs is no formula.
        text.set_parse_math(False)


def _label(figure: Any, title: str, below: str) -> None:
    if title:
        figure.suptitle(title, fontsize=11, parse_math=False)
    if below:
        figure.supxlabel(below, fontsize=7, color=_INK, parse_math=False)


def _colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]


def _cluster_colour(place: int) -> Any:
    from matplotlib import colormaps

    return colormaps["tab20"]((2 * place + place // 10) % 20)[:3]


def _checked_path(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise UsageError(f"Clusters are drawn to .png or .svg, not to {path.name!r}.")
    return path


def _save(path: Path, size: tuple[float, float], draw: Any) -> Path:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "tf_fashion", "font.size": 9}):
        figure = Figure(figsize=size, dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        buffer = io.BytesIO()
        metadata: dict[str, Any] = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(buffer, format=path.suffix[1:], facecolor="white", metadata=metadata)
    with atomic_write(path, "wb") as file:
        file.write(buffer.getvalue())
    return path
