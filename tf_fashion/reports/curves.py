"""Training curves from `history.csv`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import atomic_write

_COLOURS = ("#2563eb", "#ea580c", "#16a34a", "#9333ea", "#db2777", "#0891b2", "#ca8a04", "#64748b")
_INK = "#7a828e"


def read_history(path: str | Path) -> dict[str, list[float]]:
    """Reads a CSV with one row per epoch and a header, as `keras.callbacks.CSVLogger` writes it.

    Args:
        path: The file. An `epoch` column is used as it stands, else rows are numbered from 0. Empty cells become NaN.

    Raises:
        DataError: missing or empty file, rows of another length than the header, or cells that are no numbers (with the line).
    """
    path = Path(path)
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: expected a CSV file in UTF-8.") from None
    if len(lines) < 2:
        raise DataError(f"{path}: expected a header and at least one epoch, found {len(lines)} line(s).")
    header = [name.strip() for name in lines[0]]
    history: dict[str, list[float]] = {name: [] for name in header}
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(header):
            raise DataError(f"{path}, line {number}: expected {len(header)} cells, found {len(line)}.")
        for name, cell in zip(header, line, strict=True):
            try:
                history[name].append(float(cell) if cell.strip() else math.nan)
            except ValueError:
                raise DataError(f"{path}, line {number}: {name!r} should be a number, found {cell!r}.") from None
    return history


def draw_curves(history: Mapping[str, Sequence[float]], path: str | Path, title: str = "") -> Path:
    """Draws the curves into a .png or .svg file, replaced as a whole.

    Args:
        history: Column name to values per epoch, see `read_history`. Columns are grouped into panels: losses, recalls, the rest,
            learning rates; `val_x` is drawn dashed in the colour of `x`.
        path: Ends in .png or .svg.
        title: Printed above.

    Raises:
        UsageError: another ending, or nothing to draw.
    """
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise UsageError(f"Curves are drawn to .png or .svg, not to {path.name!r}.")
    data = _render(history, path.suffix[1:], title, transparent=False)
    with atomic_write(path, "wb") as file:
        file.write(data)
    return path


def curves_svg(history: Mapping[str, Sequence[float]]) -> str:
    """The same picture as SVG text with a transparent background, readable on light and on dark pages."""
    return _render(history, "svg", "", transparent=True).decode("utf-8")


def _panels(history: Mapping[str, Sequence[float]]) -> list[tuple[str, list[str]]]:
    panels: dict[str, list[str]] = {"loss": [], "recall": [], "other": [], "learning rate": []}
    for name, values in history.items():
        plain = name.lower().removeprefix("val_")
        if plain == "epoch" or not any(math.isfinite(value) for value in values):
            continue
        if "loss" in plain:
            panels["loss"].append(name)
        elif plain in ("lr", "learning_rate"):
            panels["learning rate"].append(name)
        elif "r@" in plain or "recall" in plain or plain.endswith("_mean"):
            panels["recall"].append(name)
        else:
            panels["other"].append(name)
    return [(label, names) for label, names in panels.items() if names]


def _render(history: Mapping[str, Sequence[float]], kind: str, title: str, transparent: bool) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels = _panels(history)
    if not panels:
        raise UsageError(f"There is nothing to draw: no finite numbers in the columns {', '.join(history) or '(none)'}.")
    count = max(len(values) for values in history.values())
    epochs = list(history.get("epoch", range(count)))
    with matplotlib.rc_context({"svg.hashsalt": "tf_fashion", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(3.6 * len(panels), 2.9), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (label, names) in zip(axes, panels, strict=True):
            stems: list[str] = []
            for name in names:
                stem = name.removeprefix("val_")
                if stem not in stems:
                    stems.append(stem)
                paired = name != stem and stem in names
                points = [(x, y) for x, y in zip(epochs, history[name], strict=False) if math.isfinite(y)]
                axis.plot(
                    *zip(*points, strict=True),
                    color=_COLOURS[stems.index(stem) % len(_COLOURS)],
                    linestyle="--" if paired else "-",
                    marker="o" if len(points) < 25 else None,
                    markersize=3,
                    linewidth=1.6,
                    label=name,
                )
            axis.set_title(label, color=_INK)
            axis.set_xlabel("epoch", color=_INK)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            axis.grid(color=_INK, alpha=0.25, linewidth=0.6)
            axis.tick_params(colors=_INK)
            for side, spine in axis.spines.items():
                spine.set_visible(side in ("left", "bottom"))
                spine.set_color(_INK)
            axis.legend(frameon=False, labelcolor=_INK, fontsize=8)
        if title:
            figure.suptitle(title, color="#333333")
        buffer = io.BytesIO()
        metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {}
        figure.savefig(buffer, format=kind, transparent=transparent, facecolor="none" if transparent else "white", metadata=metadata)
    return buffer.getvalue()
