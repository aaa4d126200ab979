"""The files that an evaluation of attributes leaves for people: tables, curves, pictures and the report."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tf_fashion.core.files import atomic_write
from tf_fashion.reports.attributes import draw_reliability, label_rows, overall_table, task_table
from tf_fashion.reports.attributes_html import TaggedPhoto, write_attribute_report
from tf_fashion.reports.curves import read_history
from tf_fashion.reports.tables import format_table
from tf_fashion.tagging.decisions import tags_of
from tf_fashion.training.attribute_evaluation import FITTED, AttributeEvaluation

SHOWN = 24


def write_attribute_results(
    out: Path,
    metrics: Mapping[str, Any],
    evaluation: AttributeEvaluation,
    paths: Mapping[str, Path],
    title: str,
    summary: str,
    seed: int = 0,
    pictures: bool = True,
) -> None:
    """Writes `labels.csv` (the table of all labels), and with `pictures` `calibration.svg` and `report.html`, into `out`."""
    headers, rows = label_rows(metrics["rules"][FITTED], only_present=False)
    with atomic_write(out / "labels.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(headers)
        writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
    if not pictures:
        return
    curves = draw_reliability({"all labels": metrics["calibration"]["all labels"]}, out / "calibration.svg")
    history = read_history(out / "history.csv") if (out / "history.csv").exists() else None
    photos = tagged_photos(evaluation, paths, seed=seed)
    write_attribute_report(
        out / "report.html",
        metrics,
        title=title,
        summary=summary,
        history=history,
        reliability=curves.read_text(encoding="utf-8"),
        photos=photos,
    )


def attributes_table(metrics: Mapping[str, Any]) -> str:
    """The numbers of one result for a terminal: both rules of decision, all groups, quality of matching, protocol."""
    protocol = metrics["protocol"]
    parts = [
        overall_table(metrics["rules"], digits=1),
        task_table(metrics["rules"][FITTED], note=f"Percent, {FITTED}."),
    ]
    if metrics["matching"]:
        rows = [[entry["run"]["name"], entry["mean"]["mAP"], entry["mean"]["P@1"]] for entry in metrics["matching"].values()]
        parts.append(format_table(["matching by", "mAP", "P@1"], rows, digits=1))
    return "\n\n".join([*parts, f"Protocol {protocol['description']} [{protocol['fingerprint']}]"])


def tagged_photos(evaluation: AttributeEvaluation, paths: Mapping[str, Path], count: int = SHOWN, seed: int = 0) -> list[TaggedPhoto]:
    """A random choice of photos with their labels, said and true: not the best ones, an honest sample."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(evaluation.ids))[:count])
    label_map = evaluation.model.label_map
    tags = tags_of(evaluation.probabilities[chosen], evaluation.decisions[chosen], label_map)
    found = []
    for row, said in zip(chosen, tags, strict=True):
        true = {
            task: [label_map.labels[place].name for place in places if evaluation.targets[row, place] > 0]
            for task, places in label_map.groups.items()
        }
        image_id = evaluation.ids[row]
        found.append(TaggedPhoto(image_id, paths.get(image_id), said, true))
    return found
