"""Tables and curves of attribute prediction, from what `tagging.metrics.evaluate_attributes` and `Reliability.to_config` give."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import atomic_write
from tf_fashion.reports.curves import _COLOURS, _INK
from tf_fashion.reports.tables import Style, format_table

Row = list[Any]

_OVERALL = {
    "micro-F1": "micro_f1",
    "precision": "micro_precision",
    "recall": "micro_recall",
    "macro-F1": "macro_f1",
    "weighted F1": "weighted_f1",
    "samples F1": "samples_f1",
    "mAP": "mAP",
}
_SORTS = ("task", "support", "f1", "average_precision", "name")


def label_rows(metrics: Mapping[str, Any], sort: str = "task", only_present: bool = False) -> tuple[list[str], list[Row]]:
    """Headers and rows of the table of labels; percent, thresholds as they are.

    Args:
        metrics: What `evaluate_attributes` gives.
        sort: "task" (as in the label map, task by task), "name", or a number, the highest first: "support", "f1",
            "average_precision".
        only_present: Leave out labels that no record has.

    Raises:
        UsageError: unknown order.
        DataError: metrics of another kind.
    """
    if sort not in _SORTS:
        raise UsageError(f"Unknown order {sort!r} of labels. Known: {', '.join(_SORTS)}.")
    labels = [entry for entry in _part(metrics, "per_label", list) if entry["support"] or not only_present]
    if sort == "task":
        tasks = list(_part(metrics, "tasks", Mapping))
        labels.sort(key=lambda entry: tasks.index(entry["task"]))
    elif sort == "name":
        labels.sort(key=lambda entry: entry["name"])
    else:
        labels.sort(key=lambda entry: -1.0 if entry[sort] is None else entry[sort], reverse=True)
    headers = ["label", "task", "id", "support", "decided", "precision", "recall", "F1", "AP"]
    shares = ("precision", "recall", "f1", "average_precision")
    rows = [
        [*(entry[key] for key in ("name", "task", "id", "support", "decided")), *(_percent(entry[key]) for key in shares)]
        for entry in labels
    ]
    if any(entry["threshold"] is not None for entry in labels):
        headers.append("threshold")
        for row, entry in zip(rows, labels, strict=True):
            row.append("best" if entry["threshold"] is None else f"{entry['threshold']:.3f}")
    return headers, rows


def label_table(
    metrics: Mapping[str, Any], style: Style = "text", digits: int = 1, sort: str = "task", only_present: bool = False, note: str = ""
) -> str:
    """`label_rows` as text or Markdown, with `note` (dataset, decision rule) under it; raises as that."""
    return _noted(format_table(*label_rows(metrics, sort, only_present), style, digits), style, note)


def task_rows(metrics: Mapping[str, Any]) -> tuple[list[str], list[Row]]:
    """Headers and rows of the table of tasks, and the line of all labels; percent.

    Raises:
        DataError: metrics of another kind.
    """
    headers = ["task", "labels", "support", "micro-F1", "precision", "recall", "macro-F1", "mAP", "best label right", "of"]
    keys = ("micro_f1", "micro_precision", "micro_recall", "macro_f1", "mAP")
    rows: list[Row] = []
    for task, entry in _part(metrics, "tasks", Mapping).items():
        right = _percent(entry["accuracy"]) if entry["accuracy_records"] else None
        rows.append(
            [task, entry["labels"], entry["support"], *(_percent(entry[key]) for key in keys), right, entry["accuracy_records"]]
        )
    support = sum(row[2] for row in rows)
    rows.append(["all", metrics["labels"], support, *(_percent(metrics[key]) for key in keys), None, None])
    return headers, rows


def task_table(metrics: Mapping[str, Any], style: Style = "text", digits: int = 1, note: str = "") -> str:
    """`task_rows` as text or Markdown with `note` under it; raises as that."""
    return _noted(format_table(*task_rows(metrics), style, digits), style, note)


def overall_rows(results: Mapping[str, Mapping[str, Any]], accuracy_of: Sequence[str] = ()) -> tuple[list[str], list[Row]]:
    """Headers and rows that compare several models or decision rules on the same records; percent, cross-entropy as it is.

    Args:
        results: Name -> what `evaluate_attributes` gives.
        accuracy_of: Tasks whose best label's accuracy is a column ("color right").

    Raises:
        UsageError: results of different numbers of records or labels, or a task that they do not have.
        DataError: no result, or metrics of another kind.
    """
    if not results:
        raise DataError("There are no results to compare.")
    sizes = {(_part(entry, "records", int), _part(entry, "labels", int)) for entry in results.values()}
    if len(sizes) > 1:
        found = "; ".join(f"{name}: {entry['records']} records, {entry['labels']} labels" for name, entry in results.items())
        raise UsageError(f"Results of different records or labels do not belong into one table: {found}.")
    rows: list[Row] = []
    for name, entry in results.items():
        tasks = _part(entry, "tasks", Mapping)
        missing = [task for task in accuracy_of if task not in tasks]
        if missing:
            raise UsageError(f"{name!r} has no task {missing[0]!r}. Tasks: {', '.join(tasks)}.")
        right = [_percent(tasks[task]["accuracy"]) for task in accuracy_of]
        rows.append([name, *(_percent(entry[key]) for key in _OVERALL.values()), *right, f"{entry['bce']:.4f}"])
    return ["", *_OVERALL, *(f"{task} right" for task in accuracy_of), "BCE"], rows


def overall_table(
    results: Mapping[str, Mapping[str, Any]],
    style: Style = "text",
    digits: int = 2,
    accuracy_of: Sequence[str] = (),
    note: str = "",
) -> str:
    """`overall_rows` as text or Markdown with `note` under it; raises as that."""
    return _noted(format_table(*overall_rows(results, accuracy_of), style, digits), style, note)


def draw_reliability(curves: Mapping[str, Mapping[str, Any]], path: str | Path, title: str = "") -> Path:
    """Draws reliability curves, and under them how many entries each point stands for, into a .png or .svg file.

    Args:
        curves: Name -> what `Reliability.to_config` gives.
        path: Ends in .png or .svg; an older file is replaced as a whole.
        title: Printed above.

    Raises:
        UsageError: another ending, or nothing to draw.
        DataError: a curve of another kind.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise UsageError(f"Curves are drawn to .png or .svg, not to {path.name!r}.")
    for name, curve in curves.items():
        if not isinstance(curve, Mapping) or not {"probability", "frequency", "counts", "ece"} <= set(curve):
            raise DataError(f"{name!r}: expected a reliability curve with probability, frequency, counts and ece.")
    if not any(curve["counts"] for curve in curves.values()):
        raise UsageError("There is nothing to draw: no reliability curve has entries.")
    with matplotlib.rc_context({"svg.hashsalt": "tf_fashion", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(4.4, 5.0), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=":")
        for number, (name, curve) in enumerate(curves.items()):
            style: dict[str, Any] = {"color": _COLOURS[number % len(_COLOURS)], "marker": "o", "markersize": 3, "linewidth": 1.4}
            above.plot(curve["probability"], curve["frequency"], label=f"{name} (ECE {100 * curve['ece']:.2f} %)", **style)
            below.plot(curve["probability"], curve["counts"], **style)
        above.set_ylabel("share that applies", color=_INK)
        above.set_xlim(-0.02, 1.02)
        above.set_ylim(-0.02, 1.02)
        above.legend(frameon=False, fontsize=8, loc="upper left")
        below.set_yscale("log")
        below.set_ylabel("entries", color=_INK)
        below.set_xlabel("probability", color=_INK)
        for axis in (above, below):
            axis.grid(color=_INK, alpha=0.25, linewidth=0.6)
            axis.tick_params(colors=_INK)
            for side, spine in axis.spines.items():
                spine.set_visible(side in ("left", "bottom"))
                spine.set_color(_INK)
        if title:
            figure.suptitle(title, color="#333333")
        buffer = io.BytesIO()
        metadata: dict[str, Any] = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(buffer, format=path.suffix[1:], facecolor="white", metadata=metadata)
    with atomic_write(path, "wb") as file:
        file.write(buffer.getvalue())
    return path


def _part(metrics: Mapping[str, Any], key: str, kind: type) -> Any:
    if not isinstance(metrics, Mapping) or not isinstance(metrics.get(key), kind):
        raise DataError(f"Expected the numbers of attributes with {key!r}, as `evaluate_attributes` gives them.")
    return metrics[key]


def _percent(value: float | None) -> float | None:
    return None if value is None else 100.0 * value


def _noted(table: str, style: Style, note: str) -> str:
    return table + (("\n\n" if style == "markdown" else "\n") + note if note else "")
