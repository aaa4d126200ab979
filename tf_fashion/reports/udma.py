"""Consumer-to-shop retrieval in tables (per category, all, selected), and pictures of what pseudo-labels attach."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tf_fashion.clustering.meta_domains import PseudoLabels
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import atomic_write, read_json
from tf_fashion.reports.curves import _COLOURS, _INK
from tf_fashion.reports.tables import Style, format_table
from tf_fashion.retrieval.multi_positive import StreetProtocol, StreetResult

Row = list[Any]
# What an adaptation calls the model that it begins with.
START = "before adaptation"
_STYLES: tuple[Style, ...] = ("text", "markdown")
_ORIGINAL_KS = (1, 5, 10, 20, 50)


def street_table(metrics: Mapping[str, Any], style: Style = "text", digits: int = 2) -> str:
    """One result: a line per category, their mean ("all"), the mean of the selected ones, and the protocol under it; in percent.

    Args:
        metrics: What `StreetResult.summary` gives.
        style, digits: As in `format_table`.

    Raises:
        DataError: another dictionary.
    """
    headers, rows = street_rows(metrics)
    without = metrics["counts"]["queries_without_right_picture"]
    note = f"; {without} queries without a right picture left out" if without else ""
    return f"{format_table(headers, rows, style, digits)}\n{_under(metrics, style)}{note}"


def street_rows(metrics: Mapping[str, Any]) -> tuple[list[str], list[Row]]:
    """Heads and rows of `street_table`; raises as it does."""
    keys = _keys(metrics)
    categories, counts = metrics["categories"], metrics["counts"]
    rows: list[Row] = []
    if list(categories) != ["all"]:
        rows = [[name, *(row[key] for key in keys), row["queries"], row["gallery"]] for name, row in categories.items()]
    rows.append(["all", *(metrics["mean"][key] for key in keys), counts["queries"], counts["gallery"]])
    if metrics.get("selected"):
        rows.append(["selected", *(metrics["selected"][key] for key in keys), None, None])
    return ["category", *keys, "queries", "gallery"], rows


def street_comparison(
    runs: Mapping[str, Mapping[str, Any] | Sequence[Mapping[str, Any]]],
    part: str = "mean",
    style: Style = "text",
    digits: int = 2,
) -> str:
    """Several models side by side, one line each; mean ± sample standard deviation where there are several seeds.

    Args:
        runs: Model name -> a result (`StreetResult.summary`), or one per seed.
        part: "mean" (of all categories), "selected", or the name of a category.
        style, digits: As in `format_table`.

    Raises:
        UsageError: results of different protocols or metrics, or without the part.
        DataError: another dictionary, or no result.
    """
    headers, rows = comparison_rows(runs, part, digits)
    entries = next(iter(runs.values()))
    first = entries if isinstance(entries, Mapping) else entries[0]
    return f"{format_table(headers, rows, style, digits)}\n{_under(first, style)}" + ("" if part == "mean" else f"; {part}")


def comparison_rows(
    runs: Mapping[str, Mapping[str, Any] | Sequence[Mapping[str, Any]]], part: str = "mean", digits: int = 2
) -> tuple[list[str], list[Row]]:
    """Heads and rows of `street_comparison`; raises as it does. The column of seeds is left out where each model has one."""
    every = {name: [entry] if isinstance(entry, Mapping) else list(entry) for name, entry in runs.items()}
    if not every or any(not entries for entries in every.values()):
        raise DataError("Every model needs at least one result.")
    first = next(iter(every.values()))[0]
    keys, fingerprint = _keys(first), _protocol(first).fingerprint
    several = any(len(entries) > 1 for entries in every.values())
    rows: list[Row] = []
    for name, entries in every.items():
        for entry in entries:
            if _keys(entry) != keys or _protocol(entry).fingerprint != fingerprint:
                raise UsageError(
                    f"Results of different protocols do not belong into one table: {_protocol(first).describe()}; "
                    f"{name}: {_protocol(entry).describe()}."
                )
        values = [_part(entry, part, name) for entry in entries]
        columns = [[float(value[key]) for value in values] for key in keys]
        rows.append([name, *(_spread(column, digits) for column in columns), *([len(entries)] if several else [])])
    return ["model", *keys, *(["seeds"] if several else [])], rows


def original_lines(result: StreetResult) -> list[str]:
    """The lines that UDMA's MATLAB scripts print: one for scope "all"; for categories the mean, the selected ones, and their mean.

    Selected categories without a query that has a right picture are left out, and so is the mean then.

    Raises:
        UsageError: a protocol with other cut-offs than theirs, or by categories without selected ones.
    """
    if result.protocol.ks != _ORIGINAL_KS or (result.protocol.scope == "category" and not result.protocol.selected):
        raise UsageError("The original prints R@1, 5, 10, 20 and 50, and with categories the selected ones. Use its protocols.")

    def line(values: Mapping[str, float], gap: str) -> str:
        m, *r = values.values()
        return (
            f"Performance:  mAP = {m:.4f}, r1 precision = {r[0]:.4f},  r5 precision = {r[1]:.4f},  r10 precision = {r[2]:.4f}, "
            f"r20 precision = {r[3]:.4f},{gap}r50 precision = {r[4]:.4f}"
        )

    if result.protocol.scope == "all":
        return [line(result.overall, "  ")]
    selected = [line(result.by_category[name], " ") for name in result.protocol.selected if name in result.by_category]
    lines = [f"All {line(result.overall, ' ')}", *selected]
    # Data with other categories have no such mean.
    complete = len(selected) == len(result.protocol.selected)
    return [*lines, f"Selected {line(result.selected or {}, ' ')}"] if complete else lines


def weights_table(labels: Mapping[str, PseudoLabels], style: Style = "text", digits: int = 2) -> str:
    """What each strategy attaches: products with photos of the target, photos used, attachments, mean weight.

    Raises:
        DataError: no strategy.
    """
    if not labels:
        raise DataError("There are no pseudo-labels to compare.")
    headers = ["strategy", "products", "with target photos", "target photos", "attachments", "mean weight"]
    keys = ("products", "products_with_target_photos", "target_photos", "attachments", "mean_weight")
    rows = [[name, *(entry.summary()[key] for key in keys)] for name, entry in labels.items()]
    return format_table(headers, rows, style, digits)


def draw_weights(
    labels: Mapping[str, PseudoLabels],
    path: str | Path,
    similarities: Mapping[str, np.ndarray] | None = None,
    title: str = "",
) -> Path:
    """Draws, for each strategy, how many photos the products get, and the distribution of weights (or of similarities).

    Args:
        labels: Name -> pseudo-labels.
        path: Ends in .png or .svg; an older file is replaced as a whole.
        similarities: Name -> similarities of the matches (`Matches.similarity`), drawn in place of the weights where given: those of
            the original's strategies are all 1.
        title: Printed above.

    Raises:
        UsageError: another ending, or nothing to draw.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise UsageError(f"Weights are drawn to .png or .svg, not to {path.name!r}.")
    if not any(entry.attached.any() for entry in labels.values()):
        raise UsageError("There is nothing to draw: no strategy attaches a photo.")
    with matplotlib.rc_context({"svg.hashsalt": "tf_fashion", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(7.6, 3.2), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        for number, (name, entry) in enumerate(labels.items()):
            colour = _COLOURS[number % len(_COLOURS)]
            most = np.sort(entry.weak.lengths)[::-1]
            left.step(np.arange(1, len(most) + 1), most, where="post", color=colour, linewidth=1.4, label=name)
            values = np.asarray((similarities or {}).get(name, entry.weights), np.float64)
            if len(values):
                what = "similarity" if name in (similarities or {}) else "weight"
                edges = np.linspace(min(0.0, float(values.min())), max(1.0, float(values.max())), 41)
                heights = np.histogram(values, edges)[0] / len(values)
                right.stairs(heights, edges, color=colour, linewidth=1.4, label=f"{name}: {what}")
        left.set_xlabel("product, by number of photos", color=_INK)
        left.set_ylabel("photos of the target", color=_INK)
        left.set_yscale("symlog", linthresh=1)
        left.set_ylim(bottom=0)
        right.set_xlabel("weight or similarity", color=_INK)
        right.set_ylabel("share of attachments", color=_INK)
        for axis in (left, right):
            axis.legend(frameon=False, fontsize=8)
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


def _protocol(metrics: Mapping[str, Any]) -> StreetProtocol:
    config = metrics.get("protocol") if isinstance(metrics, Mapping) else None
    if not isinstance(config, Mapping):
        raise DataError("The result names no protocol: numbers without protocol are not printed. Evaluate again.")
    return StreetProtocol.from_config(config)


def _keys(metrics: Mapping[str, Any]) -> list[str]:
    keys = ["mAP", *(f"R@{k}" for k in _protocol(metrics).ks)]
    for name in ("categories", "mean", "counts"):
        if not isinstance(metrics.get(name), Mapping):
            raise DataError(f"Expected a result of consumer-to-shop retrieval with {name!r}, as `StreetResult.summary` gives it.")
    for name, row in (*metrics["categories"].items(), ("mean", metrics["mean"])):
        if not isinstance(row, Mapping) or any(not isinstance(row.get(key), (int, float)) for key in keys):
            raise DataError(f"{name!r}: expected numbers for {', '.join(keys)}.")
    return keys


def _part(metrics: Mapping[str, Any], part: str, model: str) -> Mapping[str, Any]:
    found = metrics.get(part) if part in ("mean", "selected") else metrics["categories"].get(part)
    if not found:
        raise UsageError(f"{model!r} has no {part!r}. Found: mean, selected, {', '.join(metrics['categories'])}.")
    return found


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def _under(metrics: Mapping[str, Any], style: Style) -> str:
    line = f"Percent. Protocol {_protocol(metrics).describe()}"
    return f"\n{line}" if style == "markdown" else line


def compare_files(results: Sequence[str], part: str = "mean", out: str | None = None) -> str:
    """Tables of several results, a table per test list. See `tf-fashion compare street_to_shop --help`.

    Raises:
        UsageError: results of different protocols or lists.
        DataError: a file that is no result of street-to-shop retrieval.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    lists: dict[str, str] = {}
    contents = [(file, read_json(file)) for file in results]
    # A second stage begins with the result of a first one, which needs no row of its own if that is among the files.
    first: set[str] = set()
    for own in (True, False):
        for file, content in contents:
            if not isinstance(content, Mapping) or any(not isinstance(content.get(key), Mapping) for key in ("tests", "run")):
                raise DataError(f"{file}: expected the metrics.json of a street-to-shop run, found no 'tests' and 'run' in it.")
            run = content["run"]
            lists[str(file)] = str(run.get("data_hash"))
            seed = str(run.get("seed", file))
            if "pseudo_labels" not in run:
                first.add(seed)
            rows = {str(run.get("name") or Path(file).stem): content["tests"]} if own else content.get("compared") or {}
            for name, tests in rows.items():
                for source, result in tests.items():
                    models = found.setdefault(source, {})
                    if own or seed not in first or name != START:
                        models.setdefault(name, {})[seed] = result
    if len(set(lists.values())) > 1:
        raise UsageError(
            f"These results belong to different lists: {', '.join(lists)}. Only results of the same lists can be compared."
        )
    texts: dict[Style, str] = {}
    for style in _STYLES:
        tables = []
        for source, models in found.items():
            entries = {name: list(seeds.values()) for name, seeds in sorted(models.items(), key=lambda item: _rank(item[1], part))}
            tables.append(
                f"{source}: consumer photos in the shop\n" + "\n" * (style == "markdown") + street_comparison(entries, part, style)
            )
        texts[style] = "\n\n".join(tables)
    if out:
        with atomic_write(Path(out)) as stream:
            stream.write(texts["markdown"] + "\n")
    return texts["text"] + (f"\n\nWritten to {out}" if out else "")


def _rank(seeds: Mapping[str, Mapping[str, Any]], part: str) -> float:
    return float(np.mean([_part(result, part, seed)["mAP"] for seed, result in seeds.items()]))
