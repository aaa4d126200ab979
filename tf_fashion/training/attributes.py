"""Training of an `AttributeClassifier`, from a folder of data to a folder of results."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import hash_file, read_json, write_json
from tf_fashion.datasets.attributes import AttributeDataset, open_attributes
from tf_fashion.inputs.audit import BadImage
from tf_fashion.inputs.images import load_image
from tf_fashion.inputs.labelled import labelled_batches
from tf_fashion.losses.multilabel import MULTILABEL_LOSSES, GroupedLoss, MultilabelLoss, class_balanced_weights, positive_weights
from tf_fashion.models.attributes import AttributeClassifier, load_attributes
from tf_fashion.models.base import load_path
from tf_fashion.serving.export import ExportedAttributeClassifier, export_attributes
from tf_fashion.training.attribute_evaluation import (
    AttributeEmbedder,
    AttributeEvaluation,
    attribute_protocol,
    measure,
    plain_numbers,
    summarise_attributes,
)
from tf_fashion.training.attribute_results import attributes_table, write_attribute_results
from tf_fashion.training.attributes_config import AttributeConfig, describe_model
from tf_fashion.training.runs import TrainingRun, copy_weights, made, make_optimizer, make_strategy

# Share of the training photos that must have a label of a group for `--exclusive auto` to make it a choice.
LABELLED = 0.95


class AttributeRun(TrainingRun):
    """One run: data, model, training, evaluation. The methods are called in the order in which they stand.

    Args:
        config: As given; the preset is filled in here.

    Raises:
        UsageError, DataError, WeightsError: with what to do about it; nothing is written before the data has been read.
    """

    config: AttributeConfig
    dataset: AttributeDataset
    monitor = "micro_f1"

    def __init__(self, config: AttributeConfig) -> None:
        super().__init__()
        self.config = config.resolved()
        self.dataset = open_attributes(self.config.data, self.config.images, self.config.dataset, **self.config.data_options)
        self.config = dataclasses.replace(self.config, split=self.config.split or self.dataset.default_split or "none")
        self._check_splits()
        split = str(self.config.split)
        if split != "none" and not self.dataset.has_labels(split):
            raise UsageError(f"--split {split}: its labels are not known. Choose another split, or none.")
        self.can_evaluate = split != "none"
        self.evaluation_splits = [split] if self.can_evaluate else []
        self.label_map = self.dataset.label_map
        photos = len(self.dataset.records("train"))
        if photos < self.config.batch_size:
            raise UsageError(f"--batch-size: one batch needs {self.config.batch_size} photos, found {photos} in 'train'.")
        if not self.dataset.label_counts("train").any():
            raise DataError(f"{self.config.data}: not one photo of 'train' has a label.")
        for used in self.evaluation_splits:
            self.dataset.records(used)
        self.exclusive = self._exclusive()
        self.model_hashes = {"init_from": hash_file(load_path(self.config.init_from))} if self.config.init_from else {}
        self.data_hash = self.dataset.data_hash(["train", *self.evaluation_splits])
        self._claim()
        self.strategy = make_strategy(self.config.strategy, self.config.devices)
        if self.config.init_from:
            self._given["init_from"] = load_attributes(self.config.init_from)
        self._start()

    def _exclusive(self) -> tuple[str, ...]:
        """The groups of which a photo has one label at most."""
        chosen = self.config.exclusive
        chosen = (chosen,) if isinstance(chosen, str) else tuple(chosen)
        if chosen in ((), ("none",)):
            return ()
        found = self.dataset.exclusive_groups("train")
        if chosen == ("auto",):
            # Where many photos have no label of a group, a softmax would have to choose one all the same.
            _, targets = self.dataset.targets("train")
            return tuple(name for name in found if targets[:, self.label_map.groups[name]].any(axis=1).mean() >= LABELLED)
        unknown = [name for name in chosen if name not in self.label_map.groups]
        if unknown:
            raise UsageError(f"--exclusive: no group {unknown[0]!r}. Groups: {', '.join(self.label_map.groups)}.")
        several = [name for name in chosen if name not in found]
        if several:
            raise UsageError(
                f"--exclusive: the group {several[0]!r} has one label only, or some photo has several of its labels. Groups where no "
                f"photo has: {', '.join(found) or 'none'}."
            )
        return chosen

    # Data.

    def image_paths(self) -> dict[str, Path]:
        """Files of all pictures of the run; those that are missing are reported all at once.

        Raises:
            DataError: pictures are missing, and `skip_bad_images` is off.
        """
        splits = ["train", *self.evaluation_splits]
        missing = self.dataset.missing_images(splits)
        self._bad_images([BadImage(image_id, self.dataset.images_root / f"{image_id}.jpg", "missing") for image_id in missing])
        return self.dataset.image_paths(self.dataset.image_ids(splits))

    # Model.

    def build_model(self) -> AttributeClassifier:
        """The model, compiled."""
        config = self.config
        self.images, self.targets = self.dataset.targets("train", unknown=config.unlabelled == "unknown")
        with self.scope():
            model = AttributeClassifier(
                self.encoder,
                self.label_map,
                hidden=config.hidden,
                exclusive=self.exclusive,
                feature_norm=config.feature_norm,
                feature_dropout=config.feature_dropout,
                hidden_dropout=config.hidden_dropout,
                correlation=config.correlation_options if config.correlation else None,
                name="attribute_classifier",
            )
            if config.start_at_prior:
                known = self.targets >= 0
                model.set_label_frequencies(np.where(known, self.targets, 0).sum(0) / np.maximum(known.sum(0), 1))
            if model.correlate is not None:
                model.correlate.start_from(self.targets)
            if "init_from" in self._given:
                copy_weights(self._given.pop("init_from"), model, f"--init-from {config.init_from}")
        self.model = model
        self.embedder = AttributeEmbedder(model, tta=config.tta)
        steps = len(self.images) // config.batch_size
        self.steps = min(config.steps_per_epoch or steps, steps)
        with self.scope():
            # An optimizer belongs to the strategy in whose scope it is made.
            model.compile(make_optimizer(config, self.steps * config.epochs, self.steps), self.make_loss())
        return model

    def make_loss(self) -> MultilabelLoss:
        """The loss of each label, and of the choice within each exclusive group."""
        config = self.config
        counts = self.dataset.label_counts("train")
        fixed: dict[str, Any] = {"label_smoothing": config.label_smoothing}
        if config.balance == "class_balanced":
            fixed["label_weights"] = class_balanced_weights(counts)
        elif config.balance == "positive":
            fixed["pos_weight"] = positive_weights(counts, len(self.images), power=0.5)
        loss = made("--loss-option", MULTILABEL_LOSSES.get(config.loss), config.loss_options, **fixed)
        if not self.model.groups:
            return loss
        return GroupedLoss(
            self.model.groups, rest=loss, label_smoothing=config.label_smoothing, label_weights=fixed.get("label_weights")
        )

    def training_data(self, initial_epoch: int, epochs: int | None = None) -> tf.data.Dataset:
        """Batches from `initial_epoch` on, up to `epochs` (default: those of the run)."""
        config = self.config
        batches, _ = labelled_batches(
            self.images,
            self.targets,
            self.picture_source(),
            config.batch_size,
            epochs or config.epochs,
            initial_epoch,
            config.seed,
            self.steps,
        )
        return batches

    # Evaluation.

    def evaluate(self, progress: bool | None = None) -> AttributeEvaluation:
        """Logits and embeddings of the evaluated split by the model as it is."""
        config = self.config
        show = config.progress if progress is None else progress
        ids, targets = self.dataset.targets(str(config.split))
        if self.table is not None and config.tta == "none":
            logits, embeddings = self.embedder.features(self.table.values[self.table.rows(ids)])
        else:
            logits, embeddings = self.embedder.images([self.paths[image_id] for image_id in ids], show)
        return measure(self.model, ids, targets, logits, embeddings, config.thresholds, config.objective, config.folds)

    def evaluate_epoch(self) -> dict[str, float]:
        """Micro-F1 of the plain rule (0.5, and the likeliest label of exclusive groups), mAP, and the loss of the decisions."""
        ids, targets = self.dataset.targets(str(self.config.split))
        if self.table is not None:
            logits, _ = self.embedder.features(self.table.values[self.table.rows(ids)])
        else:
            logits, _ = self.embedder.images([self.paths[image_id] for image_id in ids], False)
        return plain_numbers(self.model, targets, logits)

    # Results.

    def write_metrics(self) -> dict[str, Any]:
        config = self.config
        evaluation = self.evaluate()
        protocol = attribute_protocol(self.dataset, str(config.split), evaluation, config.tta)
        metrics = summarise_attributes(evaluation, protocol, self.record(describe_model(config)))
        write_json(self.out / "metrics.json", metrics)
        write_json(self.out / "thresholds.json", evaluation.fitted.to_config())
        summary = f"{len(self.images)} training photos, {config.epochs} epochs, seed {config.seed}; {metrics['run']['selection']}."
        title = f"Attributes with {describe_model(config)} on {self.dataset.name}"
        write_attribute_results(self.out, metrics, evaluation, self.paths, title, summary, config.seed, pictures=config.report)
        self.say("\n" + attributes_table(metrics) + "\n")
        return metrics

    def write_export(self) -> str:
        path = self.out / "thresholds.json"
        record = {"thresholds": read_json(path)} if self.can_evaluate and path.exists() else {}
        return try_export(self, export_attributes(self.model, self.out / "export" / "1", record))


def train_attributes(config: AttributeConfig) -> dict[str, Any]:
    """Trains, evaluates, reports and exports; what `tf-fashion train attributes` does.

    Args:
        config: Everything that decides the run.

    Returns:
        The content of `metrics.json` (empty where there is no split to evaluate).

    Raises:
        UsageError, DataError, WeightsError: see the messages.
    """
    run = AttributeRun(config)
    run.load_pictures()
    run.build_model()
    run.fit()
    return run.finish()


def try_export(run: AttributeRun, folder: Path) -> str:
    """Runs one photo through the export and through the model; returns a line about it.

    Raises:
        DataError: the two disagree by more than 1e-4.
    """
    image_id = run.images[0]
    photo = run.paths[image_id]
    exported = ExportedAttributeClassifier(folder).predict([photo.read_bytes()])
    features = run.model.encode_image(load_image(photo, run.model.image_encoder.image_spec)[None], training=False)
    own = run.model.probabilities(run.model.logits_of(features)).numpy()
    difference = float(np.abs(exported["probabilities"] - own).max())
    if not difference < 1e-4:
        raise DataError(
            f"{folder}: the export gives other probabilities than the model (difference {difference:.2g}); do not serve it."
        )
    return f"The export labels {image_id} as the model does (largest difference {difference:.1e})."
