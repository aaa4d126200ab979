"""Loss and metrics of the iMaterialist original."""

from __future__ import annotations

import re

import numpy as np
import tensorflow as tf

from tests.parity.harness import Fixture, checks
from tf_fashion.datasets.labels import LabelMap
from tf_fashion.losses import MULTILABEL_LOSSES
from tf_fashion.tagging.decisions import decide, probabilities_of
from tf_fashion.tagging.metrics import (
    Confusion,
    average_precisions,
    binary_cross_entropy,
    evaluate_attributes,
    legacy_val_loss,
    mean_average_precision,
    original_f1,
    samples_f1,
)

_EXACT = {"rtol": 0.0, "atol": 1e-9}
# The original computes these in single precision, and sums thousands of losses in it.
_SINGLE = {"rtol": 0.0, "atol": 1e-7, "note": "recorded in single precision"}
_SUMMED = {"rtol": 0.0, "atol": 2e-6, "note": "recorded from single-precision sums"}


@checks(r"loss_metrics\.npz")
def loss_metrics(fixture: Fixture) -> None:
    logits, targets, sizes = (fixture.input(key) for key in ("logits", "targets", "batch_sizes"))
    labels = LabelMap.imaterialist()
    task_of = np.array([label.task_id for label in labels.labels])
    fixture.exact("task_of_label", task_of)
    _loss(fixture, logits, targets, np.split(np.arange(len(logits)), np.cumsum(sizes)[:-1]))

    decided = decide(logits, 0.0, labels)
    f1 = original_f1(decided, targets, sizes.tolist())
    fixture.compare("f1_micro_per_batch", f1.values, **_SINGLE)
    fixture.compare("orig_avg_f1_score_epoch", f1.mean, **_SINGLE)
    legacy = legacy_val_loss(decided, targets, sizes.tolist())
    fixture.compare("orig_val_loss_per_batch", legacy.values, **_SUMMED)
    fixture.compare("orig_avg_val_loss_epoch", legacy.mean, **_SUMMED)

    for key in fixture.data:
        if match := re.fullmatch(r"(f1|precision|recall)_(micro|macro|samples|weighted)_thr_(p?)(\d*\.?\d+)", key):
            limit = float(match[4])
            chosen = decide(logits, np.log(limit / (1.0 - limit)) if match[3] else limit, labels)
            fixture.compare(key, _average(chosen, targets, match[1], match[2]), **_EXACT)
        elif match := re.fullmatch(r"f1_micro_task_(\d+)", key):
            group = np.flatnonzero(task_of == int(match[1]))
            fixture.compare(key, Confusion.of(decided, targets).of_labels(group).micro().f1, **_EXACT)
    counts = Confusion.of(decided, targets)
    fixture.compare("f1_per_label_thr_0", counts.f1, **_EXACT)
    fixture.exact("support_per_label", counts.support)
    precisions = average_precisions(logits, targets)
    present = np.flatnonzero(~np.isnan(precisions))
    fixture.exact("average_precision_labels", present)
    fixture.compare("average_precision", precisions[present], **_EXACT)
    fixture.compare("map_macro_present_labels", mean_average_precision(precisions), **_EXACT)

    whole = evaluate_attributes(probabilities_of(logits, labels), targets, decided, labels, logits=logits)
    for key, ours in {"f1_micro_thr_0": "micro_f1", "f1_macro_thr_0": "macro_f1", "bce_mean_all_float64": "bce"}.items():
        fixture.compare(key, whole[ours], note="evaluate_attributes", **_EXACT)


def _loss(fixture: Fixture, logits: np.ndarray, targets: np.ndarray, batches: list[np.ndarray]) -> None:
    loss = MULTILABEL_LOSSES.get("bce")()
    values = [loss(targets[rows], logits[rows]) for rows in batches]
    fixture.compare("train_loss_per_batch", values, rtol=0.0, atol=1e-6)
    z = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = loss(targets, z)
    fixture.compare("bce_mean_all_float64", value, rtol=0.0, atol=1e-6, note="the loss, float32")
    fixture.compare("bce_mean_all_float64", binary_cross_entropy(logits, targets), **_EXACT)
    fixture.compare("bce_grad_logits", tape.gradient(value, z), rtol=0.0, atol=1e-6)


def _average(chosen: np.ndarray, targets: np.ndarray, what: str, average: str) -> float:
    counts = Confusion.of(chosen, targets)
    if average == "micro":
        return getattr(counts.micro(), what)
    if average == "samples":
        return samples_f1(chosen, targets)
    return counts.macro_f1() if average == "macro" else counts.weighted_f1()
