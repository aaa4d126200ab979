"""Predicting with an `AttributeClassifier` and measuring it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fashion.core.errors import DataError
from tf_fashion.datasets.attributes import AttributeDataset
from tf_fashion.models.attributes import AttributeClassifier
from tf_fashion.retrieval.class_protocol import ClassProtocol
from tf_fashion.retrieval.matching import MatchMetric, evaluate_matching
from tf_fashion.retrieval.score_store import ScoreStore
from tf_fashion.tagging.calibration import reliability
from tf_fashion.tagging.metrics import (
    Confusion,
    average_precisions,
    evaluate_attributes,
    legacy_val_loss,
    mean_average_precision,
    original_f1,
)
from tf_fashion.tagging.protocol import AttributeProtocol
from tf_fashion.tagging.thresholds import Thresholds, cross_fit
from tf_fashion.training.embedding import PictureEmbedder

# Names of the rules of decision.
PLAIN, FITTED = "at 0.5", "cross-fitted"
# Photos per batch of the published program: 12 on each of four GPUs.
ORIGINAL_BATCH = 48
MATCHED_BY = ("cosine", "euclidean_prob", "embedding", "mix")


class AttributeEmbedder(PictureEmbedder):
    """Runs a classifier in batches, each traced once.

    Args:
        model: The model.
        batch_size: Photos at a time.
        tta: "none", or "flip": logits and embeddings are means of a photo's and its mirror image's.
    """

    def __init__(self, model: AttributeClassifier, batch_size: int = 32, tta: str = "none") -> None:
        super().__init__(model, batch_size)
        self.tta = tta
        self.labels, self.width = len(model.label_map), model.dim
        self._predict = self.on_features(lambda x: tf.concat([model.logits_of(x), model.embed_features(x)], axis=1))

    def features(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits float32 `(n, labels)` and embeddings float32 `(n, dim)` of image features `(n, ...)`."""
        return self._parts(self.in_blocks(self._predict, features, self.labels + self.width))

    def images(self, paths: Sequence[Path], progress: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """The same of photos, with the test-time augmentation."""
        return self._parts(self.photos(paths, self.batch, (self.labels + self.width,), "predicting", progress))

    def batch(self, images: Any) -> np.ndarray:
        """Logits and embeddings side by side of photos `(batch, size, size, 3)`, float32."""
        rows = self._predict(self.encode(images)).numpy()
        if self.tta == "flip":
            rows = (rows + self._predict(self.encode(tf.reverse(images, axis=[2]))).numpy()) / 2
            embeddings = rows[:, self.labels :]
            embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
        return rows

    def _parts(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return rows[:, : self.labels], rows[:, self.labels :]


def probabilities_of(model: AttributeClassifier, logits: np.ndarray) -> np.ndarray:
    """Probabilities float32 `(n, labels)` of logits."""
    return PictureEmbedder.in_blocks(model.probabilities, logits, len(model.label_map))


@dataclass(frozen=True)
class AttributeEvaluation:
    """Everything about an evaluated split that reports need.

    Attributes:
        ids: Image ids.
        targets: `(n, labels)`: 1, 0.
        logits, probabilities: float32 `(n, labels)`.
        embeddings: float32 `(n, dim)`, length one.
        plain: The rule without fitted thresholds: 0.5, and the likeliest label of exclusive groups.
        decisions: Boolean `(n, labels)`: each photo decided with thresholds that were fitted without it.
        fitted: Thresholds fitted on the whole split, for other photos.
    """

    model: AttributeClassifier
    ids: list[str]
    targets: np.ndarray
    logits: np.ndarray
    probabilities: np.ndarray
    embeddings: np.ndarray
    plain: Thresholds
    decisions: np.ndarray
    fitted: Thresholds
    folds: int


def measure(
    model: AttributeClassifier,
    ids: Sequence[str],
    targets: np.ndarray,
    logits: np.ndarray,
    embeddings: np.ndarray,
    kind: str = "label",
    objective: str = "micro",
    folds: int = 5,
) -> AttributeEvaluation:
    """Probabilities and decisions of a split, with thresholds that are cross-fitted over `folds` parts of it."""
    probabilities = probabilities_of(model, logits)
    label_map, exclusive = model.label_map, model.exclusive
    options: dict[str, Any] = {"kind": kind, "objective": objective, "exclusive": exclusive, "floors": True}
    fit = cross_fit(probabilities, targets, label_map, folds=min(folds, len(ids)), keys=ids, **options)
    plain = Thresholds.constant(label_map, 0.5, exclusive)
    return AttributeEvaluation(
        model, list(ids), targets, logits, probabilities, embeddings, plain, fit.decisions, fit.thresholds, len(fit.folds)
    )


def plain_numbers(model: AttributeClassifier, targets: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Fractions that need no fitting: micro-F1 of the plain rule, and mAP."""
    probabilities = probabilities_of(model, logits)
    decisions = Thresholds.constant(model.label_map, 0.5, model.exclusive).decide(probabilities, model.label_map)
    average = mean_average_precision(average_precisions(probabilities, targets))
    return {"micro_f1": Confusion.of(decisions, targets).micro().f1, "mAP": 0.0 if np.isnan(average) else average}


def attribute_protocol(dataset: AttributeDataset, split: str, evaluation: AttributeEvaluation, tta: str = "none") -> AttributeProtocol:
    """The protocol of an evaluated split."""
    model, fitted = evaluation.model, evaluation.fitted
    return AttributeProtocol(
        dataset=dataset.name,
        split=split,
        labels=len(model.label_map),
        label_map=model.label_map.fingerprint[:12],
        exclusive=model.exclusive,
        thresholds=fitted.kind,
        objective=fitted.objective,
        folds=evaluation.folds,
        tta=tta,
    )


def summarise_attributes(evaluation: AttributeEvaluation, protocol: AttributeProtocol, run: dict[str, Any]) -> dict[str, Any]:
    """`metrics.json` of an evaluated split; fractions.

    Returns:
        `protocol`; `rules`: what `evaluate_attributes` counts for decisions "at 0.5" (and the likeliest label of exclusive groups) and
        "cross-fitted"; `calibration`: reliability curves of all labels and of each group; `matching`: quality of matching by
        attribute scores, by embedding, and by both, in percent; `original`: the published program's validation numbers, whose
        definitions are its own; `run`.
    """
    model, targets, probabilities = evaluation.model, evaluation.targets, evaluation.probabilities
    label_map = model.label_map
    rules = {
        PLAIN: (evaluation.plain.decide(probabilities, label_map), None),
        FITTED: (evaluation.decisions, limits(evaluation.fitted)),
    }
    over_zero = evaluation.logits > 0
    groups = {"all labels": np.arange(len(label_map)), **label_map.groups}
    return {
        "protocol": protocol.to_config(),
        "rules": {
            name: evaluate_attributes(probabilities, targets, decisions, label_map, thresholds=values)
            for name, (decisions, values) in rules.items()
        },
        "calibration": {name: reliability(probabilities[:, places], targets[:, places]).to_config() for name, places in groups.items()},
        "matching": matching_quality(evaluation, protocol),
        "original": {
            "avg_f1_score": original_f1(over_zero, targets, ORIGINAL_BATCH).mean,
            "avg_val_loss": legacy_val_loss(over_zero, targets, ORIGINAL_BATCH).mean,
        },
        "run": run,
    }


def limits(thresholds: Thresholds) -> np.ndarray:
    """A threshold for each label, 0 where the best label of a group is always decided."""
    return np.maximum(np.array(thresholds.values), 0.0)


def matching_quality(evaluation: AttributeEvaluation, protocol: AttributeProtocol, task: str | None = None) -> dict[str, Any]:
    """mAP and P@1 when every photo queries all others and those with its label of `task` are right; percent.

    Args:
        evaluation: The split.
        protocol: Its protocol.
        task: A group of the label map; default the exclusive group with most labels, or "category".

    Returns:
        Metric -> `ClassRetrieval.summary()`; empty where no two photos share a label.
    """
    model, label_map = evaluation.model, evaluation.model.label_map
    if task is None:
        by_size = sorted(model.exclusive, key=lambda name: -len(label_map.groups[name]))
        known = [name for name in ("category", *by_size) if name in label_map.groups]
        if not known:
            return {}
        task = known[0]
    store = ScoreStore(
        np.asarray(evaluation.logits, np.float32),
        tuple(evaluation.ids),
        label_map,
        embeddings=evaluation.embeddings,
        exclusive=model.exclusive,
    )
    wanted = ClassProtocol(dataset=protocol.dataset, split=protocol.split, task=task)
    metrics = {name: MatchMetric(name) for name in MATCHED_BY}
    # The scores of the group alone: what a classifier of it would be compared with.
    alone = {name: 0.0 for name in label_map.groups if name != task}
    metrics |= {f"{name}, {task} alone": MatchMetric(name, group_weights=alone) for name in ("cosine", "euclidean_prob")}
    try:
        found = evaluate_matching(store, evaluation.targets, list(metrics.values()), wanted)
    except DataError:
        # No two photos share a label.
        return {}
    for name, result in zip(metrics, found, strict=True):
        result["run"]["name"] = name
    return dict(zip(metrics, found, strict=True))
